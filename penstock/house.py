"""Everything that a process needs to run jobs, built once. It must not know what any room does with it."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncEngine

from penstock.clock import Clock, SystemClock
from penstock.configuration import read_configuration
from penstock.jobs.execution import Claim, ClaimedJob, Ending, claim, finish
from penstock.money.ledger import Intent, JournaledAnswer, Settlement, intend, recall, settle
from penstock.money.prices import PriceList
from penstock.prompts import PromptLibrary
from penstock.providers.base import Provider
from penstock.retry import Backoff
from penstock.routing import Catalogue
from penstock.settings import Settings
from penstock.store.db import async_engine
from penstock.store.gather import Gatherer


@dataclass
class Running:
    """The jobs that this process runs now, and how to stop each."""

    jobs: dict[UUID, tuple[int, "asyncio.Task[object]"]] = field(default_factory=dict)
    lost: set[UUID] = field(default_factory=set)

    def enter(self, job: ClaimedJob) -> None:
        """Note that the current asyncio task runs `job`."""
        task = asyncio.current_task()
        assert task is not None
        self.jobs[job.id] = (job.fence, task)

    def leave(self, job: ClaimedJob) -> None:
        """Note that the job's run is over."""
        if self.jobs.get(job.id, (None,))[0] == job.fence:
            del self.jobs[job.id]
            self.lost.discard(job.id)

    def stop(self, job_ids: Sequence[UUID]) -> None:
        """Stop the runs of jobs that are no longer ours: cancelled, or taken over."""
        for job_id in job_ids:
            if job_id in self.jobs:
                self.lost.add(job_id)
                self.jobs[job_id][1].cancel()


class Journal:
    """The steps of a job that are rows, each shared with the other jobs of the process."""

    def __init__(self, engine: AsyncEngine) -> None:
        """Write on `engine`."""
        self.claim: Gatherer[Claim, ClaimedJob | None] = Gatherer(engine, claim)
        self.finish: Gatherer[Ending, bool] = Gatherer(engine, finish)
        self.intend: Gatherer[Intent, bool] = Gatherer(engine, intend)
        self.settle: Gatherer[Settlement, None] = Gatherer(engine, settle)
        self.recall: Gatherer[tuple[UUID, str], JournaledAnswer | None] = Gatherer(engine, recall)


@dataclass(frozen=True)
class House:
    """The rooms, furnished: what `ai.complete` and `attempt.run` work with."""

    settings: Settings
    worker: str
    engine: AsyncEngine
    journal: Journal
    catalogue: Catalogue
    prices: PriceList
    prompts: PromptLibrary
    provider: Provider
    clock: Clock
    backoff: Backoff = field(default_factory=Backoff)
    running: Running = field(default_factory=Running)

    async def close(self) -> None:
        """Give connections back."""
        await self.provider.close()
        await self.engine.dispose()


def build_house(settings: Settings, provider: Provider, worker: str) -> House:
    """Read every configuration file and connect; raise ConfigurationError."""
    catalogue, prices, prompts = read_configuration(settings)
    engine = async_engine(settings.require_database_url())
    return House(
        settings=settings,
        worker=worker,
        engine=engine,
        journal=Journal(engine),
        catalogue=catalogue,
        prices=prices,
        prompts=prompts,
        provider=provider,
        clock=SystemClock(),
    )
