"""Values to rows of the tables and back, inside a transaction that somebody else began."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from sqlalchemy import Connection, delete, insert, select

from klype.preferences.records import Asked, By, Candidate, Entry
from klype.preferences.tables import annotators, candidates, claims, dumps, questions, rankings
from klype.preferences.traces import trace_from, trace_row
from klype.values import Question


@dataclass(frozen=True, slots=True)
class Annotator:
    """Who ranks, in which sitting: two sittings never hold the same question while others are left."""

    name: str
    by: By = "person"
    session: str = ""


def digest(question: Question) -> str:
    """What tells two questions apart: everything in them."""
    about = [question.id, question.question, question.context, question.answers, question.choices, question.extra]
    return hashlib.sha256(dumps(about).encode()).hexdigest()


def annotator_id(connection: Connection, who: Annotator, now: str) -> int:
    found = connection.execute(select(annotators.c.id).where(annotators.c.name == who.name)).scalar()
    if found is not None:
        return int(found)
    row = {"name": who.name, "by": who.by, "since": now}
    return int(connection.execute(insert(annotators).values(row).returning(annotators.c.id)).scalar_one())


def added(connection: Connection, asked: Sequence[Asked]) -> list[Asked]:
    """The same with ids: questions by their digest, candidates by their text and how often it stands there."""
    marks = [digest(one.question) for one in asked]
    known: dict[str, Asked] = {}
    ids = {row.digest: row.id for row in connection.execute(select(questions.c.id, questions.c.digest))}
    there = asked_by_id(connection, only=[ids[mark] for mark in set(marks) if mark in ids])
    known = {mark: there[ids[mark]] for mark in set(marks) if mark in ids}
    new = {mark: one for mark, one in zip(marks, asked, strict=True) if mark not in known}
    if new:
        rows = [_question_row(mark, one) for mark, one in new.items()]
        made = connection.execute(insert(questions).returning(questions.c.id, sort_by_parameter_order=True), rows)
        for (mark, one), (number,) in zip(list(new.items()), made, strict=True):
            known[mark] = replace(one, candidates=(), id=number)
    stored = {mark: list(one.candidates) for mark, one in known.items()}
    matched: list[list[int]] = []
    missing: list[tuple[int, Candidate]] = []
    slots: list[tuple[str, int]] = []
    for mark, one in zip(marks, asked, strict=True):
        used: set[int] = set()
        places = []
        for candidate in one.candidates:
            same = (i for i, c in enumerate(stored[mark]) if i not in used and c.text == candidate.text)
            place = next(same, None)
            if place is None:
                place = len(stored[mark])
                stored[mark].append(candidate)
                missing.append((known[mark].id, candidate))
                slots.append((mark, place))
            used.add(place)
            places.append(place)
        matched.append(places)
    for (mark, place), candidate in zip(slots, new_candidates(connection, missing), strict=True):
        stored[mark][place] = candidate
    return [
        replace(known[mark], candidates=tuple(stored[mark][place] for place in places))
        for mark, places in zip(marks, matched, strict=True)
    ]


def _question_row(mark: str, asked: Asked) -> dict[str, Any]:
    q = asked.question
    about = {"id": q.id, "answers": list(q.answers), "choices": list(q.choices), "extra": q.extra}
    return {"digest": mark, "part": asked.part, "question": q.question, "context": q.context, "about": about}


def new_candidates(connection: Connection, rows: Sequence[tuple[int, Candidate]]) -> list[Candidate]:
    if not rows:
        return []
    values = [
        {
            "question_id": question,
            "text": c.text,
            "model": c.model,
            "temperature": c.temperature,
            "author": c.author,
            "trace": None if c.trace is None else trace_row(c.trace),
        }
        for question, c in rows
    ]
    made = connection.execute(insert(candidates).returning(candidates.c.id, sort_by_parameter_order=True), values)
    return [replace(candidate, id=number) for (_, candidate), (number,) in zip(rows, made, strict=True)]


def recorded(connection: Connection, entries: Sequence[Entry], now: str) -> list[int]:
    if not entries:
        return []
    people = {(e.annotator, e.by) for e in entries}
    ids = {name: annotator_id(connection, Annotator(name, by), now) for name, by in sorted(people)}
    rows = []
    for entry in entries:
        shown = [candidate.id for candidate in entry.asked.candidates]
        assert all([entry.asked.id, *shown]), "only what is stored can be ranked"
        rows.append(
            {
                "question_id": entry.asked.id,
                "annotator_id": ids[entry.annotator],
                "kind": entry.kind,
                "shown": shown,
                "ordering": [[shown[i] for i in group] for group in entry.order],
                "at": entry.when,
                "seconds": entry.seconds,
                "again": entry.again,
                "undoes": None,
            }
        )
    for entry in entries:
        over = (claims.c.question_id == entry.asked.id) & (claims.c.annotator_id == ids[entry.annotator])
        connection.execute(delete(claims).where(over))
    made = connection.execute(insert(rankings).returning(rankings.c.id, sort_by_parameter_order=True), rows)
    return [int(number) for (number,) in made]


def asked_by_id(connection: Connection, part: str = "", only: Sequence[int] | None = None) -> dict[int, Asked]:
    chosen = select(questions).order_by(questions.c.id)
    answers = select(candidates).order_by(candidates.c.id)
    if part:
        chosen = chosen.where(questions.c.part == part)
    if only is not None and len(only) < 500:
        chosen = chosen.where(questions.c.id.in_(only))
        answers = answers.where(candidates.c.question_id.in_(only))
    groups: dict[int, list[Candidate]] = {}
    for row in connection.execute(answers):
        trace = None if row.trace is None else trace_from(row.trace)
        candidate = Candidate(row.text, row.model, row.temperature, row.author, trace, row.id)
        groups.setdefault(row.question_id, []).append(candidate)
    out = {}
    for row in connection.execute(chosen):
        a = row.about
        question = Question(a["id"], row.question, row.context, tuple(a["answers"]), tuple(a["choices"]), a["extra"])
        out[row.id] = Asked(question, tuple(groups.get(row.id, ())), row.part, row.id)
    return out


def entries_of(connection: Connection, part: str, names: Sequence[str]) -> list[Entry]:
    undone = select(rankings.c.undoes).where(rankings.c.undoes.is_not(None))
    query = (
        select(rankings, annotators.c.name, annotators.c.by)
        .join(annotators, annotators.c.id == rankings.c.annotator_id)
        .where(rankings.c.kind != "undo", rankings.c.id.not_in(undone))
        .order_by(rankings.c.id)
    )
    if names:
        query = query.where(annotators.c.name.in_(names))
    rows = connection.execute(query).all()
    asked = asked_by_id(connection, part, sorted({row.question_id for row in rows}))  # one's own are few of them
    out = []
    for row in rows:
        question = asked.get(row.question_id)
        if question is None:
            continue
        by_id = {candidate.id: candidate for candidate in question.candidates}
        place = {number: i for i, number in enumerate(row.shown)}
        order = tuple(tuple(place[number] for number in group) for group in row.ordering)
        shown = replace(question, candidates=tuple(by_id[number] for number in row.shown))
        rest = {"when": row.at, "seconds": row.seconds, "again": row.again, "id": row.id}
        out.append(Entry(shown, order, row.name, row.kind, row.by, **rest))
    return out
