"""What was spent so far, added up from the ledger."""

from pathlib import Path

from alembic import op

revision = "0004"
down_revision = "0003"
phase = "expand"


def upgrade() -> None:
    """Book what the ledger has and `spending` lacks; the statement stands beside this file."""
    op.execute(Path(__file__).with_suffix(".sql").read_text())


def downgrade() -> None:
    """Forget the sums."""
    op.execute("DELETE FROM spending")
