"""What reconciliation and retention must remember: whether a correction knew tokens, and how long a result is kept."""

from pathlib import Path

from alembic import op

revision = "0005"
down_revision = "0004"
phase = "expand"


def upgrade() -> None:
    """Add columns and indexes; the statements stand beside this file."""
    op.execute(Path(__file__).with_suffix(".sql").read_text())


def downgrade() -> None:
    """Drop them."""
    op.execute("DROP INDEX jobs_purgeable, ledger_unknown")
    op.execute("ALTER TABLE jobs DROP COLUMN kept_until")
    op.execute("ALTER TABLE ledger_corrections DROP COLUMN has_usage")
