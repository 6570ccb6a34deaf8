"""Sends the messages of rows whose turn has come. Any number may run at once. It must not know how a job is run.

The broker holds about two seconds of work for each tier, so that order, pause and cancel act at once on the rest.
"""

import signal
from threading import Event

from sqlalchemy import Engine
from sqlalchemy.exc import DBAPIError

from penstock import telemetry
from penstock.client.broker import tier_queue
from penstock.client.doorbell import BROKER_ERRORS, Doorbell
from penstock.jobs import release
from penstock.jobs.release import Release
from penstock.routing import Catalogue
from penstock.schemas import Lane
from penstock.settings import Settings, default_settings
from penstock.store.db import sync_engine

PASS_S = 0.1
WORK_S = 2.0
LEAST_RELEASED = 32
LOST_AFTER_S = 15.0
LOOKS_FOR_LOST_EVERY = 20


def release_target(started: int) -> int:
    """Say how many unclaimed messages a tier should have: what was claimed in the last WORK_S, and room to grow."""
    return started + LEAST_RELEASED


def feed(engine: Engine, doorbell: Doorbell, tier: str) -> int:
    """Release what is due in a tier, interactive before batch, in each retries first; give the number of messages.

    Each lane has room of its own: what the one has in the broker takes nothing from the other.
    """
    releases: list[Release] = []
    with engine.begin() as connection:
        target = release_target(release.started(connection, tier, window_s=WORK_S))
        out = release.released(connection, tier)
        for lane in Lane:
            room = target - sum(jobs for group, jobs in out.items() if group.lane is lane)
            if room > 0:
                retries = release.release_retries(connection, tier, lane, most=room)
                releases += retries
                releases += release.release_fairly(connection, tier, lane, most=room - len(retries))
    if releases:
        telemetry.emit("feeder.released", tier=tier, jobs=len(releases))
    return doorbell.ring(releases)


def mend(engine: Engine, doorbell: Doorbell, tier: str) -> int:
    """Send again what the broker has lost: released rows beyond the messages that it still holds for them."""
    sent = 0
    with engine.begin() as connection:
        out = release.released(connection, tier)
    for group, jobs in out.items():
        missing = jobs - doorbell.waiting(tier_queue(tier, group.lane, is_retry=group.is_retry))
        if missing > 0:
            with engine.begin() as connection:
                releases = release.release_again(connection, tier, group, older_than_s=LOST_AFTER_S, most=missing)
            sent += doorbell.ring(releases)
    if sent:
        telemetry.emit("feeder.republished", tier=tier, jobs=sent)
    return sent


def run(settings: Settings, stop: Event) -> None:
    """Feed every tier until `stop` is set; a service that is away is waited for."""
    tiers = [tier.name for tier in Catalogue.load_tiers(settings.config).tiers]
    engine = sync_engine(settings.require_database_url())
    doorbell = Doorbell(settings.require_broker_url())
    passes = 0
    while not stop.wait(PASS_S):
        passes += 1
        try:
            for tier in tiers:
                feed(engine, doorbell, tier)
                if passes % LOOKS_FOR_LOST_EVERY == 0:
                    mend(engine, doorbell, tier)
        except (DBAPIError, *BROKER_ERRORS) as error:
            telemetry.emit("service.unavailable", service="feeder", error=type(error).__name__, retry_s=1.0)
            stop.wait(1.0)
        except Exception as error:  # noqa: BLE001 - one tier's trouble must not stop the others for ever
            telemetry.failed(error)
            stop.wait(1.0)
    doorbell.close()
    engine.dispose()


def main() -> None:
    """Run until SIGTERM or Ctrl-C."""
    settings = default_settings()
    telemetry.configure_logging(settings.log_level, settings.log_format)
    stop = Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    run(settings, stop)


if __name__ == "__main__":
    main()
