"""Bills that others got wrong, as the providers' own bodies tell them: each comes to what the provider charged.

A body is served over HTTP, read by the provider adapter through LiteLLM, and priced by what was published at the time.
The sums are written out in nano-dollars a token: $1.25 a million tokens is 1,250 a token.
"""

import asyncio
from collections.abc import Iterator
from datetime import date
from typing import Any
from uuid import UUID

import pytest
from pydantic import SecretStr

from penstock.money.prices import Price
from penstock.providers.base import Deployment
from penstock.providers.litellm import NOISE, LiteLLMProvider
from penstock.schemas import Message, ModelRequest, Usage
from tests.admission_rooms import Told, listen

pytestmark = [pytest.mark.filterwarnings(f"ignore:{warning}:UserWarning") for warning in NOISE]


@pytest.fixture(scope="module")
def told() -> Iterator[Told]:
    """A provider that gives the answer which a test says."""
    yield from listen()


def price(starts: str, given_input: str, cached_input: str, output: str, **more: Any) -> Price:
    """Write a price as prices.toml would."""
    classes = {"input": given_input, "cached_input": cached_input, "output": output}
    return Price.model_validate({"starts": date.fromisoformat(starts), **classes, **more})


def used(told: Told, model: str, body: dict[str, Any]) -> Usage:
    """Make one real call to a provider that answers so."""
    speaks_openai = not model.startswith(("anthropic/", "gemini/"))
    deployment = Deployment(
        name="billed",
        model=model,
        account="acme",
        api_base=told.url if speaks_openai else told.url.removesuffix("/v1"),
        api_key=SecretStr("sk-test"),
        context_window=1_000_000,
        max_output_tokens=10_000,
    )
    messages = (Message(role="user", content="Good morning."),)
    request = ModelRequest(call_id=UUID(int=1), messages=messages, max_tokens=10_000, timeout_s=30)

    async def call() -> Usage:
        provider = LiteLLMProvider()
        try:
            return (await provider.complete(deployment, request)).usage
        finally:
            await provider.close()

    told.answers(body)
    return asyncio.run(call())


def completion(usage: dict[str, Any]) -> dict[str, Any]:
    """Make the body of an OpenAI chat completion."""
    message = {"role": "assistant", "content": "Good morning."}
    choices = [{"index": 0, "finish_reason": "stop", "message": message}]
    whole = {"id": "chatcmpl-1", "object": "chat.completion", "created": 1, "model": "served"}
    return {**whole, "choices": choices, "usage": usage}


def anthropic_message(usage: dict[str, Any]) -> dict[str, Any]:
    """Make the body of an Anthropic message."""
    content = [{"type": "text", "text": "Good morning."}]
    whole = {"id": "msg_1", "type": "message", "role": "assistant", "model": "served", "stop_reason": "end_turn"}
    return {**whole, "content": content, "usage": usage}


def gemini_response(usage: dict[str, Any]) -> dict[str, Any]:
    """Make the body of a Gemini response."""
    content = {"role": "model", "parts": [{"text": "Good morning."}]}
    return {"candidates": [{"index": 0, "content": content, "finishReason": "STOP"}], "usageMetadata": usage}


CLAUDE_SONNET = price("2025-02-24", "3", "0.30", "15", cache_write="3.75")
"""Claude 3.7 Sonnet, and Sonnet 4 after it."""


def test_gemini_charges_what_it_read_from_its_cache_once_and_a_long_prompt_by_its_tier(told: Told) -> None:
    """LiteLLM #14849: one call to Gemini 2.5 Pro, reported at $0.7642.

    The whole prompt was charged at the price of input, and what came from the cache once more. The reporter's own
    $0.1849 takes the prices of a prompt of up to 200,000 tokens for input and output, and the prompt had more.
    """
    body = {
        "promptTokenCount": 262_960,
        "cachedContentTokenCount": 257_955,
        "candidatesTokenCount": 1_744,
        "totalTokenCount": 264_704,
        "promptTokensDetails": [{"modality": "TEXT", "tokenCount": 262_960}],
    }
    long = {"above": 200_000, "input": "2.50", "cached_input": "0.625", "output": "15"}
    published = price("2025-06-17", "1.25", "0.31", "10", context_tiers=[long])

    usage = used(told, "gemini/gemini-2.5-pro", gemini_response(body))

    assert usage == Usage(input_tokens=5_005, cached_input_tokens=257_955, output_tokens=1_744)
    assert published.cost(usage) == 5_005 * 2_500 + 257_955 * 625 + 1_744 * 15_000 == 199_894_375


def test_anthropic_charges_what_was_written_to_its_cache_once(told: Told) -> None:
    """LiteLLM #9812: one call to Claude 3.7 Sonnet, reported at $0.091311; Anthropic's console said $0.05439.

    What was written to the cache was charged as input, too.
    """
    body = {
        "input_tokens": 3,
        "cache_creation_input_tokens": 12_304,
        "cache_read_input_tokens": 0,
        "output_tokens": 550,
    }

    usage = used(told, "anthropic/claude-3-7-sonnet-20250219", anthropic_message(body))

    assert usage == Usage(input_tokens=3, cache_write_tokens=12_304, output_tokens=550)
    assert CLAUDE_SONNET.cost(usage) == 3 * 3_000 + 12_304 * 3_750 + 550 * 15_000 == 54_399_000


def test_anthropic_charges_what_was_read_from_its_cache_at_a_tenth(told: Told) -> None:
    """LiteLLM #11364: one call to a Claude Sonnet, reported at $0.096093, 7.7 times what it cost.

    What came from the cache was charged as input: 30,946 x 3 + 460 x 3.75 + 102 x 15. The issue shows LiteLLM's log;
    Anthropic's body follows from it: its `input_tokens` are 30,946 - 30,940.
    """
    body = {
        "input_tokens": 6,
        "cache_creation_input_tokens": 460,
        "cache_read_input_tokens": 30_940,
        "output_tokens": 102,
    }

    usage = used(told, "anthropic/claude-sonnet-4-20250514", anthropic_message(body))

    assert usage == Usage(input_tokens=6, cached_input_tokens=30_940, cache_write_tokens=460, output_tokens=102)
    assert CLAUDE_SONNET.cost(usage) == 6 * 3_000 + 30_940 * 300 + 460 * 3_750 + 102 * 15_000 == 12_555_000


@pytest.mark.parametrize("model", ["xai/grok-4", "openai/grok-4"])
@pytest.mark.parametrize(
    ("tokens", "configured", "nanodollars"),
    [
        # 105 x 0.1 + 2,634 x 3,000,000 + 5 x 0.01 = 7,902,000,010.55: the issue's $7.90200001055
        ((2_739, 2_634), price("2025-09-24", "0.0001", "3000", "0.00001"), 7_902_000_011),
        # 108 x 200,000 + 2,585 x 0.01 + 5 x 0.01 = 21,600,025.9
        ((2_693, 2_585), price("2025-09-24", "200", "0.00001", "0.00001"), 21_600_026),
    ],
    ids=["a dear cache", "a cheap cache"],
)
def test_xai_counts_what_it_read_from_its_cache_among_the_text_tokens(
    told: Told, model: str, tokens: tuple[int, int], configured: Price, nanodollars: int
) -> None:
    """LiteLLM #14874: two calls to Grok, under prices that make the error plain.

    xAI's `text_tokens` include what came from the cache, which was therefore charged as input, too: in the second case
    2,693 x $0.0002 = $0.5386 instead of $0.0216. The issue gives 5 tokens of output for the first call only; the second
    is taken to have as many.
    """
    prompt, cached = tokens
    details = {"text_tokens": prompt, "audio_tokens": 0, "image_tokens": 0, "cached_tokens": cached}
    body = {
        "prompt_tokens": prompt,
        "completion_tokens": 5,
        "total_tokens": prompt + 5,
        "prompt_tokens_details": details,
    }

    usage = used(told, model, completion(body))

    assert usage == Usage(input_tokens=prompt - cached, cached_input_tokens=cached, output_tokens=5)
    assert configured.cost(usage) == nanodollars


def test_openrouter_counts_what_was_read_from_the_cache_in_the_prompt(told: Told) -> None:
    """Langfuse #10592: one call through OpenRouter, shown as 35,720 tokens of input instead of 17,903.

    The prompt's tokens and the cached ones were added up. The issue names no model and no output: here it is GPT-4.1 at
    its published price, and one token. The wrong sum would be $0.0447225.
    """
    body = {
        "prompt_tokens": 17_903,
        "completion_tokens": 1,
        "total_tokens": 17_904,
        "prompt_tokens_details": {"cached_tokens": 17_817},
    }

    usage = used(told, "openrouter/openai/gpt-4.1", completion(body))

    assert usage == Usage(input_tokens=86, cached_input_tokens=17_817, output_tokens=1)
    assert usage.prompt_tokens == 17_903
    assert price("2025-04-14", "2", "0.50", "8").cost(usage) == 86 * 2_000 + 17_817 * 500 + 8_000 == 9_088_500


@pytest.mark.parametrize("model", ["xai/grok-4.20", "openai/grok-4.20"])
def test_xai_charges_reasoning_that_it_does_not_count_in_the_completion(told: Told, model: str) -> None:
    """sub2api #5771: one call to Grok 4.20, charged at $0.0162631; xAI's own `cost_in_usd_ticks` is 232,856,000.

    The 2,809 tokens of reasoning were lost. A tick is a tenth of a nano-dollar.
    """
    body = {
        "prompt_tokens": 10_120,
        "completion_tokens": 1_499,
        "total_tokens": 14_428,
        "prompt_tokens_details": {"cached_tokens": 128},
        "completion_tokens_details": {"reasoning_tokens": 2_809},
    }

    usage = used(told, model, completion(body))

    assert usage == Usage(input_tokens=9_992, cached_input_tokens=128, output_tokens=1_499, reasoning_tokens=2_809)
    cost = price("2026-08-01", "1.25", "0.20", "2.50").cost(usage)
    assert cost == 9_992 * 1_250 + 128 * 200 + (1_499 + 2_809) * 2_500 == 232_856_000 // 10


def test_gemini_charges_thoughts_that_it_does_not_count_among_the_candidates(told: Told) -> None:
    """any-llm #1290: one call to Gemini 2.5 Flash, of whose 603 tokens of output 198 were counted."""
    body = {"promptTokenCount": 20, "candidatesTokenCount": 198, "thoughtsTokenCount": 405, "totalTokenCount": 623}

    usage = used(told, "gemini/gemini-2.5-flash", gemini_response(body))

    assert usage == Usage(input_tokens=20, output_tokens=198, reasoning_tokens=405)
    assert price("2025-06-17", "0.30", "0.075", "2.50").cost(usage) == 20 * 300 + 603 * 2_500 == 1_513_500


def test_openai_counts_what_was_written_to_the_cache_in_the_prompt(told: Told) -> None:
    """OpenRouter, GPT-5.6 Terra, generation gen-1786231549-ezBch6AtPHp2yro1s4Er of 8 August 2026: a bill that is right.

    It settles what the documentation leaves open. The body states `upstream_inference_cost` 0.04853125: the writes are
    in `prompt_tokens`, the reasoning is in `completion_tokens`. (Its `cost` adds $0.007 for a search of the web.)
    """
    body = {
        "prompt_tokens": 12_521,
        "completion_tokens": 627,
        "total_tokens": 13_148,
        "cost": 0.05553125,
        "prompt_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 12_518, "audio_tokens": 0},
        "completion_tokens_details": {"reasoning_tokens": 186},
    }

    usage = used(told, "openrouter/openai/gpt-5.6-terra", completion(body))

    assert usage == Usage(input_tokens=3, cache_write_tokens=12_518, output_tokens=441, reasoning_tokens=186)
    cost = price("2026-07-09", "2.50", "0.25", "15", cache_write="3.125").cost(usage)
    assert cost == 3 * 2_500 + 12_518 * 3_125 + 627 * 15_000 == 48_531_250
