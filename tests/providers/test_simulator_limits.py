"""The simulator's limits in each of their three kinds, at a hand-moved time."""

from itertools import accumulate
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.providers.simulator.charges import Charge, Demand
from penstock.providers.simulator.config import SimulatorConfig
from penstock.providers.simulator.headers import retry_headers
from penstock.providers.simulator.limits import Excess, LimitChange, Limits, Meter
from tests.hand_clock import HandClock

CONTINUOUS = {"rpm": 60, "tpm": 6000}
WINDOWS = {"rpm": 60, "tpm": 6000, "charge": "prompt + max_tokens", "refill": "windows"}
SPLIT = {"rpm": 60, "itpm": 6000, "otpm": 600, "charge": "input, output"}
BURST_S = 10

Taken = list[tuple[float, int]]


def make_limits(clock: HandClock, quota: dict[str, Any], **options: Any) -> Limits:
    model = {
        "max_concurrency": 1000,
        "context_window": 100_000,
        "max_output": 1000,
        "prices": {"input": "1", "cached_input": "1", "output": "1"},
        **quota,
    }
    return Limits(SimulatorConfig.model_validate({"models": {"sim": model}, **options}), clock)


def make_meter(clock: HandClock, quota: dict[str, Any], **options: Any) -> Meter:
    return make_limits(clock, quota, **options).meter("acme", "sim")


def admits(meter: Meter, *demand: int) -> bool:
    return isinstance(meter.admit(Demand(*demand)), Charge)


def ends_beyond(taken: Taken, per_s: float) -> bool:
    """Tell whether an interval up to the last taking took more than a full bucket, its refill, and the last debt."""
    end_s, last = taken[-1]
    capacity = max(1, per_s * BURST_S)
    sums = accumulate(amount for _, amount in reversed(taken))
    return any(
        total > capacity + per_s * (end_s - begin_s) + max(0, last - capacity) + 0.001
        for total, (begin_s, _) in zip(sums, reversed(taken), strict=True)
    )


def exceeds(taken: Taken, per_s: float) -> bool:
    """Tell whether any interval took more than that."""
    return any(ends_beyond(taken[:length], per_s) for length in range(1, len(taken) + 1))


def test_a_request_larger_than_the_bucket_leaves_a_debt_that_is_paid_by_time() -> None:
    clock = HandClock()
    meter = make_meter(clock, CONTINUOUS)
    assert meter.admit(Demand(3000)) == Charge(0.0, {"requests": 1, "tokens": 3000})
    assert meter.admit(Demand(1)) == Excess("tokens", 6000, 1, 20.01)
    assert meter.headers()["x-ratelimit-remaining-tokens"] == "0"
    assert meter.headers()["x-ratelimit-reset-tokens"] == "30s"
    clock.elapsed_s = 20.01
    assert admits(meter, 1)


@pytest.mark.parametrize(("quota", "resource"), [(CONTINUOUS, "tokens"), (WINDOWS, "tokens"), (SPLIT, "input_tokens")])
def test_a_request_larger_than_a_minute_never_fits(quota: dict[str, Any], resource: Any) -> None:
    meter = make_meter(HandClock(), quota)
    assert meter.admit(Demand(6001)) == Excess(resource, 6000, 6001, None)
    assert admits(meter, 6000)


def test_a_rejected_call_uses_up_nothing() -> None:
    clock = HandClock()
    meter = make_meter(clock, CONTINUOUS)
    assert [admits(meter, 1) for _ in range(10)] == [True] * 10
    clock.elapsed_s = 0.9
    assert [admits(meter, 1) for _ in range(5)] == [False] * 5
    clock.elapsed_s = 1.0
    assert admits(meter, 1)


def test_a_rejected_call_uses_up_a_request_where_that_is_configured() -> None:
    clock = HandClock()
    meter = make_meter(clock, CONTINUOUS, charge_rejected=True)
    assert [admits(meter, 1) for _ in range(10)] == [True] * 10
    clock.elapsed_s = 0.9
    assert not admits(meter, 1)
    clock.elapsed_s = 1.0
    assert not admits(meter, 1)
    clock.elapsed_s = 2.0
    assert admits(meter, 1)


def test_a_rejected_call_uses_up_a_request_of_its_slice_where_that_is_configured() -> None:
    clock = HandClock()
    meter = make_meter(clock, {**WINDOWS, "rpm": 12}, charge_rejected=True)
    assert [admits(meter, tokens) for tokens in (6000, 1, 0)] == [True, False, False]
    clock.elapsed_s = 10.0
    assert [admits(meter, 0) for _ in range(3)] == [True, True, False]


def test_a_window_allows_a_minute_of_tokens_at_once_and_no_more_until_it_ends() -> None:
    clock = HandClock()
    clock.elapsed_s = 45.0
    meter = make_meter(clock, WINDOWS)
    assert meter.admit(Demand(5000, 1000)) == Charge(45.0, {"requests": 1, "tokens": 6000})
    clock.elapsed_s = 59.5
    assert meter.admit(Demand(1)) == Excess("tokens", 6000, 1, 0.5)
    clock.elapsed_s = 60.0
    assert admits(meter, 6000)


@pytest.mark.parametrize(
    ("rpm", "slice_s", "allowed"), [(60, 10, 10), (60, 1, 1), (100, 1, 1), (120, 1, 2), (3, 10, 1)]
)
def test_a_slice_allows_its_share_of_requests_and_at_least_one(rpm: int, slice_s: int, allowed: int) -> None:
    clock = HandClock()
    meter = make_meter(clock, {**WINDOWS, "rpm": rpm, "slice_s": slice_s})
    assert [admits(meter, 1) for _ in range(allowed + 1)] == [True] * allowed + [False]
    clock.elapsed_s = slice_s
    assert [admits(meter, 1) for _ in range(allowed + 1)] == [True] * allowed + [False]


def test_the_wait_is_until_the_later_end_of_the_slice_and_the_window_that_refuse() -> None:
    clock = HandClock()
    meter = make_meter(clock, {**WINDOWS, "rpm": 6})
    assert admits(meter, 6000)
    clock.elapsed_s = 4.0
    assert meter.admit(Demand(0)) == Excess("requests", 6, 1, 6.0)
    assert meter.admit(Demand(1)) == Excess("requests", 6, 1, 56.0)


def test_input_is_charged_at_admission_without_what_is_cached_and_output_as_produced() -> None:
    clock = HandClock()
    meter = make_meter(clock, SPLIT)
    admitted = Charge(0.0, {"requests": 1, "input_tokens": 400, "output_tokens": 0})
    assert meter.admit(Demand(prompt=600, max_tokens=1000, cached=200)) == admitted
    clock.elapsed_s = 1.0
    assert meter.settle(30) == Charge(1.0, {"requests": 0, "input_tokens": 0, "output_tokens": 30})
    assert meter.headers()["anthropic-ratelimit-output-tokens-remaining"] == "70"


@pytest.mark.parametrize("quota", [CONTINUOUS, WINDOWS])
def test_output_is_not_charged_again_where_admission_has_charged_it(quota: dict[str, Any]) -> None:
    meter = make_meter(HandClock(), quota)
    assert admits(meter, 100, 100)
    before = meter.headers()
    assert meter.settle(500) is None
    assert meter.headers() == before


def test_nothing_is_admitted_while_output_is_owed() -> None:
    clock = HandClock()
    meter = make_meter(clock, SPLIT)
    assert [admits(meter, 1) for _ in range(2)] == [True, True]
    meter.settle(99)
    assert admits(meter, 1)
    meter.settle(21)
    assert meter.admit(Demand(1)) == Excess("output_tokens", 600, 0, 2.001)
    clock.elapsed_s = 2.0
    assert meter.admit(Demand(1)) == Excess("output_tokens", 600, 0, 0.001)
    clock.elapsed_s = 2.001
    assert admits(meter, 1)


Steps = list[tuple[int, int, int]]
STEPS = st.lists(st.tuples(st.integers(0, 5000), st.integers(1, 1500), st.integers(0, 500)), max_size=60)


@given(STEPS)
def test_no_interval_admits_more_than_its_rate_and_one_burst(steps: Steps) -> None:
    clock = HandClock()
    meter = make_meter(clock, CONTINUOUS)
    taken: Taken = []
    for at_ms, prompt, most in _walk(steps):
        clock.elapsed_s = at_ms / 1000
        if admits(meter, prompt, most):
            taken.append((clock.elapsed_s, max(prompt, most)))
    assert not exceeds(taken, per_s=100)
    assert not exceeds([(at_s, 1) for at_s, _ in taken], per_s=1)


@given(STEPS, st.integers(1, 10))
def test_no_window_admits_more_tokens_and_no_slice_more_requests_than_it_allows(steps: Steps, slice_s: int) -> None:
    clock = HandClock()
    meter = make_meter(clock, {**WINDOWS, "slice_s": slice_s})
    tokens: dict[int, int] = {}
    requests: dict[int, int] = {}
    for at_ms, prompt, most in _walk(steps):
        clock.elapsed_s = at_ms / 1000
        window, slice_ = at_ms // 60_000, at_ms // (slice_s * 1000)
        fits = tokens.get(window, 0) + prompt + most <= 6000 and requests.get(slice_, 0) < slice_s
        assert admits(meter, prompt, most) == fits
        if fits:
            tokens[window] = tokens.get(window, 0) + prompt + most
            requests[slice_] = requests.get(slice_, 0) + 1


@given(STEPS)
def test_no_interval_takes_more_input_than_its_rate_and_nothing_is_admitted_beyond_the_output(steps: Steps) -> None:
    clock = HandClock()
    meter = make_meter(clock, SPLIT)
    inputs: Taken = []
    outputs: Taken = []
    for at_ms, prompt, produced in _walk(steps):
        clock.elapsed_s = at_ms / 1000
        if admits(meter, prompt):
            inputs.append((clock.elapsed_s, prompt))
            assert not ends_beyond([*outputs, (clock.elapsed_s, 0)], per_s=10)
            meter.settle(produced)
            outputs.append((clock.elapsed_s, produced))
    assert not exceeds(inputs, per_s=100)
    assert not exceeds([(at_s, 1) for at_s, _ in inputs], per_s=1)


def _walk(steps: Steps) -> Steps:
    times_ms = accumulate(pause_ms for pause_ms, _, _ in steps)
    return [(at_ms, first, second) for at_ms, (_, first, second) in zip(times_ms, steps, strict=True)]


@pytest.mark.parametrize("quota", [CONTINUOUS, WINDOWS, SPLIT])
@given(st.integers(0, 100_000), st.integers(1, 10_000), st.integers(1, 5_000))
def test_waiting_as_long_as_it_was_told_is_enough(quota: dict[str, Any], start_ms: int, rpm: int, tokens: int) -> None:
    clock = HandClock()
    clock.elapsed_s = start_ms / 1000
    meter = make_meter(clock, {**quota, "rpm": rpm})
    while isinstance(excess := meter.admit(Demand(tokens)), Charge):
        meter.release()
        meter.settle(7)
    assert excess.wait_s is not None
    clock.elapsed_s += int(retry_headers(excess.wait_s)["retry-after-ms"]) / 1000
    assert admits(meter, tokens)


def change(limits: Limits, account: str | None = None, **fields: int) -> None:
    limits.change(LimitChange(model="sim", account=account, **fields))


def test_a_lower_limit_caps_the_bucket_and_a_higher_one_fills_it_by_time() -> None:
    clock = HandClock()
    limits = make_limits(clock, CONTINUOUS)
    meter = limits.meter("acme", "sim")
    change(limits, tpm=600)
    assert [admits(meter, 60) for _ in range(2)] == [True, False]
    change(limits, tpm=60_000)
    assert meter.headers()["x-ratelimit-remaining-tokens"] == "40"
    clock.elapsed_s = 1.0
    assert meter.headers()["x-ratelimit-remaining-tokens"] == "1040"


def test_a_lower_limit_holds_in_the_window_that_has_begun() -> None:
    limits = make_limits(HandClock(), WINDOWS)
    meter = limits.meter("acme", "sim")
    assert admits(meter, 3000)
    change(limits, tpm=3000)
    assert meter.admit(Demand(1)) == Excess("tokens", 3000, 1, 60.0)
    change(limits, tpm=3001)
    assert admits(meter, 1)


@pytest.mark.parametrize(
    ("fields", "refused"),
    [
        ({"rpm": 6}, Excess("requests", 6, 1, 10.0)),
        ({"itpm": 600}, Excess("input_tokens", 600, 100, 10.0)),
        ({"otpm": 60}, Excess("output_tokens", 60, 0, 90.001)),
        ({"max_concurrency": 1}, Excess("concurrency", 1, 1, 0.0)),
    ],
)
def test_each_limit_can_be_changed(fields: dict[str, int], refused: Excess) -> None:
    limits = make_limits(HandClock(), SPLIT)
    meter = limits.meter("acme", "sim")
    change(limits, None, **fields)
    assert admits(meter, 100)
    if "otpm" in fields:
        meter.settle(100)
    assert meter.admit(Demand(100)) == refused


@pytest.mark.parametrize(("account", "now", "later"), [(None, 30, 30), ("acme", 30, 60)])
def test_a_change_is_for_one_account_or_for_all_that_there_are_and_will_be(
    account: str | None, now: int, later: int
) -> None:
    limits = make_limits(HandClock(), CONTINUOUS)
    limits.meter("acme", "sim")
    change(limits, account, rpm=30)
    for name, rpm in (("acme", now), ("later", later)):
        meter = limits.meter(name, "sim")
        assert meter.headers()["x-ratelimit-limit-requests"] == str(rpm)
        assert sum(admits(meter, 1) for _ in range(20)) == rpm * BURST_S // 60
