"""The code before version 0003 goes on beside it, beside today's code, and is told what 0004 takes from it."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import Engine, text
from sqlalchemy.exc import DBAPIError

from penstock.money import ledger
from penstock.money.ledger import CallOutcome, Settlement
from penstock.schemas import Usage
from penstock.store.db import sync_engine
from penstock.store.schema import migrate
from tests.jobs import rows
from tests.money.books import assert_balanced
from tests.store import old_code
from tests.store.conftest import Move
from tests.store.databases import WITHOUT_HASTE, blocked, contents, eventually, run
from tests.store.old_code import UPPER_BOUND

CLOSED = "SELECT state, nanodollars, upper_bound_tokens, outcome FROM ledger WHERE call_id = :call_id"
PREPARES_AFTER = 5
"""How often psycopg runs a statement before it has the server keep its plan."""


def closed(engine: Engine, call_id: UUID) -> tuple[Any, ...]:
    """Give state, cost, bound in tokens and outcome of a call."""
    [row] = run(engine, CLOSED, call_id=call_id)
    return tuple(row)


def settle(engine: Engine, call_id: UUID, nanodollars: int | None) -> None:
    """State what a call came to, as today's code does; None: nobody knows."""
    outcome = CallOutcome.UNKNOWN if nanodollars is None else CallOutcome.ANSWERED
    usage = Usage() if nanodollars is None else Usage(input_tokens=70, cached_input_tokens=20, output_tokens=10)
    with engine.begin() as connection:
        ledger.settle(connection, [Settlement(call_id, outcome, nanodollars, usage)])


def settle_late(engine: Engine, call_id: UUID) -> None:
    settle(engine, call_id, None)
    settle(engine, call_id, 300)


def abandon(engine: Engine, call_id: UUID) -> None:
    [row] = run(engine, "SELECT job_id FROM ledger WHERE call_id = :call_id", call_id=call_id)
    old_code.stop(engine, row.job_id)
    with engine.begin() as connection:
        assert ledger.abandon(connection, older_than_s=0) == [call_id]


def held_call(engine: Engine) -> UUID:
    """Intend a call as today's code does: it holds its upper bound."""
    intent = rows.intent(rows.running_job(engine))
    with engine.begin() as connection:
        ledger.intend(connection, [intent])
    return intent.call_id


def test_the_code_before_the_third_version_goes_on_beside_it(database: Engine, move: Move) -> None:
    move("0002")
    job_id = old_code.run_job(database)
    move("0003")
    others = [old_code.run_job(database), old_code.run_job(database, "globex")]
    settled, unknown, late, lost = (old_code.intend(database, job_id) for _ in range(4))
    old_code.settle(database, settled, 300)
    old_code.settle(database, unknown, None, "time_limit")
    old_code.settle(database, late, None, "time_limit")
    old_code.settle(database, late, 200)
    assert old_code.intend(database, job_id, settled) == settled
    old_code.finish(database, job_id)
    assert old_code.abandon(database) == [lost]

    assert [closed(database, call_id) for call_id in (settled, unknown, late, lost)] == [
        ("settled", 300, None, None),
        ("unknown", UPPER_BOUND, None, None),
        ("settled", 200, None, None),
        ("unknown", UPPER_BOUND, None, None),
    ]
    found = contents(database)
    assert [answer["call_id"] for answer in found["answers"]] == [settled]
    assert [(row["text"], row["over_soft_limit"], row["fetched_at"]) for row in found["results"]] == [
        ("A tale.", False, None)
    ]
    assert {row["id"]: row["state"] for row in found["jobs"]} == {job_id: "succeeded"} | dict.fromkeys(
        others, "running"
    )
    assert found["spending"] == []


@pytest.mark.parametrize("version", ["0008", "0009", "0010"])
@pytest.mark.parametrize(
    "close",
    [
        lambda engine, call_id: settle(engine, call_id, 300),
        lambda engine, call_id: settle(engine, call_id, None),
        settle_late,
        abandon,
    ],
    ids=["settled", "unknown", "late", "abandoned"],
)
def test_the_new_code_closes_calls_of_the_old_and_gives_back_no_hold_that_they_never_had(
    database: Engine, move: Move, version: str, close: Callable[[Engine, UUID], None]
) -> None:
    move("0002")
    before = old_code.intend(database, old_code.run_job(database))
    move("0003")
    beside = old_code.intend(database, old_code.run_job(database))
    move(version)
    held_call(database)
    for call_id in (before, beside):
        close(database, call_id)
        says = assert_balanced(database)
        assert {its.held for its in says.values()} == {(rows.UPPER_BOUND, rows.UPPER_BOUND)}


def beside_settled(engine: Engine) -> None:
    """Old code makes a call of its own."""
    old_code.settle(engine, old_code.intend(engine, old_code.run_job(engine)), 300)


def beside_abandoned(engine: Engine) -> None:
    """Old upkeep closes a call of the new code whose run is over."""
    call_id = held_call(engine)
    [row] = run(engine, "SELECT job_id FROM ledger WHERE call_id = :call_id", call_id=call_id)
    old_code.stop(engine, row.job_id)
    assert old_code.abandon(engine) == [call_id]


def beside_late(engine: Engine) -> None:
    """Old code hears late of a call that had been booked as unknown."""
    [row] = run(engine, "SELECT call_id FROM ledger WHERE state = 'unknown'")
    old_code.settle(engine, row.call_id, 300)


@pytest.mark.parametrize("beside", [beside_settled, beside_abandoned, beside_late])
def test_what_the_old_code_closed_is_booked_once_its_last_process_has_stopped(
    database: Engine, move: Move, beside: Callable[[Engine], None]
) -> None:
    move("0002")
    old_code.settle(database, old_code.intend(database, old_code.run_job(database)), None)
    move("0008")
    beside(database)
    assert migrate(database, contract=True) == []
    assert_balanced(database)


def test_the_old_code_changes_no_closed_row_once_the_schema_has_contracted(database: Engine, move: Move) -> None:
    move("0008")
    job_id = old_code.run_job(database)
    settled, unknown, open_ = (old_code.intend(database, job_id) for _ in range(3))
    old_code.settle(database, settled, 300)
    old_code.settle(database, unknown, None)
    move("0009")
    before = contents(database)
    for change in (
        lambda: old_code.settle(database, unknown, 200),
        lambda: old_code.intend(database, job_id, settled),
        lambda: run(database, "DELETE FROM ledger WHERE call_id = :id", id=settled),
    ):
        with pytest.raises(DBAPIError, match="a closed row of ledger is never changed; corrections are rows"):
            change()
    assert contents(database) == before
    old_code.settle(database, open_, 100)
    assert closed(database, open_) == ("settled", 100, None, None)


def test_a_call_of_the_old_code_and_the_migration_do_not_stop_each_other(database: Engine, move: Move) -> None:
    move("0002")
    job_id = old_code.run_job(database)
    with ThreadPoolExecutor(2) as threads, database.connect() as reader:
        reader.execute(WITHOUT_HASTE)
        reader.execute(text("SELECT * FROM results"))
        migrating = threads.submit(migrate, database)
        eventually(lambda: blocked(database) == 1)
        calling = threads.submit(old_code.intend, database, job_id)
        eventually(lambda: calling.done() or blocked(database) == 2)
        reader.rollback()
        assert migrating.result() == ["0009", "0010"]
        assert closed(database, calling.result()) == ("intent", UPPER_BOUND, None, None)


def test_a_connection_on_which_jobs_were_claimed_before_claims_them_after_a_column_was_added(
    database: Engine, move: Move
) -> None:
    move("head")
    jobs = [rows.new_job() for _ in range(2 * PREPARES_AFTER)]
    rows.submit(database, *jobs)
    rows.start_worker(database)
    worker = sync_engine(database.url.render_as_string(hide_password=False), connections=1)
    for job in jobs[: PREPARES_AFTER + 1]:
        assert rows.claim(worker, job.id) is not None
    run(database, "ALTER TABLE jobs ADD COLUMN anything text")
    try:
        assert rows.claim(worker, jobs[-1].id) is not None
    finally:
        worker.dispose()
