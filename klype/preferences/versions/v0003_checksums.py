"""A checksum in every row, so that a damaged one is told from a whole one; those that are there get theirs now."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from typing import Any

import sqlalchemy as sa
from alembic.operations import Operations

revision = "0003"
down_revision = "0002"
COVERED = {
    "annotators": "name by since",
    "questions": "digest part question context about",
    "candidates": "question_id text model temperature author trace",
    "rankings": "question_id annotator_id kind shown ordering at seconds again undoes",
}
TYPES: dict[str, Any] = {"again": sa.Boolean(), "temperature": sa.Float(), "seconds": sa.Float()}


def checksum(name: str, stored: Sequence[Any]) -> str:
    """As it was when this version was new, whatever becomes of the one that is used now."""
    return hashlib.sha256(json.dumps([name, *stored], default=repr).encode()).hexdigest()[:12]


def upgrade(op: Operations) -> None:
    connection = op.get_bind()
    for name, columns in COVERED.items():
        op.add_column(name, sa.Column("checksum", sa.Text))
        names = columns.split()
        table = sa.table(name, *(sa.column(c, TYPES.get(c)) for c in ("id", *names, "checksum")))
        rows = connection.execute(sa.select(*(table.c[c] for c in ("id", *names)))).all()
        new = [{"row": number, "sum": checksum(name, stored)} for number, *stored in rows]
        if new:
            statement = sa.update(table).where(table.c.id == sa.bindparam("row")).values(checksum=sa.bindparam("sum"))
            connection.execute(statement, new)
