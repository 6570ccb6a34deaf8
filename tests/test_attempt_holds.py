"""What calls under way hold of a budget, how it bounds an answer, and what they leave when they have ended."""

import asyncio
import shutil
from dataclasses import astuple, replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import text

from penstock.attempt import Report, run
from penstock.clock import SystemClock
from penstock.errors import Reason
from penstock.house import House
from penstock.jobs.execution import Outcome
from penstock.money.budgets import CALENDAR, Period, Unit
from penstock.money.ledger import CallOutcome
from penstock.schemas import dollars
from tests import admission_rooms
from tests.admission_rooms import CONFIG, LONG_DOCUMENT, AdmissionRooms, Told, run_all, until, without_jitter
from tests.money.books import assert_balanced
from tests.test_attempt_budgets import FIRST, MOST, SECOND, assert_refused, bound, held, keep, prompt_tokens

provider, told, addresses, gated = admission_rooms.FIXTURES

USUAL = 129
"""The `max_tokens` that leaves room for 99 of 100 answers when all had 100 tokens: 107, and a fifth."""


class Calendar(SystemClock):
    """A clock that a test moves by days."""

    def __init__(self) -> None:
        self.days = 0

    def now(self) -> datetime:
        return super().now() + timedelta(days=self.days)


async def in_flight(rooms: AdmissionRooms, house: House, job_id: UUID, *, extra_ms: int = 500) -> asyncio.Task[Report]:
    """Begin an attempt whose answer takes a while, and come back when the provider has its request."""
    rooms.fault("latency", extra_ms=extra_ms)
    running = asyncio.create_task(run(house, job_id))
    await until(lambda: rooms.in_flight() == 1)
    return running


def beside(rooms: AdmissionRooms, first: UUID, second: UUID) -> Report:
    """Run an attempt while another is in flight, which then succeeds."""

    async def meet(house: House) -> Report:
        running = await in_flight(rooms, house, first)
        report = await run(house, second)
        assert not running.done()
        assert (await running).outcome is Outcome.SUCCEEDED
        return report

    return rooms.with_house(meet)


def age(rooms: AdmissionRooms, job_id: UUID, age_s: float) -> None:
    """Let a job have been submitted so long ago."""
    with rooms.engine.begin() as connection:
        statement = text("UPDATE jobs SET created_at = now() - make_interval(secs => :age_s) WHERE id = :id")
        connection.execute(statement, {"id": job_id, "age_s": age_s})


class TestHeld:
    """Where calls under way hold what would be enough, a job waits for them as a row."""

    def test_a_job_is_deferred_and_served_when_the_other_has_settled(
        self, gated: AdmissionRooms, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        without_jitter(monkeypatch)
        limit = 2 * bound(gated) - 1
        keep(gated, limit)
        first, second = gated.submit(), gated.submit()

        async def meet(house: House) -> Report:
            running = await in_flight(gated, house, first)
            refused = await run(house, second)
            assert held(gated) == {(bound(gated), prompt_tokens(gated) + MOST)}
            assert (await running).outcome is Outcome.SUCCEEDED
            return refused

        before = gated.now()
        report = gated.with_house(meet)
        detail = f"calls under way hold what is left of the month's budget of its tenant, {dollars(limit)}"
        assert report == Report(second, Outcome.DEFERRED, Reason.BUDGET_HELD, detail, 1.0, model="")
        job = gated.job(second)
        assert (job.state, job.reason, job.attempts, job.failures) == ("queued", "budget_held", 0, 0)
        assert 1.0 <= (job.due_at - before).total_seconds() < 5.0
        assert (gated.count("attempts", second), gated.ledger(second), gated.calls()) == (0, [], 1)
        assert gated.places("first") == 0

        gated.release(second)
        assert gated.attempt(second).outcome is Outcome.SUCCEEDED
        assert held(gated) == {(0, 0)}

    def test_whoever_waited_long_asks_less_often(self, gated: AdmissionRooms, monkeypatch: pytest.MonkeyPatch) -> None:
        without_jitter(monkeypatch)
        keep(gated, 2 * bound(gated) - 1)
        first, *others = (gated.submit() for _ in range(4))
        for job_id, age_s in zip(others, (2, 40, 4000), strict=True):
            age(gated, job_id, age_s)

        async def meet(house: House) -> list[float]:
            running = await in_flight(gated, house, first)
            delays = [(await run(house, job_id)).delay_s for job_id in others]
            await running
            return delays

        assert gated.with_house(meet) == [1.0, pytest.approx(10.0, rel=0.05), 30.0]

    def test_an_old_job_that_has_little_time_left_asks_again_while_it_has(
        self, gated: AdmissionRooms, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        without_jitter(monkeypatch)
        keep(gated, 2 * bound(gated) - 1)
        first, second = gated.submit(), gated.submit(deadline=SystemClock().now() + timedelta(seconds=25))
        age(gated, second, 4000)
        report = beside(gated, first, second)
        assert (report.outcome, report.reason) == (Outcome.DEFERRED, Reason.BUDGET_HELD)
        assert report.delay_s == pytest.approx(12.5, abs=2)

    def test_the_cheaper_second_answers_what_is_held_at_the_dear_first(self, gated: AdmissionRooms) -> None:
        keep(gated, bound(gated) + bound(gated, rates=SECOND))
        first, second = gated.submit(), gated.submit(tier="pair")
        assert beside(gated, first, second).model == "sim-second"

    def test_a_smaller_tier_does_not_answer_for_one_that_only_has_to_wait(self, gated: AdmissionRooms) -> None:
        large, small = (bound(gated, rates=rates, version="1.2.0") for rates in (FIRST, SECOND))
        keep(gated, large + small)
        first, second = (gated.submit(tier="medium", prompt_version="1.2.0") for _ in range(2))
        report = beside(gated, first, second)
        assert (report.outcome, report.reason) == (Outcome.DEFERRED, Reason.BUDGET_HELD)
        gated.release(second)
        assert gated.attempt(second).model == "sim-first"

    def test_a_job_whose_budget_is_spent_beside_one_that_is_held_is_dead(self, gated: AdmissionRooms) -> None:
        keep(gated, 2 * bound(gated) - 1)
        keep(gated, 0, project="demo")
        first, second = gated.submit(), gated.submit(project="demo")
        report = beside(gated, first, second)
        assert (report.outcome, report.reason) == (Outcome.DEAD, Reason.BUDGET_EXHAUSTED)

    def test_a_call_that_failed_stays_in_the_history_though_the_other_deployment_is_held(
        self, gated: AdmissionRooms
    ) -> None:
        keep(gated, 2 * bound(gated) - 1)
        first, second = gated.submit(), gated.submit(tier="metered_last")  # the cheap one first
        gated.fault("server_error", model="sim-second")
        beside(gated, first, second)
        assert [call.reason for call in gated.ledger(second)] == ["server_error"]
        job = gated.job(second)
        assert (job.state, job.attempts, job.failures) == ("retrying", 1, 1)
        assert gated.count("attempts", second) == 1

    def test_jobs_beside_one_another_use_a_hard_limit_up_and_never_pass_it(self, gated: AdmissionRooms) -> None:
        limit = 3 * bound(gated) // 2
        keep(gated, limit)
        jobs = gated.submit_many(12)

        async def until_all_have_ended(house: House) -> list[Outcome | None]:
            ended: list[Outcome | None] = []
            waiting = jobs
            while waiting:
                outcomes = await run_all(house, waiting)
                (used,) = {(sums.used(Unit.NANODOLLARS)) for sums in assert_balanced(gated.engine).values()}
                assert used <= limit
                ended += [outcome for outcome in outcomes if outcome is not Outcome.DEFERRED]
                waiting = [
                    job_id for job_id, outcome in zip(waiting, outcomes, strict=True) if outcome is Outcome.DEFERRED
                ]
                gated.release(*waiting)
            return ended

        ended = gated.with_house(until_all_have_ended)
        assert set(ended) == {Outcome.SUCCEEDED, Outcome.DEAD}
        assert {gated.job(job_id).reason for job_id in jobs} == {None, "budget_exhausted"}
        assert ended.count(Outcome.SUCCEEDED) == gated.calls()
        assert limit - bound(gated) < gated.invoice() <= limit
        assert held(gated) == {(0, 0)}


class TestMaxTokens:
    """Where the length of answers is known, a call may ask for a shorter one than it would, if that is paid for."""

    @pytest.fixture(autouse=True)
    def answer(self, told: Told) -> None:
        told.says("A short summary.")

    def sent(self, rooms: AdmissionRooms, told: Told, job_id: UUID) -> list[int]:
        """Give the `max_tokens` of each request of the provider, which must be the ledger's."""
        asked = [request["max_tokens"] for request in told.requests]
        assert [call.max_tokens for call in rooms.ledger(job_id)] == asked
        return asked

    @pytest.mark.parametrize("room", [300, USUAL])
    def test_it_is_cut_to_what_is_left_when_the_length_is_known(
        self, gated: AdmissionRooms, told: Told, room: int
    ) -> None:
        gated.teach("openai/told", "1.1.0", 100)
        gated.attempt(gated.submit(tier="told", tenant="other"))
        assert told.requests.pop()["max_tokens"] > 300
        keep(gated, bound(gated, room))
        job_id = gated.submit(tier="told")
        assert gated.attempt(job_id).outcome is Outcome.SUCCEEDED
        assert self.sent(gated, told, job_id) == [room]
        (call,) = gated.ledger(job_id)
        assert (call.upper_bound_nanodollars, call.nanodollars) == (bound(gated, room), told.nanodollars)

    def test_it_is_not_cut_below_what_an_answer_is_expected_to_take(self, gated: AdmissionRooms, told: Told) -> None:
        gated.teach("openai/told", "1.1.0", 100)
        keep(gated, bound(gated, USUAL) - 1)
        job_id = gated.submit(tier="told")
        assert_refused(gated, job_id, gated.attempt(job_id))
        assert told.requests == []

    @pytest.mark.parametrize(("room", "asked"), [(MOST, [MOST]), (MOST - 1, [])])
    def test_it_is_not_cut_when_nothing_is_known(
        self, gated: AdmissionRooms, told: Told, room: int, asked: list[int]
    ) -> None:
        keep(gated, bound(gated, room))
        job_id = gated.submit(tier="told")
        gated.attempt(job_id)
        assert self.sent(gated, told, job_id) == asked
        assert gated.job(job_id).state == ("succeeded" if asked else "dead")

    def test_it_is_not_cut_for_what_another_version_of_the_prompt_takes(
        self, gated: AdmissionRooms, told: Told
    ) -> None:
        gated.teach("openai/told", "1.0.0", 100)
        keep(gated, bound(gated, MOST - 1))
        assert gated.attempt(gated.submit(tier="told")).reason is Reason.BUDGET_EXHAUSTED
        assert told.requests == []

    def test_it_is_cut_to_tokens_too_and_by_the_budget_that_has_least(self, gated: AdmissionRooms, told: Told) -> None:
        gated.teach("openai/told", "1.1.0", 100)
        keep(gated, bound(gated, 400), period=Period.DAY)
        keep(gated, prompt_tokens(gated) + 300, unit=Unit.TOKENS)
        keep(gated, bound(gated, 200), project="demo")
        first, second = (gated.submit(tier="told", project="demo") for _ in range(2))
        gated.attempt(first)
        assert self.sent(gated, told, first) == [200]
        told.requests.clear()
        keep(gated, None, project="demo")
        keep(gated, prompt_tokens(gated) + 300 + 1010, unit=Unit.TOKENS)
        keep(gated, bound(gated, 400) + told.nanodollars, period=Period.DAY)
        gated.attempt(second)
        assert self.sent(gated, told, second) == [300]


class TestCutAnswers:
    """An answer that was cut where the budget ended is asked again only if the whole can be paid for."""

    @pytest.fixture(autouse=True)
    def learn(self, gated: AdmissionRooms) -> None:
        gated.teach("openai/sim-first", "1.1.0", 24)  # the answer to a long document is longer

    def meanwhile(self, rooms: AdmissionRooms, job_id: UUID, max_tokens: int) -> Report:
        """Run an attempt that has room for 64 tokens, and change the limit to what `max_tokens` take meanwhile."""

        async def change(house: House) -> Report:
            keep(rooms, bound(rooms, 64, document=LONG_DOCUMENT))
            running = await in_flight(rooms, house, job_id)
            keep(rooms, bound(rooms, max_tokens, document=LONG_DOCUMENT))
            return await running

        return rooms.with_house(change)

    @pytest.mark.parametrize(("max_tokens", "has_room_for_another_part"), [(64, False), (MOST - 8, True)])
    def test_without_room_for_the_whole_the_job_is_dead_of_its_budget_after_one_call(
        self, gated: AdmissionRooms, max_tokens: int, *, has_room_for_another_part: bool
    ) -> None:
        job_id = gated.submit(document=LONG_DOCUMENT)
        report = self.meanwhile(gated, job_id, max_tokens)
        assert (report.outcome, report.reason) == (Outcome.DEAD, Reason.BUDGET_EXHAUSTED)
        (call,) = gated.ledger(job_id)
        assert (call.max_tokens, call.output_tokens, call.reason) == (64, 64, "output_truncated")
        assert (call.nanodollars <= (max_tokens - 64) * FIRST[1]) is has_room_for_another_part
        assert (call.nanodollars, gated.calls(), held(gated)) == (gated.invoice(), 1, {(0, 0)})
        assert (gated.count("results", job_id), gated.places("first")) == (0, 0)

    def test_without_room_for_the_whole_at_the_dear_first_the_cheaper_second_is_asked_for_it(
        self, gated: AdmissionRooms
    ) -> None:
        keep(gated, bound(gated, 64, document=LONG_DOCUMENT))
        job_id = gated.submit(tier="pair", document=LONG_DOCUMENT)
        assert gated.attempt(job_id).model == "sim-second"
        calls = gated.ledger(job_id)
        assert [(call.deployment, call.max_tokens) for call in calls] == [("first", 64), ("second", MOST)]
        assert sum(call.nanodollars for call in calls) == gated.invoice()

    def test_with_room_for_the_whole_it_is_asked_once_more_in_the_same_attempt(self, gated: AdmissionRooms) -> None:
        job_id = gated.submit(document=LONG_DOCUMENT)
        assert self.meanwhile(gated, job_id, 2 * MOST).outcome is Outcome.SUCCEEDED
        calls = gated.ledger(job_id)
        assert [(call.max_tokens, call.reason) for call in calls] == [(64, "output_truncated"), (MOST, None)]
        assert 64 < calls[1].output_tokens < MOST
        assert sum(call.nanodollars for call in calls) == gated.invoice()
        assert (gated.job(job_id).attempts, held(gated)) == (1, {(0, 0)})

    def test_while_another_call_holds_the_room_it_waits_and_is_then_asked_for_the_whole(
        self, gated: AdmissionRooms
    ) -> None:
        other, job_id = gated.submit(), gated.submit(document=LONG_DOCUMENT)

        async def meet(house: House) -> Report:
            running = await in_flight(gated, house, other, extra_ms=1_000)
            (call,) = gated.ledger(other)
            keep(gated, call.upper_bound_nanodollars + bound(gated, 64, document=LONG_DOCUMENT))
            refused = await run(house, job_id)
            await running
            return refused

        report = gated.with_house(meet)
        assert (report.outcome, report.reason) == (Outcome.DEFERRED, Reason.BUDGET_HELD)
        gated.release(job_id)
        assert gated.attempt(job_id).outcome is Outcome.SUCCEEDED
        assert [(call.max_tokens, call.reason) for call in gated.ledger(job_id)] == [
            (64, "output_truncated"),
            (MOST, None),
        ]
        assert held(gated) == {(0, 0)}


ENDS = {
    "an answer": ({}, None, CallOutcome.ANSWERED),
    "an answer that was cut": ({"tier": "curt"}, None, CallOutcome.ANSWERED),
    "no choices": ({}, {"name": "empty_choices"}, CallOutcome.ANSWERED),
    "400": ({}, {"name": "bad_request"}, CallOutcome.REFUSED),
    "401": ({}, {"name": "unauthorized"}, CallOutcome.REFUSED),
    "429": ({}, {"name": "throttled", "retry_after": 1}, CallOutcome.REFUSED),
    "500": ({}, {"name": "server_error"}, CallOutcome.REFUSED),
    "503": ({}, {"name": "unavailable"}, CallOutcome.REFUSED),
    "nobody listens": ({"tier": "closed"}, None, CallOutcome.NOT_SENT),
    "504": ({}, {"name": "gateway_timeout"}, CallOutcome.UNKNOWN),
    "a connection that breaks": ({}, {"name": "reset"}, CallOutcome.UNKNOWN),
    "an answer that is lost on its way": ({}, {"name": "lost_answer"}, CallOutcome.UNKNOWN),
    "an answer that is broken off": ({}, {"name": "cut"}, CallOutcome.UNKNOWN),
    "no answer in time": ({"tier": "hasty"}, {"name": "hang"}, CallOutcome.UNKNOWN),
}
"""What comes of a call: of which job, what the provider does, and what the ledger says."""


class TestWhatCallsLeave:
    """When a call has ended nothing of it is held, and what is settled is what it came to."""

    @pytest.mark.parametrize(("job", "fault", "outcome"), ENDS.values(), ids=ENDS)
    def test_nothing_is_held_and_the_truth_is_settled(
        self, gated: AdmissionRooms, job: dict[str, str], fault: dict[str, Any] | None, outcome: CallOutcome
    ) -> None:
        if fault is not None:
            gated.fault(**fault)
        job_id = gated.submit(project="demo", **job)
        gated.attempt(job_id)
        (call,) = gated.ledger(job_id)
        cost = {CallOutcome.ANSWERED: gated.invoice(), CallOutcome.UNKNOWN: call.upper_bound_nanodollars}.get(
            outcome, 0
        )
        tokens = call.input_tokens + call.cached_input_tokens + call.output_tokens
        state = "unknown" if outcome is CallOutcome.UNKNOWN else "settled"
        assert (call.outcome, call.state, call.nanodollars) == (outcome, state, cost)
        assert (cost > 0) is (outcome in {CallOutcome.ANSWERED, CallOutcome.UNKNOWN})
        spent = assert_balanced(gated.engine)
        assert {(project, period) for _, project, period, _ in spent} == {
            (project, period) for project in ("", "demo") for period in CALENDAR
        }
        settled_tokens = call.upper_bound_tokens if outcome is CallOutcome.UNKNOWN else tokens
        assert set(map(astuple, spent.values())) == {(cost, 0, settled_tokens, 0)}

    def test_a_call_whose_run_is_stopped_is_spent_at_its_bound(self, gated: AdmissionRooms) -> None:
        keep(gated, 2 * bound(gated) - 1)
        gated.fault("hang")
        job_id = gated.submit()

        async def stop(house: House) -> None:
            running = asyncio.create_task(run(house, job_id))
            await until(lambda: gated.in_flight() == 1)
            running.cancel()
            with pytest.raises(asyncio.CancelledError):
                await running

        gated.with_house(stop)
        (call,) = gated.ledger(job_id)
        assert (call.outcome, call.nanodollars) == (CallOutcome.UNKNOWN, bound(gated))
        assert set(map(astuple, assert_balanced(gated.engine).values())) == {
            (bound(gated), 0, prompt_tokens(gated) + MOST, 0)
        }
        gated.release(job_id)
        assert gated.attempt(job_id).reason is Reason.BUDGET_EXHAUSTED

    @pytest.mark.parametrize("name", ["bad_request", "throttled"])
    def test_a_refused_call_leaves_its_room_to_the_next(self, gated: AdmissionRooms, name: str) -> None:
        keep(gated, bound(gated))
        gated.fault(name)
        gated.attempt(gated.submit())
        gated.forget_gates()  # a 429 froze the quota
        assert gated.attempt(gated.submit()).outcome is Outcome.SUCCEEDED

    def test_a_call_is_priced_by_the_day_on_which_it_was_sent(self, gated: AdmissionRooms, tmp_path: Path) -> None:
        config = shutil.copytree(CONFIG, tmp_path / "config")
        calendar = Calendar()
        tomorrow = (calendar.now() + timedelta(days=1)).date().isoformat()
        dearer = f'\n[[prices.first]]\nstarts = {tomorrow}\ninput = "7.50"\ncached_input = "3.75"\noutput = "30.00"\n'
        (config / "prices.toml").write_text((config / "prices.toml").read_text() + dearer)
        gated.settings = gated.settings.model_copy(update={"config": config})
        jobs = [gated.submit() for _ in range(2)]

        async def past_midnight(house: House) -> None:
            dated = replace(house, clock=calendar)
            running = await in_flight(gated, dated, jobs[0])
            calendar.days = 1
            await running
            await run(dated, jobs[1])

        gated.with_house(past_midnight)
        (before,), (after,) = (gated.ledger(job_id) for job_id in jobs)
        first, second = (line["nanodollars"] for line in gated.lines())
        assert (before.price_version, before.upper_bound_nanodollars) == ("2026-01-01", bound(gated))
        assert (after.price_version, after.upper_bound_nanodollars) == (tomorrow, 10 * bound(gated))
        assert (before.nanodollars, after.nanodollars) == (first, 10 * second)


def test_a_run_that_is_stopped_while_it_waits_for_its_hold_gives_it_back(gated: AdmissionRooms) -> None:
    keep(gated, 10 * bound(gated))
    first, second = gated.submit(), gated.submit()

    async def stop_it(house: House) -> None:
        await run(house, first)
        with gated.engine.begin() as holder:
            holder.execute(text("SELECT FROM spending FOR UPDATE"))
            running = asyncio.create_task(run(house, second))
            await until(lambda: waits_for_a_lock(gated))
            running.cancel()
            await asyncio.sleep(0)
        with pytest.raises(asyncio.CancelledError):
            await running

    gated.with_house(stop_it)
    (row,) = gated.ledger(second)
    assert (row.state, row.outcome, row.nanodollars) == ("settled", CallOutcome.NOT_SENT, 0)
    assert held(gated) == {(0, 0)}
    assert (gated.calls(), gated.job(second).state) == (1, "retrying")


def test_a_run_that_is_stopped_twice_hands_its_job_back_only_when_its_answer_is_kept(gated: AdmissionRooms) -> None:
    first, second = gated.submit(), gated.submit()

    async def stop_it(house: House) -> None:
        await run(house, first)
        running = await in_flight(gated, house, second)
        with gated.engine.begin() as holder:
            holder.execute(text("SELECT FROM spending FOR UPDATE"))
            await until(lambda: waits_for_a_lock(gated))
            for _ in range(2):
                running.cancel()
                await asyncio.sleep(0)
            assert not running.done()
        with pytest.raises(asyncio.CancelledError):
            await running

    gated.with_house(stop_it)
    assert (gated.count("answers", second), gated.job(second).state, gated.calls()) == (1, "retrying", 2)


def waits_for_a_lock(rooms: AdmissionRooms) -> bool:
    with rooms.engine.connect() as connection:
        return bool(connection.scalar(text("SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'")))
