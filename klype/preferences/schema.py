"""The tables of a preference store with their checksums and migrations, and the values of their rows."""

import hashlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import sqlalchemy as sa
from sqlalchemy import Column, Connection, Float, Table, Text, select
from sqlalchemy.exc import DBAPIError
from sqlalchemy.types import TypeDecorator

from klype.errors import KlypeError
from klype.preferences.database import DamagedError, write_transaction
from klype.preferences.records import By, Candidate, Entry, RankingItem, dumps, trace_from
from klype.values import Question


class Json(TypeDecorator[Any]):
    """A JSON value stored as text; reading returns that text, over which checksums are computed. Free text is stored as
    JSON too: PostgreSQL cannot hold zero bytes, nor UTF-8 lone surrogates."""

    impl = Text
    cache_ok = True

    def process_bind_param(self, value: Any, dialect: sa.Dialect) -> str | None:
        return None if value is None else dumps(value)


METADATA = sa.MetaData()


def _table(name: str, *columns: Column[Any] | sa.UniqueConstraint, sealed: bool = True) -> Table:
    """A table with an integer key; ``sealed``: its rows are never updated and have a checksum."""
    seal = [Column("checksum", Text)] if sealed else []
    return Table(name, METADATA, Column("id", sa.Integer, primary_key=True), *columns, *seal)


def _text(name: str, kind: type[Text | Json] = Text, unique: bool | None = None) -> Column[Any]:
    return Column(name, kind, nullable=False, unique=unique)


def _of(table: str, index: bool = True) -> Column[Any]:
    return Column(f"{table}_id", sa.Integer, sa.ForeignKey(f"{table}s.id"), nullable=False, index=index)


annotators = _table("annotators", _text("name", Json, unique=True), _text("by"), _text("since"))
questions = _table(
    "questions",
    _text("digest", unique=True),  # over all that makes the question
    _text("part"),
    Column("priority", Float, nullable=False, server_default="0"),  # the highest is asked first
    _text("question", Json),
    _text("context", Json),
    _text("about", Json),  # id, answers, choices, extra
)
candidates = _table(
    "candidates",
    _of("question"),
    _text("text", Json),
    _text("model", Json),
    Column("temperature", Float),
    _text("author", Json),
    Column("trace", Json),
)
rankings = _table(
    "rankings",
    _of("question"),
    _of("annotator"),
    _text("kind"),  # order, none, skip or undo
    _text("shown", Json),  # candidates' ids in the order shown
    _text("ordering", Json),  # groups of candidates' ids, best first
    _text("at", Json),
    Column("seconds", Float),
    Column("again", sa.Boolean, nullable=False),
    Column("undoes", sa.Integer, sa.ForeignKey("rankings.id"), unique=True),
)
claims = _table(
    "claims",
    _of("question", index=False),
    _of("annotator", index=False),
    _text("session"),
    Column("until", Float, nullable=False),  # seconds since 1970
    sa.UniqueConstraint("question_id", "annotator_id"),
    sealed=False,
)
# Its one row is the version of the tables; alembic made it once, and older klypes still read it so.
version = Table("alembic_version", METADATA, Column("version_num", sa.String(32), primary_key=True))
VERSIONS = ("0001", "0002", "0003")
SEALED = (annotators, questions, candidates, rankings)


def migrate(engine: sa.Engine, place: str, read_only: bool = False) -> None:
    """Creates or upgrades the tables. Raises KlypeError for a store of a newer klype, and for an older one that is
    opened read-only."""
    with engine.connect() as connection:
        if version_of(connection, place) == VERSIONS[-1]:
            return
    if read_only:
        raise KlypeError(f"The store {place} is of an older version and cannot be brought up to date read-only.")
    try:
        with write_transaction(engine) as connection:
            if (found := version_of(connection, place)) != VERSIONS[-1]:  # another process may have been first
                upgrade(connection, found)
    except DBAPIError:  # PostgreSQL has the second process wait, and then fails to create the tables again
        with engine.connect() as connection:
            if version_of(connection, place) != VERSIONS[-1]:
                raise


def version_of(connection: Connection, place: str) -> str:
    """The version of the tables; "" where there are none yet."""
    there = sa.inspect(connection).has_table(version.name)
    found = str(connection.execute(select(version)).scalar() or "") if there else ""
    if found not in ("", *VERSIONS):
        raise KlypeError(f"The store {place} was written by a newer version of klype.", "Update klype to use it.")
    return found


def upgrade(connection: Connection, old: str) -> None:
    """Creates missing tables and adds what the version ``old`` lacks."""
    METADATA.create_all(connection)  # all tables of a new store; of version 0001, claims
    if old == "0001":
        connection.exec_driver_sql("ALTER TABLE questions ADD COLUMN priority FLOAT DEFAULT '0' NOT NULL")
    if old in ("0001", "0002"):  # these have no checksums
        for table in SEALED:
            connection.exec_driver_sql(f"ALTER TABLE {table.name} ADD COLUMN checksum TEXT")
            rows = connection.execute(select(table.c.id, *(table.c[name] for name in hashed_columns(table)))).all()
            new = [{"row": number, "sum": checksum(table.name, stored)} for number, *stored in rows]
            if new:
                statement = sa.update(table).where(table.c.id == sa.bindparam("row"))
                connection.execute(statement.values(checksum=sa.bindparam("sum")), new)
    connection.execute(sa.delete(version))
    connection.execute(sa.insert(version).values(version_num=VERSIONS[-1]))


def hashed_columns(table: Table) -> list[str]:
    """The columns that a row's checksum covers: all that are never updated."""
    return [column.name for column in table.columns if column.name not in ("id", "priority", "checksum")]


def checksum(name: str, stored: Sequence[Any]) -> str:
    """Checksum of the stored values of a row of the table ``name``."""
    return hashlib.sha256(json.dumps([name, *stored], default=repr).encode()).hexdigest()[:12]


def add_rows(connection: Connection, table: Table, rows: Sequence[Mapping[str, Any]]) -> list[int]:
    """Inserts rows with their checksums, non-finite floats as NULL, and returns their ids."""
    sealed, columns = [], [table.c[name] for name in hashed_columns(table)]
    for row in rows:
        values = {column.name: row.get(column.name) for column in columns}
        stored = []
        for column in columns:
            value = values[column.name]
            if isinstance(column.type, Float) and value is not None:
                value = values[column.name] = float(value) if math.isfinite(value) else None
            stored.append(dumps(value) if isinstance(column.type, Json) and value is not None else value)
        sealed.append({**values, "checksum": checksum(table.name, stored)})
    statement = sa.insert(table).returning(table.c.id, sort_by_parameter_order=True)
    return [int(number) for (number,) in connection.execute(statement, sealed)] if sealed else []


# a stored row by column name
Row = Mapping[Any, Any]


@dataclass(frozen=True, slots=True)
class Annotator:
    """Who ranks, in which session: two sessions never hold the same question while others are left. Questions in the
    language ``lang`` come first."""

    name: str
    by: By = "person"
    session: str = ""
    lang: str = ""


def entry_of_row(row: Row, asked: Mapping[int, RankingItem], people: Mapping[int, Annotator]) -> Entry | None:
    """The entry of a row; None for an undo."""
    with _read(rankings, row) as value:
        question, who = asked[row["question_id"]], people[row["annotator_id"]]
        if row["kind"] == "undo":
            return None
        by_id = {candidate.id: candidate for candidate in question.candidates}
        place = {number: i for i, number in enumerate(value["shown"])}
        order = tuple(tuple(place[number] for number in group) for group in value["ordering"])
        question = replace(question, candidates=tuple(by_id[number] for number in value["shown"]))
        rest = {"when": value["at"], "seconds": row["seconds"], "again": bool(row["again"]), "id": row["id"]}
        return Entry(question, order, who.name, row["kind"], who.by, **rest)


def ranking_item(row: Row, answers: Sequence[Candidate]) -> RankingItem:
    with _read(questions, row) as value:
        about = value["about"]
        more = tuple(about["answers"]), tuple(about["choices"]), about["extra"]
        question = Question(about["id"], value["question"], value["context"], *more)
        return RankingItem(question, tuple(answers), row["part"], row["id"])


def candidate_of(row: Row) -> Candidate:
    with _read(candidates, row) as value:
        trace = None if value["trace"] is None else trace_from(value["trace"])
        return Candidate(value["text"], value["model"], row["temperature"], value["author"], trace, row["id"])


def person_of(row: Row) -> Annotator:
    with _read(annotators, row) as value:
        return Annotator(value["name"], row["by"])


@contextmanager
def _read(table: Table, row: Row) -> Iterator[dict[str, Any]]:
    """The row's JSON values by column. Raises DamagedError where the checksum does not match, a value cannot be parsed,
    or the block looks up a row that does not exist."""
    broken = DamagedError(f"row {row['id']} of its {table.name} is not what was written")
    if row["checksum"] is not None and row["checksum"] != checksum(table.name, [row[n] for n in hashed_columns(table)]):
        raise broken
    try:
        texts = {column.name: row[column.name] for column in table.columns if isinstance(column.type, Json)}
        yield {name: None if text is None else json.loads(text) for name, text in texts.items()}
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise broken from error
