"""What a run is to be: the provider, the load, and how long. It must not know who makes it."""

from dataclasses import dataclass

from bench.limits.figures import Window
from bench.limits.load import EVEN, Load
from bench.limits.semantics import Semantics


@dataclass(frozen=True)
class Plan:
    """What is run: the provider, what Penstock is told of it, the load, and how long.

    `configured` is the factor by which the limits that Penstock is told are too high; for `after_s` a run goes on after
    its window, so that what came in it gets its answer.
    """

    semantics: Semantics
    warm_up_s: float
    measured_s: float
    load: Load = EVEN
    configured: float = 1.0
    after_s: float = 5.0

    def window(self, started_s: float) -> Window:
        """Give what is measured: after the warm-up, from the beginning of a window of the provider on."""
        length_s = self.semantics.window_s
        since_s = -(-(started_s + self.warm_up_s) // length_s) * length_s
        return since_s, since_s + self.measured_s

    def announcement(self, whose: str, started_s: float) -> str:
        """Say what is measured when."""
        since_s, until_s = self.window(started_s)
        return (
            f"{whose}, {self.semantics.name}: measuring from {since_s - started_s:.0f} s to {until_s - started_s:.0f} s"
        )

    @property
    def longest_s(self) -> float:
        """Give the seconds that a run may last."""
        return self.warm_up_s + self.semantics.window_s + self.measured_s + self.after_s
