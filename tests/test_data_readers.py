"""Readers: each kind of file gives its documents, and each bad input is named where it stands."""

import csv
import gzip
import json
import os
import re
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from klype.data.files import PACKED, files_of
from klype.data.readers import KINDS, BadRows, ReadOptions, read_rows, read_texts
from klype.data.rows import read_instructions, read_preferences, read_questions
from klype.errors import KlypeError, UsageError

TEXT = "Jeg gikk en tur på stien.\n"


def lines(file: Path, *rows: object) -> Path:
    file.write_text("\n".join(json.dumps(r, ensure_ascii=False) for r in rows), encoding="utf-8")
    return file


def packed(raw: bytes, name: str) -> bytes:
    """As a file of that name holds it."""
    if name.endswith(".gz"):
        return gzip.compress(raw)
    return bytes(pyarrow.compress(raw, "zstd", asbytes=True)) if name.endswith(".zst") else raw


def texts(*paths: object, **options: object) -> list[str]:
    return [d.text for d in read_texts([str(p) for p in paths], ReadOptions(**options))]  # type: ignore[arg-type]


def test_every_kind_of_file_gives_the_same_rows(tmp_path: Path) -> None:
    rows = [{"text": "Kåre spiste blåbær, 'ja'"}, {"text": 'en "to"\ntre'}]
    lines(tmp_path / "a.jsonl", *rows)
    (tmp_path / "a.json").write_text(json.dumps(rows), encoding="utf-8")
    (tmp_path / "a.csv").write_text('text\n"Kåre spiste blåbær, \'ja\'"\n"en ""to""\ntre"\n', encoding="utf-8")
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "a.parquet")
    for name in ("a.jsonl", "a.json", "a.csv", "a.parquet"):
        for ending in ("", *PACKED):
            file = tmp_path / f"{name}{ending}"
            file.write_bytes(packed((tmp_path / name).read_bytes(), ending))
            assert [r for _, r in read_rows(file)] == rows, file


def test_folders_globs_and_duplicates(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    for name in ("b.txt", "sub/a.md", ".hidden.txt", "LICENCE.txt", "README.md", "image.png"):
        (tmp_path / name).write_text(name, encoding="utf-8")
    (tmp_path / "copy.txt").write_text("b.txt\n", encoding="utf-8")
    assert texts(tmp_path) == ["b.txt", "sub/a.md"]
    assert texts(tmp_path / "**/*.md") == ["README.md", "sub/a.md"]
    assert texts(tmp_path / "b.txt", tmp_path) == ["b.txt", "sub/a.md"]
    assert files_of(tmp_path / "LICENCE.txt", KINDS) == [tmp_path / "LICENCE.txt"]


def test_what_klypes_runs_wrote_is_no_text(tmp_path: Path) -> None:
    run = tmp_path / "runs" / "one"
    (run / "pretrain").mkdir(parents=True)
    (tmp_path / "own.txt").write_text("own")
    (tmp_path / "runs" / "beside.txt").write_text("beside")
    (run / "pretrain" / "notes.txt").write_text("of a run")
    assert texts(tmp_path) == ["own", "beside", "of a run"]
    for about in ("{", "[]", '{"recipe": "pancakes"}', '{"versions": []}'):
        (run / "run.json").write_text(about)
        assert run / "pretrain" / "notes.txt" in files_of(tmp_path, KINDS), about
    (run / "run.json").write_text('{"versions": {"klype": "1"}}')
    assert texts(tmp_path) == ["own", "beside"]
    assert files_of(run, KINDS) == [run / "pretrain" / "notes.txt", run / "run.json"]  # asked for by name
    assert files_of(tmp_path / "runs" / "*" / "*.json", KINDS) == [run / "run.json"]


def test_which_fields_are_the_text(tmp_path: Path) -> None:
    file = lines(
        tmp_path / "a.jsonl",
        {"id": "x", "title": "Tittel", "text": "Kropp"},
        {"title": "Lov", "text": "Lov om vann"},
        {"id": "y", "lemma": "tur", "definitions": ["gåtur", "reise"]},
        {"note": "annet"},
    )
    assert texts(file) == ["Tittel\n\nKropp", "Lov om vann", "tur\ngåtur\n\nreise", "annet"]
    bad = BadRows(skip=True)
    assert texts(file, text_field="note", bad=bad) == ["annet"]
    assert bad.count == 3
    with pytest.raises(KlypeError, match=r'a\.jsonl line 1 has no text field "note"\..*text_field'):
        texts(file, text_field="note", bad=BadRows(skip=False))
    with pytest.raises(KlypeError) as caught:  # a command without that option
        texts(file, text_field="note")
    assert "text_field" not in str(caught.value)


def test_what_was_skipped_is_said_with_its_places(tmp_path: Path) -> None:
    bad = BadRows(skip=True)
    file = lines(tmp_path / "a.jsonl", {"text": "a"}, *([3] * 5))
    assert texts(file, bad=bad) == ["a"]
    assert re.fullmatch(
        r"5 bad rows were skipped: \S+a\.jsonl line 2 is .*; \S+ line 4 is [^;]*; 2 more\.", bad.summary()
    )
    one = BadRows(skip=True)
    texts(lines(file, {"text": "a"}, 3), bad=one)
    assert one.summary().startswith("1 bad row was skipped: ")
    assert "more" not in one.summary()


@pytest.mark.parametrize("name", ["a.txt", "a.txt.gz", "a.txt.zst"])
def test_a_large_file_in_parts_is_the_file(tmp_path: Path, name: str) -> None:
    options = ReadOptions(block=50)
    content = "".join(f"linje {i} å\n" for i in range(40)) + "slutt uten linjeskift " + "x" * 90
    raw = content.encode()
    (tmp_path / name).write_bytes(packed(raw, name))
    documents = list(read_texts(tmp_path / name, options))
    assert "".join(d.text for d in documents) == content
    assert [d.row for d in documents] == list(range(1, len(documents) + 1))
    (tmp_path / name).write_bytes(packed(raw + b"\xff", name))
    with pytest.raises(KlypeError, match=f"byte {len(raw)} is 0xff"):
        list(read_texts(tmp_path / name, options))


def test_encodings(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes("på".encode("latin-1"))
    with pytest.raises(KlypeError, match=r"a\.txt is not utf-8: byte 1 is 0xe5\..*encoding"):
        texts(tmp_path / "a.txt")
    assert texts(tmp_path / "a.txt", encoding="latin-1") == ["på"]
    (tmp_path / "b.txt").write_bytes(("\ufeff" + TEXT).encode("utf-16"))
    assert texts(tmp_path / "b.txt", encoding="utf-16") == [TEXT]
    (tmp_path / "c.txt").write_bytes(b"\xef\xbb\xbfabc")
    assert texts(tmp_path / "c.txt") == ["abc"]
    (tmp_path / "d.jsonl").write_text('{"text": "Hei."}')
    (tmp_path / "e.csv").write_text("text\nHei.\n")
    for name in ("a.txt", "d.jsonl", "e.csv"):  # whatever is skipped: no row is to blame
        with pytest.raises(UsageError, match="no encoding 'klingon'"):
            texts(tmp_path / name, encoding="klingon", bad=BadRows(skip=True))
    with pytest.raises(UsageError, match="no encoding 'rot13'"):  # a codec, but of text to text
        ReadOptions(encoding="rot13")


BROKEN = {
    "a.jsonl": (b'{"text": "a"}\n{"text": \n{"text": "b"}\n', "line 2 is not JSON: see character 1", 2),
    "b.jsonl": (b'{"text": "a"}\n[1]\n', "line 2 is not a JSON object", 1),
    "c.jsonl": (b'{"text": "a"}\n{"text": "\xe5"}\n', r"line 2 is not utf-8: byte 24 is 0xe5", 1),
    "g.jsonl": (b'{"text": "a"}\n{"text": "x\\ud83d"}\n', "line 2 is not JSON: an escape is half a character", 1),
    "h.jsonl": (b'{"text": "\\ud83d\\ude00"}\n' + b"[" * 200_000 + b"\n", "line 2 is not JSON", 1),
    "d.jsonl": (b'{"text": "a"}\n{"n": 3}\n', "line 2 has no field with text", 1),
    "e.csv": (b"text,id\na,1\nb\n", "line 3 has another number of fields", 1),
    "i.csv": (b'text,id\n"a\nb",1\n"c" d,2\ne,3\n', "line 4 is not a row of a table", 2),
    "j.csv": (b"text,id\na,1\n\xe5,2\nb,3\n", "line 3 is not utf-8: it has the byte 0xe5", 2),
    "k.csv": (b'text,id\n"a,1\nb,2\nc,3\n', "line 2 is not a row of a table", 2),
    "f.json": (b'[{"text": "a"}, 3]', "entry 2 is not a JSON object", 1),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_rows_are_named_or_counted(tmp_path: Path, name: str) -> None:
    content, message, good = BROKEN[name]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(KlypeError, match=message):
        texts(tmp_path / name)
    bad = BadRows(skip=True)
    assert len(texts(tmp_path / name, bad=bad)) == good
    assert bad.count == 1
    assert name in bad.shown[0]


def test_a_field_of_any_length_is_read_and_nothing_else_is_changed(tmp_path: Path) -> None:
    before = csv.field_size_limit()
    (tmp_path / "a.csv").write_text(f"text\n{'x' * 140_000}\n\n", encoding="utf-8")
    assert [len(t) for t in texts(tmp_path / "a.csv")] == [140_000]
    assert csv.field_size_limit() == before
    (tmp_path / "a.csv").write_bytes(b"te\xe5xt\na\n")
    with pytest.raises(KlypeError, match=r"a\.csv line 1 is not utf-8"):
        texts(tmp_path / "a.csv", bad=BadRows(skip=True))  # there is nothing to read its rows by


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-be", "utf-32", "utf-8-sig", "utf-8", "latin-1"])
def test_tables_in_other_encodings(tmp_path: Path, encoding: str) -> None:
    words = ["på øya", "bla\u010a"] if encoding.startswith("utf") else ["på øya"]  # 0x0a within a character
    content = {"a.jsonl": "".join(json.dumps({"text": w}, ensure_ascii=False) + "\n" for w in words)}
    content["a.csv"] = "text\n" + "".join(f"{w}\n" for w in words)
    for name, text in content.items():
        (tmp_path / name).write_bytes(text.encode(encoding))
        assert texts(tmp_path / name, encoding=encoding) == words


def test_what_cannot_be_read_is_said(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"no file .*nothing\.txt"):
        texts(tmp_path / "nothing.txt")
    with pytest.raises(UsageError, match="holds no file of a kind"):
        texts(tmp_path)
    for name, content in (("empty.txt", b""), ("blank.md", b" \n\n"), ("none.jsonl", b"")):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(KlypeError, match=f"no text in .*{name}"):
            texts(tmp_path / name)
    for name, content in (
        ("x.parquet", b"PAR1"),
        ("x.txt.gz", b"no gzip"),
        ("x.txt.zst", b"no zstandard"),
        ("x.json", b"{"),
        ("y.csv", b'a\n"b'),
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(KlypeError, match=name):
            texts(tmp_path / name)
    for name in ("cut.txt.gz", "cut.txt.zst"):
        (tmp_path / name).write_bytes(packed(os.urandom(999), name)[:500])
        with pytest.raises(KlypeError, match=rf"{re.escape(name)} cannot be read"):
            texts(tmp_path / name)
    with pytest.raises(UsageError, match="not a table of rows"):
        list(read_rows(tmp_path / "empty.txt"))


def test_instructions_of_every_shape(tmp_path: Path) -> None:
    user, assistant = {"role": "user", "content": "Hva?"}, {"role": "assistant", "content": "Vann."}
    file = lines(
        tmp_path / "a.jsonl",
        {"messages": [user, assistant]},
        {"conversations": [{"from": "human", "value": "Hvem?"}, {"from": "gpt", "value": "Kari."}]},
        {"instruction": "Rett", "input": "freind", "output": "friend"},
        {"instruction": "Si hei", "input": "", "output": "hei"},
        {"question": "Hvor?", "answer": "Bergen", "context": "Kari bor i Bergen."},
        {"question": "Hvor?", "answers": ["Oslo", "i Oslo"]},
        {"prompt": "Si ja", "completion": "ja"},
        {"prompt": [user], "completion": [{"role": "assistant", "content": "Is."}]},
        {"question": "Hva?", "answer": "Vann."},
    )
    assert [[m["content"] for m in c] for c in read_instructions(file)] == [
        ["Hva?", "Vann."],
        ["Hvem?", "Kari."],
        ["Rett\nfreind", "friend"],
        ["Si hei", "hei"],
        ["Kari bor i Bergen. Hvor?", "Bergen"],
        ["Hvor?", "Oslo"],
        ["Si ja", "ja"],
        ["Hva?", "Is."],
    ]
    assert all([m["role"] for m in c] == ["user", "assistant"] for c in read_instructions(file))


@pytest.mark.parametrize(
    "row",
    [
        {"question": "Hva?"},
        {"messages": [{"role": "user", "content": "x"}]},
        {"messages": [{"role": "assistant", "content": "x"}]},
        {"messages": [{"role": "assistant", "content": "x"}, {"role": "user", "content": "y"}]},
        {"messages": [{"role": "system", "content": "x"}, {"role": "assistant", "content": "y"}]},
        {"a": "b"},
    ],
)
def test_instructions_without_answers_are_named(tmp_path: Path, row: dict[str, object]) -> None:
    file = lines(tmp_path / "a.jsonl", {"question": "Hva?", "answer": "Vann"}, row)
    with pytest.raises(KlypeError, match=r"a\.jsonl line 2 has no question with an answer"):
        read_instructions(file)
    bad = BadRows(skip=True)
    assert len(read_instructions(file, bad)) == bad.count == 1


def test_preferences_of_every_shape(tmp_path: Path) -> None:
    user = {"role": "user", "content": "Hei?"}
    good, poor = ({"role": "assistant", "content": c} for c in ("Hei!", "Nei."))
    file = lines(
        tmp_path / "a.jsonl",
        {"prompt": "Hva?", "chosen": "vann", "rejected": "stein"},
        {"prompt": [user], "chosen": [good], "rejected": [poor]},
        {"chosen": [user, good, user, good], "rejected": [user, good, user, poor]},
        {"instruction": "Rett", "input": "freind", "output": "x", "chosen": "friend", "rejected": "no", "id": 7},
        {"question": "Hvem?", "candidates": ["a", "b", "c"], "order": [2, [0, 1]], "annotator": "Kari"},
        {"prompt": "Nå?", "candidates": ["best", "dårligst"]},
        {"prompt": "Human: Why?\n\nAssistant:", "chosen": "so", "rejected": "no"},
    )
    found = read_preferences(file)
    assert [(r.question.prompt, r.candidates, r.order) for r in found] == [
        ("Hva?", ("vann", "stein"), ((0,), (1,))),
        ("Hei?", ("Hei!", "Nei."), ((0,), (1,))),
        ("Hei?", ("Hei!", "Nei."), ((0,), (1,))),
        ("Rett\nfreind", ("friend", "no"), ((0,), (1,))),
        ("Hvem?", ("a", "b", "c"), ((2,), (0, 1))),
        ("Nå?", ("best", "dårligst"), ((0,), (1,))),
        ("Why?", ("so", "no"), ((0,), (1,))),
    ]
    assert found[2].question.extra == {"before": [user, good]}
    assert (found[0].annotator, found[3].question.id, found[4].annotator) == ("a.jsonl", "7", "Kari")


def test_a_system_prompt_is_kept_wherever_a_row_has_it(tmp_path: Path) -> None:
    system, user = {"role": "system", "content": "Kort!"}, {"role": "user", "content": "Hva?"}
    answer, poor = ({"role": "assistant", "content": c} for c in ("Is.", "Vet ikke."))
    share = [{"from": "human", "value": "Hva?"}, {"from": "gpt", "value": "Is."}]
    told = lines(
        tmp_path / "i.jsonl",
        {"messages": [system, user, answer]},
        {"messages": [user, answer], "system": "Kort!"},
        {"conversations": share, "system": "Kort!"},
        {"conversations": [{"from": "system", "value": "Kort!"}, *share]},
        {"instruction": "Hva?", "output": "Is.", "system": "Kort!"},
        {"prompt": [user], "completion": [answer], "system": "Kort!"},
        {"prompt": [system, user], "completion": [answer], "system": "Kort!"},
        {"question": "Hva?", "answer": "Is.", "system": "Kort!"},
    )
    assert read_instructions(told) == [[system, user, answer]]
    earlier = lines(
        tmp_path / "h.jsonl", {"instruction": "Og?", "output": "Is.", "history": [["Hva?", "Is."]], "system": "Kort!"}
    )
    assert read_instructions(earlier) == [[system, user, answer, {"role": "user", "content": "Og?"}, answer]]
    pair = {"chosen": "Is.", "rejected": "Vet ikke."}
    ranked = lines(
        tmp_path / "p.jsonl",
        {"prompt": "Hva?", "system": "Kort!", **pair},
        {"prompt": [system, user], **pair},
        {"prompt": [system, user], "chosen": [answer], "rejected": [poor]},
        {"chosen": [system, user, answer], "rejected": [system, user, poor]},
        {"prompt": "Hva?", "chosen": [system, user, answer], "rejected": [system, user, poor]},
        {"instruction": "Hva?", "system": "Kort!", **pair},
        {
            "conversations": share[:1],
            "system": "Kort!",
            "chosen": share[1],
            "rejected": {"from": "gpt", "value": "Nei"},
        },
        {"question": "Hva?", "candidates": ["Is.", "Vet ikke."], "order": [0, 1], "extra": {"before": [system]}},
    )
    found = read_preferences(ranked)
    assert [r.question.messages() for r in found] == [[system, user]] * 2  # doubles are one
    assert [r.candidates for r in found] == [("Is.", "Vet ikke."), ("Is.", "Nei")]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": "x", "chosen": "a", "rejected": ""}, "has no two answers"),
        ({"chosen": "a", "rejected": "b"}, "has no prompt"),
        ({"prompt": "x", "chosen": "a"}, "has no two answers"),
        ({"prompt": "Hei", "candidates": 5}, "has no two answers"),
        ({"prompt": "Hei", "candidates": ["a", "b"], "order": 5}, "has an order that does not"),
        ({"prompt": "x", "chosen": "a", "rejected": "a "}, "has the same text"),
        (
            {"prompt": "x", "candidates": ["a", "b"], "order": [0, 0]},
            "has an order that does not",
        ),
        (
            {"prompt": "x", "candidates": ["a", "b"], "order": [0]},
            "has an order that does not",
        ),
    ],
)
def test_rows_that_rank_nothing_are_named(tmp_path: Path, row: dict[str, object], message: str) -> None:
    with pytest.raises(KlypeError, match=f"line 1 {message}"):
        read_preferences(lines(tmp_path / "a.jsonl", row))


def test_questions(tmp_path: Path) -> None:
    rows = [
        {"question": "Hvor?", "context": "Her.", "answers": ["her"], "id": "q", "lang": "nb"},
        {"question": "Hvem?", "answer": "Kari", "choices": ["Kari", "Ola"], "id": "q"},
        {"question": "Når?", "extra": {"kind": "time", "fixed": True}, "lang": "nb"},  # as a run's own file has it
    ]
    first, second, third = read_questions(lines(tmp_path / "q.jsonl", *rows))
    assert (first.id, first.prompt, first.answers, first.extra) == ("q", "Her. Hvor?", ("her",), {"lang": "nb"})
    assert (second.id, second.answers, second.choices) == ("q-2", ("Kari",), ("Kari", "Ola"))
    assert third.extra == {"kind": "time", "fixed": True, "lang": "nb"}
    with pytest.raises(KlypeError, match="line 1 has no question"):
        read_questions(lines(tmp_path / "r.jsonl", {"answer": "x"}))
    with pytest.raises(KlypeError, match="not lists of text"):
        read_questions(lines(tmp_path / "r.jsonl", {"question": "x", "answers": [1]}))
    for row, wrong in (({"question": 5}, "question"), ({"question": "x", "context": ["y"]}, "context")):
        with pytest.raises(KlypeError, match=f"line 1 has a {wrong} that is not text") as caught:
            read_questions(lines(tmp_path / "r.jsonl", row))
        assert caught.value.hint == "Fix it."  # there is nothing to leave rows out with, as there is for training
    with pytest.raises(KlypeError, match=r"no questions in \S+/n\.jsonl, \S+/n\.jsonl\."):
        read_questions([lines(tmp_path / "n.jsonl")] * 2)
    with pytest.raises(KlypeError) as caught:
        read_questions(lines(tmp_path / "r.jsonl", row), BadRows(skip=False))
    assert "--skip-bad" in caught.value.hint


def test_what_was_said_before_a_question_is_messages_or_somebody_s_column(tmp_path: Path) -> None:
    said = [{"from": "system", "value": "Svar kort."}, {"role": "assistant", "content": "Ja?"}]
    rows = [{"question": "Hvor?", "before": "2019"}, {"question": "Når?", "extra": {"before": 5}, "lang": "nb"}]
    rows += [{"question": "Hvem?", "before": said}, {"question": "Hva?", "before": []}]
    found = read_questions(lines(tmp_path / "q.jsonl", *rows))
    assert [question.transcript for question in found] == [
        "Hvor?", "Når?", "System: Svar kort.\n\nAssistant: Ja?\n\nUser: Hvem?", "Hva?",
    ]  # fmt: skip
    assert found[1].extra == {"lang": "nb"}
    with pytest.raises(UsageError, match="line 1 has something else than messages in before"):
        read_questions(lines(tmp_path / "r.jsonl", {"question": "Hvor?", "before": ["Hei"]}))
    pair = {"prompt": "Hva?", "chosen": "a", "rejected": "b"}
    (ranking,) = read_preferences(lines(tmp_path / "p.jsonl", {**pair, "extra": {"before": 5}}))
    assert ranking.question.transcript == "Hva?"
    with pytest.raises(KlypeError, match="line 1 has something else than messages in before"):
        read_preferences(lines(tmp_path / "p.jsonl", {**pair, "extra": {"before": [5]}}))


def test_a_data_set_that_was_saved_is_its_rows(tmp_path: Path) -> None:
    table = pyarrow.Table.from_pylist([{"text": "Reven sov."}, {"text": "Fisken sov."}])
    for part in ("train", "test"):
        (tmp_path / part).mkdir()
        for name in ("state.json", "dataset_info.json"):
            (tmp_path / part / name).write_text('{"description": "about"}', encoding="utf-8")
        for name in ("data-00000-of-00001.arrow", "cache-5e1f.arrow"):
            with pyarrow.ipc.new_stream(tmp_path / part / name, table.schema) as stream:
                stream.write_table(table if name.startswith("data") else table.slice(1))
    (tmp_path / "dataset_dict.json").write_text('{"splits": ["train", "test"]}', encoding="utf-8")
    assert [file.name for file in files_of(tmp_path, KINDS)] == ["data-00000-of-00001.arrow"] * 2
    assert texts(tmp_path / "train") == texts(tmp_path) == ["Reven sov.", "Fisken sov."]
    with pyarrow.ipc.new_file(tmp_path / "a.arrow", table.schema) as file:
        file.write_table(table)
    assert texts(tmp_path / "a.arrow") == ["Reven sov.", "Fisken sov."]
    raw = (tmp_path / "train" / "data-00000-of-00001.arrow").read_bytes()
    for broken in (b"", b"no arrow", raw[: len(raw) // 2]):
        (tmp_path / "a.arrow").write_bytes(broken)
        with pytest.raises(KlypeError, match=r"a\.arrow"):
            texts(tmp_path / "a.arrow")
