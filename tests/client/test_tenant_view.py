"""A tenant's own reads: Postgres itself hides everybody else's rows, whatever the query forgot."""

import contextlib
from collections.abc import Iterator
from dataclasses import replace
from uuid import UUID, uuid4

import pytest
import redis
from psycopg.errors import ActiveSqlTransaction, InsufficientPrivilege, ReadOnlySqlTransaction
from sqlalchemy import Connection, Engine, text
from sqlalchemy.exc import DBAPIError

from penstock.client import Client
from penstock.client.tenant_view import BECOME, TENANT_ROLE, TenantView
from penstock.errors import InvalidRequestError, JobNotFoundError
from penstock.jobs import queries
from penstock.jobs.queries import Filter
from penstock.jobs.submission import bury_refused
from penstock.settings import Settings
from penstock.store.db import sync_engine
from tests.money.accounts import Owned, furnish

OWNERS = {
    "jobs": "id",
    "results": "job_id",
    "attempts": "job_id",
    "ledger": "call_id",
    "ledger_corrections": "call_id",
    "ledger_amounts": "call_id",
    "budgets": "tenant",
    "spending": "tenant",
    "batches": "tenant",
    "batch_errors": "batch_id",
    "provider_batches": "batch_id",
    "provider_requests": "job_id",
}
"""What a tenant may read, and the column that says whose a row is."""
VIEWS = {"ledger_amounts"}
TABLES = sorted(OWNERS.keys() - VIEWS)
HOSTILE = [
    "acme'; RESET ROLE; --",
    "acme', true); RESET ROLE; SELECT set_config('penstock.tenant', 'globex",
    "' OR true --",
    "%",
    "*",
    "",
    " acme",
    "acme\n",
    "ACME",
    "a" * 65,
]


@pytest.fixture
def acme(engine: Engine) -> Owned:
    return furnish(engine, "acme")


@pytest.fixture
def globex(engine: Engine) -> Owned:
    return furnish(engine, "globex")


@pytest.fixture
def single(engine: Engine) -> Iterator[Engine]:
    """Give an engine whose pool has one connection."""
    one = sync_engine(engine.url.render_as_string(hide_password=False), connections=1)
    yield one
    one.dispose()


@pytest.fixture
def client(settings: Settings, engine: Engine, broker: redis.Redis) -> Iterator[Client]:
    with Client(settings) as client:
        yield client


def visible(connection: Connection) -> dict[str, set[str]]:
    """Read whole tables, without WHERE, and give whose rows there are."""
    return {
        table: set(connection.scalars(text(f"SELECT {column}::text FROM {table}"))) for table, column in OWNERS.items()
    }


def own(owned: Owned) -> dict[str, set[str]]:
    """Give what a tenant is to see of each table."""
    names = {"id": str(owned.job), "job_id": str(owned.job), "call_id": str(owned.call)}
    names |= {"tenant": owned.tenant, "batch_id": str(owned.batch)}
    return {table: {names[column]} for table, column in OWNERS.items()}


def refusal(connection: Connection, statement: str) -> type[BaseException | None]:
    """Try a statement and give the kind of error that it ends with."""
    savepoint = connection.begin_nested()
    with pytest.raises(DBAPIError) as caught:
        connection.execute(text(statement))
    savepoint.rollback()
    return type(caught.value.orig)


def test_the_role_can_neither_log_in_nor_bypass_nor_become_another_nor_owns_anything(engine: Engine) -> None:
    with engine.connect() as connection:
        role = connection.execute(text("SELECT * FROM pg_roles WHERE rolname = :role"), {"role": TENANT_ROLE}).one()
        rights = (role.rolsuper, role.rolbypassrls, role.rolcanlogin, role.rolcreaterole, role.rolcreatedb)
        assert rights == (False,) * 5
        values = {"oid": role.oid}
        assert connection.scalar(text("SELECT count(*) FROM pg_auth_members WHERE member = :oid"), values) == 0
        assert connection.scalar(text("SELECT count(*) FROM pg_class WHERE relowner = :oid"), values) == 0


def test_whatever_the_role_may_read_has_a_policy_or_is_a_view_that_asks_as_the_reader(engine: Engine) -> None:
    with engine.connect() as connection:
        relations = connection.execute(
            text("""
                SELECT relname, relkind, relrowsecurity, coalesce(reloptions, '{}') AS options,
                    (SELECT count(*) FROM pg_policy WHERE polrelid = pg_class.oid) AS policies
                FROM pg_class WHERE relnamespace = 'public'::regnamespace AND relkind IN ('r', 'v', 'm', 'p', 'f')
                    AND has_any_column_privilege(:role, pg_class.oid, 'SELECT')
            """),
            {"role": TENANT_ROLE},
        ).all()
    assert {relation.relname for relation in relations} == OWNERS.keys()
    for relation in relations:
        if relation.relname in VIEWS:
            assert (relation.relkind, relation.options) == ("v", ["security_invoker=true"])
        else:
            assert (relation.relkind, relation.relrowsecurity, relation.policies) == ("r", True, 1)


def test_a_query_that_forgot_to_filter_sees_the_tenants_own_rows_alone(
    engine: Engine, acme: Owned, globex: Owned
) -> None:
    for owned in (acme, globex):
        with TenantView(engine, owned.tenant).reading() as connection:
            assert connection.scalar(text("SELECT current_user")) == TENANT_ROLE
            assert visible(connection) == own(owned)
    with TenantView(engine, "initech").reading() as connection:
        assert visible(connection) == {table: set() for table in OWNERS}


@pytest.mark.parametrize("table", TABLES)
@pytest.mark.parametrize("change", ["DROP POLICY tenant_reads ON {}", "ALTER TABLE {} DISABLE ROW LEVEL SECURITY"])
def test_the_check_above_notices_a_policy_that_is_gone(
    engine: Engine, acme: Owned, globex: Owned, table: str, change: str
) -> None:
    with engine.connect() as connection:
        connection.execute(text(change.format(table)))
        connection.execute(BECOME, {"tenant": "acme"})
        seen = visible(connection)
        connection.rollback()
    assert seen != own(acme)
    assert seen[table] == (set() if change.startswith("DROP") else own(acme)[table] | own(globex)[table])


HIDDEN = {
    "payloads", "answers", "tenant_shares", "workers", "alembic_version", "similar_questions", "similar_answers",
}  # fmt: skip
IN_PART = {"provider_batches", "provider_requests"}


@pytest.mark.parametrize("table", sorted(HIDDEN | IN_PART))
def test_what_else_there_is_cannot_be_read(engine: Engine, acme: Owned, table: str) -> None:
    with TenantView(engine, "acme").reading() as connection:
        assert refusal(connection, f"SELECT * FROM {table}") is InsufficientPrivilege


def test_every_other_table_is_named_above(engine: Engine) -> None:
    with engine.connect() as connection:
        names = set(connection.scalars(text("SELECT tablename FROM pg_tables WHERE schemaname = 'public'")))
    assert names - OWNERS.keys() == HIDDEN


@pytest.mark.parametrize("table", TABLES)
def test_a_tenant_can_change_nothing_even_of_its_own(engine: Engine, acme: Owned, table: str) -> None:
    column = OWNERS[table]
    changes = [
        f"INSERT INTO {table} SELECT * FROM {table}",
        f"UPDATE {table} SET {column} = {column}",
        f"DELETE FROM {table}",
        f"SELECT * FROM {table} FOR UPDATE",
    ]
    with engine.connect() as connection:
        connection.execute(text(f"SET LOCAL ROLE {TENANT_ROLE}"))
        connection.execute(text("SET LOCAL penstock.tenant = 'acme'"))
        assert [refusal(connection, change) for change in changes] == [InsufficientPrivilege] * 4


def test_the_transaction_is_read_only_and_stays_so(engine: Engine, acme: Owned) -> None:
    with TenantView(engine, "acme").reading() as connection:
        assert refusal(connection, "SET TRANSACTION READ WRITE") is ActiveSqlTransaction
        connection.execute(text("RESET ROLE"))
        assert refusal(connection, "DELETE FROM jobs") is ReadOnlySqlTransaction


def test_without_the_name_of_a_tenant_there_are_no_rows(single: Engine, acme: Owned) -> None:
    with single.connect() as connection:
        connection.execute(text(f"SET LOCAL ROLE {TENANT_ROLE}"))
        assert visible(connection) == {table: set() for table in OWNERS}


def test_a_request_that_was_refused_with_its_tenant_is_nobodys(single: Engine) -> None:
    with single.begin() as connection:
        bury_refused(connection, uuid4(), tenant="", prompt="", detail="tenant: is no name")
    TenantView(single, "acme").find()
    with single.connect() as connection:
        connection.execute(text(f"SET LOCAL ROLE {TENANT_ROLE}"))
        assert visible(connection) == {table: set() for table in OWNERS}


def test_a_connection_goes_back_to_the_pool_as_it_was(single: Engine, acme: Owned, globex: Owned) -> None:
    def standing(connection: Connection) -> tuple[int, str, str, str]:
        row = connection.execute(
            text(
                "SELECT pg_backend_pid(), current_user, current_setting('transaction_read_only'), "
                "coalesce(current_setting('penstock.tenant', true), '')"
            )
        ).one()
        return (row[0], row[1], row[2], row[3])

    with single.connect() as connection:
        before = standing(connection)
        owner = connection.scalar(text("SELECT session_user"))
    assert before[1:] == (owner, "off", "")
    view = TenantView(single, "acme")
    view.get(acme.job)
    with pytest.raises(JobNotFoundError):
        view.get(globex.job)
    with contextlib.suppress(DBAPIError), view.reading() as connection:
        assert standing(connection) == (before[0], TENANT_ROLE, "on", "acme")
        connection.execute(text("SELECT * FROM payloads"))
        pytest.fail("payloads could be read")
    with single.begin() as connection:
        assert standing(connection) == before
        assert visible(connection)["jobs"] == {str(acme.job), str(globex.job)}


def test_a_statement_that_the_server_has_planned_for_the_operator_is_planned_anew(
    single: Engine, acme: Owned, globex: Owned
) -> None:
    def as_operator() -> set[UUID]:
        with single.connect() as connection:
            return {job.id for job in queries.find(connection, Filter(), most=9)}

    for _ in range(10):
        assert as_operator() == {acme.job, globex.job}
    for owned in (acme, globex, acme):
        assert [job.id for job in TenantView(single, owned.tenant).find(most=9)] == [owned.job]
    assert as_operator() == {acme.job, globex.job}


def test_a_foreign_job_is_not_found_exactly_like_one_that_does_not_exist(
    client: Client, acme: Owned, globex: Owned
) -> None:
    def said(job_id: UUID) -> list[str]:
        view = client.as_tenant("acme")
        errors = []
        for look in (view.get, view.history):
            with pytest.raises(JobNotFoundError) as caught:
                look(job_id)
            errors.append(str(caught.value).replace(str(job_id), "ID"))
        return errors

    unknown = uuid4()
    assert said(globex.job) == said(unknown) == ["there is no job ID"] * 2
    with pytest.raises(JobNotFoundError) as operators:
        client.get(unknown)
    assert str(operators.value) == f"there is no job {unknown}"


def test_a_tenant_sees_its_jobs_with_result_cost_and_history(client: Client, acme: Owned, globex: Owned) -> None:
    view = client.as_tenant("acme")
    job = view.get(str(acme.job))
    assert job == client.get(acme.job)
    assert (job.tenant, job.result, job.cost_nanodollars) == ("acme", acme.marker, 1_235_000)
    assert view.find() == [job]
    assert view.find(Filter(tenant="globex")) == []
    assert view.find(Filter(tier="large")) == []
    assert view.history(acme.job) == client.history(acme.job)
    assert len(view.history(acme.job)) == 1


@pytest.mark.parametrize("name", HOSTILE)
def test_what_is_no_name_of_a_tenant_is_refused(client: Client, name: str) -> None:
    for ask in (client.as_tenant, client.usage):
        with pytest.raises(InvalidRequestError) as caught:
            ask(name)
        assert caught.value.field == "tenant"
        assert str(caught.value).isprintable()


@pytest.mark.parametrize("hostile", HOSTILE)
def test_hostile_strings_are_values_and_never_statements(
    client: Client, acme: Owned, globex: Owned, hostile: str
) -> None:
    view = client.as_tenant("acme")
    assert view.find(Filter(tenant=hostile)) == []
    assert view.find(Filter(tier=hostile)) == []
    with pytest.raises(JobNotFoundError):
        view.get(hostile)
    with pytest.raises(InvalidRequestError):
        view.usage(hostile)
    assert [job.id for job in view.find()] == [acme.job]


def test_usage_is_the_tenants_own_and_that_of_all_the_operators(client: Client, acme: Owned, globex: Owned) -> None:
    assert {line.tenant for line in client.usage("acme")} == {"acme"}
    assert [replace(line, forecast=0) for line in client.usage("acme")] == [
        replace(line, forecast=0) for line in client.as_tenant("acme").usage()
    ]
    assert [(line.key, line.calls, line.nanodollars) for line in client.usage("acme", "model")] == [
        ("sim-small", 1, 1_235_000)
    ]
    assert {line.tenant for line in client.usage_of_all()} == {"acme", "globex"}
    assert [(line.calls, line.nanodollars) for line in client.usage_of_all("model")] == [(2, 2_470_000)]


def test_a_tenant_sees_how_far_its_own_batches_are(engine: Engine, acme: Owned, globex: Owned) -> None:
    view = TenantView(engine, "acme")
    assert [batch.id for batch in view.batches()] == [acme.batch]
    progress = view.batch_progress("night")
    assert (progress.batch.id, progress.refused) == (acme.batch, 1)
    with pytest.raises(InvalidRequestError, match="has no batch 'day'"):
        view.batch_progress("day")
