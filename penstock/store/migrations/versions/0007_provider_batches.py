"""Jobs that a provider answers overnight, as files at the price of a batch."""

from pathlib import Path

from alembic import op

revision = "0007"
down_revision = "0006"
phase = "expand"


def upgrade() -> None:
    """Add tables, and columns with defaults; the statements stand beside this file."""
    op.execute(Path(__file__).with_suffix(".sql").read_text())


def downgrade() -> None:
    """Drop what `upgrade` added."""
    op.execute("DROP TABLE provider_requests, provider_batches")
    op.execute("ALTER TABLE batches DROP COLUMN by_provider, DROP COLUMN due_by")
