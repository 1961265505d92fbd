"""Several annotators at once: claims of the next question, and which question comes first."""

from __future__ import annotations

import sqlalchemy as sa
from alembic.operations import Operations

revision = "0002"
down_revision = "0001"


def upgrade(op: Operations) -> None:
    op.add_column("questions", sa.Column("priority", sa.Float, nullable=False, server_default="0"))
    op.create_table(
        "claims",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("question_id", sa.Integer, sa.ForeignKey("questions.id"), nullable=False),
        sa.Column("annotator_id", sa.Integer, sa.ForeignKey("annotators.id"), nullable=False),
        sa.Column("session", sa.Text, nullable=False),
        sa.Column("until", sa.Float, nullable=False),
        sa.UniqueConstraint("question_id", "annotator_id"),
    )
