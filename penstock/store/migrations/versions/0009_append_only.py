"""What code from before 0003 did: from here on closed rows cannot be changed, and every row says what it may say."""

from pathlib import Path

from alembic import op

revision = "0009"
down_revision = "0008"
phase = "contract"


def upgrade() -> None:
    """Add triggers, and constraints for new rows; the statements stand beside this file."""
    op.execute(Path(__file__).with_suffix(".sql").read_text())


def downgrade() -> None:
    """Drop them."""
    op.execute("ALTER TABLE jobs DROP CONSTRAINT jobs_state_check")
    op.execute("ALTER TABLE ledger DROP CONSTRAINT ledger_upper_bound_tokens_check, DROP CONSTRAINT ledger_outcome_check")
    op.execute("DROP TRIGGER ledger_is_append_only ON ledger")
    op.execute("DROP TRIGGER ledger_corrections_are_append_only ON ledger_corrections")
    op.execute("DROP FUNCTION refuse_change")
