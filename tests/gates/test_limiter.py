"""What it means to take units and a place, to hold them, and to give them back: on a real Redis in virtual time."""

from uuid import UUID, uuid4

import pytest
import redis

from penstock.gates.limiter import LEASE_MS, Ask, Grant
from penstock.providers.quota import Quota
from penstock.schemas import Lane, Resource
from tests.gates.quota_pool import SPLIT, START_MS, TOKENS, Pool, tag_of
from workers.embedded import EmbeddedServices

TWO_PLACES = Quota(name="places", tpm=60_000, concurrency=2)
LEVELS = "{penstock:quota:tokens}:levels"
REQUESTS, INPUT, OUTPUT = Resource.REQUESTS, Resource.INPUT_TOKENS, Resource.OUTPUT_TOKENS

two_places = pytest.mark.parametrize("quota", [TWO_PLACES])
split = pytest.mark.parametrize("quota", [SPLIT])


def test_a_pool_begins_with_one_second_of_its_rate_and_holds_five(pool: Pool) -> None:
    assert pool.level() == 1000
    pool.take(1000)
    pool.pass_ms(4_999)
    assert pool.level() == 4999
    pool.pass_ms(1)
    assert pool.level() == 5000
    pool.pass_ms(60_000)
    assert pool.level() == 5000


@pytest.mark.parametrize("quota", [Quota(name="slow", rpm=6)])
def test_a_pool_of_less_than_a_unit_a_second_begins_with_one_and_holds_one(pool: Pool) -> None:
    pool.take(1)
    assert pool.refuse(1) == ("requests", 10.0)
    pool.pass_ms(60_000)
    assert pool.level() == 1


def test_a_bucket_that_holds_less_than_a_second_begins_full(broker: redis.Redis, services: EmbeddedServices) -> None:
    pool = Pool(services.redis.socket_path, Quota(name="short", tpm=60_000, burst_s=0.3))
    pool.take(300)
    pool.take(1, wait_s=0.001)
    pool.close()


def test_the_first_to_come_is_the_first_to_go_however_large_and_the_waits_are_exact(pool: Pool) -> None:
    pool.take(1000)
    for units, wait_s in [(300, 0.3), (1, 0.301), (599, 0.9), (0, 0.9), (100, 1.0)]:
        pool.take(units, wait_s=wait_s)
    assert pool.refuse(1) == ("tokens", 1.001)
    pool.pass_ms(1)
    pool.take(1, wait_s=1.0)
    assert pool.level() == -1000


def test_a_wait_that_is_no_whole_millisecond_is_rounded_up(broker: redis.Redis, services: EmbeddedServices) -> None:
    pool = Pool(services.redis.socket_path, Quota(name="third", tpm=180))  # 3 a second
    pool.take(3)
    pool.take(1, wait_s=0.334)
    pool.take(1, wait_s=0.667)
    pool.take(1, wait_s=1.0)
    pool.close()


def test_a_wait_of_whole_milliseconds_is_not_rounded_up(pool: Pool) -> None:
    pool.fill()
    pool.take(5000)
    assert {wait: pool.refuse(wait)[1] for wait in range(1001, 5001, 20)} == {
        wait: wait / 1000 for wait in range(1001, 5001, 20)
    }


def test_a_refusal_gives_the_exact_wait_and_takes_nothing(pool: Pool) -> None:
    pool.take(1000)
    assert pool.refuse(2500) == ("tokens", 2.5)
    pool.pass_ms(1_499)
    assert pool.refuse(2500) == ("tokens", 1.001)
    pool.pass_ms(1_000)
    pool.settle(pool.take(2500, wait_s=0.001), 0)
    pool.pass_ms(1)
    pool.take(2500)
    assert pool.level() == 0


@pytest.mark.parametrize(("lane", "longest_s"), [(Lane.INTERACTIVE, 1.0), (Lane.BATCH, 0.5)])
def test_a_lane_waits_in_its_slot_no_longer_than_it_may(pool: Pool, lane: Lane, longest_s: float) -> None:
    reserve = 1000 if lane is Lane.BATCH else 0
    pool.take(1000)
    pool.pass_ms(reserve)
    longest = round(longest_s * 1000)
    assert pool.refuse(longest + 1, lane=lane) == ("tokens", round(longest_s + 0.001, 3))
    pool.take(longest, lane=lane, wait_s=longest_s)


@split
@pytest.mark.parametrize(
    ("lacking", "all_of_it", "wait_s"), [(REQUESTS, 50, 5.0), (INPUT, 5000, 4.0), (OUTPUT, 500, 3.0)]
)
def test_who_lacks_one_of_three_resources_takes_none_of_them(
    pool: Pool, lacking: Resource, all_of_it: int, wait_s: float
) -> None:
    nothing = {REQUESTS: 0, INPUT: 0, OUTPUT: 0}
    pool.fill()
    pool.take(nothing | {lacking: all_of_it})
    needed = round(all_of_it * wait_s / 5)
    assert pool.refuse({REQUESTS: 1, INPUT: 1, OUTPUT: 1} | {lacking: needed}) == (lacking.value, wait_s)
    full = {"requests": 50, "input_tokens": 5000, "output_tokens": 500}
    assert pool.levels() == full | {lacking.value: 0}


@split
def test_the_longest_wait_of_all_resources_is_waited_and_named(pool: Pool) -> None:
    pool.take({REQUESTS: 10, INPUT: 1000, OUTPUT: 100})
    assert pool.refuse({REQUESTS: 11, INPUT: 1200, OUTPUT: 130}) == ("output_tokens", 1.3)
    assert pool.refuse({REQUESTS: 14, INPUT: 1200, OUTPUT: 130}) == ("requests", 1.4)
    pool.take({REQUESTS: 2, INPUT: 500, OUTPUT: 10}, wait_s=0.5)
    assert pool.levels() == {"requests": -2, "input_tokens": -500, "output_tokens": -10}


@two_places
def test_who_finds_no_place_takes_no_units_and_who_lacks_units_takes_no_place(pool: Pool) -> None:
    pool.take(100, tenant="one")
    pool.take(100, tenant="two")
    assert pool.refuse(100, tenant="three") == ("concurrency", 1.0)
    assert pool.refuse(100, tenant="one", tenant_concurrency=1) == ("concurrency", 1.0)
    assert pool.level() == 800
    assert pool.refuse(2000) == ("tokens", 1.2)
    assert pool.places() == {"interactive": 2, "tenant:one": 1, "tenant:two": 1}


def test_a_tenant_has_no_more_calls_than_its_own_bound_in_both_lanes_together(pool: Pool) -> None:
    pool.fill()
    pool.take(1, tenant="one", tenant_concurrency=2)
    second = pool.take(1, tenant="one", tenant_concurrency=2, lane=Lane.BATCH)
    assert pool.refuse(1, tenant="one", tenant_concurrency=2) == ("tenant_concurrency", 1.0)
    assert pool.refuse(1, tenant="one", tenant_concurrency=2, lane=Lane.BATCH) == ("tenant_concurrency", 1.0)
    pool.take(1, tenant="two", tenant_concurrency=2)
    pool.take(1, tenant="one", tenant_concurrency=3)
    pool.take(1, tenant="one")
    pool.settle(second)
    assert pool.places() == {"interactive": 4, "tenant:one": 3, "tenant:two": 1}


@two_places
def test_a_repeated_acquire_takes_nothing_and_gives_the_rest_of_its_wait(pool: Pool) -> None:
    pool.take(1000)
    lease = uuid4()
    pool.take(700, lease=lease, wait_s=0.7)
    before = pool.stored()
    pool.take(700, lease=lease, wait_s=0.7)
    assert pool.stored() == before
    pool.pass_ms(300)
    pool.take(700, lease=lease, wait_s=0.4)
    pool.pass_ms(400)
    pool.take(700, lease=lease, wait_s=0.0)
    pool.pass_ms(5)
    pool.take(700, lease=lease, wait_s=0.0)
    assert pool.stored() == before
    assert pool.places() == {"interactive": 2, "tenant:acme": 2}


def test_a_request_larger_than_the_bucket_waits_for_a_full_one_and_leaves_it_in_debt(pool: Pool) -> None:
    pool.take(1000)
    pool.pass_ms(3_999)
    assert pool.refuse(8000) == ("tokens", 1.001)
    pool.pass_ms(1)
    pool.take(8000, wait_s=1.0)
    assert pool.level() == -4000
    assert pool.refuse(50) == ("tokens", 4.05)
    pool.pass_ms(3_050)
    pool.take(50, wait_s=1.0)


def test_a_settled_call_gives_back_what_it_did_not_use_once(pool: Pool) -> None:
    grant = pool.take(800)
    assert pool.settle(grant, 300) is True
    assert pool.level() == 700
    after = pool.stored()
    assert pool.settle(grant, 300) is False
    assert pool.settle(grant, 0) is False
    assert pool.stored() == after
    assert pool.limiter._held == {}


def test_a_call_that_used_more_takes_more_even_into_debt(pool: Pool) -> None:
    pool.settle(pool.take(800), 1500)
    assert pool.level() == -500
    pool.take(100, wait_s=0.6)


def test_a_call_whose_use_is_not_known_has_used_all_of_it(pool: Pool) -> None:
    assert pool.settle(pool.take(800)) is True
    assert pool.level() == 200
    pool.settle(pool.take(100), 100)
    assert pool.level() == 100


def test_what_is_given_back_does_not_overfill_the_bucket(pool: Pool) -> None:
    pool.fill()
    grant = pool.take(1000)
    pool.pass_ms(900)
    pool.settle(grant, 0)
    assert pool.level() == 5000


@split
def test_each_resource_is_settled_by_its_own_use(pool: Pool) -> None:
    grant = pool.take({REQUESTS: 1, INPUT: 400, OUTPUT: 50})
    pool.settle(grant, {REQUESTS: 1, INPUT: 400, OUTPUT: 20})
    assert pool.levels() == {"requests": 9, "input_tokens": 600, "output_tokens": 80}


@two_places
def test_a_settled_call_frees_its_place_at_once(pool: Pool) -> None:
    first = pool.take(tenant="one", tenant_concurrency=1)
    pool.take(tenant="two", lane=Lane.INTERACTIVE)
    pool.settle(first)
    pool.take(tenant="one", tenant_concurrency=1)
    assert pool.places() == {"interactive": 2, "tenant:one": 1, "tenant:two": 1}


def test_a_call_that_was_never_granted_settles_nothing(pool: Pool) -> None:
    pool.take(500)
    before = pool.stored()
    assert pool.settle(Grant(Ask(uuid4(), "acme", Lane.INTERACTIVE, {Resource.TOKENS: 500}), TOKENS, 0.0), 0) is False
    assert pool.stored() == before


@two_places
def test_the_place_of_a_dead_process_is_free_exactly_at_the_end_of_its_lease(pool: Pool) -> None:
    pool.take(tenant="one", tenant_concurrency=1)
    pool.take(tenant="two")
    pool.pass_ms(LEASE_MS - 1)
    assert pool.refuse() == ("concurrency", 1.0)
    pool.pass_ms(1)
    pool.take(tenant="one", tenant_concurrency=1)
    assert pool.places() == {"interactive": 1, "tenant:one": 1}


def test_the_tenants_place_of_a_dead_process_is_free_exactly_at_the_end_too(pool: Pool) -> None:
    pool.take(tenant_concurrency=1, lane=Lane.BATCH, wait_s=0.0)
    pool.pass_ms(LEASE_MS - 1)
    assert pool.refuse(tenant_concurrency=1) == ("tenant_concurrency", 1.0)
    pool.pass_ms(1)
    pool.take(tenant_concurrency=1)


def test_a_lease_itself_lives_as_long_as_its_place(pool: Pool, broker: redis.Redis) -> None:
    lease = uuid4()
    pool.take(lease=lease)
    assert LEASE_MS - 1000 < int(broker.pttl(key_of(lease))) <= LEASE_MS
    broker.delete(key_of(lease))
    assert broker.zscore("{penstock:quota:tokens}:leases:interactive", str(lease)) == START_MS + LEASE_MS


def key_of(lease: UUID) -> str:
    return f"{{penstock:quota:tokens}}:lease:{lease}"


def test_deployments_that_name_one_quota_share_its_pool_and_others_do_not(pool: Pool) -> None:
    pool.take(1000)
    assert pool.refuse(1500, quota=Quota(name="tokens", tpm=60_000)) == ("tokens", 1.5)
    pool.take(1000, quota=Quota(name="another", tpm=60_000))


@pytest.mark.parametrize("quota", [Quota(name="calls", concurrency=1)])
def test_a_quota_may_limit_nothing_but_calls_in_flight(pool: Pool) -> None:
    grant = pool.take({})
    assert pool.refuse({}) == ("concurrency", 1.0)
    assert pool.settle(grant) is True
    pool.take({})


@pytest.mark.parametrize("name", ["plain", "a}b", "a{b", "{}", "openai:gpt 5/äö", "x:levels"])
def test_every_key_of_a_call_has_one_hash_tag_whatever_the_names(
    broker: redis.Redis, services: EmbeddedServices, name: str
) -> None:
    pool = Pool(services.redis.socket_path, Quota(name=name, tpm=60_000, concurrency=5))
    settled, throttled = pool.take(1, tenant="}{"), pool.take(1, tenant="{other}", lane=Lane.INTERACTIVE)
    pool.extend()
    pool.settle(settled)
    pool.throttle(throttled, 1.0)
    pool.look()
    assert {tag_of(key) for key in broker.scan_iter()} == {tag_of(f"{{penstock:quota:{name}}}")}
    pool.close()


def test_a_pool_that_nobody_asks_is_forgotten_after_ten_minutes(pool: Pool, broker: redis.Redis) -> None:
    pool.take()
    ttls = {key.rpartition("}:")[2]: int(broker.pttl(key)) for key in broker.scan_iter() if ":lease:" not in key}
    assert ttls.keys() == {"levels", "leases:interactive", "leases:tenant:acme"}
    assert all(599_000 < ttl <= 600_000 for ttl in ttls.values())


def test_a_clock_that_jumps_back_gives_nothing(pool: Pool) -> None:
    pool.take(1000)
    pool.pass_ms(-3_600_000)
    assert pool.level() == 0
    pool.take(500, wait_s=0.5)
    assert pool.refuse(2000) == ("tokens", 2.5)


def test_a_clock_that_jumps_back_stops_nothing(pool: Pool) -> None:
    pool.take(1000)
    pool.pass_ms(-3_600_000)
    assert pool.refuse(2000) == ("tokens", 2.0)
    pool.pass_ms(2_000)
    pool.take(2000)


@pytest.mark.parametrize("quota", [Quota(name="one", concurrency=1)])
def test_a_clock_that_jumps_back_keeps_no_place_of_a_dead_process(pool: Pool) -> None:
    pool.take({})
    pool.pass_ms(-3_600_000 + LEASE_MS)
    pool.take({})
