"""`penstock reconcile`, and what is said when Postgres is in the way: one line with the reason and the cure."""

import time
from datetime import UTC, datetime
from pathlib import Path

import psycopg
import pytest
from sqlalchemy import Engine, text
from sqlalchemy.exc import DBAPIError

from penstock.cli import database_trouble
from penstock.cli.options import parse_time
from penstock.client import Client
from penstock.money import ledger
from penstock.money.ledger import CallOutcome, Settlement
from tests import test_cli
from tests.jobs import rows
from tests.jobs.rows import UPPER_BOUND
from tests.money.accounts import run
from tests.test_cli import Penstock

bare, penstock, client = test_cli.bare, test_cli.penstock, test_cli.client


def test_an_export_is_tried_then_reconciled_and_every_count_is_told(
    penstock: Penstock, engine: Engine, client: Client, tmp_path: Path
) -> None:
    billed, lacking, late = (rows.intent(rows.running_job(engine)) for _ in range(3))
    with engine.begin() as connection:
        ledger.intend(connection, [billed, lacking, late])
        ledger.settle(connection, [Settlement(each.call_id, CallOutcome.UNKNOWN, None) for each in (billed, lacking)])
        ledger.settle(connection, [Settlement(late.call_id, CallOutcome.UNKNOWN, None)])
        ledger.settle(connection, [Settlement(late.call_id, CallOutcome.ANSWERED, 300)])
    export = tmp_path / "export.csv"
    export.write_text(f"call_id,dollars\n{billed.call_id},0.0000004\nreq_17,2\n")
    now = datetime.now(UTC).replace(tzinfo=None).isoformat()
    command = ("reconcile", export, "--complete", "--account", "simulator", "--since", "1d", "--until", now)

    trial = penstock(*command, "--dry-run")
    assert trial.err == ""
    assert client.ledger_totals().nanodollars == 2 * UPPER_BOUND + 300
    ran = penstock(*command)

    told = {" ".join(words): int(count) for count, *words in map(str.split, ran.out.splitlines()[:-2])}
    assert list(told.values()) == [2, 1, 2, 0, 1, 1, 0, 1, 0]
    assert told["calls that it lacks though an answer came late: left as they are, ask the provider"] == 1
    assert ran.out.splitlines()[-2:] == ["the ledger changed by -$0.0000016", "what is in no row comes to $2.00"]
    assert trial.out == ran.out.replace("changed by", "would change by")
    assert client.ledger_totals().nanodollars == 400 + 0 + 300
    again = penstock(*command, "--json").lines[0]
    assert (again["corrected"], again["answered_not_billed"], again["change_nanodollars"]) == (0, 1, 0)


@pytest.mark.parametrize("zone", ["America/New_York", "Asia/Tokyo"])
def test_a_time_without_an_offset_is_utc(monkeypatch: pytest.MonkeyPatch, zone: str) -> None:
    monkeypatch.setenv("TZ", zone)
    time.tzset()
    try:
        assert parse_time("2026-01-01", "--since") == datetime(2026, 1, 1, tzinfo=UTC)
        assert parse_time("2026-01-01T02:00+02:00", "--since") == datetime(2026, 1, 1, tzinfo=UTC)
    finally:
        monkeypatch.undo()
        time.tzset()


@pytest.mark.parametrize(
    ("state", "says"),
    [
        ("55P03", "Postgres: others hold what this needs: it says why; this step changed nothing, try again"),
        ("40P01", "Postgres: others held what this needed while they waited for it; this step changed nothing, try"),
        ("42703", "Postgres: its tables are older than this code; run `penstock migrate`"),
        ("42P01", "Postgres: Penstock's tables are not there; run `penstock migrate`"),
        ("42501", "Postgres: it says why; connect as the owner of the tables, see docs/isolation.md"),
        ("25P03", "Postgres: it was ended since it took too long between two statements; this step changed nothing"),
        ("53300", "Postgres: it has no connection left; try again, or raise max_connections"),
        ("53100", "Postgres: it says why; mend that, and try again"),
        ("57014", "Postgres: it says why; mend that, and try again"),
        (
            "57P01",
            "Postgres cannot be reached: it says why; start it (`penstock up`), or correct PENSTOCK_DATABASE_URL",
        ),
        (
            "57P03",
            "Postgres cannot be reached: it says why; start it (`penstock up`), or correct PENSTOCK_DATABASE_URL",
        ),
        (
            "08006",
            "Postgres cannot be reached: it says why; start it (`penstock up`), or correct PENSTOCK_DATABASE_URL",
        ),
        (None, "Postgres cannot be reached: it says why; start it (`penstock up`), or correct PENSTOCK_DATABASE_URL"),
    ],
)
def test_trouble_with_postgres_is_told_by_its_kind(state: str | None, says: str) -> None:
    assert (database_trouble(raised(state)) or "").startswith(says)


@pytest.mark.parametrize("state", ["23505", "25P02", "42601"])
def test_a_fault_of_ours_is_no_trouble_with_postgres(state: str) -> None:
    assert database_trouble(raised(state)) is None


def raised(state: str | None) -> Exception:
    """Give what SQLAlchemy raises for an error of Postgres, or for one of the connection itself."""
    kind = psycopg.errors.lookup(state) if state else psycopg.OperationalError
    return DBAPIError.instance("SELECT 1", {}, kind("it says why\nand more"), psycopg.Error)


def test_a_table_that_somebody_holds_is_told_to_be_held(engine: Engine) -> None:
    with engine.connect() as holder, engine.connect() as waiter:
        holder.execute(text("LOCK TABLE budgets"))
        waiter.execute(text("SET LOCAL lock_timeout = '10ms'"))
        with pytest.raises(DBAPIError) as held:
            waiter.execute(text("SELECT * FROM budgets"))
    assert (database_trouble(held.value) or "").startswith("Postgres: others hold what this needs")


def test_tables_that_are_older_than_the_code_are_told_with_the_cure(penstock: Penstock, engine: Engine) -> None:
    run(engine, "ALTER TABLE budgets RENAME COLUMN on_exhausted TO since_renamed")
    try:
        ran = penstock("budgets", "list")
    finally:
        run(engine, "ALTER TABLE budgets RENAME COLUMN since_renamed TO on_exhausted")
    assert (ran.code, ran.error()) == (2, "Postgres: its tables are older than this code; run `penstock migrate`")
