"""Sends the messages of rows whose turn has come. Any number may run at once. It must not know how a job is run.

The broker holds about two seconds of work for each tier, so that order, pause and cancel act at once on the rest.
"""

import signal
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from threading import Event

from redis.exceptions import RedisError
from sqlalchemy import Engine

from penstock import telemetry
from penstock.client.broker import tier_queue
from penstock.client.doorbell import Doorbell
from penstock.failpoints import Failpoint, reach
from penstock.gates.scripts import SyncScripts
from penstock.jobs import release
from penstock.jobs.release import Allowance, Outstanding, Release, Share
from penstock.pacing import Pace, pace
from penstock.routing import Catalogue
from penstock.schemas import Lane
from penstock.settings import Settings, default_settings
from penstock.store.db import sync_engine
from penstock.store.redis import sync_redis
from penstock.tenants import TenantEntry, Tenants
from workers.steps import attempt

PASS_S = 0.1
REST_S = 1.0
"""How long a tier is left alone that could not be fed."""
WORK_S = 2.0
LEAST_RELEASED = 32
LOST_AFTER_S = 4.0
"""How long a message may be neither in the broker nor claimed before it is sent again: an emptied Redis costs this."""
LOOKS_FOR_LOST_EVERY = 20


@dataclass(frozen=True)
class Gauge:
    """What the feeder looks at before it releases: the gates, the tiers' deployments, the tenants' shares."""

    scripts: SyncScripts
    catalogue: Catalogue
    tenants: Tenants

    @classmethod
    def open(cls, settings: Settings) -> "Gauge":
        """Read the configuration and connect; raise ConfigurationError."""
        return cls(
            SyncScripts(sync_redis(settings.require_redis_url())),
            Catalogue.load(settings.config, with_keys=False),
            Tenants.load(settings.config),
        )

    def pace(self, tier: str, lane: Lane) -> Pace:
        """Say what could be admitted; while Redis is away interactive goes on and batch stops."""
        try:
            return pace(self.scripts, self.catalogue, tier, lane)
        except RedisError:
            return Pace() if lane is Lane.INTERACTIVE else Pace(jobs=0)

    def shares(self) -> dict[str, Share]:
        """Give the shares of the tenants that have one of their own."""
        return {name: _share(entry) for name, entry in self.tenants.named.items()}

    @property
    def default_share(self) -> Share:
        """Give the share of every other tenant."""
        return _share(self.tenants.default)


def release_target(started: int) -> int:
    """Say how many unclaimed messages a tier should have: what was claimed in the last WORK_S, and room to grow."""
    return started + LEAST_RELEASED


def feed(engine: Engine, doorbell: Doorbell, tier: str, gauge: Gauge) -> int:
    """Release what is due in a tier and can be admitted soon, interactive before batch, in each retries first.

    Each lane has room of its own: what the one has in the broker takes nothing from the other. When no model of the
    tier can be asked, only those jobs are released that would not wait for one of them. Gives the number of messages.
    """
    releases: list[Release] = []
    with engine.connect() as connection:
        lanes = release.waiting(connection, tier)
    if not lanes:
        return 0
    paces = {lane: gauge.pace(tier, lane) for lane in lanes}
    with engine.begin() as connection:
        if not release.begin_feeding(connection, tier):
            return 0
        target = release_target(release.started(connection, tier, window_s=WORK_S))
        out = release.released(connection, tier)
        for lane, soon in paces.items():
            of_lane = [outstanding for group, outstanding in out.items() if group.lane is lane]
            allowance = allow(gauge, soon, target, of_lane)
            if allowance.jobs > 0:
                retries = release.release_retries(connection, tier, lane, allowance)
                fewer = replace(allowance, jobs=max(0, allowance.jobs - len(retries)))
                releases += retries
                releases += release.release_fairly(connection, tier, lane, fewer)
    if releases:
        reach(Failpoint.FEEDER_UPDATED)
        telemetry.emit("feeder.released", tier=tier, jobs=len(releases))
    return doorbell.ring(releases)


def allow(gauge: Gauge, soon: Pace, target: int, out: Sequence[Outstanding]) -> Allowance:
    """Say how much may be released: what the broker should hold and the gates have room for, less what is out."""
    jobs = target if soon.jobs is None else min(target, soon.jobs)
    tokens = None if soon.tokens is None else soon.tokens - sum(each.tokens for each in out)
    return Allowance(
        jobs=0 if tokens is not None and tokens <= 0 else max(0, jobs - sum(each.jobs for each in out)),
        tokens=tokens,
        most_tokens=soon.most_tokens,
        shares=gauge.shares(),
        default_share=gauge.default_share,
        only_impatient=soon.is_unavailable,
        open_tiers=soon.open_tiers,
    )


def _share(entry: TenantEntry) -> Share:
    return Share(entry.weight, entry.concurrency)


def mend(engine: Engine, doorbell: Doorbell, tier: str) -> int:
    """Send again what the broker has lost: released rows beyond the messages that it still holds for them."""
    sent = 0
    with engine.begin() as connection:
        out = release.released(connection, tier)
    for group, outstanding in out.items():
        missing = outstanding.jobs - doorbell.waiting(tier_queue(tier, group.lane, is_retry=group.is_retry))
        if missing > 0:
            with engine.begin() as connection:
                releases = release.release_again(connection, tier, group, older_than_s=LOST_AFTER_S, most=missing)
            sent += doorbell.ring(releases)
    if sent:
        telemetry.emit("feeder.republished", tier=tier, jobs=sent)
    return sent


def run(settings: Settings, stop: Event) -> None:
    """Feed every tier until `stop` is set; a service that is away is waited for, and a tier that fails rests alone."""
    tiers = [tier.name for tier in Catalogue.load_tiers(settings.config).tiers]
    engine = sync_engine(settings.require_database_url())
    doorbell = Doorbell(settings.require_broker_url())
    gauge = Gauge.open(settings)
    passes = 0
    rests_until = dict.fromkeys(tiers, 0)
    while not stop.wait(PASS_S):
        passes += 1
        for tier in tiers:
            if passes >= rests_until[tier]:
                fed = attempt(partial(feed, engine, doorbell, tier, gauge), service="feeder", retry_s=REST_S)
                if isinstance(fed, Exception):
                    rests_until[tier] = passes + round(REST_S / PASS_S)
            if passes % LOOKS_FOR_LOST_EVERY == 0:
                attempt(partial(mend, engine, doorbell, tier), service="feeder", retry_s=REST_S)
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
