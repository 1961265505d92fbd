"""All measures in one table. A new one: a function from Evidence to Figure, a row here, two sentences in klype/words.

``measure(evidence)`` gives every figure that the evidence allows. Each row's explanation is ``measure.NAME`` in the
report's catalogue; an explanation is what the figure means, in one line.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from functools import partial
from statistics import fmean
from typing import Literal

from klype.examine import repetition, spread
from klype.examine.divergence import divergence, s_corpus
from klype.examine.evidence import OTHER_MANNERS, Evidence
from klype.examine.intervals import clopper_pearson, mean_by_question, paired, ratio_of_means
from klype.examine.spread import NOTHING, as_share, between, nothing, per_question
from klype.examine.survival import survival, survival_of
from klype.values import Figure


@dataclass(frozen=True, slots=True)
class Measure:
    """``judge``: who decides. "" nobody has to, "meaning" the evidence's judge, "text" equality, "truth" p itself."""

    name: str
    function: Callable[[Evidence], Figure]
    unit: str
    judge: str
    better: Literal["more", "less", "neither"]

    @property
    def key(self) -> str:
        """Of its explanation in the catalogue of words."""
        return f"measure.{self.name}"


def measure(evidence: Evidence, only: Collection[str] | None = None) -> dict[str, Figure]:
    """Every measure (of ``only`` these) that the evidence allows, by name; what has nothing to be measured from is left
    out.
    """
    figures = {row.name: row.function(evidence) for row in MEASURES if only is None or row.name in only}
    return {name: figure for name, figure in figures.items() if figure.value is not None or figure.why != NOTHING}


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


MEASURES: tuple[Measure, ...] = (
    Measure("right", partial(verdict, name="right"), "share", "meaning", "more"),
    Measure("word_for_word", partial(verdict, name="word_for_word"), "share", "text", "more"),
    Measure("undecided", undecided, "share", "meaning", "less"),
    Measure("polite", partial(verdict, name="polite"), "share", "meaning", "more"),
    Measure("concise", partial(verdict, name="concise"), "share", "meaning", "more"),
    Measure("annotator", score, "points", "meaning", "more"),
    Measure("s", s_own, "share a word", "truth", "more"),
    Measure("survival", partial(spread.surviving, curve="r"), "share of answers", "truth", "more"),
    Measure("would_survive", partial(spread.surviving, curve="k"), "share of answers", "truth", "more"),
    Measure("s_corpus", s_of_corpus, "share a word", "truth", "more"),
    Measure("kl", partial(of_truth, name="kl"), "nats a word", "truth", "less"),
    Measure("kl_acceptable", partial(of_truth, name="kl_acceptable"), "nats a word", "truth", "less"),
    Measure("jensen_shannon", partial(of_truth, name="jensen_shannon"), "nats a word", "truth", "less"),
    Measure("overlap", partial(of_truth, name="overlap"), "share", "truth", "more"),
    Measure("log_score", partial(of_truth, name="log_score"), "nats a word", "truth", "less"),
    Measure("brier", partial(of_truth, name="brier"), "squared probability", "truth", "less"),
    Measure("repetition", repeats, "share of 4-grams", "", "less"),
    Measure("loops", loops, "share of words", "", "less"),
    Measure("repetition_beyond", repeats_beyond, "difference of shares", "truth", "less"),
    Measure(
        "distinct",
        partial(per_question, function=lambda a: repetition.distinct([x.words for x in a]), unit="share of 2-grams"),
        "share of 2-grams",
        "",
        "neither",
    ),
    Measure(
        "same_text",
        partial(per_question, function=lambda a: repetition.agreement([x.words for x in a]), unit="share of pairs"),
        "share of pairs",
        "",
        "neither",
    ),
    Measure("same_meaning", spread.same_meaning, "share of pairs", "meaning", "neither"),
    Measure("common_prefix", spread.common_prefix, "words", "", "neither"),
    Measure("answer_entropy", spread.answer_entropy, "nats", "", "neither"),
    Measure("meaning_entropy", spread.meaning_entropy, "nats", "meaning", "neither"),
    Measure("unseen", spread.unseen, "share", "", "less"),
    Measure("answer_mass", spread.answer_mass, "share", "", "neither"),
    Measure("unexplored", spread.unexplored, "share", "", "less"),
    Measure("tree_entropy", spread.tree_entropy, "nats", "meaning", "neither"),
    Measure("independence", partial(spread.surviving, curve="difference"), "difference of shares", "truth", "neither"),
    Measure("weibull_shape", spread.shape, "shape", "truth", "neither"),
    Measure("feedback", partial(spread.feedback, part="difference"), "difference of shares", "truth", "less"),
    Measure("feedback_ratio", partial(spread.feedback, part="ratio"), "times as likely", "truth", "less"),
    Measure("feedback_rare", partial(spread.feedback, part="cautious"), "difference of shares", "truth", "less"),
    Measure("feedback_meaning", spread.replaced, "difference of shares", "meaning", "less"),
    Measure("recovery", partial(spread.feedback, part="recovery", distance=3), "share of answers", "truth", "more"),
    Measure("excess_error", spread.excess, "% more", "truth", "less"),
    Measure("calibration", spread.calibration, "probability", "truth", "less"),
    Measure("best_temperature", spread.temperature, "temperature", "truth", "neither"),
    Measure("selective", spread.selective, "share of what knowing gains", "meaning", "more"),
    Measure("fork", spread.forked, "share of answers", "meaning", "neither"),
    Measure("fork_word", spread.fork_word, "word", "meaning", "neither"),
    Measure("copied", spread.copied, "share of words", "text", "less"),
    Measure("passes", partial(cost, name="passes", unit="passes"), "passes", "", "less"),
    Measure("tokens", partial(cost, name="tokens", unit="tokens"), "tokens", "", "neither"),
    Measure("flops", partial(cost, name="flops", unit="FLOPs"), "FLOPs", "", "less"),
    Measure("bytes_moved", partial(cost, name="bytes_moved", unit="bytes"), "bytes", "", "less"),
    Measure("seconds", partial(cost, name="seconds", unit="s"), "s", "", "less"),
    Measure("joules", partial(cost, name="joules", unit="J"), "J", "", "less"),
    Measure("joules_per_right", joules_per_right, "J per right answer", "meaning", "less"),
)
