"""How large a run is. It must not know how anything is done."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Plan:
    """So many documents at so many requests a minute, and when what is killed, as a share of them.

    `warm_jobs` run before, so that the forecast has seen answers; `capped_jobs` are those of the batch with a cap.
    """

    jobs: int
    warm_jobs: int
    capped_jobs: int
    rpm: int
    loader_killed_at: tuple[float, ...] = (0.3, 0.7)
    workers_killed_at: tuple[float, ...] = (0.35, 0.7)
    asks_every_s: float = 0.5
    pools: int = 2
    slots: int = 200
    latency_ms: float = 800.0
    patience_s: float = 1200.0


FULL = Plan(jobs=20_000, warm_jobs=300, capped_jobs=2_000, rpm=10_000)
SHORT = Plan(jobs=600, warm_jobs=60, capped_jobs=200, rpm=6_000, slots=60, latency_ms=200.0, patience_s=120.0)
