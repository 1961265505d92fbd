"""Every sentence that rules on figures: said on one side of its condition and not on the other, in both languages."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from string import Formatter
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest

from benchmarks.cures_report import verdict as cures_verdict
from klype.answers.forks import ForkSettings, forks
from klype.answers.tree import TreeSettings
from klype.api.prompt_context import PromptContext
from klype.api.results import AnswerForks, AnswerTree
from klype.cli.ask_methods import decision_lines, sure_lines
from klype.cli.next_tree_forks import forks_chart, tree_chart
from klype.cli.rank import tell_habits
from klype.cli.terminal import Terminal
from klype.examine.answer_pictures import pictures as examination_pictures
from klype.examine.evidence import OTHER_MANNERS
from klype.examine.examination_report import verdict as examination_verdict
from klype.examine.hypothesis_tests import Outcome, rulings
from klype.examine.intervals import mean_change
from klype.examine.run_report import energy, gate_row, too_few
from klype.examine.say import Say
from klype.examine.training_pictures import pictures
from klype.examine.verdict import verdict
from klype.experiments.article import sentences
from klype.experiments.bias import BestCure, BiasBoard, BiasRow
from klype.experiments.bias import verdict as bias_verdict
from klype.experiments.claims import of_figures
from klype.experiments.mistakes import MistakesBoard, MistakesRow, halves
from klype.experiments.mistakes import verdict as mistakes_verdict
from klype.preferences.records import Candidate, Entry, RankingItem
from klype.runs.align_stage import Evaluation
from klype.runs.gates import reason_not_to_align
from klype.runs.gates import verdict as alignment_verdict
from klype.runs.rankers import summary
from klype.studio.answer_paths import decision, flow_title
from klype.studio.answer_paths_search import FoundPaths, MeaningShare
from klype.studio.ranking import habits
from klype.studio.studio import AnswerBranch
from klype.studio.tokens import bars_of, why_chosen
from klype.values import Distribution, Figure, Question, Request, Sampling, Step, Trace
from klype.words import LANGUAGES, words
from tests.report_facts import dictionary_facts, gate, text_facts, world_facts
from tests.test_examine_article import made
from tests.test_runs_gates import run_of
from tests.test_words_catalogue import catalogues
from tests.toy_sources import grow_one, table_source

Told = Callable[[str], str]
"""What is said in a language, a sentence or paragraph a line."""
GONE = object()


@dataclass(frozen=True, slots=True)
class Sentence:
    """``condition`` holds for the figures of ``there`` and not for those of ``here``: ``key`` is said there alone,
    and ``instead`` here ("": nothing is)."""

    catalogue: str
    condition: str
    key: str
    there: Told
    instead: str
    here: Told


def f(low: float, high: float, n: int = 100, unit: str = "share") -> dict[str, Any]:
    """A figure by its interval."""
    return {"value": (low + high) / 2, "low": low, "high": high, "n": n, "unit": unit}


def put(document: Any, changes: dict[str, Any]) -> Any:
    """The document with values at dotted places, or without them (``GONE``)."""
    for place, value in changes.items():
        *way, last = place.split(".")
        at = document
        for part in way:
            at = at[int(part) if isinstance(at, list) else part]
        if value is GONE:
            at.pop(last, None)
        else:
            at[last] = value
    return document


def report(facts: Callable[[], Any], changes: dict[str, Any] | None = None) -> Told:
    """A run's verdict and the titles of its pictures."""

    def told(lang: str) -> str:
        say, known = Say(lang), put(facts(), changes or {})
        shown = pictures(known, say).values()
        joules = [energy(cost, say) for cost in known.get("cost", {}).values()]
        text = [text for picture in shown for text in (picture.title, picture.how)]
        return "\n".join([*verdict(known, say), *text, too_few(known, say), *joules])

    return told


def at_distance(low: float, high: float) -> dict[str, Any]:
    return {**f(low, high), "distance": 1}


def forced(low: float, high: float, **more: Any) -> dict[str, Any]:
    pairs = {"matched": 120, "dropped": 900, "ratio": [0.5, 1.2, 2.5]}
    return {"pairs": pairs, "cautious": [at_distance(low, high)], "difference": [at_distance(0.3, 0.4)], "further": {},
            **more}  # fmt: skip


NONE_KNOWN = {"value": None, "why": "too few", "distance": 1}
BRANCH = {"text": "", "mass": 0.9, "meaning": "a", "children": []}
GROWN = {"question": "?", "answers": [{"text": "a", "low": 0.9, "high": 1.0}], "unexplored": 0.1, "branches": BRANCH}


def exam(figures: dict[str, Any] | None = None, **more: Any) -> Told:
    """An examination's verdict and the titles of its pictures."""

    def told(lang: str) -> str:
        document = {
            "main": "0.7", "questions": 100, "judge": "same meaning", "model": "m", "figures": {"0.7": figures or {}},
            "after_error": {}, "survival": {}, "calibration": {}, "selective": {}, "trees": [], **more,
        }  # fmt: skip
        say = Say(lang)
        shown = examination_pictures(document, say).values()
        return "\n".join([*examination_verdict(document, say), *(picture.title for picture in shown)])

    return told


def curves(difference: tuple[float, float] | None = (-0.1, 0.1)) -> dict[str, Any]:
    """K and what it is compared with, by their difference's interval; None: S is not known."""
    row = [{**f(0.7, 0.8), "t": 1}]
    names = ("survival", "would_survive", "by_position")
    found = {name: {"0.7": [] if name == "by_position" and difference is None else row} for name in names}
    return {**found, "difference": {"0.7": [] if difference is None else [{**f(*difference), "t": 1}]}}


def article(
    changes: dict[str, Any] | None = None, tests: dict[str, Outcome] | None = None, **main: dict[str, Any]
) -> Told:
    """What is said to all claims; rulings by the tests that figures allow, and by those given."""

    def told(lang: str) -> str:
        found = put({**made(**main), "judge": "same meaning"}, changes or {})
        known = {name: test for name, test in of_figures(found).items() if test is not None} | (tests or {})
        found["rulings"] = rulings(known)
        found["tests"] = {name: asdict(test) for name, test in known.items()}
        return "\n".join(row[2] for row in sentences(found, lang))

    return told


def p(supports: float, against: float) -> Outcome:
    return Outcome("t", 2.0, 100, supports, against, 2.0)


def ruled(name: str, sentence: str, changes: dict[str, Any], **main: dict[str, Any]) -> list[Sentence]:
    """A claim that a test rules: Holm's first step is half of 5 % where it is the only one."""
    for_it, against, open_ = (article(changes, {name: p(*ps)}, **main) for ps in
                              ((0.0249, 0.97), (0.97, 0.0249), (0.0251, 0.97)))  # fmt: skip
    other = article(changes, {name: p(0.97, 0.0251)}, **main)
    return [
        Sentence("article", "p that it does not hold ≤ 2.5 %", f"{sentence}.supports", for_it,
                 f"{sentence}.undetermined", open_),
        Sentence("article", "p that it holds ≤ 2.5 %", f"{sentence}.does_not_support", against,
                 f"{sentence}.undetermined", other),
    ]  # fmt: skip


CURVE = {"of": "documents", "texts": 1000, "n": 41, "stretches": [0.01, 0.02, 0.01, 0.01],
         **{name: f(0.6, 0.8) for name in ("k", "reference", "difference", "shape")}}  # fmt: skip
AFTER = {
    "pairs": {"matched": 120, "dropped": 900, "ratio": [0.5, 1.2, 2.5], "ratio_by_rule": 1500.0},
    "cautious": [f(0.1, 0.2), f(0.1, 0.2)], "difference": [f(0.3, 0.4)], "moved": [f(0.3, 0.4)],
}  # fmt: skip


def beside(cold: tuple[float, float], loops: tuple[float, float]) -> Told:
    figures = {"right": f(*cold), "repetition": f(*loops)}
    return article({"figures.0": figures}, right=f(0.49, 0.51), repetition=f(0.49, 0.51))


def cures(low: float, high: float, **best: Any) -> Told:
    """One task's verdict; the gain of what did best on the questions for choosing."""

    def told(lang: str) -> str:
        found = {"decoder": "search", "right": f(0.4, 0.6), "gain": f(low, high), "passes": 3.0, "work": 4.0, **best}
        part = {"rows": [{"right": f(0.4, 0.5)}], "test": 60, "best": found}
        return "\n".join(cures_verdict(part, Say(lang), words(lang, "cures")))

    return told


def mistakes(
    source: str = "world", control: tuple[float, float] = (0.1, 0.2), cure: dict[str, Any] | None = None, **more: Any
) -> Told:
    def told(lang: str) -> str:
        feedback = {"feedback": f(*control), "bits_per_byte": f(2.0, 2.1)}
        methods = {
            "before": {"kind": "before", "figures": {"feedback": f(0.1, 0.2)}},
            "documents": {"kind": "control", "figures": feedback},
            "own-truth": {"kind": "cure", "figures": cure or {}},
            **more,
        }
        rows = [
            MistakesRow(arm=name, documents=300, seeds=5, seconds=1.0, figures=row["figures"])
            for name, row in methods.items()
        ]
        kinds = {name: row["kind"] for name, row in methods.items()}
        halved = [row.arm for row in rows if halves(kinds[row.arm], row.figures)]
        board = MistakesBoard(source=source, documents=(300,), seeds=5, kinds=kinds, steps=9, rows=rows, halved=halved)
        return "\n".join(mistakes_verdict(board, Say(lang), words(lang, "mistakes")))

    return told


def left(ratio: float, by_question: float) -> dict[str, Any]:
    return {"ratio": f(0.1, ratio), "ratio_by_question": f(0.1, by_question), "kl_change": f(-0.01, 0.01)}


def bits(change: float) -> Told:
    return mistakes("text", cure={"bits_per_byte": f(1.9, 2.0), "bits_change": f(-0.2, change)})


BACK = {"kind": "cure", "figures": {name: f(0.1, 0.2) for name in ("standing", "alarm", "passes")}}
KINDS = {"one-hot": "baseline", "kneser-ney": "cure", "best-of-five": "baseline", "steady": "cure", "oracle": "truth",
         "oracle-steady": "truth"}  # fmt: skip


def bias(
    names: Sequence[str] = (), gap: tuple[float, float] | None = None, within: float | None = None, text: float = 0.0
) -> Told:
    """World: rows of these targets, and a best one; text: the cure's interval ends there, one-hot's begins at 2."""

    def told(lang: str) -> str:
        known = {"kl": f(0.4, 0.5), "compute": f(2.0, 2.0)}
        ends = {"one-hot": (2.0, 2.1), "kneser-ney": (1.8, text)}
        rows = [
            BiasRow(arm=name, documents=300, seeds=5, turned=0,
                figures={"bits_per_byte": f(*ends[name])} if text else known)  # type: ignore[dict-item]
            for name in (ends if text else {*names, "kneser-ney"})
        ]  # fmt: skip
        best = [] if gap is None else [BestCure(target="kneser-ney", within=within, gap=f(*gap))]  # type: ignore[arg-type]
        source: Any = "text" if text else "world"
        board = BiasBoard(
            source=source, documents=(300,), seeds=5, kinds=KINDS, steps=9, epochs=9, rows=rows, best=best
        )
        return "\n".join(bias_verdict(board, Say(lang), words(lang, "bias")))

    return told


def seen(step: int, truth: float, reward: float, spread: float = 0.1) -> Evaluation:
    values = tuple(truth + spread * (((1 + step) * i) % 7 - 3) for i in range(60))
    return Evaluation(step, values, reward, 0.5, 8.0, 1.0, 0.0)


START = seen(0, 0.5, 0.0)


def alignment(
    low: float | None = -0.1,
    high: float = 0.1,
    looks: Sequence[Evaluation] = (),
    stopped: bool = False,
    known: tuple[dict[str, Any], dict[str, Any]] = ({}, {}),
) -> Told:
    gain = {"value": None} if low is None else f(low, high)
    before, after = ({"retrieval_text": figure} if figure else {} for figure in known)
    document = {"gain": {"score": gain}, "before": before, "after": after}
    high = mean_change(looks[0].truth, looks[-1].truth, range(60)).high if looks else None
    return lambda lang: alignment_verdict(document, looks, stopped, high is not None and high < 0, lang)


def refused(low: float, high: float, people: bool) -> Told:
    """Why alignment does not start."""

    def told(lang: str) -> str:
        ceiling = {"value": None, "why": "nobody knows"} if people else f(0.9, 0.95)
        with TemporaryDirectory() as folder:
            why = reason_not_to_align(run_of(Path(folder), {"pair_accuracy": f(low, high), "ceiling": ceiling}))
        return "" if why is None else why[lang]

    return told


def printed(lang: str, show: Callable[[Terminal], None]) -> str:
    terminal = Terminal(lang=lang)
    with terminal.console.capture() as caught:
        show(terminal)
    return " ".join(caught.get().split())


SOURCE, CODEC = table_source(np.array([[1.0, 0, 0], [0.6, 0, 0.4], [1.0, 0, 0]]))
"""After a: an end, or b and an end."""


def tree(until: Any, eps: float, budget: int, limit: int = 8) -> Told:
    def told(lang: str) -> str:
        settings = TreeSettings(limit=limit, until=until, eps=eps, budget=budget, batch=1, widest=1)
        found = AnswerTree(grow_one(SOURCE, (1,), settings, CODEC.token_bytes), "same meaning")
        ask = PromptContext(SOURCE, (1,), Question("q", "?"), str, "same meaning", None)
        return printed(lang, lambda terminal: tree_chart(terminal, words(lang, "examination"), found, ask, 9))

    return told


def forked(decides: bool) -> Any:
    """The forks of an answer whose first word decides what it means, or whose meaning is always the same."""
    table = np.array([[1.0, 0, 0, 0], [0, 0, 0.5, 0.5], [1.0, 0, 0, 0], [1.0, 0, 0, 0]])
    source, _ = table_source(table)
    (event,) = [e for e in source.generate([Request((1,), 1, 4, stop=(0,))]) if e.trace is not None]
    assert event.trace is not None
    return forks(source, event.trace, ForkSettings(limit=4), (lambda text: text) if decides else lambda text: "same")


def fork_lines(decides: bool) -> Told:
    def told(lang: str) -> str:
        found = forked(decides)
        texts = tuple("." for _ in found.positions)
        answer = AnswerForks(found, texts, tuple("." for _ in found.others), "same meaning")
        return printed(lang, lambda terminal: forks_chart(terminal, words(lang, "examination"), answer))

    return told


@pytest.mark.parametrize(("lang", "end"), [("en", "(end)"), ("nb", "(slutt)")])
def test_the_token_that_ends_an_answer_is_named_as_in_the_tree(lang: str, end: str) -> None:
    found = forked(True)
    texts = tuple(f"<|{p.token}|>" for p in found.positions)
    answer = AnswerForks(found, texts, tuple(f"<|{o.token}|>" for o in found.others), "same meaning")
    shown = printed(lang, lambda terminal: forks_chart(terminal, words(lang, "examination"), answer, (0,)))
    assert end in shown
    assert "<|0|>" not in shown


def sure(why: str = "", same: int = 20, errs: dict[str, Any] | None = None) -> Told:
    found = {
        "p": 0.5, "p_learnt": 0.4, "temperature": 1.0, "same": {**f(0.4, 0.8, 32), "value": same / 32,
        "judge": "content of the answering sentence"}, "why": why,
        "decided": {"token": "b", "index": 1, "before": 0.2, "after": 0.9},
    }  # fmt: skip
    if why:
        found["decided"] = None
    found["same"] |= errs or {}  # type: ignore[operator]
    return lambda lang: " ".join(sure_lines(found, lang))


def decided(changed: bool) -> Told:
    numbers = {"passes": 8, "plain_passes": 2, "times": 4.0, "positions": 9, "plain_positions": 3}
    found = {"name": "consensus", "shares": [], "changed": changed, "plain": "b", **numbers}
    return lambda lang: " ".join(decision_lines(found, lang))


def paths(*drawn: int) -> FoundPaths:
    """So many answers were drawn of each meaning; of one with none the tree knows."""
    meant = tuple(
        MeaningShare(name, name, name, count, Figure(count / 10, 0.0, 1.0), 0.1, 0.9, None)
        for name, count in zip("abc", drawn, strict=False)
    )
    trace = Trace((1,), (), Sampling(), 0, 0, "m", "stop", 1, 0.0)
    grown = grow_one(SOURCE, (1,), TreeSettings(), CODEC.token_bytes)
    asked = PromptContext(SOURCE, (1,), Question("q", "?"), lambda text: text[:1], "normalised match", None)
    return FoundPaths(asked, (trace,) * sum(drawn), grown, meant, trace, CODEC.decode)


def flowing(*drawn: int) -> Told:
    return lambda lang: flow_title(paths(*drawn), words(lang, "studio_paths"), Say(lang))


def deciding(drawn: Sequence[int], found: Any = None) -> Told:
    return lambda lang: decision(paths(*drawn), found, "b", words(lang, "studio_paths"), Say(lang))


def chosen(how: Any = "drawn", temperature: float = 1.0, rest: float = 0.0) -> Told:
    def told(lang: str) -> str:
        distribution = Distribution(np.array([1, 0]), np.log(np.array([0.6, 0.4 - rest])), rest)
        step = Step(1, float(np.log(0.6)), float(np.log(0.6)), how, distribution)
        answer = AnswerBranch(0, (1,), Sampling(temperature=temperature), 0, steps=[step])
        found = bars_of(step, ((), ()), answer.sampling, 3)
        assert found is not None
        return why_chosen(answer, 0, found, words(lang, "studio_answer"), Say(lang))

    return told


def first_on_top(times: int, of: int) -> list[dict[str, Any]]:
    """What a summary says of somebody who put the first of four on top so many times."""
    asked = RankingItem(Question("q", "?"), tuple(Candidate(text) for text in "abcd"))
    orders: list[Any] = [((0,), (1, 2, 3))] * times + [((1,), (0, 2, 3))] * (of - times)
    found: list[dict[str, Any]] = summary([Entry(asked, order, "me") for order in orders])["annotators"]
    return found


def ranked_first(times: int, of: int) -> Told:
    return lambda lang: "\n".join(habits(first_on_top(times, of), words(lang, "studio_ranking"), Say(lang)))


def habit_told(times: int, of: int) -> Told:
    return lambda lang: printed(lang, lambda terminal: tell_habits(terminal, first_on_top(times, of)))


def gains(name: str, low: float, high: float) -> Told:
    return report(world_facts, {"gains": {name: f(low, high)}})


def apart(name: str, before: dict[str, Any], after: dict[str, Any]) -> Told:
    return report(world_facts, {f"stages.finetuned.{name}": before, f"stages.aligned.{name}": after})


def judged(*statuses: tuple[float, float]) -> Told:
    return report(world_facts, {"gates": [gate("s", value, threshold) for value, threshold in statuses]})


def base_bits(low: float, high: float) -> Told:
    return report(text_facts, {"stages.base.bits_per_byte": f(low, high)})


def newest_bits(low: float, high: float) -> Told:
    return report(text_facts, {"stages.finetuned.bits_per_byte": f(low, high)})


def form(low: float, high: float) -> Told:
    return report(dictionary_facts, {"stages.finetuned.well_formed": f(low, high)})


def meaning(side: str, low: float, high: float) -> Told:
    return report(dictionary_facts, {f"dictionary.0.{side}.right": f(low, high)})


def copied(low: float, high: float) -> Told:
    return report(dictionary_facts, {"copied.free": f(low, high), "copied.held_out": f(0.05, 0.15)})


def result(value: float) -> Told:
    return lambda lang: gate_row(gate("s", value, 0.93), Say(lang))[3].text


def spent(figures: dict[str, Any], **more: Any) -> Told:
    return report(world_facts, {"cost": {"aligned": {"parameters": 9, "figures": figures, **more}}})


def apart_by_position(low: float, high: float) -> Told:
    return report(world_facts, {"survival.0.difference": [{**f(low, high), "t": t} for t in range(1, 21)]})


WORLD, TEXT, WORDS = report(world_facts), report(text_facts), report(dictionary_facts)
NO_ALIGNED = {"stages.aligned": None}
NO_CHAT = {**NO_ALIGNED, "stages.finetuned": None}
NO_MODEL = {**NO_CHAT, "stages.base": None}
UNKNOWN_SIZE = {"provenance.model": GONE}
NOWHERE_RIGHT = {f"stages.{stage}.right": GONE for stage in ("base", "finetuned", "aligned")}
NO_KL = {f"stages.{stage}.kl": GONE for stage in ("base", "finetuned", "aligned")}
PLAIN_NEXT = {f"next.{i}.tokens": [{"token": " a", "p": 0.5}] for i in range(2)}
CALM = {"gains": {"polite": f(-0.001, 0.03)}}
UNSEEN_SURVIVAL = {"survival.0.k": [{"value": None, "why": "too few", "t": t} for t in range(1, 21)]}
NO_RIGHT_HOT = {f"temperatures.rows.{i}.figures.right": GONE for i in range(5)}
LESS_HOT = {"temperatures.rows.4.figures.right": f(0.9, 0.97)}


def told_and_true(said: float, low: float, high: float) -> Told:
    """Of a run whose last model said ``said``, and it came true so often."""
    return report(world_facts, {"calibration.1.bins": [{"p": said, "observed": f(low, high)}]})


def said_of_runs(*rows: tuple[str, str, Told, str, Told]) -> list[Sentence]:
    return [Sentence("report", *row) for row in rows]


MADE = said_of_runs(
    ("there is an aligned model", "verdict.made_3", WORLD, "verdict.made_2", report(world_facts, NO_ALIGNED)),
    ("there is a fine-tuned model", "verdict.made_2_plain", report(world_facts, {**NO_ALIGNED, **UNKNOWN_SIZE}),
     "verdict.made_1_plain", report(world_facts, {**NO_CHAT, **UNKNOWN_SIZE})),
    ("there is a model", "verdict.made_1", report(world_facts, NO_CHAT), "verdict.made_none",
     report(world_facts, NO_MODEL)),
    ("its size is not known", "verdict.made_3_plain", report(world_facts, UNKNOWN_SIZE), "verdict.made_3", WORLD),
    ("stories and facts are told apart", "verdict.right_stories", WORLD, "verdict.right",
     report(world_facts, {"stages.aligned.right_fixed": GONE})),
    ("some could not be decided", "verdict.decided",
     report(world_facts, {"stages.aligned.right_fixed": GONE, "stages.aligned.decided": f(0.9, 0.95)}),
     "verdict.right", report(world_facts, {"stages.aligned.right_fixed": GONE})),
    ("a dictionary's words were asked", "verdict.words", WORDS, "",
     report(dictionary_facts, {"stages.finetuned.right_trained": GONE})),
    ("alignment was refused", "verdict.missing", TEXT, "", report(text_facts, {"missing": GONE})),
)  # fmt: skip
ALIGNED = said_of_runs(
    ("the paired gain is above 0", "verdict.right_up", gains("right", 0.001, 0.03), "verdict.right_open",
     gains("right", -0.001, 0.03)),
    ("the paired gain is below 0", "verdict.right_down", gains("right", -0.03, -0.001), "verdict.right_open",
     gains("right", -0.03, 0.001)),
    ("without pairs: the intervals do not overlap", "verdict.right_down", apart("right", f(0.9, 0.95), f(0.85, 0.89)),
     "verdict.right_open", apart("right", f(0.9, 0.95), f(0.85, 0.91))),
    ("the paired gain is above 0", "verdict.polite_up", gains("polite", 0.001, 0.03), "verdict.polite_open",
     gains("polite", -0.001, 0.03)),
    ("the paired gain is below 0", "verdict.polite_down", gains("polite", -0.03, -0.001), "verdict.polite_open",
     gains("polite", -0.03, 0.001)),
    ("the paired gain is below 0", "verdict.score_down", gains("annotator", -0.3, -0.01), "",
     gains("annotator", -0.3, 0.01)),
    ("the annotator's own agreement is known", "verdict.reward", WORLD, "verdict.reward_alone",
     report(world_facts, {"reward.ceiling": {"value": None}})),
    ("the intervals do not overlap", "verdict.hot", WORLD, "", report(world_facts, LESS_HOT)),
    ("what it gave much came true less often, by more than twice the half-width", "verdict.overconfident",
     told_and_true(0.5, 0.44, 0.47), "", told_and_true(0.5, 0.44, 0.51)),
    ("what it gave little came true more often, by more than twice the half-width", "verdict.underconfident",
     told_and_true(0.4, 0.44, 0.47), "", told_and_true(0.44, 0.44, 0.5)),
    ("all passed", "verdict.gates_all", judged((0.95, 0.93)), "verdict.gates_within",
     judged((0.95, 0.93), (0.94, 0.93))),
    ("one is missed", "verdict.gates_some", judged((0.95, 0.93), (0.9, 0.93)), "verdict.gates_within",
     judged((0.95, 0.93), (0.92, 0.93))),
)  # fmt: skip
LANGUAGE = said_of_runs(
    ("S and KL were measured", "verdict.truth", WORLD, "", report(world_facts, NO_KL)),
    ("the base model was measured", "verdict.text_base", TEXT, "verdict.text",
     report(text_facts, {"stages.base.bits_per_byte": GONE})),
    ("the truth is known", "verdict.small_world", WORLD, "caution.use", TEXT),
    ("nothing of its language was measured", "verdict.small_text", report(text_facts, {"text": GONE}), "caution.use",
     TEXT),
    ("all of the interval is below 1.71", "caution.language", base_bits(1.6, 1.709), "caution.language_open",
     base_bits(1.6, 1.711)),
    ("all of the interval is above 1.71", "caution.no_language", base_bits(1.711, 1.8), "caution.language_open",
     base_bits(1.709, 1.8)),
    ("all of the interval is above .8", "caution.form_good", form(0.801, 0.9), "caution.form_fair", form(0.799, 0.9)),
    ("all of the interval is above .5", "caution.form_fair", form(0.501, 0.9), "caution.form_open", form(0.499, 0.9)),
    ("all of the interval is below .5", "caution.form_poor", form(0.1, 0.499), "caution.form_open", form(0.1, 0.501)),
    ("classes of new words were asked", "caution.class", WORDS, "",
     report(dictionary_facts, {"dictionary.1.held_out": GONE})),
    ("all of the interval is below .5", "caution.new_meaning", meaning("held_out", 0.1, 0.499),
     "caution.new_meaning_some", meaning("held_out", 0.1, 0.501)),
    ("all of the interval is above .5", "caution.remembers_most", meaning("trained", 0.501, 0.6),
     "caution.remembers_some", meaning("trained", 0.499, 0.6)),
    ("all of the interval is below .1", "caution.remembers_few", meaning("trained", 0.01, 0.099),
     "caution.remembers_some", meaning("trained", 0.01, 0.101)),
    ("all of the interval is above the other", "caution.copies", copied(0.151, 0.2), "caution.copies_open",
     copied(0.149, 0.2)),
    ("all of the interval is below the other", "caution.copies_less", copied(0.01, 0.049), "caution.copies_open",
     copied(0.01, 0.051)),
)  # fmt: skip
TITLES = said_of_runs(
    ("two losses are known", "picture.curves", WORLD, "picture.curves_plain",
     report(world_facts, {"curves.0.series.loss": [1.0] + [None] * 599})),
    ("the paired gain is above 0", "picture.stages_aligned", gains("polite", 0.001, 0.03), "picture.stages_last",
     report(world_facts, CALM)),
    ("answers were judged", "picture.stages_last", report(world_facts, CALM), "picture.stages",
     report(world_facts, NOWHERE_RIGHT)),
    ("the annotator's own agreement is known", "picture.reward", WORLD, "picture.reward_alone",
     report(world_facts, {"reward.ceiling": {"value": None}})),
    ("S and KL were measured", "picture.truth", WORLD, "", report(world_facts, NO_KL)),
    ("the truth is known", "picture.next_truth", WORLD, "picture.next", report(world_facts, PLAIN_NEXT)),
    ("answers were judged at two temperatures", "picture.temperatures_right", WORLD, "picture.temperatures",
     report(world_facts, NO_RIGHT_HOT)),
    ("words and repetition were counted", "picture.temperatures_text", WORDS, "picture.temperatures",
     report(dictionary_facts, {"temperatures.rows.0.figures.real_words": GONE})),
    ("K is known at one word", "picture.survival_more", WORLD, "picture.few_survival",
     report(world_facts, UNSEEN_SURVIVAL)),
    ("all of K's difference is above 0", "picture.survival_more", apart_by_position(0.001, 0.1),
     "picture.survival_open", apart_by_position(-0.001, 0.1)),
    ("all of K's difference is below 0", "picture.survival_less", apart_by_position(-0.1, -0.001),
     "picture.survival_open", apart_by_position(-0.1, 0.001)),
    ("an earlier version's run knows no hazard by position", "picture.survival_alone",
     report(world_facts, {"survival.0.by_position": GONE, "survival.0.difference": GONE}), "picture.survival_more",
     WORLD),
    ("calibration was measured", "picture.calibration", WORLD, "", report(world_facts, {"calibration": []})),
    ("all of the interval is below 1.71", "picture.text_below", newest_bits(1.6, 1.709), "picture.text_open",
     newest_bits(1.6, 1.711)),
    ("all of the interval is above 1.71", "picture.text_above", newest_bits(1.711, 1.8), "picture.text_open",
     newest_bits(1.709, 1.8)),
    ("both shares were measured", "picture.dictionary", WORDS, "",
     report(dictionary_facts, {"stages.finetuned.right_trained": GONE})),
    ("copying was measured", "picture.copied", WORDS, "", report(dictionary_facts, {"copied": GONE})),
)  # fmt: skip
REST = said_of_runs(
    ("the near end is beyond the threshold", "gates.passed", result(0.95), "gates.within",
     result(0.94)),
    ("the far end is short of the threshold", "gates.missed", result(0.9), "gates.within",
     result(0.92)),
    ("something had fewer than thirty cases", "gates.too_few",
     report(world_facts, {"too_few": [{"name": "polite", "n": 29}]}), "", WORLD),
    ("the last model is another than the one shown", "how.calibration_finetuned",
     report(world_facts, {"calibration.0.stage": "finetuned"}), "",
     report(world_facts, {**NO_ALIGNED, "calibration.0.stage": "finetuned"})),
    ("the annotator's own agreement is known", "how.reward_self", WORLD, "",
     report(world_facts, {"reward.ceiling": {"value": None}})),
    ("the annotator's own agreement is known", "how.reward_line", report(world_facts, {"reward.threshold": 0.86}),
     "how.reward_line_people", report(world_facts, {"reward.ceiling": {"value": None}, "reward.threshold": 0.5})),
    ("energy was read from the processor", "cost.measured", spent({"joules": f(1.0, 2.0)}), "", spent({})),
    ("energy was estimated from watts", "cost.watts", spent({"joules": f(1.0, 2.0)}, watts=10.0), "cost.measured",
     spent({"joules": f(1.0, 2.0)})),
    ("energy was estimated from operations", "cost.estimated", spent({"joules": f(1.0, 2.0)}, joules_estimated=True),
     "cost.measured", spent({"joules": f(1.0, 2.0)})),
)  # fmt: skip
LINE = [{"kept": 0.5, "wrong": 0.1}, {"kept": 1.0, "wrong": 0.2}]


ERRS = {"judge": "a judge", "error_rate": f(0.02, 0.2), "bounds": {"low": 0.4, "high": 0.9}}
NOT_KNOWN = {"error_rate": {"value": None, "why": "the judge's error was not measured"}}


def measured(name: str, key: str) -> Sentence:
    figures = {name: f(0.1, 0.6)} | ({"fork": f(0.1, 0.2)} if name == "fork_word" else {})
    return Sentence("report", f"{name} was measured", f"exam.{key}", exam(figures), "", exam())


EXAMINED = [
    *(measured(name, key) for name, key in (("right", "right"), ("word_for_word", "word_for_word"),
      ("same_meaning", "same"), ("fork", "forks"), ("fork_word", "fork_word"), ("s", "s"),
      ("best_temperature", "best"))),
    *said_of_runs(
        ("some could not be decided", "exam.decided", exam({"right": f(0.7, 0.8), "decided": f(0.9, 0.95)}),
         "exam.right", exam({"right": f(0.7, 0.8)})),
        ("the judge can err", "exam.right_bounds", exam({"right": f(0.7, 0.8) | ERRS}), "",
         exam({"right": f(0.7, 0.8)})),
        ("its error was measured", "exam.right_bounds", exam({"right": f(0.7, 0.8) | ERRS}),
         "exam.right_unmeasured", exam({"right": f(0.7, 0.8) | ERRS | NOT_KNOWN})),
        ("its error was measured", "exam.same_meaning_bounds", exam({"same_meaning": f(0.7, 0.8) | ERRS}),
         "exam.same_meaning_unmeasured", exam({"same_meaning": f(0.7, 0.8) | ERRS | NOT_KNOWN})),
        ("a server does not go on from a beginning", "exam.no_beginnings", exam(goes_on=False), "", exam()),
        ("questions were left out", "exam.skipped", exam(skipped=3), "", exam()),
        ("there was one question", "exam.asked_one", exam(questions=1), "", exam()),
        ("a figure has no interval", "exam.without",
         exam({"right": {**f(0.8, 0.8), "low": None, "why": "too few errors"}}), "", exam({"right": f(0.8, 0.9)})),
        ("its manners are others than the truth's", "exam.other_manners",
         exam({"calibration": {"value": None, "why": OTHER_MANNERS}}), "", exam({"calibration": f(0.1, 0.2)})),
        ("all of the interval is above 0", "exam.rare", exam(after_error={"0.7": forced(0.001, 0.2)}),
         "exam.rare_open", exam(after_error={"0.7": forced(-0.001, 0.2)})),
        ("all of the interval is below 0", "exam.rare_less", exam(after_error={"0.7": forced(-0.2, -0.001)}),
         "exam.rare_open", exam(after_error={"0.7": forced(-0.2, 0.001)})),
        ("there are enough pairs", "exam.rare", exam(after_error={"0.7": forced(0.1, 0.2)}), "exam.rare_few",
         exam(after_error={"0.7": forced(0, 0, cautious=[NONE_KNOWN])})),
        ("there are enough pairs", "exam.feedback_cautious", exam(after_error={"0.7": forced(0.1, 0.2)}),
         "exam.feedback_difference", exam(after_error={"0.7": forced(0, 0, cautious=[NONE_KNOWN])})),
        ("further errors were counted", "exam.further",
         exam(after_error={"0.7": forced(0.1, 0.2, further={name: f(1.0, 2.0, unit="errors") for name in
              ("wrong_edits", "near_edits", "wrong_errors", "near_errors")})}), "",
         exam(after_error={"0.7": forced(0.1, 0.2)})),
        ("all of K's difference is above 0", "picture.survival_more", exam(**curves((0.001, 0.1))),
         "picture.survival_open", exam(**curves((-0.001, 0.1)))),
        ("all of K's difference is below 0", "picture.survival_less", exam(**curves((-0.1, -0.001))),
         "picture.survival_open", exam(**curves((-0.1, 0.001)))),
        ("each position's own hazard is not known", "picture.survival_alone", exam(**curves(None)),
         "picture.survival_open", exam(**curves())),
        ("some are right and some wrong", "exam.selective",
         exam({"selective": f(0.1, 0.2)}, selective={"0.7": LINE}), "", exam()),
        ("a tree was grown", "exam.tree", exam(trees=[GROWN]), "", exam()),
        ("an answer ended within the limit", "exam.flow", exam(trees=[GROWN]), "",
         exam(trees=[{**GROWN, "answers": []}])),
        ("an answer is right", "exam.cost", exam({"flops": f(1e6, 2e6, unit="FLOPs"), "right": f(0.1, 0.2)}), "",
         exam({"flops": f(1e6, 2e6, unit="FLOPs"), "right": f(0.0, 0.0)})),
    ),
]  # fmt: skip


def claim(*rows: tuple[str, str, Told, str, Told]) -> list[Sentence]:
    return [Sentence("article", *row) for row in rows]


GAIN = {"right": f(0.8, 0.9), "word_for_word": f(0.4, 0.5)}
ARTICLE = [
    *ruled("constant", "constant", {"dependence": CURVE}),
    *ruled("independent", "independent", {"dependence": CURVE}),
    *ruled("feedback", "feedback", {"after_error": {"0.7": AFTER}}),
    *ruled("grows", "grows", {"after_error": {"0.7": AFTER}, "extra.growth": f(0.01, 0.02)}),
    *ruled("direction", "direction", {"after_error": {"0.7": AFTER}, "extra.parted": f(0.1, 0.2)}),
    *claim(
        ("one was not the likeliest", "not_likeliest.supports", article({"extra.not_likeliest": f(0.001, 0.02)}),
         "not_likeliest.undetermined", article({"extra.not_likeliest": f(0.0, 0.0)})),
        ("one question was answered both ways", "both_ways.supports", article({"extra.both_ways": f(0.001, 0.02)}),
         "both_ways.undetermined", article({"extra.both_ways": f(0.0, 0.0)})),
        ("fewer are right and more repeats, both by over a twentieth", "greedy.supports",
         beside((0.39, 0.41), (0.59, 0.61)), "greedy.undetermined", beside((0.39, 0.41), (0.54, 0.61))),
        ("one of the two is less than that", "greedy.does_not_support", beside((0.48, 0.5), (0.59, 0.61)),
         "greedy.undetermined", beside((0.4, 0.5), (0.59, 0.61))),
        ("the texts are the same less than a fifth of the time", "seldom_same.supports",
         article(same_text=f(0.1, 0.19)), "seldom_same.undetermined", article(same_text=f(0.1, 0.21))),
        ("they are more than a fifth of the time", "seldom_same.does_not_support", article(same_text=f(0.21, 0.3)),
         "seldom_same.undetermined", article(same_text=f(0.19, 0.3))),
        ("the gain is over a tenth", "meaning.supports", article({"extra.meaning_gain": f(0.12, 0.2)}, **GAIN),
         "meaning.undetermined", article({"extra.meaning_gain": f(0.09, 0.2)}, **GAIN)),
        ("the gain is under a tenth", "meaning.does_not_support",
         article({"extra.meaning_gain": f(0.01, 0.08)}, **GAIN), "meaning.undetermined",
         article({"extra.meaning_gain": f(0.01, 0.11)}, **GAIN)),
        ("fewer are right, by more than a twentieth", "direction_meaning.supports",
         article(feedback_meaning=f(0.08, 0.3)), "direction_meaning.undetermined",
         article(feedback_meaning=f(0.04, 0.3))),
        ("fewer are right, by less than a twentieth", "direction_meaning.does_not_support",
         article(feedback_meaning=f(0.01, 0.04)), "direction_meaning.undetermined",
         article(feedback_meaning=f(0.01, 0.06))),
        ("the error's aftermath was measured", "no_way_back.supports",
         article({"extra.clean_beside": f(0.5, 0.6), "extra.ended": f(0.1, 0.2)}, recovery=f(0.4, 0.5)), "unmeasured",
         article()),
        ("a pass for every token", "passes.supports", article(passes=f(9, 9), tokens=f(9, 9)),
         "passes.does_not_support", article(passes=f(8, 8), tokens=f(9, 9))),
        ("calibration was measured", "targets.undetermined", article(calibration=f(0.1, 0.2)), "unmeasured", article()),
        ("always: by arithmetic", "formula.does_not_support", article(), "", lambda lang: ""),
    ),
    *(
        row
        for kind, one in (("supports", p(0.01, 0.9)), ("does_not_support", p(0.9, 0.01)))
        for row in claim(
            (f"constant and independent: {kind}", f"exponential.{kind}",
             article({"dependence": CURVE}, {"constant": p(0.01, 0.9), "independent": one}), "exponential.undetermined",
             article({"dependence": CURVE}, {"constant": p(0.01, 0.9), "independent": p(0.9, 0.9)}))
        )
    ),
]  # fmt: skip


def hotter(low: float, high: float) -> Told:
    """The entropy of answers at the main temperature is between 1.09 and 1.11; a tenth of a nat more counts."""
    return article({"figures": {"0.7": {"answer_entropy": f(1.09, 1.11)}, "1.3": {"answer_entropy": f(low, high)}}})


ARTICLE += claim(
    ("more than a tenth of a nat more", "diverse.supports", hotter(1.23, 1.5), "diverse.undetermined",
     hotter(1.19, 1.5)),
    ("less than a tenth of a nat more", "diverse.does_not_support", hotter(1.12, 1.18), "diverse.undetermined",
     hotter(1.12, 1.24)),
)  # fmt: skip
EXPERIMENTS = [
    Sentence("cures", "all of the gain is above 0", "best_beats", cures(0.001, 0.1), "best_not", cures(-0.001, 0.1)),
    Sentence("cures", "all of the gain is below 0", "best_worse", cures(-0.1, -0.001), "best_not", cures(-0.1, 0.001)),
    *(
        Sentence("mistakes", *row)
        for row in (
            ("both are above 0", "said.control", mistakes(control=(0.001, 0.2)), "said.control_open",
             mistakes(control=(-0.001, 0.2))),
            ("a cure was measured", "said.best", mistakes(cure=left(0.9, 0.9)), "", mistakes()),
            ("both intervals are below half", "said.halved", mistakes(cure=left(0.499, 0.499)), "said.not_halved",
             mistakes(cure=left(0.499, 0.501))),
            ("words can be taken back", "said.backspace", mistakes(backspace=BACK), "", mistakes()),
            ("all of the difference is below 0", "said.text", bits(-0.001), "said.text_open", bits(0.001)),
        )
    ),
    *(
        Sentence("bias", *row)
        for row in (
            ("all of the gap closed is above 0", "best", bias(gap=(0.001, 0.5)), "best_open", bias(gap=(-0.001, 0.5))),
            ("all of the gap closed is above 0", "best_within", bias(gap=(0.001, 0.5), within=3.0),
             "best_within_open", bias(gap=(-0.001, 0.5), within=3.0)),
            ("both were trained", "hard", bias(["one-hot", "oracle"]), "", bias(["one-hot"])),
            ("five were trained", "not_longer", bias(["best-of-five"]), "", bias()),
            ("both were trained", "steadily", bias(["steady", "oracle-steady"]), "", bias(["steady"])),
            ("the intervals do not overlap", "text_best", bias(text=1.999), "text_open", bias(text=2.001)),
        )
    ),
]  # fmt: skip
LOST, HELD = (f(0.9, 0.95), f(0.8, 0.899)), (f(0.9, 0.95), f(0.8, 0.901))
ALIGNMENT = [
    Sentence("align", *row)
    for row in (
        ("all of the gain is above 0", "better", alignment(0.001, 0.1), "same", alignment(-0.001, 0.1)),
        ("all of the gain is below 0", "worse", alignment(-0.1, -0.001), "same", alignment(-0.1, 0.001)),
        ("no score was measured", "unknown", alignment(None), "same", alignment()),
        ("the watch ended it", "parted", alignment(looks=[START, seen(10, 0.1, 0.9)], stopped=True), "hacked",
         alignment(looks=[START, seen(10, 0.1, 0.9)])),
        ("the annotator's paired interval is below 0", "hacked", alignment(looks=[START, seen(10, 0.4, 0.9, 0.0)]), "",
         alignment(looks=[START, seen(10, 0.46, 0.9)])),
        ("the reward rose", "hacked", alignment(looks=[START, seen(10, 0.1, 0.01)]), "",
         alignment(looks=[START, seen(10, 0.1, -0.01)])),
        ("it was watched", "far", alignment(looks=[START]), "", alignment()),
        ("the intervals do not overlap", "forgot", alignment(known=LOST), "kept", alignment(known=HELD)),
        ("plain text was measured", "kept", alignment(known=HELD), "", alignment()),
        ("all of the interval is below what is wanted", "too_weak", refused(0.7, 0.859, False), "",
         refused(0.7, 0.861, False)),
        ("chance is in the interval", "like_chance", refused(0.499, 0.7, True), "", refused(0.501, 0.7, True)),
    )
]  # fmt: skip
ASKED = [
    *(
        Sentence("examination", *row)
        for row in (
            ("the likeliest answer is certain", "tree.mode", tree("mode", 0.01, 1), "tree.budget",
             tree("budget", 0.01, 1)),
            ("less than eps is left", "tree.mass", tree("mass", 0.41, 1), "tree.budget", tree("mass", 0.39, 1)),
            ("nothing is open", "tree.whole", tree("mass", 0.0, 9, 1), "tree.budget", tree("mass", 0.0, 1)),
            ("chance shows as much in less than 5 %", "forks.found", fork_lines(True), "forks.none",
             fork_lines(False)),
        )
    ),
    *(
        Sentence("sure", *row)
        for row in (
            ("a word moved the meaning", "decided", sure(), "undecided.by_chance", sure("by chance")),
            ("a server does not go on from a beginning", "undecided.server", sure("server"), "undecided.by_chance",
             sure("by chance")),
            ("the judge can err", "allowing", sure(errs=ERRS), "", sure()),
            ("the answer is one token", "undecided.too_short", sure("too short"), "undecided.too_long",
             sure("too long")),
            ("all others mean the same", "undecided.all_the_same", sure("all the same", 32), "undecided.by_chance",
             sure("by chance")),
        )
    ),
    Sentence("deciding", "the meaning is another", "changed", decided(True), "same", decided(False)),
]  # fmt: skip
STUDIO = [
    *(
        Sentence("studio_paths", *row)
        for row in (
            ("two meanings were drawn", "flow", flowing(9, 1), "flow_one", flowing(10, 0)),
            ("one meaning was found", "fork_none", deciding([10]), "", deciding([10, 0])),
            ("chance shows as much in less than 5 %", "fork_at", deciding([9, 1], forked(True)), "fork_chance",
             deciding([9, 1], forked(False))),
        )
    ),
    *(
        row
        for catalogue, key, told in (
            ("studio_ranking", "habit", ranked_first),
            ("cli", "rank.always_first", habit_told),
        )
        for row in (
            Sentence(catalogue, "chance does so in less than .1 %", key, told(8, 10), "", told(7, 10)),
            Sentence(catalogue, "it was more than half of the time", key, told(51, 100), "", told(50, 100)),
        )
    ),
    *(
        Sentence("studio_answer", *row)
        for row in (
            ("the visitor chose it", "was_forced", chosen("forced"), "was_drawn", chosen()),
            ("it was guessed ahead", "was_drafted", chosen("drafted"), "was_drawn", chosen()),
            ("the temperature is 0", "was_greedy", chosen(temperature=0.0), "was_drawn", chosen()),
            ("the whole distribution is known", "kept", chosen(), "partial", chosen(rest=0.1)),
        )
    ),
]  # fmt: skip
SENTENCES = [*MADE, *ALIGNED, *LANGUAGE, *TITLES, *REST, *EXAMINED, *ARTICLE, *EXPERIMENTS, *ALIGNMENT, *ASKED, *STUDIO]

RULES = {
    "report": r"(verdict|caution|picture|exam|gates|cost)\..*|how\.(reward_|calibration_).*",
    "studio_ranking": r"habit|between|part_reward_at|work_.*",
    "cli": r"rank\..*",
    "article": r"(unmeasured|.*\.(supports|does_not_support|undetermined))",
    "cures": r"(best.*|plain)",
    "mistakes": r"said\..*",
    "bias": r"(best.*|hard|not_longer|steadily|text_.*)",
    "align": r".*",
    "examination": r"(tree|forks)\..*",
    "sure": r"(undecided\..*|decided|same|p|allowing)",
    "deciding": r"(changed|same)",
    "studio_paths": r"(flow|fork).*",
    "studio_answer": r"(was.*|kept|partial|no_distribution)",
}
"""Where sentences stand that rule on figures; what else stands there is named below."""
LABELS = {
    "report": (
        r"picture\.formula|exam\.(title|tree_title|figures|figures_how|explained|asked_each|by_truth|not_measured|trees"
        r"|answers|answers_how|fork_here|formula|question|answer|asked|at_random|kept|wrong|others|distance|row_.*|how_.*"
        r"|flops_right|mflops|time|allowing|allowing_row)|gates\.(name|value|threshold|result|how|least|most|unreached)"
        r"|cost\.(lead|column|flops|alone)"
    ),
    "article": r"ruling\..*",
    "studio_ranking": "between|part_reward_at|work_.*",
    "cli": r"rank\.(drawn|who|rankings|with_oneself|between|exported)",
    "cures": "plain",
    "examination": r"tree\.(growing|title|end|more|meanings)|forks\.(looking|title|other|how)",
    "sure": "same|p",
    "studio_paths": r"fork|fork_wait",
    "studio_answer": "was|no_distribution",
}
"""Titles, names, how to read; figures that are told whatever they are."""


def pattern(catalogue: str, key: str, lang: str) -> re.Pattern[str]:
    """The sentence, whatever its figures are."""
    out = []
    for literal, name, _, _ in Formatter().parse(words(lang, catalogue).messages[key]):
        out.append(r"\s+".join(re.escape(part) for part in re.split(r"\s+", literal)))
        out.append("" if name is None else r"[^\n:]{1,300}?")
    said = re.sub("[;,:]$", "[;,:.]", "".join(out))  # what it would go on with may not have been measured
    return re.compile(rf"(?<!\S){said}(?![^\s,])")


@pytest.mark.parametrize("lang", LANGUAGES)
@pytest.mark.parametrize("row", SENTENCES, ids=lambda row: f"{row.catalogue}.{row.key}")
def test_a_sentence_is_said_on_one_side_of_its_condition_only(row: Sentence, lang: str) -> None:
    there, here = row.there(lang), row.here(lang)
    sides = [(row.key, there, here), *([(row.instead, here, there)] if row.instead else [])]
    for key, said, not_said in sides:
        found = pattern(row.catalogue, key, lang)
        assert found.search(said), f"{row.condition}: {key} is not said in\n{said}"
        if key != "unmeasured":  # other claims are that on either side
            assert not found.search(not_said), f"not so: {row.condition}, and yet {key} is said in\n{not_said}"


@pytest.mark.parametrize("catalogue", RULES)
def test_every_sentence_that_rules_is_in_the_table(catalogue: str) -> None:
    keys = words("en", catalogue).messages
    rules = {key for key in keys if re.fullmatch(RULES[catalogue], key)}
    labels = {key for key in keys if re.fullmatch(LABELS.get(catalogue, ""), key)}
    told = {key for row in SENTENCES if row.catalogue == catalogue for key in (row.key, row.instead) if key}
    assert rules - labels - told == set(), "not in the table"
    assert told <= keys.keys(), "in the table, and nowhere else"
    assert not told & labels


STRONG = {
    "en": r"\b(prov(e|es|en|ed|ing)|cannot|can not|can't|at no (loss|cost)|impossible|guarantee\w*|shows? that)\b",
    "nb": r"\b(bevis\w*|kan (den |det |de |en |et )?ikke|ikke kan|uten (tap|kostnad)|umulig\w*|garanter\w*|viser at)\b",
}
ALLOWED = {
    ("article", "exponential.undetermined"): "that cannot be told",
    ("article", "no_way_back.says"): "the article's own claim",
    ("cli", "chat.refused"): "what was typed is refused",
    ("cli", "doctor.energy_no"): "a meter of the machine",
    ("cli", "runs.unreadable"): "a file",
    ("mistakes", "lead_world"): "what the world's language does not allow",
    ("mistakes", "what.backspace-teachers"): "what other models say",
    ("report", "exam.no_beginnings"): "what a server does not offer",
    ("report", "how.calibration_finetuned"): "two things cannot be told apart",
    ("sure", "undecided.server"): "what a server does not offer",
}
"""Where a strong word claims nothing about what was measured, and why."""


@pytest.mark.parametrize("lang", LANGUAGES)
def test_nothing_is_proved_or_impossible_or_free(lang: str) -> None:
    found = {
        (catalogue, key)
        for catalogue in {name for name, _ in catalogues()}
        for key, text in words(lang, catalogue).messages.items()
        if re.search(STRONG[lang], text, re.IGNORECASE)
    }
    assert found <= ALLOWED.keys()
