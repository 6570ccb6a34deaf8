"""What follows a failure. It must not know the clock, a job's row or a provider: it is one pure function.

Backoff is exponential with full jitter (M. Brooker, "Exponential Backoff and Jitter", AWS Architecture Blog, 2015).
"""

import math
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum

from penstock.errors import Reason


class Kind(StrEnum):
    """What a reason says about trying again."""

    PERMANENT = "permanent"
    TRANSIENT = "transient"
    THROTTLED = "throttled"


KINDS: dict[Reason, Kind] = {
    Reason.THROTTLED: Kind.THROTTLED,
    Reason.OVERLOADED: Kind.TRANSIENT,
    Reason.SERVER_ERROR: Kind.TRANSIENT,
    Reason.TIMEOUT: Kind.TRANSIENT,
    Reason.CONNECTION: Kind.TRANSIENT,
    Reason.MALFORMED_ANSWER: Kind.TRANSIENT,
    Reason.OUTPUT_INVALID: Kind.TRANSIENT,
    Reason.OUTPUT_TRUNCATED: Kind.PERMANENT,
    Reason.BAD_REQUEST: Kind.PERMANENT,
    Reason.CONTEXT_LENGTH: Kind.PERMANENT,
    Reason.CONTENT_POLICY: Kind.PERMANENT,
    Reason.AUTHENTICATION: Kind.PERMANENT,
    Reason.MODEL_NOT_FOUND: Kind.PERMANENT,
    Reason.QUOTA_EXHAUSTED: Kind.PERMANENT,
    Reason.INVALID: Kind.PERMANENT,
    Reason.DEADLINE: Kind.PERMANENT,
    Reason.POISON: Kind.PERMANENT,
    Reason.WORKER_LOST: Kind.TRANSIENT,
    Reason.TIME_LIMIT: Kind.TRANSIENT,
    Reason.INTERNAL: Kind.TRANSIENT,
}


@dataclass(frozen=True)
class Backoff:
    """How long to wait: a random share of `base_s` doubled with each failure, never more than `longest_s`."""

    base_s: float = 1.0
    longest_s: float = 60.0
    throttled_s: float = 1.0
    longest_asked_s: float = 3600.0


@dataclass(frozen=True)
class Failure:
    """What went wrong, and what had gone wrong before. `failures` excludes this one."""

    reason: Reason
    failures: int
    max_failures: int
    now: datetime
    deadline: datetime | None
    retry_after_s: float | None = None


@dataclass(frozen=True)
class RetryAfter:
    """Try again after `delay_s`; `counts` says that it spends one of the failures that a job may have."""

    delay_s: float
    counts: bool


@dataclass(frozen=True)
class Bury:
    """Do not try again."""

    reason: Reason


def decide(failure: Failure, backoff: Backoff, jitter: float) -> RetryAfter | Bury:
    """Choose what follows; `jitter` is a random number in [0, 1).

    A wait that the provider asked for is kept, up to `longest_asked_s`, and spread by up to a tenth so that all do not
    come back at once. A retry that could not begin before the deadline is a death with the reason `deadline`.
    """
    kind = KINDS[failure.reason]
    if kind is Kind.PERMANENT:
        return Bury(failure.reason)
    counts = kind is Kind.TRANSIENT
    if counts and failure.failures + 1 >= failure.max_failures:
        return Bury(failure.reason)
    delay_s = _delay_s(failure, backoff, jitter, counts=counts)
    if failure.deadline is not None and failure.now + timedelta(seconds=delay_s) >= failure.deadline:
        return Bury(Reason.DEADLINE)
    return RetryAfter(delay_s, counts)


def _delay_s(failure: Failure, backoff: Backoff, jitter: float, *, counts: bool) -> float:
    if failure.retry_after_s is not None:
        return min(failure.retry_after_s, backoff.longest_asked_s) * (1 + jitter / 10)
    if not counts:
        return backoff.throttled_s * (1 + jitter)
    exponent = min(failure.failures, 32)
    return min(backoff.longest_s, math.ldexp(backoff.base_s, exponent)) * jitter
