"""Runs of a batch's jobs, as a feeder and a worker make them, and what came of them."""

from typing import Any

from sqlalchemy import Engine

from penstock.client import Client
from penstock.jobs import leases, release
from penstock.jobs.execution import Claim, ClaimedJob, Ending, Outcome, claim, finish
from penstock.jobs.release import Allowance
from penstock.schemas import JobState, Lane

WORKER = "w1"


def states(client: Client, name: str = "night") -> dict[JobState, int]:
    return client.batch_progress("acme", name).jobs


def run_some(engine: Engine, count: int) -> list[ClaimedJob]:
    """Release and claim jobs as a feeder and a worker do."""
    with engine.begin() as connection:
        leases.renew(connection, WORKER, 60)
        released = release.release_fairly(connection, "small", Lane.BATCH, Allowance(count))
        claimed = claim(connection, [Claim(each.job_id, WORKER) for each in released])
    return [job for job in claimed if job]


def end(engine: Engine, jobs: list[ClaimedJob], outcome: Outcome, **fields: Any) -> None:
    """End the runs of jobs."""
    with engine.begin() as connection:
        finish(connection, [Ending(job.id, job.fence, outcome, **fields) for job in jobs])


def succeed(engine: Engine, jobs: list[ClaimedJob]) -> None:
    end(engine, jobs, Outcome.SUCCEEDED, result="A summary.", model_asked="m", model_served="m")
