"""What is whole in a store that is damaged: read row by row, from both ends, and nothing is changed in it."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

from sqlalchemy import Engine, Table, inspect
from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from klype.preferences import database
from klype.preferences.database import DamagedError
from klype.preferences.records import Asked, Candidate, Entry
from klype.preferences.rows import Annotator, Row, asked_of, candidate_of, entry_of_row, person_of
from klype.preferences.tables import annotators, candidates, covered, questions, rankings


def whole_entries(place: str | Path) -> tuple[list[Entry], int]:
    """The entries of which every row is what was written, and how many other rankings were found."""
    engine = database.connect(place, read_only=database.file_of(place) is not None)
    try:
        tables = {table.name: _rows(engine, table) for table in (annotators, questions, candidates, rankings)}
    finally:
        engine.dispose()
    people: dict[int, Annotator] = {}
    for row in tables["annotators"]:
        _kept(people, row, person_of)
    groups: dict[int, dict[int, Candidate]] = {}
    for row in tables["candidates"]:
        _kept(groups.setdefault(row["question_id"], {}), row, candidate_of)
    asked: dict[int, Asked] = {}
    for row in tables["questions"]:
        _kept(asked, row, lambda row: asked_of(row, list(groups.get(row["id"], {}).values())))
    entries: dict[int, Entry | None] = {}
    for row in tables["rankings"]:
        _kept(entries, row, lambda row: entry_of_row(row, asked, people))
    undone = {row["undoes"] for row in tables["rankings"] if row["id"] in entries}
    whole = [entry for number, entry in sorted(entries.items()) if entry is not None and number not in undone]
    return whole, len(tables["rankings"]) - len(entries)


def _kept(found: dict[int, Any], row: Row, read: Callable[[Row], Any]) -> None:
    try:
        found[row["id"]] = read(row)
    except DamagedError:
        return


def _rows(engine: Engine, table: Table) -> list[Row]:
    """Those that can be reached from the first one on, and from the last one back."""
    names = ["id", *covered(table), *(["checksum"] if _has_checksums(engine, table) else [])]
    found: dict[int, Row] = {}
    for way in ("", " DESC"):
        found |= {int(row["id"]): row for row in _reached(engine, f"{table.name} ORDER BY id{way}", names)}
    return [found[number] for number in sorted(found)]


def _has_checksums(engine: Engine, table: Table) -> bool:
    """An older store has none. One whose checksums cannot be read has some: then nothing says what is whole."""
    try:
        return any(column["name"] == "checksum" for column in inspect(engine).get_columns(table.name))
    except (SQLAlchemyError, ValueError):
        return True


def _reached(engine: Engine, what: str, names: list[str]) -> list[Row]:
    found: list[Row] = []
    try:
        with closing(engine.raw_connection()) as raw, closing(raw.cursor()) as cursor:
            if engine.dialect.name == "sqlite":  # text that is none any more shows by its checksum
                raw.driver_connection.text_factory = lambda text: text.decode("utf-8", "replace")  # type: ignore[union-attr]
            cursor.execute(f"SELECT {', '.join(names)} FROM {what}")
            while (values := cursor.fetchone()) is not None:
                row = {"checksum": None, **dict(zip(names, values, strict=True))}
                found.append(row | ({"again": bool(row["again"])} if "again" in row else {}))
    except (DBAPIError, engine.dialect.loaded_dbapi.Error, OSError):
        return [row for row in found if isinstance(row["id"], int)]
    return [row for row in found if isinstance(row["id"], int)]
