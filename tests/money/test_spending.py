"""What is settled and held of each period: always the ledger's own sums, and never above a hard limit by a new hold."""

from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, date, datetime, time, timedelta
from typing import Any
from uuid import UUID, uuid4

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from sqlalchemy import Engine, text

from penstock.jobs.execution import ClaimedJob, Ending, Outcome
from penstock.money import ledger
from penstock.money.budgets import CALENDAR, Budget, Period, Unit, list_budgets, remove_budget, set_budget
from penstock.money.holds import Hold, Shortfall
from penstock.money.ledger import CallOutcome, Intent, Settlement, SoftLimitPassed, Verdict
from penstock.money.prices import PER_TOKENS, UpperBound
from penstock.schemas import Usage
from tests.jobs import rows
from tests.jobs.rows import UPPER_BOUND, intent
from tests.money.books import Books, Sums, assert_balanced, booked, keys_of, move_call, used_of

OLD_CALL = """
    INSERT INTO ledger (call_id, job_id, fence, tenant, prompt_id, prompt_version, tier, deployment, account,
        model_asked, price_version, state, upper_bound_nanodollars, nanodollars)
    VALUES (:call_id, :job_id, 1, :tenant, 'summarise_document', '1.0.0', 'small', 'sim-small', 'simulator', 'm',
        '2026-01-01', 'intent', 1000, 1000)
"""
"""What a version that knew no budgets wrote down."""


def intend(engine: Engine, *intents: Intent) -> list[Verdict]:
    with engine.begin() as connection:
        return ledger.intend(connection, intents)


def settle(engine: Engine, *settlements: Settlement) -> list[tuple[SoftLimitPassed, ...]]:
    with engine.begin() as connection:
        return ledger.settle(connection, settlements)


def truth(call_id: UUID, cost: int = 400) -> Settlement:
    """Say that a call came to as many tokens as nano-dollars."""
    return Settlement(
        call_id, CallOutcome.ANSWERED, cost, Usage(cached_input_tokens=cost // 2, reasoning_tokens=-(-cost // 2))
    )


def unknown(call_id: UUID) -> Settlement:
    return Settlement(call_id, CallOutcome.UNKNOWN, None)


def abandon(engine: Engine) -> list[UUID]:
    with engine.begin() as connection:
        return ledger.abandon(connection, older_than_s=-1)


def keep(engine: Engine, *budgets: Budget) -> None:
    with engine.begin() as connection:
        for budget in budgets:
            set_budget(connection, budget)


def stop(engine: Engine, job: ClaimedJob) -> None:
    rows.finish(engine, Ending(job.id, job.fence, Outcome.HANDED_BACK))


def today(engine: Engine) -> date:
    with engine.connect() as connection:
        found: datetime = connection.execute(text("SELECT now()")).scalar_one()
    return found.astimezone(UTC).date()


def open_call(engine: Engine, **job: Any) -> UUID:
    call = intent(rows.running_job(engine, **job))
    (verdict,) = intend(engine, call)
    assert isinstance(verdict, Hold)
    return call.call_id


class Budgets(RuleBasedStateMachine):
    """Runs of two tenants that call, crash and settle, while their budgets change under them."""

    OWNERS = (("acme", ""), ("acme", "north"), ("acme", "south"), ("beta", "north"))
    KEYS = st.tuples(st.sampled_from(OWNERS), st.sampled_from(CALENDAR), st.sampled_from(Unit))

    def __init__(self, engine: Engine) -> None:
        super().__init__()
        self.engine = engine
        self.runs: list[ClaimedJob] = []
        self.intents: list[Intent] = []
        self.made: dict[UUID, int] = {}
        rows.execute(engine, f"TRUNCATE {', '.join(rows.TABLES)} CASCADE")

    @initialize()
    def begin(self) -> None:
        self.runs += [rows.running_job(self.engine, tenant=tenant, project=project) for tenant, project in self.OWNERS]

    def owns(self, intent: Intent) -> bool:
        return intent.fence == max(run.fence for run in self.runs if run.id == intent.job_id)

    def under_way(self) -> set[UUID]:
        with self.engine.connect() as connection:
            return set(connection.scalars(text("SELECT call_id FROM ledger WHERE state = 'intent'")))

    def budgets(self) -> list[Budget]:
        with self.engine.connect() as connection:
            return list_budgets(connection)

    @rule(
        fresh=st.lists(
            st.tuples(st.integers(0, 7), st.integers(0, 9), st.integers(0, 9), st.integers(1, 9)),
            min_size=1,
            max_size=4,
        ),
        repeats=st.lists(st.integers(0, 9), max_size=2),
    )
    def call(self, fresh: list[tuple[int, int, int, int]], repeats: list[int]) -> None:
        """Intend calls by any runs, even those that are over, some of them again."""
        for number, prompt, least, more in fresh:
            bound = UpperBound(prompt, prompt * PER_TOKENS // 2 + 1, PER_TOKENS // 3)
            run = self.runs[-1 - number % len(self.runs)]
            self.intents.append(intent(run, bound=bound, max_tokens=least + more, least_max_tokens=least or 1))
        wanted = self.intents[-len(fresh) :]
        wanted += [self.intents[-1 - number % len(self.intents)] for number in repeats]
        budgets, before, known = self.budgets(), booked(self.engine), dict(self.made)
        verdicts = intend(self.engine, *wanted)
        after = booked(self.engine)
        for each, verdict in zip(wanted, verdicts, strict=True):
            self.check(each, verdict, known)
            if isinstance(verdict, Shortfall) and all(map(self.owns, wanted)):
                self.check_shortfall(each, verdict, after)
        self.check_limits(budgets, before, after)

    def check(self, each: Intent, verdict: Verdict, known: dict[UUID, int]) -> None:
        if each.call_id in known:
            assert isinstance(verdict, Hold) == (self.owns(each) and each.call_id in self.under_way())
            assert not isinstance(verdict, Hold) or verdict.max_tokens == known[each.call_id]
        elif isinstance(verdict, Hold):
            assert self.owns(each)
            assert each.least_max_tokens <= verdict.max_tokens <= each.max_tokens
            self.made[each.call_id] = verdict.max_tokens
        elif verdict is None:
            assert not self.owns(each)

    def check_shortfall(self, each: Intent, shortfall: Shortfall, after: Books) -> None:
        budget, bound = shortfall.budget, each.bound
        assert budget.hard_limit is not None
        least = each.least_max_tokens
        amount = bound.tokens(least) if budget.unit is Unit.TOKENS else bound.nanodollars(least)
        assert used_of(after, budget, today(self.engine)) + amount > budget.hard_limit

    def check_limits(self, budgets: Sequence[Budget], before: Books, after: Books) -> None:
        for budget in budgets:
            if budget.hard_limit is not None:
                used_before, used = (used_of(books, budget, today(self.engine)) for books in (before, after))
                assert used <= max(budget.hard_limit, used_before)
                assert used == used_before or used <= budget.hard_limit

    @precondition(lambda self: self.made)
    @rule(chosen=st.lists(st.tuples(st.integers(0, 5), st.integers(-4, 5)), min_size=1, max_size=5))
    def settle(self, chosen: list[tuple[int, int]]) -> None:
        """Say what calls came to, in quarters of their bound: some again, some above it; below 0 is unknown."""
        settlements = []
        bounds = {each.call_id: each.bound for each in self.intents}
        for number, quarters in chosen:
            call_id = list(self.made)[-1 - number % len(self.made)]
            if quarters < 0:
                settlements.append(unknown(call_id))
                continue
            tokens = bounds[call_id].tokens(self.made[call_id]) * quarters // 4
            cost = bounds[call_id].nanodollars(self.made[call_id]) * quarters // 4
            settlements.append(Settlement(call_id, CallOutcome.ANSWERED, cost, Usage(input_tokens=tokens)))
        before = booked(self.engine)
        passed = [limit for told in settle(self.engine, *settlements) for limit in told]
        assert sorted(passed, key=repr) == sorted(self.passed(before, booked(self.engine)), key=repr)

    def passed(self, before: Books, after: Books) -> list[SoftLimitPassed]:
        """Name the soft limits that lie between two moments."""
        found = []
        for budget in self.budgets():
            for key, sums in after.items():
                if budget.soft_limit is not None and key[:3] == (budget.tenant, budget.project, budget.period):
                    was, now = (getattr(books, f"settled_{budget.unit}") for books in (before.get(key, Sums()), sums))
                    if was <= budget.soft_limit < now:
                        found.append(SoftLimitPassed(*key[:2], budget.period, budget.unit, budget.soft_limit, now))
        return found

    @rule(key=KEYS, hard=st.none() | st.integers(0, 40), soft=st.none() | st.integers(0, 20))
    def change_limit(self, key: tuple[tuple[str, str], Period, Unit], hard: int | None, soft: int | None) -> None:
        (tenant, project), period, unit = key
        lower = soft if hard is None or soft is None else min(hard, soft)
        keep(self.engine, Budget(tenant, period, unit, project, lower, hard))

    @rule(key=KEYS)
    def remove_limit(self, key: tuple[tuple[str, str], Period, Unit]) -> None:
        (tenant, project), period, unit = key
        with self.engine.begin() as connection:
            remove_budget(connection, tenant, project, period, unit)

    @rule(number=st.integers(0, 3))
    def lose_the_worker(self, number: int) -> None:
        run = self.runs[-1 - number % len(self.runs)]
        stop(self.engine, run)
        if rows.state(self.engine, run.id) == "retrying":
            self.runs.append(rows.claim_again(self.engine, run.id))

    @rule()
    def abandon(self) -> None:
        abandon(self.engine)

    @precondition(lambda self: self.made)
    @rule(number=st.integers(0, 9), days=st.integers(1, 40))
    def age(self, number: int, days: int) -> None:
        """Let a call have been intended on an earlier day, if it is open."""
        call_id = list(self.made)[-1 - number % len(self.made)]
        with self.engine.connect() as connection:
            state = connection.scalar(text("SELECT state FROM ledger WHERE call_id = :id"), {"id": call_id})
        if state == "intent":
            move_call(self.engine, call_id, datetime.now(UTC) - timedelta(days=days))

    @invariant()
    def spending_is_what_the_ledger_says(self) -> None:
        assert_balanced(self.engine)

    def teardown(self) -> None:
        """Close every call: nothing is held any more."""
        for run in self.runs:
            stop(self.engine, run)
        abandon(self.engine)
        assert {sums.held for sums in assert_balanced(self.engine).values()} <= {(0, 0)}


@pytest.mark.timeout(300)
def test_no_sequence_of_calls_crashes_and_changes_of_limits_overspends_or_forgets_a_hold(schema: Engine) -> None:
    run_state_machine_as_test(
        lambda: Budgets(schema),  # type: ignore[arg-type] # any maker of one will do
        settings=settings(max_examples=12, stateful_step_count=15, deadline=None),
    )


class TestPeriods:
    """A call belongs to the day and the month, in UTC, in which it was intended."""

    def test_a_call_of_before_midnight_is_settled_on_the_day_before(self, engine: Engine) -> None:
        now = today(engine)
        last_moment = datetime.combine(now, time(), UTC) - timedelta(microseconds=1)
        call_id = open_call(engine, project="north")
        move_call(engine, call_id, last_moment)
        settle(engine, truth(call_id))
        says = assert_balanced(engine)
        assert says == dict.fromkeys(keys_of("acme", "north", last_moment), Sums(400, 0, 400, 0))

    @pytest.mark.parametrize("close", ["settle", "unknown", "late truth", "abandon"])
    def test_a_call_of_before_the_months_end_is_settled_in_the_month_before(self, engine: Engine, close: str) -> None:
        first = datetime.combine(today(engine).replace(day=1), time(), UTC)
        job = rows.running_job(engine)
        call, other = intent(job), intent(job)
        intend(engine, call, other)
        move_call(engine, call.call_id, first - timedelta(microseconds=1))
        if close == "abandon":
            stop(engine, job)
            abandon(engine)
        elif close != "settle":
            settle(engine, unknown(call.call_id))
        if close in {"settle", "late truth"}:
            settle(engine, truth(call.call_id))
        came_to = 400 if close in {"settle", "late truth"} else UPPER_BOUND
        other_is = Sums(UPPER_BOUND, 0, UPPER_BOUND, 0) if close == "abandon" else Sums(0, UPPER_BOUND, 0, UPPER_BOUND)
        says = assert_balanced(engine)
        then = keys_of("acme", "", first - timedelta(microseconds=1))
        assert [says[key] for key in then] == [Sums(came_to, 0, came_to, 0)] * 2
        assert [says[key] for key in keys_of("acme", "", datetime.combine(today(engine), time(), UTC))] == [
            other_is
        ] * 2

    @pytest.mark.parametrize("zone", ["Pacific/Kiritimati", "Etc/GMT+12"])
    def test_the_time_zone_of_the_session_does_not_matter(self, engine: Engine, zone: str) -> None:
        call = intent(rows.running_job(engine))
        for step in (lambda c: ledger.intend(c, [call]), lambda c: ledger.settle(c, [truth(call.call_id)])):
            with engine.begin() as connection:
                connection.exec_driver_sql(f"SET LOCAL TIME ZONE '{zone}'")
                step(connection)
        noon = datetime.combine(today(engine), time(12), UTC)
        assert assert_balanced(engine) == dict.fromkeys(keys_of("acme", "", noon), Sums(400, 0, 400, 0))

    @pytest.mark.parametrize("period", CALENDAR)
    def test_what_another_period_used_leaves_the_current_one_whole(self, engine: Engine, period: Period) -> None:
        budget = Budget("acme", period, Unit.NANODOLLARS, hard_limit=UPPER_BOUND)
        keep(engine, budget)
        call_id = open_call(engine)
        assert intend(engine, intent(rows.running_job(engine))) == [Shortfall(budget, may_pass=True)]
        move_call(engine, call_id, datetime.now(UTC) - timedelta(days=1 if period is Period.DAY else 31))
        assert intend(engine, intent(rows.running_job(engine))) == [Hold(100)]
        settle(engine, truth(call_id, UPPER_BOUND))
        assert intend(engine, intent(rows.running_job(engine))) == [Shortfall(budget, may_pass=True)]
        assert_balanced(engine)


class TestSoftLimits:
    """Passing one is told once, with the call that does it."""

    def test_it_is_told_when_it_is_passed_and_neither_at_it_nor_behind_it(self, engine: Engine) -> None:
        keep(engine, Budget("acme", Period.DAY, Unit.NANODOLLARS, soft_limit=800))
        told = [settle(engine, truth(open_call(engine), cost)) for cost in (400, 400, 1, 400)]
        expected = SoftLimitPassed("acme", "", Period.DAY, Unit.NANODOLLARS, 800, 801)
        assert told == [[()], [()], [(expected,)], [()]]

    def test_calls_that_pass_it_together_tell_of_it_once_for_each_budget(self, engine: Engine) -> None:
        every = [
            Budget("acme", period, unit, project, soft_limit=700)
            for project in ("", "north")
            for period in CALENDAR
            for unit in Unit
        ]
        keep(engine, *every, Budget("beta", Period.DAY, Unit.TOKENS, soft_limit=0))
        calls = [open_call(engine, project="north"), open_call(engine, project="north")]
        first, second = settle(engine, *(truth(call_id) for call_id in calls))
        assert sorted((*first, *second), key=repr) == sorted(
            (SoftLimitPassed("acme", budget.project, budget.period, budget.unit, 700, 800) for budget in every),
            key=repr,
        )

    def test_it_is_told_with_a_call_of_whoever_passed_it(self, engine: Engine) -> None:
        owners = [("acme", ""), ("beta", "north"), ("beta", "south"), ("gamma", "")]
        budgets = [Budget(tenant, Period.DAY, Unit.TOKENS, project, soft_limit=0) for tenant, project in owners[1:]]
        keep(engine, *budgets)
        calls = [open_call(engine, tenant=tenant, project=project) for tenant, project in owners]
        told = settle(engine, *(truth(call_id) for call_id in calls))
        assert [[(limit.tenant, limit.project) for limit in limits] for limits in told] == [
            [],
            [("beta", "north")],
            [("beta", "south")],
            [("gamma", "")],
        ]

    def test_an_unknown_outcome_passes_it_too_and_its_truth_is_no_second_time(self, engine: Engine) -> None:
        keep(engine, Budget("acme", Period.DAY, Unit.NANODOLLARS, soft_limit=100))
        call_id = open_call(engine)
        (passed,) = settle(engine, unknown(call_id))[0]
        assert passed.settled == UPPER_BOUND
        assert settle(engine, truth(call_id)) == [()]

    def test_a_settlement_that_comes_again_tells_nothing(self, engine: Engine) -> None:
        keep(engine, Budget("acme", Period.DAY, Unit.NANODOLLARS, soft_limit=100))
        call_id = open_call(engine)
        assert [len(settle(engine, truth(call_id))[0]) for _ in range(2)] == [1, 0]

    def test_one_that_is_raised_is_told_anew_when_it_is_passed(self, engine: Engine) -> None:
        told: list[SoftLimitPassed] = []
        for soft_limit in (0, 500, 500):
            keep(engine, Budget("acme", Period.DAY, Unit.NANODOLLARS, soft_limit=soft_limit))
            told += settle(engine, truth(open_call(engine), 400))[0]
        assert [(each.soft_limit, each.settled) for each in told] == [(0, 400), (500, 800)]


@pytest.mark.parametrize(
    ("close", "came_to"), [("truth", 400), ("unknown", 1000), ("late truth", 400), ("abandon", 1000)]
)
def test_a_call_that_an_older_version_wrote_down_is_settled_and_was_never_held(
    engine: Engine, close: str, came_to: int
) -> None:
    old = {"call_id": uuid4(), "job_id": uuid4(), "tenant": "acme"}
    rows.execute(engine, OLD_CALL, **old)
    mine = open_call(engine)
    assert_balanced(engine)
    if close == "abandon":
        assert abandon(engine) == [old["call_id"]]
    if close in {"unknown", "late truth"}:
        settle(engine, unknown(UUID(str(old["call_id"]))))
    if close in {"truth", "late truth"}:
        settle(engine, truth(UUID(str(old["call_id"]))))
    says = assert_balanced(engine)
    tokens = 400 if "truth" in close else 0
    assert set(map(str, says.values())) == {str(Sums(came_to, UPPER_BOUND, tokens, UPPER_BOUND))}
    settle(engine, truth(mine))
    assert {sums.held for sums in assert_balanced(engine).values()} == {(0, 0)}


def test_a_shortfall_writes_nothing_down(engine: Engine) -> None:
    keep(engine, Budget("acme", Period.DAY, Unit.TOKENS, hard_limit=UPPER_BOUND))
    open_call(engine)
    call = intent(rows.running_job(engine))
    before = rows.everything(engine)
    assert isinstance(intend(engine, call)[0], Shortfall)
    assert rows.everything(engine) == before


def test_a_call_that_is_cut_holds_what_it_may_cost_and_says_so_in_the_ledger(engine: Engine) -> None:
    keep(engine, Budget("acme", Period.DAY, Unit.NANODOLLARS, hard_limit=UPPER_BOUND - 60))
    call = replace(intent(rows.running_job(engine)), least_max_tokens=40)
    assert intend(engine, call) == [Hold(40)] == intend(engine, call)
    (entry,) = rows.everything(engine)["ledger"]
    assert (entry["max_tokens"], entry["upper_bound_nanodollars"], entry["nanodollars"]) == (40, 940, 940)
    assert entry["upper_bound_tokens"] == 940
    assert {sums.held for sums in assert_balanced(engine).values()} == {(940, 940)}
