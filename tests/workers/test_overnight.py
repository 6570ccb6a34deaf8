"""The thread of the upkeep worker that works on parcels: it begins when somebody wishes, and goes on after faults."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from subprocess import run

import pytest

from tests.overnight.night import AT_ONCE, Night
from tests.rooms import Rooms
from workers import overnight
from workers.overnight import Overnight

PATIENCE_S = 30.0


@pytest.fixture
def night(rooms: Rooms, monkeypatch: pytest.MonkeyPatch) -> Night:
    """Give a desk whose loop does not rest."""
    monkeypatch.setattr(overnight, "PASS_S", 0.01)
    monkeypatch.setattr(overnight, "REST_S", 0.01)
    made = Night(rooms)
    made.pace(0)
    return made


@contextmanager
def working(night: Night) -> Iterator[None]:
    thread = Overnight(night.rooms.settings, replace(AT_ONCE, hold_s=60))
    thread.start()
    try:
        yield
    finally:
        thread.stop()


def wait_for(night: Night, states: dict[str, int]) -> None:
    """Return when the jobs stand so."""
    gives_up_at = time.monotonic() + PATIENCE_S
    while night.states() != states:
        assert time.monotonic() < gives_up_at, night.states()
        time.sleep(0.01)


def test_a_batch_that_begins_while_the_thread_runs_is_answered(night: Night) -> None:
    with working(night):
        night.begin(3)
        wait_for(night, {"succeeded": 3})
    night.assert_paid_once()


def test_a_fault_ends_neither_the_thread_nor_the_parcel(night: Night) -> None:
    night.begin(2)
    night.execute("ALTER TABLE attempts RENAME TO away")
    try:
        with working(night):
            gives_up_at = time.monotonic() + PATIENCE_S
            while night.count("SELECT 'turn', coalesce(max(turn), 0) FROM provider_batches")["turn"] < 3:
                assert time.monotonic() < gives_up_at
                time.sleep(0.01)
            night.execute("ALTER TABLE away RENAME TO attempts")
            wait_for(night, {"succeeded": 2})
    finally:
        night.execute("ALTER TABLE IF EXISTS away RENAME TO attempts")
    night.assert_paid_once()


def test_litellm_is_loaded_only_when_somebody_wishes() -> None:
    check = "import sys, workers.overnight; sys.exit('litellm' in sys.modules)"
    assert run([sys.executable, "-c", check], check=False, timeout=60).returncode == 0
