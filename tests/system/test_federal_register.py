"""All 209 documents of the Federal Register set through two pool processes."""

import httpx
from sqlalchemy import Engine, text

from penstock.client import Client
from penstock.schemas import JobState
from tests.system.corpus import TIMEOUT_S, needs_documents, submit_all
from workers.stack import Stack, invoice


def flower_counts(stack: Stack) -> dict[str, int]:
    """Count what Flower has seen of attempts, by kind of event."""
    counts: dict[str, int] = {}
    for line in httpx.get(f"{stack.flower_url}/metrics").text.splitlines():
        if line.startswith("flower_events_total{") and 'task="penstock.attempt"' in line:
            kind = line.split('type="')[1].split('"')[0]
            counts[kind] = counts.get(kind, 0) + int(float(line.rsplit(" ", 1)[1]))
    return counts


@needs_documents
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
