-- What the ledger says less what is booked of it: what code from before 0003 did, which booked nothing. Both are seen in
-- one snapshot, and code since 0003 changes both in one transaction; so whatever is booked beside this, it adds what is
-- missing and no more, and a second time nothing. It locks no row longer than it takes to write the differences.
WITH amounts AS (
    SELECT tenant, project, intended_at, state = 'intent' AS is_open, upper_bound_tokens,
        ledger.nanodollars + coalesce(later.nanodollars, 0) AS nanodollars,
        input_tokens + cached_input_tokens + cache_write_tokens + output_tokens + reasoning_tokens
            + coalesce(later.tokens, 0)
            + CASE WHEN state = 'unknown' AND later.knows IS NOT true THEN coalesce(upper_bound_tokens, 0) ELSE 0 END
            AS tokens
    FROM ledger LEFT JOIN (
        SELECT call_id, sum(nanodollars) AS nanodollars, bool_or(has_usage) AS knows,
            sum(input_tokens + cached_input_tokens + cache_write_tokens + output_tokens + reasoning_tokens) AS tokens
        FROM ledger_corrections GROUP BY call_id
    ) AS later USING (call_id)
), truth AS (
    SELECT tenant, whose.project, period, date_trunc(period, intended_at AT TIME ZONE 'UTC')::date AS starts,
        coalesce(sum(nanodollars) FILTER (WHERE NOT is_open), 0) AS settled_nanodollars,
        coalesce(sum(nanodollars) FILTER (WHERE is_open AND upper_bound_tokens IS NOT NULL), 0) AS held_nanodollars,
        coalesce(sum(tokens) FILTER (WHERE NOT is_open), 0) AS settled_tokens,
        coalesce(sum(upper_bound_tokens) FILTER (WHERE is_open), 0) AS held_tokens
    FROM amounts
    CROSS JOIN LATERAL (SELECT '' AS project UNION SELECT amounts.project) AS whose
    CROSS JOIN (VALUES ('day'), ('month')) AS periods(period)
    GROUP BY 1, 2, 3, 4
), missing AS MATERIALIZED (
    SELECT tenant, project, period, starts,
        truth.settled_nanodollars - coalesce(so_far.settled_nanodollars, 0) AS settled_nanodollars,
        truth.held_nanodollars - coalesce(so_far.held_nanodollars, 0) AS held_nanodollars,
        truth.settled_tokens - coalesce(so_far.settled_tokens, 0) AS settled_tokens,
        truth.held_tokens - coalesce(so_far.held_tokens, 0) AS held_tokens
    FROM truth LEFT JOIN spending AS so_far USING (tenant, project, period, starts)
)
INSERT INTO spending AS booked (tenant, project, period, starts,
    settled_nanodollars, held_nanodollars, settled_tokens, held_tokens)
SELECT * FROM missing
WHERE (settled_nanodollars, held_nanodollars, settled_tokens, held_tokens) <> (0, 0, 0, 0)
ORDER BY tenant, project, period, starts
ON CONFLICT (tenant, project, period, starts) DO UPDATE SET
    settled_nanodollars = booked.settled_nanodollars + excluded.settled_nanodollars,
    held_nanodollars = booked.held_nanodollars + excluded.held_nanodollars,
    settled_tokens = booked.settled_tokens + excluded.settled_tokens,
    held_tokens = booked.held_tokens + excluded.held_tokens;
