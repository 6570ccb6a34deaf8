"""Empty databases, brought to any version, and what they hold. It must not know what a migration is for."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Engine, text

from penstock.store import schema
from penstock.store.db import sync_engine

TENANT_ROLE = "penstock_tenant"
DESCRIPTION = {
    "columns": """
        SELECT table_name, column_name, data_type, is_nullable, coalesce(column_default, ''),
            coalesce(col_description(format('%I', table_name)::regclass, ordinal_position), '')
        FROM information_schema.columns WHERE table_schema = 'public'
    """,
    "indexes": "SELECT indexname, indexdef FROM pg_indexes WHERE schemaname = 'public'",
    "constraints": """
        SELECT conrelid::regclass::text, conname, pg_get_constraintdef(oid) FROM pg_constraint
        WHERE connamespace = 'public'::regnamespace
    """,
    "triggers": "SELECT tgname, pg_get_triggerdef(oid) FROM pg_trigger WHERE NOT tgisinternal",
    "functions": """
        SELECT proname, pg_get_functiondef(oid) FROM pg_proc WHERE pronamespace = 'public'::regnamespace
            AND NOT EXISTS (SELECT 1 FROM pg_depend WHERE objid = pg_proc.oid AND deptype = 'e')
    """,
    "views": "SELECT viewname, definition FROM pg_views WHERE schemaname = 'public'",
    "options": """
        SELECT relname, relrowsecurity, relforcerowsecurity, coalesce(reloptions::text, '')
        FROM pg_class WHERE relnamespace = 'public'::regnamespace AND relkind IN ('r', 'v')
    """,
    "policies": "SELECT tablename, policyname, roles::text, cmd, qual, with_check FROM pg_policies",
    "grants": f"""
        SELECT grantee, table_name, privilege_type FROM information_schema.table_privileges
        WHERE table_schema = 'public' AND grantee IN ('PUBLIC', '{TENANT_ROLE}')
    """,
}
BLOCKED = text("SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'")
PATIENCE_S = 60.0
WITHOUT_HASTE = text("SET LOCAL idle_in_transaction_session_timeout = 0")
"""For a transaction that others wait for, however slowly they come."""

Schema = dict[str, list[tuple[Any, ...]]]
Contents = dict[str, list[dict[str, Any]]]


@contextmanager
def empty_database(server_url: str, owner: str = "") -> Iterator[Engine]:
    """Make a database, and give it as its owner sees it: the superuser, if no other is named."""
    name = f"migrations_{uuid4().hex}"
    admin = sync_engine(server_url.replace("postgresql://", "postgresql+psycopg://", 1))
    outside = admin.execution_options(isolation_level="AUTOCOMMIT")
    with outside.connect() as connection:
        connection.execute(text(f"CREATE DATABASE {name}" + (f" OWNER {owner}" if owner else "")))
    url = admin.url.set(database=name, username=owner or admin.url.username)
    engine = sync_engine(url.render_as_string(hide_password=False))
    try:
        yield engine
    finally:
        engine.dispose()
        with outside.connect() as connection:
            connection.execute(text(f"DROP DATABASE {name} WITH (FORCE)"))
        admin.dispose()


def address(engine: Engine) -> str:
    """Give the address of a database as the environment has it."""
    url = engine.url.render_as_string(hide_password=False)
    return url.replace("postgresql+psycopg://", "postgresql://", 1)


def configuration() -> Config:
    """Point Alembic at the migrations."""
    config = Config()
    config.set_main_option("script_location", str(Path(schema.__file__).parent / "migrations"))
    return config


def phases() -> dict[str, str]:
    """Name the phase of each version, the oldest first."""
    newest_first = ScriptDirectory.from_config(configuration()).walk_revisions()
    return {each.revision: each.module.phase for each in [*newest_first][::-1]}


def version(engine: Engine) -> str | None:
    """Tell which version a database has."""
    with engine.connect() as connection:
        return MigrationContext.configure(connection).get_current_revision()


def bring_to(engine: Engine, wanted: str) -> None:
    """Bring a database to a version, up or down, whatever the phases say."""
    config = configuration()
    move = command.upgrade if wanted > (version(engine) or "") else command.downgrade
    with engine.begin() as connection:
        config.attributes["connection"] = connection
        move(config, wanted)


def describe(engine: Engine) -> Schema:
    """Describe all that a migration can make."""
    with engine.connect() as connection:
        return {
            what: sorted((tuple(row) for row in connection.execute(text(statement))), key=str)
            for what, statement in DESCRIPTION.items()
        }


def contents(engine: Engine) -> Contents:
    """Read every row of the tables that there are at this version, in a fixed order."""
    with engine.connect() as connection:
        tables = connection.scalars(
            text("SELECT tablename FROM pg_tables WHERE schemaname = 'public' AND tablename <> 'alembic_version'")
        ).all()
        return {
            table: [
                dict(row) for row in connection.execute(text(f"SELECT * FROM {table} AS t ORDER BY t::text")).mappings()
            ]
            for table in tables
        }


def run(engine: Engine, statement: str, **values: object) -> list[Any]:
    """Run a statement in a transaction of its own and give its rows, if it has any."""
    with engine.begin() as connection:
        result = connection.execute(text(statement), values)
        return list(result.all()) if result.returns_rows else []


def blocked(engine: Engine) -> int:
    """Count the connections that wait for a lock."""
    with engine.connect() as connection:
        return int(connection.scalar(BLOCKED) or 0)


def eventually(holds: Callable[[], bool]) -> None:
    """Wait for something that another thread or process does."""
    ends_at = time.monotonic() + PATIENCE_S
    while not holds():
        assert time.monotonic() < ends_at, "it did not come to hold"
