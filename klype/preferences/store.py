"""The preference store, append-only: what was acknowledged is on disk, and entries are undone, never deleted.

What is whole in a store that is damaged is read row by row, from both ends, and nothing is changed in it.
"""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import sqlalchemy as sa
from sqlalchemy import Connection, Engine, Table, bindparam, delete, insert, inspect, select, update
from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from klype.errors import KlypeError
from klype.preferences import database
from klype.preferences.database import DamagedError
from klype.preferences.records import Candidate, Entry, RankingItem
from klype.preferences.schema import (
    Annotator,
    Row,
    added,
    annotator_id,
    annotators,
    asked_by_id,
    asked_of,
    candidate_of,
    candidates,
    claims,
    covered,
    entries_of,
    entry_of_row,
    inserted,
    migrate,
    new_candidates,
    one_at_a_time,
    person_of,
    questions,
    rankings,
    recorded,
)
from klype.values import Ranking

T = TypeVar("T")
LEASE_S = 900.0  # how long a question that somebody looks at is not given to others
APART = 3  # questions in between before one is asked again


class Store:
    """Questions, candidates and rankings in SQLite or PostgreSQL. Safe for many processes at once; close it."""

    def __init__(self, engine: Engine, place: str, clock: Callable[[], float]) -> None:
        self._engine, self.place, self._clock = engine, place, clock

    @staticmethod
    def open(
        place: str | Path, busy_s: float = 10.0, read_only: bool = False, clock: Callable[[], float] = time.time
    ) -> Store:
        """Makes what is missing and migrates what is older. KlypeError: newer, locked, unwritable, no store at all."""
        file = database.file_of(place)
        named = str(place) if file is not None else database.name_of(place)
        if read_only and file is not None and not file.is_file():
            raise KlypeError(f"There is no store {file}.")
        with database.plainly(named):
            if file is not None and not read_only:
                file.parent.mkdir(parents=True, exist_ok=True)
            engine = database.connect(place, busy_s, read_only)
            try:
                database.check_whole(engine)
                migrate(engine, named, read_only)
            except BaseException:
                engine.dispose()
                raise
        return Store(engine, named, clock)

    def close(self) -> None:
        self._engine.dispose()

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    # questions and candidates

    def add(self, asked: Sequence[RankingItem]) -> list[int]:
        """Questions with their candidates; what is there already is not doubled. The questions' ids."""
        with self._writing() as connection:
            return [found.id for found in added(connection, asked)]

    def add_candidate(self, question: int, candidate: Candidate) -> Candidate:
        """One more answer, such as one that a person wrote; with its id."""
        with self._writing() as connection:
            return new_candidates(connection, [(question, candidate)])[0]

    def questions(self, part: str = "") -> list[RankingItem]:
        """All questions with all their candidates, in the order added."""
        with self._reading() as connection:
            return list(asked_by_id(connection, part).values())

    def prioritise(self, priority: Mapping[int, float]) -> None:
        """The questions with the highest numbers are asked first; others keep theirs."""
        if priority:
            statement = update(questions).where(questions.c.id == bindparam("q")).values(priority=bindparam("p"))
            with self._writing() as connection:
                connection.execute(statement, [{"q": q, "p": p} for q, p in priority.items()])

    # ranking

    def claim(self, who: Annotator, part: str = "", each: int = 1, lease_s: float = LEASE_S) -> RankingItem | None:
        """The next question for this annotator, kept from others for a while; None when nothing is left.

        A question is wanted until ``each`` annotators of this kind have ranked or skipped it. One that another
        sitting holds is given out only when its lease has run out, or to the same annotator when nothing else is left.
        """
        now = self._clock()
        with self._writing() as connection:
            one_at_a_time(connection)
            mine = annotator_id(connection, who, self._stamp())
            found = _next(connection, mine, who, (part, each), now)
            if found is None:
                return None
            held = (claims.c.question_id == found) & (claims.c.annotator_id == mine)
            connection.execute(delete(claims).where(held | (claims.c.until < now)))
            row = {"question_id": found, "annotator_id": mine, "session": who.session, "until": now + lease_s}
            connection.execute(insert(claims), [row])
            return asked_by_id(connection, only=[found])[found]

    def claim_again(self, who: Annotator) -> RankingItem | None:
        """A question that this annotator ranked some time ago and has not ranked twice; with the candidates shown then.

        None while there is none that lies ``APART`` rankings back.
        """
        own = [e for e in self.entries(annotators=(who.name,)) if e.kind != "skip"]
        times = Counter(entry.asked.id for entry in own)
        return next((e.asked for e in own[: max(0, len(own) - APART)] if times[e.asked.id] == 1), None)

    def release(self, who: Annotator) -> None:
        """Gives back the questions that this sitting holds."""
        with self._writing() as connection:
            connection.execute(delete(claims).where(claims.c.session == who.session))

    def record(self, entry: Entry) -> int:
        """Keeps what was said; when this returns it is on the disk. ``asked`` and its candidates carry ids."""
        return self.record_all([entry])[0]

    def record_all(self, entries: Sequence[Entry]) -> list[int]:
        """All of them in one transaction."""
        with self._writing() as connection:
            return recorded(connection, entries, self._stamp())

    def undo(self, who: Annotator) -> Entry | None:
        """Takes back the annotator's last ranking or skip; it stays in the store as taken back. None: nothing to."""
        with self._writing() as connection:
            one_at_a_time(connection)
            found = entries_of(connection, "", (who.name,))
            if not found:
                return None
            last = found[-1]
            mine = annotator_id(connection, who, self._stamp())
            row = {"question_id": last.asked.id, "annotator_id": mine, "kind": "undo", "undoes": last.id}
            inserted(connection, rankings, [row | {"shown": [], "ordering": [], "at": self._stamp(), "again": False}])
            return last

    def entries(self, part: str = "", annotators: Sequence[str] = ()) -> list[Entry]:
        """What was said and not taken back, oldest first."""
        with self._reading() as connection:
            return entries_of(connection, part, annotators)

    def rankings(self, part: str = "", annotators: Sequence[str] = ()) -> list[Ranking]:
        """The entries with an order (skips have none)."""
        return [entry.ranking() for entry in self.entries(part, annotators) if entry.kind != "skip"]

    def mark(self) -> tuple[int, int]:
        """A cheap change counter: grows with every ranking, undo and question."""
        with self._reading() as connection:
            newest = select(sa.func.max(rankings.c.id)), select(sa.func.max(questions.c.id))
            said, asked = (int(connection.execute(query).scalar() or 0) for query in newest)
            return said, asked

    def put(self, entries: Sequence[Entry]) -> int:
        """Entries from elsewhere, with their questions and candidates; exact doubles are left out. How many are new."""
        with self._writing() as connection:
            one_at_a_time(connection)
            stored = added(connection, [entry.asked for entry in entries])
            known = {_key(entry) for entry in entries_of(connection, "", ())}
            new = []
            for entry, asked in zip(entries, stored, strict=True):
                entry = replace(entry, asked=asked)
                if _key(entry) not in known:
                    known.add(_key(entry))
                    new.append(entry)
            recorded(connection, new, self._stamp())
            return len(new)

    def _stamp(self) -> str:
        return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(self._clock()))

    @contextmanager
    def _writing(self) -> Iterator[Connection]:
        with database.plainly(self.place), database.writing(self._engine) as connection:
            yield connection

    @contextmanager
    def _reading(self) -> Iterator[Connection]:
        with database.plainly(self.place), self._engine.connect() as connection:
            yield connection


def _next(connection: Connection, mine: int, who: Annotator, wanted: tuple[str, int], now: float) -> int | None:
    """The id of the question to claim: this sitting's own, else free ones, else one that another own sitting holds."""
    part, each = wanted
    undone = select(rankings.c.undoes).where(rankings.c.undoes.is_not(None))
    said = (rankings.c.kind != "undo") & rankings.c.id.not_in(undone)
    own = select(rankings.c.question_id).where(said, rankings.c.annotator_id == mine)
    alike = annotators.c.by == who.by
    ranked, live = (
        select(table.c.question_id, table.c.annotator_id.label("who"))
        .join(annotators, annotators.c.id == table.c.annotator_id)
        .where(alike, which)
        for table, which in ((rankings, said), (claims, (claims.c.until >= now) & (claims.c.annotator_id != mine)))
    )
    both = ranked.union(live).subquery()
    taken = select(sa.func.count(sa.distinct(both.c.who))).where(both.c.question_id == questions.c.id).scalar_subquery()
    elsewhere = sa.exists().where(
        claims.c.question_id == questions.c.id,
        claims.c.annotator_id == mine,
        claims.c.session != who.session,
        claims.c.until >= now,
    )
    about = sa.type_coerce(questions.c.about, sa.Text)
    own_language = about.contains(f'"lang": "{who.lang}"', autoescape=True) if who.lang else sa.false()
    enough = sa.exists().where(candidates.c.question_id == questions.c.id)
    query = (
        select(questions.c.id)
        .where(questions.c.id.not_in(own), taken < each, enough)
        .order_by(sa.case((elsewhere, 1), (own_language, -1), else_=0), questions.c.priority.desc(), questions.c.id)
        .limit(1)
    )
    if part:
        query = query.where(questions.c.part == part)
    found = connection.execute(query).scalar()
    return None if found is None else int(found)


def _key(entry: Entry) -> tuple[Any, ...]:
    shown = tuple(candidate.id for candidate in entry.asked.candidates)
    return entry.asked.id, shown, entry.order, entry.kind, entry.annotator, entry.when, entry.again


def whole_entries(place: str | Path) -> tuple[list[Entry], int]:
    """The entries of which every row is what was written, and how many other rankings were found."""
    engine = database.connect(place, read_only=database.file_of(place) is not None)
    try:
        tables = {table.name: _rows(engine, table) for table in (annotators, questions, candidates, rankings)}
    finally:
        engine.dispose()
    people = _undamaged(tables["annotators"], person_of)
    groups: dict[int, list[Candidate]] = defaultdict(list)
    for question, candidate in _undamaged(tables["candidates"], lambda r: (r["question_id"], candidate_of(r))).values():
        groups[question].append(candidate)
    asked = _undamaged(tables["questions"], lambda row: asked_of(row, groups[row["id"]]))
    entries = _undamaged(tables["rankings"], lambda row: entry_of_row(row, asked, people))
    undone = {row["undoes"] for row in tables["rankings"] if row["id"] in entries}
    whole = [entry for number, entry in sorted(entries.items()) if entry is not None and number not in undone]
    return whole, len(tables["rankings"]) - len(entries)


def _undamaged(rows: Sequence[Row], read: Callable[[Row], T]) -> dict[int, T]:
    found = {}
    for row in rows:
        with suppress(DamagedError):
            found[row["id"]] = read(row)
    return found


def _rows(engine: Engine, table: Table) -> list[Row]:
    """All that can be reached, each asked for by its id: one that is broken takes no other with it."""
    try:
        sums = [c["name"] for c in inspect(engine).get_columns(table.name) if c["name"] == "checksum"]
    except (SQLAlchemyError, ValueError):
        sums = ["checksum"]  # an older store has none; of one that cannot be read nothing else says what is whole
    names = ["id", *covered(table), *sums]
    with closing(engine.raw_connection()) as raw:
        if engine.dialect.name == "sqlite":
            raw.driver_connection.text_factory = lambda text: text.decode("utf-8", "replace")  # type: ignore[union-attr]
            raw.driver_connection.execute("PRAGMA writable_schema = ON")  # type: ignore[union-attr]

        def reached(query: str) -> list[Any]:
            found = []
            try:
                with closing(raw.cursor()) as cursor:
                    cursor.execute(query)
                    while (values := cursor.fetchone()) is not None:
                        found.append(values)
            except (DBAPIError, engine.dialect.loaded_dbapi.Error, OSError):
                raw.rollback()
            return found

        ids = {
            number for way in ("", " DESC") for (number,) in reached(f"SELECT id FROM {table.name} ORDER BY id{way}")
        }
        rows = [reached(f"SELECT {', '.join(names)} FROM {table.name} WHERE id = {number}") for number in sorted(ids)]
    found = [{"checksum": None, **dict(zip(names, values, strict=True))} for (values,) in filter(None, rows)]
    return [row | ({"again": bool(row["again"])} if "again" in row else {}) for row in found]
