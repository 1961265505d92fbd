"""Estimators: functions from Evidence to Figure, one for each row of MEASURES.

A figure that rests on a judge names the judge and, where it can err, its error rate. It is unknown in which direction a
judge errs. The figure's bounds therefore assume as many errors as the upper end of the error rate allows, all in one
direction (Horowitz & Manski 1995), and that undecided answers may be either (Manski 1989). An error rate that was not
measured does not widen the bounds, and the figure says so. A figure without bounds is withheld where the judge errs in
more than one case in ten.
"""

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
from klype.examine.intervals import Limits, ends, mean_by_question, mean_change, with_bounds
from klype.examine.survival import survival, survival_of, weibull_shape
from klype.examine.truth import divergence, s_corpus
from klype.judge.judge import Ruling
from klype.values import Figure

NOTHING = "nothing was measured"
AT = 20  # the position at which survival curves become one figure, or their end if they are shorter
FORM = "stated rules of form"
# Verdicts that rules decide instead of the judge; where the judge may err, these also decide on politeness and such.
BY_RULE = {"word_for_word": "word for word", "well_formed": FORM}
MAX_ERRORS = 0.1  # the error rate above which figures without bounds are withheld
WITHHELD = "the judge errs in more than one in ten"
DIFFERENCE = (-1.0, 1.0)  # the range of a difference of shares
NO_FIGURE = Figure(None, why=NOTHING)
OfAnswer = Callable[[JudgedAnswer], float | None]


def per_answer(evidence: Evidence, value: OfAnswer, unit: str, judge: str = "", within: Limits | None = None) -> Figure:
    """The mean over questions of ``value(answer)``; answers for which it is None are left out."""
    known = [(answer.question, found) for answer in evidence.answers if (found := value(answer)) is not None]
    return mean_by_question([float(v) for _, v in known], [q for q, _ in known], unit, judge, within)


def mean_of(name: str, unit: str, evidence: Evidence) -> Figure:
    """The mean over questions of a field of ``JudgedAnswer``."""
    return per_answer(evidence, attrgetter(name), unit)


def per_question(
    evidence: Evidence, function: Callable[[list[JudgedAnswer]], float | None], unit: str, judge: str = ""
) -> Figure:
    """The mean over questions of ``function(answers)``; questions for which it is None are left out."""
    values = {q: value for q, answers in by_question(evidence).items() if (value := function(answers)) is not None}
    return mean_by_question(list(values.values()), list(values), unit, judge)


def by_question(evidence: Evidence) -> dict[str, list[JudgedAnswer]]:
    """The answers to each question."""
    groups: dict[str, list[JudgedAnswer]] = {}
    for answer in evidence.answers:
        groups.setdefault(answer.question, []).append(answer)
    return groups


def over_texts(function: Callable[[list[tuple[str, ...]]], float | None], unit: str, evidence: Evidence) -> Figure:
    """The mean over questions of a function of their answers' words."""
    return per_question(evidence, lambda answers: function([a.words for a in answers]), unit)


def over_meanings(function: Callable[[list[Hashable]], float | None], unit: str, evidence: Evidence) -> Figure:
    """The mean over questions of a function of their answers' meanings, where all of them are known."""

    def found(answers: list[JudgedAnswer]) -> float | None:
        meanings = [answer.meaning for answer in answers]
        return None if None in meanings else function(meanings)

    return per_question(evidence, found, unit, evidence.judge)


# Beside the truth


def s_own(evidence: Evidence) -> Figure:
    """S: the probability mass on words that can follow, after the model's own error-free prefixes."""
    if evidence.answers and all(answer.s_bounds for answer in evidence.answers):
        sides = ([replace(a, s=tuple(ends[i] for ends in a.s_bounds)) for a in evidence.answers] for i in (0, 1))
        return figure_between(*(survival(side).s for side in sides))
    known = evidence.answers and all(answer.s for answer in evidence.answers)
    return survival_of(evidence).s if known else NO_FIGURE


def beside_truth(evidence: Evidence, given: Sequence[object], make: Callable[[], Figure]) -> Figure:
    """``make()``, a figure that compares the model's probabilities with the truth's; none without the data ``given``,
    or where alignment changed the style of answers."""
    if not given:
        return NO_FIGURE
    return Figure(None, why=OTHER_MANNERS) if evidence.other_manners else make()


def of_truth(name: str, evidence: Evidence) -> Figure:
    """A divergence of the model's distribution from the truth's, where the truth is known."""
    documents = evidence.documents
    return beside_truth(evidence, documents, lambda: divergence(documents, name))


def s_of_corpus(evidence: Evidence) -> Figure:
    """S after prefixes drawn from the truth."""
    return s_corpus(evidence.documents) if evidence.documents else NO_FIGURE


def calibration(evidence: Evidence) -> Figure:
    """The calibration error of the most likely next token, after the model's own error-free prefixes."""
    told = evidence.told
    return beside_truth(evidence, told, lambda: probabilities.calibration_error(*zip(*told, strict=True)))


def temperature(evidence: Evidence) -> Figure:
    """The temperature at which the model's distributions are closest to the truth's."""
    rows = [one.cross_entropies for one in evidence.sums if one.cross_entropies]
    return beside_truth(evidence, rows, lambda: probabilities.best_temperature(np.array(rows)))


def excess(evidence: Evidence) -> Figure:
    """ExAccErr: how much larger KL(p‖q) is along the model's own answers than along true ones, in percent."""
    pairs = [(one.own_kl, one.true_kl) for one in evidence.sums if math.isfinite(one.own_kl + one.true_kl)]
    return beside_truth(evidence, pairs, lambda: probabilities.excess_error(*zip(*pairs, strict=True)))


def curve_at(curve: Literal["r", "k", "difference"], evidence: Evidence) -> Figure:
    """R, K or K − Π(1 − h̄_t) at position ``AT``, or at the last one before it that has a value."""
    if not evidence.by_word:
        return NO_FIGURE
    figures: Sequence[Figure] = getattr(survival_of(evidence), curve)
    return next((figure for figure in figures[:AT][::-1] if figure.value is not None), figures[0])


def shape(evidence: Evidence) -> Figure:
    return weibull_shape(evidence.answers) if evidence.by_word else NO_FIGURE


def effect_of(evidence: Evidence) -> Effect:
    """The feedback experiment's effect, computed once."""
    return evidence.once("effect", lambda: effect(evidence.outcomes))


def feedback(
    part: Literal["difference", "ratio", "recovery", "cautious"], evidence: Evidence, distance: int = 1
) -> Figure:
    """The feedback experiment's effect at a distance, or at the longest one if that is shorter."""
    if not evidence.outcomes:
        return NO_FIGURE
    figures: Sequence[Figure] = getattr(effect_of(evidence), part)
    return figures[min(distance, len(figures)) - 1]


# How answers repeat themselves and each other, and what that says of those unseen


def repeats_beyond(evidence: Evidence) -> Figure:
    """seq-rep-4 minus that of true answers to the same questions."""
    both = []
    for question, answers in by_question(evidence).items():
        own = [value for answer in answers if (value := repetition.repeated_share(answer.words)) is not None]
        language = repetition.repeated_share((evidence.language or {}).get(question, ()))
        if own and language is not None:
            both.append((question, fmean(own), language))
    if not both:
        return NO_FIGURE
    questions, model, truth = zip(*both, strict=True)
    return mean_change(truth, model, questions, "difference of shares")


def repeats(evidence: Evidence) -> Figure:
    """seq-rep-4: the share of an answer's 4-grams that repeat an earlier one."""
    return per_answer(evidence, lambda a: repetition.repeated_share(a.words), "share of 4-grams")


def loops(evidence: Evidence) -> Figure:
    """The share of an answer's words, at its end, that only repeat the words just before them."""
    return per_answer(
        evidence, lambda a: repetition.loop(a.words) / len(a.words) if a.words else None, "share of words"
    )


def distinct(evidence: Evidence) -> Figure:
    """distinct-2: the share of different word pairs among all those of a question's answers."""
    return over_texts(repetition.distinct, "share of 2-grams", evidence)


def common_prefix(evidence: Evidence) -> Figure:
    return over_texts(repetition.common_prefix, "words", evidence)


def same_text(evidence: Evidence) -> Figure:
    """The probability that two answers to one question have the same text."""
    return over_texts(repetition.agreement, "share of pairs", evidence)


def answer_entropy(evidence: Evidence) -> Figure:
    """The mean of Σ_t H(q_t) over answers: an unbiased estimate of the entropy of token sequences."""
    if evidence.answers and all(a.entropy_bounds is not None for a in evidence.answers):
        ends = (lambda a: a.entropy_bounds and a.entropy_bounds[0], lambda a: a.entropy_bounds and a.entropy_bounds[1])
        return figure_between(*(per_answer(evidence, end, "nats") for end in ends))
    return mean_of("entropy", "nats", evidence)


def figure_between(low: Figure, high: Figure) -> Figure:
    """A figure that is only known to lie between two others: their midpoint, with an interval that spans both.

    Without a finite upper end there is no value, and ``why`` gives the lower end. Where one of the two has no interval,
    the result has certain bounds for these questions.
    """
    if low.value is None or high.value is None:
        return low
    if not math.isfinite(high.value):
        return Figure(None, n=low.n, unit=low.unit, why=f"only likely words are told: at least {low.value:.3g}")
    middle = (low.value + high.value) / 2
    if low.low is None or high.high is None:
        return replace(low, value=middle, low=low.value, high=high.value, certain=True, why="")
    return replace(low, value=middle, low=low.low, high=high.high, why="")


def unseen_mass(evidence: Evidence) -> Figure:
    """The probability of answers that were not drawn: exact per question, or Good–Turing's n₁/N where the answers'
    probabilities are unknown (with Esty's interval if there is only one question)."""
    if len({a.question for a in evidence.answers}) == 1 and any(a.drawn_logp is None for a in evidence.answers):
        return repetition.good_turing([(a.words, a.ended) for a in evidence.answers])

    def left(answers: list[JudgedAnswer]) -> float | None:
        known = [(a, a.drawn_logp) for a in answers if a.drawn_logp is not None]
        if len(known) < len(answers):
            return repetition.good_turing([(a.words, a.ended) for a in answers]).value if len(answers) > 1 else None
        # two tokenizations of one text are different draws, each with its own probability
        return repetition.unseen_known([((a.words, a.ended, round(logp, 3)), logp) for a, logp in known])

    return per_question(evidence, left, "share")


def answer_mass(evidence: Evidence) -> Figure:
    """The probability of the most probable answer: the mean of its certain bounds over the trees."""
    modes = [tree.answers[0] for tree in evidence.trees if tree.answers]
    return certain([(mode.low, mode.high) for mode in modes], "share")


def unexplored_mass(evidence: Evidence) -> Figure:
    return certain([(tree.unexplored, tree.unexplored) for tree in evidence.trees], "share")


def certain(bounds: Sequence[tuple[float, float]], unit: str) -> Figure:
    """The mean of values of which only bounds (low, high) are known, as certain bounds."""
    if not bounds:
        return NO_FIGURE
    least, most = (fmean(ends) for ends in zip(*bounds, strict=True))
    return Figure((least + most) / 2, least, most, len(bounds), unit, certain=True)


# What rests on a judge


def verdict(name: str, evidence: Evidence) -> Figure:
    """The share of answers for which a verdict (``right``, ``polite``, …) is true, among those where it was decided.

    The bounds of ``right`` are for its share of all answers: with all undecided ones wrong, or all correct.
    """
    judge = evidence.judge if evidence.errors is None or name == "right" else FORM
    figure = per_answer(evidence, attrgetter(name), "share", BY_RULE.get(name, judge))
    if name != "right" or evidence.errors is None or figure.value is None:
        return figure
    least, most, known = (
        per_answer(evidence.referenced, value, "share")
        for value in (lambda a: a.right is True, lambda a: a.right is not False, lambda a: a.right is not None)
    )
    return with_bounds(figure, evidence.errors["right"], ends(least)[0], ends(most)[1], ends(known)[1])


def decided_share(yes: bool, evidence: Evidence) -> Figure:
    """The share of answers that the judge could decide (``yes``) or could not; none where it can decide all."""
    answers = evidence.referenced.answers
    if not answers or (evidence.errors is None and all(a.right is not None for a in answers)):
        return NO_FIGURE
    return per_answer(evidence.referenced, lambda a: (a.right is not None) == yes, "share", evidence.judge)


def by_judge(evidence: Evidence, figure: Figure, ruling: Ruling) -> Figure:
    """The figure with its judge and error rate; withheld where that is above ``MAX_ERRORS``."""
    error = evidence.errors[ruling] if evidence.errors is not None else None
    if error is not None and (error.value or 0.0) > MAX_ERRORS:
        return Figure(None, n=figure.n, unit=figure.unit, judge=evidence.judge, error_rate=error, why=WITHHELD)
    return replace(figure, judge=evidence.judge, error_rate=error)


def score(evidence: Evidence) -> Figure:
    """The annotator's mean score."""
    judge = evidence.judge if evidence.errors is None else FORM
    return per_answer(evidence, attrgetter("score"), "points", judge, evidence.points)


def joules_per_right(evidence: Evidence) -> Figure:
    """Σ energy / Σ correct answers. Without a correct answer there is no value, and ``why`` gives a lower bound."""
    known = [a for a in evidence.answers if a.joules is not None and a.right is not None]
    if not known:
        return NO_FIGURE
    groups = by_question(replace(evidence, answers=known)).values()
    energy = [sum((a.joules or 0.0 for a in group), 0.0) for group in groups]
    rights = [float(sum(bool(a.right) for a in group)) for group in groups]
    if not any(rights):
        # the upper Clopper–Pearson limit of 0 correct among n
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
    """The probability that two answers to one question mean the same (U-statistic). Equal texts always do."""
    figure = over_meanings(repetition.agreement, "share of pairs", evidence)
    if evidence.errors is None or figure.value is None:
        return figure
    error, alike = evidence.errors["same"], ends(same_text(evidence))[0]
    # with an unknown error rate, anything from the share of equal texts up is possible
    least, most = (alike, 1.0) if error.value is None else ends(figure)
    return with_bounds(figure, error, least, most, within=(alike, 1.0))


def meaning_entropy(evidence: Evidence) -> Figure:
    """The Chao–Shen entropy of meanings. Bounds: −ln P(two answers mean the same) from below, and the entropy of texts
    from above."""
    figure, same = over_meanings(repetition.chao_shen, "nats", evidence), same_meaning(evidence).bounds
    return figure if same is None else entropy_bounds(evidence, figure, same[1], ends(answer_entropy(evidence))[1])


def entropy_bounds(evidence: Evidence, figure: Figure, same: float | None, texts: float) -> Figure:
    """The figure with bounds for the judge's errors. ``same``: the highest possible share of pairs that mean the same;
    ``texts``: the highest possible entropy of texts."""
    if evidence.errors is None or figure.value is None:
        return figure
    low, high = ends(figure)
    # Rényi's entropy of order 2 is never above Shannon's
    least = max(0.0, -math.log(min(1.0, same or 1.0)))
    most = max(high, texts) if math.isfinite(texts) and texts > 0 else None
    return replace(figure, error_rate=evidence.errors["same"], bounds=(min(low, least), most))


def swap_effect(evidence: Evidence) -> Figure:
    """How much rarer correct answers are after one word was replaced by another one as rare."""
    if not (found := evidence.replaced):
        return NO_FIGURE
    other, own, asked = zip(*((one.other, one.own, one.question) for one in found), strict=True)
    figure = replace(mean_change(other, own, asked, "difference of shares"), judge=evidence.judge)
    if evidence.errors is None:
        return figure
    (low, high), undecided = ends(figure), fmean(one.undecided for one in found)
    return with_bounds(figure, evidence.errors["right"], low - undecided, high + undecided, 2, DIFFERENCE)


def tree_entropy(evidence: Evidence) -> Figure:
    """The entropy of meanings: the mean of its certain bounds over the trees."""
    bounds = [tree.meaning_entropy for tree in evidence.trees]
    if not bounds or not all(math.isfinite(high) for _, high in bounds):
        return NO_FIGURE
    # the highest P(two answers mean the same): everything unexplored has the most likely meaning
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


def fork_share(evidence: Evidence) -> Figure:
    """The share of answers whose meaning was decided at one word, by the permutation test; one answer per question."""
    if not evidence.forks:
        return NO_FIGURE
    k, n = sum(one.fork is not None for one in evidence.forks), len(evidence.forks)
    return by_judge(evidence, intervals.proportion(k, n, "share of answers"), "same")


def fork_word(evidence: Evidence) -> Figure:
    """The mean position of the word that decided the meaning, where one did."""
    places = [float(one.fork + 1) for one in evidence.forks if one.fork is not None]
    figure = mean_by_question(places, range(len(places)), "word")
    low = None if figure.low is None else max(1.0, figure.low)  # no word comes before the first
    return by_judge(evidence, replace(figure, low=low), "same")


def selective(evidence: Evidence) -> Figure:
    """The prediction–rejection ratio of the answer's mean log-probability per token."""
    if not (known := sureness(evidence)):
        return NO_FIGURE
    scores, rights, questions = zip(*known, strict=True)
    return by_judge(evidence, probabilities.rejection_ratio(scores, rights, questions), "right")


def sureness(evidence: Evidence) -> list[tuple[float, bool, str]]:
    """(uncertainty, correct, question) of every decided answer; uncertainty: −log-probability per token, in nats."""
    return [
        (-a.drawn_logp / max(1, a.tokens or len(a.words)), a.right, a.question)
        for a in evidence.answers
        if a.drawn_logp is not None and a.right is not None
    ]
