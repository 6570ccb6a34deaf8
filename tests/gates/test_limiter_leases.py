"""How a process keeps the leases of its calls, through its heartbeat and through a Redis that was emptied."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any
from uuid import uuid4

import pytest
import redis

from penstock.gates.limiter import LEASE_MS
from penstock.providers.quota import Quota
from penstock.schemas import Lane
from tests.gates.quota_pool import Pool
from workers.embedded import EmbeddedServices

PLACES = Quota(name="places", tpm=60_000, concurrency=2)
pytestmark = pytest.mark.parametrize("quota", [PLACES])


@pytest.fixture
def other(pool: Pool, services: EmbeddedServices) -> Iterator[Pool]:
    """Another process at the same pool."""
    made = Pool(services.redis.socket_path, PLACES, checked=False)
    yield made
    made.close()


def test_a_heartbeat_moves_the_end_of_a_place(pool: Pool) -> None:
    pool.take(tenant="one", tenant_concurrency=1)
    pool.take(tenant="two", lane=Lane.INTERACTIVE)
    pool.pass_ms(3_000)
    pool.extend()
    pool.pass_ms(LEASE_MS - 1)
    assert pool.places() == {"interactive": 2, "tenant:one": 1, "tenant:two": 1}
    assert pool.refuse() == ("concurrency", 1.0)
    pool.pass_ms(1)
    assert pool.places() == {}
    pool.take(tenant="one", tenant_concurrency=1)


def test_a_heartbeat_keeps_what_the_call_has_taken(pool: Pool, broker: redis.Redis) -> None:
    lease = uuid4()
    grant = pool.take(800, lease=lease)
    broker.pexpire(f"{{penstock:quota:places}}:lease:{lease}", 2_000)
    pool.extend()
    assert int(broker.pttl(f"{{penstock:quota:places}}:lease:{lease}")) > LEASE_MS - 1_000
    assert pool.level() == 200
    assert pool.settle(grant, 300) is True
    assert pool.level() == 700


def test_a_heartbeat_is_of_one_process_only(pool: Pool, other: Pool) -> None:
    pool.checked = False
    pool.take(tenant="one")
    other.take(tenant="two")
    for process in (pool, other):
        process.pass_ms(LEASE_MS - 1)
    pool.extend()
    for process in (pool, other):
        process.pass_ms(1)
    assert pool.places() == {"interactive": 1, "tenant:one": 1}


def test_a_process_without_calls_has_nothing_to_extend(pool: Pool) -> None:
    pool.settle(pool.take())
    pool.throttle(pool.take())
    before = pool.stored()
    pool.extend()
    assert pool.stored() == before


def test_each_quota_of_a_process_is_extended(pool: Pool) -> None:
    single = Quota(name="single", concurrency=1)
    pool.take(quota=single)
    pool.take()
    pool.pass_ms(LEASE_MS - 1)
    pool.extend()
    pool.pass_ms(LEASE_MS - 1)
    assert pool.places() == {"interactive": 1, "tenant:acme": 1}
    pool.quota = single
    assert pool.refuse() == ("concurrency", 1.0)


@pytest.mark.parametrize("lane", list(Lane))
def test_an_emptied_redis_gets_back_who_holds_a_place_and_a_settled_call_frees_it(
    pool: Pool, broker: redis.Redis, lane: Lane
) -> None:
    grant = pool.take(tenant="one", lane=lane)
    broker.flushall()
    assert pool.places() == {}
    pool.extend()
    assert pool.places() == {lane.value: 1, "tenant:one": 1}
    assert pool.refuse(tenant="one", tenant_concurrency=1) == ("tenant_concurrency", 1.0)
    assert pool.settle(grant, 0) is True
    assert pool.places() == {}


def test_a_place_that_was_given_back_to_an_emptied_redis_ends_as_any_other(pool: Pool, broker: redis.Redis) -> None:
    pool.take()
    broker.flushall()
    pool.extend()
    pool.pass_ms(LEASE_MS - 1)
    assert pool.places() == {"interactive": 1, "tenant:acme": 1}
    pool.pass_ms(1)
    assert pool.places() == {}


def test_a_call_from_before_redis_was_emptied_takes_nothing_of_the_new_pool_when_it_is_settled(
    pool: Pool, broker: redis.Redis
) -> None:
    grant = pool.take(1000)
    broker.flushall()
    pool.extend()
    assert pool.level() == 1000
    assert pool.settle(grant, 1000) is True
    assert pool.level() == 1000


def test_a_call_that_is_settled_while_the_heartbeat_is_under_way_does_not_get_its_place_back(
    pool: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = Quota(name="first", concurrency=1), Quota(name="second", concurrency=1)
    pool.take(quota=first)
    grant = pool.take(quota=second)
    run = pool.scripts.run

    async def settled_meanwhile(name: str, keys: Sequence[str], given: Mapping[str, object]) -> dict[str, Any]:
        answer = await run(name, keys, given)
        if name == "extend" and "first" in keys[0]:
            await pool.limiter.settle(grant, None)
        return answer

    monkeypatch.setattr(pool.scripts, "run", settled_meanwhile)
    pool.extend()
    pool.quota = second
    assert pool.places() == {}
