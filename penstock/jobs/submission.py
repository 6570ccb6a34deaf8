"""Jobs become rows. It must not know how a request was checked, or that there is a broker."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from io import BytesIO
from typing import Any
from uuid import UUID

import psycopg
from psycopg.copy import FileWriter
from sqlalchemy import Connection, text
from sqlalchemy.exc import DBAPIError

from penstock.errors import IdempotencyConflictError
from penstock.schemas import JobState, Lane, OnUnavailable, PromptReference
from penstock.store.text import storable


@dataclass(frozen=True)
class NewJob:
    """A request that has passed the door, complete with everything that was looked up for it."""

    id: UUID
    tenant: str
    prompt: PromptReference
    tier: str
    lane: Lane
    priority: int
    estimated_tokens: int
    variables: dict[str, str]
    document: str | None
    document_name: str | None
    metadata: dict[str, str]
    idempotency_key: str | None
    content_digest: str
    deadline: datetime | None
    on_unavailable: OnUnavailable
    fallback_tiers: tuple[str, ...] = ()
    project: str = ""
    is_fresh: bool = False
    batch_id: UUID | None = None
    batch_number: int | None = None


@dataclass(frozen=True)
class Accepted:
    """The row that stands for a request; `created` is False when an earlier request had the same key."""

    id: UUID
    state: JobState
    tier: str
    lane: Lane
    created: bool


COLUMNS = """position integer, id uuid, tenant text, project text, prompt_id text, prompt_version text,
    prompt_digest text, tier text, lane text, priority smallint, estimated_tokens bigint, variables jsonb,
    document text, document_name text, metadata jsonb, idempotency_key text, content_digest text,
    deadline timestamptz, on_unavailable text, fallback_tiers text[], is_fresh boolean, batch_id uuid,
    batch_number bigint"""

STAGE = text(f"CREATE TEMPORARY TABLE IF NOT EXISTS submission ({COLUMNS}) ON COMMIT DELETE ROWS")
UNSTAGE = text("TRUNCATE submission")
COPY = "COPY submission FROM STDIN"

FROM_JSON = f"SELECT * FROM jsonb_to_recordset(CAST(:rows AS jsonb)) AS row({COLUMNS})"  # noqa: S608
FROM_STAGE = "SELECT * FROM submission"

INSERT = """
    WITH given AS (
        {given}
    ), outstanding AS (
        SELECT tenant, tier, count(*) AS jobs FROM jobs
        WHERE state IN ('released', 'running') AND (tenant, tier) IN (SELECT tenant, tier FROM given)
        GROUP BY tenant, tier
    ), ranked AS (
        SELECT given.*, coalesce(outstanding.jobs, 0)
            + row_number() OVER (PARTITION BY given.tenant, given.tier, given.lane ORDER BY position) AS nth
        FROM given LEFT JOIN outstanding USING (tenant, tier)
    ), judged AS (
        SELECT ranked.*, lane = 'interactive' AND nth <= :window AND NOT EXISTS (
            SELECT 1 FROM jobs WHERE state = 'queued' AND tier = ranked.tier AND lane = 'interactive') AS at_once
        FROM ranked
    ), waiting AS (
        SELECT id FROM batches
        WHERE id IN (SELECT batch_id FROM given) AND (state <> 'running' OR starts_at > now() OR by_provider)
    ), made AS (
        INSERT INTO jobs (id, tenant, project, state, released_at, prompt_id, prompt_version, prompt_digest, tier, lane,
            priority, estimated_tokens, document_name, metadata, idempotency_key, content_digest, deadline,
            on_unavailable, fallback_tiers, is_fresh, batch_id, batch_number)
        SELECT id, tenant, project,
            CASE WHEN at_once THEN 'released' WHEN EXISTS (SELECT 1 FROM waiting WHERE waiting.id = judged.batch_id)
                THEN 'paused' ELSE 'queued' END,
            CASE WHEN at_once THEN now() END,
            prompt_id, prompt_version, prompt_digest, tier, lane,
            priority, estimated_tokens, document_name, metadata, idempotency_key, content_digest, deadline,
            on_unavailable, fallback_tiers, is_fresh, batch_id, batch_number
        FROM judged ORDER BY tenant, idempotency_key, position  -- one order for all: two submitters cannot deadlock
        ON CONFLICT DO NOTHING
        RETURNING id, state, tier, lane
    ), stored AS (
        INSERT INTO payloads (job_id, variables, document)
        SELECT id, variables, document FROM given WHERE id IN (SELECT id FROM made)
        ON CONFLICT DO NOTHING
    )
    SELECT id, state, tier, lane FROM made
"""
INSERT_FROM_JSON = text(INSERT.replace("{given}", FROM_JSON))
INSERT_FROM_STAGE = text(INSERT.replace("{given}", FROM_STAGE))

FIND = text("""
    SELECT given.position, jobs.id, jobs.tenant, jobs.state, jobs.tier, jobs.lane, jobs.content_digest
    FROM jsonb_to_recordset(CAST(:rows AS jsonb)) AS given(
        position integer, id uuid, tenant text, idempotency_key text)
    JOIN jobs ON jobs.id = given.id
        OR (jobs.tenant = given.tenant AND jobs.idempotency_key = given.idempotency_key)
""")


def submit(connection: Connection, jobs: Sequence[NewJob], *, window: int) -> list[Accepted]:
    """Insert the jobs and say what stands for each, in order; a repeat of an idempotency key or id gets the first job.

    An interactive job is born released while its tenant has fewer than `window` jobs outstanding in the tier, where
    those before it in `jobs` count, repeats too, and while nobody waits: it passes no tenant that has to queue.
    Raises IdempotencyConflictError when a key or id was used before with other content, or an id by another tenant;
    the caller rolls back.
    """
    rows = json.dumps([_row(position, job) for position, job in enumerate(jobs)])
    return _stand_for(jobs, connection, connection.execute(INSERT_FROM_JSON, {"rows": rows, "window": window}))


def encode(connection: Connection, jobs: Sequence[NewJob]) -> bytes:
    """Give jobs in the form of COPY. Nothing is sent: the connection of psycopg says how values are written."""
    driver: Any = connection.connection.driver_connection
    written = BytesIO()
    with driver.cursor() as cursor, psycopg.Copy(cursor, writer=FileWriter(written)) as stage:
        for position, job in enumerate(jobs):
            stage.write_row(_record(position, job))
    return written.getvalue()


def copy(
    connection: Connection, jobs: Sequence[NewJob], *, window: int, encoded: bytes | None = None
) -> list[Accepted]:
    """Do what `submit` does, through COPY: for many jobs it takes a fourth of the client's time.

    The connection must be one of psycopg; it keeps an empty temporary table. `encoded` are the jobs, if they are so
    already: a thread that only sends them does not take turns with one that works.
    """
    connection.execute(STAGE)
    driver: Any = connection.connection.driver_connection
    try:
        with driver.cursor() as cursor, cursor.copy(COPY) as stage:
            stage.write(encode(connection, jobs) if encoded is None else encoded)
    except psycopg.Error as error:
        # Postgres quotes the value of a row in the context that it gives; the connection is the caller's to roll back.
        bare = type(error)(error.diag.message_primary or type(error).__name__)
        raise DBAPIError.instance(COPY, None, bare, psycopg.Error, hide_parameters=True) from None
    found = connection.execute(INSERT_FROM_STAGE, {"window": window}).all()
    connection.execute(UNSTAGE)
    return _stand_for(jobs, connection, found)


def _stand_for(jobs: Sequence[NewJob], connection: Connection, rows: Iterable[Any]) -> list[Accepted]:
    """Say what stands for each job, given the rows that were made."""
    made = {row.id: row for row in rows}
    inserted = [made.pop(job.id, None) for job in jobs]
    found = _find(connection, {n: job for n, job in enumerate(jobs) if inserted[n] is None})
    return [
        _accepted(found[n], created=False) if row is None else _accepted(row, created=True)
        for n, row in enumerate(inserted)
    ]


def _accepted(row: Any, *, created: bool) -> Accepted:
    return Accepted(row.id, JobState(row.state), row.tier, Lane(row.lane), created=created)


def _find(connection: Connection, repeats: Mapping[int, NewJob]) -> dict[int, Any]:
    """Look up what stands for each repeat, by its position."""
    if not repeats:
        return {}
    keys = [
        {"position": n, "id": str(job.id), "tenant": job.tenant, "idempotency_key": job.idempotency_key}
        for n, job in repeats.items()
    ]
    found: dict[int, Any] = {}
    for row in connection.execute(FIND, {"rows": json.dumps(keys)}):
        job = repeats[row.position]
        same = (row.tenant, row.content_digest) == (job.tenant, job.content_digest)
        if not same or found.setdefault(row.position, row) is not row:
            raise IdempotencyConflictError(
                "idempotency_key",
                f"{job.idempotency_key or str(job.id)!r} was used before, for another request than this one "
                f"of tenant {job.tenant!r}",
                "use a new key for a new request, or send the first request again unchanged",
            )
    return found


def _row(position: int, job: NewJob) -> dict[str, object]:
    row = asdict(job)
    del row["prompt"]
    return row | {
        "position": position,
        "id": str(job.id),
        "prompt_id": job.prompt.id,
        "prompt_version": job.prompt.version,
        "prompt_digest": job.prompt.digest,
        "deadline": job.deadline.isoformat() if job.deadline else None,
        "batch_id": str(job.batch_id) if job.batch_id else None,
    }


def _record(position: int, job: NewJob) -> tuple[object, ...]:
    """Give the job in the order of COLUMNS."""
    return (
        position,
        job.id,
        job.tenant,
        job.project,
        job.prompt.id,
        job.prompt.version,
        job.prompt.digest,
        job.tier,
        job.lane,
        job.priority,
        job.estimated_tokens,
        json.dumps(job.variables),
        job.document,
        job.document_name,
        json.dumps(job.metadata),
        job.idempotency_key,
        job.content_digest,
        job.deadline,
        job.on_unavailable,
        list(job.fallback_tiers),
        job.is_fresh,
        job.batch_id,
        job.batch_number,
    )


BURY_REFUSED = text("""
    INSERT INTO jobs (id, tenant, state, prompt_id, prompt_version, prompt_digest, tier, lane, priority,
        estimated_tokens, metadata, content_digest, ended_at, reason, detail)
    VALUES (:id, :tenant, 'dead', :prompt, '', '', '', 'interactive', 5, 0, '{}', '', now(), 'invalid', :detail)
    ON CONFLICT DO NOTHING
""")


def bury_refused(connection: Connection, job_id: UUID, *, tenant: str, prompt: str, detail: str) -> None:
    """Record a request that Celery's door refused, as dead with reason `invalid` and without its content."""
    values = {"id": job_id, "tenant": tenant, "prompt": prompt, "detail": storable(detail)}
    connection.execute(BURY_REFUSED, values)
