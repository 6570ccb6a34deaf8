"""How much of its budgets a call may hold, decided before it is made. It must not know how anything is stored.

Pure: `spent` says what is settled and held, `Want` what a call could cost, and the answer is a hold or a shortfall. A
hold is the upper bound of what the call can cost, so that what is settled and held together keeps to a hard limit.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from penstock.money.budgets import Budget, Period, Unit
from penstock.money.prices import UpperBound

Amounts = dict[Unit, int]
Account = tuple[str, str, Period]
"""A tenant, a project of it or '', and the current day or month."""


@dataclass
class Spent:
    """What an account has spent in its current period."""

    settled: Amounts = field(default_factory=lambda: dict.fromkeys(Unit, 0))
    held: Amounts = field(default_factory=lambda: dict.fromkeys(Unit, 0))

    def used(self, unit: Unit) -> int:
        """Give what is settled and held together."""
        return self.settled[unit] + self.held[unit]


@dataclass(frozen=True)
class Want:
    """A call that is wanted: of whom, what it can cost, and how far its `max_tokens` may be cut to fit a budget."""

    tenant: str
    project: str
    bound: UpperBound
    max_tokens: int
    least_max_tokens: int


@dataclass(frozen=True)
class Hold:
    """The right to make a call with `max_tokens`; `over_soft_limit` says that a soft limit had been passed before."""

    max_tokens: int
    over_soft_limit: bool = False


@dataclass(frozen=True)
class Shortfall:
    """A hard limit that leaves no room; `may_pass` where other calls hold what would be enough and may give it back."""

    budget: Budget
    may_pass: bool


def accounts_of(tenant: str, project: str) -> list[Account]:
    """Name the accounts that a call is booked on: its tenant's and its project's, by day and by month."""
    projects = dict.fromkeys(("", project))
    return [(tenant, whose, period) for whose in projects for period in Period]


def decide(wants: Sequence[Want], budgets: Iterable[Budget], spent: Mapping[Account, Spent]) -> list[Hold | Shortfall]:
    """Give each call in turn what is left for it, and book it in `spent`."""
    limits: dict[Account, list[Budget]] = {}
    for budget in budgets:
        limits.setdefault((budget.tenant, budget.project, budget.period), []).append(budget)
    return [_decide(want, limits, spent) for want in wants]


def _decide(want: Want, limits: Mapping[Account, list[Budget]], spent: Mapping[Account, Spent]) -> Hold | Shortfall:
    accounts = accounts_of(want.tenant, want.project)
    max_tokens, over_soft_limit = want.max_tokens, False
    for account in accounts:
        for budget in limits.get(account, ()):
            used = spent[account].used(budget.unit)
            if budget.soft_limit is not None and used > budget.soft_limit:
                over_soft_limit = True
            if budget.hard_limit is None:
                continue
            affordable = _affordable(want.bound, budget.unit, budget.hard_limit - used)
            if affordable < want.least_max_tokens:
                free_of_holds = budget.hard_limit - spent[account].settled[budget.unit]
                may_pass = _affordable(want.bound, budget.unit, free_of_holds) >= want.least_max_tokens
                return Shortfall(budget, may_pass)
            max_tokens = min(max_tokens, affordable)
    for account in accounts:
        for unit, amount in _amounts(want.bound, max_tokens).items():
            spent[account].held[unit] += amount
    return Hold(max_tokens, over_soft_limit)


def _affordable(bound: UpperBound, unit: Unit, room: int) -> int:
    """Give the largest `max_tokens` that `room` can pay."""
    return bound.max_tokens_within(room) if unit is Unit.NANODOLLARS else room - bound.prompt_tokens


def _amounts(bound: UpperBound, max_tokens: int) -> Amounts:
    return {Unit.NANODOLLARS: bound.nanodollars(max_tokens), Unit.TOKENS: bound.tokens(max_tokens)}
