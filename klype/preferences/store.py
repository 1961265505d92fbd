"""The preference store: append-only and durable; an undo is one more entry, and nothing is deleted.

Of a damaged store the intact rows can be read, one by one; nothing in it is changed.
"""

import hashlib
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import sqlalchemy as sa
from sqlalchemy import Connection, bindparam, delete, insert, select, update
from sqlalchemy.exc import DBAPIError

from klype.errors import KlypeError
from klype.preferences import database, schema
from klype.preferences.database import DamagedError
from klype.preferences.records import Candidate, Entry, RankingItem, dumps, trace_row, with_repeats
from klype.preferences.schema import Annotator, Row, add_rows, annotators, candidates, claims, questions, rankings

T = TypeVar("T")
LEASE_S = 900.0  # how long a question that an annotator looks at is not given to others
APART = 3  # rankings between a question and its repetition


class Store(AbstractContextManager["Store"]):
    """Questions, candidates and rankings in SQLite or PostgreSQL; safe for concurrent processes. A context manager."""

    def __init__(self, engine: sa.Engine, place: str, clock: Callable[[], float]) -> None:
        self._engine, self.place, self._clock = engine, place, clock

    @staticmethod
    def open(
        place: str | Path, busy_s: float = 10.0, read_only: bool = False, clock: Callable[[], float] = time.time
    ) -> "Store":
        """Opens a store, creating or migrating it. Raises KlypeError where it is newer, locked, damaged, not writable,
        or not a store, and with ``read_only`` where it does not exist. ``clock``: seconds since 1970."""
        file = database.file_of(place)
        named = database.name_of(place)
        if read_only and file is not None and not file.is_file():
            raise KlypeError(f"There is no store {file}.")
        with database.plainly(named):
            if file is not None and not read_only:
                file.parent.mkdir(parents=True, exist_ok=True)
            engine = database.connect(place, busy_s, read_only)
            try:
                database.check_whole(engine)
                schema.migrate(engine, named, read_only)
            except BaseException:
                engine.dispose()
                raise
        return Store(engine, named, clock)

    def close(self) -> None:
        self._engine.dispose()

    def __exit__(self, *error: object) -> None:
        self.close()

    # questions and candidates

    def add(self, asked: Sequence[RankingItem]) -> list[int]:
        """Adds questions with their candidates, except those that exist already, and returns the questions' ids."""
        with self._write() as connection:
            return [found.id for found in _add_items(connection, asked)]

    def add_candidate(self, question: int, candidate: Candidate) -> Candidate:
        """Adds one answer, such as one that a person wrote, and returns it with its id."""
        with self._write() as connection:
            return _with_ids(connection, [(question, candidate)])[0]

    def questions(self, part: str = "") -> list[RankingItem]:
        """All questions (of one part) with their candidates, in the order added."""
        with self._read() as connection:
            return [asked for asked in _items_by_id(connection).values() if part in ("", asked.part)]

    def prioritise(self, priority: Mapping[int, float]) -> None:
        """Sets priorities by question id; questions with the highest are asked first."""
        if priority:
            statement = update(questions).where(questions.c.id == bindparam("q")).values(priority=bindparam("p"))
            with self._write() as connection:
                connection.execute(statement, [{"q": q, "p": p} for q, p in priority.items()])

    # ranking

    def claim(self, who: Annotator, part: str = "", each: int = 1) -> RankingItem | None:
        """The next question for this annotator, leased to this session; None when nothing is left.

        A question with two answers or more is asked until ``each`` annotators of this kind have ranked or skipped it.
        One that is leased to another session is given out only when the lease has expired, or to the same annotator
        when nothing else is left.
        """
        now = self._clock()
        with self._write() as connection:
            _one_at_a_time(connection)
            mine = _annotator_id(connection, who, self._stamp())
            found = _next(connection, mine, who, (part, each), now)
            if found is None:
                return None
            held = (claims.c.question_id == found) & (claims.c.annotator_id == mine)
            connection.execute(delete(claims).where(held | (claims.c.until < now)))
            row = {"question_id": found, "annotator_id": mine, "session": who.session, "until": now + LEASE_S}
            connection.execute(insert(claims), [row])
            return _items_by_id(connection, only=[found])[found]

    def claim_again(self, who: Annotator) -> RankingItem | None:
        """A question that this annotator ranked exactly once, at least APART rankings ago, with the candidates shown
        then; None if there is none."""
        own = [e for e in self.entries(annotators=(who.name,)) if e.kind != "skip"]
        times = Counter(entry.asked.id for entry in own)
        return next((e.asked for e in own[: max(0, len(own) - APART)] if times[e.asked.id] == 1), None)

    def release(self, who: Annotator) -> None:
        """Ends this session's leases."""
        with self._write() as connection:
            connection.execute(delete(claims).where(claims.c.session == who.session))

    def record(self, entry: Entry) -> int:
        """Stores an entry durably and returns its id. ``entry.asked`` and its candidates must have ids."""
        return self.record_all([entry])[0]

    def record_all(self, entries: Sequence[Entry]) -> list[int]:
        """Stores entries in one transaction and returns their ids."""
        with self._write() as connection:
            return _add_entries(connection, entries, self._stamp())

    def undo(self, who: Annotator) -> Entry | None:
        """Undoes the annotator's last ranking or skip and returns it; None if there is nothing to undo."""
        with self._write() as connection:
            _one_at_a_time(connection)
            found = _entries_of(connection, (who.name,))
            if not found:
                return None
            last = found[-1]
            mine = _annotator_id(connection, who, self._stamp())
            row = {"question_id": last.asked.id, "annotator_id": mine, "kind": "undo", "undoes": last.id}
            add_rows(connection, rankings, [row | {"shown": [], "ordering": [], "at": self._stamp(), "again": False}])
            return last

    def entries(self, annotators: Sequence[str] = ()) -> list[Entry]:
        """Entries that were not undone, oldest first."""
        with self._read() as connection:
            return _entries_of(connection, annotators)

    def mark(self) -> tuple[int, int]:
        """A change counter that is cheap to read: it grows with every ranking, undo and question."""
        with self._read() as connection:
            newest = select(sa.func.max(rankings.c.id)), select(sa.func.max(questions.c.id))
            said, asked = (int(connection.execute(query).scalar() or 0) for query in newest)
            return said, asked

    def put(self, entries: Sequence[Entry]) -> int:
        """Adds entries from elsewhere with their questions and candidates, except exact duplicates, and returns how
        many were new."""
        with self._write() as connection:
            _one_at_a_time(connection)
            known, new = {_key(entry) for entry in _entries_of(connection)}, []
            for entry, asked in zip(entries, _add_items(connection, [entry.asked for entry in entries]), strict=True):
                entry = replace(entry, asked=asked)
                if _key(entry) not in known:
                    known.add(_key(entry))
                    new.append(entry)
            return len(_add_entries(connection, new, self._stamp()))

    def _stamp(self) -> str:
        return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(self._clock()))

    @contextmanager
    def _write(self) -> Iterator[Connection]:
        with database.plainly(self.place), database.write_transaction(self._engine) as connection:
            yield connection

    @contextmanager
    def _read(self) -> Iterator[Connection]:
        with database.plainly(self.place), self._engine.connect() as connection:
            yield connection


# inside a transaction of the store's


def _one_at_a_time(connection: Connection) -> None:
    """Serialises transactions by locking the single row of the version table. SQLite has only one writer anyway."""
    connection.execute(select(schema.version).with_for_update())


def _annotator_id(connection: Connection, who: Annotator, now: str) -> int:
    found = connection.execute(select(annotators.c.id).where(annotators.c.name == who.name)).scalar()
    if found is not None:
        return int(found)
    return add_rows(connection, annotators, [{"name": who.name, "by": who.by, "since": now}])[0]


def _add_items(connection: Connection, asked: Sequence[RankingItem]) -> list[RankingItem]:
    """The items with ids, inserted if new. Questions are matched by digest, candidates by text and repetition."""
    marks, rows = [], dict[str, dict[str, Any]]()
    for one in asked:
        q = one.question
        # questions are equal if all of their fields are
        told = dumps([q.id, q.question, q.context, q.answers, q.choices, q.extra])
        marks.append(mark := hashlib.sha256(told.encode()).hexdigest())
        about = {"id": q.id, "answers": list(q.answers), "choices": list(q.choices), "extra": q.extra}
        rows[mark] = {"digest": mark, "part": one.part, "question": q.question, "context": q.context, "about": about}
    ids = {row.digest: row.id for row in connection.execute(select(questions.c.id, questions.c.digest))}
    there = _items_by_id(connection, only=[ids[mark] for mark in rows if mark in ids])
    new = [mark for mark in rows if mark not in ids]
    ids |= zip(new, add_rows(connection, questions, [rows[mark] for mark in new]), strict=True)
    stored = {mark: _by_text(there[ids[mark]].candidates) if ids[mark] in there else {} for mark in rows}
    for mark, one in zip(marks, asked, strict=True):
        for key, candidate in _by_text(one.candidates).items():
            stored[mark].setdefault(key, replace(candidate, id=0))
    missing = [(mark, key) for mark, answers in stored.items() for key, answer in answers.items() if not answer.id]
    made = _with_ids(connection, [(ids[mark], stored[mark][key]) for mark, key in missing])
    for (mark, key), candidate in zip(missing, made, strict=True):
        stored[mark][key] = candidate
    found = []
    for mark, one in zip(marks, asked, strict=True):
        own = tuple(stored[mark][key] for key in _by_text(one.candidates))
        found.append(replace(there.get(ids[mark], one), candidates=own, id=ids[mark]))
    return found


def _by_text(answers: Sequence[Candidate]) -> dict[tuple[str, int], Candidate]:
    return dict(zip(with_repeats([answer.text for answer in answers]), answers, strict=True))


def _with_ids(connection: Connection, rows: Sequence[tuple[int, Candidate]]) -> list[Candidate]:
    """Inserts candidates, each with its question's id, and returns them with ids."""
    values = [
        {"question_id": question, "text": c.text, "model": c.model, "temperature": c.temperature, "author": c.author,
         "trace": c.trace and trace_row(c.trace)}
        for question, c in rows
    ]  # fmt: skip
    made = add_rows(connection, candidates, values)
    return [replace(candidate, id=number) for (_, candidate), number in zip(rows, made, strict=True)]


def _add_entries(connection: Connection, entries: Sequence[Entry], now: str) -> list[int]:
    people = {(e.annotator, e.by) for e in entries}
    ids = {name: _annotator_id(connection, Annotator(name, by), now) for name, by in sorted(people)}
    rows = []
    for entry in entries:
        shown, mine = [candidate.id for candidate in entry.asked.candidates], ids[entry.annotator]
        assert all([entry.asked.id, *shown]), "only what is stored can be ranked"
        ordering = [[shown[i] for i in group] for group in entry.order]
        row = {"question_id": entry.asked.id, "annotator_id": mine, "shown": shown, "ordering": ordering}
        rows.append({**row, "kind": entry.kind, "at": entry.when, "seconds": entry.seconds, "again": entry.again})
        over = (claims.c.question_id == entry.asked.id) & (claims.c.annotator_id == mine)
        connection.execute(delete(claims).where(over))
    return add_rows(connection, rankings, rows)


def _items_by_id(connection: Connection, only: Sequence[int] | None = None) -> dict[int, RankingItem]:
    """Questions with their candidates by id: all, or at least those with the ids ``only``."""
    chosen = select(questions).order_by(questions.c.id)
    answers = select(candidates).order_by(candidates.c.id)
    if only is not None and len(only) < 500:
        chosen = chosen.where(questions.c.id.in_(only))
        answers = answers.where(candidates.c.question_id.in_(only))
    groups: dict[int, list[Candidate]] = defaultdict(list)
    for row in connection.execute(answers).mappings():
        groups[row["question_id"]].append(schema.candidate_of(row))
    asked = connection.execute(chosen).mappings()
    found = {row["id"]: schema.ranking_item(row, groups.get(row["id"], ())) for row in asked}
    if only is None and groups.keys() - found.keys():
        raise DamagedError("a question of some candidates is missing")
    return found


def _entries_of(connection: Connection, names: Sequence[str] = ()) -> list[Entry]:
    """The named annotators' entries (by default everyone's) that were not undone."""
    people = {row["id"]: schema.person_of(row) for row in connection.execute(select(annotators)).mappings()}
    query = select(rankings).order_by(rankings.c.id)
    if names:
        query = query.where(rankings.c.annotator_id.in_([i for i, who in people.items() if who.name in names]))
    rows = connection.execute(query).mappings().all()
    asked = _items_by_id(connection, only=sorted({row["question_id"] for row in rows}))
    entries = [schema.entry_of_row(row, asked, people) for row in rows]
    undone = {row["undoes"] for row in rows}
    return [entry for entry in entries if entry is not None and entry.id not in undone]


def _next(connection: Connection, mine: int, who: Annotator, wanted: tuple[str, int], now: float) -> int | None:
    """The id of the question to claim: first those in the annotator's language, last those that the annotator's own
    other sessions hold; among equals the highest priority."""
    part, each = wanted
    undone = select(rankings.c.undoes).where(rankings.c.undoes.is_not(None))
    said = (rankings.c.kind != "undo") & rankings.c.id.not_in(undone)
    # Claims first: a ranking that is recorded in between ends its claim, and its question must be in one of the two.
    live = select(claims.c.question_id, claims.c.annotator_id, claims.c.session).where(claims.c.until >= now)
    held = connection.execute(live).all()
    ranked = connection.execute(select(rankings.c.question_id, rankings.c.annotator_id).where(said)).all()
    alike = set(connection.execute(select(annotators.c.id).where(annotators.c.by == who.by)).scalars())
    taken: dict[int, set[int]] = defaultdict(set)  # annotators of this kind, by question
    for question, annotator, *_ in (*ranked, *held):
        if annotator in alike:
            taken[question].add(annotator)
    own = {question for question, annotator in ranked if annotator == mine}
    elsewhere = {question for question, annotator, session in held if annotator == mine and session != who.session}

    def order(row: Any) -> tuple[int, float, int]:
        own_language = who.lang and f'"lang": "{who.lang}"' in row.about
        return 1 if row.id in elsewhere else -1 if own_language else 0, -row.priority, row.id

    columns = questions.c.id, questions.c.part, questions.c.priority, questions.c.about
    answers = select(candidates.c.question_id).group_by(candidates.c.question_id).having(sa.func.count() > 1)
    rows = connection.execute(select(*columns).where(questions.c.id.in_(answers)))  # one answer cannot be ranked
    free = (r for r in rows if r.id not in own and len(taken[r.id] - {mine}) < each and part in ("", r.part))
    return next((int(row.id) for row in sorted(free, key=order)), None)


def _key(entry: Entry) -> tuple[Any, ...]:
    shown = tuple(candidate.id for candidate in entry.asked.candidates)
    return entry.asked.id, shown, entry.order, entry.kind, entry.annotator, entry.when, entry.again


def whole_entries(place: str | Path) -> tuple[list[Entry], int]:
    """The intact entries of a store that may be damaged, and how many rankings were found but are not intact."""
    engine = database.connect(place, read_only=database.file_of(place) is not None)
    try:
        people, asked, answers, said = (_rows(engine, table) for table in schema.SEALED)
    finally:
        engine.dispose()
    known = _whole_rows(people, schema.person_of)
    groups: dict[int, list[Candidate]] = defaultdict(list)
    for question, candidate in _whole_rows(answers, lambda r: (r["question_id"], schema.candidate_of(r))).values():
        groups[question].append(candidate)
    items = _whole_rows(asked, lambda row: schema.ranking_item(row, groups[row["id"]]))
    entries = _whole_rows(said, lambda row: schema.entry_of_row(row, items, known))
    undone = {row["undoes"] for row in said if row["id"] in entries}
    whole = [entry for number, entry in sorted(entries.items()) if entry is not None and number not in undone]
    return whole, len(said) - len(entries)


def _whole_rows(rows: Sequence[Row], read: Callable[[Row], T]) -> dict[int, T]:
    found = {}
    for row in rows:
        with suppress(DamagedError):
            found[row["id"]] = read(row)
    return found


def _rows(engine: sa.Engine, table: sa.Table) -> list[Row]:
    """Every row of a table that can be read, each selected by its id, so that a broken one takes no other with it."""
    with engine.connect() as connection:
        if engine.dialect.name == "sqlite":
            raw: Any = connection.connection.driver_connection
            raw.text_factory = lambda text: text.decode("utf-8", "replace")
            raw.execute("PRAGMA writable_schema = ON")

        def reached(query: sa.Select[Any], number: int = 0) -> list[Row]:
            found = list[Row]()
            try:
                for row in connection.execute(query, {"number": number}).mappings():
                    found.append(row)  # what was read before a row that cannot be read is kept
            except (DBAPIError, OSError):
                connection.rollback()
            return found

        orders = table.c.id, table.c.id.desc()
        ids = sorted({row["id"] for order in orders for row in reached(select(table.c.id).order_by(order))})
        # an older store may have neither; nobody reads in which order its questions were to be asked
        columns = [column for column in table.columns if column.name != "priority"]
        for names in (columns, [column for column in columns if column.name != "checksum"]):
            by_id = select(*names).where(table.c.id == bindparam("number"))  # built once: it costs more than its row
            if found := [row for number in ids for row in reached(by_id, number)]:
                break
    return [{"checksum": None, **row} for row in found]
