"""A process that works on parcels dies, and another goes on: nothing is bought twice, nothing is missing."""

import asyncio
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import httpx
import pytest
from sqlalchemy import event, text

from penstock import failpoints
from penstock.failpoints import Failpoint
from penstock.overnight.desk import Desk
from tests.conftest import TABLES
from tests.money.books import assert_balanced
from tests.overnight.night import AT_ONCE, MANY_STEPS, Night, take

PLACES = [place for place in Failpoint if place.startswith("parcel_")]
JOBS = 5


class DiedError(BaseException):
    """The process is gone: nothing catches this."""


def die(*_: object) -> None:
    raise DiedError


@contextmanager
def dying_at(place: Failpoint, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Die where the failpoint is, as a killed process would."""
    with monkeypatch.context() as patch:
        patch.setattr(failpoints, "ARMED", place)
        patch.setattr(os, "kill", die)
        yield


def assert_all_is_well(night: Night) -> None:
    """Check that every job has its answer, paid once; and that one batch was made of each file."""
    assert night.states() == {"succeeded": JOBS}
    night.assert_paid_once()
    assert night.invoice()["calls"] == JOBS
    assert_balanced(night.rooms.engine)
    assert set(night.parcels()) == {"ended"}


def work_twice(night: Night) -> None:
    night.work()
    night.work()


@pytest.mark.parametrize("place", PLACES)
def test_killed_at_any_place_and_resumed(night: Night, place: Failpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    night.terms = replace(AT_ONCE, most_requests=3)
    night.begin(JOBS)
    with dying_at(place, monkeypatch), pytest.raises(DiedError):
        work_twice(night)
    work_twice(night)
    night.work()
    assert_all_is_well(night)
    assert sorted(batch["request_counts"]["total"] for batch in night.provider_batches()) == [2, 3]


def test_killed_before_any_of_its_commits_and_resumed(night: Night) -> None:
    """Whatever was done since the commit before, at the provider too, is not known to the process that goes on."""
    number, done = 0, False
    while not done:
        number += 1
        with night.rooms.engine.begin() as connection:
            connection.execute(text(f"TRUNCATE {TABLES} CASCADE"))
        httpx.post(f"{night.rooms.simulator}/reset").raise_for_status()
        night.pace(0)
        night.begin(JOBS)
        done = night.at_desk(die_before_commit(number))
        night.work()
        assert_all_is_well(night)
        assert len(night.provider_batches()) == 1
    assert number > 10


def die_before_commit(number: int) -> Callable[[Desk], Any]:
    """Work until the commit of that number is to be made; tells whether there were fewer."""
    left = number

    def count_down(_connection: object) -> None:
        nonlocal left
        left -= 1
        if left == 0:
            raise DiedError

    async def work(desk: Desk) -> bool:
        engine = desk.house.engine.sync_engine
        event.listen(engine, "commit", count_down)
        try:
            await take(desk, MANY_STEPS)
        except DiedError:
            return False
        finally:
            event.remove(engine, "commit", count_down)
        return True

    return work


def test_any_number_of_processes_work_side_by_side(night: Night) -> None:
    night.terms = replace(AT_ONCE, most_requests=1, hold_s=60)
    night.begin(JOBS)

    async def beside(desk: Desk) -> None:
        await asyncio.gather(*(take(desk, MANY_STEPS) for _ in range(4)))

    for _ in range(JOBS):
        night.at_desk(beside)
    assert_all_is_well(night)
    assert [batch["request_counts"]["total"] for batch in night.provider_batches()] == [1] * JOBS


def test_who_has_lost_the_turn_sends_and_writes_nothing(night: Night) -> None:
    night.begin(JOBS)
    night.work(3)
    assert night.parcels() == {"uploaded": 1}

    night.at_desk(lambda desk: take(replace(desk, files=Overtaken(desk)), 1))
    assert_all_is_well(night)
    assert len(night.provider_batches()) == 1


class Overtaken:
    """The provider of files, where each creation takes so long that another process has done everything meanwhile."""

    def __init__(self, desk: Desk) -> None:
        """Take the desk at which that happens."""
        self.desk = desk

    def __getattr__(self, name: str) -> Any:
        return getattr(self.desk.files, name)

    async def create(self, *given: Any, **named: Any) -> Any:
        """Create a batch, and let the other one find it and go on to the end."""
        created = await self.desk.files.create(*given, **named)
        await take(self.desk, MANY_STEPS)
        return created
