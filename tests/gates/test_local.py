"""The share of a quota that one process takes while Redis is away, at a hand-moved time."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.gates.local import LocalShare
from penstock.providers.quota import Quota
from penstock.schemas import Resource
from tests.hand_clock import HandClock

QUOTA = Quota(name="q", rpm=600, tpm=60_000, burst_s=5)


def units(tokens: int) -> dict[Resource, int]:
    return {Resource.REQUESTS: 1, Resource.TOKENS: tokens}


def test_it_begins_with_a_second_of_its_share_and_tells_the_exact_wait() -> None:
    share = LocalShare(HandClock())
    assert share.acquire(QUOTA, units(250), processes=4) == 0.0
    assert share.acquire(QUOTA, units(100), processes=4) == pytest.approx(0.4)
    assert share.acquire(QUOTA, units(150), processes=4) == pytest.approx(1.0)


def test_what_must_wait_longer_than_a_second_takes_nothing() -> None:
    clock = HandClock()
    share = LocalShare(clock)
    assert share.acquire(QUOTA, units(501), processes=4) is None
    assert share.acquire(QUOTA, units(250), processes=4) == 0.0


def test_it_holds_five_seconds_of_its_share_and_a_larger_request_leaves_a_debt() -> None:
    clock = HandClock()
    share = LocalShare(clock)
    share.acquire(QUOTA, units(0), processes=4)
    clock.elapsed_s = 100.0
    assert share.acquire(QUOTA, units(2000), processes=4) == 0.0
    clock.elapsed_s = 102.0
    assert share.acquire(QUOTA, units(1), processes=4) is None  # 750 owed, 250 a second


def test_every_resource_must_suffice() -> None:
    share = LocalShare(HandClock())
    assert share.acquire(QUOTA, units(1), processes=100) == 0.0  # 0.1 requests a second, and one to begin with
    assert share.acquire(QUOTA, units(1), processes=100) is None


def test_quotas_do_not_share_their_buckets() -> None:
    share = LocalShare(HandClock())
    other = QUOTA.model_copy(update={"name": "other"})
    assert share.acquire(QUOTA, units(250), processes=4) == 0.0
    assert share.acquire(other, units(250), processes=4) == 0.0


@given(
    processes=st.integers(1, 8),
    steps=st.lists(st.tuples(st.floats(0, 2), st.integers(1, 2000)), min_size=1, max_size=60),
)
def test_all_processes_together_keep_to_the_rate_over_any_interval(
    processes: int, steps: list[tuple[float, int]]
) -> None:
    clock = HandClock()
    shares = [LocalShare(clock) for _ in range(processes)]
    sent: list[tuple[float, int]] = []
    for pause_s, tokens in steps:
        clock.elapsed_s += pause_s
        for share in shares:
            wait_s = share.acquire(QUOTA, units(tokens), processes)
            if wait_s is not None:
                sent.append((clock.elapsed_s + wait_s, tokens))
    sent.sort()
    largest = max((tokens for _, tokens in sent), default=0)
    burst = max(1000 * QUOTA.burst_s, processes * largest)
    for first, (begin_s, _) in enumerate(sent):
        total = 0
        for at_s, tokens in sent[first:]:
            total += tokens
            assert total <= burst + 1000 * (at_s - begin_s) + processes * largest + 1e-6
