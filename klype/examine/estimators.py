"""Estimators of what one answer or one next word tells: from Evidence to Figure, each used by a row of MEASURES."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from operator import attrgetter
from statistics import fmean
from typing import Literal

import numpy as np

from klype.examine import repetition
from klype.examine.calibration import best_temperature, calibration_error, excess_error
from klype.examine.evidence import OTHER_MANNERS, Answered, Evidence
from klype.examine.feedback import Effect, effect
from klype.examine.intervals import (
    Limits,
    mean_by_question,
    paired,
)
from klype.examine.survival import survival, survival_of, weibull_shape
from klype.examine.truth import divergence, s_corpus
from klype.values import Figure

NOTHING = "nothing was measured"
AT = 20  # words: curves are told at this one, or where the longest answer ends


def nothing() -> Figure:
    return Figure(None, why=NOTHING)


def per_answer(
    evidence: Evidence,
    value: Callable[[Answered], float | None],
    unit: str,
    judge: str = "",
    within: Limits | None = None,
) -> Figure:
    """The mean over questions of a number per answer; answers without one are left out."""
    known = [(answer.question, found) for answer in evidence.answers if (found := value(answer)) is not None]
    return mean_by_question([float(v) for _, v in known], [q for q, _ in known], unit, judge, within)


def per_question(
    evidence: Evidence, function: Callable[[list[Answered]], float | None], unit: str, judge: str = ""
) -> Figure:
    """The mean of a number per question, from all of its answers."""
    groups: dict[str, list[Answered]] = {}
    for answer in evidence.answers:
        groups.setdefault(answer.question, []).append(answer)
    values = {q: value for q, answers in groups.items() if (value := function(answers)) is not None}
    return mean_by_question(list(values.values()), list(values), unit, judge)


def s_own(evidence: Evidence) -> Figure:
    """Mass on words that can follow, on the model's own right prefixes."""
    if evidence.answers and all(answer.s_bounds for answer in evidence.answers):
        low, high = (
            survival([replace(a, s=tuple(ends[i] for ends in a.s_bounds)) for a in evidence.answers]).s for i in (0, 1)
        )
        return between(low, high)
    if not all(answer.s for answer in evidence.answers) or not evidence.answers:
        return nothing()
    return survival_of(evidence).s


def of_truth(evidence: Evidence, name: str) -> Figure:
    """A divergence from p, when p is known."""
    if not evidence.documents:
        return nothing()
    if evidence.other_manners:
        return Figure(None, why=OTHER_MANNERS)
    return divergence(evidence.documents, name, evidence.words)


def s_of_corpus(evidence: Evidence) -> Figure:
    """S on the corpus' own prefixes, when p is known."""
    if not evidence.documents:
        return nothing()
    return s_corpus(evidence.documents, evidence.words)


def repeats(evidence: Evidence) -> Figure:
    """seq-rep-4 of the answers long enough to have one."""
    return per_answer(evidence, lambda a: repetition.repeated(a.words), "share of 4-grams")


def repeats_beyond(evidence: Evidence) -> Figure:
    """seq-rep-4 less that of the language's own answers to the same questions."""
    own: dict[str, list[float]] = {}
    for answer in evidence.answers:
        if (value := repetition.repeated(answer.words)) is not None:
            own.setdefault(answer.question, []).append(value)
    language = {q: repetition.repeated(words) for q, words in (evidence.language or {}).items()}
    both = [(q, fmean(values), known) for q, values in own.items() if (known := language.get(q)) is not None]
    if not both:
        return nothing()
    questions, model, truth = zip(*both, strict=True)
    return paired(truth, model, questions, "difference of shares")


def loops(evidence: Evidence) -> Figure:
    """Share of an answer's words, at its end, that only repeat the words just before them."""
    return per_answer(
        evidence, lambda a: repetition.loop(a.words) / len(a.words) if a.words else None, "share of words"
    )


def distinct(evidence: Evidence) -> Figure:
    """Different pairs of words among all of a question's answers."""
    return per_question(evidence, lambda a: repetition.distinct([x.words for x in a]), "share of 2-grams")


def same_text(evidence: Evidence) -> Figure:
    """The chance that two different draws are equal to the letter."""
    return per_question(evidence, lambda a: repetition.agreement([x.words for x in a]), "share of pairs")


def cost(evidence: Evidence, name: str, unit: str) -> Figure:
    """Mean per answer."""
    return per_answer(evidence, attrgetter(name), unit)


def answer_entropy(evidence: Evidence) -> Figure:
    """Mean of Σ_t H(q_t) over draws: unbiased for the entropy of token sequences."""
    if evidence.answers and all(a.entropy_bounds is not None for a in evidence.answers):
        low, high = (per_answer(evidence, partial(_bound, end), "nats") for end in (0, 1))
        return between(low, high)
    return per_answer(evidence, attrgetter("entropy"), "nats")


def _bound(end: int, answer: Answered) -> float | None:
    return answer.entropy_bounds[end] if answer.entropy_bounds else None


def between(low: Figure, high: Figure) -> Figure:
    """A figure known between two others only: their middle, from the lower's interval to the upper's.

    Where there is no upper end, no figure but the lower end in ``why``; where either has no interval, what is certain
    of these questions alone.
    """
    if low.value is None or high.value is None:
        return low
    if not math.isfinite(high.value):
        return Figure(None, n=low.n, unit=low.unit, why=f"only likely words are told: at least {low.value:.3g}")
    middle = (low.value + high.value) / 2
    if low.low is None or high.high is None:
        return replace(low, value=middle, low=low.value, high=high.value, certain=True, why="")
    return replace(low, value=middle, low=low.low, high=high.high, why="")


def unseen(evidence: Evidence) -> Figure:
    """The probability of answers that no draw showed, exact per question; Good–Turing's n₁/N where their own
    probabilities are not told (of one question alone, with Esty's interval)."""
    if len({a.question for a in evidence.answers}) == 1 and any(a.drawn_logp is None for a in evidence.answers):
        return repetition.good_turing([(a.words, a.ended) for a in evidence.answers])

    def left(answers: list[Answered]) -> float | None:
        known = [(a, a.drawn_logp) for a in answers if a.drawn_logp is not None]
        if len(known) < len(answers):
            return repetition.good_turing([(a.words, a.ended) for a in answers]).value if len(answers) > 1 else None
        # Two spellings of one text are two draws with probabilities of their own.
        return repetition.unseen_known([((a.words, a.ended, round(logp, 3)), logp) for a, logp in known])

    return per_question(evidence, left, "share")


def common_prefix(evidence: Evidence) -> Figure:
    return per_question(evidence, lambda a: repetition.common_prefix([x.words for x in a]), "words")


def surviving(evidence: Evidence, curve: Literal["r", "k", "difference"]) -> Figure:
    """R, K or K − Π(1 − h̄_t) at one word, or at the last before it that is told, where errors are judged by word."""
    if not evidence.by_word:
        return nothing()
    found = survival_of(evidence)
    figures = {"r": found.r, "k": found.k, "difference": found.difference}[curve]
    return next((figure for figure in figures[:AT][::-1] if figure.value is not None), figures[0])


def shape(evidence: Evidence) -> Figure:
    return weibull_shape(evidence.answers) if evidence.by_word else nothing()


def calibration(evidence: Evidence) -> Figure:
    if not evidence.told:
        return nothing()
    if evidence.other_manners:
        return Figure(None, why=OTHER_MANNERS)
    said, true = [t.said for t in evidence.told], [t.true for t in evidence.told]
    return calibration_error(said, true, [t.question for t in evidence.told])


def temperature(evidence: Evidence) -> Figure:
    rows = [one.cross_entropies for one in evidence.sums if one.cross_entropies]
    if rows and evidence.other_manners:
        return Figure(None, why=OTHER_MANNERS)
    return best_temperature(np.array(rows)) if rows else nothing()


def excess(evidence: Evidence) -> Figure:
    pairs = [(one.own_kl, one.true_kl) for one in evidence.sums if one.own_kl is not None and one.true_kl is not None]
    if pairs and evidence.other_manners:
        return Figure(None, why=OTHER_MANNERS)
    return excess_error([own for own, _ in pairs], [true for _, true in pairs]) if pairs else nothing()


def effect_of(evidence: Evidence) -> Effect:
    """Of all its interventions, each alike."""
    return evidence.once("effect", lambda: effect(evidence.outcomes))


def feedback(
    evidence: Evidence, part: Literal["difference", "ratio", "recovery", "cautious"], distance: int = 1
) -> Figure:
    """The experiment's effect at one distance."""
    if not evidence.outcomes:
        return nothing()
    found = effect_of(evidence)
    figures: Sequence[Figure] = getattr(found, part)
    return figures[min(distance, len(figures)) - 1]


def answer_mass(evidence: Evidence) -> Figure:
    """P(the most probable answer), mean of its certain intervals over the questions whose tree was grown."""
    modes = [tree.answers[0] for tree in evidence.trees if tree.answers]
    if not modes:
        return nothing()
    return certain([mode.low for mode in modes], [mode.high for mode in modes], "share")


def unexplored(evidence: Evidence) -> Figure:
    left = [tree.unexplored for tree in evidence.trees]
    return certain(left, left, "share") if left else nothing()


def copied(evidence: Evidence) -> Figure:
    return per_answer(evidence, attrgetter("copied"), "share of words")


def certain(low: Sequence[float], high: Sequence[float], unit: str) -> Figure:
    least, most = fmean(low), fmean(high)
    return Figure((least + most) / 2, least, most, len(low), unit, certain=True)
