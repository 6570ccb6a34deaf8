CREATE FUNCTION refuse_change() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'a closed row of % is never changed; corrections are rows', TG_TABLE_NAME;
END $$;

CREATE TRIGGER ledger_is_append_only BEFORE UPDATE OR DELETE ON ledger
    FOR EACH ROW WHEN (OLD.state <> 'intent') EXECUTE FUNCTION refuse_change();
CREATE TRIGGER ledger_corrections_are_append_only BEFORE UPDATE OR DELETE ON ledger_corrections
    FOR EACH ROW EXECUTE FUNCTION refuse_change();

-- Code from before 0003 closed calls without booking them. What was spent is added up anew, while nobody books.
LOCK TABLE spending IN SHARE ROW EXCLUSIVE MODE;
UPDATE spending SET settled_nanodollars = 0, held_nanodollars = 0, settled_tokens = 0, held_tokens = 0;
WITH amounts AS (
    SELECT tenant, project, intended_at, state = 'intent' AS is_open, upper_bound_tokens,
        ledger.nanodollars + coalesce(later.nanodollars, 0) AS nanodollars,
        CASE WHEN state = 'unknown' AND later.call_id IS NULL THEN coalesce(upper_bound_tokens, 0)
            ELSE input_tokens + cached_input_tokens + cache_write_tokens + output_tokens + reasoning_tokens
                + coalesce(later.tokens, 0) END AS tokens
    FROM ledger LEFT JOIN (
        SELECT call_id, sum(nanodollars) AS nanodollars, sum(input_tokens + cached_input_tokens + cache_write_tokens
            + output_tokens + reasoning_tokens) AS tokens
        FROM ledger_corrections GROUP BY call_id
    ) AS later USING (call_id)
)
INSERT INTO spending AS booked (tenant, project, period, starts,
    settled_nanodollars, held_nanodollars, settled_tokens, held_tokens)
SELECT tenant, whose.project, period, date_trunc(period, intended_at AT TIME ZONE 'UTC')::date,
    coalesce(sum(nanodollars) FILTER (WHERE NOT is_open), 0),
    coalesce(sum(nanodollars) FILTER (WHERE is_open AND upper_bound_tokens IS NOT NULL), 0),
    coalesce(sum(tokens) FILTER (WHERE NOT is_open), 0),
    coalesce(sum(upper_bound_tokens) FILTER (WHERE is_open), 0)
FROM amounts
CROSS JOIN LATERAL (SELECT '' AS project UNION SELECT amounts.project) AS whose
CROSS JOIN (VALUES ('day'), ('month')) AS periods(period)
GROUP BY 1, 2, 3, 4
ON CONFLICT (tenant, project, period, starts) DO UPDATE SET
    settled_nanodollars = excluded.settled_nanodollars, held_nanodollars = excluded.held_nanodollars,
    settled_tokens = excluded.settled_tokens, held_tokens = excluded.held_tokens;
