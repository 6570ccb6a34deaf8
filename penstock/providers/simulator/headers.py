"""How limits and waits are written in headers, as OpenAI and as Anthropic do. It must not know how they are kept."""

import math
from collections.abc import Mapping
from datetime import datetime, timedelta

from penstock.providers.simulator.buckets import SECONDS_PER_MINUTE
from penstock.providers.simulator.charges import Resource
from penstock.providers.simulator.gauges import Gauge

MS_PER_S = 1000


def openai_headers(gauges: Mapping[Resource, Gauge]) -> dict[str, str]:
    """Give the x-ratelimit headers."""
    return {
        f"x-ratelimit-{what}-{resource}": value
        for resource, gauge in gauges.items()
        for what, value in (
            ("limit", str(gauge.per_minute)),
            ("remaining", str(gauge.remaining)),
            ("reset", format_duration(gauge.reset_s)),
        )
    }


def anthropic_headers(gauges: Mapping[Resource, Gauge], now: datetime) -> dict[str, str]:
    """Give the anthropic-ratelimit headers as of the wall time `now`."""
    return {
        f"anthropic-ratelimit-{resource.replace('_', '-')}-{what}": value
        for resource, gauge in gauges.items()
        for what, value in (
            ("limit", str(gauge.per_minute)),
            ("remaining", str(gauge.remaining)),
            ("reset", format_instant(now + timedelta(seconds=gauge.reset_s))),
        )
    }


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


def format_instant(moment: datetime) -> str:
    """Write a time in UTC as Anthropic's reset headers do, in whole seconds, rounded up: 2026-01-31T12:00:00Z."""
    rounded_up = (moment + timedelta(seconds=1, microseconds=-1)).replace(microsecond=0)
    return f"{rounded_up:%Y-%m-%dT%H:%M:%SZ}"
