"""One row for each physical provider call. It must not know prices, and it holds no text.

`intend` is committed before the bytes leave, and holds the call's upper bound of its tenant's budgets; `settle` states
the truth, together with the answer that was paid for. An open row costs its upper bound, so that the sum is never below
what the provider will ask for. A row is closed once and never changed again: what is found out later is a correction.
"""

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from uuid import UUID

from sqlalchemy import Connection, text

from penstock.errors import Reason
from penstock.money import spending
from penstock.money.budgets import Period, Unit, budgets_of
from penstock.money.holds import Hold, Shortfall, Want, decide
from penstock.money.prices import UpperBound
from penstock.schemas import NanoDollars, Usage
from penstock.store.text import storable_row


class CallOutcome(StrEnum):
    """What came of a call. What was not sent, or refused, costs nothing."""

    NOT_SENT = "not_sent"
    REFUSED = "refused"
    ANSWERED = "answered"
    UNKNOWN = "unknown"


@dataclass(frozen=True)
class Intent:
    """A call that is about to be made, with at most `max_tokens`, or fewer where a budget ends before.

    With a `request_digest` it is made only if no other call of the tenant asks the same of the tier, or has been
    answered by one of `models`.
    """

    call_id: UUID
    job_id: UUID
    fence: int
    tenant: str
    project: str
    prompt_id: str
    prompt_version: str
    tier: str
    deployment: str
    account: str
    model_asked: str
    price_version: str
    bound: UpperBound
    max_tokens: int
    least_max_tokens: int
    batch_id: UUID | None = None
    request_digest: str | None = None
    models: tuple[str, ...] = ()


NOTHING = Usage()


@dataclass(frozen=True)
class Settlement:
    """What came of a call. Without `nanodollars` nobody knows, and the upper bound stays."""

    call_id: UUID
    outcome: CallOutcome
    nanodollars: NanoDollars | None
    usage: Usage = NOTHING
    reason: Reason | None = None
    request_digest: str | None = None
    model_served: str | None = None
    finish_reason: str | None = None
    answer: str | None = None


@dataclass(frozen=True)
class SoftLimitPassed:
    """A budget's soft limit that was passed by settling calls, and what is settled in the period now."""

    tenant: str
    project: str
    period: Period
    unit: Unit
    soft_limit: int
    settled: int


@dataclass(frozen=True)
class InFlight:
    """Another call asks the same, or has just been answered: what it brings is there soon."""


Verdict = Hold | Shortfall | InFlight | None
"""What comes of an intent; None: the job belongs to a later run, do not call."""

KNOWN = text("""
    SELECT given.call_id, ledger.call_id IS NOT NULL AS is_written, ledger.max_tokens, ledger.over_soft_limit
    FROM jsonb_to_recordset(CAST(:rows AS jsonb)) AS given(call_id uuid, job_id uuid, fence bigint)
    JOIN jobs ON jobs.id = given.job_id AND jobs.fence = given.fence AND jobs.state = 'running'
    LEFT JOIN ledger ON ledger.call_id = given.call_id
    WHERE ledger.call_id IS NULL OR ledger.state = 'intent'
""")

INTEND = text(f"""
    WITH given AS (
        SELECT * FROM jsonb_to_recordset(CAST(:rows AS jsonb)) AS row(
            call_id uuid, job_id uuid, batch_id uuid, fence bigint, tenant text, project text, prompt_id text,
            prompt_version text, tier text, deployment text, account text, model_asked text, price_version text,
            max_tokens integer, over_soft_limit boolean, upper_bound_nanodollars bigint, upper_bound_tokens bigint,
            request_digest text, models text[])
    ), made AS (
        INSERT INTO ledger (call_id, job_id, batch_id, fence, tenant, project, prompt_id, prompt_version, tier,
            deployment, account, model_asked, price_version, max_tokens, over_soft_limit, state,
            upper_bound_nanodollars, upper_bound_tokens, nanodollars, request_digest)
        SELECT call_id, job_id, batch_id, fence, tenant, project, prompt_id, prompt_version, tier, deployment,
            account, model_asked, price_version, max_tokens, over_soft_limit, 'intent', upper_bound_nanodollars,
            upper_bound_tokens, upper_bound_nanodollars, request_digest
        FROM given
        WHERE EXISTS (
            SELECT 1 FROM jobs WHERE id = given.job_id AND jobs.fence = given.fence AND jobs.state = 'running')
        AND NOT EXISTS (
            SELECT 1 FROM ledger AS other WHERE other.tenant = given.tenant AND other.tier = given.tier
                AND other.request_digest = given.request_digest AND other.settled_at IS NULL)
        AND NOT EXISTS (
            SELECT 1 FROM answers WHERE answers.tenant = given.tenant
                AND answers.request_digest = given.request_digest AND answers.model = ANY(given.models))
        ON CONFLICT DO NOTHING
        RETURNING *
    ), moved AS (
        SELECT tenant, project, batch_id, intended_at, 0 AS settled_nanodollars,
            upper_bound_nanodollars AS held_nanodollars, 0 AS settled_tokens, upper_bound_tokens AS held_tokens
        FROM made
    ), {spending.MOVE}
    SELECT call_id FROM made
""")  # noqa: S608 - no value is interpolated

RELEASE_HOLD = """
    -(upper_bound_nanodollars * (upper_bound_tokens IS NOT NULL)::integer) AS held_nanodollars,
    -coalesce(upper_bound_tokens, 0) AS held_tokens
"""
TOKENS = "input_tokens + cached_input_tokens + cache_write_tokens + output_tokens + reasoning_tokens"

SETTLE = text(f"""
    WITH given AS (
        SELECT * FROM jsonb_to_recordset(CAST(:rows AS jsonb)) AS row(
            call_id uuid, outcome text, nanodollars bigint, input_tokens bigint, cached_input_tokens bigint,
            cache_write_tokens bigint, output_tokens bigint, reasoning_tokens bigint,
            reason text, request_digest text, model_served text, finish_reason text, answer text)
    ), taken AS (
        SELECT ledger.* FROM ledger JOIN given USING (call_id) ORDER BY call_id FOR UPDATE OF ledger
    ), closed AS (
        UPDATE ledger SET settled_at = now(), reason = given.reason, model_served = given.model_served,
            outcome = given.outcome, state = CASE WHEN given.nanodollars IS NULL THEN 'unknown' ELSE 'settled' END,
            nanodollars = coalesce(given.nanodollars, ledger.upper_bound_nanodollars),
            input_tokens = given.input_tokens, cached_input_tokens = given.cached_input_tokens,
            cache_write_tokens = given.cache_write_tokens, output_tokens = given.output_tokens,
            reasoning_tokens = given.reasoning_tokens
        FROM given, taken
        WHERE ledger.call_id = given.call_id AND taken.call_id = given.call_id AND ledger.state = 'intent'
        RETURNING ledger.*
    ), so_far AS (
        SELECT call_id, count(later.number)::integer AS number, coalesce(bool_or(has_usage), false) AS has_usage,
            coalesce(bool_or(source = 'late_answer'), false) AS is_answered,
            taken.nanodollars + coalesce(sum(later.nanodollars), 0) AS nanodollars,
            coalesce(sum(later.input_tokens + later.cached_input_tokens + later.cache_write_tokens
                + later.output_tokens + later.reasoning_tokens), 0) AS tokens
        FROM taken LEFT JOIN ledger_corrections AS later USING (call_id)
        WHERE taken.state = 'unknown' GROUP BY call_id, taken.nanodollars
    ), corrected AS (
        INSERT INTO ledger_corrections (call_id, number, source, nanodollars, input_tokens, cached_input_tokens,
            cache_write_tokens, output_tokens, reasoning_tokens)
        SELECT call_id, so_far.number + 1, 'late_answer', given.nanodollars - so_far.nanodollars, given.input_tokens,
            given.cached_input_tokens, given.cache_write_tokens, given.output_tokens, given.reasoning_tokens
        FROM given JOIN so_far USING (call_id)
        WHERE given.nanodollars IS NOT NULL AND (
            so_far.number = 0 OR (so_far.nanodollars = 0 AND so_far.tokens = 0 AND NOT is_answered))
        ON CONFLICT DO NOTHING
        RETURNING *
    ), moved AS (
        SELECT tenant, project, batch_id, intended_at, nanodollars AS settled_nanodollars,
            CASE WHEN state = 'unknown' THEN coalesce(upper_bound_tokens, 0) ELSE {TOKENS} END AS settled_tokens,
            {RELEASE_HOLD}
        FROM closed
        UNION ALL
        SELECT taken.tenant, taken.project, taken.batch_id, taken.intended_at, corrected.nanodollars,
            corrected.input_tokens + corrected.cached_input_tokens + corrected.cache_write_tokens
                + corrected.output_tokens + corrected.reasoning_tokens
                - (NOT so_far.has_usage)::integer * coalesce(taken.upper_bound_tokens, 0), 0, 0
        FROM corrected JOIN taken USING (call_id) JOIN so_far USING (call_id)
    ), {spending.MOVE}, unpurged AS (
        SELECT id FROM jobs WHERE id IN (SELECT job_id FROM taken) AND purged_at IS NULL AND kept_until IS NULL
        ORDER BY id FOR KEY SHARE
    ), kept AS (
        INSERT INTO answers (job_id, request_digest, call_id, tenant, model, model_served, finish_reason, text)
        SELECT taken.job_id, given.request_digest, call_id, taken.tenant, taken.model_asked, given.model_served,
            given.finish_reason, given.answer
        FROM given JOIN taken USING (call_id) WHERE given.answer IS NOT NULL
            AND taken.job_id IN (SELECT id FROM unpurged)
        ON CONFLICT DO NOTHING
    ), standing AS (
        SELECT tenant, project, period, unit, after, after - before AS grown
        FROM spent JOIN deltas USING (tenant, project, period, starts)
        CROSS JOIN LATERAL (VALUES
            ('nanodollars', spent.settled_nanodollars, spent.settled_nanodollars - deltas.settled_nanodollars),
            ('tokens', spent.settled_tokens, spent.settled_tokens - deltas.settled_tokens)
        ) AS of_unit(unit, after, before)
    )
    SELECT tenant, project, period, unit, soft_limit, after AS settled, (
        SELECT call_id FROM taken
        WHERE taken.tenant = standing.tenant AND standing.project IN ('', taken.project) LIMIT 1) AS call_id
    FROM standing JOIN budgets USING (tenant, project, period, unit)
    WHERE after > soft_limit AND after - grown <= soft_limit
""")  # noqa: S608 - no value is interpolated

CLOSE = f"""
    WITH taken AS (
        SELECT call_id FROM ledger
        WHERE state = 'intent' AND {{which}}
            AND NOT EXISTS (SELECT 1 FROM jobs WHERE jobs.id = job_id AND jobs.fence = ledger.fence
                AND jobs.state = 'running')
            AND NOT EXISTS (SELECT 1 FROM provider_requests AS sent
                WHERE sent.call_id = ledger.call_id AND sent.is_open)
        ORDER BY call_id FOR UPDATE SKIP LOCKED
    ), closed AS (
        UPDATE ledger SET state = 'unknown', outcome = 'unknown', settled_at = now(), reason = 'worker_lost'
        FROM taken WHERE ledger.call_id = taken.call_id
        RETURNING ledger.*
    ), moved AS (
        SELECT tenant, project, batch_id, intended_at, nanodollars AS settled_nanodollars,
            coalesce(upper_bound_tokens, 0) AS settled_tokens, {RELEASE_HOLD}
        FROM closed
    ), {spending.MOVE}
    SELECT call_id FROM closed
"""  # noqa: S608 - no value is interpolated
ABANDON = text(CLOSE.replace("{which}", "intended_at < now() - make_interval(secs => :older_than_s)"))
ABANDON_LOST = text(CLOSE.replace("{which}", "call_id = ANY(CAST(:ids AS uuid[]))"))

TOTALS = text("""
    SELECT (SELECT count(*) FROM ledger) AS calls, coalesce(sum(nanodollars), 0)::bigint AS nanodollars,
        coalesce(sum(input_tokens + cached_input_tokens + cache_write_tokens), 0)::bigint AS input_tokens,
        coalesce(sum(output_tokens + reasoning_tokens), 0)::bigint AS output_tokens,
        (SELECT count(*) FROM ledger WHERE state <> 'settled'
            AND NOT EXISTS (SELECT 1 FROM ledger_corrections WHERE call_id = ledger.call_id)) AS open
    FROM ledger_amounts
""")


@dataclass(frozen=True)
class LedgerTotals:
    """The whole ledger in a line; `open` counts calls whose truth is not known."""

    calls: int
    nanodollars: NanoDollars
    input_tokens: int
    output_tokens: int
    open: int


def intend(connection: Connection, intents: Sequence[Intent]) -> list[Verdict]:
    """Write down calls before they are made and hold what they can cost, in one transaction.

    Gives a Hold with the `max_tokens` that is paid for, a Shortfall where a hard budget has too little left, InFlight
    where the same is being asked, or None where the job belongs to a later run. An intent that is written already is
    held already.
    """
    once = list({intent.call_id: intent for intent in intents}.values())
    decided = dict(zip((intent.call_id for intent in once), _decide(connection, once), strict=True))
    rows = [_row(intent, hold) for intent in once if isinstance(hold := decided[intent.call_id], Hold)]
    made = {row.call_id for row in connection.execute(INTEND, {"rows": json.dumps(rows)})} if rows else set()
    verdicts: dict[UUID, Verdict] = {
        call_id: None if isinstance(verdict, Hold) and call_id not in made else verdict
        for call_id, verdict in decided.items()
    }
    if len(made) < len(once):
        verdicts |= _not_made(connection, [intent for intent in once if intent.call_id not in made], verdicts)
    return [verdicts[intent.call_id] for intent in intents]


def _not_made(
    connection: Connection, intents: Iterable[Intent], verdicts: Mapping[UUID, Verdict]
) -> dict[UUID, Hold | InFlight]:
    """Tell why intents of runs that go on were not written: the same is being asked, or they are written already.

    That is so after a try that did not hear of its commit; they may still be sent.
    """
    rows = [{"call_id": str(each.call_id), "job_id": str(each.job_id), "fence": each.fence} for each in intents]
    found: dict[UUID, Hold | InFlight] = {}
    for row in connection.execute(KNOWN, {"rows": json.dumps(rows)}):
        if row.is_written:
            found[row.call_id] = Hold(row.max_tokens, row.over_soft_limit)
        elif verdicts[row.call_id] is None:
            found[row.call_id] = InFlight()
    return found


def _decide(connection: Connection, intents: Sequence[Intent]) -> list[Hold | Shortfall]:
    """Decide by what is spent now.

    The accounts are taken first, with or without a budget: of two calls of a tenant that ask the same, one is written
    down before the other looks, and no call that holds accounts waits for one that wants them.
    """
    spent = spending.lock(connection, {(intent.tenant, intent.project, intent.batch_id) for intent in intents})
    batches = {intent.batch_id for intent in intents if intent.batch_id is not None}
    budgets = budgets_of(connection, {intent.tenant for intent in intents}, batches)
    wants = [
        Want(intent.tenant, intent.project, intent.bound, intent.max_tokens, intent.least_max_tokens, intent.batch_id)
        for intent in intents
    ]
    return decide(wants, budgets, spent)


def _row(intent: Intent, hold: Hold) -> dict[str, object]:
    return (
        asdict(intent)
        | asdict(hold)
        | {
            "call_id": str(intent.call_id),
            "job_id": str(intent.job_id),
            "batch_id": str(intent.batch_id) if intent.batch_id else None,
            "upper_bound_nanodollars": intent.bound.nanodollars(hold.max_tokens),
            "upper_bound_tokens": intent.bound.tokens(hold.max_tokens),
        }
    )


def settle(connection: Connection, settlements: Sequence[Settlement]) -> list[tuple[SoftLimitPassed, ...]]:
    """State what calls came to and keep their answers, in one transaction; a repeat changes nothing.

    Of several settlements of one call the first that knows the truth counts; one that comes when the row was closed as
    unknown is a correction, unless a provider's export has told what the call came to, and that was not nothing.
    Gives the soft limits that they passed together, each with a settlement of its owner.
    """
    doubts_last = sorted(settlements, key=lambda settlement: settlement.nanodollars is None)
    first = {settlement.call_id: settlement for settlement in reversed(doubts_last)}
    rows = [_settled_row(settlement) for settlement in first.values()]
    passed = defaultdict[UUID, list[SoftLimitPassed]](list)
    for row in connection.execute(SETTLE, {"rows": json.dumps(rows)}):
        passed[row.call_id].append(
            SoftLimitPassed(row.tenant, row.project, Period(row.period), Unit(row.unit), row.soft_limit, row.settled)
        )
    return [tuple(passed.pop(settlement.call_id, ())) for settlement in settlements]


def _settled_row(settlement: Settlement) -> dict[str, object]:
    row = vars(settlement) | settlement.usage.model_dump() | {"call_id": str(settlement.call_id)}
    del row["usage"]
    return storable_row(row)


def abandon(connection: Connection, *, older_than_s: float) -> list[UUID]:
    """Close as unknown the calls whose run is over and that nobody settled for `older_than_s` seconds."""
    return [row.call_id for row in connection.execute(ABANDON, {"older_than_s": older_than_s})]


def abandon_lost(connection: Connection, call_ids: Sequence[UUID]) -> list[UUID]:
    """Close these as unknown at once, where their run is over; those that somebody settles meanwhile are left alone."""
    ids = {"ids": [str(call_id) for call_id in call_ids]}
    return [row.call_id for row in connection.execute(ABANDON_LOST, ids)]


def totals(connection: Connection) -> LedgerTotals:
    """Sum the ledger."""
    row = connection.execute(TOTALS).one()
    return LedgerTotals(row.calls, row.nanodollars, row.input_tokens, row.output_tokens, row.open)
