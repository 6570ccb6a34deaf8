"""A process that takes all it can get of a quota and writes down what it sent, until it is killed."""

import asyncio
import json
import os
import random
from uuid import uuid4

from penstock.gates import limiter
from penstock.gates.limiter import Ask, Grant, Limiter
from penstock.gates.scripts import AsyncScripts
from penstock.providers.quota import Quota
from penstock.schemas import Lane, Resource
from penstock.store.redis import async_redis

LEASE_MS = 1_000
CALLERS = 6
QUOTA = Quota(name="shared", tpm=600_000, burst_s=1.0, concurrency=30)
LEASES = "{penstock:quota:shared}:leases:interactive"
PAUSE_S = 0.02


def take_all(socket: str, path: str, seed: int) -> None:
    """Append a line for each grant: when it is to be sent in ms of Redis's clock, and its units."""
    limiter.LEASE_MS = LEASE_MS
    asyncio.run(_take_all(socket, path, random.Random(seed)))


async def _take_all(socket: str, path: str, chance: random.Random) -> None:
    client = async_redis(f"unix://{socket}")
    limits = Limiter(AsyncScripts(client))
    file = os.open(path, os.O_APPEND | os.O_CREAT | os.O_WRONLY)

    async def call() -> None:
        while True:
            ask = Ask(uuid4(), "acme", Lane.INTERACTIVE, {Resource.TOKENS: chance.choice([1, 50, 400, 1000, 3000])})
            grant = await limits.acquire(QUOTA, ask)
            if isinstance(grant, Grant):
                lease = json.loads(str(await client.get(f"{{penstock:quota:shared}}:lease:{ask.lease}")))
                os.write(file, f"{lease['send_at']} {ask.units[Resource.TOKENS]}\n".encode())
                await asyncio.sleep(grant.wait_s)
                await limits.settle(grant, None)
            else:
                await asyncio.sleep(min(grant.wait_s, PAUSE_S))

    async def beat() -> None:
        while True:
            await asyncio.sleep(LEASE_MS / 3000)
            await limits.extend()

    await asyncio.gather(beat(), *(call() for _ in range(CALLERS)))
