"""A house at two provider accounts and small quotas, for tests of who is asked when, and what follows.

A test file takes them by `provider, told, addresses, gated = admission_rooms.FIXTURES`.
"""

import asyncio
import json
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from datetime import datetime
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from uuid import UUID, uuid4

import httpx
import pytest
import redis
from pydantic import SecretStr
from sqlalchemy import Engine, text

from penstock.attempt import Report, run
from penstock.clock import SystemClock
from penstock.gates.breaker import Breaker, BreakerSettings, BreakerStatus, Ticket, read_status
from penstock.gates.estimates import Estimates
from penstock.gates.limiter import Limiter
from penstock.gates.local import LocalShare
from penstock.gates.scripts import AsyncScripts, SyncScripts
from penstock.house import Gates, House
from penstock.intake import Intake
from penstock.jobs import leases, recovery
from penstock.jobs.execution import Outcome
from penstock.jobs.submission import submit
from penstock.prompts import PromptLibrary
from penstock.providers.base import Deployment
from penstock.providers.litellm import LiteLLMProvider
from penstock.providers.simulator.config import load_config
from penstock.providers.simulator.server import running
from penstock.schemas import Message, ModelRequest, Usage
from penstock.settings import Settings
from tests.rooms import DOCUMENT, WORKER, Rooms

ROOT = Path(__file__).parent.parent
CONFIG = Path(__file__).parent / "admission_config"
KEYS = {"ADMISSION_FIRST_KEY": "first-account", "ADMISSION_SECOND_KEY": "second-account"}
START_MS = 1_800_000_000_000
DEADLINE_S = 20.0
LONG_DOCUMENT = " ".join(
    f"Article {number} sets out that the operator of installation {number} shall report its emissions by {number} May."
    for number in range(1, 31)
)
"""510 words: an answer of the simulator has 120 of them."""


LOAD = cache(PromptLibrary.load)
"""Prompts do not change between tests, and take longer to read than a job to run."""


class StillClock(SystemClock):
    """A clock that stands until a test moves it."""

    def __init__(self) -> None:
        self.at_s = 1000.0

    def monotonic_s(self) -> float:
        return self.at_s


@dataclass
class Told:
    """A provider that gives the answer which a test says."""

    url: str
    status: int = 200
    body: str = ""
    headers: dict[str, str] = field(default_factory=dict)
    requests: list[dict[str, Any]] = field(default_factory=list)
    nanodollars: int = 0
    """What one answer costs, if it says so."""

    def answers(self, body: object, *, status: int = 200, headers: dict[str, str] | None = None) -> None:
        self.status, self.headers, self.nanodollars = status, headers or {}, 0
        self.body = body if isinstance(body, str) else json.dumps(body)

    def says(self, content: str | None, finish_reason: str = "stop", **changes: Any) -> None:
        """Answer with a completion of 1,000 tokens in and 10 out."""
        message = {"role": "assistant", "content": content}
        usage = {"prompt_tokens": 1000, "completion_tokens": 10, "total_tokens": 1010}
        choices = [{"index": 0, "finish_reason": finish_reason, "message": message}]
        whole = {"id": "chatcmpl-1", "object": "chat.completion", "created": 1, "model": "told-1"}
        body = {**whole, "choices": choices, "usage": usage} | changes
        self.answers(body)
        self.nanodollars = 1000 * 750 + 10 * 3000 if body["usage"] else 0


def listen() -> Iterator[Told]:
    """Serve from a thread."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            tale.requests.append(json.loads(self.rfile.read(int(self.headers["content-length"]))))
            body = tale.body.encode()
            headers = {"content-type": "application/json", "content-length": str(len(body))} | tale.headers
            self.send_response(tale.status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        tale = Told(f"http://127.0.0.1:{server.server_address[1]}/v1")
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        yield tale
        server.shutdown()
        thread.join()


@dataclass
class AdmissionRooms(Rooms):
    """What a test does with such a house. A job's prompt has no fallback tiers unless the test asks for another."""

    http: httpx.Client = field(default_factory=lambda: httpx.Client(verify=False))  # certificates take 20 ms to load
    held: ExitStack = field(default_factory=ExitStack)
    """What ends with the test."""

    def submit(self, **fields: Any) -> UUID:
        return super().submit(**({"tier": "one", "prompt_version": "1.1.0"} | fields))

    def submit_many(self, count: int, **fields: Any) -> list[UUID]:
        """Submit jobs that are alike, and release them."""
        intake = Intake.load(self.settings, SystemClock())
        asked = {"tenant": "acme", "prompt": "summarise_document", "prompt_version": "1.1.0", "tier": "one"}
        jobs = [intake.accept(uuid4(), asked | {"document": DOCUMENT, "fresh": True} | fields) for _ in range(count)]
        with self.engine.begin() as connection:
            leases.renew(connection, WORKER, 60)
            made = [accepted.id for accepted in submit(connection, jobs, window=count)]
        self.release(*made)
        return made

    def ready(self, **fields: Any) -> UUID:
        """Submit a job of any lane, and release it."""
        job_id = self.submit(**fields)
        self.release(job_id)
        return job_id

    def release(self, *jobs: UUID) -> None:
        with self.engine.begin() as connection:
            statement = "UPDATE jobs SET state = 'released', released_at = now() WHERE id = ANY(:ids)"
            connection.execute(text(statement), {"ids": list(jobs)})

    def timed_attempt(self, job_id: UUID) -> tuple[Report, float]:
        """Run one attempt; give its wall time too, without that of the furnishing."""

        async def timed(house: House) -> tuple[Report, float]:
            began_s = time.monotonic()
            return await run(house, job_id), time.monotonic() - began_s

        return self.with_house(timed)

    def attempt_at(self, now_ms: float, job_id: UUID) -> Report:
        """Run one attempt while the gates' clock stands."""
        return self.with_house(lambda house: run(at(house, now_ms), job_id))

    def lose_worker(self) -> None:
        """Let the worker's lease run out and upkeep find it, and a worker of the same name live."""
        with self.engine.begin() as connection:
            leases.retire(connection, WORKER)
        with self.engine.begin() as connection:
            assert len(recovery.recover_expired(connection)) == 1
            leases.renew(connection, WORKER, 60)

    def fault(self, name: str, **parameters: Any) -> None:
        self.fail(name, count=1, **parameters)

    def fail(self, name: str, **parameters: Any) -> None:
        """Have the simulator misbehave until it is told to stop."""
        self.post("faults", {"faults": [{"name": name, **parameters}]})

    def heal(self) -> None:
        self.http.delete(f"{self.simulator}/faults").raise_for_status()

    def limit(self, model: str, **limits: int) -> None:
        """Let the provider allow less than its quota here says."""
        self.post("limits", {"model": model, **limits})

    def post(self, path: str, body: object = None) -> None:
        self.http.post(f"{self.simulator}/{path}", json=body).raise_for_status()

    def read(self, path: str) -> Any:
        return self.http.get(f"{self.simulator}/{path}").raise_for_status().json()

    def calls(self) -> int:
        return int(self.read("stats")["received"])

    def invoice(self) -> int:
        return int(self.read("invoice?lines=0")["total_nanodollars"])

    def received(self) -> dict[str, int]:
        """Count the requests that reached the provider, by model."""
        models = self.read("stats")["models"]
        return {name: int(model["received"]) for name, model in sorted(models.items())}

    def in_flight(self) -> int:
        """Count the requests that the provider has not done with."""
        return sum(int(model["in_flight"]) for model in self.read("stats")["models"].values())

    def lines(self) -> list[dict[str, Any]]:
        """Give the provider's invoice, the oldest call first."""
        lines: list[dict[str, Any]] = self.read("invoice")["lines"]
        return lines

    def max_tokens(self, model: str) -> list[int]:
        """Give the `max_tokens` of each answered request to a model that charges them beside the prompt."""
        charged = [row[3] for row in self.read(f"accepted?model={model}")]
        prompts = [
            line["input_tokens"] + line["cached_input_tokens"] for line in self.lines() if line["model"] == model
        ]
        return [tokens - prompt for tokens, prompt in zip(charged, prompts, strict=True)]

    def breaker(self, deployment: str) -> BreakerStatus:
        return read_status(SyncScripts(self.gates), deployment, BreakerSettings())

    def trip(self, *deployments: str, now_ms: float | None = None) -> None:
        """Let the breaker of each open for 5 s."""

        async def trip_all(house: House) -> None:
            breaker = breaker_of(house, now_ms)
            for name in deployments:
                for _ in range(BreakerSettings().consecutive_failures):
                    ticket = await breaker.admit(name, probe_s=10)
                    assert isinstance(ticket, Ticket)
                    await breaker.failed(ticket)

        self.with_house(trip_all)

    def teach(self, model: str, version: str, output: int) -> None:
        """Let a hundred answers of a model to summarise_document have had `output` tokens each."""

        async def observe(house: House) -> None:
            prompt = house.prompts.find("summarise_document", version).reference
            for _ in range(100):
                await house.gates.estimates.observe(model, prompt, 1, Usage(input_tokens=1, output_tokens=1), output)

        self.with_house(observe)

    def places(self, quota: str) -> int:
        """Count the calls that hold a place of a quota."""
        prefix = f"{{penstock:quota:{quota}}}:leases"
        return sum(int(self.gates.zcard(f"{prefix}:{lane}")) for lane in ("interactive", "batch"))

    def count(self, table: str, job_id: UUID) -> int:
        """Count the rows of a job."""
        return int(self.row(f"SELECT count(*) AS rows FROM {table} WHERE job_id = :id", id=job_id).rows)

    def now(self) -> datetime:
        """Give the time of Postgres."""
        moment: datetime = self.row("SELECT now() AS moment").moment
        return moment


def at(house: House, now_ms: float) -> House:
    """Give the same house with gates whose clock stands."""
    redis_client = house.gates.redis
    scripts = AsyncScripts(redis_client, now_ms=lambda: now_ms)
    clock = StillClock()
    gates = Gates(
        redis_client, Limiter(scripts), breaker_of(house, now_ms), Estimates(scripts, clock), LocalShare(clock)
    )
    return replace(house, gates=gates)


def change(house: House, name: str, **fields: Any) -> None:
    """Let a deployment be another than the configuration says."""
    deployments = house.catalogue._deployments
    deployments[name] = deployments[name].model_copy(update=fields)


def breaker_of(house: House, now_ms: float | None) -> Breaker:
    """Give a breaker whose cool-downs are exact."""
    now = None if now_ms is None else lambda: float(now_ms)
    return Breaker(AsyncScripts(house.gates.redis, now_ms=now), BreakerSettings(), jitter=lambda: 0.5)


def without_jitter(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let every wait be as long as the gates and the backoff say."""
    monkeypatch.setattr("penstock.attempt.random", SimpleNamespace(random=lambda: 0.0))


async def until(condition: Callable[[], bool]) -> None:
    """Look until it holds, and fail after DEADLINE_S."""
    ends_at_s = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < ends_at_s, "it did not come true in time"
        await asyncio.sleep(0.005)


def wait_until(condition: Callable[[], bool]) -> None:
    """Look until it holds, without a loop."""
    asyncio.run(until(condition))


async def run_all(house: House, jobs: Sequence[UUID]) -> list[Outcome | None]:
    """Run attempts beside one another."""
    return [report.outcome for report in await asyncio.gather(*(run(house, job_id) for job_id in jobs))]


def environment() -> dict[str, str]:
    """Give the variables that the configuration names, for a process that has them not."""
    return {name: value for name, value in os.environ.items() if name.startswith("ADMISSION_")}


@cache
def warm_up(url: str) -> None:
    """Let LiteLLM finish its lazy imports, so that no test's time holds them."""

    async def call() -> None:
        provider = LiteLLMProvider()
        where = Deployment(
            name="first",
            model="openai/sim-first",
            account="warm",
            api_base=f"{url}/v1",
            api_key=SecretStr("warm"),
            context_window=1000,
            max_output_tokens=10,
        )
        message = Message(role="user", content="Good morning.")
        await provider.complete(
            where, ModelRequest(call_id=UUID(int=0), messages=(message,), max_tokens=10, timeout_s=60)
        )
        await provider.count_tokens(where, (message,))
        await provider.close()

    asyncio.run(call())


@pytest.fixture(scope="module")
def provider() -> Iterator[str]:
    """The address of a simulator without latency."""
    with running(load_config(CONFIG / "simulator.toml")) as url:
        warm_up(url)
        yield url


@pytest.fixture(scope="module")
def told() -> Iterator[Told]:
    """A provider that gives the answer which a test says."""
    yield from listen()


@pytest.fixture
def addresses(provider: str, told: Told, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Set where the deployments are, and their keys; the address of `closed` is kept free, and prompts are kept."""
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        places = {
            "ADMISSION_SIMULATOR_URL": f"{provider}/v1",
            "ADMISSION_TOLD_URL": told.url,
            "ADMISSION_CLOSED_URL": f"http://127.0.0.1:{closed.getsockname()[1]}/v1",
        }
        for name, value in (KEYS | places).items():
            monkeypatch.setenv(name, value)
        monkeypatch.setattr(PromptLibrary, "load", staticmethod(LOAD))
        told.requests.clear()
        yield


@pytest.fixture
def gated(
    engine: Engine, broker: redis.Redis, settings: Settings, provider: str, addresses: None
) -> Iterator[AdmissionRooms]:
    """A house on empty tables and gates, and providers that have forgotten everything."""
    configured = settings.model_copy(update={"config": CONFIG})
    rooms = AdmissionRooms(settings=configured, engine=engine, gates=broker, simulator=provider)
    with rooms.http, rooms.held:
        rooms.post("reset")
        yield rooms
        rooms.held.close()
        wait_until(lambda: rooms.in_flight() == 0)  # what is still invoiced must not be the next test's


FIXTURES = (provider, told, addresses, gated)
"""What a test file has to have under these names."""
