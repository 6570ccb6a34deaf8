"""Brings the schema of Postgres to its newest version, in two phases. It must not know what the tables mean.

A migration that expands leaves the code of the version before running beside the new one: it adds tables, and columns
with defaults. One that contracts takes away, or forbids, what only older code still did: it waits until none runs.
"""

import time
from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, Engine, text
from sqlalchemy.exc import OperationalError

MIGRATION_LOCK = 7_302_001
CONTRACT = "contract"
LOCK_NOT_AVAILABLE = "55P03"
LOCK_TIMEOUT_MS = 250
PAUSE_S = 0.5
PATIENCE_S = 60.0


def migrate(engine: Engine, *, contract: bool = False) -> list[str]:
    """Run what is missing of the migrations, and give those that wait for `contract`.

    Several processes may try at once. An empty database has no older code beside it, and gets all of them. A migration
    that cannot have its tables at once steps back and comes again: whoever uses them waits for it a moment at most.
    Raises OperationalError when it could not have them for a minute.
    """
    gives_up_at = time.monotonic() + PATIENCE_S
    while True:
        try:
            with engine.begin() as connection:
                return _migrate(connection, contract=contract)
        except OperationalError as error:
            if getattr(error.orig, "sqlstate", None) != LOCK_NOT_AVAILABLE or time.monotonic() > gives_up_at:
                raise
        time.sleep(PAUSE_S)


def _migrate(connection: Connection, *, contract: bool) -> list[str]:
    connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": MIGRATION_LOCK})
    connection.execute(text(f"SET LOCAL lock_timeout = '{LOCK_TIMEOUT_MS}ms'"))
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
    config.attributes["connection"] = connection
    missing = _missing(connection, ScriptDirectory.from_config(config))
    is_empty = MigrationContext.configure(connection).get_current_revision() is None
    names = [name for name, _ in missing]
    waits = [name for name, phase in missing if phase == CONTRACT]
    upto = len(names) if is_empty or contract or not waits else names.index(waits[0])
    if upto:
        command.upgrade(config, names[upto - 1])
    return names[upto:]


def _missing(connection: Connection, scripts: ScriptDirectory) -> list[tuple[str, str]]:
    """Give the migrations that have not run, the oldest first, each with its phase."""
    current = MigrationContext.configure(connection).get_current_revision()
    newest_first = [(each.revision, each.module.phase) for each in scripts.walk_revisions()]
    newer = newest_first[: [name for name, _ in newest_first].index(current)] if current else newest_first
    return newer[::-1]
