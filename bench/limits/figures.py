"""What a run comes to, worked out from what the provider saw. It must not know how the run was made.

A window of time is given as two readings of the monotonic clock, in seconds.
"""

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from bench.limits.load import INTERACTIVE
from bench.limits.provider import THROTTLED, Seen
from bench.limits.semantics import Semantics

Window = tuple[float, float]


@dataclass(frozen=True)
class Run:
    """A run that is over.

    `calls` gives the job of each call by its name at the provider, `tenants` the tenant of each job; `asked_at_s` has
    the time at which each interactive job was asked for; `failed` counts jobs that were given up.
    """

    semantics: Semantics
    seen: Seen
    window: Window
    ended_s: float
    calls: Mapping[str, str]
    tenants: Mapping[str, str]
    asked_at_s: Mapping[str, float]
    failed: int

    def used(self, window: Window | None = None) -> dict[str, float]:
        """Give the share of each limit that was used, by the name of the limit."""
        since_s, until_s = window or self.window
        minutes = (until_s - since_s) / 60
        limits = self.semantics.limits
        sums = [0.0] * len(limits)
        for at_s, *amounts in self.seen.charges:
            if since_s <= at_s < until_s:
                sums = [total + amount for total, amount in zip(sums, amounts, strict=True)]
        return {name: total / (limits[name] * minutes) for name, total in zip(limits, sums, strict=True)}

    def quota_used(self, window: Window | None = None) -> float:
        """Give the share of the limit that binds."""
        return max(self.used(window).values())

    def refused_per_100(self, window: Window | None = None) -> float:
        """Give how many calls were refused with 429 for each 100 that were taken."""
        since_s, until_s = window or self.window
        came = [arrival.status for arrival in self.seen.arrivals if since_s <= arrival.at_s < until_s]
        refused = sum(status == THROTTLED for status in came)
        return 100 * refused / max(1, len(came) - refused)

    def waits_s(self) -> list[float]:
        """Give how long each interactive job of the window waited for the arrival of the call that was taken.

        One that had not come by the end of the run counts with the time that it had waited until then.
        """
        came: dict[str, float] = {}
        for arrival in self.seen.arrivals:
            job = self.calls.get(arrival.request_id)
            if job is not None and arrival.status != THROTTLED:
                came.setdefault(job, arrival.at_s)
        since_s, until_s = self.window
        return [
            came.get(job, self.ended_s) - asked_s
            for job, asked_s in self.asked_at_s.items()
            if since_s <= asked_s < until_s
        ]

    def tokens_by_tenant(self) -> Counter[str]:
        """Sum the tokens that were billed for calls which came in the window: prompt and answer."""
        since_s, until_s = self.window
        totals: Counter[str] = Counter()
        for arrival in self.seen.arrivals:
            job = self.calls.get(arrival.request_id)
            if job is not None and since_s <= arrival.at_s < until_s and arrival.status != THROTTLED:
                totals[self.tenants[job]] += self.seen.billed.get(arrival.request_id, 0)
        return totals

    def batch_share(self) -> float:
        """Give the share of the tokens that the tenants of the batch got."""
        totals = self.tokens_by_tenant()
        return 1 - totals[INTERACTIVE] / max(1, totals.total())

    def jain(self, weights: Mapping[str, float]) -> float:
        """Give the fairness between tenants by what each got for its weight."""
        totals = self.tokens_by_tenant()
        return jain([totals[tenant] / weight for tenant, weight in weights.items()])


def jain(shares: Sequence[float]) -> float:
    """Give (sum x)^2 / (n sum x^2), from 1/n to 1 (Jain, Chiu and Hawe, 1984); nothing at all is fair to nobody."""
    squares = sum(share**2 for share in shares)
    return sum(shares) ** 2 / (len(shares) * squares) if squares else 0.0


def percentile(values: Iterable[float], share: float) -> float:
    """Give the smallest value that a share of all values does not exceed; infinity where there are none."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)] if ordered else math.inf
