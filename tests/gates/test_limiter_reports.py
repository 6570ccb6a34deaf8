"""What a provider says changes the pool: a refusal with 429, the limit that it reports, and what it says is left."""

import math
from uuid import uuid4

import pytest
import redis

from penstock.gates.limiter import LEASE_MS, Ask, Grant
from penstock.providers.quota import Quota
from penstock.schemas import Lane, ReportedLimit, Resource
from tests.gates.quota_pool import SPLIT, TOKENS, Pool
from workers.embedded import EmbeddedServices

BATCH = Lane.BATCH
REQUESTS, INPUT, OUTPUT = Resource.REQUESTS, Resource.INPUT_TOKENS, Resource.OUTPUT_TOKENS
BOTH = Quota(name="both", rpm=600, tpm=60_000)
FREE_REFUSALS = Quota(name="both", rpm=600, tpm=60_000, charge_rejected=False)
DAY_S = 86_400.0


def limit(per_minute: float | None = None, *, remaining: float | None = None) -> ReportedLimit:
    return ReportedLimit(resource=Resource.TOKENS, per_minute=per_minute, remaining=remaining)


def test_a_refusal_freezes_the_pool_for_as_long_as_the_provider_asks(pool: Pool) -> None:
    assert pool.throttle(pool.take(), 2.5) == 0.95
    assert pool.refuse() == ("frozen", 2.5)
    assert pool.refuse(lane=BATCH) == ("frozen", 2.5)
    pool.pass_ms(1_499)
    assert pool.refuse() == ("frozen", 1.001)
    pool.pass_ms(1)
    pool.take(wait_s=1.0)
    pool.pass_ms(999)
    pool.take(wait_s=0.001)
    pool.pass_ms(1)
    pool.take()


def test_a_shorter_freeze_does_not_end_a_longer_one(pool: Pool) -> None:
    first, second, third = pool.take(), pool.take(), pool.take()
    pool.throttle(first, 3.0)
    pool.pass_ms(500)
    pool.throttle(second, 0.0)
    assert pool.refuse() == ("frozen", 2.5)
    pool.throttle(third, 4.0)
    assert pool.refuse() == ("frozen", 4.0)


def test_a_freeze_is_remembered_until_it_ends_although_nobody_asks(pool: Pool, broker: redis.Redis) -> None:
    pool.throttle(pool.take(), DAY_S)
    (key,) = broker.scan_iter(match="*:levels")
    assert int(broker.pttl(key)) >= DAY_S * 1000 - 1_000


def test_the_calls_of_one_burst_cut_the_rate_once(pool: Pool) -> None:
    burst = [pool.take() for _ in range(3)]
    pool.pass_ms(1)
    last = pool.take()
    assert pool.throttle(burst[0]) == 0.95
    pool.pass_ms(400)
    assert [pool.throttle(grant) for grant in (burst[1], last, burst[2])] == [None, None, None]
    assert pool.look().factor == 0.95
    assert pool.look().per_s == {Resource.TOKENS: 950}


def test_a_call_that_was_granted_after_the_cut_cuts_again(pool: Pool) -> None:
    old = pool.take()
    pool.throttle(pool.take())
    pool.pass_ms(1)
    assert pool.throttle(pool.take()) == 0.9025
    assert pool.throttle(old) is None
    assert pool.look().per_s == {Resource.TOKENS: 902.5}


def test_a_refusal_that_is_reported_twice_cuts_once(pool: Pool) -> None:
    grant = pool.take()
    assert pool.throttle(grant) == 0.95
    pool.pass_ms(1_000)
    assert pool.throttle(grant) is None


def test_a_refusal_of_a_call_whose_lease_is_over_still_freezes_and_cuts_for_the_first(pool: Pool) -> None:
    pool.take()
    forgotten = Grant(Ask(uuid4(), "acme", Lane.INTERACTIVE, {Resource.TOKENS: 10}), TOKENS, 0.0)
    pool.throttle(forgotten, 3.0)
    assert pool.refuse() == ("frozen", 3.0)
    assert pool.level() == 0


@pytest.mark.parametrize("quota", [SPLIT])
def test_no_level_stays_above_zero_and_debt_stays_debt(pool: Pool) -> None:
    pool.fill()
    grant = pool.take({REQUESTS: 1, INPUT: 10, OUTPUT: 10})
    pool.take({REQUESTS: 1, INPUT: 6000, OUTPUT: 10}, wait_s=0.01)
    pool.throttle(grant)
    assert pool.levels() == {"requests": 0, "input_tokens": -1010, "output_tokens": 0}


@pytest.mark.parametrize(("quota", "requests"), [(BOTH, -3), (FREE_REFUSALS, -2)])
def test_a_refused_call_gives_back_what_the_provider_does_not_charge(pool: Pool, requests: int) -> None:
    refused = pool.take({REQUESTS: 1, Resource.TOKENS: 400})
    pool.take({REQUESTS: 12, Resource.TOKENS: 1100}, wait_s=0.5)
    pool.throttle(refused)
    assert pool.levels() == {"requests": requests, "tokens": -100}


@pytest.mark.parametrize("quota", [Quota(name="one", tpm=60_000, concurrency=1)])
def test_a_refused_call_frees_its_place_and_its_lease_is_over(pool: Pool) -> None:
    grant = pool.take(tenant="one")
    pool.throttle(grant)
    assert pool.places() == {}
    assert pool.settle(grant, 0) is False
    assert pool.limiter._held == {}


def test_the_rate_recovers_slowly_and_only_after_ten_seconds_of_quiet(pool: Pool) -> None:
    pool.throttle(pool.take())
    pool.pass_ms(9_999)
    pool.settle(pool.take())
    assert pool.look().factor == 0.95
    pool.pass_ms(1)
    pool.settle(pool.take())
    pool.pass_ms(5_000)
    pool.settle(pool.take())
    assert pool.look().factor == pytest.approx(0.96, abs=3e-6)
    pool.pass_ms(20_000)
    pool.settle(pool.take())
    assert pool.look().factor == 1
    assert pool.look().per_s == {Resource.TOKENS: 1000}


def test_a_pool_that_nobody_asks_recovers_no_sooner(pool: Pool) -> None:
    pool.throttle(pool.take())
    pool.pass_ms(15_000)
    assert pool.look().factor == pytest.approx(0.96, abs=3e-6)


def test_another_cut_begins_the_quiet_time_again(pool: Pool) -> None:
    pool.throttle(pool.take())
    pool.pass_ms(9_000)
    pool.throttle(pool.take())
    pool.pass_ms(9_999)
    assert pool.look().factor == 0.9025


def test_a_cut_pool_has_a_smaller_bucket(pool: Pool) -> None:
    pool.throttle(pool.take())
    pool.pass_ms(9_000)
    assert pool.level() == 4750


def test_a_reported_limit_lowers_the_rate_and_a_later_one_raises_it_to_the_configured(pool: Pool) -> None:
    pool.fill()
    pool.settle(pool.take(), None, limit(30_000))
    assert pool.look().per_s == {Resource.TOKENS: 500}
    assert pool.level() == 2500
    pool.take(2500)
    pool.take(100, wait_s=0.2)
    pool.settle(pool.take(wait_s=0.2), None, limit(120_000))
    assert pool.look().per_s == {Resource.TOKENS: 1000}
    pool.settle(pool.take(wait_s=0.1), None, limit(60_001))
    assert pool.look().per_s == {Resource.TOKENS: 1000}


def test_a_refusal_may_report_a_limit_too(pool: Pool) -> None:
    pool.throttle(pool.take(), 0.0, limit(30_000))
    assert pool.look().per_s == {Resource.TOKENS: 475}


@pytest.mark.parametrize("nonsense", [0, -1, math.inf, -math.inf, math.nan, None])
def test_a_limit_that_cannot_be_true_changes_nothing(pool: Pool, nonsense: float | None) -> None:
    pool.settle(pool.take(), None, limit(nonsense))
    pool.throttle(pool.take(), 0.0, limit(nonsense))
    assert pool.look().per_s == {Resource.TOKENS: 950}


def test_a_limit_of_what_is_not_limited_here_changes_nothing(pool: Pool) -> None:
    requests = ReportedLimit(resource=REQUESTS, per_minute=1, remaining=0)
    pool.settle(pool.take(), None, requests)
    pool.throttle(pool.take(), 0.0, requests)
    assert pool.look().per_s == {Resource.TOKENS: 950}


@pytest.mark.parametrize("quota", [Quota(name="windows", tpm=60_000, windows_s={Resource.TOKENS: 10})])
def test_a_reported_limit_is_turned_into_a_rate_that_fits_into_the_window(pool: Pool) -> None:
    assert pool.look().per_s == {Resource.TOKENS: 980}
    pool.settle(pool.take(), None, limit(30_000))
    assert pool.look().per_s == {Resource.TOKENS: 490}


def test_what_the_provider_has_left_lowers_the_level(pool: Pool) -> None:
    pool.fill()
    grant = pool.take(100)
    pool.settle(grant, None, limit(remaining=700))
    assert pool.level() == 700


@pytest.mark.parametrize("used", [100, 40, 130, None])
def test_what_flowed_in_and_what_was_taken_since_are_counted(pool: Pool, used: int | None) -> None:
    pool.fill()
    pool.take(50)
    grant = pool.take(100)
    pool.pass_ms(100)
    pool.take(200)
    pool.pass_ms(200)
    pool.settle(grant, used, limit(remaining=1000))
    assert pool.level() == 1000 + 300 - 200


def test_what_others_gave_back_since_is_counted(pool: Pool) -> None:
    pool.fill()
    grant = pool.take(100)
    other = pool.take(500)
    pool.settle(other, 120)
    pool.settle(grant, 100, limit(remaining=1000))
    assert pool.level() == 1000 - 120


def test_what_a_refused_call_gave_back_since_is_counted(pool: Pool) -> None:
    grant = pool.take(100)
    pool.throttle(pool.take(500))
    pool.settle(grant, 100, limit(remaining=-100))
    assert pool.level() == -100


def test_a_report_is_of_the_time_when_the_call_was_sent(pool: Pool) -> None:
    pool.take(1000)
    grant = pool.take(500, wait_s=0.5)
    pool.pass_ms(800)
    assert pool.level() == 300
    pool.settle(grant, None, limit(remaining=-100))
    assert pool.level() == -100 + 300
    pool.settle(pool.take(0), None, limit(remaining=0))
    assert pool.level() == 0


def test_a_call_that_ends_before_its_time_to_be_sent_counts_nothing_as_flowed_in(pool: Pool) -> None:
    pool.take(1000)
    grant = pool.take(500, wait_s=0.5)
    pool.pass_ms(100)
    pool.settle(grant, None, limit(remaining=-900))
    assert pool.level() == -900


def test_what_the_provider_has_left_never_raises_the_level(pool: Pool) -> None:
    pool.settle(pool.take(100), None, limit(remaining=1_000_000))
    assert pool.level() == 900
    pool.settle(pool.take(100), 60, limit(remaining=841))
    assert pool.level() == 840


def test_a_report_of_a_call_from_before_redis_was_emptied_is_not_believed(pool: Pool, broker: redis.Redis) -> None:
    grant = pool.take(100)
    broker.flushall()
    pool.extend()
    pool.settle(grant, None, limit(remaining=5))
    assert pool.level() == 1000


def test_a_report_of_a_call_whose_lease_is_over_is_not_believed(pool: Pool, broker: redis.Redis) -> None:
    grant = pool.take(100)
    pool.pass_ms(LEASE_MS)
    broker.delete(*broker.scan_iter(match="*:lease:*"))
    assert pool.settle(grant, None, limit(6_000, remaining=5)) is False
    assert pool.level() == 5000


def test_nothing_is_kept_for_batch_of_what_was_lost_by_a_refusal(pool: Pool) -> None:
    pool.keep_for_batch()
    pool.throttle(pool.take(10))
    assert pool.refuse(4000, lane=BATCH)[0] == "tokens"
    pool.pass_ms(2_000)
    pool.take(1900 - 209)


def test_nothing_is_kept_for_batch_of_what_the_provider_does_not_have(pool: Pool) -> None:
    pool.keep_for_batch()
    pool.settle(pool.take(10), None, limit(remaining=0))
    assert pool.refuse(4000, lane=BATCH)[0] == "tokens"
    pool.pass_ms(2_000)
    pool.take(2000 - 220)


def test_nothing_is_kept_for_batch_of_what_a_large_request_took(pool: Pool) -> None:
    pool.keep_for_batch()
    pool.take(5000)
    assert pool.level() == 0
    assert pool.refuse(4000, lane=BATCH)[0] == "tokens"


def test_two_processes_see_one_pool(pool: Pool, services: EmbeddedServices) -> None:
    other = Pool(services.redis.socket_path)
    other.scripts.known = pool.scripts.known
    grant = other.take(600)
    pool.take(400)
    assert other.throttle(grant, 2.0) == 0.95
    assert pool.refuse() == ("frozen", 2.0)
    other.close()
