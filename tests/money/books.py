"""What `spending` must say, added up again from the ledger. It must not use the rooms that it is to check."""

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import astuple, dataclass
from datetime import UTC, date, datetime
from typing import Any
from uuid import UUID

from sqlalchemy import Engine, text

from penstock.money.budgets import Budget, Unit
from penstock.schemas import TOKEN_CLASSES

LEDGER = text("""
    SELECT ledger.*, count(later.call_id) FILTER (WHERE has_usage) AS knowing,
        coalesce(sum(later.nanodollars), 0)::bigint AS later_nanodollars,
        coalesce(sum(later.input_tokens + later.cached_input_tokens + later.cache_write_tokens + later.output_tokens
            + later.reasoning_tokens), 0)::bigint AS later_tokens
    FROM ledger LEFT JOIN ledger_corrections AS later USING (call_id) GROUP BY ledger.call_id
""")
SPENDING = text("SELECT * FROM spending")
BOOK = text("INSERT INTO spending VALUES (:tenant, :project, :period, :starts, :a, :b, :c, :d)")

FIRST_OF_BATCH = date(2000, 1, 1)
Key = tuple[str, str, str, date]
"""A tenant, a project or '', a period, and its first day."""


@dataclass
class Sums:
    """A row of `spending`, its columns in their order."""

    settled_nanodollars: int = 0
    held_nanodollars: int = 0
    settled_tokens: int = 0
    held_tokens: int = 0

    def used(self, unit: Unit) -> int:
        if unit is Unit.TOKENS:
            return self.settled_tokens + self.held_tokens
        return self.settled_nanodollars + self.held_nanodollars

    @property
    def held(self) -> tuple[int, int]:
        return self.held_nanodollars, self.held_tokens


Books = dict[Key, Sums]


def booked(engine: Engine) -> Books:
    """Read what `spending` says."""
    with engine.connect() as connection:
        return {(row[0], row[1], row[2], row[3]): Sums(*row[4:]) for row in connection.execute(SPENDING)}


def recomputed(engine: Engine) -> Books:
    """Add up the ledger and its corrections, call by call."""
    found: Books = defaultdict(Sums)
    with engine.connect() as connection:
        for call in connection.execute(LEDGER).mappings():
            for key in keys_of(call["tenant"], call["project"], call["intended_at"], call["batch_id"]):
                _add(found[key], call)
    return found


def _add(sums: Sums, call: Mapping[Any, Any]) -> None:
    bound_tokens = call["upper_bound_tokens"]
    if call["state"] == "intent":
        if bound_tokens is not None:
            sums.held_nanodollars += call["upper_bound_nanodollars"]
            sums.held_tokens += bound_tokens
        return
    sums.settled_nanodollars += call["nanodollars"] + call["later_nanodollars"]
    if call["state"] == "unknown" and not call["knowing"]:
        sums.settled_tokens += bound_tokens or 0
    else:
        sums.settled_tokens += sum(call[name] for name in TOKEN_CLASSES) + call["later_tokens"]


def assert_balanced(engine: Engine) -> Books:
    """Check that each row says what the ledger says, and that nothing of the ledger has no row; give the rows."""
    says, sums = booked(engine), recomputed(engine)
    assert says == {key: sums.get(key, Sums()) for key in says}
    assert {key for key, its in sums.items() if its != Sums()} <= set(says)
    assert all(part >= 0 for its in says.values() for part in astuple(its))
    return says


def keys_of(tenant: str, project: str, at: datetime, batch_id: UUID | None = None) -> list[Key]:
    """Name the rows that a call is booked on."""
    day = at.astimezone(UTC).date()
    of_batch = [] if batch_id is None else [(tenant, str(batch_id), "batch", FIRST_OF_BATCH)]
    return of_batch + [
        (tenant, whose, period, starts)
        for whose in sorted({"", project})
        for period, starts in (("day", day), ("month", day.replace(day=1)))
    ]


def move_call(engine: Engine, call_id: object, at: datetime) -> None:
    """Let an open call have been intended at another time, and everything have been booked so from the beginning."""
    with engine.begin() as connection:
        statement = text("UPDATE ledger SET intended_at = :at WHERE call_id = :call_id AND state = 'intent'")
        assert connection.execute(statement, {"at": at, "call_id": call_id}).rowcount == 1
    sums = recomputed(engine)
    with engine.begin() as connection:
        connection.execute(text("DELETE FROM spending"))
        for (tenant, project, period, starts), its in sums.items():
            names = {"tenant": tenant, "project": project, "period": period, "starts": starts}
            connection.execute(BOOK, names | dict(zip("abcd", astuple(its), strict=True)))


def used_of(books: Books, budget: Budget, today: date) -> int:
    """Give what is used of a budget in the period that `today` is in."""
    starts = today if budget.period == "day" else today.replace(day=1)
    return books.get((budget.tenant, budget.project, str(budget.period), starts), Sums()).used(budget.unit)
