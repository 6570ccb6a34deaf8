"""The two processes that keep jobs moving, one pass at a time, on a real Postgres and a real Redis."""

import re
from collections.abc import Iterator
from pathlib import Path
from uuid import UUID, uuid4

import pytest
import redis
from sqlalchemy import Engine, text

from penstock.client import Client
from penstock.client.doorbell import BROKER_ERRORS, Doorbell
from penstock.gates.scripts import SyncScripts
from penstock.jobs.dead_letters import DeadLetter
from penstock.routing import Catalogue
from penstock.settings import Settings
from penstock.tenants import Tenants
from workers.embedded import RedisServer
from workers.feeder import LEAST_RELEASED, Gauge, feed, mend
from workers.upkeep import announce, bury, close_calls, recover, sweep

DOCUMENT = "The agency will hold a public meeting on 4 May 2017."


@pytest.fixture
def doorbell(settings: Settings, broker: redis.Redis) -> Iterator[Doorbell]:
    bell = Doorbell(settings.require_broker_url())
    assert broker.dbsize() == 0
    yield bell
    bell.close()


@pytest.fixture
def gauge(settings: Settings, broker: redis.Redis, tmp_path: Path) -> Gauge:
    """Give a gauge that knows no limit: none of the deployments names a quota."""
    for name in ("tiers.toml", "models.toml"):
        content = (settings.config / name).read_text()
        (tmp_path / name).write_text(re.sub(r"^quota = .*$", "", content, flags=re.MULTILINE))
    return Gauge(SyncScripts(broker), Catalogue.load(tmp_path, with_keys=False), Tenants.load(tmp_path))


@pytest.fixture
def client(settings: Settings, engine: Engine) -> Iterator[Client]:
    assert engine is not None
    with Client(settings) as producer:
        yield producer


def submit(client: Client, number: int, *, tenant: str = "acme", lane: str = "batch") -> list[UUID]:
    return client.submit_many(
        {"tenant": tenant, "document": DOCUMENT, "tier": "small", "lane": lane} for _ in range(number)
    )


def states(engine: Engine) -> dict[str, int]:
    with engine.connect() as connection:
        rows = connection.execute(text("SELECT state, count(*) AS jobs FROM jobs GROUP BY state"))
        return {row.state: row.jobs for row in rows}


def open_call(engine: Engine, job_id: UUID) -> None:
    """Write down a call that began two minutes ago and that nobody has settled."""
    with engine.begin() as connection:
        connection.execute(
            text("""
                INSERT INTO ledger (call_id, job_id, fence, tenant, prompt_id, prompt_version, tier, deployment,
                    account, model_asked, price_version, state, upper_bound_nanodollars, nanodollars, intended_at)
                SELECT gen_random_uuid(), id, 1, tenant, 'p', '1', 'small', 'd', 'a', 'm', '2026-01-01', 'intent', 9, 9,
                    now() - interval '2 minutes' FROM jobs WHERE id = :id
            """),
            {"id": job_id},
        )


def test_a_backlog_stays_in_rows_and_the_broker_gets_about_two_seconds_of_it(
    client: Client, engine: Engine, doorbell: Doorbell, broker: redis.Redis, gauge: Gauge
) -> None:
    submit(client, 100)
    assert feed(engine, doorbell, "small", gauge) == LEAST_RELEASED
    assert feed(engine, doorbell, "small", gauge) == 0
    assert states(engine) == {"released": LEAST_RELEASED, "queued": 100 - LEAST_RELEASED}
    assert broker.llen("small.batch") == LEAST_RELEASED


def test_what_was_claimed_lately_makes_room(client: Client, engine: Engine, doorbell: Doorbell, gauge: Gauge) -> None:
    submit(client, 100)
    feed(engine, doorbell, "small", gauge)
    with engine.begin() as connection:
        connection.execute(text("UPDATE jobs SET state = 'running', started_at = now() WHERE state = 'released'"))
    assert feed(engine, doorbell, "small", gauge) == 2 * LEAST_RELEASED


def test_a_retry_goes_to_its_own_queue_when_it_is_due(
    client: Client, engine: Engine, doorbell: Doorbell, broker: redis.Redis, gauge: Gauge
) -> None:
    submit(client, 2)
    with engine.begin() as connection:
        connection.execute(text("UPDATE jobs SET state = 'retrying', attempts = 1, due_at = now() + interval '1 hour'"))
    assert feed(engine, doorbell, "small", gauge) == 0
    with engine.begin() as connection:
        connection.execute(text("UPDATE jobs SET due_at = now()"))
    assert feed(engine, doorbell, "small", gauge) == 2
    assert (broker.llen("small.retry"), broker.llen("small.batch")) == (2, 0)


def test_messages_that_redis_lost_are_sent_again_and_others_are_not(
    client: Client, engine: Engine, doorbell: Doorbell, broker: redis.Redis, gauge: Gauge
) -> None:
    submit(client, 5)
    assert feed(engine, doorbell, "small", gauge) == 5
    with engine.begin() as connection:
        connection.execute(text("UPDATE jobs SET released_at = now() - interval '1 minute'"))
    assert mend(engine, doorbell, "small") == 0
    broker.flushall()
    assert mend(engine, doorbell, "small") == 5
    assert broker.llen("small.batch") == 5
    assert mend(engine, doorbell, "small") == 0


def test_a_producer_that_dies_between_commit_and_publish_loses_nothing(
    client: Client, engine: Engine, doorbell: Doorbell, broker: redis.Redis
) -> None:
    submit(client, 1, lane="interactive")
    broker.flushall()
    with engine.begin() as connection:
        connection.execute(text("UPDATE jobs SET released_at = now() - interval '1 minute'"))
    assert mend(engine, doorbell, "small") == 1
    assert broker.llen("small.interactive") == 1


def test_a_job_that_kills_three_workers_is_dead_as_poison_and_announced_once(
    client: Client, engine: Engine, doorbell: Doorbell, broker: redis.Redis
) -> None:
    (job_id,) = submit(client, 1)
    for _ in range(3):
        with engine.begin() as connection:
            connection.execute(text("UPDATE jobs SET state = 'running', fence = fence + 1, worker = 'gone'"))
        assert recover(engine) == 1
    assert announce(engine, doorbell) == 1
    assert (recover(engine), bury(engine), announce(engine, doorbell), close_calls(engine)) == (0, 0, 0, 0)
    job = client.get(job_id)
    assert (job.state, job.reason) == ("dead", "poison")
    assert broker.llen("dead_letter") == 1


def test_a_deadline_that_passes_in_the_queue_buries_the_job(client: Client, engine: Engine) -> None:
    (job_id,) = submit(client, 1)
    with engine.begin() as connection:
        connection.execute(text("UPDATE jobs SET deadline = now() - interval '1 second'"))
    assert bury(engine) == 1
    assert client.get(job_id).reason == "deadline"


def test_a_call_that_nobody_settled_is_closed_as_unknown_and_a_running_one_is_left(
    client: Client, engine: Engine
) -> None:
    over, running = submit(client, 2)
    open_call(engine, over)
    open_call(engine, running)
    with engine.begin() as connection:
        connection.execute(text("INSERT INTO workers VALUES ('alive', now(), now() + interval '1 minute')"))
        connection.execute(
            text("UPDATE jobs SET state = 'running', fence = 1, worker = 'alive' WHERE id = :id"), {"id": running}
        )
    assert close_calls(engine) == 1
    with engine.connect() as connection:
        rows = connection.execute(text("SELECT job_id, state, nanodollars FROM ledger")).all()
    assert {row.job_id: (row.state, row.nanodollars) for row in rows} == {over: ("unknown", 9), running: ("intent", 9)}


def test_a_broker_that_is_away_is_one_kind_of_error_whatever_was_asked_of_it(tmp_path: Path) -> None:
    server = RedisServer(tmp_path)
    server.start()
    bell = Doorbell(f"redis+socket://{server.socket_path}")
    letter = DeadLetter(uuid4(), "acme", "small", "batch", "poison", 3)
    bell.announce([letter])
    assert bell.waiting("dead_letter") == 1
    server.kill()
    with pytest.raises(BROKER_ERRORS):
        bell.waiting("dead_letter")
    with pytest.raises(BROKER_ERRORS):
        bell.announce([letter])
    bell.revoke([letter.job_id])
    server.start()
    assert bell.waiting("dead_letter") == 1
    server.stop()
    bell.close()


def test_a_batch_in_the_broker_takes_no_room_of_an_interactive_job(
    client: Client, engine: Engine, doorbell: Doorbell, broker: redis.Redis, gauge: Gauge
) -> None:
    submit(client, 100)
    feed(engine, doorbell, "small", gauge)
    (job_id,) = submit(client, 1, lane="interactive")
    with engine.begin() as connection:
        connection.execute(text("UPDATE jobs SET state = 'queued', released_at = NULL WHERE id = :id"), {"id": job_id})
    broker.delete("small.interactive")
    assert feed(engine, doorbell, "small", gauge) == 1
    assert broker.llen("small.interactive") == 1


def test_due_retries_of_a_batch_do_not_starve_an_interactive_job(
    client: Client, engine: Engine, doorbell: Doorbell, gauge: Gauge
) -> None:
    submit(client, 3 * LEAST_RELEASED)
    with engine.begin() as connection:
        connection.execute(text("UPDATE jobs SET state = 'retrying', attempts = 1, due_at = now()"))
    (job_id,) = submit(client, 1, lane="interactive")
    with engine.begin() as connection:
        connection.execute(text("UPDATE jobs SET state = 'queued' WHERE id = :id"), {"id": job_id})
    assert feed(engine, doorbell, "small", gauge) == LEAST_RELEASED + 1
    assert client.get(job_id).state == "released"


def test_stale_messages_of_one_queue_do_not_hide_a_lost_one_of_another(
    client: Client, engine: Engine, doorbell: Doorbell, broker: redis.Redis
) -> None:
    client.cancel(*submit(client, 10))
    (job_id,) = submit(client, 1, lane="interactive")
    for _ in range(10):
        broker.lpush("small.batch", "{}")
    broker.delete("small.interactive")
    with engine.begin() as connection:
        connection.execute(
            text("UPDATE jobs SET released_at = now() - interval '1 minute' WHERE id = :id"), {"id": job_id}
        )
    assert mend(engine, doorbell, "small") == 1


def test_an_outage_is_not_the_death_of_every_worker(client: Client, engine: Engine, doorbell: Doorbell) -> None:
    (job_id,) = submit(client, 1)
    with engine.begin() as connection:
        connection.execute(text("UPDATE jobs SET state = 'running', fence = 1, worker = 'lapsed'"))
    assert sweep(engine, doorbell, recovers=False)
    assert client.get(job_id).state == "running"
    assert sweep(engine, doorbell, recovers=True)
    assert client.get(job_id).state == "retrying"


def test_a_call_is_closed_though_the_broker_is_away(
    client: Client, engine: Engine, doorbell: Doorbell, monkeypatch: pytest.MonkeyPatch
) -> None:
    dead, over = submit(client, 2)
    with engine.begin() as connection:
        connection.execute(text("UPDATE jobs SET state = 'dead', ended_at = now() WHERE id = :id"), {"id": dead})
    open_call(engine, over)

    def away(_letters: object) -> None:
        raise OSError("no broker")

    monkeypatch.setattr(doorbell, "announce", away)
    assert sweep(engine, doorbell, recovers=True)
    with engine.connect() as connection:
        assert list(connection.scalars(text("SELECT state FROM ledger"))) == ["unknown"]
        assert connection.scalar(text("SELECT announced FROM jobs WHERE id = :id"), {"id": dead}) is False
