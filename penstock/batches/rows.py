"""A batch as rows: begun, loaded, paused, looked at. It must not know what its jobs do.

Its jobs have ids of their own that follow from the batch and the item's number, so that an item which is stored twice
is one job. What is stored of the input is counted in the row that the loader holds: two loaders cannot both go on.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any
from uuid import UUID

from sqlalchemy import Connection, text

from penstock.batches.batch import AbortIf, Batch, BatchState, NewBatch, Progress
from penstock.batches.forecast import History
from penstock.batches.reading import BadItem
from penstock.errors import BatchTakenError, InvalidRequestError
from penstock.jobs.submission import NewJob, copy
from penstock.money.budgets import Budget, Period, Unit
from penstock.schemas import JobState, PromptReference
from penstock.store.text import storable

LIVES = "state IN ('paused', 'queued', 'released', 'running', 'retrying')"

BEGIN = text("""
    INSERT INTO batches (id, tenant, name, project, prompt_id, prompt_version, prompt_digest, tier, state,
        request_digest, forecast, abort_if, callback, by_provider, due_by, starts_at)
    VALUES (:id, :tenant, :name, :project, :prompt_id, :prompt_version, :prompt_digest, :tier, 'running',
        :digest, CAST(:forecast AS jsonb), CAST(:abort_if AS jsonb), :callback, :by_provider, :due_by,
        coalesce(:starts_at, now()))
    ON CONFLICT DO NOTHING
    RETURNING id
""")

CHANGE = text("""
    UPDATE batches SET abort_if = CAST(:abort_if AS jsonb), callback = coalesce(:callback, callback),
        announced = announced AND callback IS NOT DISTINCT FROM coalesce(:callback, callback),
        forecast = coalesce(forecast, CAST(:forecast AS jsonb))
    WHERE id = :id
""")

CAP = text("UPDATE batches SET max_nanodollars = :most WHERE id = :id")
SELECT = "SELECT *, starts_at <= now() AS has_begun FROM batches WHERE "
FIND = text(SELECT + "tenant = :tenant AND name = :name")
LIST = text(SELECT + "CAST(:tenant AS text) IS NULL OR tenant = :tenant ORDER BY created_at DESC, id LIMIT :most")
LIVE = text(SELECT + "ended_at IS NULL ORDER BY created_at, id")

TAKE = text("""
    UPDATE batches SET items = :items, items_digest = :items_digest
    WHERE id = :id AND items = :stored AND state <> 'cancelled' AND NOT is_loaded
    RETURNING id
""")
REFUSE = text("""
    INSERT INTO batch_errors (batch_id, number, reason)
    SELECT :id, number, reason FROM jsonb_to_recordset(CAST(:rows AS jsonb)) AS row(number bigint, reason text)
    ON CONFLICT DO NOTHING
""")
LOADED = text("UPDATE batches SET is_loaded = true WHERE id = :id AND items = :items RETURNING id")

MOVE = text("""
    UPDATE batches SET state = :becomes, reason = :reason
    WHERE id = :id AND state = ANY(CAST(:from_states AS text[])) AND ended_at IS NULL
    RETURNING id
""")
FORGIVE = text("""
    UPDATE jobs SET reason = NULL, detail = NULL, due_at = now()
    WHERE batch_id = :id AND reason = 'budget_exhausted' AND state IN ('queued', 'retrying')
""")
RESUME = text("""
    UPDATE batches SET resumed_at = now(), ended_before = :ended, dead_before = :dead, settled_before = :settled
    WHERE id = :id
""")

IS_OVER = f"""id = :id AND ended_at IS NULL AND (is_loaded OR state = 'cancelled')
    AND NOT EXISTS (SELECT 1 FROM jobs WHERE batch_id = :id AND jobs.{LIVES})"""  # noqa: S608 - a constant
HOLD = text(f"SELECT id FROM batches WHERE {IS_OVER} FOR UPDATE")  # noqa: S608 - a constant
CLOSE = text(f"""
    UPDATE batches SET state = CASE WHEN state = 'cancelled' THEN state ELSE 'done' END, ended_at = now()
    WHERE {IS_OVER}
""")  # noqa: S608 - a constant

COUNTS = text("""
    SELECT now() AS now, (SELECT count(*) FROM batch_errors WHERE batch_id = :id) AS refused,
        (SELECT count(*) FROM provider_batches AS parcel JOIN provider_requests ON provider_batch_id = parcel.id
            WHERE parcel.batch_id = :id AND parcel.provider_id IS NOT NULL AND is_open) AS at_provider,
        (SELECT coalesce(jsonb_object_agg(state, jobs), '{}') FROM (
            SELECT state, count(*) AS jobs FROM jobs WHERE batch_id = :id GROUP BY state) AS counted) AS jobs,
        coalesce(sum(settled_nanodollars), 0)::bigint AS settled, coalesce(sum(held_nanodollars), 0)::bigint AS held,
        coalesce(sum(settled_tokens), 0)::bigint AS tokens
    FROM spending WHERE tenant = :tenant AND project = :account AND period = 'batch'
""")

PARK = text("""
    UPDATE jobs SET state = 'paused' WHERE id IN (
        SELECT id FROM jobs WHERE batch_id = :id AND state IN ('queued', 'retrying') LIMIT :most FOR UPDATE SKIP LOCKED)
""")
# Those that wait for a file go on when it has left them without an answer, or when the batch wishes for none any more.
# State and fence are looked at again behind the lock: a job may have been cancelled, or put into a file, meanwhile.
UNPARK = text("""
    WITH may_go AS (
        SELECT jobs.id, jobs.fence FROM provider_batches AS parcel
        JOIN provider_requests AS handed_over ON handed_over.provider_batch_id = parcel.id AND NOT handed_over.is_open
        JOIN jobs ON jobs.id = handed_over.job_id
        WHERE parcel.batch_id = :id AND jobs.state = 'paused'
        UNION ALL
        (SELECT id, fence FROM jobs
        WHERE batch_id = :id AND state = 'paused' AND NOT (SELECT by_provider FROM batches WHERE batches.id = :id)
            AND NOT EXISTS (SELECT 1 FROM provider_requests AS sent WHERE sent.job_id = jobs.id)
        ORDER BY batch_number LIMIT :most)
    )
    UPDATE jobs SET state = CASE WHEN attempts > 0 THEN 'retrying' ELSE 'queued' END,
        due_at = CASE WHEN reason = 'budget_exhausted' THEN now() ELSE due_at END,
        detail = CASE WHEN reason = 'budget_exhausted' THEN NULL ELSE detail END,
        reason = nullif(reason, 'budget_exhausted')
    WHERE id IN (
        SELECT jobs.id FROM jobs JOIN may_go USING (id, fence) WHERE jobs.state = 'paused'
        ORDER BY batch_number LIMIT :most FOR UPDATE OF jobs SKIP LOCKED) AND state = 'paused'
""")
LEFT = text(f"SELECT id, state FROM jobs WHERE batch_id = :id AND {LIVES} LIMIT :most")  # noqa: S608 - a constant
HELD_UP = text("""
    SELECT detail FROM jobs
    WHERE batch_id = :id AND reason = 'budget_exhausted' AND state IN ('queued', 'retrying') LIMIT 1
""")

# By the primary key, whose order is that of the input.
PAGE = text("""
    SELECT batch_number, id FROM jobs WHERE id > :after_id AND id <= :last_id AND batch_id = :id ORDER BY id LIMIT :most
""")
TEXTS = text("""
    SELECT batch_number, payloads.document, results.text FROM jobs
    JOIN payloads ON payloads.job_id = jobs.id JOIN results ON results.job_id = jobs.id
    WHERE id > :after_id AND id <= :last_id AND batch_id = :id AND document IS NOT NULL ORDER BY id LIMIT :most
""")
ERRORS = text("""
    SELECT number, reason FROM batch_errors WHERE batch_id = :id AND number > :after ORDER BY number LIMIT :most
""")

# An embedding has no output; a call in a file takes hours and says nothing about live ones.
HISTORY = text("""
    SELECT count(*) AS calls, coalesce(avg(tokens), 0)::float8 AS mean_tokens,
        coalesce(stddev_samp(tokens), 0)::float8 AS deviation,
        coalesce(avg(seconds) FILTER (WHERE seconds < 600), 0)::float8 AS latency_s
    FROM (
        SELECT output_tokens + reasoning_tokens AS tokens, extract(epoch FROM settled_at - intended_at) AS seconds
        FROM (
            SELECT * FROM ledger WHERE tenant = :tenant AND intended_at > now() - interval '30 days'
            ORDER BY intended_at DESC LIMIT 20000) AS latest
        WHERE prompt_id = :prompt AND tier = :tier AND outcome = 'answered' AND reason IS NULL
            AND output_tokens + reasoning_tokens > 0
        LIMIT 2000
    ) AS answers
""")

# What a job costs: of all that were asked, by the answers alone. Of a call that was lost only its bound is known.
PAID = text("""
    SELECT coalesce(sum(nanodollars), 0)::bigint AS nanodollars, count(DISTINCT job_id) AS jobs FROM ledger
    WHERE batch_id = :id AND outcome = 'answered' AND intended_at > :since
""")

INTERACTIVE = text("""
    SELECT count(*) / 3600.0::float8 AS jobs, (coalesce(sum(estimated_tokens), 0) / 3600.0)::float8 AS tokens FROM jobs
    WHERE created_at > now() - interval '1 hour' AND lane = 'interactive' AND tier = :tier
""")

UNANNOUNCED = text("""
    UPDATE batches SET announced = true WHERE id IN (
        SELECT id FROM batches WHERE ended_at IS NOT NULL AND NOT announced LIMIT :most FOR UPDATE SKIP LOCKED)
    RETURNING id, tenant, name, callback, state
""")


LAST_NUMBER = 2**62 - 1


@dataclass(frozen=True)
class Chunk:
    """Items that are stored together: those behind the first `stored`, `items` in all with those, by their digest."""

    stored: int
    items: int
    digest: str
    jobs: Sequence[NewJob]
    refused: Sequence[BadItem]


def job_id(batch_id: UUID, number: int) -> UUID:
    """Name the job of an item: by 60 bits of its batch, then its number, so that ids have the order of the input.

    The form is that of UUID version 8, RFC 9562 section 5.8.
    """
    of_batch = batch_id.bytes[:8]
    value = int.from_bytes(of_batch) << 64 | number
    version, variant = 0xF << 76, 0x3 << 62
    return UUID(int=value & ~version & ~variant | 8 << 76 | 2 << 62)


def begin(connection: Connection, new: NewBatch) -> Batch:
    """Begin a batch, or find the one of that name; what may change is changed: its cap, its rules, its callback.

    Raises as `check_same` does.
    """
    values = {
        "id": new.id,
        "tenant": new.tenant,
        "name": new.name,
        "project": new.project,
        "prompt_id": new.prompt.id,
        "prompt_version": new.prompt.version,
        "prompt_digest": new.prompt.digest,
        "tier": new.tier,
        "digest": new.digest,
        "forecast": None if new.forecast is None else json.dumps(new.forecast),
        "abort_if": json.dumps(asdict(new.abort_if)),
        "callback": new.callback,
        "by_provider": new.by_provider,
        "due_by": new.due_by,
        "starts_at": new.starts_at,
    }
    is_new = connection.execute(BEGIN, values).one_or_none() is not None
    batch = find(connection, new.tenant, new.name)
    if not is_new:
        check_same(batch, new)
        connection.execute(CHANGE, values)
    if new.max_nanodollars is not None:
        cap(connection, batch, new.max_nanodollars)
    return batch


def check_same(batch: Batch, new: NewBatch) -> None:
    """Raise InvalidRequestError where another request was begun, and BatchTakenError where it was cancelled."""
    whose = f"batch {new.name!r} of tenant {new.tenant!r}"
    if batch.digest != new.digest:
        raise InvalidRequestError(
            "name",
            f"{whose} was begun with another prompt, tier, project or variables",
            "use a new name, or run it as it was begun",
        )
    if batch.state is BatchState.CANCELLED:
        raise BatchTakenError(f"{whose} was cancelled; give it a new name")


def cap(connection: Connection, batch: Batch, nanodollars: int) -> None:
    """Set what a batch may cost, from the next call on; raise InvalidRequestError."""
    limit = Budget(batch.tenant, Period.BATCH, Unit.NANODOLLARS, project=str(batch.id), hard_limit=nanodollars)
    connection.execute(CAP, {"id": batch.id, "most": limit.hard_limit})


def find(connection: Connection, tenant: str, name: str) -> Batch:
    """Look a batch up; raise InvalidRequestError."""
    batch = find_begun(connection, tenant, name)
    if batch is None:
        raise InvalidRequestError(
            "name", f"tenant {tenant!r} has no batch {name!r}", "see `penstock batch list` for those that there are"
        )
    return batch


def find_begun(connection: Connection, tenant: str, name: str) -> Batch | None:
    """Look a batch up; None where none was begun."""
    row = connection.execute(FIND, {"tenant": tenant, "name": name}).one_or_none()
    return None if row is None else _batch(row)


def find_all(connection: Connection, tenant: str | None, *, most: int) -> list[Batch]:
    """List the batches of a tenant, or of all, the newest first."""
    return [_batch(row) for row in connection.execute(LIST, {"tenant": tenant, "most": most})]


def live(connection: Connection) -> list[Batch]:
    """List the batches that have not ended."""
    return [_batch(row) for row in connection.execute(LIVE)]


def load(connection: Connection, batch_id: UUID, chunk: Chunk, encoded: bytes) -> bool:
    """Store a chunk of items, its jobs as `encode` gives them; False, with nothing stored, where it is not ours to do.

    That is where another loader has gone on meanwhile, or the batch was cancelled.
    """
    values = {"id": batch_id, "stored": chunk.stored, "items": chunk.items, "items_digest": chunk.digest}
    if connection.execute(TAKE, values).one_or_none() is None:
        return False
    if chunk.jobs:
        copy(connection, chunk.jobs, window=0, encoded=encoded)
    if chunk.refused:
        rows = [{"number": each.number, "reason": storable(each.reason)} for each in chunk.refused]
        connection.execute(REFUSE, {"id": batch_id, "rows": json.dumps(rows)})
    return True


def end_loading(connection: Connection, batch_id: UUID, items: int) -> bool:
    """Note that the input has no more than `items`; False where another loader has stored more."""
    return connection.execute(LOADED, {"id": batch_id, "items": items}).one_or_none() is not None


def move(
    connection: Connection, batch_id: UUID, becomes: BatchState, *from_states: BatchState, reason: str | None = None
) -> bool:
    """Change the state of a batch that is in one of `from_states`, and tell whether it was."""
    values = {"id": batch_id, "becomes": becomes, "from_states": list(from_states), "reason": reason}
    return connection.execute(MOVE, values).one_or_none() is not None


def resume(connection: Connection, batch: Batch) -> bool:
    """Let a batch that is paused or stopped go on, to be judged by what comes now; tell whether it was one."""
    if not move(connection, batch.id, BatchState.RUNNING, BatchState.PAUSED, BatchState.STOPPED):
        return False
    so_far = progress(connection, batch)
    dead = so_far.jobs.get(JobState.DEAD, 0)
    values = {"id": batch.id, "ended": so_far.ended, "dead": dead, "settled": so_far.settled_nanodollars}
    connection.execute(RESUME, values)
    connection.execute(FORGIVE, {"id": batch.id})
    return True


def close(connection: Connection, batch: Batch) -> None:
    """End a batch of which nothing is to be read or run any more.

    Its row is taken first: what was queued anew by somebody who had it before is seen then.
    """
    if connection.execute(HOLD, {"id": batch.id}).one_or_none() is not None:
        connection.execute(CLOSE, {"id": batch.id})


def progress(connection: Connection, batch: Batch) -> Progress:
    """Count where the jobs of a batch stand, and what they came to."""
    row = connection.execute(COUNTS, {"id": batch.id, "tenant": batch.tenant, "account": str(batch.id)}).one()
    jobs = {JobState(state): count for state, count in row.jobs.items()}
    return Progress(batch, jobs, row.refused, row.settled, row.held, row.tokens, row.now, row.at_provider)


def park(connection: Connection, batch_id: UUID, *, most: int) -> int:
    """Pause waiting jobs of a batch, and give how many."""
    return connection.execute(PARK, {"id": batch_id, "most": most}).rowcount


def unpark(connection: Connection, batch_id: UUID, *, most: int) -> int:
    """Let paused jobs of a batch go on, the first of its input first, and give how many."""
    return connection.execute(UNPARK, {"id": batch_id, "most": most}).rowcount


def left(connection: Connection, batch_id: UUID, *, most: int) -> dict[UUID, JobState]:
    """Give jobs of a batch that have not ended, and where they stand."""
    return {row.id: JobState(row.state) for row in connection.execute(LEFT, {"id": batch_id, "most": most})}


def held_up(connection: Connection, batch_id: UUID) -> str | None:
    """Say what a job of a batch waits for that a budget has refused; None where there is none."""
    detail: str | None = connection.scalar(HELD_UP, {"id": batch_id})
    return detail


def paid_a_job(connection: Connection, batch: Batch) -> float:
    """Give what the answers to a job came to on average, in nano-dollars, since the batch was last resumed."""
    row = connection.execute(PAID, {"id": batch.id, "since": batch.goes_on_at}).one()
    return row.nanodollars / row.jobs if row.jobs else 0.0


def page(connection: Connection, batch_id: UUID, *, after: int, most: int) -> dict[int, UUID]:
    """Give the jobs behind an item's number, by number, in the order of the input."""
    return {row.batch_number: row.id for row in connection.execute(PAGE, _page(batch_id, after, most))}


def texts(connection: Connection, batch_id: UUID, *, after: int, most: int) -> dict[int, tuple[str, str]]:
    """Give documents and results behind an item's number, by number: those of which both are still kept."""
    found = connection.execute(TEXTS, _page(batch_id, after, most))
    return {row.batch_number: (row.document, row.text) for row in found}


def errors(connection: Connection, batch_id: UUID, *, after: int, most: int) -> dict[int, str]:
    """Give the reasons of refused items behind a number, by number, in the order of the input."""
    return {row.number: row.reason for row in connection.execute(ERRORS, _page(batch_id, after, most))}


def history(connection: Connection, tenant: str, prompt: str, tier: str) -> History:
    """Say what the latest calls of a tenant with a prompt, whatever its version, came to in a tier."""
    row = connection.execute(HISTORY, {"tenant": tenant, "prompt": prompt, "tier": tier}).one()
    return History(row.calls, row.mean_tokens, row.deviation, row.latency_s)


def interactive_load(connection: Connection, tier: str) -> tuple[float, float]:
    """Say how many interactive jobs, and of how many tokens, came to a tier each second of the last hour."""
    row = connection.execute(INTERACTIVE, {"tier": tier}).one()
    return row.jobs, row.tokens


def take_unannounced(connection: Connection, *, most: int = 100) -> list[tuple[Batch, str]]:
    """Mark ended batches as announced and give those with a callback; who publishes commits after it.

    One may be told twice, none never.
    """
    rows = connection.execute(UNANNOUNCED, {"most": most}).all()
    return [(find(connection, row.tenant, row.name), row.callback) for row in rows if row.callback]


def _page(batch_id: UUID, after: int, most: int) -> dict[str, object]:
    ids = {"after_id": job_id(batch_id, after), "last_id": job_id(batch_id, LAST_NUMBER)}
    return {"id": batch_id, "after": after, "most": most} | ids


def _batch(row: Any) -> Batch:
    return Batch(
        id=row.id,
        tenant=row.tenant,
        name=row.name,
        project=row.project,
        prompt=PromptReference(id=row.prompt_id, version=row.prompt_version, digest=row.prompt_digest),
        tier=row.tier,
        state=BatchState(row.state),
        reason=row.reason,
        digest=row.request_digest,
        forecast=row.forecast,
        abort_if=AbortIf(**row.abort_if),
        callback=row.callback,
        items=row.items,
        items_digest=row.items_digest,
        is_loaded=row.is_loaded,
        created_at=row.created_at,
        starts_at=row.starts_at,
        has_begun=row.has_begun,
        resumed_at=row.resumed_at,
        ended_at=row.ended_at,
        max_nanodollars=row.max_nanodollars,
        ended_before=row.ended_before,
        dead_before=row.dead_before,
        settled_before=row.settled_before,
    )
