"""Celery's door on a real Postgres: a message becomes a row or a dead letter, and its text is never shown."""

import asyncio
import json
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest
from celery import Celery
from celery.exceptions import Ignore, Retry, SoftTimeLimitExceeded
from celery.worker.request import Request
from kombu import Message
from sqlalchemy import Engine, text
from structlog.testing import capture_logs

from penstock.attempt import Report
from penstock.client.broker import make_app
from penstock.errors import InvalidRequestError, JobDeadError, Reason
from penstock.jobs.execution import Outcome
from penstock.reception import Reception, row_id
from penstock.settings import Settings
from penstock.store.db import async_engine
from tasks.attempts import conclude
from tasks.declaration import IdentifiersOnly, task

MARKER = "Mr. Bennet owes 4,711 pounds"
FIELDS = {"tenant": "acme", "document": MARKER}


@pytest.fixture(scope="module")
def app() -> Celery:
    """Make the workers' app, without a broker."""
    import tasks.attempts
    import tasks.intake  # noqa: F401 - declares the tasks

    app = make_app("memory://", task_cls="workers.coroutine_task:CoroutineTask")
    app.finalize()
    return app


@pytest.fixture
def send(app: Celery, settings: Settings, engine: Engine) -> Callable[..., Any]:
    """Run an intake task as a worker would, with a reception of its own, and give Celery's result."""

    def run(name: str, *args: Any, task_id: str, **fields: Any) -> Any:
        app.reception = Reception.open(settings)
        try:
            return app.tasks[name].apply(args=args, kwargs=fields, task_id=task_id)
        finally:
            asyncio.run(app.reception.close())

    return run


def jobs(engine: Engine) -> list[dict[str, Any]]:
    """Read every job with its payload."""
    with engine.connect() as connection:
        rows = connection.execute(text("SELECT * FROM jobs LEFT JOIN payloads ON job_id = id ORDER BY created_at"))
        return [dict(row) for row in rows.mappings()]


def test_message_becomes_a_queued_row_under_its_own_id(send: Callable[..., Any], engine: Engine) -> None:
    task_id = str(uuid4())
    result = send("penstock.summarise", task_id=task_id, **FIELDS, metadata={"case": "7"})
    assert isinstance(result.result, Ignore)
    [job] = jobs(engine)
    assert (str(job["id"]), job["state"], job["tenant"], job["tier"]) == (task_id, "queued", "acme", "medium")
    assert (job["prompt_id"], job["document"], job["metadata"]) == ("summarise_document", MARKER, {"case": "7"})


def test_repeat_of_an_idempotency_key_ends_with_the_first_id(send: Callable[..., Any], engine: Engine) -> None:
    first, second = str(uuid4()), str(uuid4())
    assert isinstance(send("penstock.summarise", task_id=first, **FIELDS, idempotency_key="once").result, Ignore)
    repeat = send("penstock.summarise", task_id=second, **FIELDS, idempotency_key="once")
    assert (repeat.state, repeat.result) == ("SUCCESS", {"job_id": first})
    assert [str(job["id"]) for job in jobs(engine)] == [first]


def test_complete_takes_any_prompt_and_needs_one(send: Callable[..., Any], engine: Engine) -> None:
    send("penstock.complete", task_id=str(uuid4()), **FIELDS, prompt="classify_document", lane="batch")
    [job] = jobs(engine)
    assert (job["prompt_id"], job["lane"]) == ("classify_document", "batch")
    refused = send("penstock.complete", task_id=str(uuid4()), **FIELDS)
    assert refused.result.field == "prompt"


def test_second_delivery_changes_nothing(send: Callable[..., Any], engine: Engine) -> None:
    task_id = str(uuid4())
    for _ in range(2):
        send("penstock.summarise", task_id=task_id, **FIELDS)
    assert len(jobs(engine)) == 1


@pytest.mark.parametrize(
    ("field", "fields"),
    [
        ("tenant", {"tenant": "ACME"}),
        ("tier", {"tier": "huge"}),
        ("priority", {"priority": True}),
        ("document", {"document": None}),
        ("document", {"document": {"path": "/etc/hostname"}}),
        ("document", {"document": "/etc/hostname\udc80"}),
        ("document", {"document": "x" * 262_145}),
        ("media_type", {"media_type": "\0"}),
        ("documnet", {"documnet": MARKER}),
        ("self", {"self": MARKER}),
        ("a\N{REPLACEMENT CHARACTER}b", {"a\0b": MARKER}),
        ("variables.a\N{REPLACEMENT CHARACTER}", {"variables": {"a\0": MARKER}}),
    ],
)
def test_bad_request_is_a_dead_letter_without_its_content(
    send: Callable[..., Any], engine: Engine, field: str, fields: dict[str, Any]
) -> None:
    task_id = str(uuid4())
    result = send("penstock.summarise", task_id=task_id, **{**FIELDS, **fields})
    assert result.state == "FAILURE"
    assert result.result.field == field
    [job] = jobs(engine)
    assert (str(job["id"]), job["state"], job["reason"], job["document"]) == (task_id, "dead", "invalid", None)
    assert job["detail"].startswith(f"{field}: ")
    assert MARKER not in str(job)


def test_refused_tenant_and_prompt_are_kept_only_if_they_look_like_names(
    send: Callable[..., Any], engine: Engine
) -> None:
    send("penstock.complete", task_id=str(uuid4()), tenant="acme", prompt="no_such", document=MARKER)
    send("penstock.complete", task_id=str(uuid4()), tenant=MARKER, prompt=MARKER, document=MARKER)
    assert [(job["tenant"], job["prompt_id"]) for job in jobs(engine)] == [("acme", "no_such"), ("", "")]


def test_positional_arguments_are_refused(send: Callable[..., Any], engine: Engine) -> None:
    result = send("penstock.summarise", MARKER, task_id=str(uuid4()), tenant="acme")
    assert result.result.field == "args"
    assert [job["state"] for job in jobs(engine)] == ["dead"]


def test_task_id_that_is_no_uuid_is_refused_and_can_be_found(send: Callable[..., Any], engine: Engine) -> None:
    result = send("penstock.summarise", task_id="report-7", **FIELDS)
    assert result.result.field == "task_id"
    [job] = jobs(engine)
    assert (job["id"], job["state"]) == (row_id("report-7"), "dead")
    assert row_id(str(job["id"])) == job["id"]


@pytest.mark.timeout(30)
def test_message_waits_for_a_postgres_that_is_away(settings: Settings, engine: Engine, tmp_path: Path) -> None:
    """Its socket's folder appears only after the first try has failed."""
    assert settings.database_url is not None
    head, _, folder = settings.database_url.get_secret_value().partition("host=")
    link, job_id = tmp_path / "s", uuid4()
    url = f"{head}host={link}".replace("postgresql://", "postgresql+psycopg://", 1)

    async def receive() -> None:
        reception = Reception(settings, async_engine(url), Reception.open(settings).intake)
        receiving = asyncio.create_task(reception.receive(job_id, {**FIELDS, "prompt": "summarise_document"}))
        while not any(entry["event"] == "service.unavailable" for entry in logs):
            await asyncio.sleep(0.01)
        assert not receiving.done()
        link.symlink_to(folder)
        await receiving
        await reception.close()

    with capture_logs() as logs:
        asyncio.run(receive())
    assert [job["id"] for job in jobs(engine)] == [job_id]


def test_message_whose_time_is_up_goes_back_to_the_queue(app: Celery) -> None:
    class Away:
        async def receive(self, *_: object) -> None:
            raise SoftTimeLimitExceeded

    app.reception = Away()
    result = app.tasks["penstock.summarise"].apply(kwargs=FIELDS, task_id=str(uuid4()))
    assert result.state == "REJECTED"
    assert result.result.requeue is True


def report(outcome: Outcome | None, **values: Any) -> Report:
    return Report(UUID(int=7), outcome, **values)


def test_success_is_concluded_with_the_model_and_the_cost() -> None:
    assert conclude(report(Outcome.SUCCEEDED, model="m", cost_nanodollars=12)) == {"model": "m", "cost_nanodollars": 12}


@pytest.mark.parametrize(
    ("outcome", "values", "message", "delay_s"),
    [
        (
            Outcome.RETRIED,
            {"reason": Reason.THROTTLED, "detail": "HTTP 429", "delay_s": 7.5},
            "throttled: HTTP 429",
            7.5,
        ),
        (Outcome.HANDED_BACK, {"detail": "the run was stopped"}, "handed_back: the run was stopped", 0.0),
    ],
)
def test_retry_is_concluded_as_retry(outcome: Outcome, values: dict[str, Any], message: str, delay_s: float) -> None:
    with pytest.raises(Retry) as caught:
        conclude(report(outcome, **values))
    assert (caught.value.message, caught.value.when) == (message, delay_s)


def test_death_is_concluded_with_its_reason() -> None:
    with pytest.raises(JobDeadError) as caught:
        conclude(report(Outcome.DEAD, reason=Reason.POISON, detail="d"))
    assert (caught.value.job_id, caught.value.reason, caught.value.detail) == (str(UUID(int=7)), Reason.POISON, "d")


def test_nothing_to_claim_is_ignored() -> None:
    with pytest.raises(Ignore):
        conclude(report(None))


@pytest.mark.parametrize("outcome", [None, *Outcome])
def test_every_outcome_has_a_conclusion(outcome: Outcome | None) -> None:
    with suppress(Retry, Ignore, JobDeadError):
        assert conclude(report(outcome)) is not None


def test_dead_letter_fails_with_the_reason(app: Celery) -> None:
    fields = {"job_id": "j", "tenant": "acme", "tier": "small", "lane": "batch", "reason": "timeout", "attempts": 5}
    result = app.tasks["penstock.dead_letter"].apply(kwargs=fields)
    assert isinstance(result.result, JobDeadError)
    assert result.result.reason is Reason.TIMEOUT


def received(app: Celery, name: str, kwargs: dict[str, Any], args: tuple[Any, ...] = ()) -> Request:
    """Make of a message what a worker does."""
    sent = app.amqp.as_task_v2(str(uuid4()), name, args=args, kwargs=kwargs)
    message = Message(
        body=json.dumps(sent.body),
        headers=sent.headers,
        content_type="application/json",
        content_encoding="utf-8",
        delivery_info={},
    )
    request: Request = IdentifiersOnly(message, app=app, task=app.tasks[name])
    return request


def test_text_of_a_message_is_never_shown(app: Celery) -> None:
    kwargs = {**FIELDS, "metadata": {"case": MARKER}, "variables": {"audience": MARKER}, MARKER: MARKER}
    request = received(app, "penstock.summarise", kwargs, args=(MARKER,))
    shown = [request.argsrepr, request.kwargsrepr, request.info(), request.info(safe=True), str(request), repr(request)]
    assert MARKER not in str(shown)
    assert request.info()["kwargs"] == "{'tenant': 'acme'}"
    assert request.kwargs["document"] == MARKER


def test_only_what_looks_like_an_identifier_is_shown(app: Celery) -> None:
    kwargs = {"tenant": "acme", "tier": ["x"], "lane": None, "prompt": "t" * 65, "prompt_version": MARKER}
    assert received(app, "penstock.summarise", kwargs).kwargsrepr == repr({"tenant": "acme"})


@pytest.mark.parametrize("option", ["acks_lat", "acks_late", "soft_time_limit", "queue", "rate_limit"])
def test_option_that_the_declaration_does_not_know_is_a_type_error(option: str) -> None:
    with pytest.raises(TypeError, match=option):
        task(name="penstock.nothing", **dict[str, Any]({option: True}))


@pytest.mark.parametrize(
    "name", ["penstock.attempt", "penstock.dead_letter", "penstock.summarise", "penstock.complete"]
)
def test_every_task_is_acknowledged_late_has_limits_and_says_why_it_may_run_twice(app: Celery, name: str) -> None:
    declared = app.tasks[name]
    assert (declared.acks_late, declared.ignore_result) == (True, True)
    assert (declared.soft_time_limit, declared.time_limit) == (900, 960)
    assert "Safe to run twice" in declared.__doc__
    hides = declared.Request == "tasks.declaration:IdentifiersOnly"
    assert hides is (InvalidRequestError in declared.throws)
