"""Quotas that refill continuously. It must not know which quota it keeps.

A bucket holds `burst_s` seconds of its rate. A request larger than the bucket waits for a full one and leaves it in
debt.
"""

import math

SECONDS_PER_MINUTE = 60
ROUNDING = 1e-6
TICK_S = 0.001


class TokenBucket:
    """A level that rises by `per_minute` a minute up to `burst_s` seconds' worth, and at least one unit."""

    def __init__(self, per_minute: int, burst_s: float, now_s: float) -> None:
        """Start full."""
        self._burst_s = burst_s
        self._at_s = now_s
        self._level = math.inf
        self.change(per_minute)

    def change(self, per_minute: int) -> None:
        """Refill at another rate from now on; what the new bucket cannot hold is lost."""
        self.per_minute = per_minute
        self._rate_per_s = per_minute / SECONDS_PER_MINUTE
        self._capacity = max(1.0, self._rate_per_s * self._burst_s)
        self._level = min(self._level, self._capacity)

    def advance(self, now_s: float) -> None:
        """Bring the level up to the time `now_s`."""
        self._level = min(self._capacity, self._level + (now_s - self._at_s) * self._rate_per_s)
        self._at_s = now_s

    def wait_s(self, amount: int) -> float:
        """Give the seconds until `amount` would be admitted; 0 is now."""
        lacking = min(amount, self._capacity) - self._level
        return lacking / self._rate_per_s if lacking > ROUNDING else 0.0

    def take(self, amount: int) -> None:
        """Take the amount, into debt if it is larger than what is there."""
        self._level -= amount

    def penalise(self) -> None:
        """Take one unit for a refused call, never into debt."""
        self._level = min(self._level, max(0.0, self._level - 1))

    @property
    def remaining(self) -> int:
        """Give the whole units that could be taken now."""
        return max(0, math.floor(self._level + ROUNDING))

    @property
    def reset_s(self) -> float:
        """Give the seconds until the bucket is full."""
        return max(0.0, (self._capacity - self._level) / self._rate_per_s)


class DebtBucket(TokenBucket):
    """A bucket that admits whatever comes while its level is positive, because the amount is known only later."""

    def wait_s(self, amount: int) -> float:  # noqa: ARG002 - a bucket's signature
        """Give the seconds until the level is positive, which is a millisecond after it is 0; 0 is now."""
        return 0.0 if self._level > ROUNDING else max(0.0, -self._level) / self._rate_per_s + TICK_S
