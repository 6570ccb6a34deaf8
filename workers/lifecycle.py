"""What a worker process does besides its jobs: it furnishes the house and keeps its lease. It must not know a task."""

import asyncio
import os
import socket
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Any, ClassVar
from uuid import UUID, uuid4

from celery import bootsteps, signals
from redis.exceptions import RedisError
from sqlalchemy.exc import DBAPIError

from penstock import telemetry
from penstock.gates.limiter import HEARTBEAT_S
from penstock.house import House
from penstock.jobs import leases, queries
from penstock.store.db import is_away

HEARTBEATS_A_LEASE = 3
LOOK_S = 1.0
"""How often a worker looks whether its runs are still its own: a cancel reaches a call in flight in two of these."""
LONGEST_START_S = 10.0
SOON_S = 1.0

Build = Callable[[str], House]


def worker_name() -> str:
    """Name this process among all workers of all hosts, and never like one that was here before."""
    return f"{socket.gethostname()}:{os.getpid()}:{uuid4().hex[:8]}"


def furnish(app: Any, build: Build) -> None:
    """Give the app's worker a house, made by `build` when the worker starts, and a heartbeat for as long as it runs."""

    class HouseStep(bootsteps.StartStopStep):  # type: ignore[misc]
        requires: ClassVar = {"celery.worker.components:Pool"}

        def start(self, worker: Any) -> None:
            worker.app.house = house = build(worker_name())
            worker.app.house_pool = worker.pool
            worker.pool.run(begin(house)).result()
            rhythms = [worker.pool.run(rhythm(house)) for rhythm in (keep_alive, keep_looking, keep_leases)]
            worker.pool.at_stop(partial(close, house, rhythms))

    app.steps["worker"].add(HouseStep)
    signals.task_revoked.connect(partial(_on_revoked, app), weak=False)


async def begin(house: House) -> None:
    """Begin the lease; wait for a Postgres that is away, as everything does that runs already."""
    while True:
        try:
            await _beat(house)
        except DBAPIError as error:
            if not is_away(error):
                raise
            telemetry.emit("service.unavailable", service="postgres", error=type(error).__name__, retry_s=SOON_S)
            await asyncio.sleep(SOON_S)
        else:
            return


async def keep_alive(house: House) -> None:
    """Renew the lease until cancelled; give back jobs that nobody runs."""
    pause_s = house.settings.lease_s / HEARTBEATS_A_LEASE
    missed = False
    while True:
        await asyncio.sleep(min(pause_s, SOON_S) if missed else pause_s)
        missed = True
        try:
            async with asyncio.timeout(pause_s):
                await _beat(house)
            missed = False
        except (DBAPIError, OSError) as error:
            telemetry.emit("service.unavailable", service="postgres", error=type(error).__name__, retry_s=SOON_S)
        except Exception as error:  # noqa: BLE001 - a heart that stops takes every job of the process with it
            telemetry.failed(error)


async def keep_looking(house: House) -> None:
    """Stop runs whose job was cancelled or taken over, until cancelled."""
    await _keep(partial(_look, house), LOOK_S)


async def keep_leases(house: House) -> None:
    """Extend the leases of the calls in flight, until cancelled; while Redis is away they run out by themselves."""
    await _keep(house.gates.limiter.extend, HEARTBEAT_S)


async def _keep(step: Callable[[], Awaitable[None]], pause_s: float) -> None:
    while True:
        await asyncio.sleep(pause_s)
        try:
            async with asyncio.timeout(pause_s):
                await step()
        except (DBAPIError, OSError, RedisError) as error:
            service = "redis" if isinstance(error, RedisError) else "postgres"
            telemetry.emit("service.unavailable", service=service, error=type(error).__name__, retry_s=pause_s)
        except Exception as error:  # noqa: BLE001 - it must go on for as long as the process runs jobs
            telemetry.failed(error)


async def _look(house: House) -> None:
    running = list(house.running.runs)
    if not running:
        return
    async with house.lease_engine.connect() as connection:
        gone = await connection.run_sync(partial(leases.lost, running=running))
    for job_id, _ in gone:
        telemetry.emit("lease.lost", job=str(job_id))
    house.running.stop(gone)


async def _beat(house: House) -> None:
    async with house.lease_engine.begin() as connection:
        await connection.run_sync(
            partial(leases.renew, worker=house.worker, lease_s=house.settings.lease_s, tier=house.tier)
        )
    async with house.lease_engine.begin() as connection:  # apart: who holds a job's row must not end the lease
        house.running.processes = await connection.run_sync(leases.count_alive)
        await connection.run_sync(
            partial(
                leases.release_adrift,
                worker=house.worker,
                running=[job_id for job_id, _ in house.running.runs],
                older_than_s=LONGEST_START_S,
            )
        )


async def close(house: House, rhythms: Sequence[Any]) -> None:
    """Write what was begun, end the lease so that nobody waits for it to run out, and give the connections back."""
    for rhythm in rhythms:
        rhythm.cancel()
    await house.journal.drain()
    async with house.lease_engine.begin() as connection:
        await connection.run_sync(partial(leases.retire, worker=house.worker))
    await house.close()


def _on_revoked(app: Any, request: Any, **_: Any) -> None:
    """Cancel the job of a task that was revoked, from wherever: `penstock jobs cancel`, or a click in Flower."""
    try:
        job_id = UUID(request.id)
    except ValueError:
        return
    pool = app.house_pool
    pool.run(_cancel(app.house, job_id))


async def _cancel(house: House, job_id: UUID) -> None:
    async with house.engine.begin() as connection:
        await connection.run_sync(partial(queries.cancel, ids=[job_id]))
