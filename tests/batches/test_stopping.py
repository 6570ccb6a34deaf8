"""A batch that stops itself: for errors, for what a job costs, for what it may cost; and what comes after."""

from dataclasses import replace
from datetime import UTC, datetime
from typing import Any
from uuid import uuid4

import pytest
from sqlalchemy import Engine

from penstock.batches import rows as batches
from penstock.batches.batch import AbortIf, BatchState, Progress
from penstock.client import Client
from penstock.client.doorbell import Doorbell
from penstock.jobs.execution import Outcome
from penstock.money import ledger
from penstock.money.budgets import Budget, Period, Unit, budgets_of, list_budgets, set_budget
from penstock.money.holds import Hold, Shortfall
from penstock.money.ledger import CallOutcome, Settlement
from penstock.reasons import Reason
from penstock.schemas import JobState, Usage
from tests.batches.conftest import REQUEST, documents
from tests.batches.runs import end, run_some, states, succeed
from tests.jobs import rows
from workers import upkeep
from workers.upkeep import tend


def test_too_many_errors_stop_it_and_are_the_reason(client: Client, engine: Engine) -> None:
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

    def test_a_resume_is_judged_anew_by_whoever_looked_at_the_batch_before(
        self, client: Client, engine: Engine
    ) -> None:
        client.batch("night", REQUEST, documents(200), abort_if=AbortIf(errors=0.1))
        with engine.connect() as connection:
            [seen] = batches.live(connection)
        end(engine, run_some(engine, 60), Outcome.DEAD, reason=Reason.BAD_REQUEST)
        tend(engine, Doorbell(""))
        client.resume_batch("acme", "night")
        upkeep.tend_one(engine, Doorbell(""), seen)
        assert client.find_batch("acme", "night").state is BatchState.RUNNING

    def test_what_the_cap_before_refused_is_tried_under_the_new_one(self, client: Client, engine: Engine) -> None:
        client.batch("night", REQUEST, documents(5), max_cost=10)
        first, late = run_some(engine, 2)
        refused: dict[str, Any] = {"reason": Reason.BUDGET_EXHAUSTED, "detail": "too little is left", "delay_s": 60.0}
        end(engine, [first], Outcome.DEFERRED, **refused)
        tend(engine, Doorbell(""))
        end(engine, [late], Outcome.DEFERRED, **refused)
        client.resume_batch("acme", "night", max_cost=10**9)
        tend(engine, Doorbell(""))
        assert client.find_batch("acme", "night").state is BatchState.RUNNING
        assert len(run_some(engine, 5)) == 5

    def test_what_is_replayed_counts_as_new(self, client: Client, engine: Engine) -> None:
        client.batch("night", REQUEST, documents(200), abort_if=AbortIf(errors=0.1))
        dead = run_some(engine, 60)
        end(engine, dead, Outcome.DEAD, reason=Reason.BAD_REQUEST)
        tend(engine, Doorbell(""))
        client.resume_batch("acme", "night")
        client.replay([job.id for job in dead])
        batch = client.find_batch("acme", "night")
        assert (batch.ended_before, batch.dead_before) == (0, 0)
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
