"""The same 209 documents while a worker is killed, Redis is killed and emptied, and Postgres is restarted."""

import os
import signal
from collections.abc import Callable
from uuid import UUID

import redis
from sqlalchemy import Engine, text

from penstock.client import Client
from penstock.schemas import JobState
from penstock.settings import load_settings
from tests.system.corpus import TIMEOUT_S, needs_documents, submit_all
from workers.stack import Stack, invoice


@needs_documents
def test_nothing_is_lost_and_nothing_bought_twice_when_everything_breaks(
    stack: Stack, client: Client, database: Engine
) -> None:
    victim = next(service for service in stack.services if service.name == "small-2")
    broker = redis.Redis(unix_socket_path=load_settings().require_broker_url().removeprefix("redis+socket://"))
    postgres, broker_server = stack.embedded.postgres, stack.embedded.redis
    breakages: list[tuple[int, list[Callable[[], object]]]] = [
        (30, [lambda: os.kill(victim.process.pid, signal.SIGKILL)]),
        (70, [broker_server.kill, broker_server.start]),
        (110, [broker.flushall]),
        (150, [postgres.stop, postgres.start]),
    ]

    def break_things(states: dict[UUID, JobState]) -> None:
        ended = sum(state.is_terminal for state in states.values())
        while breakages and ended >= breakages[0][0]:
            for step in breakages.pop(0)[1]:
                step()

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
    assert stack.simulator_url is not None
    assert client.ledger_totals().nanodollars >= invoice(stack.simulator_url)["total_nanodollars"]
    assert sum(row.unknown + row.open for row in rows) > 0, "the kill hit no call, so this proved nothing"
