"""Prices are exact integers, rounded once and upwards; what is unknown or malformed is refused."""

import pickle
from dataclasses import asdict
from datetime import date
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.errors import ConfigurationError
from penstock.money.prices import MESSAGE_OVERHEAD_TOKENS, UNLIMITED_TOKENS, Price, PriceList, UpperBound
from penstock.schemas import TOKEN_CLASSES, Usage

ROOT = Path(__file__).parent.parent.parent

rates = st.decimals(0, 1_000, places=9).map(str)
tokens = st.integers(0, 10_000_000)


def price(given_input: str = "0.15", cached_input: str = "0.075", output: str = "0.60", **more: Any) -> Price:
    return Price.model_validate(
        {"starts": date(2026, 1, 1), "input": given_input, "cached_input": cached_input, "output": output} | more
    )


def tier(above: int, given_input: str, cached_input: str, output: str, **more: Any) -> dict[str, Any]:
    return {"above": above, "input": given_input, "cached_input": cached_input, "output": output} | more


LONG_CONTEXT = price("1.25", "0.31", "10", context_tiers=[tier(200_000, "2.50", "0.625", "15")])

optional_rates = {"cache_write": st.none() | rates, "reasoning": st.none() | rates}
tiers = st.lists(st.integers(1, 2_000_000), max_size=3, unique=True).flatmap(
    lambda limits: st.tuples(
        *(st.builds(tier, st.just(limit), rates, rates, rates, **optional_rates) for limit in sorted(limits))
    )
)
prices = st.builds(price, rates, rates, rates, context_tiers=tiers, **optional_rates)
usages = st.builds(Usage, **dict.fromkeys(TOKEN_CLASSES, tokens))


def true_nanodollars(one: Price, usage: Usage) -> Fraction:
    """Price the usage class by class, in fractions."""
    holding = [each for each in one.context_tiers if each.above < usage.prompt_tokens]
    at = holding[-1] if holding else one
    parts = [
        (usage.input_tokens, at.input),
        (usage.cached_input_tokens, at.cached_input),
        (usage.cache_write_tokens, at.input if at.cache_write is None else at.cache_write),
        (usage.output_tokens, at.output),
        (usage.reasoning_tokens, at.output if at.reasoning is None else at.reasoning),
    ]
    return sum((Fraction(str(dollars)) * count * 1_000 for count, dollars in parts), Fraction(0))


def price_file(folder: Path, content: str) -> Path:
    path = folder / "prices.toml"
    path.write_text(content)
    return path


def entry(**changes: str) -> str:
    values = {"starts": "2026-01-01", "input": '"0.15"', "cached_input": '"0.075"', "output": '"0.60"'} | changes
    return "[[prices.sim]]\n" + "".join(f"{name} = {value}\n" for name, value in values.items() if value)


def tier_text(*limits: str) -> str:
    same = 'input = "1", cached_input = "1", output = "1"'
    return "[" + ", ".join(f"{{ above = {limit}, {same} }}" for limit in limits) + "]"


@pytest.mark.parametrize(
    ("usage", "nanodollars"),
    [
        (Usage(), 0),
        (Usage(input_tokens=1_000_000), 150_000_000),
        (Usage(cached_input_tokens=1_000_000), 75_000_000),
        (Usage(output_tokens=1_000_000), 600_000_000),
        (Usage(input_tokens=1), 150),
        (Usage(input_tokens=1_234, cached_input_tokens=1_000, output_tokens=321), 452_700),
    ],
)
def test_a_cost_is_exact(usage: Usage, nanodollars: int) -> None:
    assert price().cost(usage) == nanodollars


def test_a_part_of_a_nanodollar_is_rounded_up_once_and_not_by_class() -> None:
    third = price("0.000333333", "0.000333333", "0.000333334")
    assert third.cost(Usage(input_tokens=1)) == 1
    assert third.cost(Usage(input_tokens=1, cached_input_tokens=1, output_tokens=1)) == 1
    assert third.cost(Usage(input_tokens=1, cached_input_tokens=1, output_tokens=2)) == 2


def test_the_dearest_price_is_exact_to_the_last_digit() -> None:
    assert price("999999999.999999999").cost(Usage(input_tokens=1_000_000)) == 999_999_999_999_999_999


@given(prices, usages)
def test_a_cost_is_the_true_amount_rounded_up(one: Price, usage: Usage) -> None:
    cost = one.cost(usage)
    assert isinstance(cost, int)
    assert 0 <= cost - true_nanodollars(one, usage) < 1


@given(prices, usages, st.decimals(0, "0.999999999", places=9))
def test_a_batch_costs_what_its_discount_leaves_rounded_up_once(one: Price, usage: Usage, discount: Decimal) -> None:
    discounted = one.model_copy(update={"batch_discount": discount})
    cost = discounted.cost(usage, is_batch=True)
    assert 0 <= cost - true_nanodollars(one, usage) * (1 - Fraction(str(discount))) < 1
    assert discounted.cost(usage) == one.cost(usage)


def test_half_off_in_a_batch_is_half_of_every_class() -> None:
    every = Usage(input_tokens=1, cached_input_tokens=2, cache_write_tokens=4, output_tokens=8, reasoning_tokens=16)
    one = price("1", "0.1", "5", cache_write="1.25", reasoning="3", batch_discount="0.5")
    assert one.cost(every) == 1_000 + 200 + 5_000 + 40_000 + 48_000
    assert one.cost(every, is_batch=True) == (1_000 + 200 + 5_000 + 40_000 + 48_000) // 2


def test_a_batch_without_a_batch_price_is_refused_and_no_discount_is_one() -> None:
    with pytest.raises(ConfigurationError, match="2026-01-01 on: it has no batch discount"):
        price().cost(Usage(input_tokens=1), is_batch=True)
    assert price(batch_discount="0").cost(Usage(input_tokens=1), is_batch=True) == 150


def test_what_is_written_to_the_cache_costs_as_input_and_reasoning_as_output_unless_they_have_a_price() -> None:
    usage = Usage(cache_write_tokens=1_000, reasoning_tokens=100)
    assert price().cost(usage) == 1_000 * 150 + 100 * 600
    assert price(cache_write="0.1875", reasoning="0.20").cost(usage) == 187_500 + 100 * 200
    assert price(cache_write="0", reasoning="0").cost(usage) == 0


@pytest.mark.parametrize(
    ("usage", "nanodollars"),
    [
        (Usage(input_tokens=200_000, output_tokens=1), 200_000 * 1_250 + 10_000),
        (Usage(input_tokens=200_001, output_tokens=1), 200_001 * 2_500 + 15_000),
        (Usage(input_tokens=1, cached_input_tokens=200_000), 2_500 + 200_000 * 625),
        (Usage(cache_write_tokens=200_001, reasoning_tokens=1), 200_001 * 2_500 + 15_000),
        (Usage(input_tokens=200_000, output_tokens=500_000), 200_000 * 1_250 + 500_000 * 10_000),
    ],
    ids=["at the limit", "above it", "mostly cached", "written and reasoned", "a long answer"],
)
def test_a_prompt_above_the_limit_is_priced_wholly_by_its_tier(usage: Usage, nanodollars: int) -> None:
    assert LONG_CONTEXT.cost(usage) == nanodollars


def test_the_highest_tier_that_a_prompt_exceeds_holds() -> None:
    steps = price("1", "1", "1", context_tiers=[tier(10, "2", "2", "2"), tier(20, "3", "3", "3")])
    costs = [steps.cost(Usage(input_tokens=count)) for count in (10, 11, 20, 21)]
    assert costs == [10 * 1_000, 11 * 2_000, 20 * 2_000, 21 * 3_000]


def divide(data: st.DataObject, most: int, parts: int) -> list[int]:
    """Draw counts that make at most `most` together."""
    cuts = sorted(data.draw(st.lists(st.integers(0, most), min_size=parts, max_size=parts), f"cuts of {most}"))
    return [later - earlier for earlier, later in zip([0, *cuts], cuts, strict=False)]


@given(prices, st.integers(0, 3_000_000), st.integers(0, 200), st.integers(1, 100_000), st.data())
def test_no_call_within_its_limits_costs_more_than_its_upper_bound(
    one: Price, prompt_bytes: int, messages: int, max_tokens: int, data: st.DataObject
) -> None:
    bound = one.upper_bound(prompt_bytes=prompt_bytes, messages=messages)
    assert bound.prompt_tokens == prompt_bytes + messages * MESSAGE_OVERHEAD_TOKENS
    fresh, cached, written = divide(data, bound.prompt_tokens, 3)
    output, reasoning = divide(data, max_tokens, 2)
    usage = Usage(
        input_tokens=fresh,
        cached_input_tokens=cached,
        cache_write_tokens=written,
        output_tokens=output,
        reasoning_tokens=reasoning,
    )
    assert one.cost(usage) <= bound.nanodollars(max_tokens)
    discounted = one.model_copy(update={"batch_discount": Decimal("0.333333333")})
    in_batch = discounted.upper_bound(prompt_bytes=prompt_bytes, messages=messages, is_batch=True)
    assert discounted.cost(usage, is_batch=True) <= in_batch.nanodollars(max_tokens)
    assert usage.total_tokens <= bound.tokens(max_tokens)


def test_the_upper_bound_is_what_the_largest_call_costs() -> None:
    largest = Usage(input_tokens=1_000 + 2 * MESSAGE_OVERHEAD_TOKENS, output_tokens=500)
    bound = price().upper_bound(prompt_bytes=1_000, messages=2)
    assert bound.nanodollars(500) == price().cost(largest) == 454_800
    assert bound.tokens(500) == 1_532


def test_the_upper_bound_in_a_batch_is_what_its_discount_leaves() -> None:
    halved = price(batch_discount="0.5")
    bound = halved.upper_bound(prompt_bytes=1_000, messages=2, is_batch=True)
    assert (bound.nanodollars(500), bound.tokens(500)) == (454_800 // 2, 1_532)
    with pytest.raises(ConfigurationError, match="batch discount"):
        price().upper_bound(prompt_bytes=1, messages=1, is_batch=True)


@pytest.mark.parametrize(
    ("one", "nanodollars"),
    [
        (price("0.1", "0.2", "0"), 200_000_000),
        (price("0.1", "0", "0", cache_write="0.3"), 300_000_000),
        (price("0", "0", "1", reasoning="2"), 20_000),
    ],
    ids=["cached input", "writes to the cache", "reasoning"],
)
def test_the_upper_bound_takes_the_dearest_class(one: Price, nanodollars: int) -> None:
    assert one.upper_bound(prompt_bytes=1_000_000, messages=0).nanodollars(10) == nanodollars


def test_the_upper_bound_takes_a_tier_only_where_the_prompt_can_reach_it() -> None:
    below, above = (LONG_CONTEXT.upper_bound(prompt_bytes=count, messages=0) for count in (200_000, 200_001))
    assert below == UpperBound(200_000, 200_000 * 1_250_000_000, 10_000_000_000)
    assert above == UpperBound(200_001, 200_001 * 2_500_000_000, 15_000_000_000)


def test_a_short_prompt_that_is_the_dearer_bounds_a_long_one_too() -> None:
    odd = price("2", "2", "2", context_tiers=[tier(10, "1", "1", "1")])
    assert odd.upper_bound(prompt_bytes=11, messages=0).nanodollars(1) == 12 * 2_000


@given(prices, st.integers(0, 3_000_000), st.integers(0, 200), st.data())
def test_max_tokens_within_a_sum_fits_and_one_more_does_not(
    one: Price, prompt_bytes: int, messages: int, data: st.DataObject
) -> None:
    bound = one.upper_bound(prompt_bytes=prompt_bytes, messages=messages)
    near = bound.nanodollars(data.draw(st.integers(0, 100_000), "max_tokens")) + data.draw(st.integers(-2, 2), "beside")
    given_sum = data.draw(st.just(near) | st.integers(0, 10**13), "nano-dollars")
    within = bound.max_tokens_within(given_sum)
    if bound.output_rate:
        assert bound.nanodollars(within) <= given_sum < bound.nanodollars(within + 1)
    else:
        assert within == (UNLIMITED_TOKENS if bound.nanodollars(0) <= given_sum else 0)


def test_a_sum_that_does_not_pay_the_prompt_buys_no_token() -> None:
    bound = price().upper_bound(prompt_bytes=1_000, messages=0)
    assert [bound.max_tokens_within(paid) for paid in (150_599, 150_600, 150_000)] == [0, 1, 0]
    assert bound.max_tokens_within(149_999) < 0
    assert price("1", "0", "0").upper_bound(prompt_bytes=1_000, messages=0).max_tokens_within(999_999) == 0


def test_an_upper_bound_can_be_stored_and_sent() -> None:
    bound = LONG_CONTEXT.upper_bound(prompt_bytes=10, messages=1)
    assert UpperBound(**asdict(bound)) == bound == pickle.loads(pickle.dumps(bound))
    assert {type(value) for value in asdict(bound).values()} == {int}


def test_the_price_of_a_day_is_the_last_that_had_begun(tmp_path: Path) -> None:
    later, first = entry(starts="2026-03-01", input='"3"'), entry(starts="2026-01-01", input='"1"')
    listed = PriceList.load(price_file(tmp_path, later + first))
    assert listed.price_on("sim", date(2026, 1, 1)).input == Decimal(1)
    assert listed.price_on("sim", date(2026, 2, 28)).input == Decimal(1)
    assert listed.price_on("sim", date(2026, 3, 1)).version == "2026-03-01"
    assert listed.price_on("sim", date(2030, 1, 1)).input == Decimal(3)


def test_every_key_of_a_price_can_be_written_in_the_file(tmp_path: Path) -> None:
    long = '{ above = 200_000, input = "6", cached_input = "0.60", cache_write = "7.50", output = "22.50" }'
    optional = {"cache_write": '"3.75"', "reasoning": '"15"', "batch_discount": '"0.5"', "context_tiers": f"[{long}]"}
    path = price_file(tmp_path, entry(input='"3"', cached_input='"0.30"', output='"15"', **optional))
    one = PriceList.load(path).price_on("sim", date(2026, 1, 1))
    assert one.cost(Usage(cache_write_tokens=1_000, reasoning_tokens=10)) == 1_000 * 3_750 + 10 * 15_000
    assert one.cost(Usage(cache_write_tokens=300_000, output_tokens=10)) == 300_000 * 7_500 + 10 * 22_500
    assert one.cost(Usage(input_tokens=1_000), is_batch=True) == 1_000 * 1_500


@pytest.mark.parametrize(("deployment", "day"), [("sim", date(2025, 12, 31)), ("other", date(2026, 6, 1))])
def test_an_unknown_price_is_refused_and_never_zero(tmp_path: Path, deployment: str, day: date) -> None:
    path = price_file(tmp_path, entry())
    with pytest.raises(ConfigurationError) as refusal:
        PriceList.load(path).price_on(deployment, day)
    assert (refusal.value.file, refusal.value.place) == (str(path), f"key 'prices.{deployment}'")
    assert day.isoformat() in refusal.value.reason


@pytest.mark.parametrize(
    ("content", "key"),
    [
        (entry(input=""), "prices.sim.0.input"),
        (entry(starts=""), "prices.sim.0.starts"),
        (entry(input='"-0.01"'), "prices.sim.0.input"),
        (entry(output='"0.0000000001"'), "prices.sim.0.output"),
        (entry(output='"1e-10"'), "prices.sim.0.output"),
        (entry(cached_input='"cheap"'), "prices.sim.0.cached_input"),
        (entry(cached_input='""'), "prices.sim.0.cached_input"),
        (entry(input='"nan"'), "prices.sim.0.input"),
        (entry(input='"Infinity"'), "prices.sim.0.input"),
        (entry(input='"12345678901234567890.123456789"'), "prices.sim.0.input"),
        (entry(input="0.15"), "prices.sim.0.input"),
        (entry(input="0.1"), "prices.sim.0.input"),
        (entry(input="true"), "prices.sim.0.input"),
        (entry(starts='"tomorrow"'), "prices.sim.0.starts"),
        (entry(thinking='"0.1"'), "prices.sim.0.thinking"),
        (entry(cache_write='"-1"'), "prices.sim.0.cache_write"),
        (entry(reasoning="0.1"), "prices.sim.0.reasoning"),
        (entry(batch_discount="0.5"), "prices.sim.0.batch_discount"),
        (entry(batch_discount='"1"'), "prices.sim.0.batch_discount"),
        (entry(batch_discount='"-0.1"'), "prices.sim.0.batch_discount"),
        (entry(batch_discount='"0.0000000001"'), "prices.sim.0.batch_discount"),
        (entry(context_tiers="[{ above = 9 }]"), "prices.sim.0.context_tiers.0.input"),
        (entry(context_tiers=tier_text("0")), "prices.sim.0.context_tiers.0.above"),
        (entry(context_tiers=tier_text('"200000"')), "prices.sim.0.context_tiers.0.above"),
        (entry(context_tiers=tier_text("9", "8")), "prices.sim.0.context_tiers"),
        (entry(context_tiers=tier_text("9", "9")), "prices.sim.0.context_tiers"),
        (entry() + entry(output='"x"'), "prices.sim.1.output"),
        ("[prices]\nsim = 3\n", "prices.sim"),
        ("", "prices"),
        ("[price]\n", "prices"),
    ],
)
def test_a_bad_list_is_refused_by_file_and_key(tmp_path: Path, content: str, key: str) -> None:
    path = price_file(tmp_path, content)
    with pytest.raises(ConfigurationError) as refusal:
        PriceList.load(path)
    assert (refusal.value.file, refusal.value.place) == (str(path), f"key {key!r}")


def test_two_prices_from_the_same_day_on_are_refused(tmp_path: Path) -> None:
    path = price_file(tmp_path, entry(input='"1"') + entry(input='"2"'))
    with pytest.raises(ConfigurationError) as refusal:
        PriceList.load(path)
    assert (refusal.value.file, refusal.value.place) == (str(path), "key 'prices.sim'")
    assert "2026-01-01" in refusal.value.reason


@pytest.mark.parametrize("content", ["[[prices.sim]\n", "[[prices.sim]]\ninput = 0,15\n"])
def test_bad_syntax_is_refused_by_file_and_line(tmp_path: Path, content: str) -> None:
    path = price_file(tmp_path, content)
    with pytest.raises(ConfigurationError, match="line") as refusal:
        PriceList.load(path)
    assert refusal.value.file == str(path)


def test_a_list_that_is_missing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"prices\.toml.*does not exist"):
        PriceList.load(tmp_path / "prices.toml")


def test_the_projects_own_list_can_be_read() -> None:
    PriceList.load(ROOT / "config" / "prices.toml").price_on("sim-small", date(2026, 11, 25))
