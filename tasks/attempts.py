"""One Celery task run is one attempt of one job. It must not know how an attempt works."""

from typing import Any, NoReturn
from uuid import UUID

from celery.exceptions import Ignore, Retry, SoftTimeLimitExceeded
from sqlalchemy.exc import DBAPIError

from penstock import telemetry
from penstock.attempt import Report, run
from penstock.errors import JobDeadError, Reason, StoreError
from penstock.jobs.execution import Outcome
from tasks.declaration import task


@task(name="penstock.attempt", throws=(JobDeadError,))
async def attempt(self: Any, **_identifiers: str) -> dict[str, Any]:
    """Run one attempt of the job whose id is the task's.

    Safe to run twice: the claim lets one run through, and the others find nothing to do.
    """
    try:
        report = await run(self.app.house, UUID(self.request.id), time_limits=[SoftTimeLimitExceeded])
    except DBAPIError as error:
        telemetry.failed(error)
        raise StoreError(type(error).__name__) from None  # what Postgres says may quote the row
    return conclude(report)


@task(name="penstock.dead_letter", throws=(JobDeadError,))
async def dead_letter(_self: Any, job_id: str, reason: str, **_identifiers: Any) -> NoReturn:
    """Show a death in Flower, whatever the job died of. Safe to run twice: it changes nothing."""
    raise JobDeadError(job_id, Reason(reason), "announced")


def conclude(report: Report) -> dict[str, Any]:
    """Give Celery the state that the attempt ended in: its result, or Retry, JobDeadError or Ignore."""
    match report.outcome:
        case Outcome.SUCCEEDED:
            return {"model": report.model, "cost_nanodollars": report.cost_nanodollars}
        case Outcome.RETRIED | Outcome.DEFERRED | Outcome.HANDED_BACK:
            raise Retry(f"{report.reason or report.outcome}: {report.detail}", when=report.delay_s)
        case Outcome.DEAD:
            raise JobDeadError(str(report.job_id), report.reason or Reason.INTERNAL, report.detail or "")
        case None:
            raise Ignore("there is nothing to claim: the job was taken, cancelled or ended before")
