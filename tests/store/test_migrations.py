"""A migration meets the rows of the version before it, and that version's code, which still runs beside it."""

from collections.abc import Callable, Iterator
from pathlib import Path
from uuid import UUID, uuid4

import pytest
from alembic import command
from alembic.config import Config
from sqlalchemy import Engine, text
from sqlalchemy.exc import IntegrityError

from penstock.jobs import execution, leases, queries, release
from penstock.jobs.execution import Claim
from penstock.jobs.release import Allowance
from penstock.schemas import JobState, Lane, OnUnavailable
from penstock.store import schema as migrations
from penstock.store.db import sync_engine
from tests.jobs import rows
from workers.embedded import EmbeddedServices

OLD_JOB = """
    INSERT INTO jobs (id, tenant, state, released_at, prompt_id, prompt_version, prompt_digest, tier, lane,
        priority, estimated_tokens, document_name, metadata, idempotency_key, content_digest, deadline)
    VALUES (:id, 'acme', :state, now(), 'summarise_document', '1.0.0', 'd', 'small', 'batch', 5, 100, 'tale.txt', '{}',
        NULL, 'c', NULL)
"""
OLD_PAYLOAD = "INSERT INTO payloads (job_id, variables, document) VALUES (:id, '{}', 'Once upon a time.')"
OLD_RESULT = "INSERT INTO results (job_id, text, model_asked, model_served) VALUES (:id, 'A tale.', 'm', 'm-1')"
OLD_LEASE = """
    INSERT INTO workers (id, lease_until) VALUES (:worker, now() + interval '1 minute')
    ON CONFLICT (id) DO UPDATE SET lease_until = excluded.lease_until
"""
OLD_CHARGE = """
    INSERT INTO tenant_shares AS share (tier, lane, tenant, served_tokens) VALUES ('small', 'batch', 'acme', :tokens)
    ON CONFLICT (tier, lane, tenant) DO UPDATE SET served_tokens = greatest(share.served_tokens, excluded.served_tokens)
"""
"""The statements of the code that knew version 0001."""

Move = Callable[[str], None]


@pytest.fixture
def database(services: EmbeddedServices) -> Iterator[Engine]:
    """An empty database of its own."""
    name = f"migrations_{uuid4().hex}"
    admin = sync_engine(services.postgres.url.replace("postgresql://", "postgresql+psycopg://", 1))
    outside = admin.execution_options(isolation_level="AUTOCOMMIT")
    with outside.connect() as connection:
        connection.execute(text(f"CREATE DATABASE {name}"))
    engine = sync_engine(admin.url.set(database=name).render_as_string(hide_password=False))
    yield engine
    engine.dispose()
    with outside.connect() as connection:
        connection.execute(text(f"DROP DATABASE {name}"))
    admin.dispose()


@pytest.fixture
def move(database: Engine) -> Move:
    """Bring the database to a version, up or down."""

    def to(version: str) -> None:
        config = Config()
        config.set_main_option("script_location", str(Path(migrations.__file__).parent / "migrations"))
        with database.begin() as connection:
            known = connection.scalar(text("SELECT to_regclass('alembic_version')")) is not None
            current = connection.scalar(text("SELECT version_num FROM alembic_version")) if known else ""
            config.attributes["connection"] = connection
            (command.upgrade if version > (current or "") else command.downgrade)(config, version)

    return to


def old_job(engine: Engine, state: str) -> UUID:
    """Write a job as the old code does."""
    job_id = uuid4()
    rows.execute(engine, OLD_JOB, id=job_id, state=state)
    rows.execute(engine, OLD_PAYLOAD, id=job_id)
    return job_id


def columns(engine: Engine) -> list[tuple[str, ...]]:
    """Describe every column and index."""
    with engine.connect() as connection:
        of_tables = connection.execute(
            text("""
                SELECT table_name, column_name, data_type, is_nullable, coalesce(column_default, '')
                FROM information_schema.columns WHERE table_schema = 'public' ORDER BY 1, 2
            """)
        )
        of_indexes = connection.execute(
            text("SELECT indexname, indexdef FROM pg_indexes WHERE schemaname = 'public' ORDER BY 1")
        )
        return [tuple(row) for row in [*of_tables, *of_indexes]]


def test_rows_of_the_first_version_come_through_with_the_defaults(database: Engine, move: Move) -> None:
    move("0001")
    queued, done = old_job(database, "queued"), old_job(database, "succeeded")
    rows.execute(database, OLD_RESULT, id=done)
    rows.execute(database, OLD_LEASE, worker="w1")
    rows.execute(database, OLD_CHARGE, tokens=500)
    before = rows.everything(database)

    move("0002")

    after = rows.everything(database)
    added = {"on_unavailable": "wait", "fallback_tiers": [], "charged_tokens": 0}
    assert after["jobs"] == [job | added for job in before["jobs"]]
    assert after["results"] == [result | {"degraded": False} for result in before["results"]]
    assert after["workers"] == [worker | {"tier": ""} for worker in before["workers"]]
    assert rows.served_tokens(database) == {"acme": 500}
    with database.begin() as connection:
        seen = queries.get(connection, [queued, done])
    assert (seen[queued].state, seen[queued].on_unavailable) == (JobState.QUEUED, OnUnavailable.WAIT)
    assert (seen[done].result, seen[done].degraded) == ("A tale.", False)


def test_the_code_of_the_first_version_writes_into_the_second(database: Engine, move: Move) -> None:
    move("0001")
    move("0002")
    job_id = old_job(database, "succeeded")
    rows.execute(database, OLD_RESULT, id=job_id)
    for _ in range(2):
        rows.execute(database, OLD_LEASE, worker="w1")
        rows.execute(database, OLD_CHARGE, tokens=700)
    job = rows.row(database, job_id)
    assert (job["on_unavailable"], job["fallback_tiers"], job["charged_tokens"]) == ("wait", [], 0)
    assert rows.served_tokens(database) == {"acme": 700}
    with database.begin() as connection:
        assert leases.count_alive(connection) == 1
        assert queries.get(connection, [job_id])[job_id].degraded is False


def test_a_job_that_the_old_code_has_queued_is_released_run_and_ended_by_the_new(database: Engine, move: Move) -> None:
    move("0001")
    queued, released = old_job(database, "queued"), old_job(database, "released")
    move("0002")
    rows.start_worker(database)
    with database.begin() as connection:
        (found,) = release.release_fairly(connection, "small", Lane.BATCH, Allowance(9))
        claimed = execution.claim(connection, [Claim(queued, "w1"), Claim(released, "w1")])
        assert found.job_id == queued
        assert execution.finish(connection, [rows.success(job) for job in claimed if job]) == [True, True]
    assert [rows.state(database, job_id) for job_id in (queued, released)] == ["succeeded", "succeeded"]
    assert rows.served_tokens(database)["acme"] == 0


def test_going_back_and_forth_keeps_the_rows_and_gives_the_same_schema(database: Engine, move: Move) -> None:
    move("0001")
    first = columns(database)
    job_id = old_job(database, "queued")
    move("0002")
    second = columns(database)
    move("0001")
    assert columns(database) == first
    move("0002")
    assert columns(database) == second
    assert rows.state(database, job_id) == "queued"


def test_an_unknown_choice_is_refused_by_the_table_itself(database: Engine, move: Move) -> None:
    move("0002")
    job_id = old_job(database, "queued")
    before = rows.everything(database)
    with pytest.raises(IntegrityError, match="on_unavailable"):
        rows.execute(database, "UPDATE jobs SET on_unavailable = 'perhaps' WHERE id = :id", id=job_id)
    assert rows.everything(database) == before


def test_migrating_again_changes_nothing(database: Engine) -> None:
    migrations.migrate(database)
    first = columns(database)
    migrations.migrate(database)
    assert columns(database) == first
