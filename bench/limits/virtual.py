"""A day of the limiter in seconds: its own Lua in a Redis, the simulator's own buckets, and time moved by hand.

Events happen in the order of their times, and nothing else takes any. It must not know which scenario is played.
"""

import heapq
import itertools
import random
from collections import Counter
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any
from uuid import uuid4

import httpx

from bench.limits.semantics import Semantics
from penstock.gates.limiter import HEARTBEAT_S, Ask, Grant, Limited, Limiter
from penstock.gates.scripts import AsyncScripts
from penstock.providers.answers import read_limits
from penstock.providers.quota import Quota, Size
from penstock.providers.simulator.charges import Demand
from penstock.providers.simulator.limits import Excess, Meter
from penstock.schemas import Lane, ReportedLimits, Usage
from penstock.store.redis import async_redis

START_S = 1_800_000_000.0
OUTPUT_TOKENS = 180
MAX_TOKENS = 512
SEND_S = 0.05
"""The longest that a call is under way between the limiter and the provider; the shortest is nothing."""
JITTER = 0.1
"""How much later than told a job that must wait may ask again, as a share."""

Event = Callable[..., Coroutine[Any, Any, None]]


class HandClock:
    """A clock that goes when it is told to."""

    def __init__(self) -> None:
        """Start long after Redis's own beginning of time."""
        self.at_s = START_S

    def now(self) -> datetime:
        """Give the wall clock."""
        return datetime.fromtimestamp(self.at_s, UTC)

    def monotonic_s(self) -> float:
        """Give the same as seconds."""
        return self.at_s


@dataclass
class Outcome:
    """What the provider saw, by the second since the start."""

    taken: Counter[int] = field(default_factory=Counter)
    refused: Counter[int] = field(default_factory=Counter)
    tokens: Counter[tuple[int, Lane]] = field(default_factory=Counter)

    def tokens_of(self, since_s: int, until_s: int, *lanes: Lane) -> int:
        """Sum the tokens that were charged to lanes, all of them if none is named."""
        return sum(self.tokens[second, lane] for second in range(since_s, until_s) for lane in lanes or tuple(Lane))

    def refused_per_100(self, since_s: int, until_s: int) -> float:
        """Give how many calls were refused with 429 for each 100 that were taken."""
        seconds = range(since_s, until_s)
        return 100 * sum(self.refused[at] for at in seconds) / max(1, sum(self.taken[at] for at in seconds))


@dataclass(frozen=True)
class Wanted:
    """A call that somebody wants; `again` says that the next one follows when it is done."""

    tenant: str
    lane: Lane
    prompt: int
    again: bool

    @property
    def size(self) -> Size:
        """Give its size as it is estimated, which is the truth here."""
        return Size(prompt=self.prompt, max_tokens=max(self.prompt, MAX_TOKENS), output=OUTPUT_TOKENS)


class World:
    """Clients, limiter and provider."""

    def __init__(self, redis_url: str, semantics: Semantics, quota: Quota) -> None:
        """Begin with everything full: the provider has its true limits, the limiter those of `quota`."""
        self.outcome = Outcome()
        self.clock = HandClock()
        self.quota = quota
        self.meter = Meter(*semantics.simulator(), self.clock)
        self._redis = async_redis(redis_url)
        self._limiter = Limiter(AsyncScripts(self._redis, now_ms=lambda: self.clock.at_s * 1000))
        self._events: list[tuple[float, int, Event, tuple[Any, ...]]] = []
        self._numbers = itertools.count()
        self._random = random.Random(1)

    def want(self, wanted: Wanted, *, clients: int) -> None:
        """Have so many clients ask for it in the first second; each asks again when it has its answer."""
        for _ in range(clients):
            self._later(self._random.random(), self._ask, wanted)

    def want_now_and_then(self, wanted: Wanted, *, per_s: float) -> None:
        """Have independent clients ask for it, so many a second."""
        self._later(self._random.expovariate(per_s), self._come, wanted, per_s)

    def change(self, after_s: float, limits: Mapping[str, int]) -> None:
        """Have the provider change its limits at a time to come."""
        self._later(after_s, self._change, limits)

    async def play(self, seconds: float) -> Outcome:
        """Let time pass from the start on."""
        self._later(HEARTBEAT_S, self._beat)
        while self._events and self._events[0][0] < START_S + seconds:
            at_s, _, event, arguments = heapq.heappop(self._events)
            self.clock.at_s = max(self.clock.at_s, at_s)
            await event(*arguments)
        await self._redis.aclose()
        return self.outcome

    def _later(self, wait_s: float, event: Event, *arguments: Any) -> None:
        heapq.heappush(self._events, (self.clock.at_s + wait_s, next(self._numbers), event, arguments))

    async def _ask(self, wanted: Wanted) -> None:
        ask = Ask(uuid4(), wanted.tenant, wanted.lane, self.quota.charge_of(wanted.size))
        answer = await self._limiter.acquire(self.quota, ask)
        if isinstance(answer, Limited):
            self._later(self._jittered(answer.wait_s), self._ask, wanted)
        else:
            self._later(answer.wait_s + self._random.uniform(0, SEND_S), self._send, answer, wanted)

    async def _send(self, grant: Grant, wanted: Wanted) -> None:
        second = int(self.clock.at_s - START_S)
        size = wanted.size
        verdict = self.meter.admit(Demand(size.prompt, size.max_tokens))
        reported = read_limits(httpx.Headers(self.meter.headers()))
        if isinstance(verdict, Excess):
            self.outcome.refused[second] += 1
            wait_s = verdict.wait_s or 0.0
            await self._limiter.throttled(grant, wait_s, reported)
            self._later(self._jittered(wait_s), self._ask, wanted)
            return
        self.outcome.taken[second] += 1
        self.outcome.tokens[second, wanted.lane] += verdict.amounts["tokens"]
        self._later(self._random.lognormvariate(0.3, 0.4), self._answer, grant, wanted, reported)

    async def _answer(self, grant: Grant, wanted: Wanted, reported: ReportedLimits) -> None:
        self.meter.release()
        usage = Usage(input_tokens=wanted.size.prompt, output_tokens=OUTPUT_TOKENS)
        await self._limiter.settle(grant, self.quota.charged_for(usage, wanted.size.max_tokens), reported)
        if wanted.again:
            await self._ask(wanted)

    async def _come(self, wanted: Wanted, per_s: float) -> None:
        self._later(self._random.expovariate(per_s), self._come, wanted, per_s)
        await self._ask(wanted)

    async def _beat(self) -> None:
        self._later(HEARTBEAT_S, self._beat)
        await self._limiter.extend()

    async def _change(self, limits: Mapping[str, int]) -> None:
        self.meter.change(limits)

    def _jittered(self, wait_s: float) -> float:
        return wait_s * (1 + self._random.random() * JITTER)
