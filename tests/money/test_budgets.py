"""Budgets as rows: set, changed, removed and listed, and what a change does to the very next call."""

from dataclasses import replace
from typing import Any

import pytest
from sqlalchemy import Connection, Engine
from sqlalchemy.exc import IntegrityError

from penstock.errors import InvalidRequestError
from penstock.money import ledger, spending
from penstock.money.budgets import (
    CALENDAR,
    MOST,
    Budget,
    Kept,
    OnExhausted,
    Period,
    Unit,
    budgets_of,
    list_budgets,
    remove_budget,
    set_budget,
)
from penstock.money.holds import Hold, Shortfall
from penstock.money.ledger import Verdict
from tests.jobs import rows
from tests.jobs.rows import UPPER_BOUND, intent


def budget(hard_limit: int | None = UPPER_BOUND, **changes: Any) -> Budget:
    """Give a budget of acme that pays for exactly one call."""
    given = {"tenant": "acme", "period": Period.MONTH, "unit": Unit.NANODOLLARS, "hard_limit": hard_limit}
    return Budget(**given | changes)


def keep(engine: Engine, *budgets: Budget) -> None:
    with engine.begin() as connection:
        for each in budgets:
            set_budget(connection, each)


def remove(engine: Engine, of: Budget) -> bool:
    with engine.begin() as connection:
        return remove_budget(connection, of.tenant, of.project, of.period, of.unit)


def listed(engine: Engine, tenant: str | None = None) -> list[Budget]:
    with engine.begin() as connection:
        return list_budgets(connection, tenant)


def intend(engine: Engine, **job: Any) -> Verdict:
    """Intend a call of a new job."""
    call = intent(rows.running_job(engine, **job))
    with engine.begin() as connection:
        return ledger.intend(connection, [call])[0]


@pytest.mark.parametrize("unit", Unit)
@pytest.mark.parametrize("period", CALENDAR)
@pytest.mark.parametrize("project", ["", "north"])
@pytest.mark.parametrize("limits", [(None, None), (0, None), (None, 0), (0, 0), (7, 7), (MOST, MOST)])
def test_a_budget_is_kept_as_it_was_set(
    engine: Engine, unit: Unit, period: Period, project: str, limits: tuple[int | None, int | None]
) -> None:
    given = Budget("acme", period, unit, project, *limits, OnExhausted.DEGRADE)
    keep(engine, given)
    assert listed(engine) == [given]


def test_a_budget_that_is_set_again_takes_the_place_of_the_one_before_whole(engine: Engine) -> None:
    others = [budget(period=Period.DAY), budget(unit=Unit.TOKENS), budget(project="north"), budget(tenant="beta")]
    keep(engine, *others, budget(9, soft_limit=5, on_exhausted=OnExhausted.DEGRADE))
    keep(engine, budget(None))
    assert listed(engine, "acme") == [others[0], budget(None), others[1], others[2]]
    assert listed(engine, "beta") == [others[3]]


def test_budgets_are_listed_by_tenant_project_period_and_unit(engine: Engine) -> None:
    expected = [
        Budget(tenant, period, unit, project)
        for tenant in ("acme", "beta")
        for project in ("", "north")
        for period in CALENDAR
        for unit in Unit
    ]
    keep(engine, *reversed(expected))
    assert listed(engine) == expected
    assert listed(engine, "beta") == expected[8:]
    assert listed(engine, "gamma") == []
    with engine.begin() as connection:
        assert budgets_of(connection, {"beta", "acme", "gamma"}, ()) == expected
        assert budgets_of(connection, (), ()) == []


@pytest.mark.parametrize(
    "other", [{"tenant": "beta"}, {"project": "north"}, {"period": Period.DAY}, {"unit": Unit.TOKENS}]
)
def test_only_the_budget_that_is_named_is_removed(engine: Engine, other: dict[str, Any]) -> None:
    stays = budget(**other)
    keep(engine, stays)
    assert not remove(engine, budget())
    keep(engine, budget())
    assert remove(engine, budget())
    assert not remove(engine, budget())
    assert listed(engine) == [stays]


@pytest.mark.parametrize(
    ("unit", "limits", "field", "reason"),
    [
        (Unit.NANODOLLARS, {"hard_limit": -1}, "hard_limit", "-$0.000000001 cannot be kept"),
        (Unit.TOKENS, {"hard_limit": -1}, "hard_limit", "-1 tokens cannot be kept"),
        (Unit.TOKENS, {"soft_limit": -1}, "soft_limit", "-1 tokens cannot be kept"),
        (Unit.NANODOLLARS, {"hard_limit": MOST + 1}, "hard_limit", "$9,223,372,036.854775808 cannot be kept"),
        (Unit.TOKENS, {"soft_limit": MOST + 1}, "soft_limit", "9,223,372,036,854,775,808 tokens cannot be kept"),
        (
            Unit.NANODOLLARS,
            {"soft_limit": 8 * 10**9, "hard_limit": 7 * 10**8},
            "soft_limit",
            "$8.00 is above the hard limit of $0.70",
        ),
        (
            Unit.TOKENS,
            {"soft_limit": 1000, "hard_limit": 0},
            "soft_limit",
            "1,000 tokens is above the hard limit of 0 tokens",
        ),
    ],
)
def test_limits_that_cannot_be_meant_are_refused_by_field(
    unit: Unit, limits: dict[str, Any], field: str, reason: str
) -> None:
    with pytest.raises(InvalidRequestError) as refused:
        Budget("acme", Period.DAY, unit, **limits)
    assert (refused.value.field, refused.value.reason) == (field, reason)
    assert refused.value.cure


@pytest.mark.parametrize("kept", [("soft_limit",), ("hard_limit",), ("on_exhausted",), ("hard_limit", "soft_limit")])
def test_what_is_kept_of_a_budget_stays_and_the_rest_is_changed(engine: Engine, kept: tuple[Kept, ...]) -> None:
    before = budget(9, soft_limit=5, on_exhausted=OnExhausted.DEGRADE)
    change = budget(8, soft_limit=6)
    keep(engine, before)
    with engine.begin() as connection:
        given = set_budget(connection, change, kept=kept)
    assert given == replace(change, **{name: getattr(before, name) for name in kept})
    assert listed(engine) == [given]


def test_a_budget_whose_limit_is_to_be_kept_must_be_there(engine: Engine) -> None:
    keep(engine, budget(9, unit=Unit.TOKENS))
    with pytest.raises(InvalidRequestError) as refused, engine.begin() as connection:
        set_budget(connection, budget(None, soft_limit=5), kept=["hard_limit"])
    assert (refused.value.field, refused.value.reason) == (
        "hard_limit",
        "acme has no budget in dollars a month to be changed",
    )
    assert listed(engine) == [budget(9, unit=Unit.TOKENS)]


def test_a_soft_limit_that_is_kept_must_not_be_above_the_new_hard_limit(engine: Engine) -> None:
    before = budget(9, soft_limit=5)
    keep(engine, before)
    with pytest.raises(InvalidRequestError) as refused, engine.begin() as connection:
        set_budget(connection, budget(4), kept=["soft_limit"])
    assert refused.value.field == "soft_limit"
    assert listed(engine) == [before]


def test_two_changes_of_one_budget_at_once_both_count(engine: Engine) -> None:
    keep(engine, budget(9, soft_limit=5))

    def degrade(connection: Connection) -> Budget:
        change = budget(None, on_exhausted=OnExhausted.DEGRADE)
        return set_budget(connection, change, kept=["hard_limit", "soft_limit"])

    with engine.begin() as holder:
        set_budget(holder, budget(8), kept=["soft_limit", "on_exhausted"])
        with rows.behind(engine, degrade) as changed:
            holder.commit()
    assert changed.result() == budget(8, soft_limit=5, on_exhausted=OnExhausted.DEGRADE)


@pytest.mark.parametrize("column", ["soft_limit", "hard_limit"])
def test_a_negative_limit_is_refused_by_the_table_too(engine: Engine, column: str) -> None:
    keep(engine, budget())
    with pytest.raises(IntegrityError):
        rows.execute(engine, f"UPDATE budgets SET {column} = -1")
    assert listed(engine) == [budget()]


@pytest.mark.parametrize("unit", Unit)
@pytest.mark.parametrize("period", CALENDAR)
@pytest.mark.parametrize("project", ["", "north"])
def test_a_change_acts_on_the_next_call(engine: Engine, unit: Unit, period: Period, project: str) -> None:
    one = budget(unit=unit, period=period, project=project)  # a call of UPPER_BOUND nano-dollars has as many tokens
    seen = []
    changes: list[int | None] = [0, UPPER_BOUND, UPPER_BOUND + 1, 2 * UPPER_BOUND, 1, None]
    for hard_limit in changes:
        keep(engine, replace(one, hard_limit=hard_limit))
        seen.append(isinstance(intend(engine, project=project), Hold))
    assert seen == [False, True, False, True, False, True]
    keep(engine, replace(one, hard_limit=3 * UPPER_BOUND))
    assert intend(engine, project=project) == Shortfall(replace(one, hard_limit=3 * UPPER_BOUND), may_pass=True)
    remove(engine, one)
    assert intend(engine, project=project) == Hold(100)


def test_a_soft_limit_acts_on_the_next_call(engine: Engine) -> None:
    seen = []
    for soft_limit in (0, UPPER_BOUND - 1, 2 * UPPER_BOUND, None):
        keep(engine, budget(None, soft_limit=soft_limit))
        seen.append(intend(engine))
    assert seen == [Hold(100), Hold(100, over_soft_limit=True), Hold(100), Hold(100)]


@pytest.mark.parametrize("other", [{"tenant": "beta"}, {"project": "north"}, {"tenant": "beta", "project": "north"}])
def test_a_call_is_not_held_back_by_what_is_somebody_elses(engine: Engine, other: dict[str, Any]) -> None:
    keep(engine, budget(0, **other))
    assert intend(engine) == Hold(100)
    assert intend(engine, **other) == Shortfall(budget(0, **other), may_pass=False)


def test_a_project_is_held_back_by_its_tenants_budget_and_by_its_own(engine: Engine) -> None:
    whole, part = budget(2 * UPPER_BOUND), budget(UPPER_BOUND, project="north")
    keep(engine, whole, part)
    north, south = {"project": "north"}, {"project": "south"}
    assert [intend(engine, **north), intend(engine, **north)] == [Hold(100), Shortfall(part, may_pass=True)]
    assert [intend(engine, **south), intend(engine, **south)] == [Hold(100), Shortfall(whole, may_pass=True)]


def test_a_change_acts_on_a_call_that_waited_for_another_meanwhile(engine: Engine) -> None:
    keep(engine, budget(2 * UPPER_BOUND))
    first, second = intent(rows.running_job(engine)), intent(rows.running_job(engine))

    def intend_second(connection: Connection) -> Verdict:
        return ledger.intend(connection, [second])[0]

    with engine.begin() as holder:
        assert ledger.intend(holder, [first]) == [Hold(100)]
        with rows.behind(engine, intend_second) as verdict:
            keep(engine, budget(UPPER_BOUND))
            holder.commit()
    assert verdict.result() == Shortfall(budget(UPPER_BOUND), may_pass=True)


def test_a_budget_that_is_changed_does_not_wait_for_a_call_that_is_being_written_down(engine: Engine) -> None:
    keep(engine, budget())
    with engine.begin() as holder:
        spending.lock(holder, {("acme", "", None)})
        with engine.begin() as connection:
            connection.exec_driver_sql("SET LOCAL lock_timeout = '5s'")
            set_budget(connection, budget(5))
    assert listed(engine) == [budget(5)]
