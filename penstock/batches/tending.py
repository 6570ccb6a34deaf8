"""Makes the jobs of a batch agree with its state, and stops one that has left its forecast. It must not know a loop.

What a person wants is a state of the batch, one row; its jobs follow, a part at a time. Whoever changes the state lets
them follow at once, and upkeep does what was left undone, and what came between.
"""

from dataclasses import dataclass, field
from functools import partial
from uuid import UUID

from sqlalchemy import Connection

from penstock.batches import rows
from penstock.batches.batch import AbortIf, Batch, BatchState
from penstock.jobs import queries
from penstock.schemas import JobState

JOBS_A_STEP = 5_000


@dataclass(frozen=True)
class Followed:
    """What one step did: how many jobs followed, and whose calls have to be stopped. There may be more to do."""

    jobs: int
    stopped: list[UUID] = field(default_factory=list)

    @property
    def is_all(self) -> bool:
        """Tell whether nothing was left to do."""
        return self.jobs < JOBS_A_STEP


def follow(connection: Connection, batch: Batch) -> Followed:
    """Let at most JOBS_A_STEP jobs follow the state of their batch."""
    if batch.ended_at is not None:
        return Followed(0)
    if batch.state is BatchState.CANCELLED:
        left = rows.left(connection, batch.id, most=JOBS_A_STEP)
        cancelled = queries.cancel(connection, list(left))
        return Followed(len(cancelled), [job_id for job_id in cancelled if left[job_id] is JobState.RUNNING])
    if batch.state is BatchState.RUNNING and batch.has_begun:
        return Followed(rows.unpark(connection, batch.id, most=JOBS_A_STEP))
    return Followed(rows.park(connection, batch.id, most=JOBS_A_STEP))


def judge(connection: Connection, batch: Batch) -> str | None:
    """Stop a batch that has left its forecast or used up its budget, and say why."""
    if batch.state is not BatchState.RUNNING:
        return None
    fault = rows.held_up(connection, batch.id)
    if fault is None and batch.abort_if != AbortIf(errors=None, cost=None):
        fault = rows.progress(connection, batch).fault(partial(rows.paid_a_job, connection, batch))
    if fault and rows.move(connection, batch.id, BatchState.STOPPED, BatchState.RUNNING, reason=fault):
        return fault
    return None
