"""Answers are found by their question, whichever job has paid for them; a result names its sources."""

from pathlib import Path

from alembic import op

revision = "0006"
down_revision = "0005"
phase = "expand"
indexes = {"answers_by_question": "answers (tenant, request_digest)"}
unique_indexes = {
    "ledger_in_flight": "ledger (tenant, request_digest, tier) WHERE settled_at IS NULL AND request_digest IS NOT NULL"
}


def upgrade() -> None:
    """Add tables, and columns with defaults; the statements stand beside this file."""
    op.execute(Path(__file__).with_suffix(".sql").read_text())


def downgrade() -> None:
    """Drop what `upgrade` added."""
    op.execute(f"DROP INDEX IF EXISTS {', '.join(indexes | unique_indexes)}")
    op.execute("ALTER TABLE answers DROP COLUMN tenant, DROP COLUMN model, DROP COLUMN answered_at")
    op.execute("ALTER TABLE ledger DROP COLUMN request_digest")
    op.execute("ALTER TABLE jobs DROP COLUMN is_fresh")
    op.execute("ALTER TABLE results DROP COLUMN cached, DROP COLUMN sources")
