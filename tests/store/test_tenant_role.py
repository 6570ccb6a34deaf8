"""The role of the tenants' reads is the server's, not the database's: who may make it, and who has to be given it."""

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path

import pytest
from psycopg.errors import InsufficientPrivilege
from sqlalchemy import Engine, text
from sqlalchemy.exc import DBAPIError

from penstock.client.tenant_view import TenantView
from penstock.store.db import sync_engine
from penstock.store.schema import migrate
from tests.money.accounts import furnish
from tests.store import old_code
from tests.store.databases import (
    TENANT_ROLE,
    address,
    blocked,
    bring_to,
    contents,
    describe,
    empty_database,
    eventually,
    version,
)
from workers.embedded import PostgresServer

MAKE_ROLE = f"CREATE ROLE {TENANT_ROLE} NOLOGIN"
GRANT_ROLE = f"GRANT {TENANT_ROLE} TO plain"
OWNERS = ("CREATE ROLE plain LOGIN", "CREATE ROLE maker LOGIN CREATEROLE")

Database = Callable[..., AbstractContextManager[Engine]]


@pytest.fixture(scope="module")
def server() -> Iterator[Engine]:
    """A server of its own, with an owner of databases who may make no role, and one who may."""
    with tempfile.TemporaryDirectory(prefix="penstock-") as folder:
        postgres = PostgresServer(Path(folder) / "postgres")
        postgres.start()
        engine = sync_engine(postgres.url.replace("postgresql://", "postgresql+psycopg://", 1))
        run(engine, *OWNERS)
        yield engine
        engine.dispose()
        postgres.stop()


@pytest.fixture
def database(server: Engine) -> Iterator[Database]:
    """Makes an empty database of an owner; the role is gone before and after."""
    yield partial(empty_database, address(server))
    run(server, f"DROP ROLE IF EXISTS {TENANT_ROLE}")


def run(server: Engine, *statements: str) -> None:
    """Do something as the superuser."""
    with server.begin() as connection:
        for statement in statements:
            connection.execute(text(statement))


def assert_tenants_see_their_own(engine: Engine) -> None:
    owned = [furnish(engine, tenant) for tenant in ("acme", "globex")]
    for each in owned:
        assert [(job.id, job.result) for job in TenantView(engine, each.tenant).find()] == [(each.job, each.marker)]
    with engine.connect() as connection:
        assert connection.scalar(text("SELECT count(*) FROM jobs")) == len(owned)


def test_a_role_that_is_there_already_is_used_as_it_is(server: Engine, database: Database) -> None:
    with database() as engine:
        migrate(engine)
        made = describe(engine)
    run(server, f"DROP ROLE {TENANT_ROLE}", MAKE_ROLE)
    with database() as engine:
        assert migrate(engine) == []
        assert describe(engine) == made
        assert_tenants_see_their_own(engine)


def test_a_second_database_of_the_server_uses_the_role_of_the_first(database: Database) -> None:
    with database() as first, database() as second:
        for engine in (first, second):
            migrate(engine)
            assert_tenants_see_their_own(engine)
        bring_to(first, "0001")
        assert len(TenantView(second, "acme").find()) == 1


def test_a_role_that_another_database_makes_at_the_same_moment_is_waited_for(
    server: Engine, database: Database
) -> None:
    with database() as engine, ThreadPoolExecutor(1) as threads:
        with server.begin() as connection:
            connection.execute(text(MAKE_ROLE))
            migrating = threads.submit(migrate, engine)
            eventually(lambda: blocked(engine) == 1)
        assert migrating.result() == []
        assert_tenants_see_their_own(engine)


def test_an_owner_who_may_make_no_role_migrates_where_it_was_granted_before(server: Engine, database: Database) -> None:
    run(server, MAKE_ROLE, GRANT_ROLE)
    with database(owner="plain") as engine:
        assert migrate(engine) == []
        assert_tenants_see_their_own(engine)
        with engine.connect() as connection:
            assert connection.scalar(text("SELECT rolsuper FROM pg_roles WHERE rolname = current_user")) is False


def test_an_owner_who_may_make_roles_makes_it_and_may_become_it(server: Engine, database: Database) -> None:
    with database(owner="maker") as engine:
        assert migrate(engine) == []
        assert_tenants_see_their_own(engine)


@pytest.mark.parametrize("start", ["", "0002"])
@pytest.mark.parametrize(
    ("before", "says"),
    [
        ((), "permission denied to create role"),
        ((MAKE_ROLE,), f'permission denied to grant role "{TENANT_ROLE}"'),
    ],
    ids=["absent", "not granted"],
)
def test_an_owner_without_it_is_told_so_and_nothing_has_changed(
    server: Engine, database: Database, start: str, before: tuple[str, ...], says: str
) -> None:
    run(server, *before)
    with database(owner="plain") as engine:
        if start:
            bring_to(engine, start)
            old_code.run_job(engine)
        found = describe(engine), contents(engine)
        with pytest.raises(DBAPIError, match=says) as caught:
            migrate(engine)
        assert isinstance(caught.value.orig, InsufficientPrivilege)
        assert (version(engine) or "", describe(engine), contents(engine)) == (start, *found)
        run(server, *([] if before else [MAKE_ROLE]), GRANT_ROLE)
        assert migrate(engine) == (["0009", "0010"] if start else [])


def test_the_command_says_it_in_one_line(server: Engine, database: Database) -> None:
    with database(owner="plain") as engine:
        environment = {name: value for name, value in os.environ.items() if not name.startswith("PENSTOCK_")}
        environment["PENSTOCK_DATABASE_URL"] = address(engine)
        ran = subprocess.run(
            [sys.executable, "-m", "penstock.cli", "migrate"],
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
    assert (ran.returncode, ran.stdout) == (2, "")
    [line] = ran.stderr.splitlines()
    assert line.startswith("penstock: Postgres: permission denied to create role; ")
    assert line.endswith("see docs/isolation.md")
