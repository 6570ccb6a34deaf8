"""A batch through the client on a real Postgres: begun, broken off, resumed, paused, cancelled, exported."""

import base64
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import redis
from sqlalchemy import Engine, text

from penstock.batches.batch import AbortIf, BatchState, Progress
from penstock.client import Client
from penstock.client.batches import BatchRequest
from penstock.client.doorbell import BROKER_ERRORS, Doorbell
from penstock.errors import BatchTakenError, InvalidRequestError
from penstock.jobs import leases, release
from penstock.jobs.execution import Claim, ClaimedJob, Ending, Outcome, claim, finish
from penstock.jobs.release import Allowance
from penstock.money import ledger
from penstock.money.holds import Hold, Shortfall
from penstock.reasons import Reason
from penstock.schemas import JobState, Lane
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
        batch = client.batch("night", REQUEST, items)
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
        assert self.progress(client, 15_000, succeeded=100).fault() is None
        fault = self.progress(client, 16_000, succeeded=100).fault()
        assert fault == "a job costs 1.60 times the most that was forecast, where 1.5 are allowed"

    def test_what_is_paid_for_jobs_that_are_about_to_end_is_no_fault_of_those_that_have(self, client: Client) -> None:
        assert self.progress(client, 16_000, succeeded=100, running=60).fault() is None

    def test_few_jobs_say_nothing(self, client: Client) -> None:
        assert self.progress(client, 10**9, dead=49).fault() is None


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
