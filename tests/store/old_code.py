"""The code before version 0003: its statements, word for word, and who runs them. It must not use today's rooms."""

import json
from typing import Any
from uuid import UUID, uuid4

from sqlalchemy import Engine, text

INSERT = text("""
    WITH given AS (
        SELECT * FROM jsonb_to_recordset(CAST(:rows AS jsonb)) AS row(
            position integer, id uuid, tenant text, prompt_id text, prompt_version text, prompt_digest text,
            tier text, lane text, priority smallint, estimated_tokens bigint, variables jsonb, document text,
            document_name text, metadata jsonb, idempotency_key text, content_digest text, deadline timestamptz,
            on_unavailable text, fallback_tiers text[])
    ), outstanding AS (
        SELECT tenant, tier, count(*) AS jobs FROM jobs
        WHERE state IN ('released', 'running') AND (tenant, tier) IN (SELECT tenant, tier FROM given)
        GROUP BY tenant, tier
    ), ranked AS (
        SELECT given.*, coalesce(outstanding.jobs, 0)
            + row_number() OVER (PARTITION BY given.tenant, given.tier, given.lane ORDER BY position) AS nth
        FROM given LEFT JOIN outstanding USING (tenant, tier)
    ), judged AS (
        SELECT ranked.*, lane = 'interactive' AND nth <= :window AND NOT EXISTS (
            SELECT 1 FROM jobs WHERE state = 'queued' AND tier = ranked.tier AND lane = 'interactive') AS at_once
        FROM ranked
    ), made AS (
        INSERT INTO jobs (id, tenant, state, released_at, prompt_id, prompt_version, prompt_digest, tier, lane,
            priority, estimated_tokens, document_name, metadata, idempotency_key, content_digest, deadline,
            on_unavailable, fallback_tiers)
        SELECT id, tenant,
            CASE WHEN at_once THEN 'released' ELSE 'queued' END, CASE WHEN at_once THEN now() END,
            prompt_id, prompt_version, prompt_digest, tier, lane,
            priority, estimated_tokens, document_name, metadata, idempotency_key, content_digest, deadline,
            on_unavailable, fallback_tiers
        FROM judged ORDER BY tenant, idempotency_key, position  -- one order for all: two submitters cannot deadlock
        ON CONFLICT DO NOTHING
        RETURNING id, state, tier, lane
    ), stored AS (
        INSERT INTO payloads (job_id, variables, document)
        SELECT id, variables, document FROM given WHERE id IN (SELECT id FROM made)
        ON CONFLICT DO NOTHING
    )
    SELECT id, state, tier, lane FROM made
""")

CLAIM = text("""
    WITH wanted AS (
        SELECT * FROM jsonb_to_recordset(CAST(:rows AS jsonb)) AS row(job_id uuid, worker text)
    ), claimed AS (
        UPDATE jobs SET state = 'running', fence = fence + 1, attempts = attempts + 1, worker = wanted.worker,
            started_at = now()
        FROM wanted JOIN workers ON workers.id = wanted.worker AND workers.lease_until > now()
        WHERE jobs.id = wanted.job_id AND jobs.state = 'released'
            AND (jobs.deadline IS NULL OR jobs.deadline > now())
        RETURNING jobs.*
    ), history AS (
        INSERT INTO attempts (job_id, fence, worker, released_at) SELECT id, fence, worker, released_at FROM claimed
    )
    SELECT claimed.*, payloads.variables, payloads.document,
        extract(epoch FROM now() - released_at)::float8 AS waited_s,
        extract(epoch FROM deadline - now())::float8 AS ends_in_s
    FROM claimed JOIN payloads ON payloads.job_id = claimed.id
""")

INTEND = text("""
    WITH given AS (
        SELECT * FROM jsonb_to_recordset(CAST(:rows AS jsonb)) AS row(
            call_id uuid, job_id uuid, fence bigint, tenant text, prompt_id text, prompt_version text, tier text,
            deployment text, account text, model_asked text, price_version text, upper_bound_nanodollars bigint)
    )
    INSERT INTO ledger (call_id, job_id, fence, tenant, prompt_id, prompt_version, tier, deployment, account,
        model_asked, price_version, state, upper_bound_nanodollars, nanodollars)
    SELECT call_id, job_id, fence, tenant, prompt_id, prompt_version, tier, deployment, account,
        model_asked, price_version, 'intent', upper_bound_nanodollars, upper_bound_nanodollars
    FROM given
    WHERE EXISTS (SELECT 1 FROM jobs WHERE id = given.job_id AND jobs.fence = given.fence AND jobs.state = 'running')
    ON CONFLICT (call_id) DO UPDATE SET call_id = excluded.call_id
    RETURNING call_id
""")

SETTLE = text("""
    WITH given AS (
        SELECT * FROM jsonb_to_recordset(CAST(:rows AS jsonb)) AS row(
            call_id uuid, nanodollars bigint, input_tokens bigint, cached_input_tokens bigint, output_tokens bigint,
            reason text, request_digest text, model_served text, finish_reason text, answer text)
    ), settled AS (
        UPDATE ledger SET settled_at = now(), reason = given.reason, model_served = given.model_served,
            state = CASE WHEN given.nanodollars IS NULL THEN 'unknown' ELSE 'settled' END,
            nanodollars = coalesce(given.nanodollars, ledger.upper_bound_nanodollars),
            input_tokens = given.input_tokens, cached_input_tokens = given.cached_input_tokens,
            output_tokens = given.output_tokens
        FROM given
        WHERE ledger.call_id = given.call_id
            AND (ledger.state = 'intent' OR (ledger.state = 'unknown' AND given.nanodollars IS NOT NULL))
        RETURNING ledger.call_id, ledger.job_id
    )
    INSERT INTO answers (job_id, request_digest, call_id, model_served, finish_reason, text)
    SELECT settled.job_id, given.request_digest, given.call_id, given.model_served, given.finish_reason, given.answer
    FROM given JOIN settled USING (call_id) WHERE given.answer IS NOT NULL
    ON CONFLICT DO NOTHING
""")

ABANDON = text("""
    UPDATE ledger SET state = 'unknown', settled_at = now(), reason = 'worker_lost'
    WHERE state = 'intent' AND intended_at < now() - make_interval(secs => :older_than_s)
        AND NOT EXISTS (SELECT 1 FROM jobs WHERE jobs.id = job_id AND jobs.fence = ledger.fence
            AND jobs.state = 'running')
    RETURNING call_id
""")

FINISH = text("""
    WITH given AS (
        SELECT * FROM jsonb_to_recordset(CAST(:rows AS jsonb)) AS row(
            job_id uuid, fence bigint, outcome text, state text, reason text, detail text, delay_s float8,
            failed boolean, result text, degraded boolean, model_asked text, model_served text, used_tokens bigint,
            weight float8)
    ), judged AS (
        SELECT given.*, jobs.charged_tokens,
            CASE WHEN given.state = 'queued' AND jobs.attempts > 1 THEN 'retrying' ELSE given.state END AS becomes
        FROM given JOIN jobs ON jobs.id = given.job_id AND jobs.fence = given.fence
    ), ended AS (
        UPDATE jobs SET state = becomes, reason = judged.reason, detail = judged.detail,
            failures = failures + judged.failed::integer,
            attempts = attempts - (judged.outcome = 'deferred')::integer,
            charged_tokens = CASE WHEN becomes = 'retrying' THEN jobs.charged_tokens ELSE 0 END,
            due_at = CASE WHEN becomes IN ('queued', 'retrying')
                THEN now() + make_interval(secs => judged.delay_s) ELSE due_at END,
            ended_at = CASE WHEN becomes IN ('queued', 'retrying') THEN NULL ELSE now() END
        FROM judged
        WHERE jobs.id = judged.job_id AND jobs.fence = judged.fence AND jobs.state = 'running'
        RETURNING jobs.id, jobs.fence, jobs.tier, jobs.lane, jobs.tenant, judged.outcome,
            judged.charged_tokens AS charged,
            (judged.used_tokens - judged.charged_tokens) / judged.weight AS correction, becomes
    ), shares AS (
        INSERT INTO tenant_shares AS share (tier, lane, tenant, served_tokens)
        SELECT tier, lane, tenant, round(sum(correction)) FROM ended
        WHERE charged > 0 AND outcome IN ('succeeded', 'deferred') AND becomes <> 'retrying' GROUP BY tier, lane, tenant
        ORDER BY tier, lane DESC, tenant  -- one order for all: two processes, or one and a feeder, cannot deadlock
        ON CONFLICT (tier, lane, tenant) DO UPDATE SET served_tokens = share.served_tokens + excluded.served_tokens
    ), no_attempt AS (
        DELETE FROM attempts USING given
        WHERE attempts.job_id = given.job_id AND attempts.fence = given.fence AND given.outcome = 'deferred'
            AND (given.job_id, given.fence) IN (SELECT id, fence FROM ended)
    ), history AS (
        UPDATE attempts SET ended_at = now(), outcome = given.outcome, reason = given.reason, detail = given.detail
        FROM given
        WHERE attempts.job_id = given.job_id AND attempts.fence = given.fence AND given.outcome <> 'deferred'
            AND (given.job_id, given.fence) IN (SELECT id, fence FROM ended)
    ), stored AS (
        INSERT INTO results (job_id, text, degraded, model_asked, model_served)
        SELECT job_id, result, degraded, model_asked, model_served FROM given
        WHERE outcome = 'succeeded' AND (job_id, fence) IN (SELECT id, fence FROM ended)
        ON CONFLICT (job_id) DO UPDATE SET text = excluded.text, degraded = excluded.degraded,
            model_asked = excluded.model_asked, model_served = excluded.model_served
    )
    SELECT id, fence FROM ended
""")


WORKER = "old-worker"
LEASE = text("INSERT INTO workers (id, lease_until) VALUES (:worker, now() + interval '1 hour') ON CONFLICT DO NOTHING")
UPPER_BOUND = 900
JOB = {
    "position": 0,
    "tenant": "acme",
    "prompt_id": "summarise_document",
    "prompt_version": "1.0.0",
    "prompt_digest": "d",
    "tier": "small",
    "lane": "interactive",
    "priority": 5,
    "estimated_tokens": 100,
    "variables": {"language": "English"},
    "document": "Once upon a time.",
    "document_name": "tale.txt",
    "metadata": {"order": "17"},
    "content_digest": "c",
    "on_unavailable": "wait",
    "fallback_tiers": ["small"],
}
CALL = {
    "prompt_id": "summarise_document",
    "prompt_version": "1.0.0",
    "tier": "small",
    "deployment": "sim-small",
    "account": "simulator",
    "model_asked": "openai/sim-small",
    "price_version": "2026-01-01",
    "upper_bound_nanodollars": UPPER_BOUND,
}
ANSWER = {"request_digest": "q", "model_served": "sim-small-1", "finish_reason": "stop", "answer": "A tale."}
TOKENS = {"input_tokens": 70, "cached_input_tokens": 20, "output_tokens": 10}
NO_TOKENS = dict.fromkeys(TOKENS, 0)


def submit(engine: Engine, tenant: str = "acme") -> UUID:
    """Accept a job, which is born released."""
    job_id = uuid4()
    made = _run(engine, INSERT, JOB | {"id": str(job_id), "tenant": tenant}, window=64)
    assert [(row.id, row.state) for row in made] == [(job_id, "released")]
    return job_id


def claim(engine: Engine, job_id: UUID) -> int:
    """Begin a run and give its fence."""
    with engine.begin() as connection:
        connection.execute(LEASE, {"worker": WORKER})
    [row] = _run(engine, CLAIM, {"job_id": str(job_id), "worker": WORKER})
    return int(row.fence)


def run_job(engine: Engine, tenant: str = "acme") -> UUID:
    """Accept a job and begin its first run."""
    job_id = submit(engine, tenant)
    assert claim(engine, job_id) == 1
    return job_id


def intend(engine: Engine, job_id: UUID, call_id: UUID | None = None, tenant: str = "acme", fence: int = 1) -> UUID:
    """Write down a call of a run before it is made."""
    call = call_id or uuid4()
    owner = {"call_id": str(call), "job_id": str(job_id), "fence": fence, "tenant": tenant}
    assert [row.call_id for row in _run(engine, INTEND, CALL | owner)] == [call]
    return call


def settle(engine: Engine, call_id: UUID, nanodollars: int | None, reason: str | None = None) -> None:
    """State what a call came to; None: nobody knows."""
    known = {} if nanodollars is None else TOKENS | ANSWER
    _run(engine, SETTLE, NO_TOKENS | known | {"call_id": str(call_id), "nanodollars": nanodollars, "reason": reason})


def abandon(engine: Engine) -> list[UUID]:
    """Close the calls as unknown whose run is over."""
    with engine.begin() as connection:
        return [row.call_id for row in connection.execute(ABANDON, {"older_than_s": 0})]


def finish(engine: Engine, job_id: UUID, fence: int = 1) -> None:
    """End a run with a result."""
    ending = {
        "job_id": str(job_id),
        "fence": fence,
        "outcome": "succeeded",
        "state": "succeeded",
        "delay_s": 0.0,
        "failed": False,
        "result": "A tale.",
        "degraded": False,
        "model_asked": "sim-small",
        "model_served": "sim-small-1",
        "used_tokens": 100,
        "weight": 1.0,
    }
    assert [row.id for row in _run(engine, FINISH, ending)] == [job_id]


def stop(engine: Engine, job_id: UUID) -> None:
    """Let the run of a job be over, as a cancel does."""
    with engine.begin() as connection:
        connection.execute(text("UPDATE jobs SET state = 'cancelled', ended_at = now() WHERE id = :id"), {"id": job_id})


def _run(engine: Engine, statement: Any, row: dict[str, Any], **values: object) -> list[Any]:
    with engine.begin() as connection:
        result = connection.execute(statement, {"rows": json.dumps([row])} | values)
        return list(result.all()) if result.returns_rows else []
