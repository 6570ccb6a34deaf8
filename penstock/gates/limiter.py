"""The provider's quota, shared by all processes: taken before a call, settled after it. It must not know what is asked.

Each resource of a quota pool is a token bucket that refills continuously and holds a few seconds of its rate. A request
larger than the bucket waits for a full one and leaves it in debt. Whoever need wait no longer than a moment takes its
units at once and is told when to send: the first come is the first to go, however large. Batch leaves a fifth of each
bucket to interactive, and has a part of the rate kept for it while it asks. The contract of each script stands in it.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

from penstock.gates.scripts import AsyncScripts, SyncScripts
from penstock.providers.quota import Quota
from penstock.schemas import Lane, ReportedLimits, Resource

LEASE_MS = 10_000
HEARTBEAT_S = 3.0
LONGEST_WAIT_MS = {Lane.INTERACTIVE: 1000, Lane.BATCH: 500}
"""How long a call may hold a slot before it is sent; whoever must wait longer waits as a row."""
CONCURRENCY_WAIT_S = 1.0


@dataclass(frozen=True)
class Ask:
    """What a call needs of a quota pool. `lease` names the call; `tenant_concurrency` bounds the tenant's calls."""

    lease: UUID
    tenant: str
    lane: Lane
    units: Mapping[Resource, int]
    tenant_concurrency: int | None = None


@dataclass(frozen=True)
class Grant:
    """Units that are taken: send after `wait_s` seconds, and settle."""

    ask: Ask
    quota: Quota
    wait_s: float


@dataclass(frozen=True)
class Limited:
    """Nothing was taken: `resource` lacks, and will suffice after `wait_s` seconds, or may in the case of a place."""

    quota: str
    resource: str
    wait_s: float

    def __str__(self) -> str:
        """Say what lacks."""
        return describe(self.resource, self.quota)


def describe(resource: str, quota: str) -> str:
    """Say what of a quota lacks, in words for whoever waits for it."""
    words = {
        "frozen": f"the provider throttled quota {quota}",
        "concurrency": f"all calls that quota {quota} allows at once are in flight",
        "tenant_concurrency": f"the tenant has all its calls of quota {quota} in flight",
    }
    return words.get(resource, f"{resource} of quota {quota}")


@dataclass(frozen=True)
class Room:
    """What a lane could take within a time to come: calls, and units of each resource, below zero in debt.

    `most` is all that there can ever be of each.
    """

    frozen_s: float
    factor: float
    places: int | None
    units: dict[Resource, float]
    most: dict[Resource, float]
    per_s: dict[Resource, float]


@dataclass
class Limiter:
    """The limiter of one process: it knows which leases it has to extend."""

    scripts: AsyncScripts
    _held: dict[UUID, Grant] = field(default_factory=dict)

    async def acquire(self, quota: Quota, ask: Ask) -> Grant | Limited:
        """Take all the units or none; raise RedisError when Redis is away."""
        keys = [*_lane_keys(quota.name), _tenant_key(quota.name, ask.tenant), _lease_key(quota.name, ask.lease)]
        longest_ms = LONGEST_WAIT_MS[ask.lane]
        given = {
            "lease": str(ask.lease),
            "lease_ms": LEASE_MS,
            "lane": ask.lane.value,
            "longest_wait_ms": longest_ms,
            "concurrency": quota.concurrency,
            "tenant_concurrency": ask.tenant_concurrency,
            "resources": _resources(quota, {name: {"amount": units} for name, units in ask.units.items()}),
        }
        answer = await self.scripts.run("acquire", keys, _without_none(given))
        if answer["granted"]:
            grant = Grant(ask, quota, answer["wait_ms"] / 1000)
            self._held[ask.lease] = grant
            return grant
        waits_for_a_place = answer["resource"] in {"concurrency", "tenant_concurrency"}
        wait_s = CONCURRENCY_WAIT_S if waits_for_a_place else answer["wait_ms"] / 1000
        return Limited(quota.name, answer["resource"], wait_s)

    async def settle(self, grant: Grant, used: Mapping[Resource, int] | None, reported: ReportedLimits = ()) -> bool:
        """End a lease with what was really charged, None being all of it; False when it had ended before."""
        rates = grant.quota.reported_rates(reported)
        remaining = {limit.resource: limit.remaining for limit in reported}
        facts = {
            name: {
                "used": None if used is None else used[name],
                "limit_per_s": rates.get(name),
                "remaining": remaining.get(name),
            }
            for name in grant.ask.units
        }
        return bool((await self._end("settle", grant, facts))["settled"])

    async def throttled(self, grant: Grant, retry_after_s: float, reported: ReportedLimits = ()) -> float | None:
        """End a lease whose call was refused with 429; gives the share of the rate that is left, if this one cut it."""
        rates = grant.quota.reported_rates(reported)
        used = grant.quota.charged_for_rejected()
        facts = {name: {"used": used[name], "limit_per_s": rates.get(name)} for name in grant.ask.units}
        answer = await self._end("throttle", grant, facts, retry_after_ms=round(retry_after_s * 1000))
        return float(answer["factor"]) if answer["cut"] else None

    async def extend(self) -> None:
        """Extend every lease of this process."""
        by_quota: dict[str, list[Grant]] = {}
        for grant in self._held.values():
            by_quota.setdefault(grant.quota.name, []).append(grant)
        for name, held in by_quota.items():
            grants = [grant for grant in held if grant.ask.lease in self._held]  # one may have ended meanwhile
            keys = list(_lane_keys(name)[1:])
            for grant in grants:
                keys += [_lease_key(name, grant.ask.lease), _tenant_key(name, grant.ask.tenant)]
            leases = [{"id": str(grant.ask.lease), "lane": grant.ask.lane.value} for grant in grants]
            await self.scripts.run("extend", keys, {"lease_ms": LEASE_MS, "leases": leases})

    async def _end(
        self, script: str, grant: Grant, facts: Mapping[Resource, Mapping[str, object]], **more: object
    ) -> dict[str, Any]:
        self._held.pop(grant.ask.lease, None)
        name = grant.quota.name
        levels, interactive, batch = _lane_keys(name)
        lane = batch if grant.ask.lane is Lane.BATCH else interactive
        keys = [levels, lane, _tenant_key(name, grant.ask.tenant), _lease_key(name, grant.ask.lease)]
        given = {"lease": str(grant.ask.lease), "resources": _resources(grant.quota, facts), **more}
        return await self.scripts.run(script, keys, given)


def look(scripts: SyncScripts, quota: Quota, lane: Lane, *, horizon_s: float, is_waiting: bool = False) -> Room:
    """Say what a lane could take of a pool within `horizon_s` seconds.

    It changes nothing, unless work of the lane `is_waiting`: for batch its part of the rate is kept then.
    """
    given = {
        "lane": lane.value,
        "horizon_ms": round(horizon_s * 1000),
        "is_waiting": is_waiting,
        "concurrency": quota.concurrency,
        "resources": _resources(quota, {name: {} for name in quota.per_minute}),
    }
    answer = scripts.run("room", _lane_keys(quota.name), _without_none(given))
    return Room(
        frozen_s=answer["frozen_ms"] / 1000,
        factor=answer["factor"],
        places=int(answer["places"]) if "places" in answer else None,
        units={Resource(name): units for name, units in answer["room"].items()},
        most={Resource(name): units for name, units in answer["most"].items()},
        per_s={Resource(name): units for name, units in answer["per_s"].items()},
    )


def _lane_keys(quota: str) -> tuple[str, str, str]:
    prefix = f"{{penstock:quota:{quota}}}"
    return f"{prefix}:levels", f"{prefix}:leases:interactive", f"{prefix}:leases:batch"


def _tenant_key(quota: str, tenant: str) -> str:
    return f"{{penstock:quota:{quota}}}:leases:tenant:{tenant}"


def _lease_key(quota: str, lease: UUID) -> str:
    return f"{{penstock:quota:{quota}}}:lease:{lease}"


def _resources(quota: Quota, facts: Mapping[Resource, Mapping[str, object]]) -> list[dict[str, object]]:
    return [
        {
            "name": name.value,
            "per_s": quota.rate_of(name, quota.per_minute[name]),
            "burst_s": quota.burst_of(name),
            **_without_none(given),
        }
        for name, given in facts.items()
    ]


def _without_none(given: Mapping[str, object]) -> dict[str, object]:
    return {name: value for name, value in given.items() if value is not None}
