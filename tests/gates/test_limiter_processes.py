"""Several processes share a quota, in real time, while some of them are killed: it is kept, and it is used."""

import asyncio
import random
import time
from collections.abc import Iterator
from itertools import count
from multiprocessing import get_context
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
import redis

from penstock.gates.limiter import Ask, Grant, Limiter
from penstock.gates.scripts import AsyncScripts
from penstock.schemas import Lane, Resource
from penstock.store.redis import async_redis
from tests.gates.limiter_process import LEASE_MS, LEASES, QUOTA, take_all
from workers.embedded import EmbeddedServices

PROCESSES = 8
SECONDS = 5.0
KILL_EACH_S = 0.4
PER_MS = 10
BUCKET = 10_000


class Crowd:
    """The processes, and what they wrote."""

    def __init__(self, socket: Path, path: Path) -> None:
        self.arguments = (str(socket), str(path))
        self.path = path
        self.seeds = count()
        self.context = get_context("forkserver")
        self.context.set_forkserver_preload(["pytest", "tests.gates.limiter_process"])
        self.running = [self.start() for _ in range(PROCESSES)]

    def start(self) -> ForkServerProcess:
        process = self.context.Process(target=take_all, args=(*self.arguments, next(self.seeds)), daemon=True)
        process.start()
        return process

    def replace(self, index: int) -> None:
        self.kill(self.running[index])
        self.running[index] = self.start()

    def kill(self, process: ForkServerProcess) -> None:
        process.kill()
        process.join()

    def close(self) -> None:
        for process in self.running:
            self.kill(process)

    def sent(self) -> list[tuple[float, int]]:
        """Give each grant by the time of its sending, in ms, and its units; a line that a kill cut off is none."""
        lines = self.path.read_text().splitlines() if self.path.exists() else []
        return sorted((float(at_ms), int(units)) for at_ms, units in (line.split() for line in lines))


@pytest.fixture
def crowd(broker: redis.Redis, services: EmbeddedServices, tmp_path: Path) -> Iterator[Crowd]:
    """Processes that take all they can get of an empty Redis's pool."""
    made = Crowd(services.redis.socket_path, tmp_path / "sent")
    yield made
    made.close()


def now_ms(client: redis.Redis) -> int:
    seconds, microseconds = client.time()
    return int(seconds) * 1000 + int(microseconds) // 1000


def last_end(client: redis.Redis) -> float:
    """Give when the last of the leases ends, in ms."""
    ends: Any = client.zrange(LEASES, -1, -1, withscores=True)
    return float(ends[0][1])


def most_above_the_rate(sent: list[tuple[float, int]]) -> float:
    """Give the most units of any interval, less those that flow in during it."""
    total, before, most = 0.0, float("-inf"), float("-inf")
    for at_ms, units in sent:
        flowed = (at_ms - sent[0][0]) * PER_MS
        before = max(before, flowed - total)
        total += units
        most = max(most, total - flowed + before)
    return most


async def free_places(socket: Path) -> int:
    """Take places until there are none, and give how many there were."""
    client = async_redis(f"unix://{socket}")
    limits, taken = Limiter(AsyncScripts(client)), 0
    while isinstance(await limits.acquire(QUOTA, Ask(uuid4(), "late", Lane.INTERACTIVE, {Resource.TOKENS: 0})), Grant):
        taken += 1
    await client.aclose()
    return taken


def test_the_quota_is_kept_and_used_and_the_places_of_killed_processes_come_back(
    crowd: Crowd, broker: redis.Redis, services: EmbeddedServices
) -> None:
    chance = random.Random(7)
    while not crowd.sent():
        time.sleep(0.01)
    ends_at = time.monotonic() + SECONDS
    kill_at = time.monotonic() + KILL_EACH_S
    held = []
    while time.monotonic() < ends_at:
        held.append(int(broker.zcount(LEASES, f"({now_ms(broker)}", "+inf")))
        if time.monotonic() > kill_at:
            crowd.replace(chance.randrange(PROCESSES))
            kill_at += KILL_EACH_S
        time.sleep(0.02)
    crowd.close()
    ended_ms = now_ms(broker)

    assert max(held) == QUOTA.concurrency
    sent = crowd.sent()
    assert most_above_the_rate(sent) <= BUCKET + PER_MS
    seconds_of_rate = 1 + (sent[-1][0] - sent[0][0]) / 1000
    assert sum(units for _, units in sent) >= 0.95 * seconds_of_rate * 1000 * PER_MS

    last_end_ms = last_end(broker)
    assert ended_ms < last_end_ms <= ended_ms + LEASE_MS
    while now_ms(broker) < last_end_ms:
        time.sleep(0.005)
    assert asyncio.run(free_places(services.redis.socket_path)) == QUOTA.concurrency
