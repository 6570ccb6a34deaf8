"""What may be done with the dead: announce, replay, discard. It must not know why they died, or who decides."""

from dataclasses import dataclass
from uuid import UUID

from sqlalchemy import Connection, text

from penstock.jobs import requeueing

REPLAY = requeueing.statement("state = 'dead' AND reason <> 'invalid'", changes="announced = false")

DISCARD = text("""
    UPDATE jobs SET state = 'cancelled', detail = 'discarded from the dead letters'
    WHERE id = ANY(CAST(:ids AS uuid[])) AND state = 'dead'
    RETURNING id
""")

UNANNOUNCED = text("""
    UPDATE jobs SET announced = true
    WHERE id IN (
        SELECT id FROM jobs WHERE state = 'dead' AND NOT announced
        ORDER BY ended_at LIMIT :most FOR UPDATE SKIP LOCKED)
    RETURNING id, tenant, tier, lane, reason, attempts
""")


@dataclass(frozen=True)
class DeadLetter:
    """What is published about a death: ids and classes, no text."""

    job_id: UUID
    tenant: str
    tier: str
    lane: str
    reason: str
    attempts: int


def take_unannounced(connection: Connection, *, most: int = 500) -> list[DeadLetter]:
    """Mark deaths as announced and give them; the caller publishes, then commits: one may be told twice, none never."""
    return [
        DeadLetter(row.id, row.tenant, row.tier, row.lane, row.reason, row.attempts)
        for row in connection.execute(UNANNOUNCED, {"most": most})
    ]


def replay(connection: Connection, ids: list[UUID]) -> list[UUID]:
    """Queue dead jobs anew and give the ids of those that were dead: a second replay finds nothing to do.

    Answers that were paid for are kept and used. A deadline that has passed is dropped. A job that was refused at the
    door has no content, and stays; so does one whose batch was cancelled. A batch that was done goes on.
    """
    return requeueing.requeue(connection, REPLAY, ids)


def discard(connection: Connection, ids: list[UUID]) -> list[UUID]:
    """Move dead jobs to cancelled, history and all, and give the ids of those that were dead."""
    return [row.id for row in connection.execute(DISCARD, {"ids": [str(job_id) for job_id in ids]})]
