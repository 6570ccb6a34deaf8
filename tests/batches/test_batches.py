"""A batch through the client on a real Postgres: begun, broken off, resumed, paused, cancelled, exported."""

import base64
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from threading import Event
from typing import Any
from uuid import UUID, uuid4

import pytest
import redis
from sqlalchemy import Engine, text

from penstock.batches import rows as batches
from penstock.batches.batch import AbortIf, BatchState, Progress
from penstock.client import Client
from penstock.client.batches import BatchRequest
from penstock.client.doorbell import BROKER_ERRORS, Doorbell
from penstock.errors import BatchTakenError, InvalidRequestError
from penstock.jobs import leases, queries, release
from penstock.jobs.execution import Claim, ClaimedJob, Ending, Outcome, claim, finish
from penstock.jobs.release import Allowance
from penstock.money import ledger
from penstock.money.budgets import Budget, Period, Unit, budgets_of, list_budgets, set_budget
from penstock.money.holds import Hold, Shortfall
from penstock.money.ledger import CallOutcome, Settlement
from penstock.reasons import Reason
from penstock.schemas import JobState, Lane, Usage
from penstock.settings import Settings
from tests.batches.conftest import REQUEST, documents
from tests.jobs import rows
from workers.upkeep import tend

WORKER = "w1"


class BrokenOffError(Exception):
    """The input ended where nobody expected it."""


def broken_off(items: list[dict[str, Any]], after: int) -> Iterator[dict[str, Any]]:
    yield from items[:after]
    raise BrokenOffError


def states(client: Client, name: str = "night") -> dict[JobState, int]:
    return client.batch_progress("acme", name).jobs


def run_some(engine: Engine, count: int) -> list[ClaimedJob]:
    """Release and claim jobs as a feeder and a worker do."""
    with engine.begin() as connection:
        leases.renew(connection, WORKER, 60)
        released = release.release_fairly(connection, "small", Lane.BATCH, Allowance(count))
        claimed = claim(connection, [Claim(each.job_id, WORKER) for each in released])
    return [job for job in claimed if job]


def end(engine: Engine, jobs: list[ClaimedJob], outcome: Outcome, **fields: Any) -> None:
    """End the runs of jobs."""
    with engine.begin() as connection:
        finish(connection, [Ending(job.id, job.fence, outcome, **fields) for job in jobs])


def succeed(engine: Engine, jobs: list[ClaimedJob]) -> None:
    end(engine, jobs, Outcome.SUCCEEDED, result="A summary.", model_asked="m", model_served="m")


def test_every_item_becomes_a_job_of_the_lane_batch(client: Client) -> None:
    batch = client.batch("night", REQUEST, documents(5))
    assert (batch.state, batch.items, batch.is_loaded) == (BatchState.RUNNING, 5, True)
    progress = client.batch_progress("acme", "night")
    assert (progress.jobs, progress.refused) == ({JobState.QUEUED: 5}, 0)
    with client._engine.connect() as connection:
        found = connection.execute(text("SELECT lane, tier, batch_number FROM jobs ORDER BY batch_number")).all()
    assert [tuple(row) for row in found] == [("batch", "small", number) for number in range(1, 6)]


def test_the_same_command_again_adds_nothing(client: Client) -> None:
    first = client.batch("night", REQUEST, documents(5))
    assert client.batch("night", REQUEST, documents(5)) == first
    assert states(client) == {JobState.QUEUED: 5}


@pytest.mark.parametrize("after", [0, 1, 999, 1000, 1001, 2500])
def test_it_goes_on_where_it_was_broken_off(client: Client, after: int) -> None:
    items = documents(2600)
    with pytest.raises(BrokenOffError):
        client.batch("night", REQUEST, broken_off(items, after))
    stored = client.find_batch("acme", "night").items
    assert stored <= after
    assert not client.find_batch("acme", "night").is_loaded
    client.batch("night", REQUEST, items)
    assert states(client) == {JobState.QUEUED: 2600}
    with client._engine.connect() as connection:
        assert connection.scalar(text("SELECT count(DISTINCT batch_number) FROM jobs")) == 2600


def test_another_input_under_the_same_name_is_refused(client: Client) -> None:
    items = documents(1500)
    with pytest.raises(BrokenOffError):
        client.batch("night", REQUEST, broken_off(items, 1500))
    for other in ([{"document": "Other."}, *items[1:]], items[:999]):
        with pytest.raises(InvalidRequestError, match="its first 1000 items are not those that batch 'night'"):
            client.batch("night", REQUEST, other)
    assert states(client) == {JobState.QUEUED: 1000}


@pytest.mark.parametrize(
    "other",
    [
        replace(REQUEST, prompt="extract_metadata"),
        replace(REQUEST, prompt_version="1.0.0"),
        replace(REQUEST, tier="large"),
        replace(REQUEST, project="north"),
        replace(REQUEST, variables={"language": "French"}),
    ],
)
def test_another_request_under_the_same_name_is_refused(client: Client, other: BatchRequest) -> None:
    client.batch("night", REQUEST, documents(2))
    with pytest.raises(InvalidRequestError, match="was begun with another prompt, tier, project or variables"):
        client.batch("night", other, documents(2))
    assert states(client) == {JobState.QUEUED: 2}


def test_two_tenants_may_use_one_name(client: Client) -> None:
    client.batch("night", REQUEST, documents(2))
    client.batch("night", replace(REQUEST, tenant="globex"), documents(3))
    assert client.batch_progress("globex", "night").total == 3
    assert [batch.tenant for batch in client.batches("acme")] == ["acme"]
    assert len(client.batches()) == 2


def test_a_bad_item_is_told_by_its_number_and_stops_no_other(client: Client) -> None:
    items = documents(6)
    items[1] = {"document": ""}
    items[3] = {"document": "A report.", "tenant": "globex"}
    items[4] = {"document": "A report.", "variables": {"colour": "red"}}
    client.batch("night", REQUEST, items)
    assert states(client) == {JobState.QUEUED: 3}
    found = list(client.batch_errors("acme", "night"))
    assert [error.number for error in found] == [2, 4, 5]
    assert "tenant: it is the batch's" in found[1].reason
    assert "colour" in found[2].reason
    assert client.batch_progress("acme", "night").refused == 3


@pytest.mark.parametrize("name", ["", " night", "a\nb", "x" * 201, "ni\0ght"])
def test_a_name_that_is_none_is_refused(client: Client, name: str) -> None:
    with pytest.raises(InvalidRequestError, match="name: it is no name of a batch"):
        client.batch(name, REQUEST, documents(1))


@pytest.mark.parametrize(
    ("field", "value"), [("tenant", "ACME"), ("prompt", "nothing"), ("tier", "huge"), ("priority", 10)]
)
def test_a_request_that_is_wrong_begins_nothing(client: Client, field: str, value: object) -> None:
    with pytest.raises(InvalidRequestError, match=field):
        client.batch("night", replace(REQUEST, **{field: value}), documents(1))  # type: ignore[arg-type]
    assert client.batches() == []


def test_two_loaders_of_one_batch_store_each_item_once(settings: Settings, client: Client) -> None:
    items = documents(5000)

    def load(_number: int) -> str:
        with Client(settings) as other:
            try:
                other.batch("night", REQUEST, items)
            except BatchTakenError:
                return "taken"
            return "loaded"

    with ThreadPoolExecutor(3) as threads:
        outcomes = list(threads.map(load, range(3)))
    assert "loaded" in outcomes
    assert states(client) == {JobState.QUEUED: 5000}


class TestPausing:
    def test_what_waits_is_paused_and_goes_on(self, client: Client, engine: Engine) -> None:
        client.batch("night", REQUEST, documents(5))
        running = run_some(engine, 2)
        client.pause_batch("acme", "night")
        assert states(client) == {JobState.PAUSED: 3, JobState.RUNNING: 2}
        assert run_some(engine, 5) == []
        client.resume_batch("acme", "night")
        assert states(client) == {JobState.QUEUED: 3, JobState.RUNNING: 2}
        succeed(engine, [*running, *run_some(engine, 5)])
        assert states(client) == {JobState.SUCCEEDED: 5}

    def test_what_comes_back_or_is_stored_meanwhile_is_paused_too(self, client: Client, engine: Engine) -> None:
        items = documents(1200)
        with pytest.raises(BrokenOffError):
            client.batch("night", REQUEST, broken_off(items, 1100))
        running = run_some(engine, 2)
        client.pause_batch("acme", "night")
        end(engine, running[:1], Outcome.RETRIED, reason=Reason.TIMEOUT)
        end(engine, running[1:], Outcome.DEFERRED, reason=Reason.LIMITED)
        client.batch("night", REQUEST, items)
        assert states(client) == {JobState.PAUSED: 1198, JobState.RETRYING: 1, JobState.QUEUED: 1}
        tend(engine, Doorbell(""))
        assert states(client) == {JobState.PAUSED: 1200}
        client.resume_batch("acme", "night")
        assert states(client) == {JobState.QUEUED: 1199, JobState.RETRYING: 1}

    def test_a_batch_of_the_night_waits_for_its_start(self, client: Client, engine: Engine) -> None:
        client.batch("night", REQUEST, documents(3), start=datetime.now(UTC) + timedelta(hours=2))
        assert states(client) == {JobState.PAUSED: 3}
        tend(engine, Doorbell(""))
        assert states(client) == {JobState.PAUSED: 3}
        rows.execute(engine, "UPDATE batches SET starts_at = now()")
        tend(engine, Doorbell(""))
        assert states(client) == {JobState.QUEUED: 3}

    def test_what_is_cancelled_ends_and_is_not_begun_again(self, client: Client, engine: Engine) -> None:
        items = documents(1200)
        with pytest.raises(BrokenOffError):
            client.batch("night", REQUEST, broken_off(items, 1100))
        succeed(engine, run_some(engine, 1))
        run_some(engine, 1)
        client.cancel_batch("acme", "night")
        assert states(client) == {JobState.SUCCEEDED: 1, JobState.CANCELLED: 999}
        tend(engine, Doorbell(""))
        with pytest.raises(BatchTakenError, match="batch 'night' of tenant 'acme' was cancelled"):
            client.batch("night", REQUEST, items)
        batch = client.find_batch("acme", "night")
        assert (batch.state, batch.items) == (BatchState.CANCELLED, 1000)
        assert batch.ended_at is not None
        with pytest.raises(InvalidRequestError, match="batch 'night' is cancelled"):
            client.resume_batch("acme", "night")


class TestEnd:
    def test_it_is_done_when_every_job_has_ended(self, client: Client, engine: Engine) -> None:
        client.batch("night", REQUEST, documents(3))
        succeed(engine, run_some(engine, 2))
        tend(engine, Doorbell(""))
        assert client.find_batch("acme", "night").state is BatchState.RUNNING
        end(engine, run_some(engine, 1), Outcome.DEAD, reason=Reason.BAD_REQUEST, detail="no")
        tend(engine, Doorbell(""))
        batch = client.find_batch("acme", "night")
        assert batch.state is BatchState.DONE
        assert batch.ended_at is not None

    def test_it_is_not_done_while_its_input_is_read(self, client: Client, engine: Engine) -> None:
        with pytest.raises(BrokenOffError):
            client.batch("night", REQUEST, broken_off(documents(1500), 1500))
        rows.execute(engine, "UPDATE jobs SET state = 'succeeded', ended_at = now()")
        tend(engine, Doorbell(""))
        assert client.find_batch("acme", "night").state is BatchState.RUNNING

    def test_results_come_in_the_order_of_the_input_and_errors_apart(self, client: Client, engine: Engine) -> None:
        items = documents(1003)
        items[4] = {"document": ""}
        client.batch("night", REQUEST, items)
        claimed = run_some(engine, 1002)
        assert [job.id for job in claimed] == sorted(job.id for job in claimed)
        succeed(engine, claimed[::-1][:-1])
        end(engine, claimed[:1], Outcome.DEAD, reason=Reason.BAD_REQUEST, detail="no")
        results = list(client.batch_results("acme", "night"))
        assert [number for number, _ in results] == [number for number in range(2, 1004) if number != 5]
        assert {job.result for _, job in results} == {"A summary."}
        errors = [(error.number, error.reason) for error in client.batch_errors("acme", "night")]
        assert errors[0][0] == 5
        assert errors[1] == (1, "bad_request: no")

    def test_too_many_errors_stop_it_and_are_the_reason(self, client: Client, engine: Engine) -> None:
        client.batch("night", REQUEST, documents(60), abort_if=AbortIf(errors=0.1))
        jobs = run_some(engine, 50)
        succeed(engine, jobs[:45])
        end(engine, jobs[45:49], Outcome.DEAD, reason=Reason.BAD_REQUEST)
        tend(engine, Doorbell(""))
        assert client.find_batch("acme", "night").state is BatchState.RUNNING
        end(engine, [*jobs[49:], *run_some(engine, 2)], Outcome.DEAD, reason=Reason.BAD_REQUEST)
        tend(engine, Doorbell(""))
        batch = client.find_batch("acme", "night")
        assert batch.state is BatchState.STOPPED
        assert batch.reason == "13.5% of the jobs that ended are dead, where 10.0% are allowed"
        assert states(client)[JobState.PAUSED] == 8


class TestFault:
    def progress(self, client: Client, settled: int, **jobs: int) -> Progress:
        batch = replace(client.batch("night", REQUEST, []), forecast={"job_nanodollars_high": 100})
        counts = {JobState(state): count for state, count in jobs.items()}
        return Progress(batch, counts, 0, settled, 0, 0, datetime.now(UTC))

    def test_jobs_that_cost_more_than_was_forecast_stop_it(self, client: Client) -> None:
        assert self.progress(client, 15_000, succeeded=100).fault(lambda: 160) is None
        fault = self.progress(client, 16_000, succeeded=100).fault(lambda: 160)
        assert fault == "a job costs 1.60 times the most that was forecast, where 1.5 are allowed"

    def test_what_is_paid_for_jobs_that_are_about_to_end_is_no_fault_of_those_that_have(self, client: Client) -> None:
        assert self.progress(client, 16_000, succeeded=100, running=60).fault(lambda: 100) is None

    def test_a_job_costs_what_its_answers_do_and_a_lost_call_says_nothing(self, client: Client, engine: Engine) -> None:
        client.batch("night", REQUEST, documents(3))
        intents = [replace(rows.intent(job), batch_id=job.batch_id) for job in run_some(engine, 3)]
        calls = [replace(intents[0], call_id=uuid4()), *intents]
        answered = Settlement(calls[0].call_id, CallOutcome.ANSWERED, 100, Usage(input_tokens=1, output_tokens=1))
        with engine.begin() as connection:
            ledger.intend(connection, calls)
            ledger.settle(connection, [replace(answered, call_id=each.call_id) for each in calls[:3]])
            ledger.settle(connection, [Settlement(calls[3].call_id, CallOutcome.UNKNOWN, None)])
            batch = batches.find(connection, "acme", "night")
            assert batches.paid_a_job(connection, batch) == 150
        client.pause_batch("acme", "night")
        with engine.begin() as connection:
            assert batches.paid_a_job(connection, client.resume_batch("acme", "night")) == 0

    def test_few_jobs_say_nothing(self, client: Client) -> None:
        assert self.progress(client, 10**9, dead=49).fault(lambda: 10**9) is None


class TestCap:
    def test_what_is_held_and_settled_of_a_batch_never_exceeds_its_cap(self, client: Client, engine: Engine) -> None:
        client.batch("night", REQUEST, documents(5), max_cost=2 * rows.UPPER_BOUND)
        jobs = run_some(engine, 3)
        intents = [replace(rows.intent(job), batch_id=job.batch_id) for job in jobs]
        with engine.begin() as connection:
            verdicts = ledger.intend(connection, intents)
        assert [type(verdict) for verdict in verdicts] == [Hold, Hold, Shortfall]
        assert client.batch_progress("acme", "night").held_nanodollars == 2 * rows.UPPER_BOUND

    def test_another_batch_of_the_tenant_is_not_held_up_by_it(self, client: Client, engine: Engine) -> None:
        client.batch("night", REQUEST, documents(1), max_cost=0)
        client.batch("day", REQUEST, documents(1), max_cost=rows.UPPER_BOUND)
        intents = [replace(rows.intent(job), batch_id=job.batch_id) for job in run_some(engine, 2)]
        with engine.begin() as connection:
            verdicts = ledger.intend(connection, intents)
        assert {type(verdict) for verdict in verdicts} == {Hold, Shortfall}

    def test_it_is_a_budget_of_its_own_calls_alone(self, client: Client, engine: Engine) -> None:
        own = Budget("acme", Period.DAY, Unit.TOKENS, hard_limit=7)
        capped = client.batch("night", REQUEST, [], max_cost=1)
        free = client.batch("day", REQUEST, [])
        cap = Budget("acme", Period.BATCH, Unit.NANODOLLARS, str(capped.id), hard_limit=1)
        with engine.begin() as connection:
            set_budget(connection, own)
            assert budgets_of(connection, ["acme"], [capped.id, free.id]) == [own, cap]
            assert budgets_of(connection, ["acme"], [free.id]) == [own]
            assert list_budgets(connection) == [own]

    def test_a_batch_that_has_used_it_up_stops_and_goes_on_with_another(self, client: Client, engine: Engine) -> None:
        client.batch("night", REQUEST, documents(5), max_cost=10)
        end(engine, run_some(engine, 2), Outcome.DEFERRED, reason=Reason.BUDGET_EXHAUSTED, detail="too little is left")
        tend(engine, Doorbell(""))
        batch = client.find_batch("acme", "night")
        assert (batch.state, batch.reason) == (BatchState.STOPPED, "too little is left")
        assert states(client) == {JobState.PAUSED: 5}
        client.resume_batch("acme", "night", max_cost=10**9)
        tend(engine, Doorbell(""))
        assert client.find_batch("acme", "night").max_nanodollars == 10**9
        assert states(client) == {JobState.QUEUED: 5}
        assert len(run_some(engine, 5)) == 5


class TestCallback:
    def test_a_task_is_sent_once_it_has_ended(
        self, client: Client, engine: Engine, settings: Settings, broker: redis.Redis
    ) -> None:
        doorbell = Doorbell(settings.require_broker_url())
        client.batch("night", REQUEST, documents(2), callback="reports.batch_ended@reports")
        succeed(engine, run_some(engine, 1))
        tend(engine, doorbell)
        assert broker.llen("reports") == 0
        succeed(engine, run_some(engine, 1))
        for _ in range(3):
            tend(engine, doorbell)
        doorbell.close()
        [message] = [json.loads(each) for each in broker.lrange("reports", 0, -1)]
        assert message["headers"]["task"] == "reports.batch_ended"
        _, told, _ = json.loads(base64.b64decode(message["body"]))
        assert told == {"batch": "night", "tenant": "acme", "state": "done"}

    def test_a_broker_that_is_away_is_tried_again(
        self, client: Client, engine: Engine, settings: Settings, broker: redis.Redis
    ) -> None:
        client.batch("night", REQUEST, [], callback="reports.batch_ended@reports")
        with pytest.raises(BROKER_ERRORS):
            tend(engine, Doorbell("redis://127.0.0.1:1/0"))
        assert client.find_batch("acme", "night").state is BatchState.DONE
        doorbell = Doorbell(settings.require_broker_url())
        tend(engine, doorbell)
        doorbell.close()
        assert broker.llen("reports") == 1


class TestRaces:
    def test_a_job_that_is_cancelled_while_its_batch_goes_on_stays_cancelled(
        self, client: Client, engine: Engine
    ) -> None:
        batch = client.batch("night", REQUEST, documents(20_000), start=datetime.now(UTC) + timedelta(hours=1))
        with engine.execution_options(isolation_level="AUTOCOMMIT").connect() as connection:
            connection.execute(text("VACUUM ANALYZE jobs"))
        cancelled: list[UUID] = []
        is_over = Event()

        def cancel() -> None:
            for number in range(1_000, 5_000, 10):
                if is_over.is_set():
                    return
                with engine.begin() as connection:
                    cancelled.extend(queries.cancel(connection, [batches.job_id(batch.id, number)]))

        with ThreadPoolExecutor(1) as threads:
            cancelling = threads.submit(cancel)
            with engine.begin() as connection:
                batches.unpark(connection, batch.id, most=5_000)
            is_over.set()
            cancelling.result()
        assert cancelled
        with engine.connect() as connection:
            assert set(queries.states(connection, cancelled).values()) == {JobState.CANCELLED}


class TestAfterTheEnd:
    def dead(self, client: Client, engine: Engine) -> list[UUID]:
        client.batch("night", REQUEST, documents(2), max_cost=1)
        jobs = run_some(engine, 2)
        end(engine, jobs, Outcome.DEAD, reason=Reason.BAD_REQUEST)
        tend(engine, Doorbell(""))
        assert client.find_batch("acme", "night").state is BatchState.DONE
        return [job.id for job in jobs]

    def test_a_replayed_job_opens_its_batch_again_and_its_cap_still_holds(self, client: Client, engine: Engine) -> None:
        dead = self.dead(client, engine)
        assert len(client.replay(dead)) == 2
        batch = client.find_batch("acme", "night")
        assert (batch.state, batch.ended_at) == (BatchState.RUNNING, None)
        intents = [replace(rows.intent(job), batch_id=job.batch_id) for job in run_some(engine, 2)]
        with engine.begin() as connection:
            assert {type(verdict) for verdict in ledger.intend(connection, intents)} == {Shortfall}
        client.cancel_batch("acme", "night")
        assert states(client) == {JobState.CANCELLED: 2}

    def test_the_dead_of_a_cancelled_batch_are_not_replayed(self, client: Client, engine: Engine) -> None:
        client.batch("night", REQUEST, documents(2))
        jobs = run_some(engine, 1)
        end(engine, jobs, Outcome.DEAD, reason=Reason.BAD_REQUEST)
        client.cancel_batch("acme", "night")
        assert client.replay([jobs[0].id]) == []

    def test_another_input_is_refused_when_the_first_is_stored_and_done(self, client: Client, engine: Engine) -> None:
        items = documents(3)
        client.batch("night", REQUEST, items)
        for other in (items[:2], [{"document": "Other."}, *items[1:]]):
            with pytest.raises(InvalidRequestError, match="its first 3 items are not those that batch 'night' was"):
                client.batch("night", REQUEST, other)
        with pytest.raises(InvalidRequestError, match="it has more items than the 3 that batch 'night' was begun with"):
            client.batch("night", REQUEST, [*items, {"document": "One more."}])
        succeed(engine, run_some(engine, 3))
        tend(engine, Doorbell(""))
        assert client.batch("night", REQUEST, items).state is BatchState.DONE

    def test_a_callback_that_is_given_after_the_end_is_sent(
        self, client: Client, engine: Engine, settings: Settings, broker: redis.Redis
    ) -> None:
        doorbell = Doorbell(settings.require_broker_url())
        client.batch("night", REQUEST, [])
        tend(engine, doorbell)
        client.batch("night", REQUEST, [], callback="reports.ended@reports")
        tend(engine, doorbell)
        doorbell.close()
        assert broker.llen("reports") == 1

    @pytest.mark.parametrize("callback", ["", "@q", "task@", "a b", "ta\0sk", "x" * 201, "\ud800", "a@b@c"])
    def test_a_callback_that_is_none_is_refused(self, client: Client, callback: str) -> None:
        with pytest.raises(InvalidRequestError, match="callback"):
            client.batch("night", REQUEST, [], callback=callback)
        assert client.batches() == []


class TestResuming:
    def test_what_stopped_it_is_forgiven_and_only_what_comes_after_is_judged(
        self, client: Client, engine: Engine
    ) -> None:
        client.batch("night", REQUEST, documents(200), abort_if=AbortIf(errors=0.1))
        end(engine, run_some(engine, 60), Outcome.DEAD, reason=Reason.BAD_REQUEST)
        tend(engine, Doorbell(""))
        assert client.find_batch("acme", "night").state is BatchState.STOPPED
        client.resume_batch("acme", "night")
        tend(engine, Doorbell(""))
        assert client.find_batch("acme", "night").state is BatchState.RUNNING
        end(engine, run_some(engine, 60), Outcome.DEAD, reason=Reason.BAD_REQUEST)
        tend(engine, Doorbell(""))
        assert client.find_batch("acme", "night").state is BatchState.STOPPED

    def test_the_rate_is_that_since_it_goes_on(self, client: Client, engine: Engine) -> None:
        client.batch("night", REQUEST, documents(10))
        succeed(engine, run_some(engine, 4))
        client.pause_batch("acme", "night")
        rows.execute(engine, "UPDATE batches SET starts_at = now() - interval '8 hours'")
        client.resume_batch("acme", "night")
        rows.execute(engine, "UPDATE batches SET resumed_at = now() - interval '10 seconds'")
        succeed(engine, run_some(engine, 2))
        assert client.batch_progress("acme", "night").rate == pytest.approx(0.2, rel=0.2)
