"""What code from before 0003 closed beside newer code, now that it has stopped: its calls are booked."""

from pathlib import Path

from alembic import op

revision = "0010"
down_revision = "0009"
phase = "contract"


def upgrade() -> None:
    """Look at the rows from before the constraints, then add up once more what was spent, by the statement of 0004.

    In this order: what is booked is locked until the end.
    """
    op.execute("ALTER TABLE jobs VALIDATE CONSTRAINT jobs_state_check")
    op.execute("ALTER TABLE ledger VALIDATE CONSTRAINT ledger_upper_bound_tokens_check")
    op.execute("ALTER TABLE ledger VALIDATE CONSTRAINT ledger_outcome_check")
    op.execute(Path(__file__).with_name("0004_spending.sql").read_text())


def downgrade() -> None:
    """Trust the constraints no longer; what was booked is the truth in either version."""
    for table, name, rule in (
        ("ledger", "ledger_upper_bound_tokens_check", "upper_bound_tokens >= 0"),
        ("ledger", "ledger_outcome_check", "outcome IN ('not_sent', 'refused', 'answered', 'unknown')"),
        ("jobs", "jobs_state_check", "state IN ('paused', 'queued', 'released', 'running', 'retrying', 'succeeded',"
         " 'dead', 'cancelled')"),
    ):
        op.execute(f"ALTER TABLE {table} DROP CONSTRAINT {name}, ADD CONSTRAINT {name} CHECK ({rule}) NOT VALID")
