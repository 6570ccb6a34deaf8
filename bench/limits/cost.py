"""What the limiter costs: an acquire and a settle on a local Redis, by the size of the call. It must not know a job."""

import asyncio
import time
from uuid import uuid4

from bench.limits.figures import percentile
from bench.limits.places import tell, temporary_home
from penstock.gates.limiter import Ask, Grant, Limiter
from penstock.gates.scripts import AsyncScripts
from penstock.providers.quota import Quota
from penstock.schemas import Lane, Resource
from penstock.store.redis import async_redis
from workers.embedded import RedisServer

WEIGHTS = (1, 1_000, 100_000, 10_000_000)
WARM_UP = 50
ENDLESS = 10**13
QUOTA = Quota(name="cost", rpm=ENDLESS, tpm=ENDLESS, concurrency=1000)


def measure(pairs: int) -> dict[int, list[float]]:
    """Give the milliseconds of `pairs` acquires with their settles, one after the other, by tokens a call."""
    tell(f"the limiter's cost: {pairs} pairs at {len(WEIGHTS)} weights")
    with temporary_home() as home:
        server = RedisServer(home / "redis")
        server.start()
        try:
            return asyncio.run(_measure(f"unix://{server.socket_path}", pairs))
        finally:
            server.stop()


def median_ms(times_ms: list[float]) -> float:
    """Give the median."""
    return percentile(times_ms, 0.5)


async def _measure(url: str, pairs: int) -> dict[int, list[float]]:
    redis = async_redis(url)
    limiter = Limiter(AsyncScripts(redis))
    try:
        for _ in range(WARM_UP):
            await _pair_ms(limiter, WEIGHTS[0])
        return {weight: [await _pair_ms(limiter, weight) for _ in range(pairs)] for weight in WEIGHTS}
    finally:
        await redis.aclose()


async def _pair_ms(limiter: Limiter, tokens: int) -> float:
    units = {Resource.REQUESTS: 1, Resource.TOKENS: tokens}
    begun_s = time.perf_counter()
    grant = await limiter.acquire(QUOTA, Ask(uuid4(), "acme", Lane.INTERACTIVE, units))
    assert isinstance(grant, Grant)
    await limiter.settle(grant, units)
    return (time.perf_counter() - begun_s) * 1000
