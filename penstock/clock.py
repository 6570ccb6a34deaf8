"""The time, passed in. It must not know who asks; Postgres and Redis decide their own now."""

import time
from datetime import UTC, datetime
from typing import Protocol


class Clock(Protocol):
    """What a room may ask about time."""

    def now(self) -> datetime:
        """Give the wall clock as an aware datetime in UTC."""
        ...

    def monotonic_s(self) -> float:
        """Give seconds that never run backwards, for measuring durations."""
        ...


class SystemClock:
    """The machine's own clock."""

    def now(self) -> datetime:
        """Give the wall clock as an aware datetime in UTC."""
        return datetime.now(UTC)

    def monotonic_s(self) -> float:
        """Give seconds that never run backwards, for measuring durations."""
        return time.monotonic()
