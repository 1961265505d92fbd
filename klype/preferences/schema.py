"""The tables of a store of preferences; values to their rows and back, inside a transaction of the caller's."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from sqlalchemy import (
    Boolean,
    Column,
    Connection,
    Dialect,
    Engine,
    Float,
    ForeignKey,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    UniqueConstraint,
    bindparam,
    delete,
    insert,
    inspect,
    select,
    update,
)
from sqlalchemy.exc import DBAPIError
from sqlalchemy.types import TypeDecorator

from klype.errors import KlypeError
from klype.preferences.database import DamagedError, writing
from klype.preferences.records import By, Candidate, Entry, RankingItem, trace_from, trace_row
from klype.values import Question


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
    surrogates = not text.isascii() and any("\ud800" <= c <= "\udfff" for c in text)
    return json.dumps(value, allow_nan=False) if surrogates else text


METADATA = MetaData()


def _table(name: str, *columns: Column[Any] | UniqueConstraint) -> Table:
    return Table(name, METADATA, Column("id", Integer, primary_key=True), *columns)


def _text(name: str, kind: type[Text | Json] = Text, unique: bool | None = None) -> Column[Any]:
    return Column(name, kind, nullable=False, unique=unique)


def _of(table: str, index: bool = True) -> Column[Any]:
    return Column(f"{table}_id", Integer, ForeignKey(f"{table}s.id"), nullable=False, index=index)


annotators = _table(
    "annotators", _text("name", Json, unique=True), _text("by"), _text("since"), Column("checksum", Text)
)
questions = _table(
    "questions",
    _text("digest", unique=True),  # over all that makes the question
    _text("part"),
    Column("priority", Float, nullable=False, server_default="0"),  # the highest is asked first
    _text("question", Json),
    _text("context", Json),
    _text("about", Json),  # id, answers, choices, extra
    Column("checksum", Text),
)
candidates = _table(
    "candidates",
    _of("question"),
    _text("text", Json),
    _text("model", Json),
    Column("temperature", Float),
    _text("author", Json),
    Column("trace", Json),
    Column("checksum", Text),
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
    Column("again", Boolean, nullable=False),
    Column("undoes", Integer, ForeignKey("rankings.id"), unique=True),
    Column("checksum", Text),
)
claims = _table(
    "claims",
    _of("question", index=False),
    _of("annotator", index=False),
    _text("session"),
    Column("until", Float, nullable=False),  # seconds since 1970
    UniqueConstraint("question_id", "annotator_id"),
)
# Its one row is the version of the tables; alembic made it once, and older klypes still read it so.
version = Table("alembic_version", METADATA, Column("version_num", String(32), primary_key=True))
VERSIONS = ("0001", "0002", "0003")


def migrate(engine: Engine, place: str, read_only: bool = False) -> None:
    """Brings the tables up to the newest version; KlypeError when they are newer than this klype, or may not be
    changed."""
    with engine.connect() as connection:
        if (found := version_of(connection, place)) == VERSIONS[-1]:
            return
    if read_only:
        raise KlypeError(f"The store {place} is of an older version and cannot be brought up to date read-only.")
    try:
        with writing(engine) as connection:
            if (found := version_of(connection, place)) != VERSIONS[-1]:  # in SQLite, another may have been first
                upgrade(connection, found)
    except DBAPIError:  # in PostgreSQL, who comes second waits for the first one's tables, and cannot make them again
        with engine.connect() as connection:
            if version_of(connection, place) != VERSIONS[-1]:
                raise


def version_of(connection: Connection, place: str) -> str:
    """ "" where there are no tables yet."""
    there = inspect(connection).has_table(version.name)
    found = str(connection.execute(select(version)).scalar() or "") if there else ""
    if found not in ("", *VERSIONS):
        raise KlypeError(f"The store {place} was written by a newer version of klype.", "Update klype to use it.")
    return found


def upgrade(connection: Connection, old: str) -> None:
    METADATA.create_all(connection)  # whole tables that are missing: all of a new store, of the first version's claims
    if old == "0001":
        connection.exec_driver_sql("ALTER TABLE questions ADD COLUMN priority FLOAT DEFAULT '0' NOT NULL")
    if old in ("0001", "0002"):  # what is there gets its checksums now
        for table in (annotators, questions, candidates, rankings):
            connection.exec_driver_sql(f"ALTER TABLE {table.name} ADD COLUMN checksum TEXT")
            rows = connection.execute(select(table.c.id, *(table.c[name] for name in covered(table)))).all()
            new = [{"row": number, "sum": checksum(table.name, stored)} for number, *stored in rows]
            if new:
                statement = update(table).where(table.c.id == bindparam("row")).values(checksum=bindparam("sum"))
                connection.execute(statement, new)
    connection.execute(delete(version))
    connection.execute(insert(version).values(version_num=VERSIONS[-1]))


def one_at_a_time(connection: Connection) -> None:
    """Until this transaction is over, whoever calls this waits: it locks the one row of the version. In SQLite whoever
    writes is alone anyway."""
    connection.execute(select(version).with_for_update())


def covered(table: Table) -> list[str]:
    """The columns that a row's checksum is of: all that is written once. Older rows may have none."""
    return [column.name for column in table.columns if column.name not in ("id", "priority", "checksum")]


def checksum(name: str, stored: Sequence[Any]) -> str:
    """Checksum of a stored row of the table ``name``, over its values; disk damage will not match it."""
    return hashlib.sha256(json.dumps([name, *stored], default=repr).encode()).hexdigest()[:12]


def sealed(table: Table, row: Mapping[str, Any]) -> dict[str, Any]:
    """The row to insert, with its checksum. Non-finite floats become NULL."""
    values = {name: row.get(name) for name in covered(table)}
    for column in table.columns:
        value = values.get(column.name)
        if isinstance(column.type, Float) and value is not None:
            values[column.name] = float(value) if math.isfinite(value) else None
    texts = {name for name in values if isinstance(table.c[name].type, Json) and values[name] is not None}
    stored = [dumps(value) if name in texts else value for name, value in values.items()]
    return {**values, "checksum": checksum(table.name, stored)}


# a row of a table as it is stored
Row = Mapping[Any, Any]


@dataclass(frozen=True, slots=True)
class Annotator:
    """A name in a session: two sessions never hold the same question while others are left. Questions marked with the
    language ``lang`` come first."""

    name: str
    by: By = "person"
    session: str = ""
    lang: str = ""


def digest(question: Question) -> str:
    """What tells two questions apart: everything in them."""
    about = [question.id, question.question, question.context, question.answers, question.choices, question.extra]
    return hashlib.sha256(dumps(about).encode()).hexdigest()


def annotator_id(connection: Connection, who: Annotator, now: str) -> int:
    found = connection.execute(select(annotators.c.id).where(annotators.c.name == who.name)).scalar()
    if found is not None:
        return int(found)
    return inserted(connection, annotators, [{"name": who.name, "by": who.by, "since": now}])[0]


def inserted(connection: Connection, table: Table, rows: Sequence[Mapping[str, Any]]) -> list[int]:
    """The new rows' ids."""
    if not rows:
        return []
    statement = insert(table).returning(table.c.id, sort_by_parameter_order=True)
    return [int(number) for (number,) in connection.execute(statement, [sealed(table, row) for row in rows])]


def added(connection: Connection, asked: Sequence[RankingItem]) -> list[RankingItem]:
    """The items with ids, inserted if new: questions are matched by digest, candidates by text and count."""
    marks = [digest(one.question) for one in asked]
    ids = {row.digest: row.id for row in connection.execute(select(questions.c.id, questions.c.digest))}
    there = asked_by_id(connection, only=[ids[mark] for mark in set(marks) if mark in ids])
    known = {mark: there[ids[mark]] for mark in set(marks) if mark in ids}
    new = {mark: one for mark, one in zip(marks, asked, strict=True) if mark not in known}
    rows = []
    for mark, one in new.items():
        q = one.question
        about = {"id": q.id, "answers": list(q.answers), "choices": list(q.choices), "extra": q.extra}
        rows.append({"digest": mark, "part": one.part, "question": q.question, "context": q.context, "about": about})
    for (mark, one), number in zip(new.items(), inserted(connection, questions, rows), strict=True):
        known[mark] = replace(one, candidates=(), id=number)
    stored = {mark: list(one.candidates) for mark, one in known.items()}
    matched: list[list[int]] = []
    new_places: list[tuple[str, int]] = []
    for mark, one in zip(marks, asked, strict=True):
        used: set[int] = set()
        places = []
        for candidate in one.candidates:
            same = (i for i, c in enumerate(stored[mark]) if i not in used and c.text == candidate.text)
            place = next(same, None)
            if place is None:
                place = len(stored[mark])
                stored[mark].append(candidate)
                new_places.append((mark, place))
            used.add(place)
            places.append(place)
        matched.append(places)
    missing = [(known[mark].id, stored[mark][place]) for mark, place in new_places]
    for (mark, place), candidate in zip(new_places, new_candidates(connection, missing), strict=True):
        stored[mark][place] = candidate
    return [
        replace(known[mark], candidates=tuple(stored[mark][place] for place in places))
        for mark, places in zip(marks, matched, strict=True)
    ]


def new_candidates(connection: Connection, rows: Sequence[tuple[int, Candidate]]) -> list[Candidate]:
    values = []
    for question, c in rows:
        trace = None if c.trace is None else trace_row(c.trace)
        row = {"question_id": question, "text": c.text, "model": c.model, "temperature": c.temperature}
        values.append({**row, "author": c.author, "trace": trace})
    made = inserted(connection, candidates, values)
    return [replace(candidate, id=number) for (_, candidate), number in zip(rows, made, strict=True)]


def recorded(connection: Connection, entries: Sequence[Entry], now: str) -> list[int]:
    people = {(e.annotator, e.by) for e in entries}
    ids = {name: annotator_id(connection, Annotator(name, by), now) for name, by in sorted(people)}
    rows = []
    for entry in entries:
        shown = [candidate.id for candidate in entry.asked.candidates]
        assert all([entry.asked.id, *shown]), "only what is stored can be ranked"
        row = {
            "question_id": entry.asked.id,
            "annotator_id": ids[entry.annotator],
            "kind": entry.kind,
            "shown": shown,
            "ordering": [[shown[i] for i in group] for group in entry.order],
            "at": entry.when,
            "seconds": entry.seconds,
            "again": entry.again,
        }
        rows.append(row)
        over = (claims.c.question_id == entry.asked.id) & (claims.c.annotator_id == ids[entry.annotator])
        connection.execute(delete(claims).where(over))
    return inserted(connection, rankings, rows)


def asked_by_id(connection: Connection, part: str = "", only: Sequence[int] | None = None) -> dict[int, RankingItem]:
    chosen = select(questions).order_by(questions.c.id)
    answers = select(candidates).order_by(candidates.c.id)
    if only is not None and len(only) < 500:
        chosen = chosen.where(questions.c.id.in_(only))
        answers = answers.where(candidates.c.question_id.in_(only))
    groups: dict[int, list[Candidate]] = {}
    for row in connection.execute(answers).mappings():
        groups.setdefault(row["question_id"], []).append(candidate_of(row))
    found = [asked_of(row, groups.get(row["id"], ())) for row in connection.execute(chosen).mappings()]
    if only is None and groups.keys() - {one.id for one in found}:
        raise DamagedError("a question of some candidates is missing")
    return {one.id: one for one in found if part in ("", one.part)}


def entries_of(connection: Connection, part: str, names: Sequence[str]) -> list[Entry]:
    """What the annotators (all of them, when none is named) said and did not take back."""
    people = {row["id"]: person_of(row) for row in connection.execute(select(annotators)).mappings()}
    query = select(rankings).order_by(rankings.c.id)
    if names:
        query = query.where(rankings.c.annotator_id.in_([i for i, who in people.items() if who.name in names]))
    rows = connection.execute(query).mappings().all()
    asked = asked_by_id(connection, only=sorted({row["question_id"] for row in rows}))  # one's own are few of them
    entries = [entry_of_row(row, asked, people) for row in rows]
    undone = {row["undoes"] for row in rows}
    return [e for e in entries if e is not None and e.id not in undone and part in ("", e.asked.part)]


def entry_of_row(row: Row, asked: Mapping[int, RankingItem], people: Mapping[int, Annotator]) -> Entry | None:
    """The entry of a row; None for an undo."""
    with _checked(rankings, row):
        question, who = asked[row["question_id"]], people[row["annotator_id"]]
        if row["kind"] == "undo":
            return None
        shown, ordering = json.loads(row["shown"]), json.loads(row["ordering"])
        by_id = {candidate.id: candidate for candidate in question.candidates}
        place = {number: i for i, number in enumerate(shown)}
        order = tuple(tuple(place[number] for number in group) for group in ordering)
        question = replace(question, candidates=tuple(by_id[number] for number in shown))
        rest = {"when": json.loads(row["at"]), "seconds": row["seconds"], "again": bool(row["again"]), "id": row["id"]}
        return Entry(question, order, who.name, row["kind"], who.by, **rest)


def asked_of(row: Row, answers: Sequence[Candidate]) -> RankingItem:
    with _checked(questions, row):
        a, text, context = (json.loads(row[name]) for name in ("about", "question", "context"))
        question = Question(a["id"], text, context, tuple(a["answers"]), tuple(a["choices"]), a["extra"])
        return RankingItem(question, tuple(answers), row["part"], row["id"])


def candidate_of(row: Row) -> Candidate:
    with _checked(candidates, row):
        text, model, author = (json.loads(row[name]) for name in ("text", "model", "author"))
        trace = None if row["trace"] is None else trace_from(json.loads(row["trace"]))
        return Candidate(text, model, row["temperature"], author, trace, row["id"])


def person_of(row: Row) -> Annotator:
    with _checked(annotators, row):
        return Annotator(json.loads(row["name"]), row["by"])


@contextmanager
def _checked(table: Table, row: Row) -> Iterator[None]:
    """The row is what was written. DamagedError when it is not, or speaks of another that is gone."""
    broken = DamagedError(f"row {row['id']} of its {table.name} is not what was written")
    if row["checksum"] is not None and row["checksum"] != checksum(table.name, [row[n] for n in covered(table)]):
        raise broken
    try:
        yield
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise broken from error
