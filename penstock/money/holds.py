"""How much of its budgets a call may hold, decided before it is made. It must not know how anything is stored.

Pure: `spent` says what is settled and held, `Want` what a call could cost, and the answer is a hold or a shortfall. A
hold is the upper bound of what the call can cost, so that what is settled and held together keeps to a hard limit.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from uuid import UUID

from penstock.money.budgets import CALENDAR, Budget, OnExhausted, Period, Unit
from penstock.money.prices import UpperBound

Amounts = dict[Unit, int]
Account = tuple[str, str, Period]
"""A tenant, a project of it or '', and the current day or month; or a tenant, the id of a batch, and Period.BATCH."""


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
    batch_id: UUID | None = None


@dataclass(frozen=True)
class Hold:
    """The right to make a call with `max_tokens`; `over_soft_limit` says that a soft limit had been passed before."""

    max_tokens: int
    over_soft_limit: bool = False


@dataclass(frozen=True)
class Shortfall:
    """A hard limit that leaves no room; `may_pass` where other calls hold what would be enough and may give it back.

    `room` is what is not settled of the limit, in its unit: no call that needs more can be made.
    """

    budget: Budget
    may_pass: bool
    room: int = field(default=0, compare=False)


def accounts_of(tenant: str, project: str, batch_id: UUID | None = None) -> list[Account]:
    """Name the accounts that a call is booked on: its tenant's and its project's by day and by month, its batch's."""
    projects = dict.fromkeys(("", project))
    accounts = [(tenant, whose, period) for whose in projects for period in CALENDAR]
    return accounts if batch_id is None else [*accounts, (tenant, str(batch_id), Period.BATCH)]


def decide(wants: Sequence[Want], budgets: Iterable[Budget], spent: Mapping[Account, Spent]) -> list[Hold | Shortfall]:
    """Give each call in turn what is left for it, and book it in `spent`."""
    limits: dict[Account, list[Budget]] = {}
    for budget in budgets:
        limits.setdefault((budget.tenant, budget.project, budget.period), []).append(budget)
    return [_decide(want, limits, spent) for want in wants]


def _decide(want: Want, limits: Mapping[Account, list[Budget]], spent: Mapping[Account, Spent]) -> Hold | Shortfall:
    accounts = accounts_of(want.tenant, want.project, want.batch_id)
    own = [(budget, spent[account]) for account in accounts for budget in limits.get(account, ())]
    shortfalls = [found for budget, so_far in own if (found := _shortfall(want, budget, so_far)) is not None]
    if shortfalls:
        return min(shortfalls, key=_leniency)
    max_tokens = min([want.max_tokens, *(_left(want, budget, so_far) for budget, so_far in own)])
    over_soft_limit = any(
        budget.soft_limit is not None and so_far.used(budget.unit) > budget.soft_limit for budget, so_far in own
    )
    for account in accounts:
        for unit, amount in _amounts(want.bound, max_tokens).items():
            spent[account].held[unit] += amount
    return Hold(max_tokens, over_soft_limit)


def _leniency(found: Shortfall) -> tuple[bool, bool]:
    """Order shortfalls: one that stays decides, and of those one that refuses."""
    return found.may_pass, found.budget.on_exhausted is OnExhausted.DEGRADE


def _shortfall(want: Want, budget: Budget, so_far: Spent) -> Shortfall | None:
    if _left(want, budget, so_far) >= want.least_max_tokens:
        return None
    settled_alone = Spent(settled=so_far.settled)
    may_pass = _left(want, budget, settled_alone) >= want.least_max_tokens
    return Shortfall(budget, may_pass, room=(budget.hard_limit or 0) - so_far.settled[budget.unit])


def _left(want: Want, budget: Budget, so_far: Spent) -> int:
    """Give the largest `max_tokens` that a budget can still pay."""
    if budget.hard_limit is None:
        return want.max_tokens
    return _affordable(want.bound, budget.unit, budget.hard_limit - so_far.used(budget.unit))


def _affordable(bound: UpperBound, unit: Unit, room: int) -> int:
    """Give the largest `max_tokens` that `room` can pay."""
    return bound.max_tokens_within(room) if unit is Unit.NANODOLLARS else room - bound.prompt_tokens


def _amounts(bound: UpperBound, max_tokens: int) -> Amounts:
    return {Unit.NANODOLLARS: bound.nanodollars(max_tokens), Unit.TOKENS: bound.tokens(max_tokens)}
