"""The token bucket of OpenAI's cookbook (api_request_parallel_processor.py), written anew. It must not know Redis.

One process keeps a capacity of requests and of tokens, each refilled continuously up to a minute's worth, and sends the
next request when both suffice for its prompt and its `max_tokens`. After a refusal everything pauses for 15 s; what
failed is tried again, five times in all. Who comes next: a retry, an interactive request, the batch.
"""

import asyncio
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field

import aiohttp

from bench.limits.figures import Run
from bench.limits.load import INTERACTIVE
from bench.limits.places import tell, temporary_home
from bench.limits.plan import Plan
from bench.limits.provider import THROTTLED, Provider
from bench.limits.texts import Document, prompt, prompt_tokens
from bench.limits.wire import request_body

PAUSE_AFTER_REFUSAL_S = 15.0
ATTEMPTS = 5
LOOP_S = 0.001
TIMEOUT_S = 60
HTTP_ERROR = 400


@dataclass
class Request:
    """One request, and how often it may still be tried."""

    job: str
    document: Document
    attempts_left: int = ATTEMPTS


@dataclass
class Capacity:
    """What may be sent: refilled by `per_minute` a minute, up to all of it."""

    per_minute: float
    available: float = field(init=False)
    at_s: float = field(default_factory=time.monotonic)

    def __post_init__(self) -> None:
        """Start full."""
        self.available = self.per_minute

    def refill(self) -> None:
        """Bring it up to now."""
        now_s = time.monotonic()
        self.available = min(self.per_minute, self.available + self.per_minute * (now_s - self.at_s) / 60)
        self.at_s = now_s


class Processor:
    """The loop of the cookbook, with a queue of interactive requests before the file."""

    def __init__(self, plan: Plan, url: str) -> None:
        """Take the provider's own limits."""
        limits = plan.semantics.limits
        self.counts_prompts_alone = "itpm" in limits
        self.requests = Capacity(limits["rpm"])
        self.tokens = Capacity(limits.get("tpm", limits.get("itpm", 0)))
        self.interactive: deque[Request] = deque()
        self.failed = 0
        self._url = f"{url}/v1/chat/completions"
        self._retries: deque[Request] = deque()
        self._refused_at_s = -PAUSE_AFTER_REFUSAL_S
        self._tasks: set[asyncio.Task[None]] = set()

    async def run(self, batch: Iterator[Request], until_s: float) -> None:
        """Send what capacity allows, until a time on the monotonic clock."""
        following: Request | None = None
        headers = {"Authorization": "Bearer cookbook", "Content-Type": "application/json"}
        connector = aiohttp.TCPConnector(limit=0)
        timeout = aiohttp.ClientTimeout(total=TIMEOUT_S)
        async with aiohttp.ClientSession(headers=headers, connector=connector, timeout=timeout) as session:
            while time.monotonic() < until_s:
                following = following or self._next(batch)
                self.requests.refill()
                self.tokens.refill()
                if following is not None and self._takes(following):
                    task = asyncio.create_task(self._send(session, following))
                    self._tasks.add(task)
                    task.add_done_callback(self._tasks.discard)
                    following = None
                await asyncio.sleep(LOOP_S)
                pause_s = self._refused_at_s + PAUSE_AFTER_REFUSAL_S - time.monotonic()
                if pause_s > 0:
                    await asyncio.sleep(min(pause_s, max(0.0, until_s - time.monotonic())))
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)

    def _next(self, batch: Iterator[Request]) -> Request | None:
        for queue in (self._retries, self.interactive):
            if queue:
                return queue.popleft()
        return next(batch, None)

    def _takes(self, request: Request) -> bool:
        tokens = prompt_tokens(request.document) + (0 if self.counts_prompts_alone else prompt().max_tokens)
        if self.requests.available < 1 or self.tokens.available < tokens:
            return False
        self.requests.available -= 1
        self.tokens.available -= tokens
        request.attempts_left -= 1
        return True

    async def _send(self, session: aiohttp.ClientSession, request: Request) -> None:
        try:
            headers = {"X-Client-Request-Id": request.job}
            async with session.post(self._url, data=request_body(request.document), headers=headers) as answer:
                await answer.read()
                if answer.status < HTTP_ERROR:
                    return
                if answer.status == THROTTLED:
                    self._refused_at_s = time.monotonic()
        except (aiohttp.ClientError, TimeoutError):
            pass
        if request.attempts_left:
            self._retries.append(request)
        else:
            self.failed += 1


def run(plan: Plan) -> Run:
    """Make a run."""
    with temporary_home() as home, Provider(plan.semantics, home) as provider:
        return asyncio.run(_run(plan, provider))


async def _run(plan: Plan, provider: Provider) -> Run:
    batch = plan.load.batch(plan.semantics.tokens_per_s * plan.longest_s)
    tenants = {f"batch-{number}": tenant for number, (tenant, _) in enumerate(batch)}
    for document in {document for _, document in batch}:
        request_body(document)
    started_s = time.monotonic()
    window = plan.window(started_s)
    tell(plan.announcement("cookbook", started_s))
    processor = Processor(plan, provider.url)
    requests = (Request(f"batch-{number}", document) for number, (_, document) in enumerate(batch))
    asked: dict[str, float] = {}

    async def ask() -> None:
        for number, (at_s, document) in enumerate(plan.load.interactive(started_s)):
            if at_s >= window[1]:
                return
            await asyncio.sleep(max(0.0, at_s - time.monotonic()))
            job = f"interactive-{number}"
            tenants[job], asked[job] = INTERACTIVE, time.monotonic()
            processor.interactive.append(Request(job, document))

    await asyncio.gather(ask(), processor.run(requests, window[1] + plan.after_s))
    ended_s, seen = time.monotonic(), provider.look()
    return Run(plan.semantics, seen, window, ended_s, {job: job for job in tenants}, tenants, asked, processor.failed)
