"""What a forecast says of inputs whose truth is known. Pure."""

import random
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.batches.forecast import LEAST_SHARE, PLACES, Capacity, Forecast, History, Interval, Sample, forecast
from penstock.money.prices import Price
from penstock.providers.quota import Quota
from penstock.schemas import Usage

PRICE = Price(starts=date(2026, 1, 1), input=Decimal("0.15"), cached_input=Decimal("0.075"), output=Decimal("0.60"))
QUOTA = Quota(name="q", rpm=600, tpm=600_000, concurrency=50)
CAPACITY = Capacity([QUOTA], places=1000)
SEEN = History(calls=2000, mean_tokens=100.0, deviation=30.0, latency_s=1.0)
NOW = datetime(2026, 11, 24, 22, tzinfo=UTC)


def of(sample: Sample, history: History = SEEN, capacity: Capacity = CAPACITY, max_tokens: int = 400) -> Forecast:
    return forecast(sample, history, PRICE, max_tokens, capacity)


def test_an_input_that_was_looked_at_whole_is_known_but_for_its_answers() -> None:
    said = of(Sample(3, 0, [100, 200, 600], 0))
    assert said.prompt_tokens == Interval(900, 900, 900)
    assert said.answer_tokens.expected == 300
    assert said.nanodollars.expected == sum(
        PRICE.cost(Usage(input_tokens=tokens, output_tokens=100)) for tokens in (100, 200, 600)
    )


def test_the_truth_lies_in_the_interval_as_often_as_it_says() -> None:
    chance = random.Random(7)
    hits = 0
    for _ in range(300):
        prompts = [round(chance.lognormvariate(6, 0.7)) for _ in range(3000)]
        answers = [min(400, max(1, round(chance.gauss(100, 30)))) for _ in prompts]
        said = of(Sample(len(prompts), 0, chance.sample(prompts, 300), 0))
        truth = sum(
            PRICE.cost(Usage(input_tokens=asked, output_tokens=answered))
            for asked, answered in zip(prompts, answers, strict=True)
        )
        hits += said.nanodollars.low <= truth <= said.nanodollars.high
    assert 270 <= hits <= 300


def test_bad_items_of_the_sample_are_no_jobs() -> None:
    assert of(Sample(1000, 0, [100] * 90, 10)).jobs == 900


@pytest.mark.parametrize("sample", [Sample(0, 0, [], 0), Sample(10, 0, [], 10)])
def test_an_input_without_any_request_costs_nothing(sample: Sample) -> None:
    said = of(sample)
    assert (said.jobs, said.nanodollars, said.seconds, said.limited_by) == (0, Interval(0, 0, 0), 0.0, None)
    assert said.job_nanodollars_high == 0


def test_without_earlier_calls_an_answer_may_be_anything_that_the_prompt_allows() -> None:
    said = of(Sample(100, 0, [50] * 100, 0), History())
    assert said.answer_tokens == Interval(100, 100 * 401 // 2, 100 * 400)


@pytest.mark.parametrize(
    ("prompt", "capacity", "limited_by", "seconds"),
    [
        (10, CAPACITY, "requests", 1000 / 10),
        (6000, CAPACITY, "tokens", 1000 * 6000 / 10_000),
        (10, Capacity([QUOTA], places=5), PLACES, 1000 * 1.0 / 5),
        (10, Capacity([None], places=50), PLACES, 1000 * 1.0 / 50),
        (10, Capacity([QUOTA, QUOTA.model_copy(update={"name": "r"})], places=1000), "requests", 1000 / 20),
        (10, Capacity([QUOTA], 1000, interactive_jobs=6), "requests", 1000 / 4),
        (10, Capacity([QUOTA], 1000, interactive_jobs=99), "requests", 1000 / (10 * LEAST_SHARE)),
        (6000, Capacity([QUOTA], 1000, interactive_tokens=4_000), "tokens", 1000 * 6000 / 6_000),
        (10, Capacity([QUOTA, QUOTA], places=1000), "requests", 1000 / 10),
    ],
)
def test_what_takes_longest_limits_it(prompt: int, capacity: Capacity, limited_by: str, seconds: float) -> None:
    said = of(Sample(1000, 0, [prompt] * 100, 0), capacity=capacity)
    assert said.limited_by == limited_by
    assert said.seconds == pytest.approx(seconds)


def test_nothing_is_said_of_time_where_nothing_limits_it() -> None:
    said = of(Sample(10, 0, [10] * 10, 0), History(), Capacity([None], places=9))
    assert (said.seconds, said.limited_by) == (0.0, None)


def test_it_objects_to_what_ends_too_late_or_may_cost_too_much() -> None:
    said = replace(of(Sample(1000, 0, [100] * 100, 0)), seconds=3600.0, nanodollars=Interval(1, 2, 3 * 10**9))
    hour = timedelta(hours=1)
    assert said.objections(NOW, NOW + hour, 3 * 10**9) == []
    assert said.objections(NOW, None, None) == []
    assert said.objections(NOW, NOW + hour / 2, 10**9) == [
        "it would end 0:30:00 too late",
        "it may cost $3.00, and $1.00 are allowed",
    ]


@given(
    st.integers(1, 10**6),
    st.lists(st.integers(1, 10**5), min_size=1, max_size=50),
    st.integers(0, 50),
    st.builds(History, st.integers(0, 3000), st.floats(0, 500), st.floats(0, 500), st.floats(0, 60)),
)
def test_intervals_are_in_order_and_never_below_nothing(
    extra: int, prompts: list[int], refused: int, history: History
) -> None:
    said = of(Sample(len(prompts) + refused + extra, 0, prompts, refused), history)
    for interval in (said.prompt_tokens, said.answer_tokens, said.nanodollars):
        assert 0 <= interval.low <= interval.expected <= interval.high
    assert said.seconds >= 0
