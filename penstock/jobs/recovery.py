"""What upkeep mends: jobs whose worker died, deadlines that passed. It must not know how often it is called."""

from dataclasses import dataclass
from uuid import UUID

from sqlalchemy import Connection, TextClause, text

from penstock.errors import Reason
from penstock.jobs.states import POISON_AFTER


@dataclass(frozen=True)
class Recovered:
    """A job that upkeep took out of dead hands or past its deadline; `dead` when that was its end."""

    job_id: UUID
    tenant: str
    reason: Reason
    dead: bool


EXPIRED_LEASES = text("""
    WITH adrift AS (
        SELECT jobs.id, jobs.worker FROM jobs
        LEFT JOIN workers ON workers.id = jobs.worker
        WHERE jobs.state = 'running' AND (workers.id IS NULL OR workers.lease_until <= now())
        LIMIT :most FOR UPDATE OF jobs SKIP LOCKED
    ), recovered AS (
        UPDATE jobs SET crashes = crashes + 1, due_at = now(),
            state = CASE WHEN crashes + 1 >= :poison THEN 'dead' ELSE 'retrying' END,
            ended_at = CASE WHEN crashes + 1 >= :poison THEN now() END,
            reason = CASE WHEN crashes + 1 >= :poison THEN 'poison' ELSE 'worker_lost' END,
            detail = CASE WHEN crashes + 1 >= :poison THEN format('%s workers died while they ran it', crashes + 1)
                ELSE 'its worker died' END
        FROM adrift WHERE jobs.id = adrift.id
        RETURNING jobs.id, jobs.fence, jobs.tenant, jobs.reason, jobs.state
    ), history AS (
        UPDATE attempts SET ended_at = now(), outcome = 'unknown', reason = 'worker_lost' FROM recovered
        WHERE attempts.job_id = recovered.id AND attempts.fence = recovered.fence
    )
    SELECT id, tenant, reason, state FROM recovered
""")

PASSED_DEADLINES = text("""
    UPDATE jobs SET state = 'dead', ended_at = now(), reason = 'deadline',
        detail = 'its deadline passed while it waited'
    WHERE id IN (
        SELECT id FROM jobs WHERE state IN ('queued', 'released', 'retrying') AND deadline <= now()
        LIMIT :most FOR UPDATE SKIP LOCKED)
    RETURNING id, tenant, reason, state
""")

FORGET_WORKERS = text("""
    DELETE FROM workers WHERE id IN (
        SELECT id FROM workers WHERE lease_until < now() - interval '1 hour' FOR UPDATE SKIP LOCKED)
""")


def recover_expired(connection: Connection, *, most: int = 1000) -> list[Recovered]:
    """Take jobs from workers whose lease ran out; one that took POISON_AFTER workers with it is dead.

    After SUSPECT_AFTER crashes a job shares no worker with another such job: the one which kills takes none with it.
    """
    return _recovered(connection, EXPIRED_LEASES, {"poison": POISON_AFTER, "most": most})


def bury_overdue(connection: Connection, *, most: int = 1000) -> list[Recovered]:
    """Bury waiting jobs whose deadline has passed; of a paused one it is looked at when it goes on."""
    return _recovered(connection, PASSED_DEADLINES, {"most": most})


def forget_workers(connection: Connection) -> None:
    """Drop the rows of workers that ended over an hour ago."""
    connection.execute(FORGET_WORKERS)


def _recovered(connection: Connection, statement: TextClause, values: dict[str, object]) -> list[Recovered]:
    return [
        Recovered(job_id=row.id, tenant=row.tenant, reason=Reason(row.reason), dead=row.state == "dead")
        for row in connection.execute(statement, values)
    ]
