CREATE FUNCTION refuse_change() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'a closed row of % is never changed; corrections are rows', TG_TABLE_NAME;
END $$;

CREATE TRIGGER ledger_is_append_only BEFORE UPDATE OR DELETE ON ledger
    FOR EACH ROW WHEN (OLD.state <> 'intent') EXECUTE FUNCTION refuse_change();
CREATE TRIGGER ledger_corrections_are_append_only BEFORE UPDATE OR DELETE ON ledger_corrections
    FOR EACH ROW EXECUTE FUNCTION refuse_change();

-- NOT VALID: older rows are looked at by 0010, which locks nobody out.
ALTER TABLE ledger
    ADD CONSTRAINT ledger_upper_bound_tokens_check CHECK (upper_bound_tokens >= 0) NOT VALID,
    ADD CONSTRAINT ledger_outcome_check CHECK (outcome IN ('not_sent', 'refused', 'answered', 'unknown')) NOT VALID;
ALTER TABLE jobs ADD CONSTRAINT jobs_state_check CHECK (state IN
    ('paused', 'queued', 'released', 'running', 'retrying', 'succeeded', 'dead', 'cancelled')) NOT VALID;
