"""Mends what crashes leave behind, forgets, and tells of deaths; any number may run at once. It must not know a pool.

It runs beside the intake in the upkeep worker; `sweep` is one pass.
"""

import time
from dataclasses import dataclass
from functools import partial
from itertools import count
from threading import Event, Thread
from typing import Any, ClassVar

from celery import bootsteps
from sqlalchemy import Engine

from penstock import telemetry
from penstock.client.doorbell import BROKER_ERRORS, Doorbell
from penstock.failpoints import Failpoint, reach
from penstock.jobs import dead_letters, recovery, retention
from penstock.money import ledger
from penstock.reception import Reception
from penstock.settings import Settings
from penstock.store.db import is_away, sync_engine
from penstock.tenants import Tenants
from workers.lifecycle import HEARTBEATS_A_LEASE, SOON_S

SWEEP_S = 1.0
OPEN_CALL_S = 60.0
SWEEPS_A_LOOK = 60
"""How many passes there are to one that looks at periods of days."""


@dataclass(frozen=True)
class Swept:
    """What one pass mended."""

    recovered: int
    expired: int
    unknown: int
    announced: int


def sweep(engine: Engine, doorbell: Doorbell, *, recover: bool = True) -> Swept:
    """Recover jobs of dead workers, bury what is overdue, announce the dead, close calls that nobody will settle.

    Without `recover` the first is left out: nobody could renew a lease lately.
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
        letters = dead_letters.take_unannounced(connection)
        doorbell.announce(letters)
        if letters:
            reach(Failpoint.UPKEEP_ANNOUNCED)
    with engine.begin() as connection:
        unknown = ledger.abandon(connection, older_than_s=OPEN_CALL_S)
    if unknown:
        telemetry.emit("upkeep.calls_unknown", calls=len(unknown))
    return Swept(len(recovered), len(expired), len(unknown), len(letters))


def forget(engine: Engine, tenants: Tenants, *, at_once_only: bool = False) -> int:
    """Purge the text of jobs that ended longer ago than their tenant's period; gives how many jobs lost some.

    With `at_once_only` only where nothing is kept: days need not be looked at each second.
    """
    if not tenants.forgets:
        return 0
    periods, default = tenants.retention_days, tenants.default.retention_days
    if at_once_only:
        periods = {tenant: days if days == 0 else None for tenant, days in periods.items()}
        default = default if default == 0 else None
    with engine.begin() as connection:
        purged = retention.purge_expired(connection, periods, default)
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
    for number in count():
        if stop.wait(SWEEP_S):
            return
        steps = (
            partial(sweep, engine, doorbell, recover=time.monotonic() >= recovers_at),
            partial(forget, engine, tenants, at_once_only=number % SWEEPS_A_LOOK != 0),
        )
        for step in steps:
            try:
                step()
            except Exception as error:  # noqa: BLE001 - the thread must not end in silence while its worker goes on
                if is_away(error):
                    recovers_at = time.monotonic() + grace_s
                if is_away(error) or isinstance(error, BROKER_ERRORS):
                    telemetry.emit("service.unavailable", service="upkeep", error=type(error).__name__, retry_s=SWEEP_S)
                else:
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
