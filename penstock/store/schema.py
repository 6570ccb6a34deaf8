"""Brings the schema of Postgres to its newest version, in two phases. It must not know what the tables mean.

A migration that expands leaves the code of the version before running beside the new one: it adds tables, and columns
with defaults. One that contracts takes away, or forbids, what only older code still did: it waits until none runs.
"""

from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, Engine, text

MIGRATION_LOCK = 7_302_001
CONTRACT = "contract"


def migrate(engine: Engine, *, contract: bool = False) -> list[str]:
    """Run what is missing of the migrations, and give those that wait for `contract`.

    Several processes may try at once. An empty database has no older code beside it, and gets all of them.
    """
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
    with engine.begin() as connection:
        connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": MIGRATION_LOCK})
        missing = _missing(connection, ScriptDirectory.from_config(config))
        is_empty = MigrationContext.configure(connection).get_current_revision() is None
        waits = [name for name, phase in missing if phase == CONTRACT]
        config.attributes["connection"] = connection
        if not missing:
            return []
        if is_empty or contract or not waits:
            command.upgrade(config, "head")
            return []
        names = [name for name, _ in missing]
        before = names[: names.index(waits[0])]
        if before:
            command.upgrade(config, before[-1])
        return names[len(before) :]


def _missing(connection: Connection, scripts: ScriptDirectory) -> list[tuple[str, str]]:
    """Give the migrations that have not run, the oldest first, each with its phase."""
    current = MigrationContext.configure(connection).get_current_revision()
    newest_first = [(each.revision, each.module.phase) for each in scripts.walk_revisions()]
    newer = newest_first[: [name for name, _ in newest_first].index(current)] if current else newest_first
    return newer[::-1]
