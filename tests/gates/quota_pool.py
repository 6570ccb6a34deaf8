"""A quota pool in virtual time, used without a loop; each call proves that its keys share a hash tag and have a TTL."""

import asyncio
import json
from collections.abc import Awaitable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar
from uuid import UUID, uuid4

import redis

from penstock.gates.limiter import Ask, Grant, Limited, Limiter, Room, look
from penstock.gates.scripts import AsyncScripts, SyncScripts, source
from penstock.providers.quota import Quota
from penstock.schemas import Lane, ReportedLimit, Resource
from penstock.store.redis import async_redis, sync_redis

START_MS = 1_800_000_000_000
TOKENS = Quota(name="tokens", tpm=60_000)
"""One token a millisecond; a bucket of 5,000 that begins with 1,000; batch leaves 1,000 of it."""
SPLIT = Quota.model_validate({"name": "split", "rpm": 600, "itpm": 60_000, "otpm": 6_000, "charge": "input, output"})
"""10 requests, 1,000 input tokens and 100 output tokens a second, of each five seconds at most."""

LEVELS = """
local given, levels = cjson.decode(ARGV[1]), {}
open(KEYS[1], given.resources, given.now_ms)
for _, r in ipairs(given.resources) do levels[r.name] = r.level end
return cjson.encode(levels)
"""

Result = TypeVar("Result")


def tag_of(key: str) -> str:
    """Give the part of a key by which a Redis cluster places it."""
    start = key.find("{")
    end = key.find("}", start + 1)
    return key if start < 0 or end <= start + 1 else key[start + 1 : end]


class CheckedScripts(AsyncScripts):
    """Scripts that remember which keys they were given."""

    def __init__(self, client: Any, pool: "Pool") -> None:
        super().__init__(client, now_ms=lambda: pool.now_ms)
        self.known: set[str] = set()

    async def run(self, name: str, keys: Sequence[str], given: Mapping[str, object]) -> dict[str, Any]:
        assert len({tag_of(key) for key in keys}) == 1
        self.known.update(keys)
        return await super().run(name, keys, given)


class Pool:
    """One process at one quota pool; a test moves its clock. Unless `checked` it is quick, and looks at no key."""

    def __init__(self, socket: Path, quota: Quota = TOKENS, *, checked: bool = True) -> None:
        self.now_ms: float = START_MS
        self.quota = quota
        self.checked = checked
        self.runner = asyncio.Runner()
        self.client = async_redis(f"unix://{socket}")
        self.redis = sync_redis(f"unix://{socket}")
        self.scripts = CheckedScripts(self.client, self)
        self.limiter = Limiter(self.scripts)

    def close(self) -> None:
        self.runner.run(self.client.aclose())
        self.runner.close()
        self.redis.close()

    def run(self, call: Awaitable[Result]) -> Result:
        async def awaited() -> Result:
            return await call

        result = self.runner.run(awaited())
        if self.checked:
            keys = set(self.redis.scan_iter())
            assert keys <= self.scripts.known
            assert all(int(self.redis.pttl(key)) > 0 for key in keys)
        return result

    def pass_ms(self, wait_ms: float) -> None:
        self.now_ms += wait_ms

    def ask(
        self,
        units: int | Mapping[Resource, int] = 0,
        *,
        lane: Lane = Lane.INTERACTIVE,
        tenant: str = "acme",
        lease: UUID | None = None,
        tenant_concurrency: int | None = None,
        quota: Quota | None = None,
    ) -> Grant | Limited:
        asked = quota or self.quota
        given = dict.fromkeys(asked.per_minute, units) if isinstance(units, int) else units
        ask = Ask(lease or uuid4(), tenant, lane, given, tenant_concurrency)
        return self.run(self.limiter.acquire(asked, ask))

    def take(self, units: int | Mapping[Resource, int] = 0, *, wait_s: float = 0.0, **more: Any) -> Grant:
        """Ask, and be granted, to be sent after exactly `wait_s`."""
        answer = self.ask(units, **more)
        assert isinstance(answer, Grant), answer
        assert answer.wait_s == wait_s
        return answer

    def refuse(self, units: int | Mapping[Resource, int] = 0, **more: Any) -> tuple[str, float]:
        """Ask, and be refused, which changes nothing; give what lacks, and the wait."""
        before = self.taken()
        answer = self.ask(units, **more)
        assert isinstance(answer, Limited), answer
        assert answer.quota == self.quota.name
        assert self.taken() == before
        return answer.resource, answer.wait_s

    def want_batch(self) -> None:
        """Let batch ask, and not be granted for want of a place: it is thought to want some for 5 s more."""
        assert self.refuse(lane=Lane.BATCH, tenant="night", tenant_concurrency=0) == ("tenant_concurrency", 1.0)

    def fill(self) -> None:
        """Let the pool begin, and wait until its buckets are full."""
        self.settle(self.take())
        self.pass_ms(60_000)

    def keep_for_batch(self) -> None:
        """Let batch ask until all that can be kept for it is kept: 4,000 of a full bucket."""
        self.fill()
        for _ in range(9):
            self.want_batch()
            self.pass_ms(5_000)
        self.want_batch()

    def settle(self, grant: Grant, used: int | Mapping[Resource, int] | None = None, *reported: ReportedLimit) -> bool:
        given = dict.fromkeys(grant.ask.units, used) if isinstance(used, int) else used
        return self.run(self.limiter.settle(grant, given, reported))

    def throttle(self, grant: Grant, retry_after_s: float = 0.0, *reported: ReportedLimit) -> float | None:
        return self.run(self.limiter.throttled(grant, retry_after_s, reported))

    def extend(self) -> None:
        self.run(self.limiter.extend())

    def look(self, lane: Lane = Lane.INTERACTIVE, *, horizon_s: float = 0.0, is_waiting: bool = False) -> Room:
        scripts = SyncScripts(self.redis, lambda: self.now_ms)
        return look(scripts, self.quota, lane, horizon_s=horizon_s, is_waiting=is_waiting)

    def levels(self) -> dict[str, float]:
        """Give the level of each resource by now, as every script finds it."""
        resources = [
            {"name": name.value, "per_s": self.quota.rate_of(name, limit), "burst_s": self.quota.burst_of(name)}
            for name, limit in self.quota.per_minute.items()
        ]
        given = json.dumps({"now_ms": self.now_ms, "resources": resources})
        key = f"{{penstock:quota:{self.quota.name}}}:levels"
        answer = json.loads(str(self.redis.eval(source("pool") + LEVELS, 1, key, given)))
        return {name: round(level, 6) for name, level in answer.items()}

    def level(self) -> float:
        """Give the level of the only resource."""
        (level,) = self.levels().values()
        return level

    def taken(self) -> object:
        """Give what asks take: levels by now, the count of what was granted, and who holds places and leases."""
        stored = self.stored()
        hashes = [value for value in stored.values() if isinstance(value, dict)]
        granted = {name: value for each in hashes for name, value in each.items() if name.endswith(".granted")}
        held = {key: value for key, value in stored.items() if value and value not in hashes}
        return self.levels(), {name: value for name, value in granted.items() if float(value)}, held

    def stored(self) -> dict[str, object]:
        """Give everything that stands in Redis, except for places whose end is past."""
        return {key: contents(self.redis, key, self.now_ms) for key in sorted(self.redis.scan_iter())}

    def places(self) -> dict[str, int]:
        """Count the places that are held, by lane and by tenant."""
        prefix = f"{{penstock:quota:{self.quota.name}}}:leases:"
        found = {
            key.removeprefix(prefix): int(self.redis.zcount(key, f"({self.now_ms}", "+inf"))
            for key in self.redis.scan_iter(match=f"*:quota:{self.quota.name}}}:leases:*")
        }
        return {name: held for name, held in found.items() if held}


def contents(client: redis.Redis, key: str, now_ms: float) -> object:
    """Read a key of any type."""
    kind = client.type(key)
    if kind == "hash":
        return client.hgetall(key)
    if kind == "zset":
        return client.zrangebyscore(key, f"({now_ms}", "+inf", withscores=True)
    return client.get(key)
