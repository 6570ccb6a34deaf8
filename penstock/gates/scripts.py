"""The one loader of Lua: it knows EVALSHA and where the files lie. It must not know what any script does.

A script takes KEYS of one hash tag and one ARGV, a JSON object; it answers with one JSON object. A line
`-- include NAME` is replaced by `lua/NAME.lua`. Time is that of Redis, unless `now_ms` stands in the object.
"""

import asyncio
import json
import re
import time
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from redis.exceptions import ConnectionError, TimeoutError  # noqa: A004 - Redis's own

from penstock.store.redis import CONNECTIONS

if TYPE_CHECKING:
    from redis import Redis
    from redis.asyncio import Redis as AsyncRedis

NowMs = Callable[[], float]

INCLUDE = re.compile(r"^-- include (\w+)$", re.MULTILINE)


@cache
def source(name: str) -> str:
    """Read a script with what it includes."""
    folder = files("penstock.gates") / "lua"
    text = (folder / f"{name}.lua").read_text(encoding="utf-8")
    return INCLUDE.sub(lambda match: (folder / f"{match[1]}.lua").read_text(encoding="utf-8"), text)


PAUSE_S = 0.5
"""After a failure Redis is not asked for so long: jobs must not queue up for its time-out, one after the other."""


class AsyncScripts:
    """The scripts, run on a loop."""

    def __init__(self, redis: "AsyncRedis", now_ms: NowMs | None = None) -> None:
        """Run on this client; with `now_ms`, at the time that it gives instead of that of Redis."""
        self._redis = redis
        self._now_ms = now_ms
        self._scripts: dict[str, Any] = {}
        self._asks_again_at_s = 0.0
        self._turns = asyncio.Semaphore(CONNECTIONS)

    async def run(self, name: str, keys: Sequence[str], given: Mapping[str, object]) -> dict[str, Any]:
        """Run one script and give its answer; raise RedisError when Redis is away."""
        if name not in self._scripts:
            self._scripts[name] = self._redis.register_script(source(name))
        async with self._turns:
            if time.monotonic() < self._asks_again_at_s:
                raise ConnectionError("Redis was away a moment ago")
            try:
                text = await self._scripts[name](keys=list(keys), args=[_argument(given, self._now_ms)])
            except (ConnectionError, TimeoutError):
                self._asks_again_at_s = time.monotonic() + PAUSE_S
                raise
        answer: dict[str, Any] = json.loads(text)
        return answer


class SyncScripts:
    """The scripts, run without a loop."""

    def __init__(self, redis: "Redis", now_ms: NowMs | None = None) -> None:
        """Run on this client; with `now_ms`, at the time that it gives instead of that of Redis."""
        self._redis = redis
        self._now_ms = now_ms

    def run(self, name: str, keys: Sequence[str], given: Mapping[str, object]) -> dict[str, Any]:
        """Run one script and give its answer; raise RedisError when Redis is away."""
        script = self._redis.register_script(source(name))
        answer: dict[str, Any] = json.loads(script(keys=list(keys), args=[_argument(given, self._now_ms)]))
        return answer


def _argument(given: Mapping[str, object], now_ms: NowMs | None) -> str:
    return json.dumps(given if now_ms is None else {**given, "now_ms": now_ms()})
