"""What an account may send to a model per minute and at once. It must not know what a request says.

Continuous token buckets: a bucket holds `burst_s` seconds of its rate. A request larger than the bucket waits for a
full one and leaves it in debt; one larger than a whole minute's rate never fits.
"""

import math
from dataclasses import dataclass
from typing import Literal

from penstock.clock import Clock
from penstock.providers.simulator.config import ModelConfig, SimulatorConfig

SECONDS_PER_MINUTE = 60
MS_PER_S = 1000
ROUNDING = 1e-6
Resource = Literal["requests", "tokens", "concurrency"]


@dataclass(frozen=True)
class Excess:
    """Why a request was not admitted. `wait_s` is None when no waiting helps."""

    resource: Resource
    limit: int
    requested: int
    wait_s: float | None


class TokenBucket:
    """A level that rises by `per_minute` a minute up to `burst_s` seconds' worth, and at least one unit."""

    def __init__(self, per_minute: int, burst_s: float, now_s: float) -> None:
        """Start full."""
        self.per_minute = per_minute
        self._rate_per_s = per_minute / SECONDS_PER_MINUTE
        self._capacity = max(1.0, self._rate_per_s * burst_s)
        self._level = self._capacity
        self._at_s = now_s

    def refill(self, now_s: float) -> None:
        """Bring the level up to the time `now_s`."""
        self._level = min(self._capacity, self._level + (now_s - self._at_s) * self._rate_per_s)
        self._at_s = now_s

    def wait_s(self, amount: int) -> float:
        """Give the seconds until `amount` would be admitted; 0 is now."""
        lacking = min(amount, self._capacity) - self._level
        return lacking / self._rate_per_s if lacking > ROUNDING else 0.0

    def take(self, amount: int) -> None:
        """Take the amount, into debt if it is larger than the bucket."""
        self._level -= amount

    def penalise(self) -> None:
        """Take one unit for a refused call, never into debt."""
        self._level = min(self._level, max(0.0, self._level - 1))

    @property
    def remaining(self) -> int:
        """Give the whole units that could be taken now."""
        return max(0, math.floor(self._level + ROUNDING))

    @property
    def reset_s(self) -> float:
        """Give the seconds until the bucket is full."""
        return max(0.0, (self._capacity - self._level) / self._rate_per_s)


class Meter:
    """One account at one model."""

    def __init__(self, model: ModelConfig, config: SimulatorConfig, clock: Clock) -> None:
        """Start with full buckets and nothing in flight."""
        now_s = clock.monotonic_s()
        self._model = model
        self._charge_rejected = config.charge_rejected
        self._clock = clock
        self._requests = TokenBucket(model.rpm, config.burst_s, now_s)
        self._tokens = TokenBucket(model.tpm, config.burst_s, now_s)
        self._in_flight = 0

    def admit(self, tokens: int) -> Excess | None:
        """Take a request, its tokens and a place, or nothing; whoever is admitted must call `release`."""
        self._refill()
        excess = self._excess(tokens)
        if excess is None:
            self._requests.take(1)
            self._tokens.take(tokens)
            self._in_flight += 1
        elif self._charge_rejected:
            self._requests.penalise()
        return excess

    def release(self) -> None:
        """Give the place back; tokens are not given back."""
        self._in_flight -= 1

    def headers(self) -> dict[str, str]:
        """Give OpenAI's x-ratelimit headers as of now."""
        self._refill()
        shown = {"requests": self._requests, "tokens": self._tokens}
        return {
            f"x-ratelimit-{what}-{name}": value
            for name, bucket in shown.items()
            for what, value in (
                ("limit", str(bucket.per_minute)),
                ("remaining", str(bucket.remaining)),
                ("reset", format_duration(bucket.reset_s)),
            )
        }

    def _refill(self) -> None:
        now_s = self._clock.monotonic_s()
        self._requests.refill(now_s)
        self._tokens.refill(now_s)

    def _excess(self, tokens: int) -> Excess | None:
        if tokens > self._model.tpm:
            return Excess("tokens", self._model.tpm, tokens, None)
        waits = {"requests": self._requests.wait_s(1), "tokens": self._tokens.wait_s(tokens)}
        wait_s = max(waits.values())
        if waits["requests"]:
            return Excess("requests", self._model.rpm, 1, wait_s)
        if waits["tokens"]:
            return Excess("tokens", self._model.tpm, tokens, wait_s)
        if self._in_flight >= self._model.max_concurrency:
            return Excess("concurrency", self._model.max_concurrency, 1, self._model.latency.median_ms / 1000)
        return None


class Limits:
    """The meters of all accounts."""

    def __init__(self, config: SimulatorConfig, clock: Clock) -> None:
        """Start without any."""
        self._config = config
        self._clock = clock
        self._meters: dict[tuple[str, str], Meter] = {}

    def meter(self, account: str, model: str) -> Meter:
        """Give the meter of an account at a configured model."""
        key = (account, model)
        if key not in self._meters:
            self._meters[key] = Meter(self._config.models[model], self._config, self._clock)
        return self._meters[key]


def retry_headers(wait_s: float) -> dict[str, str]:
    """Give Retry-After in whole seconds, rounded up and at least 1, and the exact wait as retry-after-ms."""
    exact_s = round(wait_s, 6)
    return {
        "retry-after": str(max(1, math.ceil(exact_s))),
        "retry-after-ms": str(math.ceil(round(exact_s * MS_PER_S, 3))),
    }


def format_duration(seconds: float) -> str:
    """Write a duration as OpenAI's reset headers do: 12ms, 1.5s, 6m0s."""
    ms = math.ceil(round(seconds * MS_PER_S, 3))
    if ms < MS_PER_S:
        return f"{ms}ms"
    minutes, rest_ms = divmod(ms, SECONDS_PER_MINUTE * MS_PER_S)
    return f"{minutes}m{rest_ms / MS_PER_S:g}s" if minutes else f"{rest_ms / MS_PER_S:g}s"
