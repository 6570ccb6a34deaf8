"""Everything that a process needs to run jobs, built once. It must not know what any room does with it."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from uuid import UUID

from redis.asyncio import Redis
from sqlalchemy.ext.asyncio import AsyncEngine

from penstock.clock import Clock, SystemClock
from penstock.configuration import read_configuration
from penstock.gates.breaker import Breaker, BreakerSettings
from penstock.gates.estimates import Estimates
from penstock.gates.limiter import Limiter
from penstock.gates.local import LocalShare
from penstock.gates.scripts import AsyncScripts
from penstock.jobs.execution import Claim, ClaimedJob, Ending, claim, finish
from penstock.money.ledger import Intent, Settlement, SoftLimitPassed, Verdict, intend, settle
from penstock.money.prices import PriceList
from penstock.money.recollection import Question, Recollection, recall
from penstock.prompts import PromptLibrary
from penstock.providers.base import Provider
from penstock.retry import Backoff
from penstock.routing import Catalogue
from penstock.settings import Settings
from penstock.store.db import async_engine
from penstock.store.gather import Gatherer
from penstock.store.redis import async_redis
from penstock.tenants import Tenants

Run = tuple[UUID, int]
"""A job and the fence of one of its runs."""


@dataclass
class Running:
    """The runs that this process has under way, and how to stop each."""

    runs: dict[Run, "asyncio.Task[object]"] = field(default_factory=dict)
    lost: set[Run] = field(default_factory=set)
    processes: int = 1
    """How many workers live, this one among them, as of the last heartbeat."""

    def enter(self, job: ClaimedJob) -> None:
        """Note that the current asyncio task runs `job`."""
        task = asyncio.current_task()
        assert task is not None
        self.runs[job.id, job.fence] = task

    def leave(self, job: ClaimedJob) -> None:
        """Note that the run is over."""
        del self.runs[job.id, job.fence]
        self.lost.discard((job.id, job.fence))

    def stop(self, runs: Sequence[Run]) -> None:
        """Stop runs whose job is no longer ours: cancelled, or taken over."""
        for run in runs:
            if run in self.runs and run not in self.lost:
                self.lost.add(run)
                self.runs[run].cancel()


class Journal:
    """The steps of a job that are rows, each shared with the other jobs of the process."""

    def __init__(self, engine: AsyncEngine) -> None:
        """Write on `engine`."""
        self.claim: Gatherer[Claim, ClaimedJob | None] = Gatherer(engine, claim)
        self.finish: Gatherer[Ending, bool] = Gatherer(engine, finish)
        self.intend: Gatherer[Intent, Verdict] = Gatherer(engine, intend)
        self.settle: Gatherer[Settlement, tuple[SoftLimitPassed, ...]] = Gatherer(engine, settle)
        self.recall: Gatherer[Question, Recollection] = Gatherer(engine, recall)

    async def drain(self) -> None:
        """Return when every step that was begun is written."""
        for gatherer in (self.claim, self.recall, self.intend, self.settle, self.finish):
            await gatherer.drain()


@dataclass(frozen=True)
class Gates:
    """What every call has to pass, shared with all other processes through Redis, and what does in its place."""

    redis: Redis
    limiter: Limiter
    breaker: Breaker
    estimates: Estimates
    local: LocalShare

    @classmethod
    def open(cls, url: str, clock: Clock) -> "Gates":
        """Connect when the first call comes."""
        redis = async_redis(url)
        scripts = AsyncScripts(redis)
        return cls(
            redis, Limiter(scripts), Breaker(scripts, BreakerSettings()), Estimates(scripts, clock), LocalShare(clock)
        )


@dataclass(frozen=True)
class House:
    """The rooms, furnished: what `ai.complete` and `attempt.run` work with."""

    settings: Settings
    worker: str
    tier: str
    engine: AsyncEngine
    lease_engine: AsyncEngine
    """Connections of the heartbeat's own: however many jobs wait for one, the worker is alive."""
    journal: Journal
    gates: Gates
    tenants: Tenants
    catalogue: Catalogue
    prices: PriceList
    prompts: PromptLibrary
    provider: Provider
    clock: Clock
    backoff: Backoff = field(default_factory=Backoff)
    running: Running = field(default_factory=Running)

    async def close(self) -> None:
        """Write what is still to be written, and give connections back."""
        await self.journal.drain()
        await self.provider.close()
        await self.gates.redis.aclose()
        await self.engine.dispose()
        await self.lease_engine.dispose()


def build_house(settings: Settings, provider: Provider, worker: str, tier: str = "") -> House:
    """Furnish a house for a worker of a tier. Read every configuration file and connect; raise ConfigurationError."""
    configuration = read_configuration(settings)
    engine = async_engine(settings.require_database_url())
    clock = SystemClock()
    return House(
        settings=settings,
        worker=worker,
        tier=tier,
        engine=engine,
        lease_engine=async_engine(settings.require_database_url(), connections=2),
        journal=Journal(engine),
        gates=Gates.open(settings.require_redis_url(), clock),
        tenants=configuration.tenants,
        catalogue=configuration.catalogue,
        prices=configuration.prices,
        prompts=configuration.prompts,
        provider=provider,
        clock=clock,
    )
