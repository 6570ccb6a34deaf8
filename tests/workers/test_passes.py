"""When passes of the feeder and of upkeep come, and what a failure leaves undone. No service runs, no time passes."""

import time
from collections import Counter
from collections.abc import Callable, Mapping
from threading import Event
from typing import cast

import pytest
from psycopg.errors import QueryCanceled
from sqlalchemy import Engine
from sqlalchemy.exc import IntegrityError, OperationalError
from structlog.testing import capture_logs

from penstock.client.doorbell import Doorbell
from penstock.routing import Catalogue
from penstock.settings import Settings
from penstock.store.db import sync_engine
from penstock.tenants import TenantFile, Tenants
from tests.conftest import ROOT
from workers import feeder, upkeep
from workers.steps import attempt
from workers.upkeep import keep_sweeping, sweep

DATABASE_URL, REDIS_URL = "postgresql://127.0.0.1:1/nobody", "redis://127.0.0.1:1/0"
ENGINE, DOORBELL = sync_engine("postgresql+psycopg://127.0.0.1:1/nobody"), Doorbell(REDIS_URL)

AWAY = OperationalError("SELECT", {}, Exception())
REFUSED = IntegrityError("INSERT", {}, Exception())
TOO_SLOW = OperationalError("SELECT", {}, QueryCanceled())
NO_BROKER = OSError("no broker")
BUG = ValueError("a bug")
PARTS = ("recover", "bury", "announce", "close_calls", "tend")


def failing(monkeypatch: pytest.MonkeyPatch, errors: Mapping[str, Exception]) -> list[str]:
    """Replace the parts of a sweep, of which some fail, and collect which were begun."""
    begun: list[str] = []

    def replacement(part: str) -> Callable[..., int]:
        def do(*_: object) -> int:
            begun.append(part)
            if part in errors:
                raise errors[part]
            return 0

        return do

    for part in PARTS:
        monkeypatch.setattr(upkeep, part, replacement(part))
    return begun


@pytest.mark.parametrize("broken", PARTS)
@pytest.mark.parametrize(
    "fault",
    [
        (AWAY, "service.unavailable", False),
        (NO_BROKER, "service.unavailable", True),
        (TOO_SLOW, "service.unavailable", True),
        (REFUSED, "internal_error", True),
        (BUG, "internal_error", True),
    ],
)
def test_what_fails_in_a_sweep_is_told_and_keeps_no_other_part_from_its_turn(
    monkeypatch: pytest.MonkeyPatch,
    broken: str,
    fault: tuple[Exception, str, bool],
) -> None:
    error, event, is_there = fault
    begun = failing(monkeypatch, {broken: error})
    with capture_logs() as lines:
        assert sweep(ENGINE, DOORBELL, recovers=True) is is_there
    assert begun == list(PARTS)
    assert [line["event"] for line in lines] == [event]


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Let upkeep's clock stand at the number in this list."""
    now = [1_000.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    return now


class Passes:
    """Stands in for the event that stops upkeep: each wait is `seconds` long, and calls `between` with its number."""

    def __init__(self, clock: list[float], number: int, between: Callable[[int], None] = lambda _: None) -> None:
        self.clock, self.number, self.between, self.done = clock, number, between, 0

    def wait(self, timeout: float) -> bool:
        self.clock[0] += timeout
        self.done += 1
        self.between(self.done)
        return self.done > self.number


def swept(passes: Passes) -> None:
    keep_sweeping(ENGINE, DOORBELL, cast("Event", passes), 30.0, Tenants(TenantFile()))


def test_workers_have_the_time_of_a_heartbeat_after_a_start_and_after_an_outage(
    clock: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    errors: dict[str, Exception] = {}
    begun = failing(monkeypatch, errors)
    recovered_at: list[int] = []

    def look(number: int) -> None:
        if "recover" in begun:
            recovered_at.append(number - 1)
        begun.clear()
        errors.clear()
        if number == 13:
            errors["announce"] = AWAY
        if number == 26:
            errors["announce"] = BUG

    swept(Passes(clock, 27, look))
    assert recovered_at == [11, 12, 13, 24, 25, 26, 27]


def test_a_purge_that_always_fails_delays_no_recovery(clock: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    begun = failing(monkeypatch, {})

    def forget(*_: object, **__: object) -> int:
        begun.append("forget")
        raise AWAY

    monkeypatch.setattr(upkeep, "forget", forget)
    swept(Passes(clock, 12))
    assert begun == ([*PARTS[1:], "forget"] * 10) + [*PARTS, "forget"] * 2


def test_periods_of_days_are_looked_at_once_a_minute_and_at_each_pass_while_there_is_more(
    clock: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    looks: list[int] = []
    backlog = [upkeep.MOST_FORGOTTEN, upkeep.MOST_FORGOTTEN, 7]
    passes = Passes(clock, 125)

    def forget(*_: object, at_once_only: bool) -> int:
        if at_once_only:
            return 0
        looks.append(passes.done)
        return backlog.pop(0) if backlog else 0

    failing(monkeypatch, {})
    monkeypatch.setattr(upkeep, "forget", forget)
    swept(passes)
    assert looks == [1, 2, 3, 61, 121]


@pytest.mark.parametrize(
    ("error", "event"),
    [
        (AWAY, "service.unavailable"),
        (NO_BROKER, "service.unavailable"),
        (REFUSED, "internal_error"),
        (BUG, "internal_error"),
    ],
)
def test_what_goes_wrong_in_a_step_is_told_and_given_back(error: Exception, event: str) -> None:
    def fail() -> int:
        raise error

    with capture_logs() as lines:
        assert [attempt(step, service="feeder", retry_s=1.0) for step in (fail, lambda: 7)] == [error, 7]
    assert [line["event"] for line in lines] == [event]


@pytest.mark.parametrize("error", [AWAY, BUG, NO_BROKER])
def test_a_tier_that_cannot_be_fed_rests_alone_and_is_mended_at_its_time(
    clock: list[float], monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    steps: list[tuple[str, str]] = []

    def step(name: str) -> Callable[..., int]:
        def do(_engine: Engine, _doorbell: Doorbell, tier: str, *_: object) -> int:
            steps.append((name, tier))
            if tier == "small":
                raise error
            return 0

        return do

    monkeypatch.setattr(feeder, "feed", step("feed"))
    monkeypatch.setattr(feeder, "mend", step("mend"))
    addresses = {"config": ROOT / "config", "prompts": ROOT / "prompts", "database_url": DATABASE_URL}
    settings = Settings.model_validate(addresses | {"broker_url": REDIS_URL, "redis_url": REDIS_URL})
    feeder.run(settings, cast("Event", Passes(clock, 40)))
    tiers = [tier.name for tier in Catalogue.load_tiers(ROOT / "config").tiers]
    assert Counter(steps) == {("feed", tier): 4 if tier == "small" else 40 for tier in tiers} | {
        ("mend", tier): 2 for tier in tiers
    }
