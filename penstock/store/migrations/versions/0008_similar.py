"""The semantic tier of the cache: answers found by an instruction that means the same."""

from pathlib import Path

from alembic import op

revision = "0008"
down_revision = "0007"
phase = "expand"


def upgrade() -> None:
    """Add tables, and the extension where it can be had; the statements stand beside this file."""
    op.execute(Path(__file__).with_suffix(".sql").read_text())


def downgrade() -> None:
    """Drop the tables; the extension stays, since others may use it."""
    op.execute("DROP TABLE similar_answers, similar_questions")
