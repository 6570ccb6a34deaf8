"""What code from before 0003 did beside it: closed rows can no longer be changed, and its calls are booked."""

from pathlib import Path

from alembic import op

revision = "0005"
down_revision = "0004"
phase = "contract"


def upgrade() -> None:
    """Add triggers, and once more what was spent; the statements stand beside this file and that of 0004."""
    here = Path(__file__)
    op.execute(here.with_suffix(".sql").read_text())
    op.execute(here.with_name("0004_spending.sql").read_text())


def downgrade() -> None:
    """Drop them."""
    op.execute("DROP TRIGGER ledger_is_append_only ON ledger")
    op.execute("DROP TRIGGER ledger_corrections_are_append_only ON ledger_corrections")
    op.execute("DROP FUNCTION refuse_change")
