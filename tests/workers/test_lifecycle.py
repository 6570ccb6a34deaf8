"""A run whose job is no longer its own is stopped within two seconds, though nobody tells its worker."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from uuid import UUID

import httpx
import pytest
from sqlalchemy import text

from penstock.attempt import Report, run
from penstock.house import House
from penstock.jobs import queries, recovery
from penstock.jobs.execution import Outcome
from tests.rooms import Rooms
from workers.lifecycle import LOOK_S, begin, keep_looking

AT_ONCE_S = 2.0
PATIENCE_S = 15.0


async def until(holds: Callable[[], bool]) -> None:
    """Wait for something that another task does."""
    async with asyncio.timeout(PATIENCE_S):
        while not holds():
            await asyncio.sleep(0.01)


def in_flight(rooms: Rooms) -> int:
    """Count the connections on which the provider is working."""
    models = httpx.get(f"{rooms.simulator}/stats").json()["models"]
    return sum(int(model["in_flight"]) for model in models.values())


def places(rooms: Rooms) -> dict[str, int]:
    """Count the calls that the limiter thinks are in flight, by lane and by tenant."""
    return {
        str(key).rpartition(":leases:")[2]: int(rooms.gates.zcard(str(key)))
        for key in rooms.gates.scan_iter(match="*:leases:*")
    }


def leases(rooms: Rooms) -> int:
    """Count the leases of calls."""
    return len(list(rooms.gates.scan_iter(match="*:lease:*")))


def cancel(rooms: Rooms, job_id: UUID) -> list[UUID]:
    """Cancel a job in its row alone: no worker hears of it."""
    with rooms.engine.begin() as connection:
        return queries.cancel(connection, [job_id])


def lease_s(rooms: Rooms) -> float:
    """Give how long the worker's lease lasts yet."""
    with rooms.engine.connect() as connection:
        return float(
            connection.scalar(text("SELECT extract(epoch FROM max(lease_until) - clock_timestamp()) FROM workers")) or 0
        )


def take_over(rooms: Rooms) -> None:
    """Let the worker's lease run out unnoticed, and its jobs be given to others; then let it live again."""
    with rooms.engine.begin() as connection:
        connection.execute(text("UPDATE workers SET lease_until = now() - interval '1 second'"))
        assert len(recovery.recover_expired(connection)) == 1
        connection.execute(text("UPDATE workers SET lease_until = now() + interval '1 minute'"))


@asynccontextmanager
async def looking(house: House) -> AsyncIterator[None]:
    """Look beside the block, as a worker does."""
    rhythm = asyncio.create_task(keep_looking(house))
    try:
        yield
    finally:
        rhythm.cancel()


def hang(rooms: Rooms, use: Callable[[House, "asyncio.Task[Report]"], Awaitable[None]], *jobs: UUID) -> list[Report]:
    """Run jobs whose calls hang, and `use` the first while all are in flight; gives how their runs ended."""

    async def in_house(house: House) -> list[Report]:
        runs = [asyncio.create_task(run(house, job_id)) for job_id in jobs]
        await until(lambda: in_flight(rooms) == len(jobs))
        async with looking(house):
            await use(house, runs[0])
        for left in runs[1:]:
            left.cancel()
        done = await asyncio.gather(*runs, return_exceptions=True)
        assert house.running.runs == {}
        assert house.running.lost == set()
        return [report for report in done if isinstance(report, Report)]

    for _ in jobs:
        rooms.fault("hang", hold_s=60)
    return rooms.with_house(in_house)


def test_a_cancelled_row_stops_the_call_in_flight(rooms: Rooms) -> None:
    job_id = rooms.submit()

    async def cancel_the_row(house: House, running: "asyncio.Task[Report]") -> None:
        assert (places(rooms), leases(rooms)) == ({"interactive": 1, "tenant:acme": 1}, 1)
        assert cancel(rooms, job_id) == [job_id]
        cancelled_at = time.monotonic()
        await running
        await until(lambda: in_flight(rooms) == 0)
        assert time.monotonic() - cancelled_at <= AT_ONCE_S

    [report] = hang(rooms, cancel_the_row, job_id)
    assert (report.job_id, report.outcome) == (job_id, None)
    assert rooms.job(job_id).state == "cancelled"
    (call,) = rooms.ledger(job_id)
    assert (call.state, call.reason, call.nanodollars) == ("unknown", "time_limit", call.upper_bound_nanodollars)
    assert (places(rooms), leases(rooms)) == ({}, 0)
    assert rooms.calls() == 1


def test_a_job_that_was_taken_over_is_stopped_and_left_to_others(rooms: Rooms) -> None:
    job_id = rooms.submit()

    async def lose_it(house: House, running: "asyncio.Task[Report]") -> None:
        take_over(rooms)
        lost_at = time.monotonic()
        await running
        assert time.monotonic() - lost_at <= AT_ONCE_S

    [report] = hang(rooms, lose_it, job_id)
    assert report.outcome is None
    assert (rooms.job(job_id).state, rooms.job(job_id).reason) == ("retrying", "worker_lost")
    (call,) = rooms.ledger(job_id)
    assert (call.state, call.nanodollars) == ("unknown", call.upper_bound_nanodollars)
    assert (places(rooms), in_flight(rooms)) == ({}, 0)


def test_only_the_cancelled_run_is_stopped(rooms: Rooms) -> None:
    cancelled, other = rooms.submit(), rooms.submit(tenant="other")

    async def cancel_one(house: House, running: "asyncio.Task[Report]") -> None:
        cancel(rooms, cancelled)
        await running
        assert [job_id for job_id, _ in house.running.runs] == [other]
        assert (in_flight(rooms), places(rooms)) == (1, {"interactive": 1, "tenant:other": 1})

    [report] = hang(rooms, cancel_one, cancelled, other)
    assert report.job_id == cancelled
    assert (rooms.job(cancelled).state, rooms.job(other).state) == ("cancelled", "retrying")


@pytest.mark.parametrize("trouble", [OSError("away"), RuntimeError("ours")])
def test_a_look_that_fails_is_followed_by_another(
    rooms: Rooms, monkeypatch: pytest.MonkeyPatch, trouble: Exception
) -> None:
    job_id = rooms.submit()
    failed: list[object] = []

    async def cancel_while_looks_fail(house: House, running: "asyncio.Task[Report]") -> None:
        stop = house.running.stop

        def fail_once(runs: list[tuple[UUID, int]]) -> None:
            if not failed:
                failed.append(runs)
                raise trouble
            stop(runs)

        monkeypatch.setattr(house.running, "stop", fail_once)
        cancel(rooms, job_id)
        await running

    [report] = hang(rooms, cancel_while_looks_fail, job_id)
    assert (report.outcome, failed) == (None, [[(job_id, 1)]])


def test_a_worker_whose_connections_are_all_taken_is_alive(rooms: Rooms) -> None:
    async def beat_without_any(house: House) -> None:
        async with AsyncExitStack() as taken:
            for _ in range(house.engine.pool.size()):  # type: ignore[attr-defined]
                await taken.enter_async_context(house.engine.connect())
            async with asyncio.timeout(AT_ONCE_S):
                await begin(house)

    rooms.with_house(beat_without_any)
    assert lease_s(rooms) > 0


def test_a_row_that_somebody_holds_does_not_end_the_lease(rooms: Rooms) -> None:
    """A migration, say: what a heartbeat mends beside may wait, the lease may not."""

    async def beat_behind(house: House) -> None:
        with rooms.engine.begin() as holder:
            holder.execute(text("LOCK TABLE jobs IN ACCESS EXCLUSIVE MODE"))
            beating = asyncio.create_task(begin(house))
            await until(lambda: lease_s(rooms) > 0)
            assert not beating.done()
        await beating

    rooms.with_house(beat_behind)


def test_a_run_that_is_its_own_is_left_alone(rooms: Rooms) -> None:
    job_id = rooms.submit()
    rooms.fault("latency", extra_ms=2500 * LOOK_S)

    async def run_it(house: House) -> Report:
        async with looking(house):
            return await run(house, job_id)

    assert rooms.with_house(run_it).outcome is Outcome.SUCCEEDED
    assert rooms.calls() == 1
