"""How three kinds of providers limit, as the simulator and as a quota of Penstock say it. It must not know any load."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from penstock.providers.quota import Quota
from penstock.providers.simulator.config import ModelConfig, SimulatorConfig

MODEL = "sim"
LATENCY = {"median_ms": 1000, "sigma": 0.4, "ms_per_output_token": 2}
PRICES = {"input": "0.15", "cached_input": "0.075", "output": "0.60"}
CONCURRENCY = 200


@dataclass(frozen=True)
class Semantics:
    """What a provider allows a minute, and how it counts.

    `window_s` is the length of what it counts in, of which only whole ones can be measured; `charge_rejected` says
    that a refused call counts as a request; `headers` that answers show the limits.
    """

    name: str
    limits: Mapping[str, int]
    charge: str
    refill: str = "continuous"
    windows_s: Mapping[str, int] = field(default_factory=dict)
    charge_rejected: bool = False
    headers: bool = True

    @property
    def window_s(self) -> int:
        """Give the seconds of the longest window; 1 where there is none."""
        return max(self.windows_s.values(), default=1)

    @property
    def tokens_per_s(self) -> float:
        """Give the rate of the resource that binds: all tokens, or those of the prompts."""
        return self.limits.get("tpm", self.limits.get("itpm", 0)) / 60

    def times(self, factor: float) -> "Semantics":
        """Give the same with other limits: what somebody configures who is wrong by a factor."""
        return replace(self, limits={name: round(limit * factor) for name, limit in self.limits.items()})

    def as_simulator(self) -> dict[str, Any]:
        """Give the content of simulator.toml. No prompt is cached: each costs what it costs."""
        model: dict[str, Any] = {
            **self.limits,
            "charge": self.charge,
            "refill": self.refill,
            "max_concurrency": CONCURRENCY,
            "context_window": 200_000,
            "max_output": 4096,
            "latency": LATENCY,
            "prices": PRICES,
        }
        if self.windows_s:
            model["slice_s"] = self.windows_s["requests"]
        return {
            "seed": 1,
            "burst_s": 10,
            "charge_rejected": self.charge_rejected,
            "rate_limit_headers": self.headers,
            "prompt_cache_min_tokens": 1_000_000,
            f"models.{MODEL}": model,
        }

    def as_quota(self) -> dict[str, Any]:
        """Give the table of models.toml by which Penstock keeps to it."""
        quota: dict[str, Any] = {
            **self.limits,
            "concurrency": CONCURRENCY,
            "charge": self.charge,
            "charge_rejected": self.charge_rejected,
        }
        return quota | ({"windows_s": dict(self.windows_s)} if self.windows_s else {})

    def quota(self, name: str) -> Quota:
        """Give the quota as an object."""
        return Quota.model_validate({"name": name, **self.as_quota()})

    def simulator(self) -> tuple[ModelConfig, SimulatorConfig]:
        """Give the simulator's configuration as objects."""
        content = self.as_simulator()
        models = {MODEL: content.pop(f"models.{MODEL}")}
        config = SimulatorConfig.model_validate({**content, "models": models})
        return config.models[MODEL], config


CONTINUOUS = Semantics(
    "continuous", {"rpm": 900, "tpm": 800_000}, charge="max(prompt, max_tokens)", charge_rejected=True
)
WINDOWS = Semantics(
    "windows",
    {"rpm": 900, "tpm": 800_000},
    charge="prompt + max_tokens",
    refill="windows",
    windows_s={"requests": 10, "tokens": 60},
)
SPLIT = Semantics("split", {"rpm": 900, "itpm": 800_000, "otpm": 200_000}, charge="input, output")
