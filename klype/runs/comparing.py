"""Before and after alignment on the same held-out questions: paired, with intervals, and a verdict in words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from klype.examine.evidence import Answered
from klype.examine.intervals import mean_by_question, paired
from klype.examine.measures import measure
from klype.model.transformer import Transformer
from klype.runs.aligning import Evaluation, best
from klype.runs.stages import Run
from klype.runs.task import Asking, examine_model, examined_on
from klype.sources.find import is_aligned
from klype.values import Figure
from klype.words import number, words

TRAITS = ("right", "polite", "concise", "score")
KEPT = {"retrieval_text": 1, "retrieval_hard": 1, "kl": -1, "bits_per_byte": -1}
"""What is known of plain text, and whether more of it is better."""
SEVERAL, DRAWN = 60, 4  # questions and answers to each for the measures of spread


def compare(run: Run, before: Transformer, after: Transformer) -> dict[str, Any]:
    """Figures of both models, of each difference, the win rate, and how far apart the two are."""
    questions = examined_on(run.task, run.options.minutes)
    asking = Asking(run.recipe.examine.temperature)
    aligned = is_aligned(run.folder / "finetune"), True
    sides, answers = [], []
    for model, other_manners in zip((before, after), aligned, strict=True):
        evidence = examine_model(run.task, model, questions, asking).evidence[asking.temperature]
        several = examine_model(run.task, model, questions[:SEVERAL], Asking(1.0, DRAWN, "distributions"))
        spread = replace(several.evidence[1.0], other_manners=other_manners)
        figures = measure(evidence, ("right", "polite", "concise", "annotator", "tokens"))
        figures |= measure(spread, ("s", "repetition", "distinct", "same_text", "calibration"))
        figures |= run.task.knowledge(model, few=True)
        sides.append({name: figure.json() for name, figure in figures.items()})
        answers.append(evidence.answers)
    return {
        "before": sides[0],
        "after": sides[1],
        "gain": {name: f.json() for name, f in _gains(*answers).items()},
        "win_rate": win_rate(_scores(answers[0]), _scores(answers[1])).json(),
        "ties": _ties(_scores(answers[0]), _scores(answers[1])).json(),
    }


def win_rate(before: Sequence[float], after: Sequence[float]) -> Figure:
    """How often the later answer is liked better; equally liked ones count half."""
    wins = [1.0 if b > a else 0.5 if a == b else 0.0 for a, b in zip(before, after, strict=True)]
    figure = mean_by_question(wins, range(len(wins)), "share of questions")
    if figure.low is None or figure.high is None:
        return figure
    return Figure(figure.value, max(0.0, figure.low), min(1.0, figure.high), figure.n, figure.unit)


def verdict(document: Mapping[str, Any], seen: Sequence[Evaluation], stopped: bool, lang: str) -> str:
    """What came of it, in a few sentences."""
    w = words(lang, "align")
    said: list[str] = []
    gain = document["gain"]["score"]
    if gain["value"] is None or gain["low"] is None:
        said.append(w("unknown"))
    else:
        kind = "better" if gain["low"] > 0 else "worse" if gain["high"] < 0 else "same"
        said.append(w(kind, **gained(gain, lang)))
    if stopped:
        said.append(w("parted", step=seen[-1].step, best=best(seen).step))
    elif len(seen) > 1 and seen[-1].reward > seen[0].reward:
        fell = paired(seen[0].truth, seen[-1].truth, range(len(seen[0].truth))).high
        said += [w("hacked")] if fell is not None and fell < 0 else []
    if seen:
        said.append(w("far", kl=number((best(seen) if stopped else seen[-1]).kl, lang)))
    lost = [name for name, better in KEPT.items() if _fell(document, name, better)]
    if any(name in document["before"] and name in document["after"] for name in KEPT):
        said.append(w("forgot", measure=", ".join(lost)) if lost else w("kept"))
    return " ".join(said)


def gained(figure: Mapping[str, float], lang: str) -> dict[str, str]:
    """A difference and its interval, signed, under the names that the sentences know."""
    return {name: signed(figure[key], lang) for name, key in (("gain", "value"), ("low", "low"), ("high", "high"))}


def signed(value: float, lang: str) -> str:
    return ("+" if value >= 0 else "") + number(value, lang)


def _fell(document: Mapping[str, Any], name: str, better: int) -> bool:
    """Whether the two intervals are apart, in the bad direction."""
    a, b = document["before"].get(name), document["after"].get(name)
    if not a or not b or a["value"] is None or b["value"] is None or a["low"] is None or b["low"] is None:
        return False
    return bool(b["high"] < a["low"]) if better > 0 else bool(b["low"] > a["high"])


def _gains(before: Sequence[Answered], after: Sequence[Answered]) -> dict[str, Figure]:
    """After less before, question by question; undecided ones are left out on both sides."""
    gains = {}
    for name in TRAITS:
        rows = [
            (float(x), float(y), a.question)
            for a, b in zip(before, after, strict=True)
            if (x := getattr(a, name)) is not None and (y := getattr(b, name)) is not None
        ]
        if rows:
            gains[name] = paired(*(list(column) for column in zip(*rows, strict=True)))  # type: ignore[arg-type]
        else:
            gains[name] = Figure(None, why="nothing was decided")
    return gains


def _scores(answers: Sequence[Answered]) -> list[float]:
    return [a.score if a.score is not None else 0.0 for a in answers]


def _ties(before: Sequence[float], after: Sequence[float]) -> Figure:
    equal = [float(a == b) for a, b in zip(before, after, strict=True)]
    return mean_by_question(equal, range(len(equal)), "share of questions")
