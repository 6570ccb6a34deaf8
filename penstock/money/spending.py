"""What was spent in each day and month, and for each batch, kept up with the ledger in its own transactions.

One row a tenant (or project), period and first day; or one a batch, whatever the day. It must not know a limit. Rows
are always taken in the order of their key: two cannot deadlock, whatever else they wait for.
"""

import json
from collections.abc import Iterable
from uuid import UUID

from sqlalchemy import Connection, text

from penstock.money.budgets import Period, Unit
from penstock.money.holds import Account, Spent, accounts_of

FIRST_OF_BATCH = "DATE '2000-01-01'"
"""The first day of a batch's account: any that is always the same."""

MOVE = f"""
    deltas AS (
        SELECT tenant, account.project, period, starts,
            sum(settled_nanodollars)::bigint AS settled_nanodollars, sum(held_nanodollars)::bigint AS held_nanodollars,
            sum(settled_tokens)::bigint AS settled_tokens, sum(held_tokens)::bigint AS held_tokens
        FROM moved CROSS JOIN LATERAL (
            SELECT whose.project, period, date_trunc(period, intended_at AT TIME ZONE 'UTC')::date AS starts
            FROM (SELECT '' AS project UNION SELECT moved.project) AS whose
            CROSS JOIN (VALUES ('day'), ('month')) AS periods(period)
            UNION ALL
            SELECT batch_id::text, 'batch', {FIRST_OF_BATCH} WHERE batch_id IS NOT NULL
        ) AS account
        GROUP BY 1, 2, 3, 4
    ), spent AS (
        INSERT INTO spending AS booked (tenant, project, period, starts,
            settled_nanodollars, held_nanodollars, settled_tokens, held_tokens)
        SELECT * FROM deltas ORDER BY tenant, project, period, starts
        ON CONFLICT (tenant, project, period, starts) DO UPDATE SET
            settled_nanodollars = booked.settled_nanodollars + excluded.settled_nanodollars,
            held_nanodollars = booked.held_nanodollars + excluded.held_nanodollars,
            settled_tokens = booked.settled_tokens + excluded.settled_tokens,
            held_tokens = booked.held_tokens + excluded.held_tokens
        RETURNING *
    )
"""  # noqa: S608 - a constant
"""The end of a WITH clause that books `moved`: (tenant, project, batch_id, intended_at, how much each column grows)."""

KEYS = f"""
    SELECT tenant, project, period, CASE WHEN period = 'batch' THEN {FIRST_OF_BATCH}
        ELSE date_trunc(period, now() AT TIME ZONE 'UTC')::date END AS starts
    FROM jsonb_to_recordset(CAST(:accounts AS jsonb)) AS row(tenant text, project text, period text)
"""  # noqa: S608 - a constant

OPEN = text(f"""
    INSERT INTO spending (tenant, project, period, starts) SELECT * FROM ({KEYS}) AS keys
    ORDER BY tenant, project, period, starts ON CONFLICT DO NOTHING
""")  # noqa: S608 - no value is interpolated

# All of them or none: rows that are missing have to be made before any is locked, or the order would be lost.
LOCK = text(f"""
    WITH keys AS ({KEYS})
    SELECT tenant, project, period, settled_nanodollars, held_nanodollars, settled_tokens, held_tokens
    FROM spending JOIN keys USING (tenant, project, period, starts)
    WHERE (SELECT count(*) FROM spending JOIN keys USING (tenant, project, period, starts)) = :accounts_wanted
    ORDER BY tenant, project, period, starts FOR UPDATE OF spending
""")  # noqa: S608 - no value is interpolated


def lock(connection: Connection, owners: Iterable[tuple[str, str, UUID | None]]) -> dict[Account, Spent]:
    """Take the current rows of tenants, projects and batches until the transaction ends, and give what they say."""
    accounts = {account for owner in owners for account in accounts_of(*owner)}
    keys = [dict(zip(("tenant", "project", "period"), account, strict=True)) for account in accounts]
    given = {"accounts": json.dumps(keys), "accounts_wanted": len(keys)}
    rows = connection.execute(LOCK, given).all()
    if not rows:
        connection.execute(OPEN, given)
        rows = connection.execute(LOCK, given).all()
    return {
        (row.tenant, row.project, Period(row.period)): Spent(
            settled={Unit.NANODOLLARS: row.settled_nanodollars, Unit.TOKENS: row.settled_tokens},
            held={Unit.NANODOLLARS: row.held_nanodollars, Unit.TOKENS: row.held_tokens},
        )
        for row in rows
    }
