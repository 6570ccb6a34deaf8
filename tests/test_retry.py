"""The retry policy: a pure function, so properties of every input."""

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.errors import Reason
from penstock.retry import TREATMENTS, Backoff, Bury, Failure, Kind, RetryAfter, decide

NOW = datetime(2026, 11, 23, 12, tzinfo=UTC)
BACKOFF = Backoff(base_s=1.0, longest_s=60.0, throttled_s=1.0)

jitters = st.floats(min_value=0, max_value=1, exclude_max=True)
failures = st.builds(
    Failure,
    reason=st.sampled_from(Reason),
    failures=st.integers(0, 10_000),
    max_failures=st.integers(1, 20),
    now=st.just(NOW),
    deadline=st.none() | st.integers(-100, 10_000).map(lambda seconds: NOW + timedelta(seconds=seconds)),
    retry_after_s=st.none() | st.floats(0, 1e300),
)


def test_every_reason_has_a_treatment() -> None:
    assert set(TREATMENTS) == set(Reason)


@given(failures, jitters)
def test_a_permanent_reason_is_never_tried_again(failure: Failure, jitter: float) -> None:
    if TREATMENTS[failure.reason].kind is Kind.PERMANENT:
        assert decide(failure, BACKOFF, jitter) == Bury(failure.reason)


@given(failures, jitters)
def test_a_throttled_job_spends_no_failure_and_only_its_deadline_ends_it(failure: Failure, jitter: float) -> None:
    if TREATMENTS[failure.reason].kind is not Kind.THROTTLED:
        return
    verdict = decide(failure, BACKOFF, jitter)
    assert verdict == Bury(Reason.DEADLINE) or (isinstance(verdict, RetryAfter) and not verdict.counts)
    if failure.deadline is None:
        assert isinstance(verdict, RetryAfter)


@given(failures, jitters)
def test_a_retry_begins_before_the_deadline(failure: Failure, jitter: float) -> None:
    verdict = decide(failure, BACKOFF, jitter)
    if isinstance(verdict, RetryAfter) and failure.deadline is not None:
        assert NOW + timedelta(seconds=verdict.delay_s) < failure.deadline


@given(failures, jitters)
def test_a_wait_is_bounded_and_never_shorter_than_the_provider_asked_for(failure: Failure, jitter: float) -> None:
    verdict = decide(failure, BACKOFF, jitter)
    if not isinstance(verdict, RetryAfter):
        return
    if failure.retry_after_s is None:
        assert 0 <= verdict.delay_s <= BACKOFF.longest_s
    else:
        asked_s = min(failure.retry_after_s, BACKOFF.longest_asked_s)
        assert asked_s <= verdict.delay_s <= asked_s * 1.1


@given(
    st.sampled_from([reason for reason in Reason if TREATMENTS[reason].kind is Kind.TRANSIENT]),
    st.integers(1, 20),
    jitters,
)
def test_a_job_that_always_fails_is_dead_after_exactly_max_failures(
    reason: Reason, max_failures: int, jitter: float
) -> None:
    failed = 0
    while isinstance(decide(Failure(reason, failed, max_failures, NOW, None), BACKOFF, jitter), RetryAfter):
        failed += 1
    assert failed + 1 == max_failures


@pytest.mark.parametrize(("failures", "delay_s"), [(0, 0.5), (1, 1.0), (2, 2.0), (5, 16.0), (6, 30.0), (9999, 30.0)])
def test_the_wait_doubles_up_to_its_bound(failures: int, delay_s: float) -> None:
    failure = Failure(Reason.SERVER_ERROR, failures, 10_001, NOW, None)
    assert decide(failure, BACKOFF, 0.5) == RetryAfter(delay_s, counts=True)


def test_a_deadline_that_the_wait_would_pass_buries_with_its_own_reason() -> None:
    failure = Failure(Reason.SERVER_ERROR, 0, 5, NOW, NOW + timedelta(seconds=0.5))
    assert decide(failure, BACKOFF, 0.5) == Bury(Reason.DEADLINE)
