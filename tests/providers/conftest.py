"""A simulator over HTTP for the tests of one file, at the time of a clock that they move; the file names its CONFIG."""

from collections.abc import Iterator

import httpx
import pytest

from penstock.providers.simulator.server import running
from tests.hand_clock import HandClock


@pytest.fixture(scope="module")
def served(request: pytest.FixtureRequest) -> Iterator[tuple[str, HandClock]]:
    """Serve the file's CONFIG."""
    clock = HandClock()
    with running(request.module.CONFIG, clock=clock) as url:
        yield url, clock


@pytest.fixture
def clock(served: tuple[str, HandClock]) -> HandClock:
    """Give the clock, at its beginning."""
    served[1].elapsed_s = 0.0
    return served[1]


@pytest.fixture
def client(served: tuple[str, HandClock], clock: HandClock) -> Iterator[httpx.Client]:
    """Give a client of account acme at a simulator that has forgotten everything."""
    assert clock.elapsed_s == 0.0
    with httpx.Client(base_url=served[0], headers={"authorization": "Bearer acme"}, timeout=30) as made:
        made.post("/reset").raise_for_status()
        yield made
