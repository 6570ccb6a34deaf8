"""Holds the ledger against what a provider says it billed. It must not know the form of an export.

The provider's word is what will be paid: where a closed call comes to something else, a correction says by how much. A
call whose outcome is unknown, and that an export lacks which is complete for its time, was not billed.
"""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from itertools import islice
from uuid import UUID

from sqlalchemy import Connection, text

from penstock.money import spending
from penstock.schemas import TOKEN_CLASSES, NanoDollars, Usage

LINES_A_STATEMENT = 5_000


@dataclass(frozen=True)
class BilledCall:
    """A line of an export. Without `call_id` it is not one of ours; without `usage` its tokens stay as they were."""

    call_id: UUID | None
    nanodollars: NanoDollars
    usage: Usage | None = None


@dataclass(frozen=True)
class Complete:
    """What an export claims to hold every call of: an account, and the times of sending from `since` up to `until`."""

    account: str
    since: datetime
    until: datetime


@dataclass(frozen=True)
class Reconciliation:
    """What came of it.

    `settled_differing` are calls whose truth was thought to be known; `not_billed` are unknown ones that cost nothing;
    `under_way` are billed already and still open here; `foreign` lines are in no row of the ledger.
    """

    lines: int
    matched: int
    corrected: int
    settled_differing: int
    not_billed: int
    under_way: int
    foreign: int
    foreign_nanodollars: NanoDollars
    change_nanodollars: NanoDollars
    still_unknown: int


CREATE = text("""
    CREATE TEMPORARY TABLE billed (call_id uuid, nanodollars bigint NOT NULL, has_usage boolean NOT NULL,
        input_tokens bigint, cached_input_tokens bigint, cache_write_tokens bigint, output_tokens bigint,
        reasoning_tokens bigint) ON COMMIT DROP
""")

LOAD = text("""
    INSERT INTO billed
    SELECT call_id, nanodollars, has_usage, input_tokens, cached_input_tokens, cache_write_tokens, output_tokens,
        reasoning_tokens
    FROM jsonb_populate_recordset(NULL::billed, CAST(:rows AS jsonb))
""")

CORRECT = text(f"""
    WITH export AS (
        SELECT call_id, sum(nanodollars)::bigint AS nanodollars, bool_and(has_usage) AS has_usage,
            sum(input_tokens)::bigint AS input_tokens, sum(cached_input_tokens)::bigint AS cached_input_tokens,
            sum(cache_write_tokens)::bigint AS cache_write_tokens, sum(output_tokens)::bigint AS output_tokens,
            sum(reasoning_tokens)::bigint AS reasoning_tokens
        FROM billed WHERE call_id IS NOT NULL GROUP BY call_id
    ), not_billed AS (
        SELECT call_id FROM ledger
        WHERE state = 'unknown' AND account = :account AND intended_at >= :since AND intended_at < :until
            AND NOT EXISTS (SELECT 1 FROM export WHERE export.call_id = ledger.call_id)
    ), truth AS (
        SELECT * FROM export UNION ALL SELECT call_id, 0, true, 0, 0, 0, 0, 0 FROM not_billed
    ), taken AS (
        SELECT ledger.* FROM ledger JOIN truth USING (call_id)
        WHERE ledger.state <> 'intent' ORDER BY call_id FOR UPDATE OF ledger
    ), standing AS (
        SELECT call_id, sum(amounts.nanodollars)::bigint AS nanodollars, count(*)::integer AS number,
            sum(amounts.input_tokens)::bigint AS input_tokens,
            sum(amounts.cached_input_tokens)::bigint AS cached_input_tokens,
            sum(amounts.cache_write_tokens)::bigint AS cache_write_tokens,
            sum(amounts.output_tokens)::bigint AS output_tokens,
            sum(amounts.reasoning_tokens)::bigint AS reasoning_tokens
        FROM taken JOIN ledger_amounts AS amounts USING (call_id) GROUP BY call_id
    ), differing AS (
        SELECT call_id, standing.number, truth.nanodollars - standing.nanodollars AS nanodollars,
            has_usage::integer * (truth.input_tokens - standing.input_tokens) AS input_tokens,
            has_usage::integer * (truth.cached_input_tokens - standing.cached_input_tokens) AS cached_input_tokens,
            has_usage::integer * (truth.cache_write_tokens - standing.cache_write_tokens) AS cache_write_tokens,
            has_usage::integer * (truth.output_tokens - standing.output_tokens) AS output_tokens,
            has_usage::integer * (truth.reasoning_tokens - standing.reasoning_tokens) AS reasoning_tokens
        FROM truth JOIN standing USING (call_id)
    ), corrected AS (
        INSERT INTO ledger_corrections (call_id, number, source, nanodollars, input_tokens, cached_input_tokens,
            cache_write_tokens, output_tokens, reasoning_tokens)
        SELECT call_id, number, 'export', nanodollars, input_tokens, cached_input_tokens, cache_write_tokens,
            output_tokens, reasoning_tokens
        FROM differing
        WHERE (nanodollars, input_tokens, cached_input_tokens, cache_write_tokens, output_tokens, reasoning_tokens)
            <> (0, 0, 0, 0, 0, 0)
            OR (number = 1 AND call_id IN (SELECT call_id FROM taken WHERE state = 'unknown'))
        ON CONFLICT DO NOTHING
        RETURNING *
    ), moved AS (
        SELECT taken.tenant, taken.project, taken.intended_at, corrected.nanodollars AS settled_nanodollars,
            corrected.input_tokens + corrected.cached_input_tokens + corrected.cache_write_tokens
                + corrected.output_tokens + corrected.reasoning_tokens
                - CASE WHEN taken.state = 'unknown' AND corrected.number = 1 AND truth.has_usage
                    THEN coalesce(taken.upper_bound_tokens, 0) ELSE 0 END AS settled_tokens,
            0 AS held_nanodollars, 0 AS held_tokens
        FROM corrected JOIN taken USING (call_id) JOIN truth USING (call_id)
    ), {spending.MOVE}
    SELECT
        (SELECT count(*) FROM billed) AS lines,
        (SELECT count(*) FROM export JOIN taken USING (call_id)) AS matched,
        (SELECT count(*) FROM corrected) AS corrected,
        (SELECT count(*) FROM corrected JOIN taken USING (call_id) WHERE taken.state = 'settled') AS settled_differing,
        (SELECT count(*) FROM not_billed) AS not_billed,
        (SELECT count(*) FROM export JOIN ledger USING (call_id) WHERE ledger.state = 'intent') AS under_way,
        count(*) AS foreign_lines, coalesce(sum(nanodollars), 0)::bigint AS foreign_nanodollars,
        (SELECT coalesce(sum(nanodollars), 0) FROM corrected)::bigint AS change_nanodollars
    FROM billed WHERE NOT EXISTS (SELECT 1 FROM ledger WHERE ledger.call_id = billed.call_id)
""")  # noqa: S608 - no value is interpolated

STILL_UNKNOWN = text("""
    SELECT count(*) FROM ledger
    WHERE state = 'unknown' AND NOT EXISTS (SELECT 1 FROM ledger_corrections WHERE call_id = ledger.call_id)
""")


def reconcile(connection: Connection, lines: Iterable[BilledCall], complete: Complete | None = None) -> Reconciliation:
    """Correct the ledger by an export, in the caller's transaction; a second time it changes nothing."""
    connection.execute(CREATE)
    left = iter(lines)
    while chunk := [_row(line) for line in islice(left, LINES_A_STATEMENT)]:
        connection.execute(LOAD, {"rows": json.dumps(chunk)})
    window = {
        "account": complete and complete.account,
        "since": complete and complete.since,
        "until": complete and complete.until,
    }
    row = connection.execute(CORRECT, window).one()
    return Reconciliation(
        lines=row.lines,
        matched=row.matched,
        corrected=row.corrected,
        settled_differing=row.settled_differing,
        not_billed=row.not_billed,
        under_way=row.under_way,
        foreign=row.foreign_lines,
        foreign_nanodollars=row.foreign_nanodollars,
        change_nanodollars=row.change_nanodollars,
        still_unknown=connection.scalar(STILL_UNKNOWN) or 0,
    )


def _row(line: BilledCall) -> dict[str, object]:
    tokens = {name: getattr(line.usage, name) if line.usage else 0 for name in TOKEN_CLASSES}
    call_id = str(line.call_id) if line.call_id else None
    return {"call_id": call_id, "nanodollars": line.nanodollars, "has_usage": line.usage is not None, **tokens}
