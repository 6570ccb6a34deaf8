"""What an account may send to a model per minute and at once. It must not know what a call says.

All or nothing: a request that is refused takes nothing. One larger than a whole minute's quota never fits.
"""

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from pydantic import Field, model_validator

from penstock.clock import Clock
from penstock.providers.simulator.bodies import Body
from penstock.providers.simulator.charges import Charge, Demand, Resource
from penstock.providers.simulator.config import ModelConfig, SimulatorConfig
from penstock.providers.simulator.gauges import make_gauges
from penstock.providers.simulator.headers import MS_PER_S, anthropic_headers, openai_headers


@dataclass(frozen=True)
class Excess:
    """Why a request was not admitted. `wait_s` is None when no waiting helps."""

    resource: Resource | Literal["concurrency"]
    limit: int
    requested: int
    wait_s: float | None


class LimitChange(Body):
    """Other limits of a model, for one account or, without one, for all of them; None leaves a limit as it is."""

    model: str
    account: str | None = Field(default=None, min_length=1)
    rpm: int | None = Field(default=None, gt=0)
    tpm: int | None = Field(default=None, gt=0)
    itpm: int | None = Field(default=None, gt=0)
    otpm: int | None = Field(default=None, gt=0)
    max_concurrency: int | None = Field(default=None, gt=0)

    @model_validator(mode="after")
    def _have_a_limit(self) -> "LimitChange":
        if not self.limits:
            msg = "give at least one of rpm, tpm, itpm, otpm, max_concurrency"
            raise ValueError(msg)
        return self

    @property
    def limits(self) -> dict[str, int]:
        """Give the limits that change, by their names in the configuration."""
        return self.model_dump(exclude={"model", "account"}, exclude_none=True)


class Meter:
    """One account at one model."""

    def __init__(self, model: ModelConfig, config: SimulatorConfig, clock: Clock) -> None:
        """Start with nothing used and nothing in flight."""
        self.model = model
        self._config = config
        self._clock = clock
        self._gauges = make_gauges(model, config.burst_s, clock.monotonic_s())
        self._in_flight = 0

    def admit(self, demand: Demand) -> Charge | Excess:
        """Take what a request is charged and a place, or nothing; whoever is admitted must call `release`."""
        now_s = self._advance()
        amounts = demand.amounts(self.model.charge)
        excess = self._excess(amounts)
        if excess is None:
            self._in_flight += 1
            return self._take(now_s, amounts)
        if self._config.charge_rejected:
            self._gauges["requests"].penalise()
        return excess

    def settle(self, output_tokens: int) -> Charge | None:
        """Take the output that was produced, into debt if need be; None where admission has charged for it."""
        if self.model.charge != "input, output":
            return None
        return self._take(self._advance(), {"requests": 0, "input_tokens": 0, "output_tokens": output_tokens})

    def release(self) -> None:
        """Give the place back; what was charged is not given back."""
        self._in_flight -= 1

    def change(self, limits: Mapping[str, int]) -> None:
        """Have other limits from now on."""
        self._advance()
        self.model = self.model.model_copy(update=limits)
        for resource, per_minute in self.model.quotas.items():
            self._gauges[resource].change(per_minute)

    def headers(self) -> dict[str, str]:
        """Give the limits as of now in the provider's headers, or none where they are not sent."""
        if not self._config.rate_limit_headers:
            return {}
        self._advance()
        if self.model.charge == "input, output":
            return anthropic_headers(self._gauges, self._clock.now())
        return openai_headers(self._gauges)

    def _advance(self) -> float:
        now_s = self._clock.monotonic_s()
        for gauge in self._gauges.values():
            gauge.advance(now_s)
        return now_s

    def _take(self, now_s: float, amounts: Mapping[Resource, int]) -> Charge:
        for resource, amount in amounts.items():
            self._gauges[resource].take(amount)
        return Charge(now_s, amounts)

    def _excess(self, amounts: Mapping[Resource, int]) -> Excess | None:
        limits = self.model.quotas
        for resource, amount in amounts.items():
            if amount > limits[resource]:
                return Excess(resource, limits[resource], amount, None)
        waits = {resource: self._gauges[resource].wait_s(amount) for resource, amount in amounts.items()}
        for resource, wait_s in waits.items():
            if wait_s:
                return Excess(resource, limits[resource], amounts[resource], max(waits.values()))
        if self._in_flight >= self.model.max_concurrency:
            return Excess("concurrency", self.model.max_concurrency, 1, self.model.latency.median_ms / MS_PER_S)
        return None


class Limits:
    """The meters of all accounts."""

    def __init__(self, config: SimulatorConfig, clock: Clock) -> None:
        """Start without any."""
        self._config = config
        self._clock = clock
        self._models = dict(config.models)
        self._meters: defaultdict[str, dict[str, Meter]] = defaultdict(dict)

    def meter(self, account: str, model: str) -> Meter:
        """Give the meter of an account at a configured model."""
        meters = self._meters[model]
        if account not in meters:
            meters[account] = Meter(self._models[model], self._config, self._clock)
        return meters[account]

    def change(self, change: LimitChange) -> ModelConfig:
        """Change limits that a configured model has; give the model as it is now for whom they changed."""
        if change.account is not None:
            meter = self.meter(change.account, change.model)
            meter.change(change.limits)
            return meter.model
        for meter in self._meters[change.model].values():
            meter.change(change.limits)
        self._models[change.model] = self._models[change.model].model_copy(update=change.limits)
        return self._models[change.model]
