"""A process is killed with -9 at each named place of a job's way, while its message is delivered again and again."""

import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import Row

from bench.chaos.places import write_simulator
from bench.chaos.texts import POISON, PROMPT
from penstock.errors import Reason
from penstock.failpoints import Failpoint
from penstock.providers.simulator.config import load_config
from penstock.providers.simulator.server import running
from penstock.schemas import JobState
from tests.system.crash_rig import DOCUMENT, LIGHT_WORKER, LOOK_S, PLAN, Rig, tenant
from workers.embedded import PostgresServer

AFTER_SEND = "after_send"
POISONED = "poisoned"
AT_ONCE = 4
"""Cases that are played side by side: each has a tier, models and a tenant of its own."""
NEIGHBOURS = 3
REAL_WORKER = "workers.worker"
"""The one with LiteLLM in it, whose connection breaks where the answer is on its way."""


@dataclass(frozen=True)
class Left:
    """What a crash leaves behind: how the attempts ended, and what each physical call came to.

    A call is `settled` at what the invoice says, `refused` for nothing, `unsent` (held to cost its upper bound though
    the provider never saw it: nobody can know), or `hidden` (the provider did the work, and nobody heard of it).
    """

    attempts: tuple[str, ...]
    calls: tuple[str, ...]


TAKEN_OVER = ("unknown", "succeeded")
POINTS = {
    Failpoint.PRODUCER_COMMITTED: Left(("succeeded",), ("settled",)),
    Failpoint.FEEDER_UPDATED: Left(("succeeded",), ("settled",)),
    Failpoint.AFTER_CLAIM: Left(TAKEN_OVER, ("settled",)),
    Failpoint.AFTER_HOLD: Left(TAKEN_OVER, ("unsent", "settled")),
    Failpoint.BEFORE_SEND: Left(TAKEN_OVER, ("unsent", "settled")),
    AFTER_SEND: Left(TAKEN_OVER, ("hidden", "settled")),
    Failpoint.AFTER_ANSWER: Left(TAKEN_OVER, ("hidden", "settled")),
    Failpoint.AFTER_SETTLEMENT: Left(TAKEN_OVER, ("settled",)),
    Failpoint.BEFORE_ACK: Left(("succeeded",), ("settled",)),
    Failpoint.UPKEEP_RECOVERED: Left(TAKEN_OVER, ("settled",)),
    Failpoint.UPKEEP_ANNOUNCED: Left(("dead", "succeeded"), ("refused", "settled")),
}
SENT = {"settled", "hidden", "refused"}


@dataclass(frozen=True)
class Played:
    """A case that was played: where, and the job. `others` ran beside it, `deaths` is how many workers it took."""

    rig: Rig
    job_id: UUID
    others: tuple[UUID, ...] = ()
    deaths: int = 1


def play_worker(rig: Rig, point: str) -> Played:
    """Kill a pool at the point; another one takes over."""
    armed = rig.worker(point, failpoint=point)
    job_id = rig.submit(point)
    rig.ring(job_id)
    armed.dies()
    return take_over(rig, point, job_id)


def play_after_send(rig: Rig, point: str) -> Played:
    """Kill a pool from outside while the provider works for it."""
    sender = rig.worker(point, module=REAL_WORKER)
    rig.misbehave(point, "latency", extra_ms=1500)
    job_id = rig.submit(point)
    rig.ring(job_id)
    rig.eventually(lambda: rig.in_flight(point) == 1)
    sender.kill()
    return take_over(rig, point, job_id, module=REAL_WORKER)


def take_over(rig: Rig, point: str, job_id: UUID, *, module: str = LIGHT_WORKER) -> Played:
    """Have another pool do the job, whose message comes once more while a dead pool has it and once when it is done."""
    rig.ring(job_id)
    heir = rig.worker(point, module=module)
    rig.succeeds(job_id)
    dropped = heir.says("job.not_claimable", job_id)
    rig.ring(job_id)
    rig.eventually(lambda: heir.says("job.not_claimable", job_id) > dropped)
    heir.kill()
    return Played(rig, job_id)


def play_feeder(rig: Rig, point: str) -> Played:
    """Kill a feeder between its update and the message; another one sends it when it is missed."""
    armed = rig.start("workers.feeder", failpoint=point)
    job_id = rig.submit(point, lane="batch")
    armed.dies()
    assert rig.client.get(job_id).state is JobState.RELEASED
    assert rig.messages(point) == 0
    rig.start("workers.feeder")
    rig.age(job_id)
    return take_over(rig, point, job_id)


def play_producer(rig: Rig, point: str) -> Played:
    """Kill a producer between its commit and the message; it submits again, and gets the same job."""
    armed = rig.start("tests.system.crash_producer", point, "the-key", failpoint=point)
    armed.dies()
    (row,) = rig.rows("SELECT id, state FROM jobs WHERE tenant = :tenant", tenant=tenant(point))
    assert row.state == JobState.RELEASED
    assert rig.messages(point) == 0
    again = rig.start("tests.system.crash_producer", point, "the-key")
    assert again.popen.wait() == 0
    assert again.log.read_text().split() == [str(row.id)]
    rig.age(row.id)
    return take_over(rig, point, row.id)


def play_recovered(rig: Rig, point: str) -> Played:
    """Kill upkeep when it has just taken a job from a dead pool."""
    pool = rig.worker(point, failpoint=Failpoint.AFTER_CLAIM)
    armed = rig.start(REAL_WORKER, "upkeep", failpoint=point)
    job_id = rig.submit(point)
    rig.ring(job_id)
    pool.dies()
    armed.dies()
    rig.start(REAL_WORKER, "upkeep")
    return take_over(rig, point, job_id)


def play_announced(rig: Rig, point: str) -> Played:
    """Kill upkeep when it has just published a death; another one publishes it again, and it can be replayed."""
    worker = rig.worker(point)
    rig.misbehave(point, "bad_request")
    job_id = rig.submit(point)
    rig.in_state(job_id, JobState.DEAD)
    armed = rig.start(REAL_WORKER, "upkeep", failpoint=point)
    armed.dies()
    assert not rig.is_announced(job_id)
    rig.start(REAL_WORKER, "upkeep")
    rig.eventually(lambda: rig.is_announced(job_id))
    worker.kill()
    assert rig.client.replay([job_id]) == [job_id]
    return take_over(rig, point, job_id)


def play_poisoned(rig: Rig, point: str) -> Played:
    """Run a job that kills whoever runs it, with others beside it; a pool that died is started anew."""
    rig.misbehave(point, "latency", count=20, extra_ms=300)
    fields = {"tenant": tenant(point), "prompt": PROMPT, "tier": point, "fresh": True}
    documents = [f"{POISON} {DOCUMENT}", *[DOCUMENT] * NEIGHBOURS]
    pool, deaths = rig.worker(point), 0
    job_id, *others = rig.client.submit_many(fields | {"document": document} for document in documents)
    for each in (job_id, *others):
        rig.ring(each)
    while rig.client.get(job_id).state is not JobState.DEAD:
        if pool.popen.poll() is not None:
            deaths += 1
            pool = rig.worker(point)
        time.sleep(LOOK_S)
    for each in others:
        rig.succeeds(each)
    return Played(rig, job_id, tuple(others), deaths)


PLAYS: dict[str, Callable[[Rig, str], Played]] = {
    **dict.fromkeys(POINTS, play_worker),
    AFTER_SEND: play_after_send,
    Failpoint.PRODUCER_COMMITTED: play_producer,
    Failpoint.FEEDER_UPDATED: play_feeder,
    Failpoint.UPKEEP_RECOVERED: play_recovered,
    Failpoint.UPKEEP_ANNOUNCED: play_announced,
    POISONED: play_poisoned,
}
ALONE: dict[str, tuple[str, ...]] = {
    Failpoint.FEEDER_UPDATED: (),
    Failpoint.UPKEEP_RECOVERED: ("workers.feeder",),
    Failpoint.UPKEEP_ANNOUNCED: ("workers.feeder",),
}
"""Cases in which a process dies that serves all tiers; they have rigs of their own, with these processes."""


@pytest.fixture(scope="module")
def plays(request: pytest.FixtureRequest) -> Iterator[dict[str, "Future[Played]"]]:
    """Give every case that is asked for, being played."""
    asked = {point_of(item) for item in request.session.items if getattr(item, "module", None) is request.module}
    together = [point for point in PLAYS if point in asked and point not in ALONE]
    with ExitStack() as stack:
        home = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="penstock-", ignore_cleanup_errors=True)))
        write_simulator(home / "simulator.toml", PLAYS, PLAN)
        simulator = stack.enter_context(running(load_config(home / "simulator.toml")))
        postgres = PostgresServer(home / "postgres")
        stack.callback(postgres.stop)
        postgres.start()
        pools = stack.enter_context(Rig("pools", home, postgres, simulator, together))
        rigs: dict[str, Rig] = {
            point: stack.enter_context(Rig(point, home, postgres, simulator, [point]))
            for point in ALONE
            if point in asked
        }
        for point, rig in rigs.items():
            for module in ALONE[point]:
                rig.start(module)
        if together:
            pools.start("workers.feeder")
            pools.start(REAL_WORKER, "upkeep")
        with ThreadPoolExecutor(AT_ONCE) as players:
            yield {
                point: players.submit(PLAYS[point], rigs.get(point, pools), point) for point in PLAYS if point in asked
            }


def point_of(item: pytest.Item) -> str:
    """Name the case that a test is about."""
    call = getattr(item, "callspec", None)
    return str(call.params["point"]) if call is not None else POISONED


@pytest.mark.parametrize("point", POINTS)
def test_a_crash_leaves_one_result_and_true_books(plays: dict[str, "Future[Played]"], point: str) -> None:
    played = plays[point].result()
    rig, job_id, left = played.rig, played.job_id, POINTS[point]
    rig.eventually(lambda: rig.in_flight(point) == 0)
    rig.close_calls()
    job = rig.client.get(job_id)
    assert (job.state, job.result) == (JobState.SUCCEEDED, DOCUMENT)
    assert len(rig.rows("SELECT 1 FROM results WHERE job_id = :id", id=job_id)) == 1
    assert len(rig.rows("SELECT 1 FROM answers WHERE job_id = :id", id=job_id)) == 1
    assert tuple(attempt.outcome for attempt in rig.client.history(job_id)) == left.attempts
    invoice = rig.invoice(point)
    calls = rig.calls(job_id)
    assert tuple(kind(call, invoice) for call in calls) == left.calls
    assert rig.received(point) == sum(call in SENT for call in left.calls)
    booked, billed = sum(call.nanodollars for call in calls), sum(invoice.values())
    bounds = [call for call in calls if call.state == "unknown"]
    hidden = sum(call.upper_bound_nanodollars - invoice.get(call.call_id, 0) for call in bounds)
    assert booked - billed == hidden
    assert (hidden > 0) is bool({"unsent", "hidden"} & set(left.calls))
    assert {(row.settled_nanodollars, row.held_nanodollars) for row in rig.spending(point)} == {(booked, 0)}
    assert {row.period for row in rig.spending(point)} == {"day", "month"}


def test_a_job_that_kills_its_worker_is_dead_after_three_and_takes_no_other_with_it(
    plays: dict[str, "Future[Played]"],
) -> None:
    played = plays[POISONED].result()
    rig = played.rig
    job = rig.client.get(played.job_id)
    assert (job.state, job.reason, job.attempts, played.deaths) == (JobState.DEAD, Reason.POISON, 3, 3)
    assert [attempt.outcome for attempt in rig.client.history(played.job_id)] == ["unknown"] * 3
    assert {rig.client.get(each).state for each in played.others} == {JobState.SUCCEEDED}
    assert len(played.others) == NEIGHBOURS


def kind(call: Row[Any], invoice: dict[UUID, int]) -> str:
    """Say what a call of the ledger came to; fail where it costs less than the provider says, or another sum."""
    billed = invoice.get(call.call_id)
    if call.state == "unknown":
        assert call.nanodollars == call.upper_bound_nanodollars >= (billed or 0)
        return "unsent" if billed is None else "hidden"
    assert (call.state, call.nanodollars) == ("settled", billed or 0)
    return "refused" if billed is None else "settled"
