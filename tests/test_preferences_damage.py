"""A store that a disk has damaged says so, whatever bit it was, and what is whole of it comes out."""

from __future__ import annotations

import json
import random
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from hostile import Target, attack
from test_preferences_store import KARI, New, asked, new, postgres_url, said  # noqa: F401 (fixtures)

from klype.cli import exits
from klype.cli.main import call
from klype.errors import KlypeError
from klype.preferences import database, formats
from klype.preferences.database import DamagedError
from klype.preferences.records import Entry, RankingItem
from klype.preferences.store import Store, whole_entries

N = 12


def fill(place: Path | str) -> None:
    with Store.open(place) as store:
        store.put([said(asked(i), name) for i in range(N) for name in ("kari", "ola")])
        store.undo(KARI)


def held(place: Path | str) -> tuple[list[Entry], list[RankingItem]]:
    with Store.open(place) as store:
        return store.entries(), store.questions()


def flip(place: Path, rng: random.Random) -> None:
    content = bytearray(place.read_bytes())
    content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    place.write_bytes(content)


def look(place: Path) -> str:
    """Right: all is what was put in. What is whole of a damaged one can still be had."""
    whole = place.with_name("whole")
    expected = held(whole)
    try:
        return "right" if held(place) == expected else "content that changed unseen"
    except DamagedError:
        entries, lost = whole_entries(place)
        known = {entry.id: entry for entry in expected[0]}
        if any(known.get(entry.id) != entry for entry in entries):
            return "content that changed unseen in what is whole"
        return "repaired" if len(entries) + lost >= len(known) - 1 else "refused"


FLIPPED = Target("rankings.db", fill, flip, look)


@pytest.mark.slow
def test_a_flipped_bit_is_found_or_is_nowhere(tmp_path: Path) -> None:
    tally = attack(FLIPPED, tmp_path, range(25))
    assert not tally.faults, str(tally)


@pytest.mark.soak
def test_two_thousand_flipped_bits_are_found_or_are_nowhere(tmp_path: Path) -> None:
    tally = attack(FLIPPED, tmp_path, range(2000))
    print(tally)
    assert not tally.faults, str(tally)


CHANGES = (
    ("candidates", "text", "'\"et annet svar\"'"),
    ("rankings", "ordering", "'[[1],[2],[3]]'"),
    ("rankings", "seconds", "99"),
    ("rankings", "kind", "'skip'"),
    ("questions", "question", "'\"Hvem?\"'"),
    ("questions", "part", "'held-out'"),
    ("annotators", "name", "'\"eva\"'"),
)


@pytest.mark.parametrize(("table", "column", "value"), CHANGES)
def test_a_changed_value_is_found_and_the_rest_is_whole(new: New, table: str, column: str, value: str) -> None:  # noqa: F811
    place = new()
    fill(place)
    before = held(place)[0]
    engine = database.connect(place)
    with database.write_transaction(engine) as connection:
        connection.execute(sa.text(f"UPDATE {table} SET {column} = {value} WHERE id = 2"))
    engine.dispose()
    with pytest.raises(DamagedError, match=f"{table} is not what was written"):
        held(place)
    entries, lost = whole_entries(place)
    assert lost > 0
    assert entries
    assert all(entry in before for entry in entries)


def test_a_row_that_cannot_be_read_takes_no_other_with_it(tmp_path: Path) -> None:
    """Whether it is one of the annotators', or one of the schema that says nothing of rankings."""
    place = tmp_path / "rankings.db"
    fill(place)
    before, content = held(place)[0], place.read_bytes()
    with closing(sqlite3.connect(place)) as connection:
        (checksum,) = connection.execute("SELECT checksum FROM annotators WHERE name = '\"ola\"'").fetchone()
    place.write_bytes(content.replace(checksum.encode(), bytes([ord(checksum[0]) ^ 0x80]) + checksum[1:].encode()))
    entries, lost = whole_entries(place)
    assert entries == [entry for entry in before if entry.annotator == "kari"]
    assert lost == N  # all that the other one said
    for damaged in (b"CREATE TABLE alembic_version", b"CREATE INDEX ix_rankings_question_id"):
        place.write_bytes(content.replace(damaged, damaged.replace(b"E", b"e!", 1)[:-1]))
        with pytest.raises(DamagedError):
            held(place)
        assert whole_entries(place) == (before, 0)


def test_stores_from_before_get_their_checksums_and_what_an_older_klype_adds_is_read(new: New) -> None:  # noqa: F811
    place = new()
    fill(place)
    expected = held(place)
    engine = database.connect(place)
    with database.write_transaction(engine) as connection:
        for table in ("annotators", "questions", "candidates", "rankings"):
            connection.execute(sa.text(f"ALTER TABLE {table} DROP COLUMN checksum"))
        connection.execute(sa.text("UPDATE alembic_version SET version_num = '0002'"))
    engine.dispose()
    assert whole_entries(place) == (expected[0], 0)
    assert held(place) == expected
    engine = database.connect(place)
    with database.write_transaction(engine) as connection:
        left = [connection.execute(sa.text(f"SELECT count(*) FROM {t} WHERE checksum IS NULL")) for t in ("rankings",)]
        assert [int(one.scalar_one()) for one in left] == [0]
        connection.execute(sa.text("UPDATE rankings SET checksum = NULL"))
    engine.dispose()
    assert held(place) == expected


def test_all_of_the_first_version_of_a_store_can_be_saved(tmp_path: Path) -> None:
    place = tmp_path / "rankings.db"
    fill(place)
    expected = held(place)
    with closing(sqlite3.connect(place)) as connection:
        for table in ("annotators", "questions", "candidates", "rankings"):
            connection.execute(f"ALTER TABLE {table} DROP COLUMN checksum")
        connection.execute("ALTER TABLE questions DROP COLUMN priority")
        connection.execute("UPDATE alembic_version SET version_num = '0001'")
        connection.commit()
    assert whole_entries(place) == (expected[0], 0)
    assert held(place) == expected


def test_a_command_says_so_and_export_saves_what_is_whole(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], elsewhere: None
) -> None:
    place, saved, anew = tmp_path / "rankings.db", tmp_path / "whole.jsonl", tmp_path / "anew.db"
    fill(place)
    with sqlite3.connect(place) as connection:
        connection.execute("UPDATE rankings SET shown = '[' WHERE id = 3")
    connection.close()
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text("{}")
    (model / "model.safetensors").write_bytes(b"")
    rank: list[Any] = ["rank", str(model), "--json", "--store"]
    for more in ([], ["--export", str(saved)]):
        assert (
            exits.exit_code(call, [*rank, str(place), *more, "--import", str(tmp_path / "none.jsonl")][: 5 + len(more)])
            == 1
        )
        error = json.loads(capsys.readouterr().out)["error"]
        assert "is damaged: row 3 of its rankings is not what was written" in error["message"]
        assert "--export" in error["hint"] if not more else str(saved) in error["hint"]
    assert len(formats.read(saved)) == 2 * N - 2
    assert exits.exit_code(call, [*rank, str(anew), "--import", str(saved)]) == 0
    assert json.loads(capsys.readouterr().out)["entries"] == 2 * N - 2


def test_what_sqlite_cannot_follow_is_one_sentence(tmp_path: Path) -> None:
    place = tmp_path / "rankings.db"
    fill(place)
    content = place.read_bytes()
    for size in (len(content) // 2, 4096, 200):
        place.write_bytes(content[:size])
        with pytest.raises(KlypeError, match=r"is damaged|not a store"):
            held(place)
