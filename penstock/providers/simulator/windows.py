"""Quotas that are counted in fixed windows of time. It must not know which quota it keeps.

Windows begin at the multiples of their length on the monotonic clock, for all accounts alike; nothing is given back.
"""

import math

from penstock.providers.simulator.buckets import SECONDS_PER_MINUTE

ROUNDING_S = 1e-6


class Window:
    """A counter that begins at 0 in each window of `length_s` seconds, and allows at least one unit there."""

    def __init__(self, per_minute: int, length_s: int, now_s: float) -> None:
        """Start with nothing used."""
        self._length_s = length_s
        self._number: int | None = None
        self.change(per_minute)
        self.advance(now_s)

    def change(self, per_minute: int) -> None:
        """Allow another amount from now on; what was used in this window stays used."""
        self.per_minute = per_minute
        self._allowed = max(1, per_minute * self._length_s // SECONDS_PER_MINUTE)

    def advance(self, now_s: float) -> None:
        """Forget what was used when the time `now_s` is in another window."""
        number = math.floor((now_s + ROUNDING_S) / self._length_s)
        if number != self._number:
            self._number = number
            self._used = 0
        self.reset_s = (number + 1) * self._length_s - now_s

    def wait_s(self, amount: int) -> float:
        """Give the seconds until the window that refuses the amount ends; 0 is now."""
        return self.reset_s if self._used + amount > self._allowed else 0.0

    def take(self, amount: int) -> None:
        """Count the amount as used."""
        self._used += amount

    def penalise(self) -> None:
        """Count one unit for a refused call, if there is one left."""
        self._used += min(1, self.remaining)

    @property
    def remaining(self) -> int:
        """Give the units that could be taken now."""
        return max(0, self._allowed - self._used)
