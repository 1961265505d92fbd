"""A corpus to shards: the same as in memory, nothing twice, nothing on both sides, whatever its size."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from run_toys import Heard

from klype.config import make
from klype.data.documents import (
    ABOUT,
    BOOK,
    Documents,
    is_held_out,
    near_duplicates,
    training_shards,
    units,
    write_shards,
)
from klype.data.readers import BadRows, ReadOptions, TextDocument, read_texts
from klype.errors import KlypeError
from klype.runs import pipeline, run_start
from klype.runs.recipe import read
from klype.runs.run_data import read_data
from klype.runs.run_options import StageOptions
from klype.runs.text_task import TextTask
from klype.text.chat import TEMPLATE
from klype.text.tokenizer import Tokenizer

TEXTS = [f"Reven gikk {i} ganger over isen, og fisken så på. Dag {i} var over." for i in range(200)]


def content(documents: Documents) -> list[list[int]]:
    return [documents[i].tolist() for i in range(len(documents))]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train(TEXTS, 300)


def test_shards_are_the_texts_of_their_side(tokenizer: Tokenizer, tmp_path: Path) -> None:
    made = training_shards((TextDocument(t, "here") for t in TEXTS), tokenizer, tmp_path)
    texts = [t for t in TEXTS if not is_held_out(t)]
    assert 0 < len(texts) < len(TEXTS)
    assert content(made) == content(Documents.of(tokenizer.encode_documents(texts)))
    again = training_shards(iter(()), tokenizer, tmp_path)  # they are there
    assert content(again) == content(made)


def test_what_was_cut_off_is_made_anew(tokenizer: Tokenizer, tmp_path: Path) -> None:
    documents = [TextDocument(t, "here") for t in TEXTS]
    whole = content(training_shards(documents, tokenizer, tmp_path))
    (tmp_path / ABOUT).unlink()
    assert content(training_shards(documents, tokenizer, tmp_path)) == whole


def test_a_long_document_is_split_by_its_blocks(tokenizer: Tokenizer, tmp_path: Path) -> None:
    book = "\n\n".join(TEXTS * 6)
    assert len(book) > BOOK
    made = training_shards([TextDocument(book, "book")], tokenizer, tmp_path)
    assert 10 < len(made) == sum(not is_held_out(block.text) for block in units(TextDocument(book, "book")))


def test_bad_lines_and_repetitions_are_counted(tokenizer: Tokenizer, tmp_path: Path) -> None:
    lines = [json.dumps({"text": t}) for t in (*TEXTS[:50], *TEXTS[:7])]
    raw = "\n".join([*lines, "{", '{"number": 3}']).encode() + b'\n{"text": "\xff"}\n'
    (tmp_path / "rows.jsonl").write_bytes(raw)
    bad = BadRows(skip=True)
    made = training_shards(read_texts(tmp_path / "rows.jsonl", ReadOptions(bad=bad)), tokenizer, tmp_path / "shards")
    assert len(made) == sum(not is_held_out(t) for t in TEXTS[:50])
    assert (bad.count, bad.repeated) == (3, 7)
    assert any("line 60" in said for said in bad.shown)


def test_a_shard_is_written_as_soon_as_it_is_full(tmp_path: Path) -> None:
    def given() -> Iterator[list[int]]:
        for number in range(4):
            if number == 3:  # the first two filled a shard
                assert len(list(tmp_path.glob("*.bin"))) == 1
                assert not (tmp_path / ABOUT).exists()
            yield list(range(5))

    assert len(write_shards(given(), tmp_path, 300, size=10)) == 4


def test_what_cannot_be_read_is_not_told_as_a_full_disk(tmp_path: Path) -> None:
    def given() -> Iterator[list[int]]:
        yield [1]
        raise OSError(5, "Input/output error")

    with pytest.raises(OSError, match="Input/output"):
        write_shards(given(), tmp_path, 300)


def test_near_repetitions_are_told_where_datasketch_is_there() -> None:
    pytest.importorskip("datasketch")
    long = " ".join(f"Ord nummer {i} er et ord." for i in range(40))
    texts = [long, long.replace("39", "trettini"), " ".join(f"Noe annet om {i} dyr og planter." for i in range(40))]
    assert list(map(near_duplicates(0.8), texts)) == [True, False, True]


@pytest.mark.slow
def test_a_text_that_memory_does_not_hold_is_trained_on_from_the_disk(tmp_path: Path) -> None:
    stories = [f"{TEXTS[i]} Så kom dag {i * 7} med sol, {i * 3} måker og litt vind over øya." for i in range(200)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps({"text": t}) + "\n" for t in stories), encoding="utf-8")
    small = ("tokenizer.size=400", "model.width=16", "model.layers=1", "model.heads=2", "model.hidden=32")
    sizes = ("model.window=64", "examine.questions=5", "rank.limit=8", "align.limit=8", "data.memory_megabytes=0.012")
    options: dict[str, Any] = {
        "stage": "pretrain",
        "text": (str(tmp_path / "rows.jsonl"),),
        "steps": 2,
        "overrides": (*small, *sizes),
    }
    pipeline.train_stage(make(StageOptions, {**options, "out": tmp_path / "run"}), Heard())
    train = Documents.open(tmp_path / "run" / "tokens" / "train")
    assert len(train) == sum(not is_held_out(t) for t in stories)
    material = read_data(make(StageOptions, options), read("text", options["overrides"]).data, BadRows())
    sampled = len(material.split.train) + len(material.split.held_out)
    assert 10 < sampled < 150
    assert any("larger than" in note["en"] for note in material.notes)


def test_texts_of_a_folder_are_in_the_shards_beside_the_users_own(tmp_path: Path) -> None:
    own, folder = tmp_path / "book.txt", tmp_path / "folder"
    folder.mkdir()
    own.write_text("\n\n".join(TEXTS * 8), encoding="utf-8")
    for i in range(60):
        (folder / f"{i}.txt").write_text(f"Fortelling {i}: en måke fløy {i} ganger over øya.", encoding="utf-8")
    for given in ({"text": (str(own),), "data": folder}, {"data": folder}):
        settings = read("text", ("data.memory_megabytes=0.002",)).data
        material = read_data(make(StageOptions, {"stage": "pretrain", **given}), settings, BadRows())
        assert material.share < 1
        assert sum("Fortelling" in d.text for d in material.texts()) == 60
        assert sum("Reven" in d.text for d in material.texts()) == ("text" in given)
        assert len({row["name"] for row in material.data}) == 60  # as many as are shown


@pytest.mark.parametrize("memory", [64.0, 0.0001])
def test_texts_that_nearly_repeat_others_are_left_out_where_that_is_wanted(tmp_path: Path, memory: float) -> None:
    pytest.importorskip("datasketch")
    long = " ".join(f"ord{i}" for i in range(200))
    for name, text in (("a", long), ("b", f"{long} nytt"), ("c", "noe helt annet som ikke likner på det andre")):
        (tmp_path / f"{name}.txt").write_text(text, encoding="utf-8")
    options = make(StageOptions, {"stage": "pretrain", "text": (str(tmp_path),)})
    for near, kept in ((0.0, 3), (0.8, 2)):
        settings = read("text", (f"data.near={near}", f"data.memory_megabytes={memory}")).data
        material = read_data(options, settings, BadRows())
        assert sum(1 for _ in material.texts()) == kept
        assert any("nearly repeat" in note["en"] and "b.txt" in note["en"] for note in material.notes) == (kept == 2)


def test_documents_follow_others(tmp_path: Path) -> None:
    first, second = Documents.of([[1, 2], [3]]), Documents.of([[4], [5, 6]])
    both = first.concat(second)
    assert [both[i].tolist() for i in range(4)] == [[1, 2], [3], [4], [5, 6]]
    assert both.lengths.tolist() == [2, 1, 1, 2]


@pytest.mark.slow
def test_rows_that_are_skipped_are_said_and_stand_in_the_runs_record(tmp_path: Path) -> None:
    rows = [json.dumps({"n": t}) for t in TEXTS]
    (tmp_path / "rows.jsonl").write_text("\n".join([*rows[:3], "{", *rows[3:], "[1]"]), encoding="utf-8")
    small = ("tokenizer.size=400", "model.width=16", "model.layers=1", "model.heads=2", "model.hidden=32")
    options: dict[str, Any] = {
        "stage": "pretrain",
        "text": (str(tmp_path / "rows.jsonl"),),
        "text_field": "n",
        "skip_bad": True,
        "overrides": (*small, "model.window=64", "rank.limit=8", "align.limit=8"),
    }
    say, folder = Heard(), tmp_path / "run"
    folder.mkdir()
    asked = make(StageOptions, {**options, "out": folder})
    run_start.begin_or_resume(asked, read("text", options["overrides"]), say)
    skipped = json.loads((folder / "run.json").read_text(encoding="utf-8"))["skipped"]
    assert skipped["rows"] == 2
    assert [place.split(" is ")[0].split("/")[-1] for place in skipped["first"]] == [
        "rows.jsonl line 4",
        "rows.jsonl line 202",
    ]
    assert any("2 bad rows were skipped" in note and "line 4" in note for note in say.notes)


SMALL = ("tokenizer.size=400", "model.width=16", "model.layers=1", "model.heads=2", "model.hidden=32")
SHORT = ("model.window=64", "examine.questions=5", "rank.limit=8", "align.limit=8")


def test_pretraining_needs_no_tasks_and_finetuning_says_so(tmp_path: Path) -> None:
    rows = [{"text": f"reven {i} gikk over isen og så {i * 7} måker der ute"} for i in range(100)]
    (tmp_path / "rows.jsonl").write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    given = {"text": (str(tmp_path / "rows.jsonl"),), "steps": 2, "overrides": (*SMALL, *SHORT)}
    asked = make(StageOptions, {**given, "stage": "pretrain", "out": tmp_path / "run"})
    document = pipeline.train_stage(asked, Heard())
    assert list(document["figures"]["base"]) == ["bits_per_byte"]
    (tmp_path / "next").mkdir()
    then = {**given, "stage": "finetune", "from_": str(tmp_path / "run"), "out": tmp_path / "next"}
    with pytest.raises(KlypeError, match="no two sentences to make tasks from"):
        pipeline.train_stage(make(StageOptions, then), Heard())


def test_conversations_of_every_form_are_learnt_and_held_out(tmp_path: Path) -> None:
    first = [{"role": "user", "content": "Hei"}, {"role": "assistant", "content": "Hei du"}]
    system = [{"role": "system", "content": "Svar kort"}]
    rows = [
        {
            "messages": [
                *(system if i % 2 else []),
                *(first if i % 3 else []),
                {"role": "user", "content": f"Dag {i}?"},
                {"role": "assistant", "content": f"Sol {i}"},
                *([{"role": "user", "content": "Takk"}] if i % 5 == 0 else []),
            ]
        }
        for i in range(200)
    ]
    (tmp_path / "i.jsonl").write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    options = StageOptions(stage="finetune", instructions=tmp_path / "i.jsonl")
    task = TextTask(read("text", (*SMALL, "model.window=128", *SHORT[1:])), 0, options, BadRows())
    assert task.examples is not None
    assert task.examples + len(task.held_out) == 200
    assert 5 < len(task.held_out) < 50
    for question in task.held_out:
        row = rows[int(question.prompt.removeprefix("Dag ").rstrip("?"))]["messages"]
        assert question.messages() == row[: row.index({"role": "user", "content": question.prompt}) + 1]
        assert question.answers == (f"Sol {question.prompt[4:-1]}",)


def test_what_a_foreign_template_leaves_out_is_said(tmp_path: Path) -> None:
    system = {"role": "system", "content": "Svar kort"}
    turns = [
        [{"role": "user", "content": f"Dag {i}?"}, {"role": "assistant", "content": f"Sol {i}"}] for i in range(99)
    ]
    lines = [json.dumps({"messages": [*([system] if i % 2 else []), *turn]}) for i, turn in enumerate(turns)]
    (tmp_path / "i.jsonl").write_text("\n".join(lines), encoding="utf-8")
    options = StageOptions(stage="finetune", instructions=tmp_path / "i.jsonl")
    deaf = TEMPLATE.replace("for message in messages", "for message in messages if message['role'] != 'system'")
    recipe = read("text", (*SMALL, "model.window=128", *SHORT[1:]))
    notes = {}
    for template in (TEMPLATE, deaf):
        tokenizer = Tokenizer.train(lines, 600, template)
        notes[template] = [note["en"] for note in TextTask(recipe, 0, options, BadRows(), tokenizer).notes]
    assert notes[TEMPLATE] == []
    (said,) = notes[deaf]
    assert said.endswith("instructions have a system prompt or turns that the model's chat template leaves out.")
