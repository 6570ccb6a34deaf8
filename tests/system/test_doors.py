"""What comes in through Celery's door, and what an operator may do, on the whole stack."""

import signal
import time
from collections.abc import Callable, Iterator
from uuid import UUID

import httpx
import pytest
from celery import Celery
from sqlalchemy import Engine, text

from penstock.client import Client
from penstock.errors import JobDeadError
from penstock.schemas import JobState
from penstock.settings import load_settings
from workers.stack import Stack

DOCUMENT = "The agency will hold a public meeting on 4 May 2017 in Denver. PURPLE-MARKER-7731."
PATIENCE_S = 30


@pytest.fixture(scope="module")
def producer(stack: Stack) -> Iterator[Celery]:
    """A Celery producer that knows nothing of Penstock but two names."""
    assert stack.services
    settings = load_settings()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("penstock.client.result_backend.default_settings", lambda: settings)
        app = Celery(
            "foreign",
            broker=settings.require_broker_url(),
            backend="penstock.client.result_backend:JobsBackend",
            set_as_current=False,
        )
        app.conf.broker_transport_options = {"socket_timeout": 15}
        yield app
        app.close()


def eventually(holds: Callable[[], bool]) -> None:
    """Wait for something that another process does."""
    ends_at = time.monotonic() + PATIENCE_S
    while not holds():
        assert time.monotonic() < ends_at, "it did not come to hold"
        time.sleep(0.05)


def flower_task(stack: Stack, task_id: str) -> dict[str, object]:
    answer = httpx.get(f"{stack.flower_url}/api/task/info/{task_id}")
    return dict(answer.json()) if answer.status_code == httpx.codes.OK else {}


def test_a_foreign_producer_gets_its_result_by_the_id_of_its_task(producer: Celery, client: Client) -> None:
    result = producer.send_task("penstock.summarise", kwargs={"tenant": "acme", "document": DOCUMENT, "tier": "small"})
    assert result.get(timeout=PATIENCE_S) == DOCUMENT
    job = client.get(result.id)
    assert (job.state, job.tenant, job.attempts) == (JobState.SUCCEEDED, "acme", 1)


def test_a_refusal_at_celerys_door_is_a_dead_job_with_the_same_words(
    producer: Celery, client: Client, stack: Stack
) -> None:
    result = producer.send_task("penstock.complete", kwargs={"tenant": "acme", "prompt": "sumarise", "document": "x"})
    with pytest.raises(JobDeadError, match=r"invalid: prompt: .*sumarise"):
        result.get(timeout=PATIENCE_S)
    job = client.get(result.id)
    assert (job.state, job.reason, job.attempts) == (JobState.DEAD, "invalid", 0)
    eventually(lambda: flower_task(stack, result.id).get("state") == "FAILURE")
    assert job.detail is not None
    assert job.detail in str(flower_task(stack, result.id)["exception"])


def test_flower_never_shows_text(producer: Celery, stack: Stack) -> None:
    kwargs = {"tenant": "acme", "document": DOCUMENT, "tier": "small"}
    result = producer.send_task("penstock.summarise", kwargs=kwargs)
    result.get(timeout=PATIENCE_S)
    eventually(lambda: flower_task(stack, result.id).get("state") == "SUCCESS")
    shown = httpx.get(f"{stack.flower_url}/api/tasks").text + httpx.get(f"{stack.flower_url}/task/{result.id}").text
    assert result.id in shown
    assert "PURPLE-MARKER" not in shown


def test_logs_never_hold_text(producer: Celery, stack: Stack) -> None:
    producer.send_task("penstock.summarise", kwargs={"tenant": "acme", "document": DOCUMENT, "tier": "small"}).get(
        timeout=PATIENCE_S
    )
    logs = [service.log.read_text() for service in stack.services]
    assert any("job.succeeded" in log for log in logs)
    assert not any("PURPLE-MARKER" in log for log in logs)


@pytest.mark.parametrize("how", ["client", "flower"])
def test_a_cancel_stops_the_call_in_flight(stack: Stack, client: Client, database: Engine, how: str) -> None:
    httpx.post(f"{stack.simulator_url}/faults", json={"faults": [{"name": "hang", "model": "sim-small", "count": 1}]})
    job_id = client.submit(tenant="acme", document=DOCUMENT, tier="small", fresh=True)

    def in_flight() -> int:
        return int(httpx.get(f"{stack.simulator_url}/stats").json()["models"].get("sim-small", {}).get("in_flight", 0))

    eventually(lambda: in_flight() == 1)
    if how == "client":
        assert client.cancel(job_id) == [job_id]
    else:
        httpx.post(f"{stack.flower_url}/api/task/revoke/{job_id}?terminate=true").raise_for_status()
    eventually(lambda: in_flight() == 0)
    eventually(lambda: client.get(job_id).state is JobState.CANCELLED)
    eventually(lambda: flower_task(stack, str(job_id)).get("state") == "REVOKED")

    def ledger() -> tuple[str, bool]:
        with database.connect() as connection:
            row = connection.execute(text("SELECT * FROM ledger WHERE job_id = :id"), {"id": job_id}).one()
        return row.state, row.nanodollars == row.upper_bound_nanodollars

    eventually(lambda: ledger() == ("unknown", True))


def test_a_dead_job_shows_as_failure_and_can_be_replayed(stack: Stack, client: Client) -> None:
    fault = {"name": "bad_request", "model": "sim-small", "count": 1}
    httpx.post(f"{stack.simulator_url}/faults", json={"faults": [fault]})
    job_id = client.submit(tenant="acme", document=DOCUMENT, tier="small", fresh=True)
    with pytest.raises(JobDeadError, match="bad_request"):
        client.wait(job_id, timeout_s=PATIENCE_S)
    eventually(lambda: flower_task(stack, str(job_id)).get("state") == "FAILURE")
    assert "bad_request" in str(flower_task(stack, str(job_id))["exception"])
    assert client.replay([job_id]) == [job_id]
    assert client.replay([job_id]) == []
    assert client.wait(job_id, timeout_s=PATIENCE_S).result == DOCUMENT


def test_a_retry_shows_as_retry(stack: Stack, client: Client) -> None:
    fault = {"name": "throttled", "model": "sim-small", "count": 1, "retry_after": 2}
    httpx.post(f"{stack.simulator_url}/faults", json={"faults": [fault]})
    job_id = client.submit(tenant="acme", document=DOCUMENT, tier="small", fresh=True)
    eventually(lambda: flower_task(stack, str(job_id)).get("state") == "RETRY")
    assert client.wait(job_id, timeout_s=PATIENCE_S).attempts == 2


def test_a_stopped_pool_finishes_what_it_has_begun(stack: Stack, client: Client) -> None:
    slow = {"name": "latency", "model": "sim-medium", "extra_ms": 1500, "count": 1}
    httpx.post(f"{stack.simulator_url}/faults", json={"faults": [slow]})
    job_id = client.submit(tenant="acme", document=DOCUMENT, tier="medium", fresh=True)
    eventually(lambda: client.get(job_id).state is JobState.RUNNING)
    pool = next(service for service in stack.services if service.name == "medium-1")
    pool.process.send_signal(signal.SIGTERM)
    assert pool.process.wait(PATIENCE_S) == 0
    job = client.get(job_id)
    assert (job.state, job.attempts) == (JobState.SUCCEEDED, 1)
    assert [attempt.outcome for attempt in client.history(UUID(str(job_id)))] == ["succeeded"]
