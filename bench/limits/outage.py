"""A provider that is down: how many calls it still gets from all processes together. It must not know how to start any.

The moment of the trip is read from the breaker itself; all calls are counted where they come.
"""

import threading
import time
from dataclasses import dataclass, field, replace

from bench.limits.figures import Run, Window
from bench.limits.ours import Site, run
from bench.limits.plan import Plan
from bench.limits.semantics import CONTINUOUS, MODEL
from penstock.gates.breaker import BreakerSettings, BreakerState, read_status
from penstock.gates.scripts import SyncScripts
from penstock.settings import load_settings
from penstock.store.redis import sync_redis

LOOK_S = 0.01
UNAVAILABLE = 503
LEASES = tuple(f"{{penstock:quota:{MODEL}}}:leases:{lane}" for lane in ("interactive", "batch"))
SHORTEST_INTERVAL_S = BreakerSettings().cool_down_s * 0.8
"""The first cool-down, less what is left to chance; every later one is longer."""


@dataclass
class Trip:
    """When the breaker opened, a moment early rather than late, and how many calls were under way then."""

    at_s: float = 0.0
    in_flight: int = 0
    looking: list[threading.Thread] = field(default_factory=list)


@dataclass(frozen=True)
class Outage:
    """What the dead provider got. `bound` is the threshold and what was in flight when the breaker opened."""

    before_trip: int
    after_trip: int
    bound: int
    probes: int
    most_an_interval: int
    back_after_s: float
    failed: int


def measure(plan: Plan, outage_s: float) -> Outage:
    """Have the provider refuse everything with 503 from the beginning of the window on, for `outage_s` seconds."""
    trip = Trip()
    begun: list[float] = []

    def begin(site: Site, _window: Window) -> None:
        trip.looking.append(threading.Thread(target=_look, args=(trip, time.monotonic() + outage_s), daemon=True))
        trip.looking[0].start()
        begun.append(time.monotonic())
        site.provider.post("/faults", {"faults": [{"name": "outage", "until_s": outage_s}]})

    made = run(plan, meanwhile=begin)
    if not trip.at_s:
        raise RuntimeError("the breaker did not open")
    return _count(made, trip, begun[0], outage_s)


def plan_of(warm_up_s: float, outage_s: float, after_s: float) -> Plan:
    """Give the plan of a run whose window is the outage and what comes after it."""
    return Plan(replace(CONTINUOUS, name="provider down"), warm_up_s, outage_s + after_s)


def _look(trip: Trip, until_s: float) -> None:
    """Watch the breaker until it opens."""
    with sync_redis(load_settings().require_redis_url()) as redis:
        scripts = SyncScripts(redis)
        closed_s = time.monotonic()
        while time.monotonic() < until_s:
            looked_s = time.monotonic()
            if read_status(scripts, MODEL, BreakerSettings()).state is not BreakerState.CLOSED:
                trip.in_flight = sum(int(redis.zcount(key, "-inf", "+inf")) for key in LEASES)
                trip.at_s = closed_s
                return
            closed_s = looked_s
            time.sleep(LOOK_S)


def _count(made: Run, trip: Trip, begun_s: float, outage_s: float) -> Outage:
    threshold = BreakerSettings().consecutive_failures
    dead = [arrival.at_s for arrival in made.seen.arrivals if arrival.status == UNAVAILABLE]
    quiet_s = trip.at_s + SHORTEST_INTERVAL_S
    probes = [at_s for at_s in dead if at_s >= quiet_s]
    well = [
        arrival.at_s for arrival in made.seen.arrivals if arrival.at_s > begun_s + outage_s and arrival.status == 200
    ]
    return Outage(
        before_trip=sum(at_s < trip.at_s for at_s in dead),
        after_trip=sum(trip.at_s <= at_s < quiet_s for at_s in dead),
        bound=threshold + trip.in_flight,
        probes=len(probes),
        most_an_interval=max(
            (sum(0 <= at_s - first_s < SHORTEST_INTERVAL_S for at_s in probes) for first_s in probes), default=0
        ),
        back_after_s=min(well, default=made.ended_s) - begun_s - outage_s,
        failed=made.failed,
    )
