"""Which deployments are worth a call, as all processes found out together. It must not know what counts as a failure.

The states and their edges are in the scripts `lua/breaker_*.lua`; Redis's clock decides, unless a clock is given.
"""

import random
import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Self

from pydantic import Field, model_validator

from penstock.clock import Clock
from penstock.gates.scripts import AsyncScripts, SyncScripts
from penstock.schemas import Frozen

__all__ = ["Breaker", "BreakerSettings", "BreakerState", "BreakerStatus", "Refused", "Ticket", "read_status"]


class BreakerSettings(Frozen):
    """When a breaker opens, and for how long. Every process that shares a breaker must have the same."""

    consecutive_failures: int = Field(
        default=5, ge=1, le=32, description="failures in a row that open it; the scripts know the last 32 reports"
    )
    failure_ratio: float = Field(default=0.5, gt=0, le=1, description="share of failed calls in the window that opens")
    minimum_calls: int = Field(default=20, ge=1, description="calls in the window before their share is looked at")
    window_s: float = Field(default=30.0, ge=1, le=600, description="how far back calls count; it ages in tenths")
    cool_down_s: float = Field(
        default=5.0, ge=0.1, le=1800, description="how long it is open the first time; doubled each further time"
    )
    longest_cool_down_s: float = Field(
        default=120.0, ge=0.1, le=1800, description="where doubling ends; up to 20 % more or less are left to chance"
    )

    @model_validator(mode="after")
    def _longest_is_not_shorter(self) -> Self:
        if self.longest_cool_down_s < self.cool_down_s:
            raise ValueError("longest_cool_down_s is shorter than cool_down_s; raise it, or lower cool_down_s")
        return self


class BreakerState(StrEnum):
    """Whether calls are admitted: all, none, or one at a time to find out."""

    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half_open"


@dataclass(frozen=True, slots=True)
class Ticket:
    """The right to make one call, and what its report must carry.

    `epoch` fences it: each change of state and each probe begins another one, and a report of an old one counts for
    nothing. `id` makes a report that is repeated count once, and a probe that is asked for again the same probe.
    """

    deployment: str
    id: str
    epoch: int
    is_probe: bool


@dataclass(frozen=True, slots=True)
class Refused:
    """No call now; ask again in `wait_s`, when the cool-down is over, or to hear what the probe that is out found."""

    wait_s: float


@dataclass(frozen=True, slots=True)
class BreakerStatus:
    """How a breaker stands; `wait_s` is 0 when a call would be admitted now.

    `failures_in_a_row`, and `calls` and `failures` in the window, are what it saw while it was last closed, and failed
    probes; `openings` is how often it has opened since.
    """

    state: BreakerState
    wait_s: float
    failures_in_a_row: int
    calls: int
    failures: int
    openings: int


class Breaker:
    """The breakers of all deployments; each is made by the first admission and forgotten after a quiet hour.

    Every method is one round trip and raises RedisError when Redis is away.
    """

    def __init__(
        self,
        scripts: AsyncScripts,
        settings: BreakerSettings,
        *,
        clock: Clock | None = None,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        """Decide by Redis's clock, or by `clock`; `jitter` gives numbers in [0, 1), new ones at each call."""
        self._scripts = scripts
        self._window = {"window_ms": _ms(settings.window_s)}
        self._openers = self._window | {
            "consecutive_failures": settings.consecutive_failures,
            "failure_ratio": settings.failure_ratio,
            "minimum_calls": settings.minimum_calls,
            "cool_down_ms": _ms(settings.cool_down_s),
            "longest_cool_down_ms": _ms(settings.longest_cool_down_s),
        }
        self._clock = clock
        self._jitter = jitter

    async def admit(self, deployment: str, *, probe_s: float) -> Ticket | Refused:
        """Ask for one call; if it is a probe, another may go after `probe_s`, which is about the call's timeout.

        Every ticket is to be reported by exactly one of `succeeded`, `failed` and `abandoned`.
        """
        ticket_id = secrets.token_hex(8)
        answer = await self._run("admit", deployment, {"ticket": ticket_id, "probe_ms": _ms(probe_s)})
        if "wait_ms" in answer:
            return Refused(answer["wait_ms"] / 1000)
        return Ticket(deployment, ticket_id, answer["epoch"], answer["is_probe"])

    async def succeeded(self, ticket: Ticket) -> bool:
        """Report a call that found the deployment well; tell whether this closed the breaker."""
        return _changed(await self._report("succeeded", ticket, self._window))

    async def failed(self, ticket: Ticket) -> bool:
        """Report a call that found the deployment ill; tell whether this opened the breaker, again or at first."""
        return _changed(await self._report("failed", ticket, self._openers | {"jitter": self._jitter()}))

    async def abandoned(self, ticket: Ticket) -> None:
        """Report a call that was not made, or whose end says nothing about the deployment: a probe's place is free."""
        await self._report("abandoned", ticket, {})

    async def status(self, deployment: str) -> BreakerStatus:
        """Look, and change nothing."""
        return _status(await self._run("status", deployment, self._window))

    async def _report(self, verdict: str, ticket: Ticket, given: Mapping[str, float]) -> dict[str, Any]:
        return await self._run(verdict, ticket.deployment, {"ticket": ticket.id, "epoch": ticket.epoch, **given})

    async def _run(self, operation: str, deployment: str, given: Mapping[str, object]) -> dict[str, Any]:
        time = {"now_ms": _ms(self._clock.now().timestamp())} if self._clock else {}
        return await self._scripts.run(f"breaker_{operation}", [_key(deployment)], {**given, **time})


def read_status(scripts: SyncScripts, deployment: str, settings: BreakerSettings) -> BreakerStatus:
    """Look without a loop, and change nothing; raise RedisError when Redis is away."""
    return _status(scripts.run("breaker_status", [_key(deployment)], {"window_ms": _ms(settings.window_s)}))


def _key(deployment: str) -> str:
    return f"{{penstock:breaker:{deployment}}}"


def _ms(seconds: float) -> int:
    return max(1, round(seconds * 1000))


def _changed(answer: dict[str, Any]) -> bool:
    return bool(answer["changed"])


def _status(answer: dict[str, Any]) -> BreakerStatus:
    return BreakerStatus(
        state=BreakerState(answer["state"]),
        wait_s=answer["wait_ms"] / 1000,
        failures_in_a_row=answer["streak"],
        calls=answer["calls"],
        failures=answer["failures"],
        openings=answer["openings"],
    )
