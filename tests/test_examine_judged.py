"""Figures that rest on a judge say how often it errs, and hold the truth whichever way it erred."""

import json
from collections import Counter
from itertools import combinations
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from klype.data.readers import BadRows
from klype.examine.error_feedback import WordSwap
from klype.examine.estimators import WITHHELD
from klype.examine.evidence import Evidence, JudgedAnswer
from klype.examine.examined_model import ErrorRates
from klype.examine.measures import measure
from klype.examine.say import Say
from klype.judge.judge import UNMEASURED
from klype.judge.rule_judge import RuleJudge
from klype.model.config import ModelConfig
from klype.model.transformer import Transformer
from klype.runs.recipe import read
from klype.runs.run_options import RunOptions
from klype.runs.task import answer_settings, examine_model
from klype.runs.text_task import TextTask
from klype.values import Figure, Question
from tests.test_examine_measures import more_evidence


def errors(rate: float | None) -> ErrorRates:
    known = UNMEASURED if rate is None else Figure(rate, rate, rate, 100, "share of answers")
    return {"right": known, "same": known}


def answered(rights: list[bool | None], meanings: list[int] | None = None, asked: bool = True) -> list[JudgedAnswer]:
    """One question's answers, each in words of its own."""
    return [
        JudgedAnswer("q", (f"word{i}",), "stop", right=right, meaning=meanings[i] if meanings else i, asked=asked,
                 drawn_logp=-2.0 - i, entropy=2.0 + i, joules=1.0, tokens=2)
        for i, right in enumerate(rights)
    ]  # fmt: skip


@given(st.lists(st.tuples(st.booleans(), st.sampled_from(["right", "wrong", "undecided"])), min_size=1, max_size=30))
def test_however_the_judge_erred_the_bounds_hold_the_share_that_is_right(rows: list[tuple[bool, str]]) -> None:
    """The second says whether the judge was right about it, wrong, or left it undecided."""
    said = [None if how == "undecided" else right == (how == "right") for right, how in rows]
    decided = sum(one is not None for one in said)
    wrongly = sum(how == "wrong" for _, how in rows)
    found = measure(Evidence(answered(said), judge="a judge", errors=errors(wrongly / max(1, decided))))
    assert found["decided"].value == pytest.approx(decided / len(rows))
    assert found["undecided"].value == pytest.approx(1 - decided / len(rows))
    if decided:
        low, high = found["right"].bounds or (None, None)
        assert low is not None
        assert high is not None
        assert low - 1e-9 <= sum(right for right, _ in rows) / len(rows) <= high + 1e-9
        assert low <= (found["right"].value or 0.0) <= high


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=2, max_size=12))
def test_however_pairs_were_judged_the_bounds_hold_their_share(rows: list[tuple[int, int]]) -> None:
    """What each answer means, and what the judge says that it means."""
    pairs = list(combinations(rows, 2))
    same = sum(a == b for (a, _), (b, _) in pairs) / len(pairs)
    rate = sum((a == b) != (c == d) for (a, c), (b, d) in pairs) / len(pairs)
    evidence = Evidence(answered([None] * len(rows), [said for _, said in rows]), judge="a judge", errors=errors(rate))
    low, high = measure(evidence)["same_meaning"].bounds or (1.0, 0.0)
    assert (low or 0.0) - 1e-9 <= same <= (high or 0.0) + 1e-9


@given(st.lists(st.integers(0, 5), min_size=2, max_size=20))
def test_the_entropy_of_meanings_is_between_its_bounds(meanings: list[int]) -> None:
    """A judge that may err as often as it likes leaves what is certain: nothing, and the texts' own entropy."""
    unknown = measure(Evidence(answered([None] * len(meanings), meanings), judge="a judge", errors=errors(None)))
    assert unknown["meaning_entropy"].bounds == (0.0, unknown["answer_entropy"].value)
    exact = measure(Evidence(answered([None] * len(meanings), meanings), judge="a judge", errors=errors(0.0)))
    low, _ = exact["meaning_entropy"].bounds or (1e9, None)
    assert (low or 0.0) <= (exact["meaning_entropy"].value or 0.0) + 1e-9
    assert len(Counter(meanings)) > 1 or low == 0.0


def test_an_error_that_was_not_measured_leaves_the_undecided_and_says_so() -> None:
    rights = [True, True, False, None]
    found = measure(Evidence(answered(rights), judge="a judge", errors=errors(None)))["right"].json()
    assert found["bounds"] == {"low": 0.5, "high": 0.75}
    assert found["error_rate"] == {"value": None, "why": "the judge's error was not measured"}
    assert "not measured" in Say("en").judge_note(found)
    assert "ikke målt" in Say("nb").judge_note(found)


def test_what_has_no_reference_is_neither_decided_nor_undecided() -> None:
    answers = [*answered([True, None]), *answered([None] * 4, asked=False)]
    found = measure(Evidence(answers, judge="a judge", errors=errors(0.0)))
    assert found["decided"].value == 0.5
    assert found["right"].bounds == (0.5, 1.0)
    assert "decided" not in measure(Evidence(answered([None], asked=False), judge="a judge", errors=errors(0.0)))


def test_a_judge_that_errs_in_one_of_ten_or_more_bounds_or_withholds_every_figure() -> None:
    """Every measure that rests on it has its error rate, and bounds or no value; an exact one needs neither."""
    answers = answered([i % 3 > 0 for i in range(30)], [i % 2 for i in range(30)])
    rest = more_evidence() | {"replaced": [WordSwap("q", 0.5, 0.5, 0.25), WordSwap("r", 1.0, 0.5)]}
    found = measure(Evidence(answers, judge="a judge", errors=errors(0.11), **rest))
    judged = {name: figure.json() for name, figure in found.items() if figure.judge == "a judge"}
    assert judged.keys() >= {"right", "same_meaning", "meaning_entropy", "tree_entropy", "feedback_meaning", "fork",
                             "fork_word", "selective", "joules_per_right"}  # fmt: skip
    for name, figure in judged.items():
        if name not in ("decided", "undecided"):
            assert figure["error_rate"]["value"] == 0.11, name
            assert figure.get("bounds") or figure["why"] == WITHHELD, name
    assert Figure.of(judged["right"]).json() == judged["right"]
    exact = measure(Evidence(answers, judge="a judge", **rest))
    assert all(figure.error_rate is None and figure.bounds is None for figure in exact.values())
    assert exact["selective"].value is not None


@pytest.mark.parametrize(("lang", "range_"), [("en", "33%–93%"), ("nb", "33 %–93 %")])
def test_bounds_are_written_in_both_languages(lang: str, range_: str) -> None:
    error = Figure(0.04, 0.01, 0.2)
    figure = Figure(0.7, 0.6, 0.8, 40, "share", judge="a judge", error_rate=error, bounds=(0.33, 0.93))
    assert range_ in Say(lang).bounds_note(figure.json(), "right").replace("\u00a0", " ")  # type: ignore[arg-type]
    assert Say(lang).bounds_note(Figure(0.7, 0.6, 0.8).json(), "right") == ""  # type: ignore[arg-type]


def test_a_run_about_text_is_judged_by_the_same_rules(tmp_path: Path) -> None:
    """An answer in other words is right; the figures name the judge and its error in the language of the questions."""
    text, questions = tmp_path / "text.txt", tmp_path / "questions.jsonl"
    text.write_text("".join(f"Reven gikk over isen for {i}. gang.\n\n" for i in range(99)), encoding="utf-8")
    rows = [{"question": f"Er {i} et partall?", "answers": ["ja" if i % 2 == 0 else "nei"]} for i in range(80)]
    questions.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    options = RunOptions(text=(str(text),), instructions=questions, out=tmp_path / "run")
    task = TextTask(read("text", ("tokenizer.size=300", "model.width=16")), 0, options, BadRows())
    even = next(question for question in task.held_out if question.answers == ("ja",))
    assert [task.judge(even, said, True).right for said in ("Ja, det er det.", "Nei.", "ja")] == [True, False, True]
    config = ModelConfig(vocab_size=task.chat.tokenizer.vocab_size, width=16, layers=1, heads=2, hidden=16, window=128)
    found = examine_model(task, Transformer(config), task.held_out[:8], answer_settings(task, 0.7))
    assert found.target.errors == {ruling: RuleJudge().error_rate(ruling, "nb") for ruling in ("right", "same")}
    figures = measure(found.evidence[0.7])
    assert figures["decided"].n == len(task.held_out[:8])
    assert figures["decided"].judge == figures["undecided"].judge == RuleJudge.name
    assert all(figures[name].judge == "stated rules of form" for name in ("polite", "concise", "annotator"))


@pytest.mark.parametrize("file", ["facts", "meaning"])
def test_the_error_is_that_of_the_language_that_is_asked_in(file: str) -> None:
    """Languages that were not measured share little words with those that were."""
    rows = [json.loads(line) for line in Path(f"benchmarks/{file}.jsonl").read_text(encoding="utf-8").splitlines()]
    for lang in {row.get("lang", "en") for row in rows}:
        asked = [Question("", row["question"]) for row in rows if row.get("lang", "en") == lang]
        assert RuleJudge().errs("right", asked) == RuleJudge().error_rate("right", lang)
    both = [Question("", "What is the capital of France?"), Question("", "Hva er hovedstaden i Frankrike?")]
    assert RuleJudge().errs("right", both) == RuleJudge().error_rate("right", "en")  # whose upper end is higher
    others = """¿Cuál es la capital de Francia?
        Was ist die Hauptstadt von Frankreich?
        Vad heter Sveriges huvudstad?
        Quelle est la capitale de la France?
        Wat is de hoofdstad van Frankrijk?
        Qui a peint la Joconde?"""
    for text in others.splitlines():
        assert RuleJudge().errs("right", [Question("", text)]) == UNMEASURED
        assert RuleJudge().errs("same", [*both, Question("", text)]) == UNMEASURED
