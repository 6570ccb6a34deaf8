"""A worker's claim to be alive. It must not know how often it is renewed.

One row a process stands for all of its jobs, so that a heartbeat is one small update however many they are. A worker
that was away past its lease may renew it: what upkeep has taken from it meanwhile stays taken, by the fence.
"""

import json
from collections.abc import Sequence
from uuid import UUID

from sqlalchemy import Connection, text

from penstock.jobs.states import POISON_AFTER

RENEW = text("""
    INSERT INTO workers (id, tier, lease_until) VALUES (:worker, :tier, now() + make_interval(secs => :lease_s))
    ON CONFLICT (id) DO UPDATE SET lease_until = excluded.lease_until
""")

ALIVE = text("SELECT count(*) FROM workers WHERE lease_until > now()")

LOST = text("""
    SELECT given.job_id, given.fence FROM jsonb_to_recordset(CAST(:rows AS jsonb)) AS given(job_id uuid, fence bigint)
    WHERE NOT EXISTS (SELECT 1 FROM jobs WHERE id = given.job_id AND fence = given.fence AND state = 'running')
""")

ADRIFT = text("""
    WITH adrift AS (
        UPDATE jobs SET crashes = crashes + 1, due_at = now(), detail = 'its run left no trace',
            state = CASE WHEN crashes + 1 >= :poison THEN 'dead' ELSE 'retrying' END,
            ended_at = CASE WHEN crashes + 1 >= :poison THEN now() END,
            reason = CASE WHEN crashes + 1 >= :poison THEN 'poison' ELSE 'worker_lost' END
        WHERE worker = :worker AND state = 'running' AND started_at < now() - make_interval(secs => :older_than_s)
            AND NOT id = ANY(CAST(:running AS uuid[]))
        RETURNING id, fence
    ), history AS (
        UPDATE attempts SET ended_at = now(), outcome = 'unknown', reason = 'worker_lost' FROM adrift
        WHERE attempts.job_id = adrift.id AND attempts.fence = adrift.fence
    )
    SELECT count(*) FROM adrift
""")

RETIRE = text("UPDATE workers SET lease_until = now() WHERE id = :worker")


def renew(connection: Connection, worker: str, lease_s: float, tier: str = "") -> None:
    """Begin the lease of a worker of a tier, or extend it, to `lease_s` seconds from now."""
    connection.execute(RENEW, {"worker": worker, "tier": tier, "lease_s": lease_s})


def count_alive(connection: Connection) -> int:
    """Count the workers whose lease has not run out."""
    return int(connection.scalar(ALIVE) or 0)


def lost(connection: Connection, running: Sequence[tuple[UUID, int]]) -> list[tuple[UUID, int]]:
    """Find which of these (job, fence) pairs are no longer this worker's: cancelled, or taken over."""
    rows = json.dumps([{"job_id": str(job_id), "fence": fence} for job_id, fence in running])
    return [(row.job_id, row.fence) for row in connection.execute(LOST, {"rows": rows})]


def release_adrift(connection: Connection, worker: str, running: Sequence[UUID], *, older_than_s: float) -> int:
    """Give back jobs that the table says this worker runs and the worker does not; gives their number.

    It counts as a crash: a job whose end cannot be written must not run for ever.
    """
    given = {
        "worker": worker,
        "running": [str(job_id) for job_id in running],
        "older_than_s": older_than_s,
        "poison": POISON_AFTER,
    }
    return int(connection.scalar(ADRIFT, given) or 0)


def retire(connection: Connection, worker: str) -> None:
    """End the lease of a worker that stops."""
    connection.execute(RETIRE, {"worker": worker})
