"""Batches: many jobs under one name, with what was forecast of them and what may be spent."""

from pathlib import Path

from alembic import op

revision = "0005"
down_revision = "0004"
phase = "expand"
indexes = {
    "jobs_of_batch": "jobs (batch_id, state, batch_number) WHERE batch_id IS NOT NULL",
    "ledger_of_batch": "ledger (batch_id) WHERE batch_id IS NOT NULL",
    "jobs_held_up": "jobs (batch_id) WHERE batch_id IS NOT NULL AND reason = 'budget_exhausted'"
    " AND state IN ('queued', 'retrying')",
}


def upgrade() -> None:
    """Add tables, and columns with defaults; the statements stand beside this file."""
    op.execute(Path(__file__).with_suffix(".sql").read_text())


def downgrade() -> None:
    """Drop what `upgrade` added."""
    op.execute("DROP TABLE batch_errors, batches")
    op.execute(f"DROP INDEX IF EXISTS {', '.join(indexes)}")
    op.execute("ALTER TABLE jobs DROP COLUMN batch_id, DROP COLUMN batch_number")
    op.execute(
        "ALTER TABLE jobs ADD CONSTRAINT jobs_state_check CHECK (state IN"
        " ('queued', 'released', 'running', 'retrying', 'succeeded', 'dead', 'cancelled'))"
    )
    op.execute("ALTER TABLE ledger DROP COLUMN batch_id")
