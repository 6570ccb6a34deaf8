"""How large a call will be, learnt from how large the last ones were. It must not know what a call is about.

A local tokenizer counts; the factor between its count and the provider's is learnt for each model and prompt version,
as is the length that 99 of 100 answers keep to. All processes learn together, through Redis.
"""

import math
from dataclasses import dataclass, field

from redis.exceptions import RedisError

from penstock.clock import Clock
from penstock.gates.scripts import AsyncScripts
from penstock.providers.quota import Charge, Quota, Size
from penstock.schemas import PromptReference, Usage

REFRESH_S = 30.0
ROOM = 1.2
LEAST_MAX_TOKENS = 64


@dataclass(frozen=True)
class Known:
    """What is known of a model under a prompt version; `output_p99` in tokens, None while too little is known."""

    factor: float = 1.0
    output_p99: int | None = None


@dataclass
class Estimates:
    """What this process has heard last, and asks for again when it is older than half a minute."""

    scripts: AsyncScripts
    clock: Clock
    _known: dict[str, tuple[float, Known]] = field(default_factory=dict)

    async def known(self, model: str, prompt: PromptReference) -> Known:
        """Give what is known; what was known before, or nothing, when Redis is away."""
        key = _key(model, prompt)
        heard_at_s, known = self._known.get(key, (-math.inf, Known()))
        if self.clock.monotonic_s() - heard_at_s < REFRESH_S:
            return known
        try:
            return await self._hear(key, {})
        except RedisError:
            return known

    async def observe(self, model: str, prompt: PromptReference, counted: int, usage: Usage, output: int) -> None:
        """Learn from an answer: `counted` prompt tokens by the local tokenizer, `output` tokens it had or wanted."""
        await self._hear(_key(model, prompt), {"counted": counted, "prompt": usage.prompt_tokens, "output": output})

    async def _hear(self, key: str, given: dict[str, object]) -> Known:
        answer = await self.scripts.run("observe", [key], given)
        known = Known(answer["factor"], answer.get("output_p99"))
        self._known[key] = (self.clock.monotonic_s(), known)
        return known


def size_call(known: Known, quota: Quota | None, counted: int, most: int, *, is_repeat: bool = False) -> Size:
    """Say how large a call will be, and choose its `max_tokens`, which is at most `most`.

    Where the quota is charged by `max_tokens`, that is a fifth above what 99 of 100 answers keep to, but never so low
    that it saves nothing; the hundredth is asked again as a repeat, with all that the prompt allows.
    """
    prompt = math.ceil(counted * known.factor)
    usual = most if known.output_p99 is None else min(most, max(LEAST_MAX_TOKENS, math.ceil(known.output_p99 * ROOM)))
    max_tokens = most
    if quota is not None and not is_repeat:
        if quota.charge is Charge.SUM:
            max_tokens = usual
        elif quota.charge is Charge.MAXIMUM:
            max_tokens = min(most, max(usual, prompt))
    return Size(prompt=prompt, max_tokens=max_tokens, output=max_tokens if is_repeat else min(usual, max_tokens))


def _key(model: str, prompt: PromptReference) -> str:
    return f"{{penstock:estimates:{model}:{prompt.id}@{prompt.version}}}"
