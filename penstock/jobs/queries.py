"""Jobs as others see them, and the one thing that others may do to a live one: cancel it. It must not know who asks."""

from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import Connection, text

from penstock.errors import Reason
from penstock.schemas import TOKEN_CLASSES, Job, JobState, Lane, OnUnavailable, PromptReference, Usage

SELECT_JOBS = """
    SELECT jobs.id, jobs.tenant, jobs.project, jobs.batch_id, jobs.state,
        jobs.prompt_id, jobs.prompt_version, jobs.prompt_digest,
        jobs.tier, jobs.lane, jobs.priority, jobs.document_name, jobs.metadata, jobs.attempts, jobs.created_at,
        jobs.due_at, jobs.deadline, jobs.started_at, jobs.ended_at, jobs.reason, jobs.detail, jobs.on_unavailable,
        jobs.purged_at, results.text AS result,
        coalesce(results.degraded, false) AS degraded, coalesce(results.cached, false) AS cached,
        coalesce(results.over_soft_limit, false) AS over_soft_limit,
        results.model_asked, results.model_served, results.sources, spent.*
    FROM jobs
    LEFT JOIN results ON results.job_id = jobs.id
    LEFT JOIN LATERAL (
        SELECT coalesce(sum(nanodollars), 0)::bigint AS nanodollars,
            coalesce(sum(input_tokens), 0)::bigint AS input_tokens,
            coalesce(sum(cached_input_tokens), 0)::bigint AS cached_input_tokens,
            coalesce(sum(cache_write_tokens), 0)::bigint AS cache_write_tokens,
            coalesce(sum(output_tokens), 0)::bigint AS output_tokens,
            coalesce(sum(reasoning_tokens), 0)::bigint AS reasoning_tokens
        FROM (SELECT call_id FROM ledger WHERE job_id = jobs.id) AS calls JOIN ledger_amounts USING (call_id)
    ) AS spent ON true
"""

GET = text(SELECT_JOBS + "WHERE jobs.id = ANY(CAST(:ids AS uuid[]))")

LIST = text(
    SELECT_JOBS
    + """
    WHERE (CAST(:tenant AS text) IS NULL OR tenant = :tenant)
        AND (CAST(:state AS text) IS NULL OR state = :state)
        AND (CAST(:tier AS text) IS NULL OR tier = :tier)
        AND (CAST(:reason AS text) IS NULL OR reason = :reason)
        AND (NOT :only_degraded OR results.degraded)
        AND (CAST(:since AS timestamptz) IS NULL OR coalesce(ended_at, created_at) >= :since)
    ORDER BY created_at DESC, id LIMIT :most
"""
)

STATES = text("SELECT id, state FROM jobs WHERE id = ANY(CAST(:ids AS uuid[]))")

CANCEL = text("""
    WITH live AS (
        SELECT id FROM jobs
        WHERE id = ANY(CAST(:ids AS uuid[])) AND state IN ('paused', 'queued', 'released', 'running', 'retrying')
        ORDER BY id FOR UPDATE
    ), cancelled AS (
        UPDATE jobs SET state = 'cancelled', ended_at = now() FROM live WHERE jobs.id = live.id
        RETURNING jobs.id, fence
    ), history AS (
        UPDATE attempts SET ended_at = now(), outcome = 'cancelled' FROM cancelled
        WHERE attempts.job_id = cancelled.id AND attempts.fence = cancelled.fence AND attempts.outcome = 'running'
    )
    SELECT id FROM cancelled
""")

ATTEMPTS = text("""
    SELECT fence, worker, released_at, started_at, ended_at, outcome, reason, detail
    FROM attempts WHERE job_id = :job_id ORDER BY fence
""")


@dataclass(frozen=True)
class Filter:
    """Which jobs; None means any. `since` compares with the end of a job, or its creation while it lives."""

    tenant: str | None = None
    state: JobState | None = None
    tier: str | None = None
    reason: Reason | None = None
    since: datetime | None = None
    only_degraded: bool = False


@dataclass(frozen=True)
class Attempt:
    """One run of a job, as the history keeps it. It holds no text."""

    fence: int
    worker: str
    released_at: datetime | None
    started_at: datetime
    ended_at: datetime | None
    outcome: str
    reason: str | None
    detail: str | None


def get(connection: Connection, ids: list[UUID]) -> dict[UUID, Job]:
    """Look jobs up; ids that do not exist are missing from what comes back."""
    return {row.id: _job(row) for row in connection.execute(GET, {"ids": [str(job_id) for job_id in ids]})}


def find(connection: Connection, which: Filter, *, most: int) -> list[Job]:
    """List jobs, the newest first."""
    values = {
        "tenant": which.tenant,
        "state": which.state,
        "tier": which.tier,
        "reason": which.reason,
        "since": which.since,
        "only_degraded": which.only_degraded,
        "most": most,
    }
    return [_job(row) for row in connection.execute(LIST, values)]


def states(connection: Connection, ids: list[UUID]) -> dict[UUID, JobState]:
    """Look up only where jobs stand, which is cheap enough to poll."""
    rows = connection.execute(STATES, {"ids": [str(job_id) for job_id in ids]})
    return {row.id: JobState(row.state) for row in rows}


def attempts(connection: Connection, job_id: UUID) -> list[Attempt]:
    """Give the whole history of a job, the oldest attempt first."""
    names = Attempt.__dataclass_fields__
    rows = connection.execute(ATTEMPTS, {"job_id": job_id}).mappings()
    return [Attempt(**{name: row[name] for name in names}) for row in rows]


def cancel(connection: Connection, ids: list[UUID]) -> list[UUID]:
    """Cancel those that live and give their ids; a call in flight is stopped by whoever makes it."""
    return [row.id for row in connection.execute(CANCEL, {"ids": [str(job_id) for job_id in ids]})]


def _job(row: Any) -> Job:
    return Job(
        id=row.id,
        tenant=row.tenant,
        project=row.project,
        batch_id=row.batch_id,
        state=JobState(row.state),
        prompt=PromptReference(id=row.prompt_id, version=row.prompt_version, digest=row.prompt_digest),
        tier=row.tier,
        lane=Lane(row.lane),
        priority=row.priority,
        document_name=row.document_name,
        metadata=row.metadata,
        attempts=row.attempts,
        created_at=row.created_at,
        due_at=row.due_at,
        deadline=row.deadline,
        started_at=row.started_at,
        ended_at=row.ended_at,
        reason=Reason(row.reason) if row.reason else None,
        detail=row.detail,
        on_unavailable=OnUnavailable(row.on_unavailable),
        result=row.result,
        degraded=row.degraded,
        cached=row.cached,
        over_soft_limit=row.over_soft_limit,
        purged_at=row.purged_at,
        model_asked=row.model_asked,
        model_served=row.model_served,
        sources=row.sources,
        usage=Usage(**{name: getattr(row, name) for name in TOKEN_CLASSES}),
        cost_nanodollars=row.nanodollars,
    )
