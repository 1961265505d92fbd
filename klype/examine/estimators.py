"""Estimators of what one answer or one next word tells: from Evidence to Figure, each used by a row of MEASURES."""

from __future__ import annotations

from dataclasses import replace
from statistics import fmean

from klype.examine import repetition
from klype.examine.divergence import divergence, s_corpus
from klype.examine.evidence import OTHER_MANNERS, Evidence
from klype.examine.intervals import clopper_pearson, mean_by_question, paired, ratio_of_means
from klype.examine.spread import as_share, between, nothing, per_question
from klype.examine.survival import survival, survival_of
from klype.values import Figure


def verdict(evidence: Evidence, name: str) -> Figure:
    """Share of answers with this verdict. Undecided ones count for neither side; ``undecided`` shows them."""
    decided = [(answer.question, value) for answer in evidence.answers if (value := getattr(answer, name)) is not None]
    judge = "word for word" if name == "word_for_word" else evidence.judge
    return mean_by_question([float(v) for _, v in decided], [q for q, _ in decided], "share", judge)


def undecided(evidence: Evidence) -> Figure:
    """Share of answers that the judge could not decide, where it decided any."""
    values = [float(answer.right is None) for answer in evidence.answers]
    if all(values):
        return nothing()
    asked = [answer.question for answer in evidence.answers]
    return mean_by_question(values, asked, "share", evidence.judge)


def score(evidence: Evidence) -> Figure:
    """The annotator's mean score."""
    scored = [(answer.question, answer.score) for answer in evidence.answers if answer.score is not None]
    return mean_by_question([s for _, s in scored], [q for q, _ in scored], "points", evidence.judge, evidence.points)


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


def repeats(evidence: Evidence, n: int = 4) -> Figure:
    """seq-rep-4 of the answers long enough to have one."""
    long = [(a.question, value) for a in evidence.answers if (value := repetition.repeated(a.words, n)) is not None]
    figure = mean_by_question([v for _, v in long], [q for q, _ in long], "share of 4-grams")
    return as_share(figure)


def repeats_beyond(evidence: Evidence, n: int = 4) -> Figure:
    """seq-rep-4 less that of the language's own answers to the same questions."""
    own: dict[str, list[float]] = {}
    for answer in evidence.answers:
        if (value := repetition.repeated(answer.words, n)) is not None:
            own.setdefault(answer.question, []).append(value)
    language = {q: repetition.repeated(words, n) for q, words in (evidence.language or {}).items()}
    both = [(q, fmean(values), known) for q, values in own.items() if (known := language.get(q)) is not None]
    if not both:
        return nothing()
    questions, model, truth = zip(*both, strict=True)
    return paired(truth, model, questions, "difference of shares")


def loops(evidence: Evidence) -> Figure:
    """Share of an answer's words, at its end, that only repeat the words just before them."""
    said = [(a.question, repetition.loop(a.words) / len(a.words)) for a in evidence.answers if a.words]
    return as_share(mean_by_question([v for _, v in said], [q for q, _ in said], "share of words"))


def distinct(evidence: Evidence) -> Figure:
    """Different pairs of words among all of a question's answers."""
    return per_question(evidence, lambda a: repetition.distinct([x.words for x in a]), "share of 2-grams")


def same_text(evidence: Evidence) -> Figure:
    """The chance that two different draws are equal to the letter."""
    return per_question(evidence, lambda a: repetition.agreement([x.words for x in a]), "share of pairs")


def cost(evidence: Evidence, name: str, unit: str) -> Figure:
    """Mean per answer."""
    known = [(answer.question, value) for answer in evidence.answers if (value := getattr(answer, name)) is not None]
    return mean_by_question([float(v) for _, v in known], [q for q, _ in known], unit)


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
        least = sum(j for j, _ in groups.values()) / (len(known) * clopper_pearson(0, len(groups))[1])
        return Figure(None, n=len(known), unit="J", why=f"none was right: at least {least:.3g} J")
    energy, right = [j for j, _ in groups.values()], [r for _, r in groups.values()]
    return ratio_of_means(energy, right, "J per right answer")
