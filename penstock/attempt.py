"""One attempt of one job: claim, complete, end. It must not know Celery; its caller turns the report into a state."""

import asyncio
import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from uuid import UUID

from penstock import ai, long_documents, telemetry
from penstock.degradation import can_degrade, summarise_without_model
from penstock.errors import (
    BudgetError,
    ConfigurationError,
    FencedError,
    InvalidRequestError,
    NotAdmittedError,
    OutputInvalidError,
    ProviderError,
    Reason,
)
from penstock.failpoints import Failpoint, reach
from penstock.house import House
from penstock.jobs.execution import Claim, ClaimedJob, Ending, Outcome
from penstock.retry import TREATMENTS, Bury, Failure, decide
from penstock.schemas import OnUnavailable

DEPLOYMENT_S = 30.0
"""How long a job waits when this worker lacks its prompt or tier: another one may have them, or soon will."""

BATCH_STOPS_S = 60.0
"""How long a job of a batch waits whose budget is used up: long enough for the batch to be stopped."""

LONGEST_HELD_PAUSE_S = 30.0
HELD_PAUSES_A_WAIT = 4
"""A job that waits for other calls to end asks again after a fourth of its age, or half of what is left."""


@dataclass(frozen=True)
class Report:
    """How the attempt ended. None as outcome: there was nothing to claim, or the job was taken over meanwhile."""

    job_id: UUID
    outcome: Outcome | None
    reason: Reason | None = None
    detail: str | None = None
    delay_s: float = 0.0
    model: str | None = None
    cost_nanodollars: int = 0


async def run(house: House, job_id: UUID, *, time_limits: Sequence[type[Exception]] = ()) -> Report:
    """Run one attempt; `time_limits` are the errors by which the caller says that the time is up.

    Safe to run twice and beside itself: the claim lets one run through, and the fence lets only that one end it.
    A cancellation hands the job back and is raised again, unless the job was no longer ours to begin with.
    """
    job = await house.journal.claim.add(Claim(job_id, house.worker))
    if job is None:
        telemetry.emit("job.not_claimable", job=str(job_id))
        return Report(job_id, None)
    reach(Failpoint.AFTER_CLAIM)
    job = _by_our_clock(house, job)
    telemetry.bind(job=str(job.id), attempt=job.fence, tenant=job.tenant, tier=job.tier)
    telemetry.emit("job.claimed", worker=house.worker, waited_s=round(job.waited_s, 3))
    house.running.enter(job)
    try:
        ending, cost = await _work(house, job, tuple(time_limits))
        return await _end(house, job, ending, cost)
    except asyncio.CancelledError:
        report = await _end(house, job, Ending(job.id, job.fence, Outcome.HANDED_BACK, detail="the run was stopped"), 0)
        if (job.id, job.fence) in house.running.lost:
            return report
        raise
    finally:
        house.running.leave(job)


async def _work(  # noqa: PLR0911 - a line a verdict
    house: House, job: ClaimedJob, time_limits: tuple[type[Exception], ...]
) -> tuple[Ending, int]:
    """Ask the model and say how the attempt should end, with what it cost."""
    try:
        completion = await long_documents.complete(house, _request(job))
    except NotAdmittedError as error:
        return await _not_admitted(house, job, error), 0
    except ProviderError as error:
        return await failed(house, job, error.reason, str(error), error.retry_after_s), 0
    except OutputInvalidError as error:
        return await failed(house, job, Reason.OUTPUT_INVALID, str(error)), 0
    except (ConfigurationError, InvalidRequestError) as error:
        waits = Ending(job.id, job.fence, Outcome.RETRIED, Reason.INTERNAL, str(error), delay_s=DEPLOYMENT_S)
        return waits, 0
    except FencedError as error:
        return Ending(job.id, job.fence, Outcome.HANDED_BACK, detail=str(error)), 0
    except time_limits as error:
        return await failed(house, job, Reason.TIME_LIMIT, type(error).__name__), 0
    except Exception as error:  # noqa: BLE001 - the job must end in a state, whatever a room raised
        telemetry.failed(error)
        return await failed(house, job, Reason.INTERNAL, type(error).__name__), 0
    ending = Ending(
        job.id,
        job.fence,
        Outcome.SUCCEEDED,
        result=completion.text,
        model_asked=completion.model_asked,
        model_served=completion.model_served,
        cached=completion.cached,
        over_soft_limit=completion.over_soft_limit,
        used_tokens=completion.usage.total_tokens,
        sources=completion.sources,
    )
    return ending, completion.cost_nanodollars


def _by_our_clock(house: House, job: ClaimedJob) -> ClaimedJob:
    """Say the deadline in the time of this machine, whose clock may differ from that of Postgres."""
    if job.ends_in_s is None:
        return job
    return replace(job, deadline=house.clock.now() + timedelta(seconds=job.ends_in_s))


def _request(job: ClaimedJob) -> ai.CompletionRequest:
    return ai.CompletionRequest(
        prompt=job.prompt,
        variables=job.variables,
        document=job.document,
        lane=job.lane,
        context=ai.CallContext(
            job_id=job.id,
            fence=job.fence,
            tenant=job.tenant,
            project=job.project,
            batch_id=job.batch_id,
            tier=job.tier,
            deadline=job.deadline,
            is_fresh=job.is_fresh,
        ),
    )


async def _not_admitted(house: House, job: ClaimedJob, error: NotAdmittedError) -> Ending:
    """Put the job back to where it was, due when it may be admitted; or take the way that it accepts instead."""
    if error.wait_s is None and job.batch_id is not None and isinstance(error, BudgetError) and not error.degrades:
        telemetry.emit("budget.exhausted", tenant=job.tenant, **error.budget)
        return Ending(job.id, job.fence, Outcome.DEFERRED, error.reason, error.detail, delay_s=BATCH_STOPS_S)
    gives_up = error.reason is Reason.UNAVAILABLE and job.on_unavailable is not OnUnavailable.WAIT
    if error.wait_s is None or gives_up:
        degrades = None
        if isinstance(error, BudgetError):
            telemetry.emit("budget.exhausted", tenant=job.tenant, **error.budget)
            degrades = error.degrades
        return await _bury(house, job, error.reason, error.detail, degrades=degrades)
    wait_s = error.wait_s
    if error.reason in {Reason.BUDGET_HELD, Reason.IN_FLIGHT}:
        waited_s = (job.started_at - job.created_at).total_seconds()
        left_s = math.inf if job.deadline is None else (job.deadline - house.clock.now()).total_seconds()
        wait_s = max(wait_s, min(LONGEST_HELD_PAUSE_S, waited_s / HELD_PAUSES_A_WAIT, left_s / 2))
    delay_s = wait_s * (1 + random.random() / 10)  # noqa: S311 - jitter, not a secret
    if job.deadline is not None and house.clock.now() + timedelta(seconds=delay_s) >= job.deadline:
        return await _bury(house, job, Reason.DEADLINE, f"its deadline passes before it can be admitted: {error}")
    return Ending(job.id, job.fence, Outcome.DEFERRED, error.reason, error.detail, delay_s=delay_s)


async def _bury(
    house: House, job: ClaimedJob, reason: Reason, detail: str, *, failed: bool = False, degrades: bool | None = None
) -> Ending:
    """End the job dead, or with a summary without a model where that is accepted and the reason is not its own.

    It is for the job to accept, unless `degrades` says that somebody else has decided.
    """
    accepts = job.on_unavailable is OnUnavailable.DEGRADE if degrades is None else degrades
    if accepts and TREATMENTS[reason].degrades and can_degrade(house, job):
        telemetry.emit("job.degraded", reason=reason, detail=detail)
        text = await summarise_without_model(job)
        return Ending(job.id, job.fence, Outcome.SUCCEEDED, reason, detail, result=text, degraded=True)
    return Ending(job.id, job.fence, Outcome.DEAD, reason=reason, detail=detail, failed=failed)


async def failed(
    house: House, job: ClaimedJob, reason: Reason, detail: str, retry_after_s: float | None = None
) -> Ending:
    """Say how an attempt ends that failed: tried again later, dead, or with a summary without a model."""
    failure = Failure(
        reason=reason,
        failures=job.failures,
        max_failures=house.catalogue.tier(job.tier).max_failures,
        now=house.clock.now(),
        deadline=job.deadline,
        retry_after_s=retry_after_s,
    )
    verdict = decide(failure, house.backoff, random.random())  # noqa: S311 - jitter, not a secret
    if isinstance(verdict, Bury):
        return await _bury(house, job, verdict.reason, detail, failed=True)
    return Ending(
        job.id, job.fence, Outcome.RETRIED, reason=reason, detail=detail, delay_s=verdict.delay_s, failed=verdict.counts
    )


async def _end(house: House, job: ClaimedJob, ending: Ending, cost_nanodollars: int) -> Report:
    weighted = replace(ending, weight=house.tenants.entry(job.tenant).weight)
    if not await house.journal.finish.add(weighted):
        telemetry.emit("job.fenced")
        return Report(job.id, None)
    reach(Failpoint.BEFORE_ACK)
    _tell(house, job, ending, cost_nanodollars)
    return Report(
        job.id,
        ending.outcome,
        reason=ending.reason,
        detail=ending.detail,
        delay_s=ending.delay_s,
        model=ending.model_served,
        cost_nanodollars=cost_nanodollars,
    )


def _tell(house: House, job: ClaimedJob, ending: Ending, cost_nanodollars: int) -> None:
    match ending.outcome:
        case Outcome.SUCCEEDED:
            latency_s = (house.clock.now() - job.started_at).total_seconds()
            telemetry.emit(
                "job.succeeded",
                model=ending.model_served,
                cost_nanodollars=cost_nanodollars,
                latency_s=round(latency_s, 3),
            )
        case Outcome.RETRIED:
            telemetry.emit("job.retrying", reason=ending.reason, detail=ending.detail, delay_s=round(ending.delay_s, 3))
        case Outcome.DEAD:
            telemetry.emit("job.dead", reason=ending.reason, detail=ending.detail)
        case Outcome.DEFERRED:
            telemetry.emit("job.deferred", reason=ending.reason, detail=ending.detail, delay_s=round(ending.delay_s, 3))
        case Outcome.HANDED_BACK:
            telemetry.emit("job.handed_back")
