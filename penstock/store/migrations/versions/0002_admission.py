"""What a job accepts when no model can be asked, degraded results, and which tier a worker serves."""

from pathlib import Path

from alembic import op

revision = "0002"
down_revision = "0001"
phase = "expand"


def upgrade() -> None:
    """Add columns with defaults; the statements stand beside this file."""
    op.execute(Path(__file__).with_suffix(".sql").read_text())


def downgrade() -> None:
    """Drop what `upgrade` added."""
    op.execute("ALTER TABLE workers DROP COLUMN tier")
    op.execute("ALTER TABLE tenant_shares DROP COLUMN releases")
    op.execute("DROP INDEX results_degraded, jobs_impatient")
    op.execute("ALTER TABLE results DROP COLUMN degraded")
    op.execute("ALTER TABLE jobs DROP COLUMN charged_tokens, DROP COLUMN fallback_tiers, DROP COLUMN on_unavailable")
