"""What a call is charged by each rule, which quotas make sense, and what of a provider's reports is believed."""

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from penstock.providers.quota import Charge, Quota, QuotaEntry, Size
from penstock.schemas import ReportedLimit, Resource, Usage

REQUESTS, TOKENS = Resource.REQUESTS, Resource.TOKENS
INPUT, OUTPUT = Resource.INPUT_TOKENS, Resource.OUTPUT_TOKENS
MAXIMUM = Quota(name="maximum", rpm=60, tpm=1000, charge=Charge.MAXIMUM)
SUM = Quota(name="sum", rpm=60, tpm=1000, charge=Charge.SUM)
PRODUCED = Quota(name="produced", rpm=60, tpm=1000, charge=Charge.PRODUCED)
SPLIT = Quota(name="split", rpm=60, itpm=1000, otpm=500, charge=Charge.SPLIT)


@pytest.mark.parametrize(
    ("quota", "charged"),
    [
        (MAXIMUM, {REQUESTS: 1, TOKENS: 400}),
        (SUM, {REQUESTS: 1, TOKENS: 700}),
        (PRODUCED, {REQUESTS: 1, TOKENS: 350}),
        (SPLIT, {REQUESTS: 1, INPUT: 300, OUTPUT: 50}),
    ],
    ids=lambda value: value.name if isinstance(value, Quota) else "",
)
def test_a_call_takes_what_its_rule_says_before_it_is_made(quota: Quota, charged: dict[Resource, int]) -> None:
    assert quota.charge_of(Size(prompt=300, max_tokens=400, output=50)) == charged


def test_the_maximum_is_the_prompt_where_that_is_larger() -> None:
    assert MAXIMUM.charge_of(Size(prompt=401, max_tokens=400, output=50))[TOKENS] == 401


@pytest.mark.parametrize(
    ("quota", "charged"),
    [
        (MAXIMUM, {REQUESTS: 1, TOKENS: 400}),
        (SUM, {REQUESTS: 1, TOKENS: 700}),
        (PRODUCED, {REQUESTS: 1, TOKENS: 333}),
        (SPLIT, {REQUESTS: 1, INPUT: 100, OUTPUT: 33}),
    ],
    ids=lambda value: value.name if isinstance(value, Quota) else "",
)
def test_a_call_was_charged_by_its_usage_and_a_cached_prompt_counts_but_for_split(
    quota: Quota, charged: dict[Resource, int]
) -> None:
    usage = Usage(input_tokens=100, cached_input_tokens=200, output_tokens=33)
    assert quota.charged_for(usage, max_tokens=400) == charged


def test_a_cached_prompt_larger_than_max_tokens_is_the_maximum() -> None:
    assert MAXIMUM.charged_for(Usage(cached_input_tokens=900, output_tokens=1), max_tokens=400)[TOKENS] == 900


@pytest.mark.parametrize("quota", [MAXIMUM, SUM])
@given(prompt=st.integers(0, 10**6), max_tokens=st.integers(0, 10**6), output=st.integers(0, 10**6))
def test_a_rule_that_does_not_look_at_output_charges_what_it_took(
    quota: Quota, prompt: int, max_tokens: int, output: int
) -> None:
    taken = quota.charge_of(Size(prompt=prompt, max_tokens=max_tokens, output=0))
    assert quota.charged_for(Usage(input_tokens=prompt, output_tokens=output), max_tokens) == taken


def test_only_what_is_limited_is_charged() -> None:
    size, usage = Size(prompt=3, max_tokens=4, output=5), Usage(input_tokens=3)
    unlimited = Quota(name="none", concurrency=3)
    assert unlimited.per_minute == {}
    assert (unlimited.charge_of(size), unlimited.charged_for(usage, 4), unlimited.charged_for_rejected()) == (
        {},
        {},
        {},
    )
    assert Quota(name="calls", rpm=60).charge_of(size) == {REQUESTS: 1}
    assert Quota(name="out", otpm=9, charge=Charge.SPLIT).charge_of(size) == {OUTPUT: 5}


def test_a_refused_call_is_charged_as_a_request_unless_the_provider_does_not() -> None:
    assert MAXIMUM.charged_for_rejected() == {REQUESTS: 1, TOKENS: 0}
    assert SPLIT.charged_for_rejected() == {REQUESTS: 1, INPUT: 0, OUTPUT: 0}
    free = Quota(name="free", rpm=60, tpm=1000, charge_rejected=False)
    assert free.charged_for_rejected() == {REQUESTS: 0, TOKENS: 0}


@pytest.mark.parametrize(
    ("quota", "size", "resource"),
    [
        (MAXIMUM, Size(prompt=1000, max_tokens=1000, output=9999), None),
        (MAXIMUM, Size(prompt=1001, max_tokens=0, output=0), TOKENS),
        (SUM, Size(prompt=500, max_tokens=500, output=0), None),
        (SUM, Size(prompt=500, max_tokens=501, output=0), TOKENS),
        (PRODUCED, Size(prompt=500, max_tokens=9999, output=501), TOKENS),
        (SPLIT, Size(prompt=1000, max_tokens=9999, output=500), None),
        (SPLIT, Size(prompt=1001, max_tokens=0, output=501), INPUT),
        (SPLIT, Size(prompt=0, max_tokens=0, output=501), OUTPUT),
        (Quota(name="calls", rpm=1), Size(prompt=10**9, max_tokens=10**9, output=0), None),
    ],
)
def test_a_call_larger_than_a_minute_of_the_rate_is_too_large(
    quota: Quota, size: Size, resource: Resource | None
) -> None:
    assert quota.too_large(size) is resource


@pytest.mark.parametrize(
    ("table", "words"),
    [
        ({"tpm": 1, "charge": "input, output"}, "charge 'input, output' counts itpm and otpm, and tpm is given"),
        ({"itpm": 1}, "itpm and otpm need charge = 'input, output'"),
        ({"otpm": 1, "charge": "prompt + output"}, "itpm and otpm need charge = 'input, output'"),
        (
            {"rpm": 1, "windows_s": {"tokens": 60, "requests": 1}},
            "windows_s names ['tokens'], which this quota does not limit",
        ),
        ({"rpm": 1, "windows_s": {"requests": 0}}, "a window is longer than 0 s"),
        ({"rpm": 1, "windows_s": {"requests": -1}}, "a window is longer than 0 s"),
    ],
)
def test_a_contradiction_is_refused_and_said(table: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError) as refused:
        QuotaEntry.model_validate(table)
    assert [error["msg"] for error in refused.value.errors()] == [f"Value error, {words}"]


@pytest.mark.parametrize("name", ["rpm", "tpm", "concurrency", "burst_s"])
@pytest.mark.parametrize("value", [0, -1])
def test_a_limit_of_nothing_is_refused_by_name(name: str, value: int) -> None:
    with pytest.raises(ValidationError) as refused:
        QuotaEntry.model_validate({name: value})
    assert [(error["loc"], error["msg"]) for error in refused.value.errors()] == [
        ((name,), "Input should be greater than 0")
    ]


@pytest.mark.parametrize(
    "table",
    [
        {"burst_s": 60.1},
        {"charge": "prompt"},
        {"rpms": 5},
        {"rpm": 1, "windows_s": {"calls": 1}},
        {"burst_s": math.nan},
        {"rpm": 1, "windows_s": {"requests": math.nan}},
    ],
)
def test_what_no_quota_can_be_is_refused(table: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        QuotaEntry.model_validate(table)


def test_a_quota_without_windows_has_its_rate_and_its_burst() -> None:
    quota = Quota(name="plain", rpm=600, tpm=90_000, burst_s=3)
    assert (quota.rate_of(REQUESTS, 600), quota.rate_of(TOKENS, 90_000)) == (10, 1500)
    assert quota.burst_of(TOKENS) == 3


def test_a_window_shortens_the_burst_and_lowers_the_rate_of_its_own_resource_only() -> None:
    quota = Quota(name="windows", rpm=600, tpm=60_000, windows_s={REQUESTS: 10})
    assert (quota.burst_of(REQUESTS), quota.rate_of(REQUESTS, 600)) == (0.2, 9.8)
    assert (quota.burst_of(TOKENS), quota.rate_of(TOKENS, 60_000)) == (5, 1000)


@given(
    rpm=st.integers(1, 10**6),
    window_s=st.floats(0.1, 86_400),
    burst_s=st.floats(0.01, 60),
    reported=st.floats(1, 10**9),
)
def test_a_burst_and_the_flow_of_a_window_fit_into_it(
    rpm: int, window_s: float, burst_s: float, reported: float
) -> None:
    quota = Quota(name="windows", rpm=rpm, burst_s=burst_s, windows_s={REQUESTS: window_s})
    for per_minute in (rpm, reported):
        rate, allowed = quota.rate_of(REQUESTS, per_minute), per_minute / 60 * window_s
        assert rate * quota.burst_of(REQUESTS) + rate * window_s <= allowed * (1 + 1e-12)
        assert rate * window_s >= 0.98 * allowed * (1 - 1e-12)


def reported(*per_minute: float | None) -> tuple[ReportedLimit, ...]:
    return tuple(ReportedLimit(resource=TOKENS, per_minute=value, remaining=1) for value in per_minute)


@pytest.mark.parametrize("nonsense", [0, -0.0, -1, math.inf, -math.inf, math.nan, None])
def test_a_reported_limit_that_cannot_be_true_is_ignored(nonsense: float | None) -> None:
    assert MAXIMUM.reported_rates(reported(nonsense)) == {}
    assert MAXIMUM.reported_rates(reported(600, nonsense)) == {TOKENS: 10}


def test_a_reported_limit_becomes_units_a_second() -> None:
    limits = (ReportedLimit(resource=REQUESTS, per_minute=90), *reported(1.5))
    assert MAXIMUM.reported_rates(limits) == {REQUESTS: 1.5, TOKENS: 0.025}
    quota = Quota(name="windows", tpm=60_000, windows_s={TOKENS: 10})
    assert quota.reported_rates(reported(6000)) == {TOKENS: 98}
    assert MAXIMUM.reported_rates(()) == {}
