"""Before and after alignment on the same held-out questions: paired, with intervals, and a verdict in words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from klype.examine.calibration import calibration_error
from klype.examine.evidence import OTHER_MANNERS, Answered
from klype.examine.intervals import mean_by_question, paired
from klype.examine.measures import measure
from klype.model.transformer import Transformer
from klype.runs.aligning import Evaluation, best
from klype.runs.answering import answer_all, evidence_of, examined_on, judged
from klype.runs.stages import Run
from klype.sources.find import is_aligned
from klype.values import Figure, Question, Sampling, Trace
from klype.words import number, words

TRAITS = ("right", "polite", "concise", "score")
KEPT = {"retrieval_text": 1, "retrieval_hard": 1, "kl": -1, "bits_per_byte": -1}
"""What is known of plain text, and whether more of it is better."""
SEVERAL, DRAWN = 60, 4  # questions and answers to each for the measures of spread


def compare(run: Run, before: Transformer, after: Transformer) -> dict[str, Any]:
    """Figures of both models, of each difference, the win rate, and how far apart the two are."""
    questions = examined_on(run.subject, run.options.minutes)
    sampling = Sampling(temperature=run.recipe.examine.temperature)
    answers = [
        judged(run.subject, m.config, questions, answer_all(m, run.subject, questions, sampling))
        for m in (before, after)
    ]
    aligned = (is_aligned(run.folder / "finetune"), True)
    spread = [_spread(run, m, questions[:SEVERAL], of) for m, of in zip((before, after), aligned, strict=True)]
    known = [run.subject.knowledge(m, few=True) for m in (before, after)]
    sides = [
        {k: f.json() for k, f in {**_means(a, run), **s, **k_}.items()}
        for a, s, k_ in zip(answers, spread, known, strict=True)
    ]
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


def _means(answers: Sequence[Answered], run: Run) -> dict[str, Figure]:
    evidence = evidence_of(run.subject, answers)
    return measure(evidence, ("right", "polite", "concise", "annotator", "tokens"))


@torch.no_grad()
def _spread(run: Run, model: Transformer, questions: Sequence[Question], aligned: bool) -> dict[str, Figure]:
    """Diversity, S, and calibration, at temperature 1, several answers to each question."""
    groups = answer_all(model, run.subject, questions, Sampling(temperature=1.0), n=DRAWN, top=-1)
    answers = judged(run.subject, model.config, questions, groups)
    figures = measure(evidence_of(run.subject, answers))
    found: dict[str, Figure] = {
        k: figures[k] for k in ("answer_entropy", "distinct", "same_text", "s", "repetition") if k in figures
    }
    told = _told(run, questions, groups)
    if told[0]:
        found["calibration"] = Figure(None, why=OTHER_MANNERS) if aligned else calibration_error(*told)
    return found


def _told(
    run: Run, questions: Sequence[Question], groups: Sequence[Sequence[Trace]]
) -> tuple[list[float], list[float], list[str]]:
    """The likeliest next token on right prefixes: how likely the model says it is, how likely it truly is."""
    said, true, asked = [], [], []
    for question, traces in zip(questions, groups, strict=True):
        for trace in traces:
            truth = run.subject.next_right(question)
            if truth is None:
                return [], [], []
            for step in trace.steps:
                assert step.distribution is not None
                said.append(float(np.exp(step.distribution.logp[0])))
                true.append(truth.next().get(int(step.distribution.ids[0]), 0.0))
                asked.append(question.id)
                if truth.push(step.token) == 0.0:
                    break
    return said, true, asked


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
