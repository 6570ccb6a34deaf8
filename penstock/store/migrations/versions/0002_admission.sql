ALTER TABLE jobs
    ADD COLUMN on_unavailable text NOT NULL DEFAULT 'wait' CHECK (on_unavailable IN ('wait', 'degrade', 'fail')),
    ADD COLUMN fallback_tiers text[] NOT NULL DEFAULT '{}',
    ADD COLUMN charged_tokens bigint NOT NULL DEFAULT 0;

COMMENT ON COLUMN jobs.on_unavailable IS 'what it accepts when no model can be asked';
COMMENT ON COLUMN jobs.fallback_tiers IS 'which tiers its prompt lets answer when none of its own can be asked';
COMMENT ON COLUMN jobs.charged_tokens IS 'what its tenant''s share was charged for it when it was released, until the truth is known';

ALTER TABLE results ADD COLUMN degraded boolean NOT NULL DEFAULT false;

COMMENT ON COLUMN results.degraded IS 'no model wrote it: sentences of the document stand in for an answer';

ALTER TABLE tenant_shares ADD COLUMN releases bigint NOT NULL DEFAULT 0;

COMMENT ON COLUMN tenant_shares.releases IS 'the last release at which the tenant waited, by its number';

ALTER TABLE workers ADD COLUMN tier text NOT NULL DEFAULT '';

CREATE INDEX jobs_impatient ON jobs (tier, lane, tenant, priority DESC, created_at, id)
    WHERE state = 'queued' AND (on_unavailable <> 'wait' OR fallback_tiers <> '{}');
CREATE INDEX results_degraded ON results (job_id) WHERE degraded;
