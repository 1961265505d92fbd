"""JSONL out and in: ranked lists lose nothing, pairs stay the same pairs, and bad rows are named."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from klype.data import find_data
from klype.data.rows import read_preferences
from klype.errors import KlypeError, UsageError
from klype.preferences import formats
from klype.preferences.records import Candidate, Entry, RankingItem, by_name
from klype.preferences.store import Store
from klype.values import Question, Sampling, Step, Trace

text = st.text(st.characters(), max_size=10)
spoken = text.filter(lambda t: bool(t.strip()))
number = st.floats(-9, 9)
steps = st.lists(st.builds(Step, st.integers(0, 9), number, number, st.just("drawn")), max_size=3).map(tuple)
samplings = st.builds(Sampling, st.floats(0, 2), logit_bias=st.just(()) | st.just(((3, -1.5),)))
traces = st.builds(
    Trace,
    st.just((1, 2)),
    steps,
    samplings,
    st.integers(0, 9),
    st.integers(0, 3),
    text,
    st.just("stop"),
    st.just(2),
    st.just(0.5),
)
candidates = st.builds(Candidate, text, text, st.none() | st.floats(0, 2), text, st.none() | traces)


@st.composite
def entries(draw: st.DrawFn, unequal: bool = False) -> Entry:
    n = draw(st.integers(1, 4))
    answers = draw(st.lists(candidates, min_size=n, max_size=n, unique_by=(lambda c: c.text) if unequal else None))
    groups: list[list[int]] = []
    for index in draw(st.permutations(range(n))):
        if groups and draw(st.booleans()):
            groups[-1].append(index)
        else:
            groups.append([index])
    kind = draw(st.sampled_from(["order", "none", "skip"]))
    words = st.lists(text, max_size=2).map(tuple)
    question = Question(
        draw(text), draw(spoken), draw(text), draw(words), draw(words), draw(st.dictionaries(text, text, max_size=2))
    )
    asked = RankingItem(question, tuple(answers), draw(st.sampled_from(["train", "held-out"])))
    name = draw(spoken | spoken.map("simulated: {}".format))
    by = draw(st.sampled_from(["person", "model", "imported", by_name(name)]))
    order = () if kind == "skip" else tuple(map(tuple, groups))
    seconds = draw(st.none() | st.floats(0, 100))
    return Entry(asked, order, name, kind, by, draw(text), seconds, draw(st.booleans()))


roomy = settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.mark.slow
@given(st.lists(entries(), min_size=1, max_size=3))
@roomy
def test_ranked_lists_go_round_whole(tmp_path: Path, said: list[Entry]) -> None:
    file = tmp_path / "ranked.jsonl"
    assert formats.export(file, said, "ranked") == len(said)
    assert formats.read(file) == said


def test_answers_of_a_server_that_tells_no_probabilities_go_round(tmp_path: Path) -> None:
    steps = (Step(2, -0.5, math.nan, "drawn"), Step(3, math.nan, math.nan, "drawn"))
    untold = Trace((1,), steps, Sampling(), 0, 0, "m", "stop", 2, 0.5)
    entry = Entry(
        RankingItem(Question("q", "Hva?"), (Candidate("a", trace=untold), Candidate("b"))), ((0,), (1,)), "me"
    )
    file = tmp_path / "ranked.jsonl"
    formats.export(file, [entry], "ranked")
    written = file.read_text()
    assert "NaN" not in written
    for text in (written, written.replace("-0.5, null", "-0.5, NaN").replace("[null, null]", "[NaN, NaN]")):
        file.write_text(text)  # the latter as an earlier klype wrote it
        (again,) = formats.read(file)
        assert repr(again) == repr(entry)
    with Store.open(tmp_path / "rankings.db") as store:
        store.put([entry])
        (kept,) = store.entries()
    assert repr(kept.asked.candidates[0].trace) == repr(untold)


@pytest.mark.slow
@pytest.mark.parametrize("form", ["trl", "sharegpt", "alpaca"])
@given(said=st.lists(entries(unequal=True), min_size=1, max_size=3))
@roomy
def test_pairs_stay_the_same_pairs(tmp_path: Path, form: formats.Format, said: list[Entry]) -> None:
    file, again = tmp_path / "pairs.jsonl", tmp_path / "again.jsonl"
    formats.export(file, said, form)
    wanted = [(e.asked.question.prompt, *p) for e in said if e.kind != "skip" for p in formats.pairs(e.ranking())]
    back = formats.read(file) if wanted else []
    assert [(e.asked.question.prompt, *p) for e in back for p in formats.pairs(e.ranking())] == wanted
    formats.export(again, back, form)
    assert again.read_bytes() == file.read_bytes()


def simple(order: tuple[tuple[int, ...], ...]) -> Entry:
    return Entry(
        RankingItem(Question("q", "Hvem?", "Per kom."), (Candidate("Per"), Candidate("Kari"), Candidate("Ola"))),
        order,
        "me",
    )


def test_tied_pairs_make_no_row_and_trainers_rows_are_what_they_read() -> None:
    rows = formats.rows_of(simple(((1,), (0, 2))), "trl")
    assert rows == [
        {"prompt": "Per kom. Hvem?", "chosen": "Kari", "rejected": "Per"},
        {"prompt": "Per kom. Hvem?", "chosen": "Kari", "rejected": "Ola"},
    ]
    assert formats.rows_of(simple(((0, 1, 2),)), "alpaca") == []
    (row, *_) = formats.rows_of(simple(((1,), (0, 2))), "sharegpt")
    assert row["conversations"] == [{"from": "human", "value": "Per kom. Hvem?"}]
    assert row["chosen"] == {"from": "gpt", "value": "Kari"}


whole = st.text(max_size=10).filter(lambda t: bool(t.strip()))  # half characters are no text to a trainer
turns = st.lists(st.tuples(whole, whole), max_size=2)


@st.composite
def asked_behind(draw: st.DrawFn) -> Entry:
    """An entry of a conversation: a system prompt or none, earlier turns or none, answers that somebody gave."""
    system = [{"role": "system", "content": t} for t in draw(st.lists(whole, max_size=1))]
    earlier = [{"role": r, "content": c} for turn in draw(turns) for r, c in zip(SPEAKERS, turn, strict=True)]
    extra = {"before": [*system, *earlier]} if system or earlier else {}
    answers = draw(st.lists(whole, min_size=2, max_size=4, unique_by=str.strip))
    order = tuple((i,) for i in draw(st.permutations(range(len(answers)))))
    asked = RankingItem(Question("q", draw(whole).strip(), extra=extra), tuple(map(Candidate, answers)))
    kind = draw(st.sampled_from(["order", "none", "skip"]))
    return Entry(asked, () if kind == "skip" else order, "me", kind)


SPEAKERS = ("user", "assistant")


@pytest.mark.slow
@pytest.mark.parametrize("form", formats.FORMATS)
@given(said=st.lists(asked_behind(), min_size=1, max_size=3))
@roomy
def test_whoever_reads_an_export_finds_the_conversation_and_its_pairs(
    tmp_path: Path, form: formats.Format, said: list[Entry]
) -> None:
    """``klype rank --import`` and the trainer (``--preferences``, ``--data``), in every format that is written."""
    file = tmp_path / "out.jsonl"
    formats.export(file, said, form)
    ranked = [e.ranking() for e in said if e.kind != "skip"]
    wanted = {(str(r.question.messages()), *pair) for r in ranked for pair in formats.pairs(r)}
    back = [e.ranking() for e in formats.read(file) if e.kind != "skip"] if wanted else []
    assert {(str(r.question.messages()), *pair) for r in back for pair in formats.pairs(r)} == wanted
    trained = read_preferences([file]) if wanted else []
    assert {(str(r.question.messages()), *pair) for r in trained for pair in formats.pairs(r)} == wanted
    assert not wanted or form == "ranked" or find_data.kind(file) == "preferences"


def test_a_conversation_that_alpaca_cannot_hold_is_said(tmp_path: Path) -> None:
    before = [{"role": "assistant", "content": "Hei!"}]
    entry = Entry(
        RankingItem(Question("q", "Hva?", extra={"before": before}), (Candidate("a"), Candidate("b"))),
        ((0,), (1,)),
        "me",
    )
    with pytest.raises(UsageError, match=r"cannot hold the messages before .Hva"):
        formats.export(tmp_path / "out.jsonl", [entry], "alpaca")
    assert not (tmp_path / "out.jsonl").exists()


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("[1]", "is not a JSON object"),
        ("{", "is not a JSON object"),
        ('{"question": "?", "candidates": ["a", "b"], "order": [0, 0]}', "does not name each candidate once"),
        ('{"question": "?", "candidates": [], "order": []}', "not a list of texts"),
        ('{"question": "?", "candidates": ["a"], "order": [0], "kind": "odd"}', "not known"),
        ('{"question": "?", "candidates": ["a"], "order": [0], "sources": [{}, {}]}', "do not fit"),
        ('{"question": "?", "candidates": ["a"], "order": [0], "extra": {"before": [1]}}', "else than messages"),
        ('{"prompt": "?", "chosen": "a", "rejected": "a"}', "same text"),
        ('{"prompt": "?"}', "no two answers"),
    ],
)
def test_a_bad_row_is_named(tmp_path: Path, row: str, message: str) -> None:
    good = json.dumps(formats.ranked_row(simple(((0,), (1,), (2,)))))
    (tmp_path / "bad.jsonl").write_text(f"{good}\n{row}\n{good}\n")
    with pytest.raises(KlypeError, match=f"line 2 .*{message}"):
        formats.read(tmp_path / "bad.jsonl")


def test_a_torn_last_line_is_left_out_and_a_missing_file_is_named(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    formats.export(file, [simple(((0,), (1,), (2,)))] * 2, "ranked")
    file.write_bytes(file.read_bytes()[:-20])
    assert formats.read(file) == [simple(((0,), (1,), (2,)))]
    with pytest.raises(UsageError, match="cannot be read"):
        formats.read(tmp_path / "none.jsonl")
    with pytest.raises(UsageError, match="cannot be written"):
        formats.export(file / "x" / "y", [], "trl")


def test_a_conversation_of_several_turns_keeps_them(tmp_path: Path) -> None:
    turns = [{"from": "human", "value": "Hei"}, {"from": "gpt", "value": "Hei!"}, {"from": "human", "value": "Hvem?"}]
    row = {
        "conversations": turns,
        "chosen": {"from": "gpt", "value": "Per"},
        "rejected": {"from": "gpt", "value": "Nei"},
    }
    (tmp_path / "s.jsonl").write_text(json.dumps(row) + "\n")
    (found,) = formats.read(tmp_path / "s.jsonl")
    assert [m["content"] for m in found.asked.question.messages()] == ["Hei", "Hei!", "Hvem?"]
    assert "Assistant: Hei!" in found.asked.question.transcript
    assert found.ranking().candidates == ("Per", "Nei")
