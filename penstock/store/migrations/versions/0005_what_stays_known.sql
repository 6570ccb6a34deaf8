ALTER TABLE jobs ADD COLUMN kept_until timestamptz;
ALTER TABLE ledger_corrections ADD COLUMN has_usage boolean NOT NULL DEFAULT true;

COMMENT ON COLUMN jobs.kept_until IS 'where nothing may be kept: all of its text but the result is gone, which waits to be fetched until then';
COMMENT ON COLUMN ledger_corrections.has_usage IS 'it says the tokens too; the first that does takes the place of the upper bound';

CREATE INDEX jobs_purgeable ON jobs (tenant, coalesce(kept_until, ended_at))
    WHERE state IN ('succeeded', 'dead', 'cancelled') AND purged_at IS NULL;
CREATE INDEX ledger_unknown ON ledger (account, intended_at) WHERE state = 'unknown';
