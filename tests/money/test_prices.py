"""Prices are exact integers, rounded once and upwards; what is unknown or malformed is refused."""

from datetime import date
from decimal import Decimal
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.errors import ConfigurationError
from penstock.money.prices import MESSAGE_OVERHEAD_TOKENS, Price, PriceList
from penstock.schemas import Usage

ROOT = Path(__file__).parent.parent.parent

rates = st.decimals(0, 1_000, places=9).map(str)
tokens = st.integers(0, 10_000_000)


def price(given_input: str = "0.15", cached_input: str = "0.075", output: str = "0.60") -> Price:
    return Price.model_validate(
        {"starts": date(2026, 1, 1), "input": given_input, "cached_input": cached_input, "output": output}
    )


prices = st.builds(price, rates, rates, rates)


def price_file(folder: Path, content: str) -> Path:
    path = folder / "prices.toml"
    path.write_text(content)
    return path


def entry(**changes: str) -> str:
    values = {"starts": "2026-01-01", "input": '"0.15"', "cached_input": '"0.075"', "output": '"0.60"'} | changes
    return "[[prices.sim]]\n" + "".join(f"{name} = {value}\n" for name, value in values.items() if value)


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


@given(prices, tokens, tokens, tokens)
def test_a_cost_is_the_true_amount_rounded_up(one: Price, fresh: int, cached: int, output: int) -> None:
    true = (
        Fraction(str(one.input)) * fresh + Fraction(str(one.cached_input)) * cached + Fraction(str(one.output)) * output
    ) * 1_000
    cost = one.cost(Usage(input_tokens=fresh, cached_input_tokens=cached, output_tokens=output))
    assert isinstance(cost, int)
    assert 0 <= cost - true < 1


@given(prices, st.integers(0, 1_000_000), st.integers(0, 200), st.integers(1, 100_000), st.data())
def test_no_call_within_its_limits_costs_more_than_its_upper_bound(
    one: Price, prompt_bytes: int, messages: int, max_tokens: int, data: st.DataObject
) -> None:
    seen = data.draw(st.integers(0, prompt_bytes + messages * MESSAGE_OVERHEAD_TOKENS), "input tokens of any class")
    cached = data.draw(st.integers(0, seen), "of them cached")
    usage = Usage(
        input_tokens=seen - cached,
        cached_input_tokens=cached,
        output_tokens=data.draw(st.integers(0, max_tokens), "output tokens"),
    )
    bound = one.upper_bound(prompt_bytes=prompt_bytes, messages=messages, max_tokens=max_tokens)
    assert one.cost(usage) <= bound


def test_the_upper_bound_is_what_the_largest_call_costs() -> None:
    largest = Usage(input_tokens=1_000 + 2 * MESSAGE_OVERHEAD_TOKENS, output_tokens=500)
    assert price().upper_bound(prompt_bytes=1_000, messages=2, max_tokens=500) == price().cost(largest) == 454_800


def test_the_upper_bound_holds_when_cached_input_is_the_dearer() -> None:
    odd = price("0.1", "0.2", "0")
    assert odd.upper_bound(prompt_bytes=1_000_000, messages=0, max_tokens=1) == 200_000_000


def test_the_price_of_a_day_is_the_last_that_had_begun(tmp_path: Path) -> None:
    later, first = entry(starts="2026-03-01", input='"3"'), entry(starts="2026-01-01", input='"1"')
    listed = PriceList.load(price_file(tmp_path, later + first))
    assert listed.price_on("sim", date(2026, 1, 1)).input == Decimal(1)
    assert listed.price_on("sim", date(2026, 2, 28)).input == Decimal(1)
    assert listed.price_on("sim", date(2026, 3, 1)).version == "2026-03-01"
    assert listed.price_on("sim", date(2030, 1, 1)).input == Decimal(3)


@pytest.mark.parametrize(("deployment", "day"), [("sim", date(2025, 12, 31)), ("other", date(2026, 6, 1))])
def test_an_unknown_price_is_refused_and_never_zero(tmp_path: Path, deployment: str, day: date) -> None:
    path = price_file(tmp_path, entry())
    with pytest.raises(ConfigurationError) as refusal:
        PriceList.load(path).price_on(deployment, day)
    assert (refusal.value.file, refusal.value.place) == (str(path), f"key 'prices.{deployment}'")
    assert day.isoformat() in refusal.value.reason


def test_a_deployment_without_a_price_today_is_refused(tmp_path: Path) -> None:
    listed = PriceList.load(price_file(tmp_path, entry() + entry(starts="9999-01-01").replace("sim", "future")))
    listed.require("sim")
    with pytest.raises(ConfigurationError, match=r"prices\.future"):
        listed.require("future")


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
        (entry(reasoning='"0.1"'), "prices.sim.0.reasoning"),
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
    PriceList.load(ROOT / "config" / "prices.toml").require("sim-small")
