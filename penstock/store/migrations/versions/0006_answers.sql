LOCK TABLE ledger, jobs, results, answers IN ACCESS EXCLUSIVE MODE;

-- The journal of answers is the cache, too: a question of the same tenant finds them, for as long as its text is kept.
ALTER TABLE answers
    ADD COLUMN tenant text NOT NULL DEFAULT '',
    ADD COLUMN model text NOT NULL DEFAULT '',
    ADD COLUMN answered_at timestamptz NOT NULL DEFAULT 'epoch';
ALTER TABLE answers ALTER COLUMN answered_at SET DEFAULT now();

COMMENT ON COLUMN answers.tenant IS 'empty: written by a version that shared no answers';
COMMENT ON COLUMN answers.answered_at IS '1970: by a version that did not say when';
COMMENT ON COLUMN answers.model IS 'which model of which deployment was asked, as models.toml names it';

ALTER TABLE ledger ADD COLUMN request_digest text;

COMMENT ON COLUMN ledger.request_digest IS 'which question is asked, where others who ask it wait for this call; one at a time of a tenant and tier';

ALTER TABLE jobs ADD COLUMN is_fresh boolean NOT NULL DEFAULT false;

COMMENT ON COLUMN jobs.is_fresh IS 'it takes no answer that was paid for by another job';

ALTER TABLE results
    ADD COLUMN cached boolean NOT NULL DEFAULT false,
    ADD COLUMN sources jsonb;

COMMENT ON COLUMN results.cached IS 'another job of the tenant had paid for all of it';
COMMENT ON COLUMN results.sources IS 'of a long document: the sections that the text cites, with their offsets in characters';
