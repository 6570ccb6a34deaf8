"""What a call may hold of its budgets, beside a model that tries every `max_tokens` in turn."""

from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import replace
from fractions import Fraction
from math import ceil
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from penstock.money.budgets import CALENDAR, MOST, Budget, OnExhausted, Period, Unit
from penstock.money.holds import Account, Hold, Shortfall, Spent, Want, accounts_of, decide
from penstock.money.prices import PER_TOKENS, UpperBound

TENANTS, PROJECTS = ("acme", "beta"), ("", "north")
ACCOUNTS = [(tenant, project, period) for tenant in TENANTS for project in PROJECTS for period in CALENDAR]
State = dict[Account, Spent]


def amount(want: Want, unit: Unit, max_tokens: int) -> int:
    """Give what a call takes of a budget, in fractions that are rounded up once."""
    if unit is Unit.TOKENS:
        return want.bound.prompt_tokens + max_tokens
    return ceil(Fraction(want.bound.prompt_amount + max_tokens * want.bound.output_rate, PER_TOKENS))


def lacks(want: Want, max_tokens: int, budgets: Sequence[Budget], spent: Mapping[Account, Spent]) -> list[Budget]:
    """Name the budgets that a call would be above."""
    return [
        budget
        for budget in budgets
        if budget.tenant == want.tenant and budget.project in {"", want.project} and budget.hard_limit is not None
        if spent[account_of(budget)].used(budget.unit) + amount(want, budget.unit, max_tokens) > budget.hard_limit
    ]


def account_of(budget: Budget) -> Account:
    return budget.tenant, budget.project, budget.period


def without_holds(spent: Mapping[Account, Spent]) -> State:
    return {account: Spent(settled=state.settled) for account, state in spent.items()}


def fitting(want: Want, budgets: Sequence[Budget], spent: Mapping[Account, Spent]) -> list[int]:
    """Give every `max_tokens` that may be asked for."""
    wanted = range(want.least_max_tokens, want.max_tokens + 1)
    return [max_tokens for max_tokens in wanted if not lacks(want, max_tokens, budgets, spent)]


def amounts(most: int) -> st.SearchStrategy[dict[Unit, int]]:
    return st.fixed_dictionaries({unit: st.integers(0, most) for unit in Unit})


RATES = st.sampled_from([0, 1, PER_TOKENS // 3, PER_TOKENS, 3 * PER_TOKENS + 1])
BOUNDS = st.builds(
    UpperBound, st.integers(0, 20), st.integers(0, 20 * PER_TOKENS) | st.sampled_from([0, 1]), output_rate=RATES
)
LENGTHS = st.tuples(st.integers(1, 30), st.integers(1, 30)).map(sorted)


@st.composite
def wants(draw: st.DrawFn) -> Want:
    least, most = draw(LENGTHS)
    return Want(draw(st.sampled_from(TENANTS)), draw(st.sampled_from(PROJECTS)), draw(BOUNDS), most, least)


@st.composite
def budget_lists(draw: st.DrawFn) -> list[Budget]:
    keys = draw(st.lists(st.tuples(st.sampled_from(ACCOUNTS), st.sampled_from(Unit)), max_size=10, unique=True))
    made = []
    for (tenant, project, period), unit in keys:
        hard = draw(st.none() | st.integers(0, 90))
        soft = draw(st.none() | st.integers(0, 60 if hard is None else hard))
        made.append(Budget(tenant, period, unit, project, soft, hard, draw(st.sampled_from(OnExhausted))))
    return made


STATES = st.fixed_dictionaries({account: st.builds(Spent, amounts(30), amounts(30)) for account in ACCOUNTS})
WANTS = st.lists(wants(), min_size=1, max_size=6)
MANY = settings(max_examples=300, deadline=None)


@MANY
@given(WANTS, budget_lists(), STATES)
def test_no_hold_leaves_more_used_than_a_hard_limit_and_none_is_made_where_it_is_passed_already(
    asked: list[Want], budgets: list[Budget], spent: State
) -> None:
    before = deepcopy(spent)
    decide(asked, budgets, spent)
    for budget in budgets:
        used_before, used = (state[account_of(budget)].used(budget.unit) for state in (before, spent))
        if budget.hard_limit is not None:
            assert used <= max(budget.hard_limit, used_before)
            if used_before > budget.hard_limit:
                assert used == used_before


@MANY
@given(wants(), budget_lists(), STATES)
def test_a_hold_is_as_large_as_fits_and_there_is_none_below_the_least(
    want: Want, budgets: list[Budget], spent: State
) -> None:
    before = deepcopy(spent)
    (verdict,) = decide([want], budgets, spent)
    possible = fitting(want, budgets, before)
    if possible:
        assert isinstance(verdict, Hold)
        assert verdict.max_tokens == max(possible)
    else:
        assert isinstance(verdict, Shortfall)
        assert verdict.budget in lacks(want, want.least_max_tokens, budgets, before)


@MANY
@given(wants(), budget_lists(), STATES)
def test_a_shortfall_may_pass_exactly_when_the_call_would_fit_if_nothing_were_held(
    want: Want, budgets: list[Budget], spent: State
) -> None:
    free = without_holds(spent)
    (verdict,) = decide([want], budgets, spent)
    if isinstance(verdict, Shortfall):
        assert verdict.may_pass == bool(fitting(want, budgets, free))


@MANY
@given(wants(), budget_lists(), STATES)
def test_a_shortfall_that_does_not_pass_names_a_budget_that_no_release_helps(
    want: Want, budgets: list[Budget], spent: State
) -> None:
    free = without_holds(spent)
    (verdict,) = decide([want], budgets, spent)
    if isinstance(verdict, Shortfall) and not verdict.may_pass:
        lasting = lacks(want, want.least_max_tokens, budgets, free)
        assert verdict.budget in lasting
        assert verdict.budget.on_exhausted is max(budget.on_exhausted for budget in lasting)  # refuse, before degrade


@MANY
@given(wants(), budget_lists(), STATES)
def test_a_shortfall_tells_what_is_not_settled_of_its_limit(want: Want, budgets: list[Budget], spent: State) -> None:
    (verdict,) = decide([want], budgets, spent)
    if isinstance(verdict, Shortfall):
        assert verdict.budget.hard_limit is not None
        settled = spent[account_of(verdict.budget)].settled[verdict.budget.unit]
        assert verdict.room == verdict.budget.hard_limit - settled


@MANY
@given(WANTS, budget_lists(), STATES)
def test_what_is_held_is_booked_on_the_tenant_and_the_project_by_day_and_month_and_on_nobody_else(
    asked: list[Want], budgets: list[Budget], spent: State
) -> None:
    expected = deepcopy(spent)
    verdicts = decide(asked, budgets, spent)
    for want, verdict in zip(asked, verdicts, strict=True):
        if isinstance(verdict, Hold):
            for account in {(want.tenant, project, period) for project in ("", want.project) for period in CALENDAR}:
                for unit in Unit:
                    expected[account].held[unit] += amount(want, unit, verdict.max_tokens)
    assert spent == expected


@MANY
@given(WANTS, budget_lists(), STATES)
def test_calls_are_served_in_their_order(asked: list[Want], budgets: list[Budget], spent: State) -> None:
    apart = deepcopy(spent)
    one_by_one = [verdict for want in asked for verdict in decide([want], budgets, apart)]
    assert decide(asked, budgets, spent) == one_by_one
    assert spent == apart


@MANY
@given(wants(), budget_lists(), STATES)
def test_a_hold_is_flagged_exactly_when_more_than_a_soft_limit_is_used_before_it(
    want: Want, budgets: list[Budget], spent: State
) -> None:
    passed = [
        budget
        for budget in budgets
        if budget.tenant == want.tenant and budget.project in {"", want.project} and budget.soft_limit is not None
        if spent[account_of(budget)].used(budget.unit) > budget.soft_limit
    ]
    (verdict,) = decide([want], budgets, spent)
    if isinstance(verdict, Hold):
        assert verdict.over_soft_limit == bool(passed)


@MANY
@given(WANTS, STATES)
def test_without_a_budget_every_call_holds_all_that_it_asks_for(asked: list[Want], spent: State) -> None:
    assert decide(asked, [], spent) == [Hold(want.max_tokens) for want in asked]


def want_of(**changes: Any) -> Want:
    """Want 10 to 30 tokens of an answer to a prompt of 20, at a nano-dollar each."""
    given = Want("acme", "north", UpperBound(20, 20 * PER_TOKENS, PER_TOKENS), max_tokens=30, least_max_tokens=10)
    return replace(given, **changes)


def one(want: Want, *budgets: Budget, **used: int) -> Hold | Shortfall:
    """Decide about one call, where every account has `settled` and `held` of both units."""
    spent = {
        account: Spent(dict.fromkeys(Unit, used.get("settled", 0)), dict.fromkeys(Unit, used.get("held", 0)))
        for account in accounts_of(want.tenant, want.project)
    }
    return decide([want], budgets, spent)[0]


def limit(hard: int | None, unit: Unit = Unit.NANODOLLARS, **others: Any) -> Budget:
    return Budget(**{"tenant": "acme", "period": Period.DAY, "unit": unit, "hard_limit": hard} | others)


@pytest.mark.parametrize("unit", Unit)
@pytest.mark.parametrize("period", CALENDAR)
@pytest.mark.parametrize("project", ["", "north"])
@pytest.mark.parametrize(
    ("room", "held"), [(29, None), (30, 10), (31, 11), (49, 29), (50, 30), (51, 30), (MOST, 30), (None, 30)]
)
def test_a_call_is_cut_to_what_is_left_of_any_budget(
    unit: Unit, period: Period, project: str, room: int | None, held: int | None
) -> None:
    budget = limit(room, unit, period=period, project=project)
    assert one(want_of(), budget) == (Shortfall(budget, may_pass=False) if held is None else Hold(held))


@pytest.mark.parametrize(("tenant", "project"), [("beta", ""), ("beta", "north"), ("acme", "south")])
def test_the_budget_of_another_tenant_or_project_holds_nothing_back(tenant: str, project: str) -> None:
    assert one(want_of(), limit(0, tenant=tenant, project=project)) == Hold(30)


def test_a_project_has_what_its_tenant_has_left_and_no_more() -> None:
    whole, part = limit(45), limit(200, project="north")
    assert one(want_of(), whole, part) == Hold(25)
    assert one(want_of(), replace(whole, hard_limit=200), replace(part, hard_limit=44)) == Hold(24)


@pytest.mark.parametrize("unit", Unit)
def test_a_limit_of_zero_pays_for_nothing(unit: Unit) -> None:
    budget = limit(0, unit)
    assert one(want_of(), budget) == Shortfall(budget, may_pass=False)
    assert one(want_of(bound=UpperBound(0, 0, 1), least_max_tokens=1), budget) == Shortfall(budget, may_pass=False)


def test_a_call_that_costs_nothing_needs_no_money_and_does_need_tokens() -> None:
    free = want_of(bound=UpperBound(20, 0, 0))
    assert one(free, limit(0)) == Hold(30)
    assert one(free, limit(45, Unit.TOKENS)) == Hold(25)
    assert one(free, limit(5), settled=6) == Shortfall(limit(5), may_pass=False)


def test_an_answer_that_costs_nothing_is_not_cut_and_its_prompt_is_paid() -> None:
    free_answer = want_of(bound=UpperBound(20, 20 * PER_TOKENS - 1, 0))
    assert one(free_answer, limit(20)) == Hold(30)
    assert one(free_answer, limit(19)) == Shortfall(limit(19), may_pass=False)


@pytest.mark.parametrize(("settled", "held", "may_pass"), [(0, 171, True), (170, 1, True), (171, 0, False)])
def test_what_others_hold_may_come_back_and_what_is_settled_does_not(
    settled: int, held: int, *, may_pass: bool
) -> None:
    assert one(want_of(), limit(200), settled=settled, held=held) == Shortfall(limit(200), may_pass=may_pass)


def test_a_budget_that_is_used_up_for_good_decides_though_another_is_only_held() -> None:
    whole, part = limit(100), limit(100, project="north", on_exhausted=OnExhausted.DEGRADE)
    spent = {account: Spent() for account in accounts_of("acme", "north")}
    spent["acme", "", Period.DAY].held[Unit.NANODOLLARS] = 100
    spent["acme", "north", Period.DAY].settled[Unit.NANODOLLARS] = 100
    assert decide([want_of()], [whole, part], spent) == [Shortfall(part, may_pass=False)]


@pytest.mark.parametrize(("used", "over"), [(99, False), (100, False), (101, True)])
@pytest.mark.parametrize("is_held", [True, False])
def test_a_soft_limit_marks_the_calls_behind_it_and_refuses_none(used: int, *, over: bool, is_held: bool) -> None:
    budget = limit(None, soft_limit=100)
    assert one(want_of(), budget, **{"held" if is_held else "settled": used}) == Hold(30, over_soft_limit=over)


def test_the_calls_of_a_batch_share_what_is_left_the_first_come_first() -> None:
    spent = {account: Spent() for account in accounts_of("acme", "north")}
    verdicts = decide([want_of(), want_of(), want_of(), want_of(least_max_tokens=1)], [limit(121)], spent)
    assert verdicts == [Hold(30), Hold(30), Shortfall(limit(121), may_pass=True), Hold(1)]
    assert spent["acme", "", Period.DAY].held == {Unit.NANODOLLARS: 121, Unit.TOKENS: 121}
