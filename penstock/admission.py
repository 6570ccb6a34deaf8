"""Which deployment may be called now. It must not know a prompt's text, money, or a job's row.

The deployments of the job's tier are asked in order of preference, then those of the tiers that the prompt names behind
it. A deployment whose breaker is open, or that was tried already, is passed over; one that has no room now too. A
smaller tier is asked only when no deployment of the larger one can be called at all: what is merely busy is waited for.
"""

import asyncio
from collections.abc import Awaitable, Mapping
from dataclasses import dataclass, replace
from uuid import UUID

from redis.exceptions import RedisError

from penstock import telemetry
from penstock.errors import NotAdmittedError, ProviderError, Reason
from penstock.gates.breaker import Refused, Ticket
from penstock.gates.estimates import size_call
from penstock.gates.limiter import Ask, Grant, Limited
from penstock.house import House
from penstock.providers.base import Deployment
from penstock.providers.quota import Size
from penstock.retry import TREATMENTS, Kind
from penstock.schemas import Lane, ModelAnswer, PromptReference

BATCH_PAUSE_S = 2.0
"""How long batch waits before it looks whether Redis is back."""
LOCAL_PAUSE_S = 1.0
PROBE_MARGIN_S = 5.0
THROTTLED_S = 1.0


@dataclass(frozen=True)
class Want:
    """A call that is wanted: for whom, of which tiers in order, and how large, `counted` being its prompt in tokens."""

    tenant: str
    lane: Lane
    prompt: PromptReference
    tiers: tuple[str, ...]
    counted: int
    max_tokens: int
    is_repeat: bool = False


@dataclass(frozen=True)
class Admission:
    """The right to make one call, after `wait_s` seconds. Without ticket and grant nothing has to be given back."""

    call_id: UUID
    want: Want
    tier: str
    deployment: Deployment
    size: Size
    ticket: Ticket | None = None
    grant: Grant | None = None
    wait_s: float = 0.0


async def admit(house: House, want: Want, call_id: UUID, tried: Mapping[str, Reason]) -> Admission:
    """Find a deployment that may be called now; raise NotAdmittedError with how long to wait.

    `tried` are those that this attempt has called, and how each failed: one that throttled is busy, too.
    """
    denials: list[NotAdmittedError] = []
    is_busy = False
    for tier in want.tiers:
        for deployment in house.catalogue.fitting(tier, want.counted + want.max_tokens):
            if deployment.name in tried:
                is_busy = is_busy or TREATMENTS[tried[deployment.name]].kind is Kind.THROTTLED
                continue
            try:
                return await _ask(house, want, tier, deployment, call_id)
            except NotAdmittedError as error:
                denials.append(error)
        if is_busy or any(denial.reason in {Reason.LIMITED, Reason.LIMITER_AWAY} for denial in denials):
            break
    raise _summary(denials)


async def admit_to(house: House, want: Want, deployment: Deployment, call_id: UUID) -> Admission:
    """Ask one deployment that answers for no tier, within the bounds of the first of `want.tiers`."""
    return await _ask(house, want, want.tiers[0], deployment, call_id)


async def _ask(house: House, want: Want, tier: str, deployment: Deployment, call_id: UUID) -> Admission:
    quota = deployment.quota
    known = await house.gates.estimates.known(deployment.model, want.prompt)
    most = min(want.max_tokens, deployment.max_output_tokens)
    size = size_call(known, quota, want.counted, most, is_repeat=want.is_repeat)
    lacks_for_ever = quota and quota.too_large(size)
    if lacks_for_ever:
        raise NotAdmittedError(
            Reason.TOO_LARGE, f"it needs more {lacks_for_ever} than a minute of {deployment.name} has", None
        )
    open_way = Admission(call_id, want, tier, deployment, size)
    try:
        return await _pass_gates(house, open_way)
    except RedisError as error:
        telemetry.emit("service.unavailable", service="redis", error=type(error).__name__, retry_s=BATCH_PAUSE_S)
        return _without_redis(house, open_way)


async def _pass_gates(house: House, way: Admission) -> Admission:
    """Take a ticket of the breaker and a grant of the quota, or neither."""
    name, quota, want = way.deployment.name, way.deployment.quota, way.want
    probe_s = house.catalogue.tier(way.tier).timeout_s + PROBE_MARGIN_S
    ticket = await house.gates.breaker.admit(name, probe_s=probe_s)
    if isinstance(ticket, Refused):
        raise NotAdmittedError(Reason.UNAVAILABLE, f"the breaker of {name} is open", ticket.wait_s)
    if quota is None:
        return replace(way, ticket=ticket)
    share = house.tenants.entry(want.tenant)
    ask = Ask(way.call_id, want.tenant, want.lane, quota.charge_of(way.size), share.concurrency)
    grant = await house.gates.limiter.acquire(quota, ask)
    if isinstance(grant, Limited):
        if ticket.is_probe:
            await house.gates.breaker.abandoned(ticket)
        raise NotAdmittedError(Reason.LIMITED, str(grant), grant.wait_s)
    return replace(way, ticket=ticket, grant=grant, wait_s=grant.wait_s)


def _without_redis(house: House, admission: Admission) -> Admission:
    """Let interactive take this process's share of the rate; batch waits."""
    if admission.want.lane is Lane.BATCH:
        raise NotAdmittedError(Reason.LIMITER_AWAY, "Redis is away, and batch waits for it", BATCH_PAUSE_S)
    quota = admission.deployment.quota
    if quota is None:
        return admission
    wait_s = house.gates.local.acquire(quota, quota.charge_of(admission.size), house.running.processes)
    if wait_s is None:
        reason = "Redis is away, and this process's share of the rate is used"
        raise NotAdmittedError(Reason.LIMITER_AWAY, reason, LOCAL_PAUSE_S)
    return replace(admission, wait_s=wait_s)


def _summary(denials: list[NotAdmittedError]) -> NotAdmittedError:
    """Give the denial that will end first; one that never ends counts only where there is no other."""
    if not denials:
        return NotAdmittedError(Reason.UNAVAILABLE, "every deployment has been tried", None)
    busy = [denial for denial in denials if denial.reason is not Reason.UNAVAILABLE and denial.wait_s is not None]
    waiting = busy or [denial for denial in denials if denial.wait_s is not None]
    return min(waiting, key=lambda denial: denial.wait_s or 0.0) if waiting else denials[0]


async def unsent(house: House, admission: Admission) -> None:
    """Give everything back: no byte has left."""
    gates, steps = house.gates, list[Awaitable[object]]()
    if admission.ticket is not None:
        steps.append(gates.breaker.abandoned(admission.ticket))
    if admission.grant is not None:
        steps.append(gates.limiter.settle(admission.grant, dict.fromkeys(admission.grant.ask.units, 0)))
    await _report(steps)


async def answered(house: House, admission: Admission, answer: ModelAnswer) -> None:
    """Settle by what came back, and learn from it."""
    gates, want, deployment = house.gates, admission.want, admission.deployment
    was_cut = answer.finish_reason == "length"
    produced = answer.usage.completion_tokens
    output = max(want.max_tokens, produced) if was_cut else produced
    steps = list[Awaitable[object]]()
    if admission.ticket is not None:
        steps += [
            _closing(house, admission.ticket),
            gates.estimates.observe(deployment.model, want.prompt, want.counted, answer.usage, output),
        ]
    if admission.grant is not None:
        used = admission.grant.quota.charged_for(answer.usage, admission.size.max_tokens)
        steps.append(gates.limiter.settle(admission.grant, used, answer.limits))
    await _report(steps)


async def failed(house: House, admission: Admission, error: ProviderError) -> None:
    """Settle a call that gave no answer, and tell the breaker if that says something about the deployment."""
    gates, steps = house.gates, list[Awaitable[object]]()
    if admission.ticket is not None:
        trips = TREATMENTS[error.reason].trips
        steps.append(_opening(house, admission.ticket) if trips else gates.breaker.abandoned(admission.ticket))
    if admission.grant is not None:
        steps.append(_settle_failure(house, admission.grant, error))
    await _report(steps)


async def _settle_failure(house: House, grant: Grant, error: ProviderError) -> None:
    if error.reason is Reason.THROTTLED:
        retry_after_s = THROTTLED_S if error.retry_after_s is None else error.retry_after_s
        factor = await house.gates.limiter.throttled(grant, retry_after_s, error.limits)
        if factor is not None:
            telemetry.emit("limiter.cut", quota=grant.quota.name, factor=round(factor, 4))
    elif error.sent:
        await house.gates.limiter.settle(grant, None, error.limits)
    else:
        await house.gates.limiter.settle(grant, dict.fromkeys(grant.ask.units, 0))


async def _opening(house: House, ticket: Ticket) -> None:
    if await house.gates.breaker.failed(ticket):
        telemetry.emit("breaker.opened", deployment=ticket.deployment)


async def _closing(house: House, ticket: Ticket) -> None:
    if await house.gates.breaker.succeeded(ticket):
        telemetry.emit("breaker.closed", deployment=ticket.deployment)


async def _report(steps: list[Awaitable[object]]) -> None:
    """Do all of it, whatever becomes of the job meanwhile; what Redis does not hear, it forgets when the lease ends."""
    reporting = asyncio.gather(*steps, return_exceptions=True)
    try:
        outcomes = await asyncio.shield(reporting)
    except asyncio.CancelledError:
        await reporting
        raise
    for outcome in outcomes:
        if isinstance(outcome, RedisError):
            telemetry.emit("service.unavailable", service="redis", error=type(outcome).__name__, retry_s=BATCH_PAUSE_S)
        elif isinstance(outcome, BaseException):
            raise outcome
