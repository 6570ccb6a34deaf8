"""A migration meets the rows of the version before it, and that version's code, which still runs beside it."""

from datetime import date
from typing import Any
from uuid import UUID, uuid4

import pytest
from sqlalchemy import Engine
from sqlalchemy.exc import IntegrityError

from penstock.jobs import execution, leases, queries, release
from penstock.jobs.execution import Claim
from penstock.jobs.release import Allowance
from penstock.schemas import JobState, Lane, OnUnavailable, Usage
from tests.jobs import rows
from tests.money.books import assert_balanced
from tests.store import old_code
from tests.store.conftest import Move
from tests.store.databases import contents, describe, phases, run
from tests.store.old_code import UPPER_BOUND

FIRST_JOB = """
    INSERT INTO jobs (id, tenant, state, released_at, prompt_id, prompt_version, prompt_digest, tier, lane,
        priority, estimated_tokens, document_name, metadata, idempotency_key, content_digest, deadline)
    VALUES (:id, 'acme', :state, now(), 'summarise_document', '1.0.0', 'd', 'small', 'batch', 5, 100, 'tale.txt', '{}',
        NULL, 'c', NULL)
"""
FIRST_PAYLOAD = "INSERT INTO payloads (job_id, variables, document) VALUES (:id, '{}', 'Once upon a time.')"
FIRST_RESULT = "INSERT INTO results (job_id, text, model_asked, model_served) VALUES (:id, 'A tale.', 'm', 'm-1')"
FIRST_LEASE = """
    INSERT INTO workers (id, lease_until) VALUES (:worker, now() + interval '1 minute')
    ON CONFLICT (id) DO UPDATE SET lease_until = excluded.lease_until
"""
FIRST_CHARGE = """
    INSERT INTO tenant_shares AS share (tier, lane, tenant, served_tokens) VALUES ('small', 'batch', 'acme', :tokens)
    ON CONFLICT (tier, lane, tenant) DO UPDATE SET served_tokens = greatest(share.served_tokens, excluded.served_tokens)
"""
"""The statements of the code that knew version 0001."""

OF_0002: dict[str, dict[str, Any]] = {
    "jobs": {"on_unavailable": "wait", "fallback_tiers": [], "charged_tokens": 0},
    "results": {"degraded": False},
    "workers": {"tier": ""},
    "tenant_shares": {"releases": 0},
}
OF_0003: dict[str, dict[str, Any]] = {
    "jobs": {"project": "", "purged_at": None, "kept_until": None},
    "results": {"over_soft_limit": False, "fetched_at": None},
    "ledger": {
        "project": "",
        "cache_write_tokens": 0,
        "reasoning_tokens": 0,
        "max_tokens": None,
        "over_soft_limit": False,
        "upper_bound_tokens": None,
        "outcome": None,
    },
    "ledger_corrections": {},
    "budgets": {},
}
"""What a version adds to each row that there was; a table that is new has none."""

TIMEZONE = (
    "DO $$ BEGIN EXECUTE format('ALTER DATABASE %I SET timezone TO ''Pacific/Auckland''', current_database()); END $$"
)
MOVE_CALL = "UPDATE ledger SET intended_at = CAST(:at AS timestamptz) WHERE call_id = :call_id"
CORRECTION = "INSERT INTO ledger_corrections (call_id, number, source, nanodollars) SELECT {}, {}, '{}', 1 FROM ledger"


def first_job(engine: Engine, state: str) -> UUID:
    """Write a job as the code of version 0001 does."""
    job_id = uuid4()
    rows.execute(engine, FIRST_JOB, id=job_id, state=state)
    rows.execute(engine, FIRST_PAYLOAD, id=job_id)
    return job_id


def test_rows_of_the_first_version_come_through_with_the_defaults(database: Engine, move: Move) -> None:
    move("0001")
    queued, done = first_job(database, "queued"), first_job(database, "succeeded")
    rows.execute(database, FIRST_RESULT, id=done)
    rows.execute(database, FIRST_LEASE, worker="w1")
    rows.execute(database, FIRST_CHARGE, tokens=500)
    before = contents(database)

    move("0002")

    assert contents(database) == {
        table: [row | OF_0002.get(table, {}) for row in found] for table, found in before.items()
    }
    move("head")
    with database.begin() as connection:
        seen = queries.get(connection, [queued, done])
    assert (seen[queued].state, seen[queued].on_unavailable) == (JobState.QUEUED, OnUnavailable.WAIT)
    assert (seen[done].result, seen[done].degraded) == ("A tale.", False)


@pytest.mark.parametrize("version", ["0002", "0003", "0004"])
def test_the_code_of_the_first_version_writes_into_those_behind_it(database: Engine, move: Move, version: str) -> None:
    move("0001")
    move(version)
    job_id = first_job(database, "succeeded")
    rows.execute(database, FIRST_RESULT, id=job_id)
    for _ in range(2):
        rows.execute(database, FIRST_LEASE, worker="w1")
        rows.execute(database, FIRST_CHARGE, tokens=700)
    found = contents(database)
    [job], [result], [share] = found["jobs"], found["results"], found["tenant_shares"]
    assert {name: job[name] for name in OF_0002["jobs"]} == OF_0002["jobs"]
    assert (result["degraded"], share["served_tokens"], share["releases"]) == (False, 700, 0)
    with database.begin() as connection:
        assert leases.count_alive(connection) == 1


def test_a_job_that_the_first_code_has_queued_is_released_run_and_ended_by_the_new(
    database: Engine, move: Move
) -> None:
    move("0001")
    queued, released = first_job(database, "queued"), first_job(database, "released")
    move("head")
    rows.start_worker(database)
    with database.begin() as connection:
        (found,) = release.release_fairly(connection, "small", Lane.BATCH, Allowance(9))
        claimed = execution.claim(connection, [Claim(queued, "w1"), Claim(released, "w1")])
        assert found.job_id == queued
        assert execution.finish(connection, [rows.success(job) for job in claimed if job]) == [True, True]
    assert [rows.state(database, job_id) for job_id in (queued, released)] == ["succeeded", "succeeded"]
    assert rows.served_tokens(database)["acme"] == 0


def test_rows_of_the_second_version_come_through_with_the_defaults(database: Engine, move: Move) -> None:
    move("0002")
    job_id = old_code.run_job(database)
    for nanodollars in (300, None):
        old_code.settle(database, old_code.intend(database, job_id), nanodollars)
    old_code.intend(database, job_id)
    old_code.finish(database, job_id)
    old_code.submit(database)
    before = contents(database)

    move("0004")

    after = contents(database)
    assert len(after.pop("spending")) == 2
    assert after == {
        table: [row | OF_0003.get(table, {}) for row in before.get(table, [])] for table in OF_0003 | before
    }
    move("0008")
    with database.begin() as connection:
        job = queries.get(connection, [job_id])[job_id]
    assert (job.state, job.result, job.project) == (JobState.SUCCEEDED, "A tale.", "")
    assert (job.over_soft_limit, job.purged_at) == (False, None)
    assert job.cost_nanodollars == 300 + 2 * UPPER_BOUND
    assert job.usage == Usage(input_tokens=70, cached_input_tokens=20, output_tokens=10)


def test_what_closed_calls_came_to_is_spent_by_tenant_day_and_month_in_utc(database: Engine, move: Move) -> None:
    move("0002")
    run(database, TIMEZONE)
    database.dispose()
    for tenant, at, outcome in (
        ("acme", "2026-01-31T23:59:59.999999Z", 300),
        ("acme", "2026-02-01T00:00:00Z", None),
        ("acme", "2026-02-01T23:59:59Z", 100),
        ("acme", "2026-02-02T00:00:00Z", 0),
        ("acme", "2026-02-02T00:00:00Z", "open"),
        ("globex", "2026-02-01T12:00:00Z", 50),
        ("initech", "2026-02-01T12:00:00Z", "open"),
    ):
        call_id = old_code.intend(database, old_code.run_job(database, tenant), tenant=tenant)
        if not isinstance(outcome, str):
            old_code.settle(database, call_id, outcome)
        run(database, MOVE_CALL, at=at, call_id=call_id)

    move("0004")

    assert sorted(tuple(row) for row in run(database, "SELECT * FROM spending")) == [
        ("acme", "", "day", date(2026, 1, 31), 300, 0, 100, 0),
        ("acme", "", "day", date(2026, 2, 1), UPPER_BOUND + 100, 0, 100, 0),
        ("acme", "", "day", date(2026, 2, 2), 0, 0, 100, 0),
        ("acme", "", "month", date(2026, 1, 1), 300, 0, 100, 0),
        ("acme", "", "month", date(2026, 2, 1), UPPER_BOUND + 100, 0, 200, 0),
        ("globex", "", "day", date(2026, 2, 1), 50, 0, 100, 0),
        ("globex", "", "month", date(2026, 2, 1), 50, 0, 100, 0),
    ]
    move("0008")
    assert_balanced(database)


def test_going_back_and_forth_keeps_the_rows_and_gives_the_same_schema(database: Engine, move: Move) -> None:
    versions = list(phases())
    move("0002")
    job_id = old_code.run_job(database)
    for nanodollars in (300, None):
        old_code.settle(database, old_code.intend(database, job_id), nanodollars)
    old_code.finish(database, job_id)
    seen = {}
    for version in versions:
        move(version)
        seen[version] = describe(database), contents(database)
        assert len(seen[version][1]["ledger"]) == 2
    for version in (*versions[-2::-1], *versions[1:]):
        move(version)
        assert (describe(database), contents(database)) == seen[version]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ("UPDATE jobs SET on_unavailable = 'perhaps'", "on_unavailable"),
        ("UPDATE ledger SET outcome = 'perhaps'", "outcome"),
        ("UPDATE ledger SET upper_bound_tokens = -1", "upper_bound_tokens"),
        ("INSERT INTO budgets (tenant, period, unit) VALUES ('acme', 'week', 'tokens')", "period"),
        ("INSERT INTO budgets (tenant, period, unit) VALUES ('acme', 'day', 'euros')", "unit"),
        ("INSERT INTO budgets (tenant, period, unit, hard_limit) VALUES ('acme', 'day', 'tokens', -1)", "hard_limit"),
        ("INSERT INTO budgets (tenant, period, unit, soft_limit) VALUES ('acme', 'day', 'tokens', -1)", "soft_limit"),
        (
            "INSERT INTO budgets (tenant, period, unit, on_exhausted) VALUES ('acme', 'day', 'tokens', 'panic')",
            "on_exhausted",
        ),
        ("INSERT INTO spending (tenant, project, period, starts) VALUES ('acme', '', 'week', now())", "period"),
        (
            CORRECTION.format("call_id", 0, "export"),
            "number",
        ),
        (
            CORRECTION.format("call_id", 1, "hearsay"),
            "source",
        ),
        (
            CORRECTION.format("gen_random_uuid()", 1, "export"),
            "ledger_corrections_call_id_fkey",
        ),
    ],
)
def test_what_cannot_be_is_refused_by_the_table_itself(database: Engine, move: Move, change: str, says: str) -> None:
    move("head")
    old_code.intend(database, old_code.run_job(database))
    before = contents(database)
    with pytest.raises(IntegrityError, match=says):
        run(database, change)
    assert contents(database) == before
