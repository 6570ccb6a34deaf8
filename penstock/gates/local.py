"""A local share of the provider's quota, for when Redis is away. It must not know why it is asked.

The same buckets as the shared ones, without leases and without memory beyond this process: each of N processes takes an
Nth of the rate, so that together they keep to it. Only interactive requests are let through.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from penstock.clock import Clock
from penstock.providers.quota import Quota
from penstock.schemas import Resource

LONGEST_WAIT_S = 1.0
FIRST_S = 1.0


@dataclass
class Bucket:
    """A level in units, as of a time in seconds."""

    level: float
    at_s: float


@dataclass
class LocalShare:
    """The buckets of this process, one for each resource of each quota that it has been asked for."""

    clock: Clock
    _buckets: dict[tuple[str, Resource], Bucket] = field(default_factory=dict)

    def acquire(self, quota: Quota, units: Mapping[Resource, int], processes: int) -> float | None:
        """Take all the units or none; gives the seconds to wait before sending, or None: ask again later."""
        now_s = self.clock.monotonic_s()
        lacking_s = 0.0
        for name, amount in units.items():
            rate = quota.rate_of(name, quota.per_minute[name]) / max(1, processes)
            bucket = self._refill(quota, name, rate, now_s)
            lacking_s = max(lacking_s, (min(amount, max(1.0, rate * quota.burst_of(name))) - bucket.level) / rate)
        if lacking_s > LONGEST_WAIT_S:
            return None
        for name, amount in units.items():
            self._buckets[quota.name, name].level -= amount
        return lacking_s

    def _refill(self, quota: Quota, name: Resource, rate: float, now_s: float) -> Bucket:
        capacity = max(1.0, rate * quota.burst_of(name))
        bucket = self._buckets.setdefault((quota.name, name), Bucket(min(capacity, max(1.0, rate * FIRST_S)), now_s))
        bucket.level = min(capacity, bucket.level + (now_s - bucket.at_s) * rate)
        bucket.at_s = now_s
        return bucket
