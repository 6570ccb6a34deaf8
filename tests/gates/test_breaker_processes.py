"""Several processes that share a breaker open it once, and probe one at a time."""

import asyncio
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Protocol

import pytest
import redis

from penstock.gates.breaker import Breaker, BreakerSettings, BreakerState, BreakerStatus, Refused, Ticket
from penstock.gates.scripts import AsyncScripts
from penstock.store.redis import async_redis
from tests.gates.breaker_rig import NAME, START_MS, VirtualClock
from workers.embedded import EmbeddedServices

PROCESSES = 4
CALLERS = 16
ROUNDS = 5


class Meeting(Protocol):
    """A barrier that all processes wait at, so that they begin together."""

    def wait(self, timeout: float | None = None) -> int: ...


class Seat:
    """What the pool leaves in a process of its own."""

    meeting: Meeting
    socket: Path


def sit(meeting: Meeting, socket: Path) -> None:
    Seat.meeting, Seat.socket = meeting, socket


def hammer(now_ms: int, verdict: str) -> list[tuple[Ticket | Refused, bool]]:
    """Call ROUNDS times from each of CALLERS, all at one moment; give each answer, and whether its report changed all.

    The verdict is `fail`, `succeed`, or `hold` for a call that is not reported.
    """

    async def call(breaker: Breaker) -> list[tuple[Ticket | Refused, bool]]:
        seen = []
        for _ in range(ROUNDS):
            answer = await breaker.admit(NAME, probe_s=60)
            changed = False
            if isinstance(answer, Ticket) and verdict != "hold":
                changed = await (breaker.failed(answer) if verdict == "fail" else breaker.succeeded(answer))
            seen.append((answer, changed))
        return seen

    async def all_call() -> list[tuple[Ticket | Refused, bool]]:
        client = async_redis(f"unix://{Seat.socket}", connections=CALLERS)
        breaker = Breaker(
            AsyncScripts(client), BreakerSettings(), clock=VirtualClock(now_ms), jitter=partial(float, 0.5)
        )
        await client.ping()
        Seat.meeting.wait(60)
        seen = await asyncio.gather(*(call(breaker) for _ in range(CALLERS)))
        await client.aclose()
        return [each for caller in seen for each in caller]

    return asyncio.run(all_call())


class Crowd:
    """The processes, called together."""

    def __init__(self, socket: Path) -> None:
        context = get_context("spawn")
        self.pool = ProcessPoolExecutor(PROCESSES, context, sit, (context.Barrier(PROCESSES), socket))

    def hammer(self, now_ms: int, verdict: str) -> list[tuple[Ticket | Refused, bool]]:
        futures = [self.pool.submit(hammer, now_ms, verdict) for _ in range(PROCESSES)]
        return [each for future in futures for each in future.result()]


@pytest.fixture(scope="module")
def crowd(services: EmbeddedServices) -> Iterator[Crowd]:
    """Processes that are already warm."""
    made = Crowd(services.redis.socket_path)
    yield made
    made.pool.shutdown(cancel_futures=True)


def test_all_processes_together_open_once_and_admit_one_probe_each_half_open_period(
    crowd: Crowd, broker: redis.Redis, services: EmbeddedServices
) -> None:
    seen = crowd.hammer(START_MS, "fail")
    assert len(seen) == PROCESSES * CALLERS * ROUNDS
    admitted = [answer for answer, _ in seen if isinstance(answer, Ticket)]
    assert 5 <= len(admitted) < 5 + PROCESSES * CALLERS
    assert len({ticket.epoch for ticket in admitted}) == 1
    assert sum(changed for _, changed in seen) == 1
    assert {answer for answer, _ in seen if isinstance(answer, Refused)} == {Refused(5.0)}
    assert status_of(services, START_MS) == BreakerStatus(BreakerState.OPEN, 5.0, 5, calls=5, failures=5, openings=1)

    now_ms, fences = START_MS, []
    for opening, wait_s in enumerate([5.0, 10.0, 20.0, 40.0], start=1):
        assert one_probe(crowd.hammer(now_ms + round(wait_s * 1000) - 1, "fail")) is None
        now_ms += round(wait_s * 1000)
        probe = one_probe(crowd.hammer(now_ms, "fail"))
        assert probe is not None
        fences.append(probe.epoch)
        status = status_of(services, now_ms)
        assert (status.wait_s, status.failures_in_a_row, status.openings) == (wait_s * 2, 5 + opening, 1 + opening)
    assert fences == [fences[0] + 2 * period for period in range(4)]

    now_ms += 80_000
    held = one_probe(crowd.hammer(now_ms, "hold"))
    follower = one_probe(crowd.hammer(now_ms + 60_000, "hold"))
    assert held is not None
    assert follower is not None
    assert follower.epoch == held.epoch + 1

    seen = crowd.hammer(now_ms + 120_000, "succeed")
    admitted = [answer for answer, _ in seen if isinstance(answer, Ticket)]
    assert sum(ticket.is_probe for ticket in admitted) == 1
    assert sum(changed for _, changed in seen) == 1
    after = status_of(services, now_ms + 120_000)
    assert after == BreakerStatus(BreakerState.CLOSED, 0.0, 0, calls=len(admitted) - 1, failures=0, openings=0)


def one_probe(seen: list[tuple[Ticket | Refused, bool]]) -> Ticket | None:
    """Give the only ticket of all answers, which is a probe's, or None when there was none."""
    admitted = [(answer, changed) for answer, changed in seen if isinstance(answer, Ticket)]
    assert len(admitted) <= 1
    assert all(ticket.is_probe for ticket, _ in admitted)
    return admitted[0][0] if admitted else None


def status_of(services: EmbeddedServices, now_ms: int) -> BreakerStatus:
    async def ask() -> BreakerStatus:
        client = async_redis(f"unix://{services.redis.socket_path}")
        status = await Breaker(AsyncScripts(client), BreakerSettings(), clock=VirtualClock(now_ms)).status(NAME)
        await client.aclose()
        return status

    return asyncio.run(ask())
