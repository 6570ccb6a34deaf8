"""What can happen, to Penstock and to plain Celery alike. It must not know how often, or what comes of it."""

import random
from collections.abc import Callable
from functools import partial
from typing import Protocol

from bench.chaos.conductor import Action
from bench.chaos.databases import Databases
from bench.chaos.places import TIER, models_of
from bench.chaos.plan import Plan
from bench.chaos.processes import Kept
from bench.chaos.provider import Provider

LEAST_ALIVE = 1
BURST_S = 1.5
"""A fault is gone by then, struck or not: what opens a breaker must not wait for each of its probes."""
FEW = 3
"""Fewer than the failures in a row that open a breaker: both models closed most of the time would test nothing else."""
BAD_SHARE = 0.5


class Scene(Protocol):
    """What things can happen to."""

    plan: Plan
    databases: Databases
    provider: Provider
    producers: list[Kept]

    def ready(self) -> list[Kept]:
        """Give the workers that can take jobs now."""
        ...

    def note(self, event: str) -> None:
        """Write down that something happened."""
        ...


class Events:
    """What happens to any kind of workers; `frozen` are those that stand still now."""

    def __init__(self, scene: Scene, later: Callable[[float, Callable[[], None]], None]) -> None:
        """Take who it happens to; `later` puts off what has to follow."""
        self.frozen: list[Kept] = []
        self._scene = scene
        self._later = later
        self._chance = random.Random(scene.plan.seed)

    def actions(self) -> dict[str, Action]:
        """Name everything."""
        return {
            "kill_worker": self.kill_worker,
            "freeze_worker": self.freeze_worker,
            "kill_producer": self.kill_producer,
            "restart_redis": self._scene.databases.restart_redis,
            "flush_redis": self._scene.databases.flush_redis,
            "provider_errors": partial(self.misbehave, "server_error", probability=BAD_SHARE, until_s=BURST_S),
            "provider_hangs": partial(self.misbehave, "hang", count=FEW, until_s=BURST_S),
            "provider_cuts": partial(self.misbehave, "cut", count=FEW, until_s=BURST_S),
            "provider_throttles": partial(self.misbehave, "throttled", count=FEW, until_s=BURST_S, retry_after=1),
        }

    def kill_worker(self) -> bool:
        """Kill one with -9, unless it is the last."""
        victim = self._victim()
        if victim is None:
            return False
        self._scene.note(f"kill {victim.name}")
        self.killed(victim.kill())
        return True

    def freeze_worker(self) -> bool:
        """Stop one past its lease, one at a time, unless it is the last."""
        victim = None if self.frozen else self._victim()
        if victim is None:
            return False
        self._scene.note(f"freeze {victim.name}")
        victim.freeze()
        self.frozen.append(victim)
        self._later(self._scene.plan.frozen_s, lambda: self._thaw(victim))
        return True

    def kill_producer(self) -> bool:
        """Kill one with -9 that is not done."""
        busy = [producer for producer in self._scene.producers if producer.is_running]
        if not busy:
            return False
        self._chance.choice(busy).kill()
        return True

    def misbehave(self, fault: str, **parameters: object) -> None:
        """Break one of the models."""
        self._scene.provider.misbehave(fault, model=self._chance.choice(models_of(TIER)), **parameters)

    def killed(self, pid: int) -> None:
        """Hear that a worker was killed."""

    def _thaw(self, victim: Kept) -> None:
        victim.thaw()
        self._scene.note(f"thaw {victim.name}")
        self.frozen.remove(victim)

    def _victim(self) -> Kept | None:
        ready = self._scene.ready()
        return self._chance.choice(ready) if len(ready) > LEAST_ALIVE else None
