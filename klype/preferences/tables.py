"""The tables of a store of preferences. ``versions/`` holds how they came to be; a test holds both to be the same."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import Boolean, Column, Dialect, Float, ForeignKey, Integer, MetaData, Table, Text, UniqueConstraint
from sqlalchemy.types import TypeDecorator


class Json(TypeDecorator[Any]):
    """Any JSON value as text, which is what is read. Free text is kept so as well: PostgreSQL has no zero byte, UTF-8
    no lone surrogate."""

    impl = Text
    cache_ok = True

    def process_bind_param(self, value: Any, dialect: Dialect) -> str | None:
        return None if value is None else dumps(value)


def dumps(value: Any) -> str:
    """JSON with letters as they are where they can be written."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False)
    return text if text.isascii() or not _surrogates(text) else json.dumps(value, allow_nan=False)


def _surrogates(text: str) -> bool:
    return any("\ud800" <= c <= "\udfff" for c in text)


METADATA = MetaData()

annotators = Table(
    "annotators",
    METADATA,
    Column("id", Integer, primary_key=True),
    Column("name", Json, nullable=False, unique=True),
    Column("by", Text, nullable=False),
    Column("since", Text, nullable=False),
    Column("checksum", Text),
)
questions = Table(
    "questions",
    METADATA,
    Column("id", Integer, primary_key=True),
    Column("digest", Text, nullable=False, unique=True),  # of all that makes the question
    Column("part", Text, nullable=False),
    Column("priority", Float, nullable=False, server_default="0"),  # the highest is asked first
    Column("question", Json, nullable=False),
    Column("context", Json, nullable=False),
    Column("about", Json, nullable=False),  # id, answers, choices, extra
    Column("checksum", Text),
)
candidates = Table(
    "candidates",
    METADATA,
    Column("id", Integer, primary_key=True),
    Column("question_id", Integer, ForeignKey("questions.id"), nullable=False, index=True),
    Column("text", Json, nullable=False),
    Column("model", Json, nullable=False),
    Column("temperature", Float),
    Column("author", Json, nullable=False),
    Column("trace", Json),
    Column("checksum", Text),
)
rankings = Table(
    "rankings",
    METADATA,
    Column("id", Integer, primary_key=True),
    Column("question_id", Integer, ForeignKey("questions.id"), nullable=False, index=True),
    Column("annotator_id", Integer, ForeignKey("annotators.id"), nullable=False, index=True),
    Column("kind", Text, nullable=False),  # order, none, skip or undo
    Column("shown", Json, nullable=False),  # candidates' ids in the order shown
    Column("ordering", Json, nullable=False),  # groups of candidates' ids, best first
    Column("at", Json, nullable=False),
    Column("seconds", Float),
    Column("again", Boolean, nullable=False),
    Column("undoes", Integer, ForeignKey("rankings.id"), unique=True),
    Column("checksum", Text),
)
claims = Table(
    "claims",
    METADATA,
    Column("id", Integer, primary_key=True),
    Column("question_id", Integer, ForeignKey("questions.id"), nullable=False),
    Column("annotator_id", Integer, ForeignKey("annotators.id"), nullable=False),
    Column("session", Text, nullable=False),
    Column("until", Float, nullable=False),  # seconds since 1970
    UniqueConstraint("question_id", "annotator_id"),
)


def covered(table: Table) -> list[str]:
    """The columns that a row's checksum is of: all that is written once. Older rows may have none."""
    return [column.name for column in table.columns if column.name not in ("id", "priority", "checksum")]


def checksum(name: str, stored: Sequence[Any]) -> str:
    """Of a row of the table ``name``, from its values as they are stored. No disk makes another that fits."""
    return hashlib.sha256(json.dumps([name, *stored], default=repr).encode()).hexdigest()[:12]


def sealed(table: Table, row: Mapping[str, Any]) -> dict[str, Any]:
    """The row to insert, with its checksum. What is no number of the database's is nothing."""
    values = {name: row.get(name) for name in covered(table)}
    for column in table.columns:
        value = values.get(column.name)
        if isinstance(column.type, Float) and value is not None:
            values[column.name] = float(value) if math.isfinite(value) else None
    texts = {name for name in values if isinstance(table.c[name].type, Json) and values[name] is not None}
    stored = [dumps(value) if name in texts else value for name, value in values.items()]
    return {**values, "checksum": checksum(table.name, stored)}
