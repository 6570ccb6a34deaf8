"""What a tenant may spend. It must not know what has been spent, or what a call costs.

A budget holds for a tenant or one of its projects, for a day or a month (UTC), in nano-dollars or in tokens. It is a
row, so that a change acts on the next call of every process. No row, or no hard limit, is any amount; zero is nothing.
What a batch may cost stands in its own row, and is a budget whose project is the batch's id.
"""

from collections.abc import Collection
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any, Literal
from uuid import UUID

from sqlalchemy import Connection, text

from penstock.errors import InvalidRequestError
from penstock.schemas import dollars

MOST = 2**63 - 1
Kept = Literal["soft_limit", "hard_limit", "on_exhausted"]


class Period(StrEnum):
    """For how long a budget lasts; days and months begin at midnight UTC, that of a batch is its whole life."""

    DAY = "day"
    MONTH = "month"
    BATCH = "batch"


CALENDAR = (Period.DAY, Period.MONTH)


class Unit(StrEnum):
    """What a budget counts."""

    NANODOLLARS = "nanodollars"
    TOKENS = "tokens"


class OnExhausted(StrEnum):
    """What becomes of a job that a hard limit leaves no room for: it is dead, or gets a summary without a model."""

    REFUSE = "refuse"
    DEGRADE = "degrade"


@dataclass(frozen=True)
class Budget:
    """One limit of a tenant, or of a project of it. Raises InvalidRequestError for limits that cannot be meant."""

    tenant: str
    period: Period
    unit: Unit
    project: str = ""
    soft_limit: int | None = None
    hard_limit: int | None = None
    on_exhausted: OnExhausted = OnExhausted.REFUSE

    def __post_init__(self) -> None:
        """Check the limits."""
        for field, limit in (("soft_limit", self.soft_limit), ("hard_limit", self.hard_limit)):
            if limit is not None and not 0 <= limit <= MOST:
                raise InvalidRequestError(
                    field,
                    f"{self.written(limit)} cannot be kept",
                    f"use an amount from {self.written(0)} to {self.written(MOST)}",
                )
        if self.soft_limit is not None and self.hard_limit is not None and self.soft_limit > self.hard_limit:
            raise InvalidRequestError(
                "soft_limit",
                f"{self.written(self.soft_limit)} is above the hard limit of {self.written(self.hard_limit)}",
                "lower the one, raise the other, or have no soft limit",
            )

    def written(self, amount: int) -> str:
        """Write an amount of what it counts for people."""
        return dollars(amount) if self.unit is Unit.NANODOLLARS else f"{amount:,} tokens"


CHANGES = """
    soft_limit = CASE WHEN 'soft_limit' = ANY(:kept) THEN budgets.soft_limit ELSE CAST(:soft_limit AS bigint) END,
    hard_limit = CASE WHEN 'hard_limit' = ANY(:kept) THEN budgets.hard_limit ELSE CAST(:hard_limit AS bigint) END,
    on_exhausted = CASE WHEN 'on_exhausted' = ANY(:kept) THEN budgets.on_exhausted ELSE :on_exhausted END
"""

SET = text(f"""
    INSERT INTO budgets (tenant, project, period, unit, soft_limit, hard_limit, on_exhausted)
    VALUES (:tenant, :project, :period, :unit, :soft_limit, :hard_limit, :on_exhausted)
    ON CONFLICT (tenant, project, period, unit) DO UPDATE SET {CHANGES}
    RETURNING *
""")  # noqa: S608 - no value is interpolated

CHANGE = text(f"""
    UPDATE budgets SET {CHANGES}
    WHERE tenant = :tenant AND project = :project AND period = :period AND unit = :unit
    RETURNING *
""")  # noqa: S608 - no value is interpolated

REMOVE = text("""
    DELETE FROM budgets WHERE tenant = :tenant AND project = :project AND period = :period AND unit = :unit
""")

LIST = text("""
    SELECT tenant, project, period, unit, soft_limit, hard_limit, on_exhausted FROM budgets
    WHERE CAST(:tenants AS text[]) IS NULL OR tenant = ANY(CAST(:tenants AS text[]))
    ORDER BY tenant, project, period, unit
""")

CAPS = text("""
    SELECT tenant, id::text AS project, 'batch' AS period, 'nanodollars' AS unit, NULL AS soft_limit,
        max_nanodollars AS hard_limit, 'refuse' AS on_exhausted
    FROM batches WHERE id = ANY(CAST(:batches AS uuid[])) AND max_nanodollars IS NOT NULL
""")


def set_budget(connection: Connection, budget: Budget, *, kept: Collection[Kept] = ()) -> Budget:
    """Set a budget, or change it but for the fields `kept`, and give what it is now.

    Raises InvalidRequestError for a soft limit that is above the hard one, and where there is no hard one to be kept.
    """
    statement = CHANGE if "hard_limit" in kept else SET
    row = connection.execute(statement, asdict(budget) | {"kept": list(kept)}).one_or_none()
    if row is None:
        whose = f"{budget.tenant} {budget.project}".strip()
        unit = budget.unit.removeprefix("nano")
        raise InvalidRequestError(
            "hard_limit", f"{whose} has no budget in {unit} a {budget.period} to be changed", "give its hard limit too"
        )
    return _budget(row)


def remove_budget(connection: Connection, tenant: str, project: str, period: Period, unit: Unit) -> bool:
    """Remove a budget, which leaves any amount; tell whether there was one."""
    key = {"tenant": tenant, "project": project, "period": period, "unit": unit}
    return connection.execute(REMOVE, key).rowcount > 0


def list_budgets(connection: Connection, tenant: str | None = None) -> list[Budget]:
    """List the budgets of a tenant, or of all, for days and months."""
    return [_budget(row) for row in connection.execute(LIST, {"tenants": None if tenant is None else [tenant]})]


def budgets_of(connection: Connection, tenants: Collection[str], batches: Collection[UUID]) -> list[Budget]:
    """List what limits calls of these tenants, for these batches: their budgets, and what each batch may cost."""
    rows = [*connection.execute(LIST, {"tenants": list(tenants)})]
    if batches:
        rows += connection.execute(CAPS, {"batches": [str(batch_id) for batch_id in batches]})
    return [_budget(row) for row in rows]


def _budget(row: Any) -> Budget:
    return Budget(
        tenant=row.tenant,
        period=Period(row.period),
        unit=Unit(row.unit),
        project=row.project,
        soft_limit=row.soft_limit,
        hard_limit=row.hard_limit,
        on_exhausted=OnExhausted(row.on_exhausted),
    )
