"""What happens to the limiter in the long run, played in virtual time. It must not know how time is moved."""

import asyncio
from dataclasses import dataclass, replace

from bench.limits.load import SIZES
from bench.limits.places import tell, temporary_home
from bench.limits.semantics import CONTINUOUS, Semantics
from bench.limits.virtual import Outcome, Wanted, World
from penstock.schemas import Lane
from workers.embedded import RedisServer

NIGHT_CLIENTS = 6
OVERLOAD_CLIENTS = 12
DESK = Wanted("desk", Lane.INTERACTIVE, 550, again=False)
OVERLOAD = Wanted("crowd", Lane.INTERACTIVE, 3000, again=True)


@dataclass(frozen=True)
class TooHigh:
    """Limits configured too high: what was refused, and how much of the true limit was used."""

    refused_per_100: float
    used: float


@dataclass(frozen=True)
class Halved:
    """Limits that were halved: what was refused a minute later, and how much of the new limit was used in the end."""

    refused_per_100: float
    used: float


@dataclass(frozen=True)
class Lengths:
    """How long scenarios last in virtual seconds; `settling_s` is what a new state of things is given."""

    warm_up_s: int = 120
    measured_s: int = 600
    forgiven_s: int = 60
    settling_s: int = 300


LONG = Lengths()
SHORT = Lengths(warm_up_s=20, measured_s=20, forgiven_s=60, settling_s=70)


def too_high(lengths: Lengths, factor: float, *, headers: bool) -> TooHigh:
    """Play a quota that is configured too high by a factor."""
    tell(f"virtual time: configured {factor:g} times too high, {'with' if headers else 'without'} headers")
    truth = replace(CONTINUOUS, headers=headers)
    since_s, until_s = lengths.warm_up_s, lengths.warm_up_s + lengths.measured_s
    outcome = _play(truth, truth.times(factor), until_s, interactive_per_s=2.0)
    used = outcome.tokens_of(since_s, until_s) / (truth.tokens_per_s * (until_s - since_s))
    return TooHigh(outcome.refused_per_100(since_s, until_s), used)


def halved(lengths: Lengths, *, headers: bool) -> Halved:
    """Play a provider that halves its limits in the middle."""
    tell(f"virtual time: halved in the middle, {'with' if headers else 'without'} headers")
    truth = replace(CONTINUOUS, headers=headers)
    half = truth.times(0.5)
    changed_s = lengths.warm_up_s
    settled_s = changed_s + lengths.settling_s
    until_s = settled_s + lengths.measured_s // 2
    outcome = _play(truth, truth, until_s, interactive_per_s=1.0, changed_s=changed_s, change=half)
    used = outcome.tokens_of(settled_s, until_s) / (half.tokens_per_s * (until_s - settled_s))
    return Halved(outcome.refused_per_100(changed_s + lengths.forgiven_s, until_s), used)


def batch_share(lengths: Lengths) -> float:
    """Play an interactive overload, and give what a saturating batch gets beside it."""
    tell("virtual time: interactive overload")
    since_s, until_s = lengths.warm_up_s, lengths.warm_up_s + lengths.measured_s
    outcome = _play(CONTINUOUS, CONTINUOUS, until_s, interactive_per_s=0.0)
    return outcome.tokens_of(since_s, until_s, Lane.BATCH) / outcome.tokens_of(since_s, until_s)


def _play(
    truth: Semantics,
    configured: Semantics,
    seconds: int,
    *,
    interactive_per_s: float,
    changed_s: int = 0,
    change: Semantics | None = None,
) -> Outcome:
    """Play a saturating batch of four tenants with interactive beside it; none a second stands for an overload."""
    with temporary_home() as home:
        server = RedisServer(home / "redis")
        server.start()
        try:
            world = World(f"unix://{server.socket_path}", truth, configured.quota("virtual"))
            for tenant, tokens in SIZES.items():
                world.want(Wanted(tenant, Lane.BATCH, tokens, again=True), clients=NIGHT_CLIENTS)
            if interactive_per_s:
                world.want_now_and_then(DESK, per_s=interactive_per_s)
            else:
                world.want(OVERLOAD, clients=OVERLOAD_CLIENTS)
            if change is not None:
                world.change(changed_s, change.limits)
            return asyncio.run(world.play(seconds))
        finally:
            server.stop()
