"""A process is killed with -9 at each named place of a job's way, while its message is delivered again and again."""

import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from uuid import UUID

import pytest
from sqlalchemy import text

from bench.chaos.places import write_simulator
from bench.chaos.texts import POISON
from penstock.failpoints import Failpoint
from penstock.providers.simulator.config import load_config
from penstock.providers.simulator.server import running
from penstock.schemas import JobState
from tests.system.crash_rig import DOCUMENT, PLAN, Rig, tenant
from workers.embedded import PostgresServer

AFTER_SEND = "after_send"
AT_ONCE = 4
"""Cases that are played side by side: each has a tier, a model and a tenant of its own."""
NEIGHBOURS = 3


@dataclass(frozen=True)
class Left:
    """What a crash leaves behind: how attempts ended, and what each physical call came to.

    A call is `settled` at what the invoice says, `refused` for nothing, `unsent` (held to cost its upper bound though
    the provider never saw it: nobody can know), or `hidden` (the provider did the work, and nobody heard of it).
    """

    attempts: tuple[str, ...]
    calls: tuple[str, ...]


TAKEN_OVER = ("unknown", "succeeded")
WORKER_POINTS = {
    Failpoint.AFTER_CLAIM: Left(TAKEN_OVER, ("settled",)),
    Failpoint.AFTER_HOLD: Left(TAKEN_OVER, ("unsent", "settled")),
    Failpoint.BEFORE_SEND: Left(TAKEN_OVER, ("unsent", "settled")),
    AFTER_SEND: Left(TAKEN_OVER, ("hidden", "settled")),
    Failpoint.AFTER_ANSWER: Left(TAKEN_OVER, ("hidden", "settled")),
    Failpoint.AFTER_SETTLEMENT: Left(TAKEN_OVER, ("settled",)),
    Failpoint.BEFORE_ACK: Left(("succeeded",), ("settled",)),
}
OTHER_POINTS = {
    Failpoint.PRODUCER_COMMITTED: Left(("succeeded",), ("settled",)),
    Failpoint.FEEDER_UPDATED: Left(("succeeded",), ("settled",)),
    Failpoint.UPKEEP_RECOVERED: Left(TAKEN_OVER, ("settled",)),
    Failpoint.UPKEEP_ANNOUNCED: Left(("dead", "succeeded"), ("refused", "settled")),
}
POINTS = WORKER_POINTS | OTHER_POINTS
POISONED = "poisoned"
REAL_ADAPTER = {AFTER_SEND}
"""Where LiteLLM is imported, and its connection is the one that breaks."""


@dataclass
class Played:
    """A case that was played: the rig, and the job."""

    rig: Rig
    job_id: UUID
    neighbours: list[UUID] = field(default_factory=list)
    deaths: int = 1


@pytest.fixture(scope="module")
def plays(request: pytest.FixtureRequest) -> Iterator[dict[str, "Future[Played]"]]:
    """Every case that is asked for, being played."""
    asked = {
        str(item.callspec.params.get("point", POISONED)) if hasattr(item, "callspec") else POISONED
        for item in request.session.items
        if getattr(item, "module", None) is request.module
    }
    with ExitStack() as stack:
        home = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="penstock-")))
        write_simulator(home / "simulator.toml", [*POINTS, POISONED], PLAN)
        simulator = stack.enter_context(running(load_config(home / "simulator.toml")))
        postgres = PostgresServer(home / "postgres")
        stack.callback(postgres.stop)
        postgres.start()
        pools = stack.enter_context(Rig("pools", home, postgres, simulator, [*WORKER_POINTS, POISONED, Failpoint.PRODUCER_COMMITTED]))
        upkeeps = stack.enter_context(Rig("upkeeps", home, postgres, simulator, [str(p) for p in POINTS]))
        yield {}
