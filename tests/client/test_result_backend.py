"""Celery's own AsyncResult reads the jobs table, in every state."""

from collections.abc import Iterator
from uuid import UUID, uuid4

import pytest
import redis
from celery import Celery, exceptions
from sqlalchemy import Engine, text

from penstock.client import Client
from penstock.client.result_backend import CELERY_STATES
from penstock.errors import InvalidRequestError, JobDeadError, Reason
from penstock.jobs.submission import bury_refused
from penstock.reception import row_id
from penstock.schemas import JobState
from penstock.settings import Settings, default_settings


@pytest.fixture
def app(settings: Settings, engine: Engine, monkeypatch: pytest.MonkeyPatch) -> Iterator[Celery]:
    """Give a foreign producer's app that reads results from Penstock, set up by the environment."""
    assert settings.database_url is not None
    monkeypatch.setenv("PENSTOCK_DATABASE_URL", settings.database_url.get_secret_value())
    default_settings.cache_clear()
    app = Celery("producer", backend="penstock.client.result_backend:JobsBackend", set_as_current=False)
    yield app
    app.close()
    default_settings.cache_clear()


@pytest.fixture
def job_id(settings: Settings, engine: Engine, broker: redis.Redis) -> UUID:
    """Submit a job."""
    with Client(settings) as client:
        return client.submit(tenant="acme", document="The river rose.", lane="batch")


def put(engine: Engine, job_id: UUID, state: JobState) -> None:
    """Bring a job into a state, as its life would."""
    ended = "now()" if state.is_terminal else "NULL"
    with engine.begin() as connection:
        connection.execute(
            text(f"UPDATE jobs SET state = :state, ended_at = {ended} WHERE id = :id"), {"state": state, "id": job_id}
        )


def test_every_state_of_a_job_has_one_of_celery() -> None:
    assert set(CELERY_STATES) == set(JobState)


@pytest.mark.parametrize(
    ("state", "shown"),
    [
        (JobState.QUEUED, "PENDING"),
        (JobState.RELEASED, "PENDING"),
        (JobState.RUNNING, "STARTED"),
        (JobState.RETRYING, "RETRY"),
    ],
)
def test_live_job_has_no_result_yet(app: Celery, engine: Engine, job_id: UUID, state: JobState, shown: str) -> None:
    put(engine, job_id, state)
    result = app.AsyncResult(str(job_id))
    assert (result.state, result.result, result.ready(), result.date_done) == (shown, None, False, None)
    with pytest.raises(exceptions.TimeoutError):
        result.get(timeout=0.05, interval=0.01)


def test_success_gives_the_text(app: Celery, engine: Engine, job_id: UUID) -> None:
    with engine.begin() as connection:
        connection.execute(text("INSERT INTO results VALUES (:id, 'a summary', 'asked', 'served')"), {"id": job_id})
    put(engine, job_id, JobState.SUCCEEDED)
    result = app.AsyncResult(str(job_id))
    assert result.get(timeout=5) == "a summary"
    assert (result.state, result.successful()) == ("SUCCESS", True)
    assert result.date_done is not None


def test_dead_job_raises_its_reason(app: Celery, engine: Engine, job_id: UUID) -> None:
    put(engine, job_id, JobState.DEAD)
    with engine.begin() as connection:
        connection.execute(text("UPDATE jobs SET reason = 'bad_request', detail = 'HTTP 400'"))
    result = app.AsyncResult(str(job_id))
    with pytest.raises(JobDeadError) as caught:
        result.get(timeout=5)
    assert (caught.value.job_id, caught.value.reason, caught.value.detail) == (
        str(job_id),
        Reason.BAD_REQUEST,
        "HTTP 400",
    )
    assert (result.state, result.failed()) == ("FAILURE", True)


def test_cancelled_job_raises_revoked(app: Celery, engine: Engine, job_id: UUID) -> None:
    put(engine, job_id, JobState.CANCELLED)
    result = app.AsyncResult(str(job_id))
    with pytest.raises(exceptions.TaskRevokedError):
        result.get(timeout=5)
    assert result.state == "REVOKED"


def test_unknown_id_is_pending(app: Celery) -> None:
    assert app.AsyncResult(str(uuid4())).state == "PENDING"
    assert app.AsyncResult("an id of the producer's own").state == "PENDING"


def test_refusal_under_an_id_that_is_no_uuid_is_found(app: Celery, engine: Engine) -> None:
    error = InvalidRequestError("task_id", "it is not a UUID", "leave the id to Celery")
    with engine.begin() as connection:
        bury_refused(connection, row_id("report-7"), tenant="acme", prompt="p", detail=str(error))
    with pytest.raises(JobDeadError, match="leave the id to Celery"):
        app.AsyncResult("report-7").get(timeout=5)


def test_forget_keeps_the_job(app: Celery, settings: Settings, job_id: UUID) -> None:
    app.AsyncResult(str(job_id)).forget()
    with Client(settings) as client:
        assert client.get(job_id).state is JobState.QUEUED
