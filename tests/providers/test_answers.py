"""What LiteLLM reports becomes price classes: each token in exactly one, and none is lost."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from litellm.types.utils import Choices, ModelResponse
from litellm.types.utils import Message as ReportedMessage
from litellm.types.utils import Usage as Reported

from penstock.errors import ProviderError, Reason
from penstock.providers.answers import read_answer, read_usage
from penstock.providers.base import Deployment
from penstock.schemas import Usage


def at(model: str = "openai/small-1") -> Deployment:
    """Name a deployment of a model."""
    return Deployment(name="small", model=model, account="acme", context_window=8192, max_output_tokens=1024)


def reported(prompt: int, completion: int, total: int | None = None, **details: int) -> Reported:
    """Report as an OpenAI body does: `cached`, `written` and `reasoning` are details."""
    of_prompt = {"cached_tokens": details.get("cached"), "cache_write_tokens": details.get("written")}
    return Reported(
        prompt_tokens=prompt,
        completion_tokens=completion,
        total_tokens=prompt + completion if total is None else total,
        prompt_tokens_details=of_prompt,
        completion_tokens_details={"reasoning_tokens": details.get("reasoning")},
    )


READ = {
    "no details": (Reported(prompt_tokens=10, completion_tokens=3), Usage(input_tokens=10, output_tokens=3)),
    "read from the cache": (
        reported(10, 3, cached=4),
        Usage(input_tokens=6, cached_input_tokens=4, output_tokens=3),
    ),
    "all read from the cache": (reported(10, 3, cached=10), Usage(cached_input_tokens=10, output_tokens=3)),
    "written to the cache": (
        reported(10, 3, cached=4, written=5),
        Usage(input_tokens=1, cached_input_tokens=4, cache_write_tokens=5, output_tokens=3),
    ),
    "written, in Anthropic's words": (
        Reported(prompt_tokens=10, completion_tokens=3, cache_creation_input_tokens=7, cache_read_input_tokens=2),
        Usage(input_tokens=1, cached_input_tokens=2, cache_write_tokens=7, output_tokens=3),
    ),
    "read, in DeepSeek's words": (
        Reported(prompt_tokens=10, completion_tokens=3, prompt_cache_hit_tokens=8, prompt_cache_miss_tokens=2),
        Usage(input_tokens=2, cached_input_tokens=8, output_tokens=3),
    ),
    "reasoning in the completion": (
        reported(10, 30, reasoning=20),
        Usage(input_tokens=10, output_tokens=10, reasoning_tokens=20),
    ),
    "nothing but reasoning": (reported(10, 30, reasoning=30), Usage(input_tokens=10, reasoning_tokens=30)),
    "reasoning beside the completion": (
        reported(10, 3, 33, reasoning=20),
        Usage(input_tokens=10, output_tokens=3, reasoning_tokens=20),
    ),
    "reasoning beside a completion of nothing": (
        reported(21, 0, 81, reasoning=60),
        Usage(input_tokens=21, reasoning_tokens=60),
    ),
    "a total that nothing explains": (reported(10, 3, 33), Usage(input_tokens=10, output_tokens=23)),
    "a total that reasoning explains in part": (
        reported(10, 3, 33, reasoning=15),
        Usage(input_tokens=10, output_tokens=8, reasoning_tokens=15),
    ),
    "a total that is missing": (reported(10, 3, 0), Usage(input_tokens=10, output_tokens=3)),
    "a total that leaves something out": (reported(10, 3, 12), Usage(input_tokens=10, output_tokens=3)),
}


@pytest.mark.parametrize(("usage", "read"), READ.values(), ids=READ)
def test_usage_is_read_into_price_classes(usage: Reported, read: Usage) -> None:
    assert read_usage(usage, at()) == read


def test_of_xai_what_was_read_from_the_cache_may_stand_beside_the_prompt() -> None:
    usage = reported(4_142, 10, cached=4_328)
    assert read_usage(usage, at("xai/grok-4-1-fast")) == Usage(
        input_tokens=4_142, cached_input_tokens=4_328, output_tokens=10
    )
    with pytest.raises(ProviderError):
        read_usage(usage, at("openai/grok-4-1-fast"))


CONTRADICTIONS = {
    "no prompt": reported(0, 3),
    "more read from the cache than there was": reported(3, 3, cached=4),
    "more read and written than there was": reported(10, 3, cached=6, written=5),
    "more reasoning than there was": reported(10, 3, reasoning=4),
    "a negative prompt": reported(-1, 3),
    "a negative completion": reported(10, -3, 0),
    "a negative total": reported(10, 3, -1),
    "less than nothing read": reported(10, 3, cached=-1),
    "less than nothing written": reported(10, 3, written=-1),
    "less than no reasoning": reported(10, 3, reasoning=-1),
    "nothing at all": Reported(),
}


@pytest.mark.parametrize("usage", CONTRADICTIONS.values(), ids=CONTRADICTIONS)
def test_usage_that_cannot_be_true_is_malformed(usage: Reported) -> None:
    with pytest.raises(ProviderError) as refusal:
        read_usage(usage, at())
    assert (refusal.value.reason, refusal.value.status, refusal.value.usage) == (Reason.MALFORMED_ANSWER, 200, None)


counts = st.integers(0, 10_000)
all_details = st.fixed_dictionaries({"cached": counts, "written": counts, "reasoning": counts})


@given(counts, counts, counts, all_details)
def test_no_token_is_lost_or_counted_twice(
    prompt: int, completion: int, total: int, given_details: dict[str, int]
) -> None:
    cached, written, reasoning = (given_details[name] for name in ("cached", "written", "reasoning"))
    try:
        read = read_usage(reported(prompt, completion, total, **given_details), at())
    except ProviderError:
        assert prompt == 0 or cached + written > prompt or reasoning > max(completion, total - prompt)
        return
    assert read.prompt_tokens == prompt
    assert read.total_tokens == max(total, prompt + completion)
    assert (read.cached_input_tokens, read.cache_write_tokens) == (cached, written)
    assert read.reasoning_tokens == reasoning


def response(content: str | None, finish_reason: str, usage: Reported) -> Any:
    """Make LiteLLM's response."""
    choice = Choices(finish_reason=finish_reason, message=ReportedMessage(content=content, role="assistant"))
    return ModelResponse(model="served", choices=[choice], usage=usage)


def test_an_answer_that_was_cut_while_it_reasoned_is_an_answer_and_billed() -> None:
    answer = read_answer(response(None, "length", reported(10, 500, reasoning=500)), at(), {})
    assert (answer.text, answer.finish_reason) == ("", "length")
    assert answer.usage == Usage(input_tokens=10, reasoning_tokens=500)


def test_an_answer_of_no_tokens_is_refused() -> None:
    with pytest.raises(ProviderError, match="usage without output"):
        read_answer(response("A.", "stop", reported(10, 0)), at(), {})
