"""What the rows say about a job that waits: who is before it, who could run it. It must not know the gates."""

from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from sqlalchemy import Connection, text

from penstock.schemas import JobState, Lane

STANDING = text("""
    SELECT jobs.id, jobs.tenant, jobs.state, jobs.tier, jobs.lane, jobs.due_at, jobs.reason, jobs.detail, jobs.attempts,
        jobs.estimated_tokens,
        jobs.released_at, jobs.started_at, jobs.due_at > now() AS is_put_off,
        (SELECT count(*) FROM workers WHERE workers.tier = jobs.tier AND lease_until > now()) AS workers,
        (SELECT count(*) FROM jobs AS own
            WHERE own.state = 'queued' AND own.tier = jobs.tier AND own.lane = jobs.lane AND own.tenant = jobs.tenant
                AND (own.priority, jobs.created_at, jobs.id) > (jobs.priority, own.created_at, own.id)) AS own_before,
        (SELECT count(*) FROM jobs AS others
            WHERE others.state = 'queued' AND others.tier = jobs.tier AND others.lane = jobs.lane
                AND others.tenant <> jobs.tenant) AS others_waiting,
        (SELECT count(*) FROM jobs AS own
            WHERE own.state IN ('released', 'running') AND own.tier = jobs.tier AND own.tenant = jobs.tenant)
            AS outstanding
    FROM jobs WHERE jobs.id = :job_id
""")


@dataclass(frozen=True)
class Standing:
    """Where a job stands: `own_before` queued jobs of its tenant go first, `outstanding` of its jobs are under way."""

    id: UUID
    tenant: str
    state: JobState
    tier: str
    lane: Lane
    due_at: datetime
    is_put_off: bool
    reason: str | None
    detail: str | None
    attempts: int
    estimated_tokens: int
    released_at: datetime | None
    started_at: datetime | None
    workers: int
    own_before: int
    others_waiting: int
    outstanding: int


def standing(connection: Connection, job_id: UUID) -> Standing | None:
    """Look a job up among those that wait with it; None if there is no such job."""
    row = connection.execute(STANDING, {"job_id": job_id}).mappings().one_or_none()
    if row is None:
        return None
    return Standing(**{**row, "state": JobState(row["state"]), "lane": Lane(row["lane"])})
