"""Batch leaves a fifth to interactive and is sure of its part, 11 %; a look says what a lane could take."""

from itertools import pairwise

import pytest

from penstock.gates.limiter import Grant, Room
from penstock.providers.quota import Quota
from penstock.schemas import Lane, Resource
from tests.gates.quota_pool import START_MS, Pool

BATCH = Lane.BATCH
TWENTY = Quota(name="twenty", concurrency=20)


def test_batch_leaves_a_fifth_of_the_bucket_to_interactive(pool: Pool) -> None:
    pool.fill()
    pool.take(4000, lane=BATCH)
    pool.take(1, lane=BATCH, wait_s=0.001)
    pool.take(499, lane=BATCH, wait_s=0.5)
    assert pool.refuse(100, lane=BATCH) == ("tokens", 0.6)
    assert pool.level() == 500
    pool.take(500)


def test_interactive_may_use_the_whole_bucket(pool: Pool) -> None:
    pool.fill()
    pool.take(5000)


def test_batch_larger_than_its_part_waits_for_a_full_bucket(pool: Pool) -> None:
    pool.fill()
    pool.take(1)
    pool.take(4001, lane=BATCH, wait_s=0.001)
    assert pool.level() == 998
    pool.pass_ms(4_002)
    pool.take(9000, lane=BATCH)
    assert pool.level() == -4000


@pytest.mark.parametrize("quota", [Quota(name="both", rpm=600, tpm=60_000)])
def test_batch_leaves_a_fifth_of_each_resource(pool: Pool) -> None:
    requests, tokens = Resource.REQUESTS, Resource.TOKENS
    pool.fill()
    pool.take({requests: 40, tokens: 600}, lane=BATCH)
    assert pool.refuse({requests: 6, tokens: 1}, lane=BATCH) == ("requests", 0.6)
    assert pool.refuse({requests: 0, tokens: 4500}, lane=BATCH) == ("tokens", 0.6)
    pool.take({requests: 10, tokens: 4400})


def interactive_overload(pool: Pool, units: int) -> int:
    """Let interactive take all that it may; give how much that is."""
    taken = 0
    while isinstance(grant := pool.ask(units, tenant="crowd"), Grant):
        pool.settle(grant)
        taken += units
    return taken


def test_batch_gets_its_part_of_the_rate_under_an_overload_of_interactive(pool: Pool) -> None:
    pool.checked = False
    batch = interactive = 0
    while pool.now_ms < START_MS + 100_000:
        if isinstance(grant := pool.ask(100, lane=BATCH), Grant):
            pool.settle(grant)
            batch += 100
        interactive += interactive_overload(pool, 100)
        pool.pass_ms(250)
    assert batch == 100 + 11_000  # the first one found the bucket that the pool began with
    assert 1000 + 99_750 + 790 < batch + interactive <= 1000 + 99_750 + 1000  # and what is promised for a second ahead


def test_batch_larger_than_what_is_kept_for_it_gets_its_part_in_turns(pool: Pool) -> None:
    pool.checked = False
    granted_after_s = []
    while pool.now_ms < START_MS + 178_000:
        interactive_overload(pool, 500)
        if isinstance(grant := pool.ask(6600, lane=BATCH), Grant):
            pool.settle(grant)
            granted_after_s.append((pool.now_ms - START_MS) / 1000 + grant.wait_s)
        pool.pass_ms(250)
    assert [round(later - earlier, 3) for earlier, later in pairwise(granted_after_s)] == [60.0, 60.0]


def test_what_batch_owes_of_its_part_is_not_lent_to_interactive(pool: Pool) -> None:
    pool.keep_for_batch()
    pool.take(100)
    pool.take(4100, lane=BATCH, wait_s=0.1)
    assert pool.level() == 800
    pool.pass_ms(200)
    pool.take(1000)
    assert pool.ask(1).wait_s > 0


def test_interactive_waits_for_what_is_kept_for_batch_while_batch_asks(pool: Pool) -> None:
    pool.fill()
    pool.want_batch()
    pool.pass_ms(4_000)  # 440 are kept
    pool.want_batch()
    pool.take(4560)
    assert pool.ask(1).wait_s > 0
    pool.take(440, lane=BATCH)


def test_a_request_that_the_kept_part_leaves_no_room_for_waits_for_a_full_bucket(pool: Pool) -> None:
    pool.fill()
    pool.want_batch()
    pool.pass_ms(4_000)
    pool.take(4700)


def test_nothing_is_kept_for_batch_that_has_not_asked_for_five_seconds(pool: Pool) -> None:
    pool.fill()
    pool.want_batch()
    pool.pass_ms(5_501 - 1)  # it may wait half a second and one millisecond, and counts as asking for five seconds more
    assert pool.look().units[Resource.TOKENS] == 5000 - 605
    pool.pass_ms(1)
    assert pool.look().units[Resource.TOKENS] == 5000
    pool.take(5000)


def test_a_refused_batch_request_counts_as_asking_until_its_wait_is_over(pool: Pool) -> None:
    pool.fill()
    pool.take(5000)
    assert pool.refuse(4000, lane=BATCH) == ("tokens", 5.0)
    pool.pass_ms(9_999)
    assert pool.look().units[Resource.TOKENS] == pytest.approx(5000 - 1099.89)
    pool.pass_ms(1)
    assert pool.look().units[Resource.TOKENS] == 5000


def test_what_batch_did_not_use_of_its_part_is_kept_for_it_again(pool: Pool) -> None:
    pool.fill()
    pool.want_batch()
    pool.pass_ms(4_000)
    pool.take(4560)
    grant = pool.take(440, lane=BATCH)
    pool.settle(grant, 100)
    assert pool.ask(1).wait_s > 0
    pool.take(340, lane=BATCH)


def test_what_batch_takes_of_a_full_bucket_counts_for_its_part(pool: Pool) -> None:
    pool.fill()
    pool.want_batch()
    pool.pass_ms(4_000)
    assert pool.look().units[Resource.TOKENS] == 4560
    pool.take(300, lane=BATCH)
    assert pool.look().units[Resource.TOKENS] == 4560


def test_batch_owes_nothing_of_its_part_for_a_refused_call(pool: Pool) -> None:
    pool.keep_for_batch()
    pool.take(100)
    pool.throttle(pool.take(6000, lane=BATCH, wait_s=1.0))
    pool.pass_ms(4_000)
    interactive_overload(pool, 100)
    pool.take(300, lane=BATCH)


def test_what_batch_owes_of_its_part_is_not_forgiven_when_it_stops_asking(pool: Pool) -> None:
    pool.keep_for_batch()
    pool.take(100)
    pool.take(6000, lane=BATCH, wait_s=1.0)
    pool.pass_ms(6_000)
    pool.want_batch()
    pool.pass_ms(4_000)
    interactive_overload(pool, 100)
    assert pool.refuse(300, lane=BATCH)[0] == "tokens"


@pytest.mark.parametrize("quota", [TWENTY])
def test_batch_leaves_a_fifth_of_the_places(pool: Pool) -> None:
    for _ in range(16):
        pool.take(lane=BATCH)
    assert pool.refuse(lane=BATCH) == ("concurrency", 1.0)
    for _ in range(4):
        pool.take()
    assert pool.refuse() == ("concurrency", 1.0)
    assert pool.places() == {"interactive": 4, "batch": 16, "tenant:acme": 20}


@pytest.mark.parametrize("quota", [TWENTY])
def test_interactive_may_have_all_places_while_batch_does_not_ask(pool: Pool) -> None:
    for _ in range(20):
        pool.take()
    assert pool.refuse() == ("concurrency", 1.0)
    assert pool.refuse(lane=BATCH) == ("concurrency", 1.0)
    assert (pool.look().places, pool.look(BATCH).places) == (0, 0)


@pytest.mark.parametrize("quota", [Quota(name="fifteen", concurrency=15)])
def test_the_part_of_the_places_that_batch_is_sure_of_is_rounded_down(pool: Pool) -> None:
    pool.want_batch()
    for _ in range(14):
        pool.take()
    assert pool.refuse() == ("concurrency", 1.0)
    pool.take(lane=BATCH)


@pytest.mark.parametrize("quota", [Quota(name="two", concurrency=2)])
def test_batch_is_sure_of_one_of_two_places_while_it_asks(pool: Pool) -> None:
    pool.want_batch()
    pool.take()
    assert pool.refuse() == ("concurrency", 1.0)
    pool.take(lane=BATCH)


@pytest.mark.parametrize("quota", [Quota(name="one", concurrency=1)])
def test_a_single_place_is_kept_for_nobody(pool: Pool) -> None:
    pool.want_batch()
    pool.take()
    assert pool.refuse(lane=BATCH) == ("concurrency", 1.0)


@pytest.mark.parametrize("quota", [TWENTY])
def test_a_part_of_the_places_is_kept_for_batch_while_it_asks(pool: Pool) -> None:
    pool.want_batch()
    for _ in range(18):
        pool.take()
    assert pool.refuse() == ("concurrency", 1.0)
    pool.take(lane=BATCH)
    assert pool.refuse() == ("concurrency", 1.0)
    pool.take(lane=BATCH)
    assert pool.refuse(lane=BATCH) == ("concurrency", 1.0)
    assert pool.places() == {"interactive": 18, "batch": 2, "tenant:acme": 20}


@pytest.mark.parametrize("quota", [Quota(name="one", concurrency=1)])
def test_batch_may_have_the_only_place(pool: Pool) -> None:
    pool.take(lane=BATCH)
    assert pool.refuse() == ("concurrency", 1.0)


@pytest.mark.parametrize("quota", [Quota(name="looked", rpm=600, tpm=60_000, concurrency=20)])
@pytest.mark.parametrize("lane", list(Lane))
def test_a_look_changes_nothing(pool: Pool, lane: Lane) -> None:
    pool.look(lane, horizon_s=1.0)
    assert pool.stored() == {}
    pool.want_batch()
    held = pool.take(5)
    pool.throttle(pool.take(3), 2.0)
    pool.pass_ms(500)
    for key in pool.redis.scan_iter():
        pool.redis.pexpire(key, 9_000)
    before = pool.stored()
    pool.look(lane, horizon_s=1.0)
    assert pool.stored() == before
    assert all(int(pool.redis.pttl(key)) <= 9_000 for key in pool.redis.scan_iter())
    pool.pass_ms(60_000)
    pool.look(lane, horizon_s=1.0)
    pool.pass_ms(-60_000)
    assert pool.stored() == before
    pool.settle(held)


@pytest.mark.parametrize("quota", [Quota(name="looked", rpm=600, tpm=60_000, concurrency=20)])
def test_a_look_tells_the_state_of_the_pool(pool: Pool) -> None:
    requests, tokens = Resource.REQUESTS, Resource.TOKENS
    pool.fill()
    per_s = {requests: 10.0, tokens: 1000.0}
    all_of_it, without_reserve = {requests: 50.0, tokens: 5000.0}, {requests: 40.0, tokens: 4000.0}
    assert pool.look() == Room(0.0, 1.0, 20, all_of_it, all_of_it, per_s)
    assert pool.look(BATCH) == Room(0.0, 1.0, 16, without_reserve, without_reserve, per_s)
    pool.take({requests: 1, tokens: 3500})
    assert pool.look(horizon_s=0.25) == Room(0.0, 1.0, 19, {requests: 51.5, tokens: 1750}, all_of_it, per_s)
    assert pool.look(BATCH, horizon_s=0.25) == Room(0.0, 1.0, 15, {requests: 41.5, tokens: 750}, without_reserve, per_s)


def test_a_look_counts_no_place_whose_lease_is_over(pool: Pool) -> None:
    pool.quota = TWENTY
    pool.take()
    pool.take(lane=BATCH)
    pool.pass_ms(9_999)
    assert pool.look().places == 18
    assert pool.look(BATCH).places == 14
    pool.pass_ms(1)
    assert pool.look().places == 20
    assert pool.look(BATCH).places == 16


def test_a_look_into_a_frozen_pool_counts_only_what_flows_after_it(pool: Pool) -> None:
    pool.take(1000)
    pool.throttle(pool.take(wait_s=0.0), 2.0)
    room = pool.look(horizon_s=1.999)
    assert (room.frozen_s, room.factor, room.units) == (2.0, 0.95, {Resource.TOKENS: 0})
    assert pool.look(horizon_s=3.0).units == {Resource.TOKENS: 950}
    pool.pass_ms(500)
    assert pool.level() == 475
    assert pool.look(horizon_s=1.0).units == {Resource.TOKENS: 0}


def test_a_look_below_zero_tells_the_debt(pool: Pool) -> None:
    pool.fill()
    refused = pool.take()
    pool.take(8000)
    assert pool.look(horizon_s=0.5).units == {Resource.TOKENS: -2500}
    pool.throttle(refused, 5.0)
    assert pool.look(horizon_s=0.5).units == {Resource.TOKENS: -3000}


def test_batch_that_waits_as_rows_has_its_part_kept_for_five_seconds(pool: Pool) -> None:
    pool.fill()
    pool.look(BATCH, is_waiting=True)
    pool.pass_ms(4_999)
    assert pool.look().units[Resource.TOKENS] == pytest.approx(5000 - 549.89)
    pool.look(BATCH)
    pool.pass_ms(1)
    assert pool.look().units[Resource.TOKENS] == 5000
    pool.take(5000)


def test_a_look_for_batch_that_waits_takes_nothing_and_leaves_a_key_that_ends(pool: Pool) -> None:
    pool.look(BATCH, is_waiting=True)
    assert [int(pool.redis.pttl(key)) > 599_000 for key in pool.redis.scan_iter()] == [True]
    pool.take(700)
    before = pool.taken()
    pool.look(BATCH, is_waiting=True)
    assert pool.taken() == before


def test_a_look_for_interactive_that_waits_changes_nothing(pool: Pool) -> None:
    pool.take(700)
    before = pool.stored()
    pool.pass_ms(100)
    pool.look(is_waiting=True)
    pool.pass_ms(-100)
    assert pool.stored() == before


def test_a_look_does_not_shorten_what_batch_wants(pool: Pool) -> None:
    pool.fill()
    pool.take(5000)
    assert pool.refuse(4000, lane=BATCH) == ("tokens", 5.0)
    pool.look(BATCH, is_waiting=True)
    pool.pass_ms(9_000)
    assert pool.look().units[Resource.TOKENS] == 5000 - 990


def test_a_look_for_batch_counts_what_is_kept_for_it(pool: Pool) -> None:
    pool.keep_for_batch()
    pool.take(1000)
    assert pool.look(BATCH).units == {Resource.TOKENS: 4000}


@pytest.mark.parametrize(("lane", "horizon_s"), [(Lane.INTERACTIVE, 1.0), (BATCH, 0.5)])
@pytest.mark.parametrize("wait_ms", [0, 137, 2_500, 30_000])
def test_what_a_look_promises_is_what_is_granted(pool: Pool, lane: Lane, horizon_s: float, wait_ms: int) -> None:
    pool.take(700)
    pool.pass_ms(wait_ms)
    units = pool.look(lane, horizon_s=horizon_s).units[Resource.TOKENS]
    capacity = 5000 if lane is Lane.INTERACTIVE else 4000
    most = min(int(units), capacity)
    if units < capacity:
        assert pool.refuse(most + 1, lane=lane)[0] == "tokens"
    assert isinstance(pool.ask(most, lane=lane), Grant)


def test_the_wait_of_a_refused_request_is_exact_while_something_is_kept_for_batch(pool: Pool) -> None:
    pool.fill()
    pool.want_batch()
    pool.take(5000)
    assert pool.refuse(3000)[0] == "tokens"
    wait_s = pool.refuse(3000)[1]
    pool.pass_ms(wait_s * 1000)
    pool.take(3000)
