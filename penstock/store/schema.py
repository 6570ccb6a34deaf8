"""Brings the schema of Postgres to its newest version, in two phases. It must not know what the tables mean.

A migration that expands leaves the code of the version before running beside the new one: it adds tables, and columns
with defaults. One that contracts takes away, or forbids, what only older code still did: it waits until none runs.

Each has a transaction of its own, so that what it locks is free again when it is done. Indexes that it declares are
built after it, beside whoever writes, and again if that was broken off.
"""

import time
from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from psycopg.errors import LockNotAvailable
from sqlalchemy import Connection, Engine, text
from sqlalchemy.exc import OperationalError

MIGRATION_LOCK = 7_302_001
INDEX_LOCK = 7_302_002
CONTRACT = "contract"
LOCK_TIMEOUT_MS = 250
PAUSE_S = 0.5
PATIENCE_S = 60.0

INDEX_KINDS = {"indexes": "INDEX", "unique_indexes": "UNIQUE INDEX"}
"""What a migration may declare, by name and definition: a unique one on a column that older code leaves NULL."""

VALID_INDEXES = text("""
    SELECT relname FROM pg_index JOIN pg_class ON pg_class.oid = indexrelid
    WHERE relnamespace = current_schema()::regnamespace AND indisvalid
""")
OLDEST = text("""
    SELECT format('process %s (%s, %s) has had a transaction open since %s',
        pid, usename, state, xact_start::timestamptz(0))
    FROM pg_stat_activity
    WHERE datname = current_database() AND backend_type = 'client backend' AND pid <> pg_backend_pid()
        AND xact_start < now()
    ORDER BY xact_start LIMIT 1
""")


def migrate(engine: Engine, *, contract: bool = False) -> list[str]:
    """Run what is missing of the migrations, and give those that wait for `contract`.

    Several processes may try at once. An empty database has no older code beside it, and gets all of them. A migration
    that cannot have its tables at once steps back and comes again: whoever uses them waits for it a moment at most.
    After a minute it raises OperationalError (55P03), which says who was in the way.
    """
    gives_up_at = time.monotonic() + PATIENCE_S
    while True:
        try:
            with engine.begin() as connection:
                goes_on, waiting = _step(connection, contract=contract)
        except OperationalError as error:
            if not isinstance(error.orig, LockNotAvailable):
                raise
            if time.monotonic() > gives_up_at:
                raise OperationalError(error.statement, None, _explained(engine), hide_parameters=True) from error
            time.sleep(PAUSE_S)
        else:
            if not goes_on:
                _build_indexes(engine)
                return waiting
            gives_up_at = time.monotonic() + PATIENCE_S


def _explained(engine: Engine) -> LockNotAvailable:
    """Say what was waited for in vain, who is likely to be in the way, and what to do."""
    with engine.connect() as connection:
        oldest = connection.scalar(OLDEST) or "nobody has a transaction open any more"
    return LockNotAvailable(
        f"the migration could not lock what it changes for {PATIENCE_S:g} s: {oldest}; what was migrated so far stays: "
        "let that transaction end, or end it, and migrate again"
    )


def _step(connection: Connection, *, contract: bool) -> tuple[bool, list[str]]:
    """Run the next migration if there is one that may run, and tell so; give the names of those behind it."""
    connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": MIGRATION_LOCK})
    connection.execute(text(f"SET LOCAL lock_timeout = '{LOCK_TIMEOUT_MS}ms'"))
    config = _config()
    config.attributes["connection"] = connection
    missing = _missing(connection, ScriptDirectory.from_config(config))
    names = [name for name, _ in missing]
    if MigrationContext.configure(connection).get_current_revision() is None:
        command.upgrade(config, names[-1])
        return True, []
    if not missing or (missing[0][1] == CONTRACT and not contract):
        return False, names
    command.upgrade(config, names[0])
    return True, names[1:]


def _config() -> Config:
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
    return config


def _missing(connection: Connection, scripts: ScriptDirectory) -> list[tuple[str, str]]:
    """Give the migrations that have not run, the oldest first, each with its phase."""
    current = MigrationContext.configure(connection).get_current_revision()
    newest_first = [(each.revision, each.module.phase) for each in scripts.walk_revisions()]
    newer = newest_first[: [name for name, _ in newest_first].index(current)] if current else newest_first
    return newer[::-1]


def _build_indexes(engine: Engine) -> None:
    """Build the indexes that the migrations which have run declare, and that are missing or were not finished.

    Who waits for another process to build them holds no snapshot meanwhile: the other would wait for that.
    """
    with engine.execution_options(isolation_level="AUTOCOMMIT").connect() as connection:
        while _missing_indexes(connection):
            if not connection.scalar(text("SELECT pg_try_advisory_lock(:key)"), {"key": INDEX_LOCK}):
                time.sleep(PAUSE_S)
                continue
            try:
                for name, build in _missing_indexes(connection).items():
                    connection.execute(text(f"DROP INDEX CONCURRENTLY IF EXISTS {name}"))
                    connection.execute(text(build))
            finally:
                connection.execute(text("SELECT pg_advisory_unlock(:key)"), {"key": INDEX_LOCK})


def _missing_indexes(connection: Connection) -> dict[str, str]:
    """Give the statements that build what is not there, or not valid, by the indexes' names."""
    current = MigrationContext.configure(connection).get_current_revision()
    scripts = ScriptDirectory.from_config(_config())
    valid = set(connection.scalars(VALID_INDEXES))
    return {
        name: f"CREATE {kind} CONCURRENTLY {name} ON {definition}"
        for each in scripts.iterate_revisions(current, "base")
        for declared, kind in INDEX_KINDS.items()
        for name, definition in getattr(each.module, declared, {}).items()
        if name not in valid
    }
