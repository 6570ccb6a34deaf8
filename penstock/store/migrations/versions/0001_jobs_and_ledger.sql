-- One row a worker process. Its lease is the lease of every job that it runs: one small update keeps them all.
CREATE TABLE workers (
    id          text PRIMARY KEY,
    started_at  timestamptz NOT NULL DEFAULT now(),
    lease_until timestamptz NOT NULL
);

-- The job. A message in the broker is only its doorbell.
CREATE TABLE jobs (
    id               uuid PRIMARY KEY,
    tenant           text NOT NULL,
    state            text NOT NULL CHECK (state IN
        ('queued', 'released', 'running', 'retrying', 'succeeded', 'dead', 'cancelled')),
    prompt_id        text NOT NULL,
    prompt_version   text NOT NULL,
    prompt_digest    text NOT NULL,
    tier             text NOT NULL,
    lane             text NOT NULL CHECK (lane IN ('interactive', 'batch')),
    priority         smallint NOT NULL CHECK (priority BETWEEN 0 AND 9),
    estimated_tokens bigint NOT NULL,
    document_name    text,
    metadata         jsonb NOT NULL,
    idempotency_key  text,
    content_digest   text NOT NULL,
    deadline         timestamptz,
    created_at       timestamptz NOT NULL DEFAULT now(),
    due_at           timestamptz NOT NULL DEFAULT now(),
    released_at      timestamptz,
    started_at       timestamptz,
    ended_at         timestamptz,
    fence            bigint NOT NULL DEFAULT 0,
    attempts         integer NOT NULL DEFAULT 0,
    failures         integer NOT NULL DEFAULT 0,
    crashes          integer NOT NULL DEFAULT 0,
    worker           text,
    reason           text,
    detail           text,
    announced        boolean NOT NULL DEFAULT false,
    CONSTRAINT jobs_idempotency UNIQUE (tenant, idempotency_key)
) WITH (fillfactor = 70);

COMMENT ON COLUMN jobs.fence IS 'grows with each claim; a run whose fence is not this one must have no effect';
COMMENT ON COLUMN jobs.failures IS 'attempts that count against the tier''s limit: a 429 does not';
COMMENT ON COLUMN jobs.crashes IS 'workers that died under this job';
COMMENT ON COLUMN jobs.announced IS 'its death was published to the queue dead_letter';

CREATE INDEX jobs_queued ON jobs (tier, lane, tenant, priority DESC, created_at, id) WHERE state = 'queued';
CREATE INDEX jobs_retrying ON jobs (tier, due_at) WHERE state = 'retrying';
CREATE INDEX jobs_released ON jobs (tier, lane, released_at) WHERE state = 'released';
CREATE INDEX jobs_running ON jobs (worker) WHERE state = 'running';
CREATE INDEX jobs_outstanding ON jobs (tenant, tier) WHERE state IN ('released', 'running');
CREATE INDEX jobs_deadline ON jobs (deadline) WHERE state IN ('queued', 'released', 'retrying') AND deadline IS NOT NULL;
CREATE INDEX jobs_started ON jobs (tier, started_at) WHERE started_at IS NOT NULL;
CREATE INDEX jobs_by_tenant ON jobs (tenant, created_at DESC);
CREATE INDEX jobs_by_age ON jobs (created_at DESC);
CREATE INDEX jobs_dead ON jobs (ended_at DESC) WHERE state = 'dead';
CREATE INDEX jobs_unannounced ON jobs (ended_at) WHERE state = 'dead' AND NOT announced;

-- The text, apart from the row that changes often.
CREATE TABLE payloads (
    job_id    uuid PRIMARY KEY REFERENCES jobs ON DELETE CASCADE,
    variables jsonb NOT NULL,
    document  text
);

CREATE TABLE attempts (
    job_id     uuid NOT NULL REFERENCES jobs ON DELETE CASCADE,
    fence      bigint NOT NULL,
    worker     text NOT NULL,
    released_at timestamptz,
    started_at timestamptz NOT NULL DEFAULT now(),
    ended_at   timestamptz,
    outcome    text NOT NULL DEFAULT 'running' CHECK (outcome IN
        ('running', 'succeeded', 'retried', 'dead', 'cancelled', 'handed_back', 'unknown')),
    reason     text,
    detail     text,
    PRIMARY KEY (job_id, fence)
);

-- The answer journal: what was paid for is never asked again.
CREATE TABLE answers (
    job_id         uuid NOT NULL REFERENCES jobs ON DELETE CASCADE,
    request_digest text NOT NULL,
    call_id        uuid NOT NULL,
    model_served   text NOT NULL,
    finish_reason  text NOT NULL,
    text           text NOT NULL,
    PRIMARY KEY (job_id, request_digest)
);

CREATE TABLE results (
    job_id       uuid PRIMARY KEY REFERENCES jobs ON DELETE CASCADE,
    text         text NOT NULL,
    model_asked  text NOT NULL,
    model_served text NOT NULL
);

-- One row a physical provider call, committed before its bytes leave. It outlives its job and holds no text.
CREATE TABLE ledger (
    call_id                  uuid PRIMARY KEY,
    job_id                   uuid NOT NULL,
    fence                    bigint NOT NULL,
    tenant                   text NOT NULL,
    prompt_id                text NOT NULL,
    prompt_version           text NOT NULL,
    tier                     text NOT NULL,
    deployment               text NOT NULL,
    account                  text NOT NULL,
    model_asked              text NOT NULL,
    model_served             text,
    price_version            text NOT NULL,
    state                    text NOT NULL CHECK (state IN ('intent', 'settled', 'unknown')),
    upper_bound_nanodollars  bigint NOT NULL CHECK (upper_bound_nanodollars >= 0),
    nanodollars              bigint NOT NULL CHECK (nanodollars >= 0),
    input_tokens             bigint NOT NULL DEFAULT 0,
    cached_input_tokens      bigint NOT NULL DEFAULT 0,
    output_tokens            bigint NOT NULL DEFAULT 0,
    reason                   text,
    intended_at              timestamptz NOT NULL DEFAULT now(),
    settled_at               timestamptz
);

COMMENT ON COLUMN ledger.nanodollars IS 'the upper bound while the outcome is open or unknown, the truth once settled';

CREATE INDEX ledger_by_job ON ledger (job_id);
CREATE INDEX ledger_by_tenant ON ledger (tenant, intended_at);
CREATE INDEX ledger_open ON ledger (intended_at) WHERE state = 'intent';

-- What each tenant has been given of a tier, in tokens: the start tags of fair queueing.
CREATE TABLE tenant_shares (
    tier   text NOT NULL,
    lane   text NOT NULL,
    tenant text NOT NULL,
    served_tokens bigint NOT NULL DEFAULT 0,
    PRIMARY KEY (tier, lane, tenant)
);
