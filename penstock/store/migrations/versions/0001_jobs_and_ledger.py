"""Jobs, their payloads, attempts and answers; workers and their leases; the ledger."""

from pathlib import Path

from alembic import op

revision = "0001"
down_revision = None
phase = "expand"


def upgrade() -> None:
    """Create the first schema; the statements stand beside this file."""
    op.execute(Path(__file__).with_suffix(".sql").read_text())


def downgrade() -> None:
    """Drop everything that `upgrade` made."""
    op.execute("DROP TABLE ledger, answers, results, attempts, payloads, jobs, tenant_shares, workers")
