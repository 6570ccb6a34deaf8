"""One attempt against the simulator over HTTP: what the provider does, and what becomes of job, ledger and answer."""

import asyncio
import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import text

from penstock.ai import CallContext, CompletionRequest, complete
from penstock.attempt import run
from penstock.clock import SystemClock
from penstock.errors import Reason
from penstock.house import House
from penstock.jobs import queries, recovery
from penstock.jobs.execution import Claim, Outcome
from penstock.money.ledger import Settlement
from tests.rooms import DOCUMENT, Rooms


def test_a_document_becomes_a_summary_and_a_ledger_row_that_equals_the_invoice(rooms: Rooms) -> None:
    job_id = rooms.submit()
    report = rooms.attempt(job_id)
    assert report.outcome is Outcome.SUCCEEDED
    job = rooms.job(job_id)
    assert (job.state, job.attempts, job.failures, job.prompt_id) == ("succeeded", 1, 0, "summarise_document")
    result = rooms.row("SELECT * FROM results WHERE job_id = :id", id=job_id)
    assert result.text == DOCUMENT
    assert (result.model_asked, result.model_served) == ("sim-small", "sim-small")
    (call,) = rooms.ledger(job_id)
    assert (call.state, call.tenant, call.nanodollars) == ("settled", "acme", rooms.invoice())
    assert call.nanodollars <= call.upper_bound_nanodollars
    assert rooms.calls() == 1


def test_structured_output_is_canonical_json_of_the_schema(rooms: Rooms) -> None:
    job_id = rooms.submit(prompt="extract_metadata")
    assert rooms.attempt(job_id).outcome is Outcome.SUCCEEDED
    result = json.loads(rooms.row("SELECT text FROM results WHERE job_id = :id", id=job_id).text)
    assert set(result) == {"title", "authority", "dates", "identifiers", "keywords"}


@pytest.mark.parametrize(
    ("fault", "reason", "outcome", "failures"),
    [
        ("throttled", Reason.THROTTLED, Outcome.RETRIED, 0),
        ("overloaded", Reason.OVERLOADED, Outcome.RETRIED, 1),
        ("unavailable", Reason.OVERLOADED, Outcome.RETRIED, 1),
        ("server_error", Reason.SERVER_ERROR, Outcome.RETRIED, 1),
        ("insufficient_quota", Reason.QUOTA_EXHAUSTED, Outcome.DEAD, 1),
        ("payment_required", Reason.QUOTA_EXHAUSTED, Outcome.DEAD, 1),
        ("unauthorized", Reason.AUTHENTICATION, Outcome.DEAD, 1),
        ("bad_request", Reason.BAD_REQUEST, Outcome.DEAD, 1),
        ("content_filter", Reason.CONTENT_POLICY, Outcome.DEAD, 1),
        ("context_length", Reason.CONTEXT_LENGTH, Outcome.DEAD, 1),
        ("model_not_found", Reason.MODEL_NOT_FOUND, Outcome.DEAD, 1),
    ],
)
def test_a_refusal_costs_nothing(rooms: Rooms, fault: str, reason: Reason, outcome: Outcome, failures: int) -> None:
    rooms.fault(fault)
    job_id = rooms.submit()
    report = rooms.attempt(job_id)
    assert (report.outcome, report.reason) == (outcome, reason)
    job = rooms.job(job_id)
    assert (job.state, job.reason, job.failures) == (outcome.state, reason, failures)
    (call,) = rooms.ledger(job_id)
    assert (call.state, call.nanodollars, call.reason) == ("settled", 0, reason)
    assert rooms.invoice() == 0
    assert rooms.calls() == 1


@pytest.mark.parametrize("fault", ["lost_answer", "cut", "gateway_timeout", "bad_gateway", "request_timeout"])
def test_an_answer_that_may_have_got_lost_is_charged_at_its_upper_bound(rooms: Rooms, fault: str) -> None:
    rooms.fault(fault)
    job_id = rooms.submit()
    assert rooms.attempt(job_id).outcome is Outcome.RETRIED
    (call,) = rooms.ledger(job_id)
    assert (call.state, call.nanodollars) == ("unknown", call.upper_bound_nanodollars)
    assert call.nanodollars >= rooms.invoice()


def test_an_answer_that_breaks_the_schema_is_paid_and_asked_anew(rooms: Rooms) -> None:
    rooms.fault("wrong_schema", mode="json")
    job_id = rooms.submit(prompt="extract_metadata")
    report = rooms.attempt(job_id)
    assert (report.outcome, report.reason) == (Outcome.RETRIED, Reason.OUTPUT_INVALID)
    (call,) = rooms.ledger(job_id)
    assert (call.state, call.nanodollars, call.reason) == ("settled", rooms.invoice(), "output_invalid")
    rooms.release(job_id)
    assert rooms.attempt(job_id).outcome is Outcome.SUCCEEDED
    assert [row.state for row in rooms.ledger(job_id)] == ["settled", "settled"]
    assert sum(row.nanodollars for row in rooms.ledger(job_id)) == rooms.invoice()


def test_a_job_that_always_fails_dies_with_its_history(rooms: Rooms) -> None:
    job_id = rooms.submit(tier="medium", prompt_version="1.1.0")  # it names no other tier
    for expected in (Outcome.RETRIED, Outcome.RETRIED, Outcome.DEAD):
        rooms.fault("server_error")
        assert rooms.attempt(job_id).outcome is expected
        rooms.release(job_id)
    with rooms.engine.connect() as connection:
        history = queries.attempts(connection, job_id)
    assert [(attempt.fence, attempt.outcome, attempt.reason) for attempt in history] == [
        (1, "retried", "server_error"),
        (2, "retried", "server_error"),
        (3, "dead", "server_error"),
    ]


def test_throttling_waits_as_the_provider_says_and_spends_no_failure(rooms: Rooms) -> None:
    job_id = rooms.submit()
    for _ in range(8):
        rooms.fault("throttled", retry_after=7)
        report = rooms.attempt(job_id)
        assert report.outcome is Outcome.RETRIED
        assert 7.0 <= report.delay_s <= 7.7
        rooms.release(job_id)
        rooms.forget_gates()
    assert rooms.attempt(job_id).outcome is Outcome.SUCCEEDED
    assert rooms.job(job_id).failures == 0


def test_a_deadline_bounds_the_call_and_the_retry(rooms: Rooms) -> None:
    rooms.fault("hang", hold_s=30)
    job_id = rooms.submit(deadline=datetime.now(UTC) + timedelta(seconds=2))
    report = rooms.attempt(job_id)
    assert (report.outcome, report.reason) == (Outcome.DEAD, Reason.DEADLINE)
    (call,) = rooms.ledger(job_id)
    assert (call.state, call.reason) == ("unknown", "timeout")


def test_a_second_delivery_finds_nothing_to_claim(rooms: Rooms) -> None:
    job_id = rooms.submit()
    assert rooms.attempt(job_id).outcome is Outcome.SUCCEEDED
    assert rooms.attempt(job_id).outcome is None
    assert rooms.calls() == 1


def test_a_recorded_answer_is_used_by_the_next_attempt(rooms: Rooms) -> None:
    job_id = rooms.submit()

    async def die_after_settlement(house: House) -> None:
        job = await house.journal.claim.add(Claim(job_id, house.worker))
        assert job is not None
        context = CallContext(job_id=job.id, fence=job.fence, tenant=job.tenant, tier=job.tier)
        await complete(
            house,
            CompletionRequest(prompt=job.prompt, variables=job.variables, document=job.document, context=context),
        )

    rooms.with_house(die_after_settlement)
    expire_worker(rooms)
    rooms.release(job_id)
    revive_worker(rooms)
    assert rooms.attempt(job_id).outcome is Outcome.SUCCEEDED
    assert rooms.calls() == 1
    assert [(row.state, row.fence) for row in rooms.ledger(job_id)] == [("settled", 1)]


def test_a_run_that_was_taken_over_leaves_its_answer_and_nothing_else(rooms: Rooms) -> None:
    job_id = rooms.submit()
    rooms.fault("latency", extra_ms=700)

    async def lose_the_job_meanwhile(house: House) -> object:
        running = asyncio.create_task(run(house, job_id))
        while not rooms.ledger(job_id):
            await asyncio.sleep(0.01)
        expire_worker(rooms)
        return (await running).outcome

    assert rooms.with_house(lose_the_job_meanwhile) is None
    assert rooms.job(job_id).state == "retrying"
    rooms.release(job_id)
    revive_worker(rooms)
    assert rooms.attempt(job_id).outcome is Outcome.SUCCEEDED
    assert rooms.calls() == 1
    (call,) = rooms.ledger(job_id)
    assert (call.state, call.nanodollars) == ("settled", rooms.invoice())


def test_a_cancelled_run_hands_its_job_back_and_charges_the_upper_bound(rooms: Rooms) -> None:
    job_id = rooms.submit()
    rooms.fault("hang", hold_s=30)

    async def cancel_in_flight(house: House) -> None:
        running = asyncio.create_task(run(house, job_id))
        while rooms.calls() == 0:
            await asyncio.sleep(0.01)
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running

    rooms.with_house(cancel_in_flight)
    assert rooms.job(job_id).state == "retrying"
    (call,) = rooms.ledger(job_id)
    assert (call.state, call.nanodollars) == ("unknown", call.upper_bound_nanodollars)


def test_a_job_ends_by_the_clock_of_postgres_and_not_by_this_machines(rooms: Rooms) -> None:
    job_id = rooms.submit(deadline=datetime.now(UTC) + timedelta(minutes=5))

    class TenMinutesAhead(SystemClock):
        def now(self) -> datetime:
            return super().now() + timedelta(minutes=10)

    report = rooms.with_house(lambda house: run(replace(house, clock=TenMinutesAhead()), job_id))
    assert report.outcome is Outcome.SUCCEEDED


def test_an_answer_that_is_being_written_when_the_run_is_stopped_is_kept(rooms: Rooms) -> None:
    job_id = rooms.submit()

    async def stop_while_settling(house: House) -> None:
        settle = house.journal.settle
        asked, may_write = asyncio.Event(), asyncio.Event()

        class Held:
            async def add(self, settlement: Settlement) -> None:
                asked.set()
                await may_write.wait()
                await settle.add(settlement)

        house.journal.settle = Held()  # type: ignore[assignment]
        running = asyncio.create_task(run(house, job_id))
        await asked.wait()
        running.cancel()
        await asyncio.sleep(0)
        may_write.set()
        with pytest.raises(asyncio.CancelledError):
            await running
        house.journal.settle = settle

    rooms.with_house(stop_while_settling)
    rooms.release(job_id)
    assert rooms.attempt(job_id).outcome is Outcome.SUCCEEDED
    assert rooms.calls() == 1


def test_a_prompt_that_changed_unseen_is_not_used(rooms: Rooms) -> None:
    job_id = rooms.submit()
    with rooms.engine.begin() as connection:
        connection.execute(text("UPDATE jobs SET prompt_digest = 'another'"))
    report = rooms.attempt(job_id)
    assert (report.outcome, report.reason) == (Outcome.RETRIED, Reason.INTERNAL)
    assert rooms.calls() == 0


def expire_worker(rooms: Rooms) -> None:
    """Let the worker's lease run out, and upkeep find it."""
    with rooms.engine.begin() as connection:
        connection.execute(text("UPDATE workers SET lease_until = now() - interval '1 second'"))
    with rooms.engine.begin() as connection:
        assert len(recovery.recover_expired(connection)) == 1


def revive_worker(rooms: Rooms) -> None:
    """Let a worker of the same name live."""
    with rooms.engine.begin() as connection:
        connection.execute(text("UPDATE workers SET lease_until = now() + interval '1 minute'"))
