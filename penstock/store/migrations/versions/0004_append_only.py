"""Closed rows of the ledger can no longer be changed, which code from before 0003 still does."""

from pathlib import Path

from alembic import op

revision = "0004"
down_revision = "0003"
phase = "contract"


def upgrade() -> None:
    """Add triggers; the statements stand beside this file."""
    op.execute(Path(__file__).with_suffix(".sql").read_text())


def downgrade() -> None:
    """Drop them."""
    op.execute("DROP TRIGGER ledger_is_append_only ON ledger")
    op.execute("DROP TRIGGER ledger_corrections_are_append_only ON ledger_corrections")
    op.execute("DROP FUNCTION refuse_change")
