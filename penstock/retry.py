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


@dataclass(frozen=True)
class Treatment:
    """What follows a reason.

    `elsewhere`: another deployment is asked at once, since it may do better. `trips`: it says something about the
    deployment, and counts for its breaker. `degrades`: a job that accepts it gets a summary without a model in place of
    its death.
    """

    kind: Kind
    elsewhere: bool = False
    trips: bool = False
    degrades: bool = False


ILL = Treatment(Kind.TRANSIENT, elsewhere=True, trips=True, degrades=True)
OURS = Treatment(Kind.TRANSIENT)
THEIRS = Treatment(Kind.PERMANENT)
ACCOUNT = Treatment(Kind.PERMANENT, elsewhere=True, degrades=True)

TREATMENTS: dict[Reason, Treatment] = {
    Reason.THROTTLED: Treatment(Kind.THROTTLED, elsewhere=True),
    Reason.OVERLOADED: ILL,
    Reason.SERVER_ERROR: ILL,
    Reason.TIMEOUT: ILL,
    Reason.CONNECTION: ILL,
    Reason.MALFORMED_ANSWER: Treatment(Kind.TRANSIENT, elsewhere=True, degrades=True),
    Reason.OUTPUT_INVALID: Treatment(Kind.TRANSIENT, degrades=True),
    Reason.OUTPUT_TRUNCATED: THEIRS,
    Reason.BAD_REQUEST: THEIRS,
    Reason.CONTEXT_LENGTH: Treatment(Kind.PERMANENT, elsewhere=True, degrades=True),
    Reason.CONTENT_POLICY: THEIRS,
    Reason.AUTHENTICATION: ACCOUNT,
    Reason.MODEL_NOT_FOUND: ACCOUNT,
    Reason.QUOTA_EXHAUSTED: ACCOUNT,
    Reason.LIMITED: Treatment(Kind.THROTTLED),
    Reason.LIMITER_AWAY: Treatment(Kind.THROTTLED),
    Reason.UNAVAILABLE: Treatment(Kind.PERMANENT, degrades=True),
    Reason.TOO_LARGE: Treatment(Kind.PERMANENT, degrades=True),
    Reason.IN_FLIGHT: Treatment(Kind.THROTTLED),
    Reason.BUDGET_HELD: Treatment(Kind.THROTTLED, elsewhere=True),
    Reason.BUDGET_EXHAUSTED: Treatment(Kind.PERMANENT, elsewhere=True, degrades=True),
    Reason.INVALID: THEIRS,
    Reason.DEADLINE: Treatment(Kind.PERMANENT, degrades=True),
    Reason.POISON: THEIRS,
    Reason.WORKER_LOST: OURS,
    Reason.TIME_LIMIT: OURS,
    Reason.INTERNAL: OURS,
}
"""The one table from what went wrong to what happens next; docs/failures.md says it in words."""


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
    kind = TREATMENTS[failure.reason].kind
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
