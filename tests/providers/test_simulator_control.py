"""What a bench asks of the simulator and tells it over HTTP, with each kind of limits. Time stands still."""

from typing import Any

import httpx
import pytest

from penstock.providers.simulator.accepted import NEWEST, Accepted
from penstock.providers.simulator.charges import Charge
from penstock.providers.simulator.config import SimulatorConfig
from penstock.providers.simulator.server import running
from tests.hand_clock import HandClock
from tests.providers.test_simulator_limits import CONTINUOUS, SPLIT, WINDOWS

PRICES = {"input": "0.15", "cached_input": "0.075", "output": "0.60"}
COMMON = {"max_concurrency": 2, "context_window": 50_000, "max_output": 1000, "prices": PRICES}
MODELS = {
    "sim": {**COMMON, **CONTINUOUS},
    "sim-windows": {**COMMON, **WINDOWS, "slice_s": 5},
    "sim-split": {**COMMON, **SPLIT},
}
CONFIG = SimulatorConfig.model_validate({"models": MODELS})
TEXT = "The cat sat on the mat."  # 10 tokens as a prompt, 6 as an answer


def chat(
    client: httpx.Client, model: str = "sim", text: str = TEXT, account: str = "acme", **fields: Any
) -> httpx.Response:
    body = {"model": model, "messages": [{"role": "user", "content": text}], **fields}
    return client.post("/v1/chat/completions", json=body, headers={"authorization": f"Bearer {account}"})


def limit_headers(answer: httpx.Response) -> dict[str, str]:
    return {name: value for name, value in answer.headers.items() if "ratelimit" in name}


def charged(client: httpx.Client, model: str) -> dict[str, dict[str, int]]:
    sums: dict[str, dict[str, int]] = client.get("/stats").json()["models"][model]["charged"]
    return sums


def test_the_split_shows_its_limits_as_anthropic_does(client: httpx.Client, clock: HandClock) -> None:
    chat(client, "sim-split")
    clock.elapsed_s = 0.05
    assert limit_headers(chat(client, "sim-split")) == {
        "anthropic-ratelimit-requests-limit": "60",
        "anthropic-ratelimit-requests-remaining": "8",
        "anthropic-ratelimit-requests-reset": "2026-01-31T12:00:02Z",
        "anthropic-ratelimit-input-tokens-limit": "6000",
        "anthropic-ratelimit-input-tokens-remaining": "985",
        "anthropic-ratelimit-input-tokens-reset": "2026-01-31T12:00:01Z",
        "anthropic-ratelimit-output-tokens-limit": "600",
        "anthropic-ratelimit-output-tokens-remaining": "94",
        "anthropic-ratelimit-output-tokens-reset": "2026-01-31T12:00:01Z",
    }


def test_the_split_refuses_while_output_is_owed(client: httpx.Client, clock: HandClock) -> None:
    assert chat(client, "sim-split", "x" * 4 * 120).json()["usage"]["completion_tokens"] == 120
    refused = chat(client, "sim-split")
    assert (refused.status_code, refused.json()["error"]["type"]) == (429, "tokens")
    assert "on output tokens" in refused.json()["error"]["message"]
    assert (refused.headers["retry-after"], refused.headers["retry-after-ms"]) == ("3", "2001")
    assert refused.headers["anthropic-ratelimit-output-tokens-remaining"] == "0"
    clock.elapsed_s = 2.001
    assert chat(client, "sim-split").status_code == 200


def test_cached_input_is_not_charged_where_input_and_output_are_split(client: httpx.Client) -> None:
    client.post("/limits", json={"model": "sim-split", "itpm": 60_000}).raise_for_status()
    for _ in range(2):
        assert chat(client, "sim-split", "x" * 4 * 1100, max_tokens=1).status_code == 200
    assert charged(client, "sim-split") == {
        "acme": {"requests": 2, "input_tokens": 1104 + 1104 - 1024, "output_tokens": 2}
    }


def test_windows_charge_prompt_and_max_tokens_and_show_what_is_left_of_window_and_slice(
    client: httpx.Client, clock: HandClock
) -> None:
    clock.elapsed_s = 2.0
    assert limit_headers(chat(client, "sim-windows", max_tokens=990)) == {
        "x-ratelimit-limit-requests": "60",
        "x-ratelimit-remaining-requests": "4",
        "x-ratelimit-reset-requests": "3s",
        "x-ratelimit-limit-tokens": "6000",
        "x-ratelimit-remaining-tokens": "5000",
        "x-ratelimit-reset-tokens": "58s",
    }


def test_windows_refuse_until_the_slice_or_the_window_ends(client: httpx.Client, clock: HandClock) -> None:
    assert [chat(client, "sim-windows").status_code for _ in range(6)] == [200] * 5 + [429]
    assert chat(client, "sim-windows").headers["retry-after-ms"] == "5000"
    clock.elapsed_s = 5.0
    refused = chat(client, "sim-windows", "x" * 4 * 5990)
    assert (refused.status_code, refused.json()["error"]["type"]) == (429, "tokens")
    assert (refused.headers["retry-after"], refused.headers["retry-after-ms"]) == ("55", "55000")
    assert "retry-after" not in chat(client, "sim-windows", "x" * 4 * 6000).headers


def test_no_limits_are_shown_where_that_is_configured() -> None:
    silent = CONFIG.model_copy(update={"rate_limit_headers": False})
    with running(silent, clock=HandClock()) as url, httpx.Client(base_url=url) as client:
        for model in MODELS:
            answers = [chat(client, model) for _ in range(11)]
            assert [limit_headers(answer) for answer in answers] == [{}] * 11
            assert answers[-1].status_code == 429
            assert "retry-after" in answers[-1].headers


def test_changed_limits_hold_at_once_and_until_a_reset(client: httpx.Client) -> None:
    assert chat(client).status_code == 200
    changed = client.post("/limits", json={"model": "sim", "rpm": 6, "max_concurrency": 9})
    assert changed.json() == {"model": "sim", "account": None, "rpm": 6, "tpm": 6000, "max_concurrency": 9}
    answers = [chat(client), chat(client), chat(client, account="later")]
    assert [answer.status_code for answer in answers] == [200, 429, 200]
    assert [answer.headers["x-ratelimit-limit-requests"] for answer in answers] == ["6"] * 3
    client.post("/reset").raise_for_status()
    assert chat(client).headers["x-ratelimit-remaining-requests"] == "9"


def test_limits_of_one_account_are_no_other_accounts(client: httpx.Client) -> None:
    change = {"model": "sim-split", "account": "later", "itpm": 60, "otpm": 6}
    assert client.post("/limits", json=change).json() == {**change, "rpm": 60, "max_concurrency": 2}
    shown = {name: limit_headers(chat(client, "sim-split", account=name)) for name in ("acme", "later")}
    assert shown["acme"]["anthropic-ratelimit-input-tokens-limit"] == "6000"
    assert shown["later"]["anthropic-ratelimit-input-tokens-limit"] == "60"
    assert shown["later"]["anthropic-ratelimit-output-tokens-limit"] == "6"


WRONG_LIMITS = {
    "no model": ({"rpm": 1}, "missing_required_parameter", "model"),
    "another model": ({"model": "gpt", "rpm": 1}, "invalid_value", "model"),
    "no limit": ({"model": "sim"}, "invalid_value", None),
    "only null": ({"model": "sim", "rpm": None}, "invalid_value", None),
    "no rate": ({"model": "sim", "rpm": 0}, "invalid_value", "rpm"),
    "text": ({"model": "sim", "rpm": "1"}, "invalid_type", "rpm"),
    "no account": ({"model": "sim", "account": "", "rpm": 1}, "invalid_value", "account"),
    "unknown": ({"model": "sim", "rpm": 1, "rps": 1}, "unknown_parameter", "rps"),
    "not of the model": ({"model": "sim", "rpm": 1, "otpm": 1}, "invalid_value", "otpm"),
    "not of the split": ({"model": "sim-split", "rpm": 1, "tpm": 1}, "invalid_value", "tpm"),
    "a list": ([{"model": "sim", "rpm": 1}], None, None),
}


@pytest.mark.parametrize("case", WRONG_LIMITS)
def test_wrong_limits_are_refused_and_change_nothing(client: httpx.Client, case: str) -> None:
    body, code, param = WRONG_LIMITS[case]
    answer = client.post("/limits", json=body)
    error = answer.json()["error"]
    assert (answer.status_code, error["code"], error["param"]) == (400, code, param)
    assert chat(client).headers["x-ratelimit-limit-requests"] == "60"
    assert chat(client, "sim-split").headers["anthropic-ratelimit-requests-limit"] == "60"


def test_stats_sum_what_each_account_was_charged(client: httpx.Client) -> None:
    for account in ("acme", "acme", "later"):
        chat(client, account=account, max_tokens=100)
        chat(client, "sim-windows", account=account, max_tokens=100)
        chat(client, "sim-split", account=account)
    assert chat(client, text="x" * 4 * 6000).status_code == 429
    assert charged(client, "sim") == {
        "acme": {"requests": 2, "tokens": 200},
        "later": {"requests": 1, "tokens": 100},
    }
    assert charged(client, "sim-windows") == {
        "acme": {"requests": 2, "tokens": 220},
        "later": {"requests": 1, "tokens": 110},
    }
    assert charged(client, "sim-split") == {
        "acme": {"requests": 2, "input_tokens": 20, "output_tokens": 12},
        "later": {"requests": 1, "input_tokens": 10, "output_tokens": 6},
    }


def test_accepted_calls_are_listed_with_what_they_were_charged(client: httpx.Client, clock: HandClock) -> None:
    chat(client, max_tokens=100)
    assert chat(client, text="x" * 4 * 6000).status_code == 429
    clock.elapsed_s = 1.5
    chat(client, "sim-split", account="later")
    first, admitted, produced = [0.0, "acme", 1, 100], [1.5, "later", 1, 10, 0], [1.5, "later", 0, 0, 6]
    assert client.get("/accepted").json() == [first, admitted, produced]
    assert client.get("/accepted?since=1.5").json() == [admitted, produced]
    assert client.get("/accepted?model=sim").json() == [first]
    assert client.get("/accepted?since=0.1&model=sim").json() == []
    client.post("/reset").raise_for_status()
    assert client.get("/accepted").json() == []


@pytest.mark.parametrize(
    ("query", "param"), [("since=soon", "since"), ("since=nan", "since"), ("since=", "since"), ("model=gpt", "model")]
)
def test_accepted_calls_are_asked_for_by_seconds_and_a_model_that_is_there(
    client: httpx.Client, query: str, param: str
) -> None:
    answer = client.get(f"/accepted?{query}")
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, param)


def test_only_the_newest_accepted_calls_are_kept() -> None:
    accepted = Accepted()
    for number in range(NEWEST + 1):
        accepted.add("acme", "sim", Charge(float(number), {"requests": 1, "tokens": number}))
    rows = accepted.rows(0.0, None)
    assert len(rows) == 100_000
    assert (rows[0], rows[-1]) == ([1.0, "acme", 1, 1], [100_000.0, "acme", 1, 100_000])
