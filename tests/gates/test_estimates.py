"""What is learnt of sizes: the factor between counts, the length of outputs, and the max_tokens that follows."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

import pytest
import redis
from hypothesis import given
from hypothesis import strategies as st

from penstock.gates.estimates import LEAST_MAX_TOKENS, REFRESH_S, Estimates, Known, size_call
from penstock.gates.scripts import AsyncScripts
from penstock.providers.quota import Charge, Quota, Size
from penstock.schemas import PromptReference, Usage
from penstock.store.redis import async_redis
from tests.hand_clock import HandClock
from workers.embedded import EmbeddedServices

Result = TypeVar("Result")

PROMPT = PromptReference(id="summarise_document", version="1.2.0", digest="d")
MODEL = "openai/gpt-5-mini"
KEY = "{penstock:estimates:openai/gpt-5-mini:summarise_document@1.2.0}"
BASE = 1.1


@pytest.fixture
def with_estimates(
    broker: redis.Redis, services: EmbeddedServices
) -> Callable[[Callable[[Estimates, HandClock], Awaitable[Result]]], Result]:
    """Run something with the estimates of one process, on an empty Redis."""

    def run(use: Callable[[Estimates, HandClock], Awaitable[Result]]) -> Result:
        async def furnished() -> Result:
            async with async_redis(f"unix://{services.redis.socket_path}") as client:
                clock = HandClock()
                return await use(Estimates(AsyncScripts(client), clock), clock)

        return asyncio.run(furnished())

    return run


Run = Callable[[Callable[[Estimates, HandClock], Awaitable[Known]]], Known]


async def observe(
    estimates: Estimates, times: int, *, counted: int = 1000, prompt: int = 1000, output: int = 90
) -> None:
    for _ in range(times):
        await estimates.observe(MODEL, PROMPT, counted, Usage(input_tokens=prompt, output_tokens=output), output)


def test_nothing_is_known_before_the_first_answer(with_estimates: Run) -> None:
    async def use(estimates: Estimates, _: HandClock) -> Known:
        return await estimates.known(MODEL, PROMPT)

    assert with_estimates(use) == Known(1.0, None)


def test_the_factor_is_the_mean_of_the_first_answers_and_forgets_slowly_after_twenty(with_estimates: Run) -> None:
    async def use(estimates: Estimates, _: HandClock) -> Known:
        await observe(estimates, 1, prompt=1200)
        await observe(estimates, 1, prompt=1400)
        assert (await estimates.known(MODEL, PROMPT)).factor == pytest.approx(1.3)
        await observe(estimates, 18, prompt=1300)
        await observe(estimates, 1, prompt=2300)
        return await estimates.known(MODEL, PROMPT)

    assert with_estimates(use).factor == pytest.approx(1.3 + 0.05 * 1.0)


def test_cached_tokens_are_part_of_the_prompt(with_estimates: Run) -> None:
    async def use(estimates: Estimates, _: HandClock) -> Known:
        usage = Usage(input_tokens=300, cached_input_tokens=700, output_tokens=1)
        await estimates.observe(MODEL, PROMPT, 1000, usage, 1)
        return await estimates.known(MODEL, PROMPT)

    assert with_estimates(use).factor == 1.0


def test_the_length_of_outputs_is_known_from_the_hundredth_on(with_estimates: Run) -> None:
    async def use(estimates: Estimates, _: HandClock) -> Known:
        await observe(estimates, 99, output=90)
        assert (await estimates.known(MODEL, PROMPT)).output_p99 is None
        await observe(estimates, 1, output=90)
        return await estimates.known(MODEL, PROMPT)

    bound = with_estimates(use).output_p99
    assert bound == 98  # the smallest power of 1.1 from 90 on is 97.02


def test_one_long_output_of_a_hundred_does_not_count_and_two_do(with_estimates: Run) -> None:
    async def use(estimates: Estimates, _: HandClock) -> Known:
        await observe(estimates, 99, output=90)
        await observe(estimates, 1, output=700)
        assert (await estimates.known(MODEL, PROMPT)).output_p99 == 98
        await observe(estimates, 1, output=700)
        return await estimates.known(MODEL, PROMPT)

    assert with_estimates(use).output_p99 == 718  # 1.1^69 is 717.9, 1.1^68 is 652.6


def test_old_lengths_are_forgotten_as_new_ones_come(with_estimates: Run) -> None:
    async def use(estimates: Estimates, _: HandClock) -> Known:
        await observe(estimates, 1999, output=700)
        for _round in range(9):
            await observe(estimates, 1000, output=90)
        return await estimates.known(MODEL, PROMPT)

    assert with_estimates(use).output_p99 == 98


def test_processes_learn_together_and_hear_of_it_within_half_a_minute(
    with_estimates: Run, services: EmbeddedServices
) -> None:
    async def use(estimates: Estimates, clock: HandClock) -> Known:
        assert await estimates.known(MODEL, PROMPT) == Known()
        async with async_redis(f"unix://{services.redis.socket_path}") as client:
            await observe(Estimates(AsyncScripts(client), HandClock()), 1, prompt=1500)
        clock.elapsed_s = REFRESH_S - 0.1
        assert await estimates.known(MODEL, PROMPT) == Known()
        clock.elapsed_s = REFRESH_S
        return await estimates.known(MODEL, PROMPT)

    assert with_estimates(use).factor == 1.5


def test_what_is_known_expires_when_nobody_learns_for_a_month(with_estimates: Run, broker: redis.Redis) -> None:
    async def use(estimates: Estimates, _: HandClock) -> Known:
        await observe(estimates, 1)
        return await estimates.known(MODEL, PROMPT)

    with_estimates(use)
    assert list(broker.scan_iter()) == [KEY]
    assert 29 * 86_400 < int(broker.ttl(KEY)) <= 30 * 86_400


def test_a_redis_that_is_away_leaves_what_was_known(with_estimates: Run) -> None:
    async def use(estimates: Estimates, clock: HandClock) -> Known:
        await observe(estimates, 1, prompt=1500)
        clock.elapsed_s = REFRESH_S + 1
        async with async_redis("unix:///nowhere") as nobody:
            estimates.scripts = AsyncScripts(nobody)
            return await estimates.known(MODEL, PROMPT)

    assert with_estimates(use).factor == 1.5


def quota(charge: Charge) -> Quota:
    limits = {"itpm": 9, "otpm": 9} if charge is Charge.SPLIT else {"tpm": 9}
    return Quota.model_validate({"name": "q", "charge": charge, **limits})


KNOWN = Known(factor=1.25, output_p99=200)


@pytest.mark.parametrize(
    ("charge", "size"),
    [
        (Charge.SUM, Size(prompt=500, max_tokens=240, output=240)),
        (Charge.MAXIMUM, Size(prompt=500, max_tokens=500, output=240)),
        (Charge.PRODUCED, Size(prompt=500, max_tokens=768, output=240)),
        (Charge.SPLIT, Size(prompt=500, max_tokens=768, output=240)),
    ],
)
def test_max_tokens_is_lowered_only_where_that_saves_quota(charge: Charge, size: Size) -> None:
    assert size_call(KNOWN, quota(charge), 400, 768) == size


def test_max_tokens_is_that_of_the_prompt_without_a_quota_and_while_little_is_known() -> None:
    assert size_call(KNOWN, None, 400, 768) == Size(prompt=500, max_tokens=768, output=240)
    assert size_call(Known(), quota(Charge.SUM), 400, 768) == Size(prompt=400, max_tokens=768, output=768)


def test_a_repeat_gets_all_that_the_prompt_allows() -> None:
    assert size_call(KNOWN, quota(Charge.SUM), 400, 768, is_repeat=True) == Size(prompt=500, max_tokens=768, output=768)


@given(
    factor=st.floats(0.1, 10),
    p99=st.none() | st.integers(1, 5000),
    counted=st.integers(0, 10**6),
    most=st.integers(1, 5000),
    charge=st.sampled_from(Charge),
    is_repeat=st.booleans(),
)
def test_a_size_never_goes_beyond_the_prompts_bound(
    factor: float, p99: int | None, counted: int, most: int, charge: Charge, *, is_repeat: bool
) -> None:
    size = size_call(Known(factor, p99), quota(charge), counted, most, is_repeat=is_repeat)
    assert size.output <= size.max_tokens <= most
    assert size.max_tokens >= min(most, LEAST_MAX_TOKENS)
    assert counted * factor <= size.prompt < counted * factor + 1
