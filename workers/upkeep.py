"""Mends what crashes leave behind, forgets, and tells of deaths; any number may run at once. It must not know a pool.

It runs beside the intake in the upkeep worker. Each part of a pass is safe to run twice and beside itself.
"""

import time
from collections.abc import Sequence
from functools import partial
from itertools import count
from threading import Event, Thread
from typing import Any, ClassVar

from celery import bootsteps
from sqlalchemy import Engine

from penstock import telemetry
from penstock.batches import rows, tending
from penstock.batches.batch import Batch
from penstock.client.doorbell import Doorbell
from penstock.failpoints import Failpoint, reach
from penstock.jobs import dead_letters, recovery, retention
from penstock.jobs.recovery import Recovered
from penstock.money import ledger
from penstock.prompts import PromptLibrary
from penstock.reception import Reception
from penstock.routing import Catalogue
from penstock.settings import Settings
from penstock.similar import questions
from penstock.store.db import is_gone, sync_engine
from penstock.tenants import Tenants
from workers.lifecycle import HEARTBEATS_A_LEASE, SOON_S
from workers.overnight import Overnight
from workers.steps import attempt

SWEEP_S = 1.0
OPEN_CALL_S = 60.0
SWEEPS_A_LOOK = 60
"""How many passes there are to one that looks at periods of days."""
MOST_FORGOTTEN = 1000


def recover(engine: Engine) -> int:
    """Take the jobs of dead workers from them, and drop the rows of workers that are long gone."""
    with engine.begin() as connection:
        recovered = recovery.recover_expired(connection)
    if recovered:
        reach(Failpoint.UPKEEP_RECOVERED)
    _tell(recovered)
    with engine.begin() as connection:
        recovery.forget_workers(connection)
    return len(recovered)


def bury(engine: Engine) -> int:
    """Bury jobs whose deadline passed while they waited."""
    with engine.begin() as connection:
        overdue = recovery.bury_overdue(connection)
    _tell(overdue)
    return len(overdue)


def announce(engine: Engine, doorbell: Doorbell) -> int:
    """Announce deaths that nobody was told of; raise one of BROKER_ERRORS when the broker is away."""
    with engine.begin() as connection:
        letters = dead_letters.take_unannounced(connection)
        doorbell.announce(letters)
        if letters:
            reach(Failpoint.UPKEEP_ANNOUNCED)
    return len(letters)


def tend(engine: Engine, doorbell: Doorbell) -> int:
    """Let jobs follow the states of their batches, stop and end batches, and tell those who wait for an end.

    What goes wrong with one batch keeps no other from its turn.
    """
    with engine.connect() as connection:
        live = rows.live(connection)
    for batch in live:
        outcome = attempt(partial(tend_one, engine, doorbell, batch), service="upkeep", retry_s=SWEEP_S)
        if isinstance(outcome, Exception) and is_gone(outcome):
            raise outcome
    with engine.begin() as connection:
        ended = rows.take_unannounced(connection)
        for batch, callback in ended:
            doorbell.tell(batch, callback)
    return len(live)


def tend_one(engine: Engine, doorbell: Doorbell, batch: Batch) -> None:
    """Let one batch end or stop, and its jobs follow; it may have changed since it was looked up."""
    with engine.begin() as connection:
        rows.close(connection, batch)
        fault = tending.judge(connection, rows.find(connection, batch.tenant, batch.name))
        followed = tending.follow(connection, rows.find(connection, batch.tenant, batch.name))
    if fault:
        telemetry.emit("batch.stopped", batch=str(batch.id), tenant=batch.tenant, reason=fault)
    doorbell.revoke(followed.stopped)


def close_calls(engine: Engine) -> int:
    """Close calls that nobody will settle."""
    with engine.begin() as connection:
        unknown = ledger.abandon(connection, older_than_s=OPEN_CALL_S)
    if unknown:
        telemetry.emit("upkeep.calls_unknown", calls=len(unknown))
    return len(unknown)


def forget(engine: Engine, tenants: Tenants, *, at_once_only: bool = False) -> int:
    """Purge the text of jobs that ended longer ago than their tenant's period; gives how many jobs lost some.

    There is more to purge where that is MOST_FORGOTTEN. With `at_once_only` only where nothing is kept.
    """
    if not tenants.forgets:
        return 0
    periods, default = tenants.retention_days, tenants.default.retention_days
    if at_once_only:
        periods = {tenant: days if days == 0 else None for tenant, days in periods.items()}
        default = default if default == 0 else None
    with engine.begin() as connection:
        purged = retention.purge_expired(connection, periods, default, most=MOST_FORGOTTEN)
    if purged:
        telemetry.emit("upkeep.purged", jobs=purged)
    return purged


def forget_similar(engine: Engine, settings: Settings) -> int:
    """Delete instructions that no job finds again: of prompts that are gone, or of another model of embeddings."""
    if not (settings.config / "models.toml").exists():
        return 0
    embeddings = Catalogue.load_public(settings.config).embeddings
    prompts = [prompt.reference for prompt in PromptLibrary.load(settings.prompts)]
    with engine.begin() as connection:
        return questions.forget_stale(connection, prompts, embeddings.model if embeddings else None)


def sweep(engine: Engine, doorbell: Doorbell, *, recovers: bool) -> bool:
    """Mend what crashes left behind, and tell whether Postgres was there for it.

    Without `recovers` jobs stay with workers that are dead or could not renew their lease lately.
    """
    parts = [
        partial(bury, engine),
        partial(announce, engine, doorbell),
        partial(close_calls, engine),
        partial(tend, engine, doorbell),
    ]
    if recovers:
        parts.insert(0, partial(recover, engine))
    outcomes = [attempt(part, service="upkeep", retry_s=SWEEP_S) for part in parts]
    return not any(isinstance(outcome, Exception) and is_gone(outcome) for outcome in outcomes)


def keep_sweeping(engine: Engine, doorbell: Doorbell, stop: Event, lease_s: float, tenants: Tenants) -> None:
    """Sweep and forget until `stop` is set; a service that is away is waited for.

    When Postgres comes back, and when this process has just begun and cannot know, workers get the time of a heartbeat
    to renew their leases: an outage is not the death of all of them. A statement that fails is no outage. Periods
    of days need not be looked at each second, unless there was more than one look takes.
    """
    grace_s = lease_s / HEARTBEATS_A_LEASE + SOON_S
    recovers_at = time.monotonic() + grace_s
    forgotten: int | Exception = 0
    for number in count():
        if stop.wait(SWEEP_S):
            return
        if not sweep(engine, doorbell, recovers=time.monotonic() >= recovers_at):
            recovers_at = time.monotonic() + grace_s
        at_once_only = number % SWEEPS_A_LOOK != 0 and forgotten != MOST_FORGOTTEN
        look = partial(forget, engine, tenants, at_once_only=at_once_only)
        forgotten = attempt(look, service="upkeep", retry_s=SWEEP_S)


def _tell(jobs: Sequence[Recovered]) -> None:
    for job in jobs:
        event = "job.dead" if job.dead else "job.recovered"
        telemetry.emit(event, job=str(job.job_id), tenant=job.tenant, reason=job.reason)


def attach(app: Any, settings: Settings) -> None:
    """Have the app's worker take requests in, and sweep."""

    class UpkeepStep(bootsteps.StartStopStep):  # type: ignore[misc]
        requires: ClassVar = {"celery.worker.components:Pool"}

        def start(self, worker: Any) -> None:
            worker.app.reception = reception = Reception.open(settings)
            worker.pool.at_stop(reception.close)
            self.stopping = Event()
            self.engine = sync_engine(settings.require_database_url())
            doorbell = Doorbell(settings.require_broker_url())
            tenants = Tenants.load(settings.config)

            def work() -> None:
                attempt(partial(forget_similar, self.engine, settings), service="upkeep", retry_s=SWEEP_S)
                keep_sweeping(self.engine, doorbell, self.stopping, settings.lease_s, tenants)

            self.thread = Thread(target=work, name="upkeep")
            self.thread.start()
            self.overnight = Overnight(settings)
            self.overnight.start()

        def stop(self, _worker: Any) -> None:
            self.stopping.set()
            self.overnight.stop()
            self.thread.join()
            self.engine.dispose()

        terminate = stop

    app.steps["worker"].add(UpkeepStep)
