"""What was spent of each period, and on what. It must not know who asks: whoever gives the connection decides that.

Amounts are whole nano-dollars or tokens. A call belongs to the day and the month (UTC) in which it was intended.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Any

from sqlalchemy import Connection, text

from penstock.money.budgets import CALENDAR, Budget, Period, Unit, list_budgets
from penstock.schemas import TOKEN_CLASSES, NanoDollars, Usage

SHORTEST_FOR_A_FORECAST = timedelta(minutes=1)
MICROSECOND = timedelta(microseconds=1)


class State(StrEnum):
    """How used and held together stand to the limits.

    `soft`: above the soft limit, so the next call is marked. `hard`: at the hard limit, so not one unit more fits.
    """

    OK = "ok"
    SOFT = "soft"
    HARD = "hard"


class By(StrEnum):
    """What a breakdown has a line for: a UTC day, a tier, a prompt whatever its version, a deployment by its name."""

    DAY = "day"
    TIER = "tier"
    PROMPT = "prompt"
    MODEL = "model"


@dataclass(frozen=True)
class PeriodUsage:
    """What a tenant, or a project of it, has spent of the current day or month, in one unit.

    `used` is what closed calls came to, `held` the upper bounds of open ones. `forecast` is `used` at the end of the
    period if it goes on as it has so far, rounded up; None in the first minute. A limit of None is none.
    """

    tenant: str
    project: str
    period: Period
    unit: Unit
    starts: datetime
    ends: datetime
    used: int
    held: int
    soft_limit: int | None
    hard_limit: int | None
    state: State
    forecast: int | None


@dataclass(frozen=True)
class UsageLine:
    """What the calls of one day, tier, prompt or model came to, corrections included.

    `open_calls` have not ended, `unknown_calls` have, and nobody knows how: both cost their upper bound. `bound_tokens`
    is that bound in tokens, which belong to no class yet; also where a provider has told the cost alone.
    """

    key: str
    calls: int
    open_calls: int
    unknown_calls: int
    usage: Usage
    bound_tokens: int
    nanodollars: NanoDollars


SPENT = text("""
    SELECT tenant, project, period, starts, settled_nanodollars, held_nanodollars, settled_tokens, held_tokens
    FROM spending
    WHERE ((period = 'day' AND starts = :day) OR (period = 'month' AND starts = :month))
        AND (CAST(:tenant AS text) IS NULL OR tenant = :tenant)
""")

IS_KNOWN = text("""
    SELECT EXISTS (SELECT 1 FROM jobs WHERE tenant = :tenant)
        OR EXISTS (SELECT 1 FROM budgets WHERE tenant = :tenant)
        OR EXISTS (SELECT 1 FROM spending WHERE tenant = :tenant)
""")

BREAKDOWN = """
    WITH calls AS (
        SELECT call_id, {key} AS key, coalesce(upper_bound_tokens, 0) AS upper_bound_tokens,
            state = 'intent' AS is_open, state = 'unknown' AND NOT EXISTS (
                SELECT 1 FROM ledger_corrections WHERE ledger_corrections.call_id = ledger.call_id) AS is_unknown,
            state = 'intent' OR (state = 'unknown' AND NOT EXISTS (SELECT 1 FROM ledger_corrections
                WHERE ledger_corrections.call_id = ledger.call_id AND has_usage)) AS is_bounded
        FROM ledger
        WHERE (CAST(:tenant AS text) IS NULL OR tenant = :tenant) AND intended_at >= :since
            AND (CAST(:until AS timestamptz) IS NULL OR intended_at < :until)
    ), counts AS (
        SELECT key, count(*) AS calls, count(*) FILTER (WHERE is_open) AS open_calls,
            count(*) FILTER (WHERE is_unknown) AS unknown_calls,
            coalesce(sum(upper_bound_tokens) FILTER (WHERE is_bounded), 0)::bigint AS bound_tokens
        FROM calls GROUP BY key
    ), amounts AS (
        SELECT key, sum(nanodollars)::bigint AS nanodollars, sum(input_tokens)::bigint AS input_tokens,
            sum(cached_input_tokens)::bigint AS cached_input_tokens,
            sum(cache_write_tokens)::bigint AS cache_write_tokens, sum(output_tokens)::bigint AS output_tokens,
            sum(reasoning_tokens)::bigint AS reasoning_tokens
        FROM calls JOIN ledger_amounts USING (call_id) GROUP BY key
    )
    SELECT * FROM counts JOIN amounts USING (key) ORDER BY {order}
"""

DEAREST_FIRST = "nanodollars DESC, key"
KEYS = {
    By.DAY: ("to_char(intended_at AT TIME ZONE 'UTC', 'YYYY-MM-DD')", "key"),
    By.TIER: ("tier", DEAREST_FIRST),
    By.PROMPT: ("prompt_id", DEAREST_FIRST),
    By.MODEL: ("deployment", DEAREST_FIRST),
}
BREAKDOWNS = {by: text(BREAKDOWN.replace("{key}", key).replace("{order}", order)) for by, (key, order) in KEYS.items()}


def is_known(connection: Connection, tenant: str) -> bool:
    """Tell whether a tenant ever had a job, a budget, or anything spent."""
    return bool(connection.execute(IS_KNOWN, {"tenant": tenant}).scalar_one())


def standing(connection: Connection, tenant: str | None, now: datetime) -> list[PeriodUsage]:
    """Say how a tenant stands, or every one: by project, the whole tenant ('') first, then period, then unit.

    A project is there if it has spent something in the current month or has a budget, and so is a tenant that was not
    named; one that was named always is.
    """
    starts = {period: start_of(period, now) for period in CALENDAR}
    values = {"tenant": tenant, "day": starts[Period.DAY].date(), "month": starts[Period.MONTH].date()}
    spent = {(row.tenant, row.project, row.period): row for row in connection.execute(SPENT, values)}
    budgets = {
        (budget.tenant, budget.project, budget.period, budget.unit): budget
        for budget in list_budgets(connection, tenant)
    }
    owners = {key[:2] for key in (*spent, *budgets)}
    tenants = {owner for owner, _ in owners} if tenant is None else {tenant}
    return [
        _standing(
            (owner, project, period, unit),
            now,
            spent.get((owner, project, period)),
            budgets.get((owner, project, period, unit)),
        )
        for owner, project in sorted(owners | {(owner, "") for owner in tenants})
        for period in CALENDAR
        for unit in Unit
    ]


def breakdown(
    connection: Connection, tenant: str | None, by: By, since: datetime, until: datetime | None = None
) -> list[UsageLine]:
    """Add up the calls of a tenant, or of all, that were intended from `since` on and before `until`.

    Days come in their order, everything else with the dearest first.
    """
    values = {"tenant": tenant, "since": since, "until": until}
    return [
        UsageLine(
            key=row.key,
            calls=row.calls,
            open_calls=row.open_calls,
            unknown_calls=row.unknown_calls,
            usage=Usage(**{name: getattr(row, name) for name in TOKEN_CLASSES}),
            bound_tokens=row.bound_tokens,
            nanodollars=row.nanodollars,
        )
        for row in connection.execute(BREAKDOWNS[by], values)
    ]


def start_of(period: Period, now: datetime) -> datetime:
    """Give the midnight UTC at which the current day or month began."""
    today = now.astimezone(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    return today if period is Period.DAY else today.replace(day=1)


def end_of(period: Period, starts: datetime) -> datetime:
    """Give the midnight UTC at which the next day or month begins."""
    return starts + timedelta(days=1) if period is Period.DAY else (starts + timedelta(days=32)).replace(day=1)


def worst(states: Iterable[State]) -> State:
    """Give the gravest of several states; none at all are ok."""
    return max(states, key=list(State).index, default=State.OK)


def _standing(key: tuple[str, str, Period, Unit], now: datetime, spent: Any, budget: Budget | None) -> PeriodUsage:
    tenant, project, period, unit = key
    used = getattr(spent, f"settled_{unit}", 0)
    held = getattr(spent, f"held_{unit}", 0)
    starts = start_of(period, now)
    ends = end_of(period, starts)
    return PeriodUsage(
        tenant=tenant,
        project=project,
        period=period,
        unit=unit,
        starts=starts,
        ends=ends,
        used=used,
        held=held,
        soft_limit=budget.soft_limit if budget else None,
        hard_limit=budget.hard_limit if budget else None,
        state=_state(used + held, budget),
        forecast=_forecast(used, starts, ends, now),
    )


def _state(taken: int, budget: Budget | None) -> State:
    if budget is None:
        return State.OK
    if budget.hard_limit is not None and taken >= budget.hard_limit:
        return State.HARD
    return State.SOFT if budget.soft_limit is not None and taken > budget.soft_limit else State.OK


def _forecast(used: int, starts: datetime, ends: datetime, now: datetime) -> int | None:
    """Extrapolate linearly, in whole numbers."""
    elapsed = now - starts
    if elapsed < SHORTEST_FOR_A_FORECAST:
        return None
    return -(-used * ((ends - starts) // MICROSECOND) // (elapsed // MICROSECOND))
