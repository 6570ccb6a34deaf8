"""How much of a tier's work could be admitted soon. It must not know which jobs there are.

The feeder releases no more than this, so that what cannot be admitted waits as rows and takes nobody's slot.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

from penstock.gates.breaker import BreakerSettings, BreakerState, read_status
from penstock.gates.limiter import Room, look
from penstock.gates.scripts import SyncScripts
from penstock.providers.base import Deployment
from penstock.routing import Catalogue
from penstock.schemas import Lane, Resource

Number = TypeVar("Number", int, float)

HORIZON_S = 0.4
"""Less than a slot may wait: what is released in it is admitted."""


@dataclass(frozen=True)
class Pace:
    """What a lane of a tier could admit within HORIZON_S; None is without bound.

    `most_tokens` is what it could ever admit at once: a larger job need not wait for more.
    None of the tier's models can be asked at all when `is_unavailable`: the figures are those of the `open_tiers` then.
    """

    jobs: int | None = None
    tokens: float | None = None
    most_tokens: float | None = None
    is_unavailable: bool = False
    open_tiers: tuple[str, ...] = ()


UNBOUND = Pace()
UNAVAILABLE = Pace(is_unavailable=True)
PROBE = Pace(jobs=1)
"""Of a deployment that is half-open; where another one is closed, what goes there may as well probe this one."""


def pace(scripts: SyncScripts, catalogue: Catalogue, tier: str, lane: Lane) -> Pace:
    """Sum the room of what may be called: the deployments of a tier, or else of the other tiers.

    To be asked while work of the lane waits: batch has its part of the rate kept by that.
    Raises RedisError when Redis is away.
    """
    own = _together([_pace_of(scripts, deployment, lane) for deployment in catalogue.deployments(tier)])
    if not own.is_unavailable:
        return own
    others = {
        other.name: _together([_pace_of(scripts, deployment, lane) for deployment in catalogue.deployments(other.name)])
        for other in catalogue.tiers
        if other.name != tier
    }
    open_tiers = tuple(name for name, each in others.items() if not each.is_unavailable)
    return replace(_together(list(others.values())), is_unavailable=True, open_tiers=open_tiers)


def _together(paces: Sequence[Pace]) -> Pace:
    open_ones = [each for each in paces if not each.is_unavailable and each is not PROBE]
    if not open_ones:
        return PROBE if PROBE in paces else UNAVAILABLE
    return Pace(
        jobs=_sum([each.jobs for each in open_ones]),
        tokens=_sum([each.tokens for each in open_ones]),
        most_tokens=max((each.most_tokens for each in open_ones if each.most_tokens is not None), default=None),
    )


def _pace_of(scripts: SyncScripts, deployment: Deployment, lane: Lane) -> Pace:
    status = read_status(scripts, deployment.name, BreakerSettings())
    if status.wait_s > 0:
        return UNAVAILABLE
    if status.state is not BreakerState.CLOSED:
        return PROBE
    if deployment.quota is None:
        return UNBOUND
    return _of_room(look(scripts, deployment.quota, lane, horizon_s=HORIZON_S, is_waiting=True))


def _of_room(room: Room) -> Pace:
    tokens = {name: max(0.0, units) for name, units in room.units.items() if name is not Resource.REQUESTS}
    calls = [float(room.places)] if room.places is not None else []
    calls += [max(0.0, room.units[Resource.REQUESTS])] if Resource.REQUESTS in room.units else []
    return Pace(
        jobs=int(min(calls)) if calls else None,
        tokens=min(tokens.values()) if tokens else None,
        most_tokens=min(room.most[name] for name in tokens) if tokens else None,
    )


def _sum(parts: Sequence[Number | None]) -> Number | None:
    known = [part for part in parts if part is not None]
    return sum(known, start=type(known[0])()) if len(known) == len(parts) else None
