"""Lets things happen by chance, always the same things for a seed. It must not know what they do."""

import heapq
import random
import time
from collections import Counter
from collections.abc import Callable, Mapping
from itertools import count

from bench.chaos.plan import Plan

Action = Callable[[], bool | None]
"""Makes something happen; gives False where it cannot happen now."""


class Conductor:
    """Draws an event every few hundred milliseconds; one that does not exist here, or cannot happen, is left out."""

    def __init__(self, plan: Plan, note: Callable[[str], None]) -> None:
        """Begin with nothing that can happen; `note` is told what does."""
        self.actions: Mapping[str, Action] = {}
        self.happened: Counter[str] = Counter()
        self._note = note
        self._plan = plan
        self._later: list[tuple[float, int, Callable[[], None]]] = []
        self._numbers = count()

    def run(self, is_over: Callable[[], bool]) -> None:
        """Let things happen until it is over, then let what was put off come."""
        chance = random.Random(self._plan.seed)
        kinds, weights = zip(*self._plan.weights.items(), strict=True)
        while not is_over():
            self._rest(chance.uniform(*self._plan.pause_s))
            kind = chance.choices(kinds, weights)[0]
            if kind in self.actions and self.actions[kind]() is not False:
                self.happened[kind] += 1
                self._note(kind)
        while self._later:
            self._rest(0.1, hurry=True)

    def later(self, delay_s: float, what: Callable[[], None]) -> None:
        """Do something so many seconds from now."""
        heapq.heappush(self._later, (time.monotonic() + delay_s, next(self._numbers), what))

    def _rest(self, pause_s: float, *, hurry: bool = False) -> None:
        ends_at = time.monotonic() + pause_s
        while self._later and (hurry or self._later[0][0] < ends_at):
            due_s, _, what = heapq.heappop(self._later)
            if not hurry:
                time.sleep(max(0.0, due_s - time.monotonic()))
            what()
        time.sleep(max(0.0, ends_at - time.monotonic()))
