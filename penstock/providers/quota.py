"""What a provider lets an account use, and what a call counts for. It must not know how that is enforced.

The charge rules are those of the providers' own pages on rate limits: OpenAI takes the larger of the prompt and
`max_tokens`, Azure OpenAI their sum, Anthropic input and output apart, output as it is really produced.
"""

import math
from collections.abc import Mapping
from enum import StrEnum
from functools import cached_property
from typing import Self

from pydantic import Field, model_validator

from penstock.schemas import Frozen, ReportedLimits, Resource, Usage

SECONDS_PER_MINUTE = 60
SHARE_OF_WINDOW = 0.02


class Charge(StrEnum):
    """What a call is charged in tokens when it is taken, and whether the truth changes it afterwards."""

    MAXIMUM = "max(prompt, max_tokens)"
    SUM = "prompt + max_tokens"
    PRODUCED = "prompt + output"
    SPLIT = "input, output"


class Size(Frozen):
    """How large a call is thought to be, in tokens; `output` is what it is expected to give, at most `max_tokens`."""

    prompt: int = Field(ge=0)
    max_tokens: int = Field(ge=0)
    output: int = Field(ge=0)


class QuotaEntry(Frozen):
    """A `[quotas.NAME]` table of models.toml: what one account may use of a model, or of several that share it.

    A resource that is not given is not limited. Where the provider counts in fixed windows, `windows_s` has the length
    of a window by resource: the pool then keeps to a rate and a burst that fit into it wherever it begins.
    """

    rpm: int | None = Field(default=None, gt=0, description="requests a minute")
    tpm: int | None = Field(default=None, gt=0, description="tokens a minute")
    itpm: int | None = Field(default=None, gt=0, description="input tokens a minute")
    otpm: int | None = Field(default=None, gt=0, description="output tokens a minute")
    concurrency: int | None = Field(default=None, gt=0, description="calls in flight")
    charge: Charge = Charge.MAXIMUM
    charge_rejected: bool = Field(default=True, description="a call refused with 429 counts as a request")
    burst_s: float = Field(default=5.0, gt=0, le=60, description="seconds of the rate that may come at once")
    windows_s: dict[Resource, float] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _agree_with_charge(self) -> Self:
        is_split = self.charge is Charge.SPLIT
        if is_split and self.tpm is not None:
            raise ValueError(f"charge {self.charge.value!r} counts itpm and otpm, and tpm is given")
        if not is_split and (self.itpm is not None or self.otpm is not None):
            raise ValueError(f"itpm and otpm need charge = {Charge.SPLIT.value!r}")
        unknown = [name.value for name in self.windows_s if name not in self.per_minute]
        if unknown:
            raise ValueError(f"windows_s names {unknown}, which this quota does not limit")
        if not all(0 < window_s < math.inf for window_s in self.windows_s.values()):
            raise ValueError("a window is longer than 0 s")
        return self

    @cached_property
    def per_minute(self) -> dict[Resource, int]:
        """Give the limits by resource."""
        limits = {
            Resource.REQUESTS: self.rpm,
            Resource.TOKENS: self.tpm,
            Resource.INPUT_TOKENS: self.itpm,
            Resource.OUTPUT_TOKENS: self.otpm,
        }
        return {resource: limit for resource, limit in limits.items() if limit is not None}


class Quota(QuotaEntry):
    """A quota with its name: the pool of all deployments that name it."""

    name: str

    def burst_of(self, resource: Resource) -> float:
        """Give the seconds of the rate that may come at once."""
        window_s = self.windows_s.get(resource)
        return self.burst_s if window_s is None else min(self.burst_s, window_s * SHARE_OF_WINDOW)

    def rate_of(self, resource: Resource, per_minute: float) -> float:
        """Give the units a second: a burst and the flow of one window are together what the window allows."""
        window_s = self.windows_s.get(resource)
        share = 1.0 if window_s is None else 1 - self.burst_of(resource) / window_s
        return per_minute / SECONDS_PER_MINUTE * share

    def charge_of(self, size: Size) -> dict[Resource, int]:
        """Give what a call takes of each limited resource before it is made."""
        return self._limited(
            {
                Resource.REQUESTS: 1,
                Resource.TOKENS: {
                    Charge.MAXIMUM: max(size.prompt, size.max_tokens),
                    Charge.SUM: size.prompt + size.max_tokens,
                    Charge.PRODUCED: size.prompt + size.output,
                    Charge.SPLIT: 0,
                }[self.charge],
                Resource.INPUT_TOKENS: size.prompt,
                Resource.OUTPUT_TOKENS: size.output,
            }
        )

    def charged_for(self, usage: Usage, max_tokens: int) -> dict[Resource, int]:
        """Give what a call has really been charged, by the usage that came back."""
        prompt = usage.prompt_tokens
        return self._limited(
            {
                Resource.REQUESTS: 1,
                Resource.TOKENS: {
                    Charge.MAXIMUM: max(prompt, max_tokens),
                    Charge.SUM: prompt + max_tokens,
                    Charge.PRODUCED: usage.total_tokens,
                    Charge.SPLIT: 0,
                }[self.charge],
                Resource.INPUT_TOKENS: usage.input_tokens + usage.cache_write_tokens,
                Resource.OUTPUT_TOKENS: usage.completion_tokens,
            }
        )

    def charged_for_rejected(self) -> dict[Resource, int]:
        """Give what a call is charged that was refused with 429."""
        return self._limited(dict.fromkeys(Resource, 0) | {Resource.REQUESTS: int(self.charge_rejected)})

    def too_large(self, size: Size) -> Resource | None:
        """Name the resource of which a call needs more than a whole minute gives, so that it can never be taken."""
        return next((name for name, units in self.charge_of(size).items() if units > self.per_minute[name]), None)

    @cached_property
    def most_tokens(self) -> float:
        """Give the tokens of the largest call that a minute gives, prompt and answer together."""
        counted = (Resource.TOKENS, Resource.INPUT_TOKENS)
        return min((self.per_minute[name] for name in counted if name in self.per_minute), default=math.inf)

    def reported_rates(self, reported: ReportedLimits) -> dict[Resource, float]:
        """Turn the limits that a provider reported a minute into units a second, without those that cannot be true."""
        return {
            limit.resource: self.rate_of(limit.resource, limit.per_minute)
            for limit in reported
            if limit.per_minute is not None and math.isfinite(limit.per_minute) and limit.per_minute > 0
        }

    def _limited(self, units: Mapping[Resource, int]) -> dict[Resource, int]:
        return {resource: units[resource] for resource in self.per_minute}
