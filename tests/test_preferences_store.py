"""The file of rankings: what was acknowledged is there, what was torn is dropped and said."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from klype.data.rows import read_preferences
from klype.errors import KlypeError
from klype.preferences import store
from klype.preferences.rows import ranking_from, row_of, trl_rows
from klype.values import Question, Ranking


def some(number: int) -> Ranking:
    question = Question(
        f"q{number}", "Hvor bor Per?", "Per bor i Å.", ("Å", "i Å"), ("Å", "Bø"), {"lang": "nb", "fixed": False}
    )
    return Ranking(question, ("i Å", "i Bø", "vet ikke"), ((0,), (1, 2)), "simulated: tidy", "2026-01-01T00:00:00Z")


words = st.text(min_size=1).filter(lambda t: t.strip() == t and t != "")


@given(words, words, st.lists(words, min_size=2, max_size=5), st.booleans())
def test_a_row_goes_round(question: str, context: str, candidates: list[str], tied: bool) -> None:
    order = (tuple(range(len(candidates))),) if tied else tuple((i,) for i in reversed(range(len(candidates))))
    ranking = Ranking(Question("7", question, context), tuple(candidates), order, "me", "now")
    assert ranking_from(json.loads(json.dumps(row_of(ranking))), "1") == ranking


def test_what_is_appended_is_read_in_order(tmp_path: Path) -> None:
    path = tmp_path / "new" / "rankings.jsonl"
    assert store.read(path) == []
    store.append(path, [some(0)])
    store.append(path, [some(1), some(2)])
    assert store.read(path) == [some(0), some(1), some(2)]


@pytest.mark.parametrize("cut", [1, 10, 100])
def test_a_torn_last_line_is_dropped_said_and_written_over(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "rankings.jsonl"
    store.append(path, [some(0), some(1)])
    path.write_bytes(path.read_bytes()[:-cut])
    said: list[str] = []
    assert store.read(path, said.append) == [some(0)]
    assert len(said) == 1
    assert "cut short" in said[0]
    store.append(path, [some(2)])
    assert store.read(path, pytest.fail) == [some(0), some(2)]


def test_a_bad_line_in_the_middle_is_named(tmp_path: Path) -> None:
    path = tmp_path / "rankings.jsonl"
    store.append(path, [some(0)])
    for bad in (b"{nonsense\n", b"[1]\n", b'{"question": "?"}\n'):
        with path.open("ab") as file:
            file.write(bad)
        with pytest.raises(KlypeError, match="line 2"):
            store.read(path)
        path.write_bytes(path.read_bytes()[: -len(bad)])


def test_a_full_disk_leaves_the_file_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "rankings.jsonl"
    store.append(path, [some(0)])
    before = path.read_bytes()

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(store.os, "fsync", full)
    with pytest.raises(KlypeError, match="No space left"):
        store.append(path, [some(1)])
    monkeypatch.undo()
    assert path.read_bytes() == before


KILLED = """
import sys
from pathlib import Path
sys.path.insert(0, {tests!r})
from test_preferences_store import some
from klype.preferences import store
for i in range(10**6):
    store.append(Path({path!r}), [some(i)])
    print(i, flush=True)
"""


def test_killed_writers_lose_nothing_that_was_acknowledged(tmp_path: Path) -> None:
    path = tmp_path / "rankings.jsonl"
    code = KILLED.format(tests=str(Path(__file__).parent), path=str(path))
    process = subprocess.Popen(
        [sys.executable, "-c", code], cwd=Path(__file__).parents[1], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    for line in process.stdout:
        if int(line) >= 20:
            break
    process.kill()
    rest = process.stdout.read().split()
    process.wait()
    acknowledged = int(rest[-1]) if rest else 20
    found = store.read(path)
    assert len(found) >= acknowledged + 1
    assert found == [some(i) for i in range(len(found))]


def test_pairs_go_out_and_come_in(tmp_path: Path) -> None:
    rows = trl_rows(some(0))
    assert [(r["chosen"], r["rejected"]) for r in rows] == [("i Å", "i Bø"), ("i Å", "vet ikke")]
    path = tmp_path / "pairs.jsonl"
    assert store.export_pairs(path, [some(0)]) == 2
    back = read_preferences([path])
    assert [(r.question.prompt, r.candidates, r.order) for r in back] == [
        (some(0).question.prompt, ("i Å", other), ((0,), (1,))) for other in ("i Bø", "vet ikke")
    ]


def test_the_file_is_one_that_klype_reads_as_preferences(tmp_path: Path) -> None:
    path = tmp_path / "rankings.jsonl"
    store.append(path, [some(0)])
    (back,) = read_preferences([path])
    assert (back.candidates, back.order, back.annotator) == (some(0).candidates, some(0).order, some(0).annotator)
