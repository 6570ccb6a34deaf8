"""How the simulator writes limits and waits."""

from datetime import UTC, datetime

import pytest

from penstock.providers.simulator.headers import format_duration, format_instant, retry_headers


@pytest.mark.parametrize(
    ("seconds", "written"),
    [(0.0, "0ms"), (0.0121, "13ms"), (0.999, "999ms"), (1.0, "1s"), (1.5, "1.5s"), (60.0, "1m0s"), (366.25, "6m6.25s")],
)
def test_a_duration_is_written_as_openai_does(seconds: float, written: str) -> None:
    assert format_duration(seconds) == written


@pytest.mark.parametrize(("wait_s", "headers"), [(0.0005, ("1", "1")), (2.0, ("2", "2000")), (2.0004, ("3", "2001"))])
def test_a_wait_is_rounded_up(wait_s: float, headers: tuple[str, str]) -> None:
    assert tuple(retry_headers(wait_s).values()) == headers


@pytest.mark.parametrize(
    ("second", "microsecond", "written"),
    [(0, 0, "2026-01-31T12:00:00Z"), (0, 1, "2026-01-31T12:00:01Z"), (59, 500_000, "2026-01-31T12:01:00Z")],
)
def test_an_instant_is_written_as_anthropic_does(second: int, microsecond: int, written: str) -> None:
    assert format_instant(datetime(2026, 1, 31, 12, 0, second, microsecond, UTC)) == written
