"""`migrate` goes as far as older code can bear, whoever else migrates; what expands takes nothing from older code."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from threading import Event
from typing import Any

import pytest
from sqlalchemy import Connection, Engine, event, text
from sqlalchemy.exc import OperationalError

from penstock.jobs.execution import ClaimedJob
from penstock.money import ledger
from penstock.money.ledger import CallOutcome, Settlement
from penstock.store import schema
from penstock.store.schema import MIGRATION_LOCK, migrate
from tests.jobs import rows
from tests.money.books import assert_balanced
from tests.store import old_code
from tests.store.conftest import Move
from tests.store.databases import (
    WITHOUT_HASTE,
    address,
    blocked,
    bring_to,
    contents,
    describe,
    eventually,
    phases,
    run,
    version,
)
from tests.store.old_code import UPPER_BOUND

NEWEST = "0010"
EXPANDED = "0008"
WAITING = ["0009", "0010"]
"""Where the schema ends, where it waits for code from before 0003 to stop, and what waits then."""

COMMENT = re.compile(r"--[^\n]*|/\*.*?\*/|COMMENT ON [^;]*", re.DOTALL | re.IGNORECASE)
NARROWS = {
    "it drops something": r"DROP (?!CONSTRAINT)",
    "it renames something": r"RENAME",
    "it changes the type of a column": r"ALTER (COLUMN )?\S+ (SET DATA )?TYPE",
    "it forbids NULL": r"SET NOT NULL",
    "it adds a column that older code does not fill": r"ADD COLUMN (?![^,;]* DEFAULT )[^,;]* (NOT NULL|PRIMARY KEY)",
    "it adds a constraint": r"ADD (CONSTRAINT|CHECK|UNIQUE|PRIMARY KEY|FOREIGN KEY|EXCLUDE)",
    "it adds a unique index": r"CREATE UNIQUE INDEX",
    "it adds a trigger or a rule": r"CREATE (OR REPLACE )?(CONSTRAINT )?(TRIGGER|RULE)",
    "it takes rows away": r"TRUNCATE|DELETE FROM",
    "it takes a right away": r"REVOKE",
}
"""What a migration that expands must not say: older code could no longer write, or read what it wrote."""

LATER = """
revision = "{revision}"
down_revision = "{before}"
phase = "{phase}"


def upgrade() -> None:
    from alembic import op

    op.execute("CREATE TABLE t{revision} (id integer)")


def downgrade() -> None:
    pass
"""


def narrowing(sql: str) -> list[str]:
    """Say by what a text takes something from older code."""
    words = " ".join(COMMENT.sub(" ", sql).split()).replace("( ", "(")
    for table in re.findall(r"CREATE TABLE (\w+)", words):  # a table that older code does not know
        words = re.sub(rf"CREATE UNIQUE INDEX \w+ ON {table}\b", "", words)
    return [why for why, pattern in NARROWS.items() if re.search(rf"\b(?:{pattern})\b", words, re.IGNORECASE)]


@contextmanager
def statements(engine: Engine) -> Iterator[list[str]]:
    """Collect what is run on the engine."""
    run: list[str] = []

    def note(_connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
        run.append(statement)

    event.listen(engine, "before_cursor_execute", note)
    try:
        yield run
    finally:
        event.remove(engine, "before_cursor_execute", note)


def others(run: list[str]) -> str:
    """Give what is not Alembic's own bookkeeping."""
    return ";\n".join(each for each in run if "alembic_version" not in each)


def test_the_phase_of_every_migration_is_one_of_two() -> None:
    assert list(phases()) == [f"{number:04}" for number in range(1, len(phases()) + 1)]
    assert set(phases().values()) == {"expand", "contract"}
    assert [name for name, phase in phases().items() if phase == "contract"] == WAITING


@pytest.mark.parametrize("name", [name for name, phase in phases().items() if phase == "expand" and name >= "0003"])
def test_a_migration_that_expands_takes_nothing_from_older_code(database: Engine, move: Move, name: str) -> None:
    move(f"{int(name) - 1:04}")
    with statements(database) as run:
        move(name)
    assert any(word in others(run) for word in ("ADD COLUMN", "CREATE TABLE", "INSERT INTO spending"))
    assert narrowing(others(run)) == []


@pytest.mark.parametrize(
    ("sql", "why"),
    [
        ("ALTER TABLE jobs DROP COLUMN detail", "it drops something"),
        ("DROP TABLE answers", "it drops something"),
        ("DO $$ BEGIN DROP INDEX jobs_dead; END $$", "it drops something"),
        ("ALTER TABLE jobs RENAME COLUMN detail TO details", "it renames something"),
        ("alter table jobs\n    rename to work", "it renames something"),
        ("ALTER TABLE jobs ALTER COLUMN fence TYPE integer", "it changes the type of a column"),
        ("ALTER TABLE jobs ALTER fence SET DATA TYPE integer", "it changes the type of a column"),
        ("ALTER TABLE jobs ALTER COLUMN detail\n    SET NOT NULL", "it forbids NULL"),
        ("ALTER TABLE jobs ADD COLUMN a text NOT NULL", "it adds a column that older code does not fill"),
        (
            "ALTER TABLE jobs ADD COLUMN a text NOT NULL DEFAULT '', ADD COLUMN b text NOT NULL",
            "it adds a column that older code does not fill",
        ),
        (
            "ALTER TABLE jobs ADD COLUMN b text NOT NULL, ADD COLUMN a text NOT NULL DEFAULT ''",
            "it adds a column that older code does not fill",
        ),
        ("ALTER TABLE jobs ADD CONSTRAINT positive CHECK (fence > 0)", "it adds a constraint"),
        ("ALTER TABLE jobs ADD CHECK (fence > 0)", "it adds a constraint"),
        ("CREATE UNIQUE INDEX jobs_once ON jobs (content_digest)", "it adds a unique index"),
        ("CREATE TRIGGER t BEFORE UPDATE ON jobs EXECUTE FUNCTION f()", "it adds a trigger or a rule"),
        ("CREATE OR REPLACE TRIGGER t BEFORE UPDATE ON jobs EXECUTE FUNCTION f()", "it adds a trigger or a rule"),
        ("CREATE CONSTRAINT TRIGGER t AFTER UPDATE ON jobs EXECUTE FUNCTION f()", "it adds a trigger or a rule"),
        ("DELETE FROM tenant_shares", "it takes rows away"),
        ("REVOKE INSERT ON jobs FROM penstock", "it takes a right away"),
    ],
)
def test_a_text_that_narrows_is_told_by_what(sql: str, why: str) -> None:
    harmless = "ALTER TABLE results ADD COLUMN z text;\n"
    assert narrowing(sql) == narrowing(f"{harmless}{sql};\n{harmless}") == [why]


@pytest.mark.parametrize(
    "sql",
    [
        "ALTER TABLE jobs ADD COLUMN a text",
        "ALTER TABLE jobs ADD COLUMN a text NOT NULL DEFAULT '', ADD COLUMN b text CHECK (b IN ('x', 'y'))",
        "CREATE TABLE t (id uuid NOT NULL REFERENCES jobs, PRIMARY KEY (id), CONSTRAINT c CHECK (true))",
        "CREATE INDEX i ON jobs (fence) WHERE detail IS NOT NULL",
        "COMMENT ON COLUMN jobs.fence IS 'a trigger would DROP it'; CREATE TABLE t (id uuid)",
        "-- nothing is dropped: DROP TABLE jobs\nCREATE TABLE t (dropped_at timestamptz /* RENAME */)",
    ],
)
def test_a_text_that_adds_is_let_through(sql: str) -> None:
    assert narrowing(sql) == []


def test_what_contracts_would_be_refused_as_an_expansion(database: Engine, move: Move) -> None:
    move(EXPANDED)
    with statements(database) as run:
        move("0009")
    assert "it adds a trigger or a rule" in narrowing(others(run))


@pytest.mark.parametrize("contract", [False, True])
def test_an_empty_database_gets_all_of_them(database: Engine, *, contract: bool) -> None:
    assert migrate(database, contract=contract) == []
    assert version(database) == NEWEST
    first = describe(database)
    assert migrate(database) == migrate(database, contract=True) == []
    assert describe(database) == first


def test_where_older_code_may_run_it_stops_before_the_first_that_contracts(database: Engine, move: Move) -> None:
    move("0002")
    call_id = old_code.intend(database, old_code.run_job(database))
    old_code.settle(database, call_id, None)

    assert migrate(database) == WAITING

    assert version(database) == EXPANDED
    stopped = describe(database), contents(database)
    assert migrate(database) == WAITING
    assert (version(database), describe(database), contents(database)) == (EXPANDED, *stopped)

    assert migrate(database, contract=True) == []
    assert version(database) == NEWEST
    assert [(row["state"], row["nanodollars"]) for row in contents(database)["ledger"]] == [("unknown", UPPER_BOUND)]
    ended = describe(database), contents(database)
    assert migrate(database) == migrate(database, contract=True) == []
    assert (describe(database), contents(database)) == ended


def test_where_no_older_code_runs_it_goes_through_at_once(database: Engine, move: Move) -> None:
    move("0002")
    assert migrate(database, contract=True) == []
    assert version(database) == NEWEST


def test_what_expands_behind_one_that_contracts_waits_with_it(
    database: Engine, move: Move, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    move("0002")
    folder = Path(schema.__file__).parent / "migrations"
    shutil.copytree(folder, tmp_path / "migrations", ignore=shutil.ignore_patterns("__pycache__"))
    for revision, before, phase in (("0097", NEWEST, "expand"), ("0098", "0097", "contract")):
        path = tmp_path / "migrations" / "versions" / f"{revision}.py"
        path.write_text(LATER.format(revision=revision, before=before, phase=phase))
    monkeypatch.setattr(schema, "__file__", str(tmp_path / "schema.py"))

    assert migrate(database) == [*WAITING, "0097", "0098"]
    assert version(database) == EXPANDED
    bring_to(database, NEWEST)
    assert migrate(database) == ["0098"]
    assert (version(database), "t0097" in contents(database)) == ("0097", True)
    assert migrate(database, contract=True) == []
    assert version(database) == "0098"


@contextmanager
def holding_the_lock(engine: Engine) -> Iterator[Connection]:
    """Be another process that migrates: rolled back at the end of the block."""
    with engine.connect() as connection:
        connection.execute(WITHOUT_HASTE)
        connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": MIGRATION_LOCK})
        yield connection
        connection.rollback()


@pytest.mark.parametrize(
    ("start", "contract", "ends", "waiting"),
    [
        ("", False, NEWEST, []),
        ("0002", False, EXPANDED, WAITING),
        ("0002", True, NEWEST, []),
    ],
)
def test_two_that_migrate_at_once_come_to_the_same_end(
    database: Engine, move: Move, start: str, *, contract: bool, ends: str, waiting: list[str]
) -> None:
    if start:
        move(start)
    found: list[Future[list[str]]] = []
    with ThreadPoolExecutor(2) as threads:
        with holding_the_lock(database):
            found += [threads.submit(migrate, database, contract=contract) for _ in range(2)]
            eventually(lambda: blocked(database) == 2)
        assert [each.result() for each in found] == [waiting] * 2
    assert version(database) == ends


def test_two_processes_that_migrate_at_once_come_to_the_same_end(database: Engine, move: Move) -> None:
    move("0002")
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PENSTOCK_")}
    environment["PENSTOCK_DATABASE_URL"] = address(database)
    with holding_the_lock(database):
        processes = [
            subprocess.Popen(
                [sys.executable, "-m", "penstock.cli", "migrate"],
                env=environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            for _ in range(2)
        ]
        eventually(lambda: blocked(database) == 2)
    for process in processes:
        out, err = process.communicate()
        assert (process.returncode, err) == (0, "")
        assert out.startswith("the schema is ready for this version; 0009, 0010 ")
    assert version(database) == EXPANDED


INDEXES = {
    "jobs_purgeable",
    "jobs_crashed",
    "ledger_unknown",
    "jobs_of_batch",
    "ledger_of_batch",
    "jobs_held_up",
    "answers_by_question",
    "ledger_in_flight",
}


def valid_indexes(engine: Engine) -> set[str]:
    with engine.connect() as connection:
        return INDEXES & set(connection.scalars(schema.VALID_INDEXES))


@pytest.mark.parametrize("start", ["", "0002", NEWEST])
def test_declared_indexes_are_there_whoever_came_before(database: Engine, move: Move, start: str) -> None:
    """At the newest version they lack where a process died after the last migration and before it had built them."""
    if start:
        move(start)
    migrate(database)
    assert valid_indexes(database) == INDEXES
    with statements(database) as run:
        migrate(database)
    assert "INDEX CONCURRENTLY" not in others(run)


def test_an_index_that_was_not_finished_is_built_anew(database: Engine, move: Move) -> None:
    migrate(database)
    run(
        database,
        "UPDATE pg_index SET indisvalid = false WHERE indexrelid = 'jobs_crashed'::regclass",
    )
    assert valid_indexes(database) == INDEXES - {"jobs_crashed"}
    migrate(database)
    assert valid_indexes(database) == INDEXES


def test_two_that_build_indexes_at_once_wait_for_one_another(database: Engine, move: Move) -> None:
    move(NEWEST)
    with ThreadPoolExecutor(2) as threads:
        for built in [threads.submit(migrate, database) for _ in range(2)]:
            assert built.result() == []
    assert valid_indexes(database) == INDEXES


def test_an_index_is_built_beside_those_who_write(database: Engine, move: Move) -> None:
    """Whoever has written and not yet committed is waited for, and nobody waits for the index."""
    move(NEWEST)
    with ThreadPoolExecutor(1) as threads, database.connect() as writer:
        writer.execute(WITHOUT_HASTE)
        writer.execute(text("INSERT INTO workers (id, lease_until) VALUES ('w', now())"))
        rows.submit(database, before := rows.new_job())
        writer.execute(text("UPDATE jobs SET priority = 9"))
        building = threads.submit(migrate, database)
        eventually(lambda: blocked(database) == 1)
        rows.submit(database, rows.new_job())
        assert not building.done()
        writer.commit()
        assert building.result() == []
    assert rows.row(database, before.id)["priority"] == 9
    assert valid_indexes(database) == INDEXES


def test_the_sums_are_made_beside_those_who_spend(database: Engine, move: Move) -> None:
    move("0002")
    for _ in range(3):
        old_code.settle(database, old_code.intend(database, old_code.run_job(database)), 300)
    move("0009")
    runs = [rows.running_job(database) for _ in range(4)]
    stop = Event()

    def spend(job: ClaimedJob) -> int:
        calls = 0
        while not stop.is_set():
            intent = rows.intent(job)
            for step in (
                partial(ledger.intend, intents=[intent]),
                partial(ledger.settle, settlements=[Settlement(intent.call_id, CallOutcome.ANSWERED, 7)]),
            ):
                with database.begin() as connection:
                    step(connection)
            calls += 1
        return calls

    with ThreadPoolExecutor(4) as threads:
        spending = [threads.submit(spend, job) for job in runs[:3]]
        eventually(lambda: len(contents(database)["ledger"]) > 30)
        migrate(database, contract=True)
        done = len(contents(database)["ledger"])
        eventually(lambda: len(contents(database)["ledger"]) > done + 10)
        stop.set()
        assert sum(each.result() for each in spending) > 40
    assert_balanced(database)


def test_what_is_booked_is_the_last_that_a_migration_does(database: Engine, move: Move) -> None:
    """What it books is locked until its end: nothing that reads a large table comes behind it."""
    move("0009")
    with statements(database) as run:
        move("0010")
    assert others(run).rindex("VALIDATE CONSTRAINT") < others(run).index("INSERT INTO spending")


def test_an_index_that_another_process_has_just_built_is_left_alone(
    database: Engine, move: Move, monkeypatch: pytest.MonkeyPatch
) -> None:
    move(NEWEST)
    find = schema._missing_indexes
    built: list[bool] = []

    def find_and_be_overtaken(connection: Connection) -> dict[str, str]:
        found = find(connection)
        if not built:
            built.append(True)
            migrate(database)
        return found

    monkeypatch.setattr(schema, "_missing_indexes", find_and_be_overtaken)
    with statements(database) as run:
        migrate(database)
    assert others(run).count("INDEX CONCURRENTLY") == 2 * len(INDEXES)  # each is dropped first
    assert valid_indexes(database) == INDEXES


def test_who_cannot_have_its_locks_says_who_is_in_the_way_and_changes_nothing(
    database: Engine, move: Move, monkeypatch: pytest.MonkeyPatch
) -> None:
    move("0002")
    monkeypatch.setattr(schema, "PATIENCE_S", 0.3)
    before = describe(database)
    with database.connect() as reader:
        reader.execute(WITHOUT_HASTE)
        reader.execute(text("SELECT FROM attempts"))
        pid = reader.scalar(text("SELECT pg_backend_pid()"))
        with pytest.raises(OperationalError) as caught:
            migrate(database)
        reader.rollback()
    assert getattr(caught.value.orig, "sqlstate", None) == "55P03"
    assert re.fullmatch(
        rf"the migration could not lock what it changes for 0.3 s: process {pid} \(\w+, idle in transaction\) has had "
        r"a transaction open since [-\d]+ [:\d]+[+]\S+; what was migrated so far stays: let that transaction end, or "
        r"end it, and migrate again",
        str(caught.value.orig),
    )
    assert (version(database), describe(database)) == ("0002", before)
    assert migrate(database) == WAITING
