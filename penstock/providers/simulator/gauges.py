"""Which kind of counter keeps which quota of a model. It must not know whose it is, or how it counts."""

from typing import Protocol

from penstock.providers.simulator.buckets import SECONDS_PER_MINUTE, DebtBucket, TokenBucket
from penstock.providers.simulator.charges import Resource
from penstock.providers.simulator.config import ModelConfig
from penstock.providers.simulator.windows import Window


class Gauge(Protocol):
    """What is left of one quota, as of the last `advance`."""

    per_minute: int

    @property
    def remaining(self) -> int:
        """Give the whole units that could be taken now."""
        ...

    @property
    def reset_s(self) -> float:
        """Give the seconds until all of it is there again."""
        ...

    def change(self, per_minute: int) -> None:
        """Allow another amount per minute from now on."""
        ...

    def advance(self, now_s: float) -> None:
        """Go on to the time `now_s`."""
        ...

    def wait_s(self, amount: int) -> float:
        """Give the seconds until `amount` would be admitted; 0 is now."""
        ...

    def take(self, amount: int) -> None:
        """Take the amount."""
        ...

    def penalise(self) -> None:
        """Take one unit for a refused call, if there is one."""
        ...


def make_gauges(model: ModelConfig, burst_s: float, now_s: float) -> dict[Resource, Gauge]:
    """Make a gauge with nothing used for each quota of a model, requests first."""
    return {resource: _make_gauge(resource, model, burst_s, now_s) for resource in model.quotas}


def _make_gauge(resource: Resource, model: ModelConfig, burst_s: float, now_s: float) -> Gauge:
    per_minute = model.quotas[resource]
    if model.refill == "windows":
        return Window(per_minute, model.slice_s if resource == "requests" else SECONDS_PER_MINUTE, now_s)
    bucket = DebtBucket if resource == "output_tokens" else TokenBucket
    return bucket(per_minute, burst_s, now_s)
