"""Estimators: from Evidence to Figure, each used by a row of MEASURES.

What rests on a judge names it and, where it can err, its error rate. A judge errs on an unknown side: with as many
errors as the upper end of its error rate says, all for or all against, the figure is at most so far from the truth
(Horowitz & Manski 1995), and answers that it left undecided may be either (Manski 1989). These are the figure's bounds;
an error rate that was not measured adds nothing to them, and the figure says that. What has no bounds is withheld where
the judge errs in more than one in ten.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import replace
from operator import attrgetter
from statistics import fmean
from typing import Literal

import numpy as np

from klype.examine import calibration as probabilities
from klype.examine import intervals, repetition
from klype.examine.error_feedback import Effect, effect
from klype.examine.evidence import OTHER_MANNERS, Evidence, JudgedAnswer
from klype.examine.intervals import Limits, allowing, ends, mean_by_question, paired
from klype.examine.survival import survival, survival_of, weibull_shape
from klype.examine.truth import divergence, s_corpus
from klype.judge.judge import Ruling
from klype.values import Figure

NOTHING = "nothing was measured"
AT = 20  # words: curves are told at this one, or where the longest answer ends
FORM = "stated rules of form"
# Verdicts that are not the judge's own; where the judge may err, politeness and the like are not its own, too.
BY_RULE = {"word_for_word": "word for word", "well_formed": FORM}
MOST_ERRORS = 0.1  # with more, what has no bounds for a judge's errors is withheld
WITHHELD = "the judge errs in more than one in ten"
DIFFERENCE = (-1.0, 1.0)  # what a difference of shares can be
NO_FIGURE = Figure(None, why=NOTHING)
OfAnswer = Callable[[JudgedAnswer], float | None]


def per_answer(evidence: Evidence, value: OfAnswer, unit: str, judge: str = "", within: Limits | None = None) -> Figure:
    """The mean over questions of a number per answer; answers without one are left out."""
    known = [(answer.question, found) for answer in evidence.answers if (found := value(answer)) is not None]
    return mean_by_question([float(v) for _, v in known], [q for q, _ in known], unit, judge, within)


def mean_of(name: str, unit: str, evidence: Evidence) -> Figure:
    """Of what is known of every answer by this name."""
    return per_answer(evidence, attrgetter(name), unit)


def per_question(
    evidence: Evidence, function: Callable[[list[JudgedAnswer]], float | None], unit: str, judge: str = ""
) -> Figure:
    """The mean of a number per question, from all of its answers."""
    values = {q: value for q, answers in by_question(evidence).items() if (value := function(answers)) is not None}
    return mean_by_question(list(values.values()), list(values), unit, judge)


def by_question(evidence: Evidence) -> dict[str, list[JudgedAnswer]]:
    groups: dict[str, list[JudgedAnswer]] = {}
    for answer in evidence.answers:
        groups.setdefault(answer.question, []).append(answer)
    return groups


def over_texts(function: Callable[[list[tuple[str, ...]]], float | None], unit: str, evidence: Evidence) -> Figure:
    """The mean of a number per question, from the words of its answers."""
    return per_question(evidence, lambda answers: function([a.words for a in answers]), unit)


def over_meanings(function: Callable[[list[Hashable]], float | None], unit: str, evidence: Evidence) -> Figure:
    """The same from what they mean, of the questions all of whose answers have a meaning."""

    def found(answers: list[JudgedAnswer]) -> float | None:
        meanings = [answer.meaning for answer in answers]
        return None if None in meanings else function(meanings)

    return per_question(evidence, found, unit, evidence.judge)


# Beside the truth


def s_own(evidence: Evidence) -> Figure:
    """Mass on words that can follow, on the model's own right prefixes."""
    if evidence.answers and all(answer.s_bounds for answer in evidence.answers):
        sides = ([replace(a, s=tuple(ends[i] for ends in a.s_bounds)) for a in evidence.answers] for i in (0, 1))
        return between(*(survival(side).s for side in sides))
    known = evidence.answers and all(answer.s for answer in evidence.answers)
    return survival_of(evidence).s if known else NO_FIGURE


def beside_truth(evidence: Evidence, given: Sequence[object], make: Callable[[], Figure]) -> Figure:
    """A figure of how near probabilities are to the truth's, made from what is ``given``."""
    if not given:
        return NO_FIGURE
    # they cannot be near where alignment taught other manners
    return Figure(None, why=OTHER_MANNERS) if evidence.other_manners else make()


def of_truth(name: str, evidence: Evidence) -> Figure:
    """A divergence from p, when p is known."""
    documents = evidence.documents
    return beside_truth(evidence, documents, lambda: divergence(documents, name))


def s_of_corpus(evidence: Evidence) -> Figure:
    """S on the corpus' own prefixes, when p is known."""
    return s_corpus(evidence.documents) if evidence.documents else NO_FIGURE


def calibration(evidence: Evidence) -> Figure:
    told = evidence.told
    return beside_truth(evidence, told, lambda: probabilities.calibration_error(*zip(*told, strict=True)))


def temperature(evidence: Evidence) -> Figure:
    rows = [one.cross_entropies for one in evidence.sums if one.cross_entropies]
    return beside_truth(evidence, rows, lambda: probabilities.best_temperature(np.array(rows)))


def excess(evidence: Evidence) -> Figure:
    pairs = [(one.own_kl, one.true_kl) for one in evidence.sums if one.own_kl is not None and one.true_kl is not None]
    return beside_truth(evidence, pairs, lambda: probabilities.excess_error(*zip(*pairs, strict=True)))


def surviving(curve: Literal["r", "k", "difference"], evidence: Evidence) -> Figure:
    """R, K or K − Π(1 − h̄_t) at one word, or at the last before it that is told, where errors are judged by word."""
    if not evidence.by_word:
        return NO_FIGURE
    figures: Sequence[Figure] = getattr(survival_of(evidence), curve)
    return next((figure for figure in figures[:AT][::-1] if figure.value is not None), figures[0])


def shape(evidence: Evidence) -> Figure:
    return weibull_shape(evidence.answers) if evidence.by_word else NO_FIGURE


def effect_of(evidence: Evidence) -> Effect:
    """Of all its interventions, each alike."""
    return evidence.once("effect", lambda: effect(evidence.outcomes))


def feedback(
    part: Literal["difference", "ratio", "recovery", "cautious"], evidence: Evidence, distance: int = 1
) -> Figure:
    """The experiment's effect at one distance."""
    if not evidence.outcomes:
        return NO_FIGURE
    figures: Sequence[Figure] = getattr(effect_of(evidence), part)
    return figures[min(distance, len(figures)) - 1]


# How answers repeat themselves and each other, and what that says of those unseen


def repeats_beyond(evidence: Evidence) -> Figure:
    """seq-rep-4 less that of the language's own answers to the same questions."""
    both = []
    for question, answers in by_question(evidence).items():
        own = [value for answer in answers if (value := repetition.repeated_share(answer.words)) is not None]
        language = repetition.repeated_share((evidence.language or {}).get(question, ()))
        if own and language is not None:
            both.append((question, fmean(own), language))
    if not both:
        return NO_FIGURE
    questions, model, truth = zip(*both, strict=True)
    return paired(truth, model, questions, "difference of shares")


def repeats(evidence: Evidence) -> Figure:
    """seq-rep-4 of the answers long enough to have one."""
    return per_answer(evidence, lambda a: repetition.repeated_share(a.words), "share of 4-grams")


def loops(evidence: Evidence) -> Figure:
    """Share of an answer's words, at its end, that only repeat the words just before them."""
    return per_answer(
        evidence, lambda a: repetition.loop(a.words) / len(a.words) if a.words else None, "share of words"
    )


def distinct(evidence: Evidence) -> Figure:
    """Different pairs of words among all of a question's answers."""
    return over_texts(repetition.distinct, "share of 2-grams", evidence)


def common_prefix(evidence: Evidence) -> Figure:
    return over_texts(repetition.common_prefix, "words", evidence)


def same_text(evidence: Evidence) -> Figure:
    """The chance that two different draws are equal to the letter."""
    return over_texts(repetition.agreement, "share of pairs", evidence)


def answer_entropy(evidence: Evidence) -> Figure:
    """Mean of Σ_t H(q_t) over draws: unbiased for the entropy of token sequences."""
    if evidence.answers and all(a.entropy_bounds is not None for a in evidence.answers):
        ends = (lambda a: a.entropy_bounds and a.entropy_bounds[0], lambda a: a.entropy_bounds and a.entropy_bounds[1])
        return between(*(per_answer(evidence, end, "nats") for end in ends))
    return mean_of("entropy", "nats", evidence)


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

    def left(answers: list[JudgedAnswer]) -> float | None:
        known = [(a, a.drawn_logp) for a in answers if a.drawn_logp is not None]
        if len(known) < len(answers):
            return repetition.good_turing([(a.words, a.ended) for a in answers]).value if len(answers) > 1 else None
        # Two spellings of one text are two draws with probabilities of their own.
        return repetition.unseen_known([((a.words, a.ended, round(logp, 3)), logp) for a, logp in known])

    return per_question(evidence, left, "share")


def answer_mass(evidence: Evidence) -> Figure:
    """P(the most probable answer), mean of its certain intervals over the questions whose tree was grown."""
    modes = [tree.answers[0] for tree in evidence.trees if tree.answers]
    return certain([(mode.low, mode.high) for mode in modes], "share")


def unexplored(evidence: Evidence) -> Figure:
    return certain([(tree.unexplored, tree.unexplored) for tree in evidence.trees], "share")


def certain(bounds: Sequence[tuple[float, float]], unit: str) -> Figure:
    """The mean of figures that are known to lie between bounds."""
    if not bounds:
        return NO_FIGURE
    least, most = (fmean(ends) for ends in zip(*bounds, strict=True))
    return Figure((least + most) / 2, least, most, len(bounds), unit, certain=True)


# What rests on a judge


def verdict(name: str, evidence: Evidence) -> Figure:
    """Share of answers with this verdict. Undecided ones count for neither side; ``decided`` shows them.

    Bounds of ``right`` are those of its share of all answers: all undecided ones wrong, or all right.
    """
    judge = evidence.judge if evidence.errors is None or name == "right" else FORM
    figure = per_answer(evidence, attrgetter(name), "share", BY_RULE.get(name, judge))
    if name != "right" or evidence.errors is None or figure.value is None:
        return figure
    least, most, known = (
        per_answer(evidence.asked, value, "share")
        for value in (lambda a: a.right is True, lambda a: a.right is not False, lambda a: a.right is not None)
    )
    return allowing(figure, evidence.errors["right"], ends(least)[0], ends(most)[1], ends(known)[1])


def decided(yes: bool, evidence: Evidence) -> Figure:
    """Share of answers that the judge could (``yes``), or could not, decide, where it may not be able to."""
    answers = evidence.asked.answers
    if not answers or (evidence.errors is None and all(a.right is not None for a in answers)):
        return NO_FIGURE
    return per_answer(evidence.asked, lambda a: (a.right is not None) == yes, "share", evidence.judge)


def by_judge(evidence: Evidence, figure: Figure, ruling: Ruling) -> Figure:
    """A figure that rests on the judge and has no bounds for its errors: withheld where there are too many."""
    error = evidence.errors[ruling] if evidence.errors is not None else None
    if error is not None and (error.value or 0.0) > MOST_ERRORS:
        return Figure(None, n=figure.n, unit=figure.unit, judge=evidence.judge, error_rate=error, why=WITHHELD)
    return replace(figure, judge=evidence.judge, error_rate=error)


def score(evidence: Evidence) -> Figure:
    """The annotator's mean score."""
    judge = evidence.judge if evidence.errors is None else FORM
    return per_answer(evidence, attrgetter("score"), "points", judge, evidence.points)


def joules_per_right(evidence: Evidence) -> Figure:
    """Σ energy / Σ right. None right: no figure, but a lower bound in ``why``."""
    known = [a for a in evidence.answers if a.joules is not None and a.right is not None]
    if not known:
        return NO_FIGURE
    groups = by_question(replace(evidence, answers=known)).values()
    energy = [sum((a.joules or 0.0 for a in group), 0.0) for group in groups]
    rights = [float(sum(bool(a.right) for a in group)) for group in groups]
    if not any(rights):
        # with 0 of n right, at most so many are (Clopper–Pearson)
        least = sum(energy) / (len(known) * intervals.clopper_pearson(0, len(groups))[1])
        return Figure(None, n=len(known), unit="J", why=f"none was right: at least {least:.3g} J")
    figure = replace(intervals.ratio_of_means(energy, rights, "J per right answer"), judge=evidence.judge)
    share = verdict("right", evidence)
    if figure.value is None or share.bounds is None:
        return figure
    (low, high), (least, most) = ends(figure), (end or 0.0 for end in share.bounds)
    in_all = share.value or 0.0
    bounds = low * in_all / most, high * in_all / least if least > 0 else None
    return replace(figure, error_rate=share.error_rate, bounds=bounds)


def same_meaning(evidence: Evidence) -> Figure:
    """The chance that two different draws mean the same (U-statistic). Equal texts do, whatever the judge says."""
    figure = over_meanings(repetition.agreement, "share of pairs", evidence)
    if evidence.errors is None or figure.value is None:
        return figure
    error, alike = evidence.errors["same"], ends(same_text(evidence))[0]
    # nothing is known of the judge: from what equal texts show to all
    least, most = (alike, 1.0) if error.value is None else ends(figure)
    return allowing(figure, error, least, most, within=(alike, 1.0))


def meaning_entropy(evidence: Evidence) -> Figure:
    """Chao–Shen over draws. Bounds: −ln of the chance that two draws mean the same is no more than their meanings'
    entropy, and that of the texts no less."""
    figure, same = over_meanings(repetition.chao_shen, "nats", evidence), same_meaning(evidence).bounds
    return figure if same is None else entropy_bounds(evidence, figure, same[1], ends(answer_entropy(evidence))[1])


def entropy_bounds(evidence: Evidence, figure: Figure, same: float | None, texts: float) -> Figure:
    """``same``: the share of pairs of one meaning at most; ``texts``: the entropy of texts at most."""
    if evidence.errors is None or figure.value is None:
        return figure
    low, high = ends(figure)
    # Rényi's entropy of order 2 is never above Shannon's
    least = max(0.0, -math.log(min(1.0, same or 1.0)))
    most = max(high, texts) if math.isfinite(texts) and texts > 0 else None
    return replace(figure, error_rate=evidence.errors["same"], bounds=(min(low, least), most))


def replaced(evidence: Evidence) -> Figure:
    """How much rarer right answers are when one of their words was replaced by another as rare."""
    if not (found := evidence.replaced):
        return NO_FIGURE
    other, own, asked = zip(*((one.other, one.own, one.question) for one in found), strict=True)
    figure = replace(paired(other, own, asked, "difference of shares"), judge=evidence.judge)
    if evidence.errors is None:
        return figure
    (low, high), undecided = ends(figure), fmean(one.undecided for one in found)
    return allowing(figure, evidence.errors["right"], low - undecided, high + undecided, 2, DIFFERENCE)


def tree_entropy(evidence: Evidence) -> Figure:
    """Entropy over meanings, mean of its certain bounds."""
    bounds = [tree.meaning_entropy for tree in evidence.trees]
    if not bounds or not all(math.isfinite(high) for _, high in bounds):
        return NO_FIGURE
    # the chance that two draws mean the same, at most: all that is unexplored means what is likeliest
    alike = []
    for tree in evidence.trees:
        masses = [cluster.low for cluster in tree.clusters]
        most = max(masses, default=0.0)
        alike.append(math.fsum(mass**2 for mass in masses) - most**2 + (most + tree.unexplored) ** 2)
    same = fmean(alike)
    if evidence.errors is not None:
        error = evidence.errors["same"]
        same = 1.0 if error.value is None else min(1.0, same + ends(error)[1])
    texts = fmean(tree.entropy[1] for tree in evidence.trees)
    return entropy_bounds(evidence, replace(certain(bounds, "nats"), judge=evidence.judge), same, texts)


def forked(evidence: Evidence) -> Figure:
    """Share of answers whose meaning was decided at one word, by the permutation test; one answer a question."""
    if not evidence.forks:
        return NO_FIGURE
    k, n = sum(one.fork is not None for one in evidence.forks), len(evidence.forks)
    return by_judge(evidence, intervals.proportion(k, n, "share of answers"), "same")


def fork_word(evidence: Evidence) -> Figure:
    """Which word decided, where one did: its mean position."""
    places = [float(one.fork + 1) for one in evidence.forks if one.fork is not None]
    figure = mean_by_question(places, range(len(places)), "word")
    low = None if figure.low is None else max(1.0, figure.low)  # no word comes before the first
    return by_judge(evidence, replace(figure, low=low), "same")


def selective(evidence: Evidence) -> Figure:
    """Prediction–rejection ratio of the answer's own log-probability a token."""
    if not (known := sureness(evidence)):
        return NO_FIGURE
    scores, rights, questions = zip(*known, strict=True)
    return by_judge(evidence, probabilities.rejection_ratio(scores, rights, questions), "right")


def sureness(evidence: Evidence) -> list[tuple[float, bool, str]]:
    """Of every decided answer: nats a token that it cost the model to say it, whether it is right, its question."""
    return [
        (-a.drawn_logp / max(1, a.tokens or len(a.words)), a.right, a.question)
        for a in evidence.answers
        if a.drawn_logp is not None and a.right is not None
    ]
