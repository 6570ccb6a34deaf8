"""The simulator's token buckets, at a hand-moved time."""

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.providers.simulator.config import SimulatorConfig
from penstock.providers.simulator.limits import Excess, Limits, format_duration, retry_headers


class HandClock:
    """A clock that a test moves."""

    def __init__(self) -> None:
        self.elapsed_s = 0.0

    def now(self) -> datetime:
        return datetime.fromtimestamp(self.elapsed_s, UTC)

    def monotonic_s(self) -> float:
        return self.elapsed_s


def make_limits(clock: HandClock, *, rpm: int = 60, tpm: int = 6000, charge_rejected: bool = False) -> Limits:
    model = {
        "rpm": rpm,
        "tpm": tpm,
        "max_concurrency": 1000,
        "context_window": 100_000,
        "max_output": 1000,
        "prices": {"input": "1", "cached_input": "1", "output": "1"},
    }
    config = {"models": {"sim": model}, "charge_rejected": charge_rejected}
    return Limits(SimulatorConfig.model_validate(config), clock)


def test_a_request_larger_than_the_bucket_leaves_a_debt_that_is_paid_by_time() -> None:
    clock = HandClock()
    meter = make_limits(clock).meter("acme", "sim")
    assert meter.admit(3000) is None
    assert meter.admit(1) == Excess("tokens", 6000, 1, 20.01)
    assert meter.headers()["x-ratelimit-remaining-tokens"] == "0"
    assert meter.headers()["x-ratelimit-reset-tokens"] == "30s"
    clock.elapsed_s = 20.01
    assert meter.admit(1) is None


def test_a_request_larger_than_a_minute_never_fits() -> None:
    meter = make_limits(HandClock()).meter("acme", "sim")
    assert meter.admit(6001) == Excess("tokens", 6000, 6001, None)
    assert meter.admit(6000) is None


def test_a_rejected_call_uses_up_nothing() -> None:
    clock = HandClock()
    meter = make_limits(clock).meter("acme", "sim")
    assert [meter.admit(1) for _ in range(10)] == [None] * 10
    clock.elapsed_s = 0.9
    assert [meter.admit(1) is None for _ in range(5)] == [False] * 5
    clock.elapsed_s = 1.0
    assert meter.admit(1) is None


def test_a_rejected_call_uses_up_a_request_where_that_is_configured() -> None:
    clock = HandClock()
    meter = make_limits(clock, charge_rejected=True).meter("acme", "sim")
    assert [meter.admit(1) for _ in range(10)] == [None] * 10
    clock.elapsed_s = 0.9
    assert meter.admit(1) is not None
    clock.elapsed_s = 1.0
    assert meter.admit(1) is not None
    clock.elapsed_s = 2.0
    assert meter.admit(1) is None


@given(st.lists(st.tuples(st.floats(0, 5), st.integers(1, 1500)), max_size=60))
def test_no_window_admits_more_than_its_rate_and_one_burst(steps: list[tuple[float, int]]) -> None:
    clock = HandClock()
    meter = make_limits(clock).meter("acme", "sim")
    admitted = 0
    for pause_s, tokens in steps:
        clock.elapsed_s += pause_s
        if meter.admit(min(tokens, 1000)) is None:
            admitted += min(tokens, 1000)
            meter.release()
        assert admitted <= 1000 + 100 * clock.elapsed_s + 0.01


@given(st.integers(1, 10_000), st.integers(1, 5_000))
def test_waiting_as_long_as_it_was_told_is_enough(rpm: int, tokens: int) -> None:
    clock = HandClock()
    meter = make_limits(clock, rpm=rpm).meter("acme", "sim")
    while (excess := meter.admit(tokens)) is None:
        meter.release()
    assert excess.wait_s is not None
    clock.elapsed_s += int(retry_headers(excess.wait_s)["retry-after-ms"]) / 1000
    assert meter.admit(tokens) is None


@pytest.mark.parametrize(
    ("seconds", "written"),
    [(0.0, "0ms"), (0.0121, "13ms"), (0.999, "999ms"), (1.0, "1s"), (1.5, "1.5s"), (60.0, "1m0s"), (366.25, "6m6.25s")],
)
def test_a_duration_is_written_as_openai_does(seconds: float, written: str) -> None:
    assert format_duration(seconds) == written


@pytest.mark.parametrize(("wait_s", "headers"), [(0.0005, ("1", "1")), (2.0, ("2", "2000")), (2.0004, ("3", "2001"))])
def test_a_wait_is_rounded_up(wait_s: float, headers: tuple[str, str]) -> None:
    assert tuple(retry_headers(wait_s).values()) == headers
