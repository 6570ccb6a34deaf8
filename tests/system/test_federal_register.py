"""All 209 documents of the Federal Register set through two pool processes; then again, while things break."""

import json
import os
import signal
from collections.abc import Iterator
from uuid import UUID

import httpx
import pytest
import redis
from sqlalchemy import Engine, text

from penstock.client import Client
from penstock.schemas import JobState
from penstock.settings import load_settings
from penstock.store.db import sync_engine
from tests.conftest import ROOT
from workers.stack import Stack, invoice

DOCUMENTS = ROOT.parent / "shared" / "data" / "federal_register.jsonl"
TIMEOUT_S = 100

pytestmark = pytest.mark.skipif(not DOCUMENTS.exists(), reason="the shared documents are not beside this checkout")


@pytest.fixture(scope="module")
def database(stack: Stack) -> Iterator[Engine]:
    engine = sync_engine(load_settings().require_database_url())
    yield engine
    engine.dispose()


def submit_all(client: Client) -> list[UUID]:
    with DOCUMENTS.open() as lines:
        documents = [json.loads(line) for line in lines]
    return client.submit_many(
        {
            "tenant": f"tenant-{number % 3}",
            "prompt": "summarise_document",
            "document": document["text"],
            "document_name": document["id"],
            "tier": "small",
            "lane": "batch",
        }
        for number, document in enumerate(documents)
    )


def flower_counts(stack: Stack) -> dict[str, int]:
    """Count what Flower has seen of attempts, by kind of event."""
    counts: dict[str, int] = {}
    for line in httpx.get(f"{stack.flower_url}/metrics").text.splitlines():
        if line.startswith("flower_events_total{") and 'task="penstock.attempt"' in line:
            kind = line.split('type="')[1].split('"')[0]
            counts[kind] = counts.get(kind, 0) + int(float(line.rsplit(" ", 1)[1]))
    return counts


def test_every_job_succeeds_and_the_books_agree(stack: Stack, client: Client, database: Engine) -> None:
    jobs = submit_all(client)
    states = client.wait_all(jobs, timeout_s=TIMEOUT_S)
    assert len(states) == 209
    assert set(states.values()) == {JobState.SUCCEEDED}
    assert stack.simulator_url is not None
    billed = invoice(stack.simulator_url)
    totals = client.ledger_totals()
    assert (totals.nanodollars, totals.calls, totals.open) == (billed["total_nanodollars"], billed["calls"], 0)
    with database.connect() as connection:
        attempts = connection.scalar(text("SELECT count(*) FROM attempts"))
        workers = connection.scalar(text("SELECT count(DISTINCT worker) FROM attempts"))
    assert workers == 2
    assert attempts == 209
    assert flower_counts(stack)["task-succeeded"] == attempts


def test_a_killed_worker_and_an_emptied_redis_lose_nothing(stack: Stack, client: Client, database: Engine) -> None:
    before = client.ledger_totals().nanodollars
    assert stack.simulator_url is not None
    billed_before = invoice(stack.simulator_url)["total_nanodollars"]
    victim = next(service for service in stack.services if service.name == "small-2")
    broker = redis.Redis(unix_socket_path=load_settings().require_broker_url().removeprefix("redis+socket://"))
    breakages = [(40, lambda: os.kill(victim.process.pid, signal.SIGKILL)), (110, broker.flushall)]

    def break_things(states: dict[UUID, JobState]) -> None:
        ended = sum(state.is_terminal for state in states.values())
        while breakages and ended >= breakages[0][0]:
            breakages.pop(0)[1]()

    jobs = submit_all(client)
    states = client.wait_all(jobs, timeout_s=TIMEOUT_S, progress=break_things)
    broker.close()
    assert breakages == []
    assert set(states.values()) == {JobState.SUCCEEDED}
    with database.connect() as connection:
        rows = connection.execute(
            text("""
                SELECT count(*) FILTER (WHERE state = 'settled') AS settled, count(*) FILTER (WHERE state = 'unknown')
                    AS unknown, count(*) FILTER (WHERE state = 'intent') AS open
                FROM ledger WHERE job_id = ANY(CAST(:ids AS uuid[])) GROUP BY job_id
            """),
            {"ids": [str(job) for job in jobs]},
        ).all()
        results = connection.scalar(
            text("SELECT count(*) FROM results WHERE job_id = ANY(CAST(:ids AS uuid[]))"),
            {"ids": [str(job) for job in jobs]},
        )
    assert results == 209
    assert {row.settled for row in rows} == {1}, "an answer that had been recorded was bought again"
    spent = client.ledger_totals().nanodollars - before
    billed = invoice(stack.simulator_url)["total_nanodollars"] - billed_before
    assert spent >= billed
    assert sum(row.unknown + row.open for row in rows) > 0, "the kill hit no call, so this proved nothing"
