"""What code from before 0003 did beside it: closed rows can no longer be changed, and its calls are booked."""

from pathlib import Path

from alembic import op

revision = "0004"
down_revision = "0003"
phase = "contract"


def upgrade() -> None:
    """Add triggers, and add up what was spent; the statements stand beside this file."""
    op.execute(Path(__file__).with_suffix(".sql").read_text())


def downgrade() -> None:
    """Drop them."""
    op.execute("DROP TRIGGER ledger_is_append_only ON ledger")
    op.execute("DROP TRIGGER ledger_corrections_are_append_only ON ledger_corrections")
    op.execute("DROP FUNCTION refuse_change")
