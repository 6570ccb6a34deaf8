"""What the feeder sees of the gates, and that it releases no more than can be admitted."""

import asyncio
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
import redis
from sqlalchemy import Engine, text

from penstock.client.doorbell import Doorbell
from penstock.gates.breaker import Breaker, BreakerSettings, Ticket
from penstock.gates.limiter import Ask, Grant, Limiter
from penstock.gates.scripts import AsyncScripts, SyncScripts
from penstock.jobs.release import Allowance, Outstanding, Share
from penstock.pacing import Pace
from penstock.routing import Catalogue
from penstock.schemas import Lane, OnUnavailable, Resource
from penstock.settings import Settings
from penstock.store.redis import async_redis, sync_redis
from penstock.tenants import Tenants
from tests.jobs import rows
from workers.feeder import LEAST_RELEASED, Gauge, allow, feed

START_MS = 1_800_000_000_000
MODELS = """
[models.first]
model = "openai/first"
account = "a"
api_key_env = "NOT_SET_ANYWHERE"
quota = "pool"
context_window = 1000
max_output_tokens = 1000

[models.other]
model = "openai/other"
account = "a"
context_window = 1000
max_output_tokens = 1000

[quotas.pool]
tpm = 60_000
concurrency = 10
"""
"""1,000 tokens a second, of which a pool begins with 1,000 and holds 5,000; batch leaves a fifth, of places too."""
TIERS = """
[tiers.small]
deployments = ["first"]
concurrency = 1
timeout_s = 60
max_failures = 5

[tiers.tiny]
deployments = ["other"]
concurrency = 1
timeout_s = 60
max_failures = 5
"""
TENANTS = """
[default]
concurrency = 2

[tenants.free]
weight = 3.0
"""


@dataclass
class Feeder:
    """A feeder of tier `small`, at a time that a test chooses."""

    engine: Engine
    doorbell: Doorbell
    folder: Path
    gates: redis.Redis
    socket: Path
    now_ms: float = START_MS

    @property
    def gauge(self) -> Gauge:
        return self.gauge_at(self.gates)

    def gauge_at(self, gates: redis.Redis) -> Gauge:
        """Give the gauge of a feeder whose gates are in this Redis."""
        scripts = SyncScripts(gates, now_ms=lambda: self.now_ms)
        return Gauge(scripts, Catalogue.load(self.folder, with_keys=False), Tenants.load(self.folder))

    def wait(self, number: int, *, lane: Lane = Lane.BATCH, tokens: int = 100, **changes: Any) -> None:
        """Submit jobs that wait as rows."""
        jobs = [rows.new_job(lane=lane, estimated_tokens=tokens, **changes) for _ in range(number)]
        rows.submit(self.engine, *jobs, window=0)

    def feed(self, gauge: Gauge | None = None) -> int:
        return feed(self.engine, self.doorbell, "small", self.gauge if gauge is None else gauge)

    def released(self) -> dict[str, int]:
        """Count the released jobs by lane."""
        with self.engine.connect() as connection:
            found = connection.execute(text("SELECT lane FROM jobs WHERE state = 'released'"))
            return Counter(row.lane for row in found)

    def in_queues(self) -> dict[str, int]:
        """Count the messages in the broker."""
        names = ("small.interactive", "small.retry", "small.batch")
        return {name: length for name in names if (length := int(self.gates.llen(name)))}

    def take(self, tokens: int, lane: Lane = Lane.INTERACTIVE) -> None:
        """Have a call take tokens and a place of the pool."""
        quota = self.gauge.catalogue.deployments("small")[0].quota
        assert quota is not None

        async def acquire(scripts: AsyncScripts) -> None:
            grant = await Limiter(scripts).acquire(quota, Ask(uuid4(), "acme", lane, {Resource.TOKENS: tokens}))
            assert isinstance(grant, Grant)

        self.on_a_loop(acquire)

    def open_breakers(self, *deployments: str) -> None:
        """Have a call of each fail; half an hour passes until they may be asked again."""
        settings = BreakerSettings(consecutive_failures=1, cool_down_s=1800, longest_cool_down_s=1800)

        async def fail(scripts: AsyncScripts) -> None:
            breaker = Breaker(scripts, settings, jitter=lambda: 0.5)
            for name in deployments:
                ticket = await breaker.admit(name, probe_s=60)
                assert isinstance(ticket, Ticket)
                assert await breaker.failed(ticket)

        self.on_a_loop(fail)

    def on_a_loop(self, work: Any) -> None:
        """Run something with scripts at this feeder's time."""

        async def working() -> None:
            client = async_redis(f"unix://{self.socket}")
            try:
                await work(AsyncScripts(client, now_ms=lambda: self.now_ms))
            finally:
                await client.aclose()

        asyncio.run(working())


@pytest.fixture
def feeder(settings: Settings, engine: Engine, broker: redis.Redis, tmp_path: Path) -> Iterator[Feeder]:
    (tmp_path / "models.toml").write_text(MODELS)
    (tmp_path / "tiers.toml").write_text(TIERS)
    bell = Doorbell(settings.require_broker_url())
    yield Feeder(engine, bell, tmp_path, broker, Path(settings.require_redis_url().removeprefix("unix://")))
    bell.close()


@pytest.fixture
def away(tmp_path: Path) -> Iterator[redis.Redis]:
    """A Redis that does not answer."""
    client = sync_redis(f"unix://{tmp_path}/nobody.sock")
    yield client
    client.close()


def test_a_gauge_opens_without_the_keys_of_any_provider(feeder: Feeder, settings: Settings) -> None:
    gauge = Gauge.open(settings.model_copy(update={"config": feeder.folder}))
    assert gauge.pace("tiny", Lane.BATCH) == Pace()
    assert (gauge.shares(), gauge.default_share) == ({}, Share())


def test_each_lane_sees_its_own_room(feeder: Feeder) -> None:
    assert feeder.gauge.pace("small", Lane.INTERACTIVE) == Pace(jobs=10, tokens=1_400.0, most_tokens=5_000.0)
    assert feeder.gauge.pace("small", Lane.BATCH) == Pace(jobs=8, tokens=400.0, most_tokens=4_000.0)


def test_what_calls_have_taken_is_no_room(feeder: Feeder) -> None:
    feeder.take(900)
    assert feeder.gauge.pace("small", Lane.INTERACTIVE) == Pace(jobs=9, tokens=500.0, most_tokens=5_000.0)
    assert feeder.gauge.pace("small", Lane.BATCH) == Pace(jobs=7, tokens=44.0, most_tokens=4_000.0)


def test_time_makes_room(feeder: Feeder) -> None:
    assert feeder.gauge.pace("small", Lane.BATCH).tokens == 400.0
    feeder.take(1_000)
    feeder.now_ms += 3_000
    assert feeder.gauge.pace("small", Lane.BATCH).tokens == 2_400.0


def test_a_batch_is_released_as_far_as_its_tokens_go_and_the_rest_waits_as_rows(feeder: Feeder) -> None:
    feeder.wait(20, tokens=100)
    assert feeder.feed() == 4
    assert feeder.feed() == 0
    assert (feeder.released(), feeder.in_queues()) == ({"batch": 4}, {"small.batch": 4})


def test_interactive_has_the_room_that_batch_leaves_to_it(feeder: Feeder) -> None:
    feeder.wait(9, tokens=100)
    feeder.wait(9, tokens=200, lane=Lane.INTERACTIVE)
    assert feeder.feed() == 7 + 4
    assert feeder.released() == {"interactive": 7, "batch": 4}


def test_places_are_a_bound_of_their_own(feeder: Feeder) -> None:
    feeder.wait(20, tokens=1)
    feeder.wait(20, tokens=1, lane=Lane.INTERACTIVE)
    assert feeder.feed() == 8 + 10
    assert feeder.released() == {"interactive": 10, "batch": 8}


def test_what_is_out_in_the_one_lane_takes_nothing_from_the_other(feeder: Feeder) -> None:
    feeder.wait(20, tokens=100)
    feeder.feed()
    feeder.wait(7, tokens=200, lane=Lane.INTERACTIVE)
    assert feeder.feed() == 7


def test_a_job_larger_than_the_bucket_waits_for_a_full_one_and_nobody_passes_it(feeder: Feeder) -> None:
    feeder.wait(1, tokens=50_000, priority=9)
    feeder.wait(3, tokens=100)
    feeder.take(1)
    assert feeder.feed() == 0
    feeder.now_ms += 3_600
    assert feeder.feed() == 0
    feeder.now_ms += 1
    assert feeder.feed() == 1
    with feeder.engine.connect() as connection:
        assert connection.scalar(text("SELECT estimated_tokens FROM jobs WHERE state = 'released'")) == 50_000


def test_retries_take_places_before_new_work(feeder: Feeder) -> None:
    feeder.wait(6, tokens=1)
    rows.execute(feeder.engine, "UPDATE jobs SET state = 'retrying', attempts = 1, due_at = now()")
    feeder.wait(6, tokens=1)
    assert feeder.feed() == 8
    assert feeder.in_queues() == {"small.retry": 6, "small.batch": 2}


def test_while_redis_is_away_batch_stops_and_interactive_goes_on(feeder: Feeder, away: redis.Redis) -> None:
    gauge = feeder.gauge_at(away)
    feeder.wait(5)
    feeder.wait(LEAST_RELEASED + 5, lane=Lane.INTERACTIVE)
    assert gauge.pace("small", Lane.BATCH) == Pace(jobs=0)
    assert gauge.pace("small", Lane.INTERACTIVE) == Pace()
    assert feeder.feed(gauge) == LEAST_RELEASED
    assert feeder.released() == {"interactive": LEAST_RELEASED}
    assert feeder.feed() == 4
    assert feeder.released() == {"interactive": LEAST_RELEASED, "batch": 4}


def test_due_retries_of_batch_wait_for_redis_too(feeder: Feeder, away: redis.Redis) -> None:
    feeder.wait(5)
    rows.execute(feeder.engine, "UPDATE jobs SET state = 'retrying', attempts = 1, due_at = now()")
    before = rows.everything(feeder.engine)
    assert feeder.feed(feeder.gauge_at(away)) == 0
    assert rows.everything(feeder.engine) == before


@pytest.mark.parametrize("lane", list(Lane))
def test_while_every_breaker_is_open_only_those_are_released_that_would_not_wait(feeder: Feeder, lane: Lane) -> None:
    feeder.open_breakers("first", "other")
    feeder.wait(3, lane=lane)
    feeder.wait(2, lane=lane, fallback_tiers=("tiny",))
    before = rows.everything(feeder.engine)
    assert feeder.feed() == 0
    assert rows.everything(feeder.engine) == before
    feeder.wait(2, lane=lane, on_unavailable=OnUnavailable.DEGRADE)
    feeder.wait(1, lane=lane, on_unavailable=OnUnavailable.FAIL)
    assert feeder.feed() == 3
    with feeder.engine.connect() as connection:
        released = connection.scalars(text("SELECT on_unavailable FROM jobs WHERE state = 'released'"))
        assert Counter(released) == {"degrade": 2, "fail": 1}


def test_while_a_tier_is_out_jobs_that_an_open_one_may_answer_are_released(feeder: Feeder) -> None:
    feeder.open_breakers("first")
    assert feeder.gauge.pace("small", Lane.BATCH) == Pace(is_unavailable=True, open_tiers=("tiny",))
    feeder.wait(3)
    feeder.wait(2, fallback_tiers=("huge", "tiny"))
    feeder.wait(2, fallback_tiers=("huge",))
    assert feeder.feed() == 2


def test_a_deployment_that_is_to_be_probed_gets_one_job(feeder: Feeder) -> None:
    feeder.open_breakers("first")
    feeder.wait(5)
    feeder.now_ms += 3_600_000
    assert feeder.feed() == 1
    assert feeder.feed() == 0


def test_tenants_have_the_shares_of_their_file(feeder: Feeder) -> None:
    (feeder.folder / "tenants.toml").write_text(TENANTS)
    assert feeder.gauge.shares() == {"free": Share(weight=3.0, concurrency=None)}
    assert feeder.gauge.default_share == Share(weight=1.0, concurrency=2)
    for tenant in ("acme", "globex", "free"):
        feeder.wait(4, tokens=1, tenant=tenant)
    assert feeder.feed() == 8
    with feeder.engine.connect() as connection:
        released = connection.scalars(text("SELECT tenant FROM jobs WHERE state = 'released'"))
        assert Counter(released) == {"acme": 2, "globex": 2, "free": 4}


def test_a_tier_that_another_feeder_feeds_is_left_to_it(feeder: Feeder) -> None:
    feeder.wait(5)
    with feeder.engine.connect() as other:
        other.execute(text("SELECT pg_advisory_xact_lock(hashtextextended('penstock.feed.small', 0))"))
        assert feeder.feed() == 0
        other.rollback()
    assert feeder.feed() == 4


@pytest.mark.parametrize(
    ("soon", "out", "allowance"),
    [
        (Pace(), [], Allowance(32)),
        (Pace(), [Outstanding(30, 9_000)], Allowance(2)),
        (Pace(), [Outstanding(30, 9_000), Outstanding(9, 1)], Allowance(0)),
        (Pace(jobs=5), [Outstanding(2, 10)], Allowance(3)),
        (Pace(jobs=50), [], Allowance(32)),
        (Pace(tokens=700.0), [Outstanding(1, 300), Outstanding(1, 100)], Allowance(30, tokens=300.0)),
        (Pace(tokens=400.0), [Outstanding(1, 300), Outstanding(1, 100)], Allowance(0, tokens=0.0)),
        (Pace(tokens=100.0, most_tokens=90.0), [], Allowance(32, tokens=100.0, most_tokens=90.0)),
        (
            Pace(is_unavailable=True, open_tiers=("tiny",)),
            [],
            Allowance(32, only_impatient=True, open_tiers=("tiny",)),
        ),
    ],
)
def test_the_allowance_is_what_both_broker_and_gates_have_room_for_less_what_is_out(
    feeder: Feeder, soon: Pace, out: Sequence[Outstanding], allowance: Allowance
) -> None:
    assert allow(feeder.gauge, soon, 32, out) == allowance
