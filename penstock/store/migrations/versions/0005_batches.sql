LOCK TABLE ledger, jobs IN ACCESS EXCLUSIVE MODE;

-- Many jobs under one name, which is unique for a tenant: whoever runs it again goes on with it.
CREATE TABLE batches (
    id              uuid PRIMARY KEY,
    tenant          text NOT NULL,
    name            text NOT NULL,
    project         text NOT NULL,
    prompt_id       text NOT NULL,
    prompt_version  text NOT NULL,
    prompt_digest   text NOT NULL,
    tier            text NOT NULL,
    state           text NOT NULL CHECK (state IN ('running', 'paused', 'stopped', 'done', 'cancelled')),
    reason          text,
    request_digest  text NOT NULL,
    forecast        jsonb,
    abort_if        jsonb NOT NULL,
    max_nanodollars bigint,
    callback        text,
    items           bigint NOT NULL DEFAULT 0,
    items_digest    text NOT NULL DEFAULT '',
    is_loaded       boolean NOT NULL DEFAULT false,
    created_at      timestamptz NOT NULL DEFAULT now(),
    starts_at       timestamptz NOT NULL DEFAULT now(),
    resumed_at      timestamptz,
    ended_before    bigint NOT NULL DEFAULT 0,
    dead_before     bigint NOT NULL DEFAULT 0,
    settled_before  bigint NOT NULL DEFAULT 0,
    ended_at        timestamptz,
    announced       boolean NOT NULL DEFAULT false,
    CONSTRAINT batches_name UNIQUE (tenant, name)
);

COMMENT ON COLUMN batches.state IS 'stopped: by itself, for its reason; it can be resumed, as a paused one can';
COMMENT ON COLUMN batches.request_digest IS 'what it was asked to do, so that another request under its name is refused';
COMMENT ON COLUMN batches.resumed_at IS 'when it last went on, with so many jobs ended and dead, and so much paid';
COMMENT ON COLUMN batches.items IS 'how many of the input are rows here, jobs and errors; those behind them are to be read';
COMMENT ON COLUMN batches.items_digest IS 'of those items, so that another input under the same name is refused';

CREATE INDEX batches_live ON batches (created_at) WHERE ended_at IS NULL OR NOT announced;

-- The items of its input that could not become jobs. `reason` quotes nothing of them.
CREATE TABLE batch_errors (
    batch_id uuid NOT NULL REFERENCES batches,
    number   bigint NOT NULL,
    reason   text NOT NULL,
    PRIMARY KEY (batch_id, number)
);

ALTER TABLE jobs
    ADD COLUMN batch_id uuid,
    ADD COLUMN batch_number bigint,
    DROP CONSTRAINT jobs_state_check;

COMMENT ON COLUMN jobs.batch_number IS 'which item of its batch''s input it is, from 1';

ALTER TABLE ledger ADD COLUMN batch_id uuid;

COMMENT ON COLUMN ledger.batch_id IS 'whose account it is booked on too: spending has a row of period batch for each';

GRANT SELECT ON batches, batch_errors TO penstock_tenant;
ALTER TABLE batches ENABLE ROW LEVEL SECURITY;
ALTER TABLE batch_errors ENABLE ROW LEVEL SECURITY;
CREATE POLICY tenant_reads ON batches FOR SELECT TO penstock_tenant
    USING (tenant = nullif(current_setting('penstock.tenant', true), ''));
CREATE POLICY tenant_reads ON batch_errors FOR SELECT TO penstock_tenant
    USING (EXISTS (SELECT 1 FROM batches WHERE batches.id = batch_id));
