"""Tenants with one row in each table, written by hand. It must not use the rooms that it is to try."""

from dataclasses import dataclass
from typing import Any
from uuid import UUID, uuid4

from sqlalchemy import Engine, text

JOB = """
    INSERT INTO jobs (id, tenant, state, prompt_id, prompt_version, prompt_digest, tier, lane, priority,
        estimated_tokens, metadata, content_digest, attempts, ended_at)
    VALUES (:job, :tenant, 'succeeded', 'summarise_document', '1.0.0', 'd', 'small', 'batch', 5,
        100, '{}', 'c', 1, now())
"""
PAYLOAD = "INSERT INTO payloads (job_id, variables, document) VALUES (:job, '{}', :marker)"
ATTEMPT = "INSERT INTO attempts (job_id, fence, worker, outcome) VALUES (:job, 1, 'w1', 'succeeded')"
RESULT = "INSERT INTO results (job_id, text, model_asked, model_served) VALUES (:job, :marker, 'm', 'm-1')"
ANSWER = """
    INSERT INTO answers (job_id, request_digest, call_id, model_served, finish_reason, text)
    VALUES (:job, 'q', :call, 'm-1', 'stop', :marker)
"""
CALL = """
    INSERT INTO ledger (call_id, job_id, fence, tenant, prompt_id, prompt_version, tier, deployment, account,
        model_asked, price_version, state, upper_bound_nanodollars, nanodollars, upper_bound_tokens, input_tokens,
        output_tokens, settled_at)
    VALUES (:call, :job, 1, :tenant, 'summarise_document', '1.0.0', 'small', 'sim-small', 'simulator', 'm',
        '2026-01-01', 'settled', 9000, 1234000, 900, 100, 20, now())
"""
CORRECTION = """
    INSERT INTO ledger_corrections (call_id, number, source, nanodollars, input_tokens)
    VALUES (:call, 1, 'export', 1000, 5)
"""
BUDGET = """
    INSERT INTO budgets (tenant, period, unit, soft_limit, hard_limit)
    VALUES (:tenant, 'month', 'nanodollars', 400000000000, 500000000000)
"""
SPENDING = """
    INSERT INTO spending (tenant, project, period, starts, settled_nanodollars, held_nanodollars, settled_tokens)
    SELECT :tenant, '', period, date_trunc(period, now() AT TIME ZONE 'UTC')::date, 1235000, 0, 125
    FROM (VALUES ('day'), ('month')) AS periods(period)
"""
BATCH = """
    INSERT INTO batches (id, tenant, name, project, prompt_id, prompt_version, prompt_digest, tier, state,
        request_digest, abort_if)
    VALUES (:batch, :tenant, 'night', '', 'summarise_document', '1.0.0', 'd', 'small', 'running', 'q',
        '{"errors": null, "cost": null}')
"""
PARCEL = """
    INSERT INTO provider_batches (id, batch_id, tier, deployment, send_by, ends_by)
    VALUES (:batch, :batch, 'small', 'sim-small', now(), now())
"""
PARCEL_REQUEST = """
    INSERT INTO provider_requests (job_id, provider_batch_id, fence, request_digest, is_open)
    VALUES (:job, :batch, 1, 'q', true)
"""
BATCH_ERROR = "INSERT INTO batch_errors (batch_id, number, reason) VALUES (:batch, 7, 'it is no JSON')"


@dataclass(frozen=True)
class Owned:
    """What belongs to a tenant: its job, its one call, and its batch."""

    tenant: str
    job: UUID
    call: UUID
    batch: UUID
    marker: str


def furnish(engine: Engine, tenant: str) -> Owned:
    """Give a tenant a job that has ended, a call, a correction of it, a budget, what it spent, a batch and a file."""
    owned = Owned(tenant, uuid4(), uuid4(), uuid4(), f"only {tenant} may read this")
    with engine.begin() as connection:
        for statement in (
            JOB,
            PAYLOAD,
            ATTEMPT,
            RESULT,
            CALL,
            ANSWER,
            CORRECTION,
            BUDGET,
            SPENDING,
            BATCH,
            BATCH_ERROR,
            PARCEL,
            PARCEL_REQUEST,
        ):
            connection.execute(text(statement), vars(owned))
    return owned


def run(engine: Engine, statement: str, **values: Any) -> None:
    """Run a statement in a transaction of its own."""
    with engine.begin() as connection:
        connection.execute(text(statement), values)
