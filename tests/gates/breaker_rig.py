"""One breaker on a real Redis in virtual time, used without a loop."""

import asyncio
from collections.abc import Awaitable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, TypeVar

import redis

from penstock.gates.breaker import Breaker, BreakerSettings, BreakerState, BreakerStatus, Refused, Ticket
from penstock.gates.scripts import AsyncScripts
from penstock.store.redis import async_redis

START_MS = 1_800_000_000_000  # where a slice begins, for windows of 10 s and of 30 s
HOUR_MS = 3_600_000
NAME = "small/mini-1"
KEY = "{penstock:breaker:small/mini-1}"

Result = TypeVar("Result")


class VirtualClock:
    """A clock that only a test moves."""

    def __init__(self, now_ms: int = START_MS) -> None:
        self.now_ms = now_ms

    def now(self) -> datetime:
        return datetime.fromtimestamp(0, UTC) + timedelta(milliseconds=self.now_ms)

    def monotonic_s(self) -> float:
        return self.now_ms / 1000


class Rig:
    """One breaker called without a loop; each call leaves no key that lives for less than an hour."""

    def __init__(self, socket: Path, settings: BreakerSettings, *, virtual: bool = True) -> None:
        self.clock = VirtualClock()
        self.jitter = 0.5
        self.runner = asyncio.Runner()
        self.redis = redis.Redis(unix_socket_path=str(socket), decode_responses=True)
        self.client = async_redis(f"unix://{socket}")
        self.breaker = Breaker(
            AsyncScripts(self.client), settings, clock=self.clock if virtual else None, jitter=lambda: self.jitter
        )

    def close(self) -> None:
        self.runner.run(self.client.aclose())
        self.runner.close()
        self.redis.close()

    def run(self, call: Awaitable[Result]) -> Result:
        async def awaited() -> Result:
            return await call

        result = self.runner.run(awaited())
        assert all(int(self.redis.pttl(key)) > HOUR_MS - 60_000 for key in self.redis.scan_iter())
        return result

    def ask(self, name: str = NAME, *, probe_s: float = 60.0) -> Ticket | Refused:
        return self.run(self.breaker.admit(name, probe_s=probe_s))

    def admit(self, name: str = NAME, *, probe_s: float = 60.0) -> Ticket:
        ticket = self.ask(name, probe_s=probe_s)
        assert isinstance(ticket, Ticket)
        return ticket

    def wait_s(self) -> float:
        refused = self.ask()
        assert isinstance(refused, Refused)
        return refused.wait_s

    def succeed(self, ticket: Ticket | None = None) -> bool:
        return self.run(self.breaker.succeeded(ticket or self.admit()))

    def fail(self, ticket: Ticket | None = None) -> bool:
        return self.run(self.breaker.failed(ticket or self.admit()))

    def abandon(self, ticket: Ticket | None = None) -> None:
        self.run(self.breaker.abandoned(ticket or self.admit()))

    def calls(self, verdicts: str) -> list[bool]:
        """Admit and report one call after the other: `s`ucceeded or `f`ailed; give what each changed."""
        return [self.fail() if verdict == "f" else self.succeed() for verdict in verdicts]

    def open(self) -> None:
        assert self.calls("fffff") == [False, False, False, False, True]

    def pass_cool_down(self) -> None:
        self.clock.now_ms += round(self.wait_s() * 1000)

    def status(self) -> BreakerStatus:
        return self.run(self.breaker.status(NAME))

    def stored(self) -> dict[Any, Any]:
        return self.redis.hgetall(KEY)


def closed(*, in_a_row: int = 0, calls: int = 0, failures: int = 0) -> BreakerStatus:
    return BreakerStatus(BreakerState.CLOSED, 0.0, in_a_row, calls, failures, openings=0)
