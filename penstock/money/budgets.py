"""What a tenant may spend. It must not know what has been spent, or what a call costs.

A budget holds for a tenant or one of its projects, for a day or a month (UTC), in nano-dollars or in tokens. It is a
row, so that a change acts on the next call of every process. No row, or no hard limit, is any amount; zero is nothing.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any

from sqlalchemy import Connection, text

from penstock.errors import InvalidRequestError

MOST = 2**63 - 1


class Period(StrEnum):
    """For how long a budget lasts; both begin at midnight UTC."""

    DAY = "day"
    MONTH = "month"


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
                    field, f"{limit} {self.unit} cannot be kept", "use a number from 0 to 2^63 - 1"
                )
        if self.soft_limit is not None and self.hard_limit is not None and self.soft_limit > self.hard_limit:
            raise InvalidRequestError(
                "soft_limit",
                f"{self.soft_limit} is above the hard limit of {self.hard_limit}",
                "warn before the end, not behind it",
            )


SET = text("""
    INSERT INTO budgets (tenant, project, period, unit, soft_limit, hard_limit, on_exhausted)
    VALUES (:tenant, :project, :period, :unit, :soft_limit, :hard_limit, :on_exhausted)
    ON CONFLICT (tenant, project, period, unit) DO UPDATE SET soft_limit = excluded.soft_limit,
        hard_limit = excluded.hard_limit, on_exhausted = excluded.on_exhausted
""")

REMOVE = text("""
    DELETE FROM budgets WHERE tenant = :tenant AND project = :project AND period = :period AND unit = :unit
""")

LIST = text("""
    SELECT tenant, project, period, unit, soft_limit, hard_limit, on_exhausted FROM budgets
    WHERE CAST(:tenants AS text[]) IS NULL OR tenant = ANY(CAST(:tenants AS text[]))
    ORDER BY tenant, project, period, unit
""")


def set_budget(connection: Connection, budget: Budget) -> None:
    """Set a budget, or change it."""
    connection.execute(SET, asdict(budget))


def remove_budget(connection: Connection, tenant: str, project: str, period: Period, unit: Unit) -> bool:
    """Remove a budget, which leaves any amount; tell whether there was one."""
    key = {"tenant": tenant, "project": project, "period": period, "unit": unit}
    return connection.execute(REMOVE, key).rowcount > 0


def list_budgets(connection: Connection, tenant: str | None = None) -> list[Budget]:
    """List the budgets of a tenant, or of all."""
    return budgets_of(connection, None if tenant is None else [tenant])


def budgets_of(connection: Connection, tenants: Sequence[str] | None) -> list[Budget]:
    """List the budgets of several tenants, or of all."""
    rows = connection.execute(LIST, {"tenants": None if tenants is None else list(tenants)})
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
