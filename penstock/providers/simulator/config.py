"""What the simulator's models cost, allow and take. It must not know how a request is served."""

import math
import random
import tomllib
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import BeforeValidator, Field, ValidationError, model_validator

from penstock.errors import ConfigurationError
from penstock.providers.simulator.charges import Resource, Rule
from penstock.schemas import Frozen, NanoDollars

NANODOLLARS_PER_DOLLAR = 1_000_000_000


def _to_nanodollars(dollars: object) -> NanoDollars:
    if not isinstance(dollars, str):
        msg = "a price is dollars per million tokens as a decimal string, such as '0.15'"
        raise ValueError(msg)  # noqa: TRY004 - pydantic reports a ValueError with its key, not a TypeError
    try:
        exact = Decimal(dollars) * NANODOLLARS_PER_DOLLAR
    except InvalidOperation as error:
        msg = f"{dollars!r} is not a decimal number"
        raise ValueError(msg) from error
    if not exact.is_finite() or exact < 0 or exact != int(exact):
        msg = f"{dollars!r} is not a whole number of nano-dollars"
        raise ValueError(msg)
    return int(exact)


Price = Annotated[NanoDollars, BeforeValidator(_to_nanodollars)]


class Prices(Frozen):
    """Nano-dollars per million tokens; in the file dollars per million tokens, as decimal strings."""

    input: Price
    cached_input: Price
    output: Price


class Latency(Frozen):
    """How long a call takes: a lognormal time to the first token, then a fixed time per output token."""

    median_ms: float = Field(default=0.0, ge=0)
    sigma: float = Field(default=0.0, ge=0)
    ms_per_output_token: float = Field(default=0.0, ge=0)

    def first_token_ms(self, source: random.Random) -> float:
        """Draw the time to the first token in milliseconds."""
        return self.median_ms * math.exp(self.sigma * source.gauss(0.0, 1.0))


class ModelConfig(Frozen):
    """One model: what it answers, what it allows per account, what it costs and how long it takes."""

    kind: Literal["chat", "embedding"] = "chat"
    rpm: int = Field(gt=0, description="requests per minute and account")
    tpm: int | None = Field(default=None, gt=0, description="tokens per minute and account")
    itpm: int | None = Field(default=None, gt=0, description="input tokens per minute and account, with otpm")
    otpm: int | None = Field(default=None, gt=0, description="output tokens per minute and account, with itpm")
    charge: Rule = Field(default="max(prompt, max_tokens)", description="what a call uses up")
    refill: Literal["continuous", "windows"] = "continuous"
    slice_s: int = Field(default=10, ge=1, le=10, description="seconds in which requests are counted, with windows")
    max_concurrency: int = Field(gt=0, description="requests in flight per account")
    context_window: int = Field(gt=0, description="tokens of prompt and answer together")
    max_output: int = Field(gt=0, description="tokens of one answer")
    latency: Latency = Latency()
    prices: Prices

    @model_validator(mode="after")
    def _agree(self) -> Self:
        if self.charge == "input, output":
            if self.itpm is None or self.otpm is None or self.tpm is not None:
                raise ValueError("charge 'input, output' takes both itpm and otpm, and no tpm")
            if self.refill == "windows":
                raise ValueError("charge 'input, output' takes refill 'continuous'")
        elif self.tpm is None or self.itpm is not None or self.otpm is not None:
            raise ValueError(f"charge {self.charge!r} takes tpm; itpm and otpm belong to charge 'input, output'")
        if self.refill == "continuous" and "slice_s" in self.model_fields_set:
            raise ValueError("slice_s belongs to refill 'windows'")
        return self

    @property
    def quotas(self) -> dict[Resource, int]:
        """Give what a minute allows of each resource that is limited, requests first."""
        limits: dict[Resource, int | None] = {
            "requests": self.rpm,
            "tokens": self.tpm,
            "input_tokens": self.itpm,
            "output_tokens": self.otpm,
        }
        return {resource: limit for resource, limit in limits.items() if limit is not None}

    @property
    def limits(self) -> dict[str, int]:
        """Give all limits by their names in the file, without those that the model has not."""
        return self.model_dump(include={"rpm", "tpm", "itpm", "otpm", "max_concurrency"}, exclude_none=True)


class SimulatorConfig(Frozen):
    """The whole simulator."""

    seed: int = Field(default=0, description="of latencies and of faults with a probability")
    burst_s: float = Field(default=10.0, gt=0, description="seconds of rate that a token bucket can hold")
    charge_rejected: bool = Field(default=False, description="a call refused with 429 uses up a request")
    rate_limit_headers: bool = Field(default=True, description="answers show the limits")
    batch_polls: int = Field(default=2, ge=0, description="how often a batch is looked at before it has ended")
    prompt_cache_min_tokens: int = Field(default=1024, ge=1, description="shorter prefixes are never cached input")
    models: dict[str, ModelConfig] = Field(min_length=1)


def load_config(path: Path) -> SimulatorConfig:
    """Read a TOML file; raise ConfigurationError that names the file and the key."""
    try:
        with path.open("rb") as file:
            return SimulatorConfig.model_validate(tomllib.load(file))
    except FileNotFoundError as error:
        raise ConfigurationError(str(path), "the file itself", "it does not exist", "name one by --config") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigurationError(str(path), "its TOML", str(error), "correct the syntax there") from error
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        raise ConfigurationError(str(path), f"key {key!r}", first["msg"], "see docs/simulator.md") from error
