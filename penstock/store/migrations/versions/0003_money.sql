-- In the order in which running code takes them, and before anything else: see `migrate`, which does not wait long.
LOCK TABLE ledger, jobs, results, attempts IN ACCESS EXCLUSIVE MODE;

ALTER TABLE jobs
    ADD COLUMN project text NOT NULL DEFAULT '',
    ADD COLUMN purged_at timestamptz,
    ADD COLUMN kept_until timestamptz;

COMMENT ON COLUMN jobs.project IS 'whose budget it is paid from, beside the tenant''s; '''' is none';
COMMENT ON COLUMN jobs.purged_at IS 'since when none of its text is kept';
COMMENT ON COLUMN jobs.kept_until IS 'where nothing is to be kept: until when its result, the last of its text, may wait to be fetched';

ALTER TABLE results
    ADD COLUMN over_soft_limit boolean NOT NULL DEFAULT false,
    ADD COLUMN fetched_at timestamptz;

COMMENT ON COLUMN results.over_soft_limit IS 'a soft budget of its tenant was used up when it was paid for';
COMMENT ON COLUMN results.fetched_at IS 'when its owner first read it, where nothing may be kept longer';

ALTER TABLE ledger
    ADD COLUMN project text NOT NULL DEFAULT '',
    ADD COLUMN cache_write_tokens bigint NOT NULL DEFAULT 0,
    ADD COLUMN reasoning_tokens bigint NOT NULL DEFAULT 0,
    ADD COLUMN max_tokens integer,
    ADD COLUMN over_soft_limit boolean NOT NULL DEFAULT false,
    ADD COLUMN upper_bound_tokens bigint,
    ADD COLUMN outcome text;

COMMENT ON COLUMN ledger.upper_bound_tokens IS 'NULL: written by a version that held nothing of a budget';
COMMENT ON COLUMN ledger.outcome IS 'what came of the call; NULL while it is open';

-- What was found out about a call after its row was closed: amounts that are added to the row's own.
CREATE TABLE ledger_corrections (
    call_id             uuid NOT NULL REFERENCES ledger,
    number              integer NOT NULL CHECK (number > 0),
    source              text NOT NULL CHECK (source IN ('late_answer', 'export')),
    nanodollars         bigint NOT NULL,
    input_tokens        bigint NOT NULL DEFAULT 0,
    cached_input_tokens bigint NOT NULL DEFAULT 0,
    cache_write_tokens  bigint NOT NULL DEFAULT 0,
    output_tokens       bigint NOT NULL DEFAULT 0,
    reasoning_tokens    bigint NOT NULL DEFAULT 0,
    has_usage           boolean NOT NULL DEFAULT true,
    corrected_at        timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (call_id, number)
);

COMMENT ON COLUMN ledger_corrections.has_usage IS 'it tells the tokens; the first that does takes the place of the upper bound';

-- What calls came to, as rows to be summed: a call's own, and its corrections.
CREATE VIEW ledger_amounts WITH (security_invoker = true) AS
    SELECT call_id, nanodollars, input_tokens, cached_input_tokens, cache_write_tokens, output_tokens, reasoning_tokens
    FROM ledger
    UNION ALL
    SELECT call_id, nanodollars, input_tokens, cached_input_tokens, cache_write_tokens, output_tokens, reasoning_tokens
    FROM ledger_corrections;

-- What a tenant, or one of its projects, may spend in a day or a month (UTC). No row, or no hard limit: any amount.
CREATE TABLE budgets (
    tenant       text NOT NULL,
    project      text NOT NULL DEFAULT '',
    period       text NOT NULL CHECK (period IN ('day', 'month')),
    unit         text NOT NULL CHECK (unit IN ('nanodollars', 'tokens')),
    soft_limit   bigint CHECK (soft_limit >= 0),
    hard_limit   bigint CHECK (hard_limit >= 0),
    on_exhausted text NOT NULL DEFAULT 'refuse' CHECK (on_exhausted IN ('refuse', 'degrade')),
    PRIMARY KEY (tenant, project, period, unit)
);

-- What was spent in each period, whether there is a budget or not: the sum of its calls' ledger rows, kept up with them.
CREATE TABLE spending (
    tenant              text NOT NULL,
    project             text NOT NULL,
    period              text NOT NULL CHECK (period IN ('day', 'month', 'batch')),
    starts              date NOT NULL,
    settled_nanodollars bigint NOT NULL DEFAULT 0,
    held_nanodollars    bigint NOT NULL DEFAULT 0,
    settled_tokens      bigint NOT NULL DEFAULT 0,
    held_tokens         bigint NOT NULL DEFAULT 0,
    PRIMARY KEY (tenant, project, period, starts)
) WITH (fillfactor = 50);

COMMENT ON COLUMN spending.held_nanodollars IS 'upper bounds of calls whose outcome is open';
COMMENT ON COLUMN spending.settled_nanodollars IS 'what closed calls cost; an unknown outcome at its upper bound';

-- A tenant's own reads are made by this role, with the tenant's name in the setting penstock.tenant.
-- Where the owner of the tables may create no role, somebody who may has to create and grant it before.
DO $$ BEGIN
    IF NOT EXISTS (SELECT 1 FROM pg_roles WHERE rolname = 'penstock_tenant') THEN
        BEGIN
            CREATE ROLE penstock_tenant NOLOGIN;
        EXCEPTION WHEN duplicate_object OR unique_violation THEN NULL;  -- for another database, at the same moment
        END;
    END IF;
    IF NOT pg_has_role(current_user, 'penstock_tenant',
            CASE WHEN current_setting('server_version_num')::integer >= 160000 THEN 'SET' ELSE 'MEMBER' END) THEN
        GRANT penstock_tenant TO CURRENT_USER;
    END IF;
END $$;
GRANT SELECT ON jobs, results, attempts, ledger, ledger_corrections, ledger_amounts, budgets, spending
    TO penstock_tenant;

ALTER TABLE jobs ENABLE ROW LEVEL SECURITY;
ALTER TABLE results ENABLE ROW LEVEL SECURITY;
ALTER TABLE attempts ENABLE ROW LEVEL SECURITY;
ALTER TABLE ledger ENABLE ROW LEVEL SECURITY;
ALTER TABLE ledger_corrections ENABLE ROW LEVEL SECURITY;
ALTER TABLE budgets ENABLE ROW LEVEL SECURITY;
ALTER TABLE spending ENABLE ROW LEVEL SECURITY;

CREATE POLICY tenant_reads ON jobs FOR SELECT TO penstock_tenant
    USING (tenant = nullif(current_setting('penstock.tenant', true), ''));
CREATE POLICY tenant_reads ON ledger FOR SELECT TO penstock_tenant
    USING (tenant = nullif(current_setting('penstock.tenant', true), ''));
CREATE POLICY tenant_reads ON budgets FOR SELECT TO penstock_tenant
    USING (tenant = nullif(current_setting('penstock.tenant', true), ''));
CREATE POLICY tenant_reads ON spending FOR SELECT TO penstock_tenant
    USING (tenant = nullif(current_setting('penstock.tenant', true), ''));
CREATE POLICY tenant_reads ON results FOR SELECT TO penstock_tenant
    USING (EXISTS (SELECT 1 FROM jobs WHERE jobs.id = job_id));
CREATE POLICY tenant_reads ON attempts FOR SELECT TO penstock_tenant
    USING (EXISTS (SELECT 1 FROM jobs WHERE jobs.id = job_id));
CREATE POLICY tenant_reads ON ledger_corrections FOR SELECT TO penstock_tenant
    USING (EXISTS (SELECT 1 FROM ledger WHERE ledger.call_id = ledger_corrections.call_id));
