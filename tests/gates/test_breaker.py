"""Every edge of a breaker's diagram, at exact values, on a real Redis in virtual time."""

import asyncio
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import redis
from pydantic import ValidationError

from penstock.gates.breaker import (
    BreakerSettings,
    BreakerState,
    BreakerStatus,
    Refused,
    Ticket,
    read_status,
)
from penstock.gates.scripts import AsyncScripts, SyncScripts
from penstock.store.redis import sync_redis
from tests.gates.breaker_rig import HOUR_MS, KEY, NAME, START_MS, Rig, closed
from workers.embedded import EmbeddedServices

BY_RATIO = BreakerSettings(consecutive_failures=32)


@pytest.fixture
def settings() -> BreakerSettings:
    """What a test may replace by parametrizing it."""
    return BreakerSettings()


@pytest.fixture
def rig(broker: redis.Redis, services: EmbeddedServices, settings: BreakerSettings) -> Iterator[Rig]:
    """A breaker on an empty Redis."""
    made = Rig(services.redis.socket_path, settings)
    yield made
    made.close()


by_ratio = pytest.mark.parametrize("settings", [BY_RATIO])


def test_the_first_call_is_admitted_and_is_no_probe(rig: Rig) -> None:
    ticket = rig.admit()
    assert (ticket.deployment, ticket.is_probe) == (NAME, False)
    assert rig.status() == closed()
    assert rig.redis.keys() == [KEY]


def test_the_fourth_failure_in_a_row_does_not_open_and_the_fifth_does(rig: Rig) -> None:
    assert rig.calls("ffff") == [False] * 4
    assert rig.status() == closed(in_a_row=4, calls=4, failures=4)
    assert rig.fail() is True
    assert rig.status() == BreakerStatus(BreakerState.OPEN, 5.0, 5, calls=5, failures=5, openings=1)
    assert rig.ask() == Refused(5.0)


def test_a_success_in_between_begins_the_row_again(rig: Rig) -> None:
    assert rig.calls("ffffsffff") == [False] * 9
    assert rig.status() == closed(in_a_row=4, calls=9, failures=8)
    assert rig.fail() is True


def test_failures_in_a_row_count_however_far_apart(rig: Rig) -> None:
    rig.calls("ffff")
    rig.clock.now_ms += 600_000
    assert rig.status() == closed(in_a_row=4)
    assert rig.fail() is True


@by_ratio
def test_the_ratio_is_not_looked_at_before_the_minimum_of_calls(rig: Rig) -> None:
    assert rig.calls("fs" * 9 + "f") == [False] * 19
    assert rig.status() == closed(in_a_row=1, calls=19, failures=10)
    assert rig.fail() is True
    assert rig.status() == BreakerStatus(BreakerState.OPEN, 5.0, 2, calls=20, failures=11, openings=1)


@by_ratio
def test_the_ratio_opens_when_it_is_reached_and_not_below(rig: Rig) -> None:
    assert rig.calls("s" * 11 + "f" * 10) == [False] * 21
    assert rig.status() == closed(in_a_row=10, calls=21, failures=10)
    assert rig.fail() is True


@by_ratio
def test_a_success_that_completes_the_minimum_does_not_open_and_the_next_failure_does(rig: Rig) -> None:
    assert rig.calls("f" * 10 + "s" * 10) == [False] * 20
    assert rig.status() == closed(calls=20, failures=10)
    assert rig.fail() is True


@pytest.mark.parametrize("settings", [BreakerSettings(consecutive_failures=32, failure_ratio=0.56)])
def test_a_ratio_that_no_binary_fraction_equals_is_reached_exactly(rig: Rig) -> None:
    assert rig.calls("s" * 11 + "f" * 13) == [False] * 24
    assert rig.fail() is True


@by_ratio
@pytest.mark.parametrize(("later_ms", "opens"), [(29_999, True), (30_000, False)])
def test_a_call_counts_until_its_slice_has_left_the_window(rig: Rig, later_ms: int, *, opens: bool) -> None:
    rig.calls("f" * 10 + "s" * 9)
    rig.clock.now_ms = START_MS + later_ms
    assert rig.fail() is opens


def test_the_window_ages_slice_by_slice(rig: Rig) -> None:
    for _ in range(3):
        rig.calls("fs")
        rig.clock.now_ms += 2_999
    assert rig.status() == closed(calls=6, failures=3)
    rig.clock.now_ms = START_MS + 29_999
    assert rig.status() == closed(calls=6, failures=3)
    rig.clock.now_ms = START_MS + 30_000
    assert rig.status() == closed(calls=2, failures=1)
    rig.calls("s")
    assert rig.status() == closed(calls=3, failures=1)
    rig.clock.now_ms = START_MS + 33_000
    assert rig.status() == closed(calls=1)


def test_calls_of_a_later_time_do_not_count_for_a_clock_that_went_back(rig: Rig) -> None:
    rig.calls("fs")
    rig.clock.now_ms -= 1
    assert rig.status() == closed()


def test_the_wait_is_exact_and_ends_with_a_probe(rig: Rig) -> None:
    rig.open()
    assert rig.wait_s() == 5.0
    rig.clock.now_ms += 1
    assert rig.wait_s() == 4.999
    rig.clock.now_ms += 4_998
    assert rig.wait_s() == 0.001
    assert rig.status().state is BreakerState.OPEN
    rig.clock.now_ms += 1
    assert rig.status() == BreakerStatus(BreakerState.HALF_OPEN, 0.0, 5, calls=5, failures=5, openings=1)
    assert rig.admit().is_probe
    assert rig.status() == BreakerStatus(BreakerState.HALF_OPEN, 60.0, 5, calls=5, failures=5, openings=1)


def test_the_cool_down_doubles_up_to_the_longest_and_a_success_ends_its_growth(rig: Rig) -> None:
    rig.open()
    waits = [rig.wait_s()]
    for _ in range(6):
        rig.pass_cool_down()
        assert rig.fail() is True
        waits.append(rig.wait_s())
    assert waits == [5.0, 10.0, 20.0, 40.0, 80.0, 120.0, 120.0]
    assert rig.status().openings == 7
    rig.pass_cool_down()
    assert rig.succeed() is True
    rig.open()
    assert rig.wait_s() == 5.0


@pytest.mark.parametrize("settings", [BreakerSettings(longest_cool_down_s=5.0)])
@pytest.mark.parametrize(
    ("jitter", "wait_s"), [(0.0, 4.0), (0.25, 4.5), (0.5, 5.0), (0.1234, 4.247), (1 - 2**-53, 6.0)]
)
def test_jitter_is_a_fifth_more_or_less_also_of_the_longest(rig: Rig, jitter: float, wait_s: float) -> None:
    rig.jitter = jitter
    rig.open()
    assert rig.wait_s() == wait_s
    rig.pass_cool_down()
    rig.fail()
    assert rig.wait_s() == wait_s


def test_each_opening_draws_its_own_jitter(rig: Rig) -> None:
    rig.open()
    rig.pass_cool_down()
    rig.jitter = 0.0
    rig.fail()
    assert rig.wait_s() == 8.0


def test_one_of_many_that_ask_together_probes_and_the_others_ask_again_in_a_second(rig: Rig) -> None:
    async def ask_together() -> list[Ticket | Refused]:
        return await asyncio.gather(*(rig.breaker.admit(NAME, probe_s=60) for _ in range(50)))

    rig.open()
    rig.pass_cool_down()
    answers = rig.run(ask_together())
    assert [answer.is_probe for answer in answers if isinstance(answer, Ticket)] == [True]
    assert [answer for answer in answers if isinstance(answer, Refused)] == [Refused(1.0)] * 49


def test_a_probe_that_succeeds_closes_and_clears_all_counts(rig: Rig) -> None:
    rig.open()
    rig.pass_cool_down()
    assert rig.succeed() is True
    assert rig.status() == closed()
    assert not rig.admit().is_probe
    assert rig.calls("ffff") == [False] * 4


def test_a_probe_that_fails_opens_again_for_longer(rig: Rig) -> None:
    rig.open()
    rig.pass_cool_down()
    assert rig.fail() is True
    assert rig.status() == BreakerStatus(BreakerState.OPEN, 10.0, 6, calls=6, failures=6, openings=2)


@by_ratio
def test_a_probe_that_fails_opens_again_also_when_nothing_else_would(rig: Rig) -> None:
    rig.calls("fs" * 9 + "ff")
    rig.clock.now_ms += 60_000
    assert rig.fail() is True
    assert rig.status() == BreakerStatus(BreakerState.OPEN, 10.0, 3, calls=1, failures=1, openings=2)


def test_a_dead_prober_is_followed_when_its_lease_ends(rig: Rig) -> None:
    rig.open()
    rig.pass_cool_down()
    dead = rig.admit(probe_s=1.5)
    rig.clock.now_ms += 1_499
    assert rig.wait_s() == 0.001
    rig.clock.now_ms += 1
    follower = rig.admit(probe_s=60)
    assert follower.is_probe
    assert follower.epoch == dead.epoch + 1

    before = rig.stored()
    assert (rig.succeed(dead), rig.fail(dead)) == (False, False)
    rig.abandon(dead)
    assert rig.stored() == before
    assert rig.wait_s() == 1.0
    assert rig.succeed(follower) is True


@pytest.mark.parametrize("verdict", ["s", "f"])
def test_a_probe_whose_lease_ended_still_decides_while_nobody_followed(rig: Rig, verdict: str) -> None:
    rig.open()
    rig.pass_cool_down()
    probe = rig.admit(probe_s=1.0)
    rig.clock.now_ms += 10_000
    assert (rig.succeed(probe) if verdict == "s" else rig.fail(probe)) is True
    assert rig.status().state is (BreakerState.CLOSED if verdict == "s" else BreakerState.OPEN)


def test_late_results_of_an_older_epoch_change_nothing_in_any_state(rig: Rig) -> None:
    late = [rig.admit() for _ in range(20)]

    def all_change_nothing() -> None:
        before = rig.stored()
        assert [rig.fail(ticket) for ticket in late[:6]] == [False] * 6
        assert [rig.succeed(ticket) for ticket in late[6:12]] == [False] * 6
        for ticket in late[12:]:
            rig.abandon(ticket)
        assert rig.stored() == before

    rig.open()
    all_change_nothing()
    rig.pass_cool_down()
    all_change_nothing()
    probe = rig.admit()
    all_change_nothing()
    rig.succeed(probe)
    rig.calls("ffff")
    all_change_nothing()
    assert rig.fail() is True


def test_an_abandoned_probe_gives_its_place_back_at_once_and_is_then_late(rig: Rig) -> None:
    rig.open()
    rig.pass_cool_down()
    probe = rig.admit()
    assert rig.wait_s() == 1.0
    rig.abandon(probe)
    assert rig.status() == BreakerStatus(BreakerState.HALF_OPEN, 0.0, 5, calls=5, failures=5, openings=1)

    before = rig.stored()
    assert (rig.succeed(probe), rig.fail(probe)) == (False, False)
    assert rig.stored() == before
    assert rig.admit().is_probe
    rig.abandon(probe)
    assert rig.wait_s() == 1.0


def test_an_abandoned_probe_does_not_prolong_the_cool_down(rig: Rig) -> None:
    rig.open()
    rig.pass_cool_down()
    for _ in range(3):
        rig.abandon()
    rig.fail()
    assert rig.wait_s() == 10.0


def test_an_abandoned_call_counts_for_nothing(rig: Rig) -> None:
    rig.calls("ffff")
    before = rig.stored()
    rig.abandon()
    assert rig.stored() == before
    assert rig.fail() is True


def test_what_is_not_reported_does_not_count(rig: Rig) -> None:
    rig.calls("ffff")
    for _ in range(100):
        rig.admit()
    assert rig.status() == closed(in_a_row=4, calls=4, failures=4)


def test_a_repeated_report_counts_once(rig: Rig) -> None:
    ill, well = rig.admit(), rig.admit()
    assert [rig.fail(ill) for _ in range(5)] == [False] * 5
    assert rig.status() == closed(in_a_row=1, calls=1, failures=1)
    rig.succeed(well)
    rig.fail()
    rig.succeed(well)
    assert rig.status() == closed(in_a_row=1, calls=3, failures=2)


def test_a_report_is_known_for_31_others(rig: Rig) -> None:
    ill = rig.admit()
    rig.fail(ill)
    rig.calls("s" * 31)
    rig.fail(ill)
    assert rig.status() == closed(calls=32, failures=1)


def test_the_report_that_opened_says_so_again_and_does_not_open_for_longer(rig: Rig) -> None:
    rig.calls("ffff")
    opener = rig.admit()
    assert rig.fail(opener) is True
    before = rig.stored()
    assert rig.fail(opener) is True
    assert rig.stored() == before

    rig.pass_cool_down()
    probe = rig.admit()
    assert (rig.fail(probe), rig.fail(probe)) == (True, True)
    assert rig.wait_s() == 10.0


def test_the_report_that_closed_says_so_again(rig: Rig) -> None:
    rig.open()
    rig.pass_cool_down()
    probe = rig.admit()
    assert (rig.succeed(probe), rig.succeed(probe)) == (True, True)
    assert rig.status() == closed()


def test_a_probe_that_is_asked_for_again_is_the_same_probe(rig: Rig) -> None:
    def ask(ticket: str) -> dict[str, Any]:
        given = {"ticket": ticket, "probe_ms": 60_000, "now_ms": rig.clock.now_ms}
        return rig.run(AsyncScripts(rig.client).run("breaker_admit", [KEY], given))

    rig.open()
    rig.pass_cool_down()
    first = ask("a" * 16)
    assert first["is_probe"]
    assert ask("a" * 16) == first
    assert ask("b" * 16) == {"wait_ms": 1_000}
    probe = Ticket(NAME, "a" * 16, first["epoch"], is_probe=True)
    rig.abandon(probe)
    assert ask("a" * 16) == first | {"epoch": first["epoch"] + 2}
    assert rig.fail(replace(probe, epoch=first["epoch"] + 2)) is True
    assert ask("a" * 16) == {"wait_ms": 10_000}


def test_every_change_of_state_and_every_probe_begins_a_later_epoch(rig: Rig) -> None:
    epochs = [rig.admit().epoch, rig.admit().epoch]
    rig.open()
    for report in (rig.abandon, rig.fail, rig.succeed):
        rig.clock.now_ms += 300_000
        probe = rig.admit()
        epochs.append(probe.epoch)
        report(probe)
    epochs.append(rig.admit().epoch)
    # opened 1, probe 2, given back 3, probe 4, opened 5, probe 6, closed 7
    assert [epoch - START_MS for epoch in epochs] == [0, 0, 2, 4, 6, 7]


def test_deployments_have_breakers_of_their_own(rig: Rig) -> None:
    rig.open()
    other = rig.admit("large/opus-9")
    assert not other.is_probe
    rig.succeed(other)
    assert rig.wait_s() == 5.0
    assert set(rig.redis.keys()) == {KEY, "{penstock:breaker:large/opus-9}"}


def test_a_breaker_that_redis_lost_is_closed_and_knows_no_ticket_from_before(rig: Rig) -> None:
    before = rig.admit()
    rig.open()
    rig.redis.flushall()
    rig.clock.now_ms += 1_000
    assert (rig.fail(before), rig.succeed(before)) == (False, False)
    rig.abandon(before)
    assert rig.redis.keys() == []
    assert not rig.admit().is_probe
    assert [rig.fail(before) for _ in range(5)] == [False] * 5
    assert rig.status() == closed()


def test_status_changes_nothing(rig: Rig) -> None:
    assert rig.status() == closed()
    assert rig.redis.keys() == []
    rig.open()
    for later_ms in (0, 5_000, 60_000):
        rig.clock.now_ms += later_ms
        before = rig.stored()
        rig.redis.pexpire(KEY, 2 * HOUR_MS)
        rig.status()
        assert rig.stored() == before
        assert int(rig.redis.pttl(KEY)) > HOUR_MS + HOUR_MS // 2


@pytest.mark.parametrize("settings", [BreakerSettings(cool_down_s=1800, longest_cool_down_s=1800)])
def test_a_breaker_is_kept_for_an_hour_longer_than_it_has_to_wait(rig: Rig) -> None:
    def kept_s() -> int:
        return round(int(rig.redis.pttl(KEY)) / 1000)

    ticket = rig.admit()
    assert kept_s() == 3600
    for report in (rig.fail, rig.succeed):
        rig.redis.pexpire(KEY, HOUR_MS - 30_000)
        report(ticket)
        ticket = rig.admit()
        assert kept_s() == 3600
    rig.open()
    assert kept_s() == 5400
    rig.pass_cool_down()
    probe = rig.admit(probe_s=7200)
    assert kept_s() == 10_800
    rig.abandon(probe)
    assert kept_s() == 3600
    rig.succeed()
    assert kept_s() == 3600


def test_without_a_clock_redis_decides_and_the_status_needs_no_loop(
    broker: redis.Redis, services: EmbeddedServices
) -> None:
    settings = BreakerSettings(cool_down_s=1000, longest_cool_down_s=1000)
    rig = Rig(services.redis.socket_path, settings, virtual=False)
    client = sync_redis(f"unix://{services.redis.socket_path}")
    try:
        assert read_status(SyncScripts(client), NAME, settings) == closed()
        before_s, _ = redis.Redis.time(broker)
        assert rig.admit().epoch // 1000 - before_s in {0, 1}
        rig.open()
        status = read_status(SyncScripts(client), NAME, settings)
        assert status == BreakerStatus(BreakerState.OPEN, status.wait_s, 5, calls=5, failures=5, openings=1)
        assert 990 < status.wait_s <= 1000
        assert 990 < rig.wait_s() <= status.wait_s
    finally:
        client.close()
        rig.close()


def test_a_redis_that_is_away_is_the_callers_to_know(tmp_path: Path) -> None:
    rig = Rig(tmp_path / "nobody.sock", BreakerSettings())
    ticket = Ticket(NAME, "a" * 16, START_MS, is_probe=False)
    breaker = rig.breaker
    calls: list[Callable[[], Coroutine[Any, Any, object]]] = [
        lambda: breaker.admit(NAME, probe_s=1),
        lambda: breaker.succeeded(ticket),
        lambda: breaker.failed(ticket),
        lambda: breaker.abandoned(ticket),
        lambda: breaker.status(NAME),
    ]
    for call in calls:
        with pytest.raises(redis.exceptions.ConnectionError):
            rig.runner.run(call())
    rig.close()


@pytest.mark.parametrize(
    "wrong",
    [
        {"consecutive_failures": 0},
        {"consecutive_failures": 33},
        {"failure_ratio": 0},
        {"failure_ratio": 1.01},
        {"minimum_calls": 0},
        {"window_s": 0.9},
        {"cool_down_s": 0},
        {"cool_down_s": float("nan")},
        {"longest_cool_down_s": float("inf")},
        {"cool_down_s": 6, "longest_cool_down_s": 5},
    ],
)
def test_settings_that_make_no_breaker_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValidationError):
        BreakerSettings.model_validate(wrong)
