"""Estimators of what rests on a judge: each names it and, where it can err, its error rate.

A judge errs on an unknown side: with as many errors as the upper end of its error rate says, all for or all against,
the figure is at most so far from the truth (Horowitz & Manski 1995), and answers that it left undecided may be either
(Manski 1989). These are the figure's bounds; an error rate that was not measured adds nothing to them, and the figure
says that. What has no bounds is withheld where the judge errs in more than one in ten.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import replace
from operator import attrgetter
from statistics import fmean

from klype.examine import repetition
from klype.examine.calibration import rejection_ratio
from klype.examine.estimators import answer_entropy, certain, nothing, per_answer, per_question, same_text
from klype.examine.evidence import Answered, Evidence
from klype.examine.intervals import (
    allowing,
    clopper_pearson,
    ends,
    mean_by_question,
    paired,
    proportion,
    ratio_of_means,
)
from klype.judge.judge import Ruling
from klype.values import Figure

FORM = "stated rules of form"
# Verdicts that are not the judge's own; where the judge may err, politeness and the like are not its own, too.
BY_RULE = {"word_for_word": "word for word", "well_formed": FORM}
MOST_ERRORS = 0.1  # with more, what has no bounds for a judge's errors is withheld
WITHHELD = "the judge errs in more than one in ten"


def verdict(evidence: Evidence, name: str) -> Figure:
    """Share of answers with this verdict. Undecided ones count for neither side; ``decided`` shows them.

    Bounds of ``right`` are those of its share of all answers: all undecided ones wrong, or all right.
    """
    judge = evidence.judge if evidence.errors is None or name == "right" else FORM
    figure = per_answer(evidence, attrgetter(name), "share", BY_RULE.get(name, judge))
    if name != "right" or evidence.errors is None or figure.value is None:
        return figure
    asked = replace(evidence, answers=[answer for answer in evidence.answers if answer.asked])
    least, most, known = (
        per_answer(asked, value, "share")
        for value in (lambda a: a.right is True, lambda a: a.right is not False, lambda a: a.right is not None)
    )
    return allowing(figure, evidence.errors["right"], ends(least)[0], ends(most)[1], ends(known)[1])


def decided(evidence: Evidence, yes: bool) -> Figure:
    """Share of answers that the judge could (``yes``), or could not, decide, where it may not be able to."""
    known = [answer.right is not None for answer in evidence.answers if answer.asked]
    if not known or (evidence.errors is None and all(known)):
        return nothing()
    asked = replace(evidence, answers=[answer for answer in evidence.answers if answer.asked])
    return per_answer(asked, lambda a: (a.right is not None) == yes, "share", evidence.judge)


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
        return nothing()
    groups: dict[str, list[float]] = {}
    for answer in known:
        total = groups.setdefault(answer.question, [0.0, 0.0])
        total[0] += answer.joules or 0.0
        total[1] += float(bool(answer.right))
    if not any(right for _, right in groups.values()):
        # with 0 of n right, at most so many are (Clopper–Pearson)
        least = sum(j for j, _ in groups.values()) / (len(known) * clopper_pearson(0, len(groups))[1])
        return Figure(None, n=len(known), unit="J", why=f"none was right: at least {least:.3g} J")
    energy, rights = [j for j, _ in groups.values()], [r for _, r in groups.values()]
    figure = replace(ratio_of_means(energy, rights, "J per right answer"), judge=evidence.judge)
    share = verdict(evidence, "right")
    if figure.value is None or share.bounds is None:
        return figure
    (low, high), (least, most) = ends(figure), (end or 0.0 for end in share.bounds)
    in_all = share.value or 0.0
    bounds = low * in_all / most, high * in_all / least if least > 0 else None
    return replace(figure, error_rate=share.error_rate, bounds=bounds)


def same_meaning(evidence: Evidence) -> Figure:
    """The chance that two different draws mean the same (U-statistic). Equal texts do, whatever the judge says."""
    figure = _over_meanings(evidence, repetition.agreement, "share of pairs")
    if evidence.errors is None or figure.value is None:
        return figure
    error, alike = evidence.errors["same"], ends(same_text(evidence))[0]
    # nothing is known of the judge: from what equal texts show to all
    least, most = (alike, 1.0) if error.value is None else ends(figure)
    return allowing(figure, error, least, most, within=(alike, 1.0))


def meaning_entropy(evidence: Evidence) -> Figure:
    """Chao–Shen over draws. Bounds: −ln of the chance that two draws mean the same is no more than their meanings'
    entropy, and that of the texts no less."""
    figure = _over_meanings(evidence, repetition.chao_shen, "nats")
    return _entropy_bounds(evidence, figure, same_meaning(evidence).bounds, ends(answer_entropy(evidence))[1])


def _entropy_bounds(
    evidence: Evidence, figure: Figure, same: tuple[float | None, float | None] | None, texts: float
) -> Figure:
    """``same``: the share of pairs of one meaning; ``texts``: the entropy of texts at most."""
    if evidence.errors is None or figure.value is None or same is None:
        return figure
    low, high = ends(figure)
    # Rényi's entropy of order 2 is never above Shannon's
    least = max(0.0, -math.log(min(1.0, same[1] or 1.0)))
    most = max(high, texts) if math.isfinite(texts) and texts > 0 else None
    return replace(figure, error_rate=evidence.errors["same"], bounds=(min(low, least), most))


def _over_meanings(evidence: Evidence, function: Callable[[list[Hashable]], float | None], unit: str) -> Figure:
    """Of the questions all of whose answers have a meaning."""

    def found(answers: list[Answered]) -> float | None:
        meanings = [answer.meaning for answer in answers]
        return None if None in meanings else function(meanings)

    return per_question(evidence, found, unit, evidence.judge)


def replaced(evidence: Evidence) -> Figure:
    """How much rarer right answers are when one of their words was replaced by another as rare."""
    if not evidence.replaced:
        return nothing()
    found = evidence.replaced
    other, own, asked = zip(*((one.other, one.own, one.question) for one in found), strict=True)
    figure = replace(paired(other, own, asked, "difference of shares"), judge=evidence.judge)
    if evidence.errors is None:
        return figure
    (low, high), undecided = ends(figure), fmean(one.undecided for one in found)
    return allowing(figure, evidence.errors["right"], low - undecided, high + undecided, 2, (-1.0, 1.0))


def tree_entropy(evidence: Evidence) -> Figure:
    """Entropy over meanings, mean of its certain bounds."""
    bounds = [tree.meaning_entropy for tree in evidence.trees]
    if not bounds or not all(math.isfinite(high) for _, high in bounds):
        return nothing()
    figure = certain([low for low, _ in bounds], [high for _, high in bounds], "nats")
    same = fmean(_alike([cluster.low for cluster in tree.clusters], tree.unexplored) for tree in evidence.trees)
    if evidence.errors is not None:
        error = evidence.errors["same"]
        same = 1.0 if error.value is None else min(1.0, same + ends(error)[1])
    texts = fmean(tree.entropy[1] for tree in evidence.trees)
    return _entropy_bounds(evidence, replace(figure, judge=evidence.judge), (None, same), texts)


def _alike(masses: Sequence[float], unexplored: float) -> float:
    """The chance that two draws mean the same, at most: all that is unexplored means what is likeliest."""
    most = max(masses, default=0.0)
    return math.fsum(mass**2 for mass in masses) - most**2 + (most + unexplored) ** 2


def forked(evidence: Evidence) -> Figure:
    """Share of answers whose meaning was decided at one word, by the permutation test; one answer a question."""
    if not evidence.forks:
        return nothing()
    k, n = sum(one.fork is not None for one in evidence.forks), len(evidence.forks)
    return by_judge(evidence, proportion(k, n, "share of answers"), "same")


def fork_word(evidence: Evidence) -> Figure:
    """Which word decided, where one did: its mean position."""
    places = [one.fork + 1 for one in evidence.forks if one.fork is not None]
    figure = mean_by_question([float(p) for p in places], list(range(len(places))), "word")
    low = None if figure.low is None else max(1.0, figure.low)  # no word comes before the first
    return by_judge(evidence, replace(figure, low=low), "same")


def selective(evidence: Evidence) -> Figure:
    """Prediction–rejection ratio of the answer's own log-probability a token."""
    known = sureness(evidence)
    if not known:
        return nothing()
    scores, rights, questions = zip(*known, strict=True)
    return by_judge(evidence, rejection_ratio(scores, rights, questions), "right")


def sureness(evidence: Evidence) -> list[tuple[float, bool, str]]:
    """Of every decided answer: nats a token that it cost the model to say it, whether it is right, its question."""
    return [
        (-a.drawn_logp / max(1, a.tokens or len(a.words)), a.right, a.question)
        for a in evidence.answers
        if a.drawn_logp is not None and a.right is not None
    ]
