"""Mends what crashes leave behind, forgets, and tells of deaths; any number may run at once. It must not know a pool.

It runs beside the intake in the upkeep worker; `sweep` is one pass.
"""

import time
from dataclasses import dataclass
from threading import Event, Thread
from typing import Any, ClassVar

from celery import bootsteps
from sqlalchemy import Engine
from sqlalchemy.exc import DBAPIError

from penstock import telemetry
from penstock.client.doorbell import BROKER_ERRORS, Doorbell
from penstock.failpoints import Failpoint, reach
from penstock.jobs import dead_letters, recovery, retention
from penstock.money import ledger
from penstock.reception import Reception
from penstock.settings import Settings
from penstock.store.db import sync_engine
from penstock.tenants import Tenants
from workers.lifecycle import HEARTBEATS_A_LEASE, SOON_S

SWEEP_S = 1.0
OPEN_CALL_S = 60.0


@dataclass(frozen=True)
class Swept:
    """What one pass mended; `purged` counts the jobs that lost text."""

    recovered: int
    expired: int
    unknown: int
    announced: int
    purged: int = 0


def sweep(engine: Engine, doorbell: Doorbell, *, recover: bool = True, tenants: Tenants | None = None) -> Swept:
    """Recover jobs of dead workers, bury what is overdue, close calls that nobody will settle, announce the dead.

    Without `recover` the first is left out: nobody could renew a lease lately. With `tenants`, the text of jobs that
    ended longer ago than their tenant's period is purged.
    """
    with engine.begin() as connection:
        recovered = recovery.recover_expired(connection) if recover else []
    if recovered:
        reach(Failpoint.UPKEEP_RECOVERED)
    with engine.begin() as connection:
        expired = recovery.bury_overdue(connection)
        recovery.forget_workers(connection)
    for job in [*recovered, *expired]:
        event = "job.dead" if job.dead else "job.recovered"
        telemetry.emit(event, job=str(job.job_id), tenant=job.tenant, reason=job.reason)
    with engine.begin() as connection:
        unknown = ledger.abandon(connection, older_than_s=OPEN_CALL_S)
    if unknown:
        telemetry.emit("upkeep.calls_unknown", calls=len(unknown))
    purged = _purge(engine, tenants) if tenants is not None and tenants.forgets else 0
    with engine.begin() as connection:
        letters = dead_letters.take_unannounced(connection)
        doorbell.announce(letters)
        if letters:
            reach(Failpoint.UPKEEP_ANNOUNCED)
    return Swept(len(recovered), len(expired), len(unknown), len(letters), purged)


def _purge(engine: Engine, tenants: Tenants) -> int:
    with engine.begin() as connection:
        purged = retention.purge_expired(connection, tenants.retention_days, tenants.default.retention_days)
    if purged:
        telemetry.emit("upkeep.purged", jobs=purged)
    return purged


def keep_sweeping(engine: Engine, doorbell: Doorbell, stop: Event, lease_s: float, tenants: Tenants) -> None:
    """Sweep until `stop` is set; a service that is away is waited for.

    When Postgres comes back, and when this process has just begun and cannot know, workers get the time of a heartbeat
    to renew their leases: an outage is not the death of all of them.
    """
    grace_s = lease_s / HEARTBEATS_A_LEASE + SOON_S
    recovers_at = time.monotonic() + grace_s
    while not stop.wait(SWEEP_S):
        try:
            sweep(engine, doorbell, recover=time.monotonic() >= recovers_at, tenants=tenants)
        except (DBAPIError, *BROKER_ERRORS) as error:
            if isinstance(error, DBAPIError):
                recovers_at = time.monotonic() + grace_s
            telemetry.emit("service.unavailable", service="upkeep", error=type(error).__name__, retry_s=SWEEP_S)
        except Exception as error:  # noqa: BLE001 - the thread must not end in silence while its worker goes on
            telemetry.failed(error)


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
            self.thread = Thread(
                target=keep_sweeping,
                args=(self.engine, doorbell, self.stopping, settings.lease_s, tenants),
                name="upkeep",
            )
            self.thread.start()

        def stop(self, _worker: Any) -> None:
            self.stopping.set()
            self.thread.join()
            self.engine.dispose()

        terminate = stop

    app.steps["worker"].add(UpkeepStep)
