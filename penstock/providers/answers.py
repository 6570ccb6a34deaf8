"""What came back from a provider, checked part by part, and what its headers say. It must not know any library."""

import base64
import math
import struct
from collections.abc import Mapping
from typing import Any

from penstock.errors import ProviderError, Reason
from penstock.providers.base import Deployment
from penstock.schemas import ModelAnswer, ReportedLimit, ReportedLimits, Resource, Usage

HEADERS = {
    Resource.REQUESTS: ("x-ratelimit-{}-requests", "anthropic-ratelimit-requests-{}"),
    Resource.TOKENS: ("x-ratelimit-{}-tokens",),
    Resource.INPUT_TOKENS: ("anthropic-ratelimit-input-tokens-{}",),
    Resource.OUTPUT_TOKENS: ("anthropic-ratelimit-output-tokens-{}",),
}
"""OpenAI's headers of rate limits, which many speak, and Anthropic's; `{}` is `limit` or `remaining`."""

CACHE_MAY_STAND_BESIDE_PROMPT = frozenset({"xai"})
"""Providers of which some models count what they read from the cache in the prompt, as all do, and some beside it."""


def read_answer(response: Any, deployment: Deployment, headers: Mapping[str, str]) -> ModelAnswer:
    """Check an answer part by part; raise ProviderError naming the part, with the usage that it will bill."""
    usage = read_usage(response.usage, deployment)
    if not response.choices:
        raise malformed("no choices", usage)
    choice = response.choices[0]
    text, finish_reason = choice.message.content, choice.finish_reason
    if text is None and refused(choice.message):
        finish_reason = "content_filter"
    if text is None and finish_reason not in {"length", "content_filter"}:
        raise malformed("no content", usage)
    if usage.completion_tokens == 0 and finish_reason == "length":
        # LiteLLM's own answer to a 400 "max_tokens was reached"; the usage is its guess, and no truth to settle.
        raise ProviderError(Reason.OUTPUT_TRUNCATED, "max_tokens leaves no room for an answer")
    if usage.completion_tokens == 0 and finish_reason != "content_filter":
        raise malformed("usage without output")
    served = response.model or deployment.model
    return ModelAnswer(
        text=text or "", model_served=served, finish_reason=finish_reason, usage=usage, limits=read_limits(headers)
    )


def read_embedding(response: Any, deployment: Deployment, headers: Mapping[str, str]) -> ModelAnswer:
    """Check an embedding; its vector becomes the text of an answer: 32-bit floats, little-endian, in base64."""
    prompt = response.usage.prompt_tokens if response.usage else 0
    if not is_count(prompt) or prompt == 0:
        raise malformed("usage is missing or is no number of tokens")
    usage = Usage(input_tokens=prompt)
    vectors = [entry["embedding"] for entry in response.data or ()]
    if len(vectors) != 1 or not is_vector(vectors[0]):
        raise malformed("not one vector", usage)
    packed = struct.pack(f"<{len(vectors[0])}f", *vectors[0])
    return ModelAnswer(
        text=base64.b64encode(packed).decode(),
        model_served=response.model or deployment.model,
        finish_reason="stop",
        usage=usage,
        limits=read_limits(headers),
    )


def is_vector(value: object) -> bool:
    """Tell whether a value is a list of finite numbers, not all 0: only such has a direction."""
    return (
        isinstance(value, list)
        and all(isinstance(number, int | float) and math.isfinite(number) for number in value)
        and any(value)
    )


def refused(message: Any) -> bool:
    """Tell whether the model refused in the field that structured outputs have for it."""
    return bool((getattr(message, "provider_specific_fields", None) or {}).get("refusal"))


def read_usage(usage: Any, deployment: Deployment) -> Usage:
    """Turn LiteLLM's counts into price classes; raise ProviderError if they cannot be true.

    LiteLLM brings all providers to OpenAI's form: `prompt_tokens` includes what was read from the cache and what was
    written to it (for Anthropic, whose own `input_tokens` do not, it adds them), and `completion_tokens` includes
    reasoning. A missing count arrives as 0, and no prompt has 0 tokens.
    """
    prompt, total = usage.prompt_tokens, usage.total_tokens
    cached, written = detail(usage.prompt_tokens_details, "cached_tokens", "cache_write_tokens")
    (reasoning,) = detail(usage.completion_tokens_details, "reasoning_tokens")
    if not all(map(is_count, (prompt, usage.completion_tokens, total, cached, written, reasoning))):
        raise malformed("usage is missing or is no number of tokens")
    if cached > prompt > 0 and provider_of(deployment) in CACHE_MAY_STAND_BESIDE_PROMPT:
        prompt += cached
    # A larger total is reasoning that was left out of the completion, as xAI and Gemini do: it was billed as output.
    completion = max(usage.completion_tokens, total - prompt)
    if cached + written > prompt or prompt == 0 or reasoning > completion:
        raise malformed("usage contradicts itself")
    return Usage(
        input_tokens=prompt - cached - written,
        cached_input_tokens=cached,
        cache_write_tokens=written,
        output_tokens=completion - reasoning,
        reasoning_tokens=reasoning,
    )


def detail(details: Any, *names: str) -> tuple[Any, ...]:
    """Give the named counts of a part of the usage that may be missing, as may each of them."""
    return tuple(getattr(details, name, None) or 0 for name in names)


def provider_of(deployment: Deployment) -> str:
    """Name the provider by LiteLLM's name for it."""
    return deployment.model.partition("/")[0]


def is_count(value: object) -> bool:
    """Tell whether a value is a number of tokens; True is an int, and no number."""
    return type(value) is int and value >= 0


def malformed(part: str, usage: Usage | None = None) -> ProviderError:
    """Make the error for an answer that cannot be used."""
    return ProviderError(Reason.MALFORMED_ANSWER, part, status=200, usage=usage)


def read_limits(headers: Mapping[str, str]) -> ReportedLimits:
    """Read what the headers say about the quota; a header that is no number is not there."""
    return tuple(
        ReportedLimit(
            resource=resource,
            per_minute=_first(headers, names, "limit"),
            remaining=_first(headers, names, "remaining"),
        )
        for resource, names in HEADERS.items()
        if any(name.format("limit") in headers or name.format("remaining") in headers for name in names)
    )


def seconds(value: str | None) -> float | None:
    """Read a header's number, or None if it is no finite number from 0."""
    try:
        number = float(value or "")
    except ValueError:
        return None
    return number if math.isfinite(number) and number >= 0 else None


def _first(headers: Mapping[str, str], names: tuple[str, ...], what: str) -> float | None:
    return next((number for name in names if (number := seconds(headers.get(name.format(what)))) is not None), None)
