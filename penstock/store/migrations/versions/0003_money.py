"""Budgets and what was spent of them, corrections of the ledger, projects, retention, and the tenants' own reads."""

from pathlib import Path

from alembic import op

revision = "0003"
down_revision = "0002"
phase = "expand"
indexes = {
    "jobs_purgeable": """jobs (tenant, coalesce(kept_until, ended_at))
        WHERE state IN ('succeeded', 'dead', 'cancelled') AND purged_at IS NULL""",
    "jobs_crashed": "jobs (tier, crashes) WHERE crashes > 1 AND state IN ('retrying', 'released', 'running')",
    "ledger_unknown": "ledger (account, intended_at) WHERE state = 'unknown'",
}


def upgrade() -> None:
    """Add tables, and columns with defaults; the statements stand beside this file."""
    op.execute(Path(__file__).with_suffix(".sql").read_text())


def downgrade() -> None:
    """Drop what `upgrade` added; the role stays, since other databases of the server may use it."""
    for table in ("jobs", "results", "attempts", "ledger"):
        op.execute(f"DROP POLICY tenant_reads ON {table}")
        op.execute(f"ALTER TABLE {table} DISABLE ROW LEVEL SECURITY")
        op.execute(f"REVOKE SELECT ON {table} FROM penstock_tenant")
    op.execute("DROP VIEW ledger_amounts")
    op.execute("DROP TABLE ledger_corrections, budgets, spending")
    op.execute(f"DROP INDEX IF EXISTS {', '.join(indexes)}")
    op.execute("ALTER TABLE jobs DROP COLUMN project, DROP COLUMN purged_at, DROP COLUMN kept_until")
    op.execute("ALTER TABLE results DROP COLUMN over_soft_limit, DROP COLUMN fetched_at")
    op.execute(
        "ALTER TABLE ledger DROP COLUMN project, DROP COLUMN cache_write_tokens, DROP COLUMN reasoning_tokens,"
        " DROP COLUMN max_tokens, DROP COLUMN over_soft_limit, DROP COLUMN upper_bound_tokens, DROP COLUMN outcome"
    )
