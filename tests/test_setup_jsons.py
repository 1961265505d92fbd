"""Files that a disk has damaged, or that a stranger wrote: one kind of error, and what is whole is read."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from klype import jsons
from klype.answers import trace_files
from klype.data.readers import read_rows
from klype.errors import KlypeError
from klype.examine import run_facts
from klype.model import atomic_folder, checkpoint
from klype.preferences import formats
from klype.runs.folder import read_run
from klype.runs.provenance import read_questions
from klype.text.tokenizer import Tokenizer

DEEP = '{"a":' * 100_000
LONG = '{"a": 1' + "0" * 5_000 + "}"


@pytest.mark.parametrize("text", [DEEP, "[" * 100_000, LONG, "{", "", "\xff"])
def test_whatever_is_no_json_is_one_kind_of_error(text: str) -> None:
    for read in (jsons.parse, jsons.parse_finite):
        with pytest.raises(ValueError):  # noqa: PT011 - that it is no other kind is the point
            read(text.encode("latin-1"))


@pytest.mark.parametrize("text", ["NaN", "[-Infinity]", '{"a": 1e999}'])
def test_what_is_not_finite_is_refused_in_files_of_our_own(text: str) -> None:
    jsons.parse(text)
    with pytest.raises(ValueError, match="not finite"):
        jsons.parse_finite(text)


def test_whole_rows_are_read_around_damaged_ones() -> None:
    lines = [b'{"step": 1, "loss": 2.5, "note": "x"}', b'{"step": 2, "lo', b"[1]", DEEP.encode(), b'{"loss": 1}', b""]
    assert list(jsons.rows(lines)) == [{"step": 1, "loss": 2.5, "note": "x"}, {"loss": 1}]
    assert list(jsons.steps(lines)) == [{"step": 1, "loss": 2.5}]


@pytest.mark.parametrize("text", [DEEP, LONG])
def test_every_reader_of_a_file_says_in_one_sentence_that_it_cannot_be_read(tmp_path: Path, text: str) -> None:
    names = ("config.json", "tokenizer.json", "run.json", "manifest.json", "figures.json", "rows.jsonl", "traces.json")
    for name in names:
        (tmp_path / name).write_text(text)
    (tmp_path / "table.json").write_text(text)
    for read in (
        lambda: checkpoint.read_config(tmp_path),
        lambda: Tokenizer.load(tmp_path),
        lambda: read_run(tmp_path),
        lambda: atomic_folder.verify(tmp_path),
        lambda: run_facts.read(tmp_path / "figures.json"),
        lambda: formats.read(tmp_path / "rows.jsonl"),
        lambda: list(read_rows(tmp_path / "rows.jsonl")),
        lambda: list(read_rows(tmp_path / "table.json")),
    ):
        with pytest.raises(KlypeError) as caught:
            read()
        assert len(str(caught.value)) < 400
    assert trace_files.load(tmp_path, "traces", {}) is None


def test_held_out_questions_are_read_around_damaged_ones(tmp_path: Path) -> None:
    rows = [{"id": "a", "question": "Hvem?", "answers": ["Per"]}, {"id": "b", "question": ["x"]}, {"question": "?"}]
    file = tmp_path / "questions.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)) + "\n" + DEEP)
    assert [q.question for q in read_questions(file)] == ["Hvem?", "?"]
    assert read_questions(tmp_path / "none.jsonl") == []
