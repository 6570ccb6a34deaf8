"""The simulator's configuration, prices, tokens and command line."""

import os
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.errors import ConfigurationError
from penstock.providers.simulator.__main__ import main
from penstock.providers.simulator.config import Prices, load_config
from penstock.providers.simulator.invoice import price
from penstock.providers.simulator.tokens import PromptCache, count_message, count_tokens, cut_to_tokens
from penstock.schemas import Usage

CONFIG = Path(__file__).parents[2] / "config" / "simulator.toml"
PRICES = Prices(input="0.15", cached_input="0.075", output="0.60")  # type: ignore[arg-type] # the file's form


def test_the_shipped_configuration_can_be_read() -> None:
    models = load_config(CONFIG).models
    assert list(models) == ["sim-small", "sim-medium", "sim-large", "sim-embedding"]
    assert models["sim-small"].prices == Prices(input="0.15", cached_input="0.075", output="0.60")  # type: ignore[arg-type] # the file's form
    assert models["sim-small"].prices.input == 150_000_000


@pytest.mark.parametrize("wrong", ["0.15", '"free"', '"-1"', '"NaN"', '"Infinity"', '"0.0000000001"'])
def test_a_price_that_is_no_exact_decimal_string_is_refused(tmp_path: Path, wrong: str) -> None:
    file = tmp_path / "simulator.toml"
    file.write_text(CONFIG.read_text().replace('input = "0.15"', f"input = {wrong}"))
    with pytest.raises(ConfigurationError) as refused:
        load_config(file)
    assert refused.value.place == "key 'models.sim-small.prices.input'"


TOTAL_ONLY = "charge 'max(prompt, max_tokens)' takes tpm; itpm and otpm belong to charge 'input, output'"
BOTH_PARTS = "charge 'input, output' takes both itpm and otpm, and no tpm"


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        ("", TOTAL_ONLY),
        ("itpm = 1\notpm = 1", TOTAL_ONLY),
        ("tpm = 1\nitpm = 1", TOTAL_ONLY),
        ("charge = 'input, output'\nitpm = 1", BOTH_PARTS),
        ("charge = 'input, output'\notpm = 1", BOTH_PARTS),
        ("charge = 'input, output'\ntpm = 1\nitpm = 1\notpm = 1", BOTH_PARTS),
        (
            "charge = 'input, output'\nrefill = 'windows'\nitpm = 1\notpm = 1",
            "charge 'input, output' takes refill 'continuous'",
        ),
        ("tpm = 1\nslice_s = 5", "slice_s belongs to refill 'windows'"),
    ],
)
def test_limits_that_contradict_each_other_are_refused(tmp_path: Path, limits: str, message: str) -> None:
    file = tmp_path / "simulator.toml"
    file.write_text(CONFIG.read_text().replace("tpm = 2_000_000", limits))
    with pytest.raises(ConfigurationError) as refused:
        load_config(file)
    assert (refused.value.place, refused.value.reason) == ("key 'models.sim-small'", f"Value error, {message}")


@pytest.mark.parametrize(
    ("limits", "quotas"),
    [
        ("tpm = 9", {"requests": 3000, "tokens": 9}),
        ("tpm = 9\ncharge = 'prompt + max_tokens'", {"requests": 3000, "tokens": 9}),
        ("tpm = 9\nrefill = 'windows'\nslice_s = 1", {"requests": 3000, "tokens": 9}),
        ("itpm = 9\notpm = 3\ncharge = 'input, output'", {"requests": 3000, "input_tokens": 9, "output_tokens": 3}),
    ],
)
def test_limits_that_agree_are_the_quotas_of_the_model(tmp_path: Path, limits: str, quotas: dict[str, int]) -> None:
    file = tmp_path / "simulator.toml"
    file.write_text(CONFIG.read_text().replace("tpm = 2_000_000", limits))
    assert load_config(file).models["sim-small"].quotas == quotas


@pytest.mark.parametrize("slice_s", [0, 11])
def test_a_slice_is_between_one_and_ten_seconds(tmp_path: Path, slice_s: int) -> None:
    file = tmp_path / "simulator.toml"
    file.write_text(CONFIG.read_text().replace("tpm = 2_000_000", f"tpm = 9\nrefill = 'windows'\nslice_s = {slice_s}"))
    with pytest.raises(ConfigurationError) as refused:
        load_config(file)
    assert refused.value.place == "key 'models.sim-small.slice_s'"


@pytest.mark.parametrize(("text", "place"), [(None, "the file itself"), ("seed = ", "its TOML"), ("", "key 'models'")])
def test_a_file_that_cannot_be_used_is_named(tmp_path: Path, text: str | None, place: str) -> None:
    file = tmp_path / "simulator.toml"
    if text is not None:
        file.write_text(text)
    with pytest.raises(ConfigurationError) as refused:
        load_config(file)
    assert (refused.value.file, refused.value.place) == (str(file), place)


@pytest.mark.parametrize(
    ("usage", "nanodollars"),
    [
        (Usage(), 0),
        (Usage(input_tokens=1), 150),
        (Usage(cached_input_tokens=1), 75),
        (Usage(input_tokens=10, cached_input_tokens=20, output_tokens=30), 21_000),
    ],
)
def test_a_call_costs_the_sum_of_its_tokens(usage: Usage, nanodollars: int) -> None:
    assert price(usage, PRICES) == nanodollars


def test_a_price_is_rounded_up_once() -> None:
    odd = Prices(input="0.000000001", cached_input="0.000000001", output="0.000000001")  # type: ignore[arg-type] # the file's form
    assert price(Usage(input_tokens=1, cached_input_tokens=1, output_tokens=1), odd) == 1
    assert price(Usage(input_tokens=999_999, output_tokens=1), odd) == 1
    assert price(Usage(input_tokens=1_000_000, output_tokens=1), odd) == 2


@pytest.mark.parametrize(("text", "tokens"), [("", 0), ("a", 1), ("abcd", 1), ("abcde", 2), ("éé", 1), ("ééé", 2)])
def test_four_bytes_are_a_token(text: str, tokens: int) -> None:
    assert count_tokens(text) == tokens
    assert count_message(text) == tokens + 4


@given(st.text(), st.integers(1, 20))
def test_a_cut_text_is_a_prefix_that_fits(text: str, limit: int) -> None:
    kept = cut_to_tokens(text, limit)
    assert text.startswith(kept)
    assert count_tokens(kept) <= limit
    assert kept == text or len(kept.encode()) > 4 * limit - 4


def test_a_seen_prefix_is_cached_in_steps_of_128() -> None:
    cache = PromptCache(min_tokens=1024)
    system, first, second = ("system", "s" * 4 * 1100), ("user", "first"), ("user", "second")
    assert cache.cached_tokens("acme", "sim", [system, first]) == 0
    assert cache.cached_tokens("acme", "sim", [system, second]) == 1024
    assert cache.cached_tokens("acme", "other", [system, second]) == 0
    assert cache.cached_tokens("acme", "sim", [first, system]) == 0


def test_a_look_at_a_prompt_does_not_remember_it() -> None:
    cache = PromptCache(min_tokens=1024)
    prompt = [("user", "x" * 4 * 1020)]
    assert [cache.cached_tokens("acme", "sim", prompt, remember=False) for _ in range(2)] == [0, 0]
    assert cache.cached_tokens("acme", "sim", prompt) == 0
    assert cache.cached_tokens("acme", "sim", prompt, remember=False) == 1024


def test_a_prefix_below_the_least_length_is_never_cached() -> None:
    cache = PromptCache(min_tokens=1024)
    short, enough = [("user", "x" * 4 * 1019)], [("user", "x" * 4 * 1020)]
    assert [cache.cached_tokens("acme", "sim", short) for _ in range(2)] == [0, 0]
    assert [cache.cached_tokens("acme", "sim", enough) for _ in range(2)] == [0, 1024]


def test_the_command_serves_until_it_is_told_to_stop() -> None:
    command = [sys.executable, "-m", "penstock.providers.simulator", "--port", "0", "--config", str(CONFIG)]
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=CONFIG.parents[1], env=environment) as process:
        assert process.stdout is not None
        line = process.stdout.readline().decode()
        url = line.removeprefix("simulator ready at ").strip()
        with urllib.request.urlopen(f"{url}/health") as answer:
            assert answer.read() == b'{"status": "ok"}'
        process.send_signal(signal.SIGTERM)
        rest = process.stdout.read()
    assert process.returncode == -signal.SIGTERM
    assert rest == b""


def test_the_command_says_what_is_wrong_with_its_configuration(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--config", str(tmp_path / "none.toml")]) == 2
    assert capsys.readouterr().err == (
        f"{tmp_path / 'none.toml'}, the file itself: it does not exist; name one by --config\n"
    )
