"""How large a run is, and what happens in it by which chance. It must not know how anything is done."""

from collections.abc import Mapping
from dataclasses import dataclass, field

EVENTS = {
    "kill_worker": 40,
    "kill_feeder": 30,
    "kill_upkeep": 6,
    "kill_producer": 60,
    "freeze_worker": 14,
    "restart_redis": 40,
    "flush_redis": 25,
    "restart_postgres": 6,
    "provider_errors": 40,
    "provider_hangs": 60,
    "provider_cuts": 330,
    "provider_throttles": 250,
    "poison": 4,
    "replay": 91,
}
"""What can happen, and how often in 1,000 times, which are ten minutes.

A worker that was killed needs three to five seconds of a processor until it is back: one in fifteen seconds leaves
most of the pools alive. What is light comes often, what stops everything seldom.
"""
OFTENER = {"kill_worker": 250, "freeze_worker": 40, "restart_postgres": 15}
"""What a short run has to see, too."""


@dataclass(frozen=True)
class Plan:
    """How much is run, of how many processes, and how fast things break.

    `latency_ms` is the provider's median; `peer_jobs` are those of each run of plain Celery, `poison_s` is for how long
    its poison job is watched; `frozen_s` how long a worker is stopped; an event comes every `pause_s`.
    `open_call_s`, where it is given, is how soon a call of a dead worker is closed, in place of upkeep's minute.
    """

    jobs: int
    calm_jobs: int
    seed: int
    jobs_per_s: float = 32.0
    pools: int = 4
    producers: int = 4
    slots: int = 60
    lease_s: float = 30.0
    timeout_s: float = 8.0
    latency_ms: float = 800.0
    pause_s: tuple[float, float] = (0.3, 0.9)
    recovered_within_s: float = 40.0
    rounds: int = 5
    peer_jobs: int = 1500
    poison_s: float = 45.0
    patience_s: float = 600.0
    open_call_s: float | None = None
    weights: Mapping[str, int] = field(default_factory=lambda: dict(EVENTS))
    is_short: bool = False

    @property
    def frozen_s(self) -> float:
        """Give the seconds that a worker is stopped: past its lease, and past the next sweep."""
        return self.lease_s * 1.1 + 2


def full(jobs: int, seed: int) -> Plan:
    """Give the long form."""
    return Plan(jobs=jobs, calm_jobs=2000, seed=seed)


def short(jobs: int, seed: int) -> Plan:
    """Give the form for CI; of its some twenty recoveries the p95 is all but the longest, and its bound is wide."""
    return Plan(
        jobs=jobs,
        calm_jobs=60,
        seed=seed,
        jobs_per_s=30.0,
        pools=2,
        producers=4,
        slots=30,
        lease_s=3.0,
        timeout_s=3.0,
        latency_ms=300.0,
        pause_s=(0.3, 0.9),
        recovered_within_s=30.0,
        patience_s=60.0,
        open_call_s=5.0,
        peer_jobs=jobs,
        poison_s=60.0,
        weights=EVENTS | OFTENER,
        is_short=True,
    )
