"""Why a job waits, in one answer. It must not change anything.

The row says what the last attempt to admit the job met; where it only waits for its turn, the gates are looked at.
"""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import StrEnum

from redis.exceptions import RedisError

from penstock.gates.breaker import BreakerSettings, BreakerState, read_status
from penstock.gates.limiter import describe, look
from penstock.gates.scripts import SyncScripts
from penstock.jobs.waiting import Standing
from penstock.providers.base import Deployment
from penstock.reasons import Reason
from penstock.routing import Catalogue
from penstock.schemas import JobState, Lane, Resource
from penstock.tenants import Tenants

HORIZON_S = 0.0


class Cause(StrEnum):
    """What a job waits for."""

    ENDED = "ended"
    RUNNING = "running"
    PAUSED = "paused"
    WORKER = "no_worker"
    LIMITED = "limited"
    BREAKER = "breaker"
    REDIS = "redis_away"
    IN_FLIGHT = "in_flight"
    BUDGET = "budget"
    SHARE = "tenant_share"
    BACKOFF = "backoff"
    SLOT = "slot"
    TURN = "turn"


@dataclass(frozen=True)
class Explanation:
    """Why a job waits, in words, and until when, where that is known."""

    cause: Cause
    detail: str
    until: datetime | None = None


@dataclass(frozen=True)
class Gates:
    """What is looked at beside the rows."""

    scripts: SyncScripts
    catalogue: Catalogue
    tenants: Tenants


PUT_OFF = {
    Reason.LIMITED.value: Cause.LIMITED,
    Reason.UNAVAILABLE.value: Cause.BREAKER,
    Reason.LIMITER_AWAY.value: Cause.REDIS,
    Reason.IN_FLIGHT.value: Cause.IN_FLIGHT,
    Reason.BUDGET_HELD.value: Cause.BUDGET,
}


def explain(job: Standing, gates: Gates) -> Explanation:
    """Say why a job is not running."""
    by_row = _by_row(job)
    if by_row is not None:
        return by_row
    try:
        return _held_by_gates(job, gates) or _turn(job, gates.tenants)
    except RedisError as error:
        what = "batch stops until it is back" if job.lane is Lane.BATCH else "interactive has a share of the rate"
        return Explanation(Cause.REDIS, f"Redis is away ({type(error).__name__}): {what}")


def _by_row(job: Standing) -> Explanation | None:  # noqa: PLR0911 - a line a verdict
    """Say what the row alone tells; None where the job is due and its turn has not come."""
    if job.state.is_terminal:
        where = f" with reason {job.reason}; see `penstock dead show {job.id}`" if job.state is JobState.DEAD else ""
        return Explanation(Cause.ENDED, f"{job.state}{where}")
    if job.state is JobState.PAUSED:
        return Explanation(Cause.PAUSED, "its batch is paused, or has not begun; see `penstock batch list`")
    if job.state is JobState.RUNNING:
        return Explanation(Cause.RUNNING, f"attempt {job.attempts} is under way")
    if job.workers == 0:
        cure = f"start one: `penstock worker {job.tier}`"
        return Explanation(Cause.WORKER, f"no worker of tier {job.tier} is alive; {cure}")
    if job.state is JobState.RELEASED:
        return Explanation(Cause.SLOT, "its message is out, and a worker takes it when a slot is free")
    if job.is_put_off:
        cause = PUT_OFF.get(job.reason or "", Cause.BACKOFF)
        return Explanation(cause, job.detail or str(job.reason), job.due_at)
    return None


def _held_by_gates(job: Standing, gates: Gates) -> Explanation | None:
    """Say what holds every deployment of the tier, if something does; the one that is free first decides."""
    held = [_held(deployment, job, gates.scripts) for deployment in gates.catalogue.deployments(job.tier)]
    reasons = [each for each in held if each is not None]
    if len(reasons) < len(held):
        return None
    return min(reasons, key=lambda each: each.until or datetime.max.replace(tzinfo=UTC), default=None)


def _held(deployment: Deployment, job: Standing, scripts: SyncScripts) -> Explanation | None:
    status = read_status(scripts, deployment.name, BreakerSettings())
    if status.wait_s > 0:
        what = "is open" if status.state is BreakerState.OPEN else "has a probe out"
        return Explanation(Cause.BREAKER, f"the breaker of {deployment.name} {what}", _after(status.wait_s))
    if deployment.quota is None:
        return None
    room = look(scripts, deployment.quota, job.lane, horizon_s=HORIZON_S)
    if room.frozen_s > 0:
        return Explanation(Cause.LIMITED, describe("frozen", deployment.quota.name), _after(room.frozen_s))
    if room.places == 0:
        return Explanation(Cause.LIMITED, describe("concurrency", deployment.quota.name))
    needs = {
        name: 1 if name is Resource.REQUESTS else min(job.estimated_tokens, room.most[name]) for name in room.units
    }
    lacking = {
        name: (needs[name] - units) / room.per_s[name] for name, units in room.units.items() if units < needs[name]
    }
    if not lacking:
        return None
    name = max(lacking, key=lambda each: lacking[each])
    return Explanation(Cause.LIMITED, describe(name, deployment.quota.name), _after(lacking[name]))


def _turn(job: Standing, tenants: Tenants) -> Explanation:
    if job.state is JobState.RETRYING:
        return Explanation(
            Cause.TURN, "nothing holds it, and the feeder releases retries first; if it stays, none runs"
        )
    most = tenants.entry(job.tenant).concurrency
    if most is not None and job.outstanding >= most:
        detail = f"tenant {job.tenant} has {job.outstanding} jobs under way, and may have {most}"
        return Explanation(Cause.SHARE, detail)
    own = [f"{_jobs(job.own_before)} of its tenant first"] if job.own_before else []
    others = [f"{_jobs(job.others_waiting)} of other tenants in turns"] if job.others_waiting else []
    if own or others:
        return Explanation(Cause.SHARE, "the feeder releases " + ", ".join(own + others))
    return Explanation(Cause.TURN, "nothing holds it, and the feeder releases it next; if it stays, no feeder runs")


def _jobs(number: int) -> str:
    return f"{number} job{'' if number == 1 else 's'}"


def _after(wait_s: float) -> datetime:
    return datetime.now(UTC) + timedelta(seconds=wait_s)
