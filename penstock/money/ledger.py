"""One row for each physical provider call. It must not know prices, and it holds no text.

`intend` is committed before the bytes leave; `settle` states the truth, together with the answer that was paid for.
An open row costs its upper bound, so that the sum is never below what the provider will ask for.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from uuid import UUID

from sqlalchemy import Connection, text

from penstock.errors import Reason
from penstock.schemas import NanoDollars
from penstock.store.text import storable_row


@dataclass(frozen=True)
class Intent:
    """A call that is about to be made."""

    call_id: UUID
    job_id: UUID
    fence: int
    tenant: str
    prompt_id: str
    prompt_version: str
    tier: str
    deployment: str
    account: str
    model_asked: str
    price_version: str
    upper_bound_nanodollars: NanoDollars


@dataclass(frozen=True)
class Settlement:
    """What came of a call. Without `nanodollars` nobody knows, and the upper bound stays."""

    call_id: UUID
    nanodollars: NanoDollars | None
    input_tokens: int = 0
    cached_input_tokens: int = 0
    output_tokens: int = 0
    reason: Reason | None = None
    request_digest: str | None = None
    model_served: str | None = None
    finish_reason: str | None = None
    answer: str | None = None


INTEND = text("""
    WITH given AS (
        SELECT * FROM jsonb_to_recordset(CAST(:rows AS jsonb)) AS row(
            call_id uuid, job_id uuid, fence bigint, tenant text, prompt_id text, prompt_version text, tier text,
            deployment text, account text, model_asked text, price_version text, upper_bound_nanodollars bigint)
    )
    INSERT INTO ledger (call_id, job_id, fence, tenant, prompt_id, prompt_version, tier, deployment, account,
        model_asked, price_version, state, upper_bound_nanodollars, nanodollars)
    SELECT call_id, job_id, fence, tenant, prompt_id, prompt_version, tier, deployment, account,
        model_asked, price_version, 'intent', upper_bound_nanodollars, upper_bound_nanodollars
    FROM given
    WHERE EXISTS (SELECT 1 FROM jobs WHERE id = given.job_id AND jobs.fence = given.fence AND jobs.state = 'running')
    ON CONFLICT (call_id) DO UPDATE SET call_id = excluded.call_id
    RETURNING call_id
""")

SETTLE = text("""
    WITH given AS (
        SELECT * FROM jsonb_to_recordset(CAST(:rows AS jsonb)) AS row(
            call_id uuid, nanodollars bigint, input_tokens bigint, cached_input_tokens bigint, output_tokens bigint,
            reason text, request_digest text, model_served text, finish_reason text, answer text)
    ), settled AS (
        UPDATE ledger SET settled_at = now(), reason = given.reason, model_served = given.model_served,
            state = CASE WHEN given.nanodollars IS NULL THEN 'unknown' ELSE 'settled' END,
            nanodollars = coalesce(given.nanodollars, ledger.upper_bound_nanodollars),
            input_tokens = given.input_tokens, cached_input_tokens = given.cached_input_tokens,
            output_tokens = given.output_tokens
        FROM given
        WHERE ledger.call_id = given.call_id
            AND (ledger.state = 'intent' OR (ledger.state = 'unknown' AND given.nanodollars IS NOT NULL))
        RETURNING ledger.call_id, ledger.job_id
    )
    INSERT INTO answers (job_id, request_digest, call_id, model_served, finish_reason, text)
    SELECT settled.job_id, given.request_digest, given.call_id, given.model_served, given.finish_reason, given.answer
    FROM given JOIN settled USING (call_id) WHERE given.answer IS NOT NULL
    ON CONFLICT DO NOTHING
""")

ANSWER = text("""
    SELECT given.position, answers.call_id, answers.model_served, answers.finish_reason, answers.text,
        ledger.deployment, EXISTS (
            SELECT 1 FROM ledger AS cut WHERE cut.job_id = given.job_id AND cut.reason = 'output_truncated') AS was_cut
    FROM jsonb_to_recordset(CAST(:rows AS jsonb))
        AS given(position integer, job_id uuid, request_digest text)
    LEFT JOIN answers ON answers.job_id = given.job_id AND answers.request_digest = given.request_digest
    LEFT JOIN ledger ON ledger.call_id = answers.call_id
""")

ABANDON = text("""
    UPDATE ledger SET state = 'unknown', settled_at = now(), reason = 'worker_lost'
    WHERE state = 'intent' AND intended_at < now() - make_interval(secs => :older_than_s)
        AND NOT EXISTS (SELECT 1 FROM jobs WHERE jobs.id = job_id AND jobs.fence = ledger.fence
            AND jobs.state = 'running')
    RETURNING call_id
""")

TOTALS = text("""
    SELECT count(*) AS calls, coalesce(sum(nanodollars), 0)::bigint AS nanodollars,
        coalesce(sum(input_tokens + cached_input_tokens), 0)::bigint AS input_tokens,
        coalesce(sum(output_tokens), 0)::bigint AS output_tokens,
        count(*) FILTER (WHERE state <> 'settled') AS open
    FROM ledger
""")


@dataclass(frozen=True)
class JournaledAnswer:
    """An answer that was paid for by an earlier call of the same job."""

    call_id: UUID
    deployment: str
    model_served: str
    finish_reason: str
    text: str


@dataclass(frozen=True)
class Recollection:
    """What the calls of earlier attempts left: an answer that can be used, and whether one was cut at its bound."""

    answer: JournaledAnswer | None = None
    was_cut: bool = False


@dataclass(frozen=True)
class LedgerTotals:
    """The whole ledger in a line; `open` counts rows whose truth is not known."""

    calls: int
    nanodollars: NanoDollars
    input_tokens: int
    output_tokens: int
    open: int


def intend(connection: Connection, intents: Sequence[Intent]) -> list[bool]:
    """Write down calls before they are made; False where the job belongs to a later run: do not call."""
    once = {intent.call_id: intent for intent in intents}
    rows = [asdict(intent) | {"call_id": str(intent.call_id), "job_id": str(intent.job_id)} for intent in once.values()]
    written = {row.call_id for row in connection.execute(INTEND, {"rows": json.dumps(rows)})}
    return [intent.call_id in written for intent in intents]


def settle(connection: Connection, settlements: Sequence[Settlement]) -> list[None]:
    """State what calls came to and keep their answers, in one transaction; a repeat changes nothing.

    Of several settlements of one call the first that knows the truth counts.
    """
    doubts_last = sorted(settlements, key=lambda settlement: settlement.nanodollars is None)
    first = {settlement.call_id: settlement for settlement in reversed(doubts_last)}
    rows = [storable_row(asdict(settlement)) | {"call_id": str(settlement.call_id)} for settlement in first.values()]
    connection.execute(SETTLE, {"rows": json.dumps(rows)})
    return [None] * len(settlements)


def recall(connection: Connection, wanted: Sequence[tuple[UUID, str]]) -> list[Recollection]:
    """Look up what earlier calls left, by job and request digest: what was paid for is not asked again."""
    rows = [{"position": n, "job_id": str(job), "request_digest": digest} for n, (job, digest) in enumerate(wanted)]
    found = [Recollection()] * len(wanted)
    for row in connection.execute(ANSWER, {"rows": json.dumps(rows)}):
        answer = None
        if row.call_id is not None:
            answer = JournaledAnswer(row.call_id, row.deployment, row.model_served, row.finish_reason, row.text)
        found[row.position] = Recollection(answer, row.was_cut)
    return found


def abandon(connection: Connection, *, older_than_s: float) -> list[UUID]:
    """Mark calls `unknown` whose run is over and that nobody settled for `older_than_s` seconds."""
    return [row.call_id for row in connection.execute(ABANDON, {"older_than_s": older_than_s})]


def totals(connection: Connection) -> LedgerTotals:
    """Sum the ledger."""
    row = connection.execute(TOTALS).one()
    return LedgerTotals(row.calls, row.nanodollars, row.input_tokens, row.output_tokens, row.open)
