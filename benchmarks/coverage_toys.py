"""Toys whose truth is known, for intervals of shares, means, ratios and differences. Those for curves and everything
else are in ``coverage_cases``."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from klype.examine.calibration import excess_error
from klype.examine.error_feedback import InterventionOutcome, effect
from klype.examine.intervals import Limits, mean_by_question, mean_change, ratio_of_means, ratio_over_seeds
from klype.examine.interventions import ARMS, Arm, Intervention
from klype.values import Figure
from klype.world import World

Rng = np.random.Generator
Array = npt.NDArray[np.floating]
Told = dict[str, tuple[Figure, float]]
# (random generator, n) → figures by name, each with the truth
Toy = Callable[[Rng, int], Told]
FEW = (3, 5, 8)
SAME = "fewer than five values differ from the commonest"
UNDERNEATH = "the mean below the line cannot be told from 0"
POINTS: Limits = (-3.0, 3.0)


@dataclass(frozen=True, slots=True)
class Case:
    """A toy and what is expected of its intervals. ``withheld``: why there may be no interval with 30 questions or
    more. ``sizes``: numbers of questions, if not the default. ``times``: factor on the number of runs, where an exact
    interval leaves little room for chance."""

    name: str
    toy: Toy
    conservative: bool = False
    withheld: str = ""
    sizes: tuple[int, ...] = ()
    times: int = 1


def of_values() -> list[Case]:
    """The cases of shares, means, ratios and differences."""
    return [*_shares(), *_means(), *_bounded(), *_ratios(), *_seeds(), *_pairs()]


def one(figure: Figure, truth: float) -> Told:
    """A toy with a single figure."""
    return {"": (figure, truth)}


def _shares() -> list[Case]:
    def trials(p: float) -> Toy:
        return lambda rng, n: one(mean_by_question((rng.random(n) < p).astype(float), range(n)), p)

    def rare(rng: Rng, n: int) -> Told:
        """One question in twenty is nearly always answered wrongly."""
        wrong = np.where(rng.random((n, 1)) < 0.05, 0.9, 0.02)
        return one(_by_question(rng.random((n, 10)) >= wrong), 0.95 * 0.98 + 0.05 * 0.1)

    def differ(rng: Rng, n: int) -> Told:
        return one(_by_question(rng.random((n, 10)) < rng.beta(1.9, 0.1, (n, 1))), 0.95)

    def near(rng: Rng, n: int) -> Told:
        return one(mean_by_question(rng.beta(9.8, 0.2, n), range(n), "share of words"), 0.98)

    def pairs(rng: Rng, n: int) -> Told:
        size = rng.integers(1, 7, n)
        right = rng.binomial(size, 0.995).astype(float)
        return one(ratio_of_means(right, size.astype(float), "share of pairs"), 0.995)

    def words(rng: Rng, n: int) -> Told:
        """Documents of unequal length, one in twenty of them bad."""
        size = rng.integers(5, 60, n).astype(float)
        share = np.where(rng.random(n) < 0.05, 0.4, rng.beta(99, 1, n))
        return one(ratio_of_means(size * share, size, "share of words"), 0.95 * 0.99 + 0.05 * 0.4)

    def s(rng: Rng, n: int) -> Told:
        """S of documents of unequal length, .98 on average."""
        size = rng.integers(15, 45, n).astype(float)
        return one(ratio_of_means(size * rng.beta(98, 2, n), size, "share a word"), 0.98)

    def bad(share: float, times: float) -> Toy:
        """S where a share of documents has a multiple of the error rate of the others, which is .02."""

        def toy(rng: Rng, n: int) -> Told:
            size = rng.integers(15, 45, n).astype(float)
            erred = np.minimum(1.0, rng.beta(20, 980, n) * np.where(rng.random(n) < share, times, 1.0))
            s = 1 - 0.02 * (1 + share * (times - 1))
            return one(ratio_of_means(size * (1 - erred), size, "share a word"), s)

        return toy

    def long(rng: Rng, n: int) -> Told:
        """S where documents have 10 to 100 words, with an error rate per word in proportion to their length."""
        truth = 1 - _moment(10, 2) / _moment(10) / 100
        size = 10.0 ** (1 + rng.random(n))
        return one(ratio_of_means(size * (1 - size / 1000), size, "share a word"), truth)

    return [
        *(Case(f"share of trials, {p:g}", trials(p), True) for p in (0.5, 0.9, 0.995)),
        Case("share, 10 trials a question, rare bad ones", rare, True),
        Case("share, 10 trials a question, questions differ", differ, True),
        Case("share near 1 (Beta(9.8, .2))", near, True),
        Case("share of 1 to 6 pairs a question, .995", pairs, True),
        Case("share of words, rare bad documents", words, True),
        Case("S of documents, a share a word", s, True),
        *(
            Case(f"S, {p:.0%} of documents {times} times as bad", bad(p, times), True)
            for p, times in ((0.08, 5), (0.05, 20), (0.02, 20))
        ),
        Case("S, longer documents worse", long, True),
        Case("share of trials, 0.9, few", trials(0.9), True, sizes=FEW),
        Case("share of 1 to 6 pairs a question, few", pairs, True, sizes=FEW),
        Case("S of documents, few", s, True, sizes=FEW),
        Case("right in the demo world, 2 answers a question", _world(), True),
    ]


def _means() -> list[Case]:
    def mean(draw: Callable[[Rng, int], Array], truth: float) -> Toy:
        return lambda rng, n: one(mean_by_question(draw(rng, n), range(n), "nats"), truth)

    return [
        Case("mean, normal", mean(lambda rng, n: rng.normal(0.2, 1, n), 0.2), True),
        Case("mean, exponential", mean(lambda rng, n: rng.exponential(1, n), 1), True),
        Case("mean, lognormal (σ = 1)", mean(lambda rng, n: rng.lognormal(0, 1, n), math.exp(0.5)), True),
        Case("mean, heavy tails (t₃)", mean(lambda rng, n: rng.standard_t(3, n), 0), True),
        Case(
            "mean, four of five 0", mean(lambda rng, n: (rng.random(n) < 0.2) * rng.exponential(1, n), 0.2), True, SAME
        ),
        Case("mean, 7 % far below", mean(lambda rng, n: -_lost(rng, n, 0.07, 0.3), -0.14), True),
        Case("mean, 7 % far above", mean(lambda rng, n: _lost(rng, n, 0.07, 0.3), 0.14), True),
        Case("mean, exponential, few", mean(lambda rng, n: rng.exponential(1, n), 1), True, sizes=FEW),
    ]


def _lost(rng: Rng, n: int, share: float, spread: float) -> Array:
    """2 points for a share of the answers, 0 for the others, with a spread around both."""
    found: Array = 2.0 * (rng.random(n) < share) + rng.normal(0, spread, n)
    return found


def _bounded() -> list[Case]:
    """Means of values whose bounds are known: an annotator's points, Kendall's τ."""

    def points(share: float, spread: float, up: bool = False) -> Toy:
        """A share of answers is 2 points below (above) the others; values can be 5 points below or above."""

        def toy(rng: Rng, n: int) -> Told:
            sign = 1.0 if up else -1.0
            value_N = sign * np.clip(_lost(rng, n, share, spread), -1, 3)
            return one(mean_by_question(value_N, range(n), "points", within=POINTS), sign * 2 * share)

        return toy

    def tau(rng: Rng, n: int) -> Told:
        """One question in twenty is ranked the wrong way round."""
        value_N = np.where(rng.random(n) < 0.05, -1.0, rng.choice([0.8, 0.9, 1.0], n))
        return one(mean_by_question(value_N, range(n), "tau-b", within=(-1.0, 1.0)), 0.95 * 0.9 - 0.05)

    def change(rng: Rng, n: int) -> Told:
        """Seven answers of a hundred lose 2 points, the others hardly change."""
        before = rng.normal(0, 0.3, n)
        after = np.clip(before - _lost(rng, n, 0.07, 0.1), *POINTS)
        return one(mean_change(before, after, range(n), "points", POINTS), -0.14)

    return [
        *(Case(f"points, {p:.0%} wrong, spread {spread:g}", points(p, spread), True)
          for p, spread in ((0.02, 0.1), (0.07, 0.1), (0.07, 0.3), (0.2, 0.1))),
        Case("points, 7% wrong, the others equal", points(0.07, 0.0), True),
        Case("points, 7% far better", points(0.07, 0.1, up=True), True),
        Case("points, few", points(0.07, 0.1), True, sizes=FEW),
        Case("Kendall's τ-b, one in twenty the wrong way round", tau, True),
        Case("paired, points, 7% worse", change, True),
    ]  # fmt: skip


def _ratios() -> list[Case]:
    def kl(rng: Rng, n: int) -> Told:
        words = rng.integers(20, 60, n).astype(float)
        return one(ratio_of_means(rng.gamma(0.05 * words, 2.0), words, "nats a word"), 0.1)

    def both(rng: Rng, n: int) -> Told:
        return one(ratio_of_means(rng.gamma(2, 1, n), rng.gamma(2, 1, n), "times"), 1.0)

    def joules(p: float) -> Toy:
        def toy(rng: Rng, n: int) -> Told:
            right = (rng.random(n) < p).astype(float)
            return one(ratio_of_means(rng.gamma(5, 1, n), right, "J per right answer"), 5 / p)

        return toy

    def feedback(rng: Rng, n: int) -> Told:
        """Error mass after a wrong word Beta(4, 6), after a right one Beta(1, 9), question by question."""
        found = []
        for i, (wrong, right) in enumerate(zip(rng.beta(4, 6, n), rng.beta(1, 9, n), strict=True)):
            errors: dict[Arm, tuple[float, ...]] = {a: (float(wrong if a == "wrong" else right),) for a in ARMS}
            found.append(InterventionOutcome(Intervention(str(i), (), (1, 2, 2)), errors, errors, errors, (None,)))
        told = effect(found)
        return {"difference": (told.difference[0], 0.3), "ratio": (told.ratio[0], 4.0)}

    def excess(rng: Rng, n: int) -> Told:
        """The divergence on own texts is 1.5 times that on true ones, on average."""
        true = rng.gamma(4, 0.5, n)
        return one(excess_error((1.5 * true * rng.gamma(20, 1 / 20, n)).tolist(), true.tolist()), 50.0)

    def bad(rng: Rng, n: int) -> Told:
        """One document in twelve has five times the divergence."""
        words = rng.integers(20, 60, n).astype(float)
        times = np.where(rng.random(n) < 0.08, 5.0, 1.0)
        return one(ratio_of_means(rng.gamma(0.05 * words, 2.0) * times, words, "nats a word"), 0.1 * 1.32)

    def sizes(most: float, power: float) -> Toy:
        """Documents of 1 to ``most`` times a length (log-uniform), whose cost per word is in proportion to this power
        of their length."""

        def toy(rng: Rng, n: int) -> Told:
            long = most ** rng.random(n)
            cost = long ** (1 + power) * rng.gamma(2, 0.5, n)
            return one(ratio_of_means(cost, long, "nats a word"), _moment(most, 1 + power) / _moment(most))

        return toy

    return [
        Case("ratio, KL a word of documents", kl, True),
        Case("ratio, KL, 8% of documents five times as bad", bad, True),
        *(
            Case(
                f"ratio, documents 1 to {most} times as long, a word's cost ∝ length^{power:g}",
                sizes(most, power),
                True,
            )
            for most, power in ((10, -0.5), (10, 0.5), (10, 1), (30, 0.5), (30, 1))
        ),
        Case("ratio, both sides Gamma(2)", both, True, withheld=UNDERNEATH),
        Case("ratio, joules a right answer, half right", joules(0.5), True, withheld=UNDERNEATH),
        Case("ratio, joules a right answer, one in ten right", joules(0.1), True, UNDERNEATH),
        Case("feedback", feedback, True),
        Case("excess error", excess, True),
    ]


def _moment(most: float, power: float = 1.0) -> float:
    """E[x^power] for ln x uniform between 0 and ln ``most``."""
    return float((most**power - 1) / (power * math.log(most)))


def _seeds() -> list[Case]:
    """Values of a few training runs, which are nearly normal."""

    def mean(rng: Rng, n: int) -> Told:
        return one(ratio_over_seeds(rng.normal(1, 0.1, n), np.ones(n), "nats a word"), 1.0)

    def gap(rng: Rng, n: int) -> Told:
        """A cure closes .3 of the gap from 1 to .5; the effect of a seed is common to all three."""
        common = rng.normal(0, 0.05, n)
        base, cure, best = (common + rng.normal(mean, 0.03, n) for mean in (1.0, 0.85, 0.5))
        return one(ratio_over_seeds(base - cure, base - best, "share of the gap"), 0.3)

    return [
        Case("over seeds, mean", mean, sizes=FEW, times=5),
        Case("over seeds, share of a gap", gap, sizes=FEW, times=5),
    ]


def _pairs() -> list[Case]:
    def changed(share: float, samples: int, up: float) -> Toy:
        """A share of answers changes, each for the better with probability ``up``."""

        def toy(rng: Rng, n: int) -> Told:
            before = rng.random((n, samples)) < 0.5
            better = rng.random((n, samples)) < up
            change = rng.random((n, samples)) < share
            a, b = (np.where(change, side, before).astype(float).ravel() for side in (~better, better))
            return one(mean_change(a, b, np.repeat(np.arange(n), samples).tolist()), share * (2 * up - 1))

        return toy

    def whole(rng: Rng, n: int) -> Told:
        """One question in twenty-five becomes wrong, with all of its answers."""
        b = np.repeat(rng.random(n) >= 0.04, 5).astype(float)
        return one(mean_change(np.ones(5 * n), b, np.repeat(np.arange(n), 5).tolist()), -0.04)

    def scores(rng: Rng, n: int) -> Told:
        a = rng.normal(0, 1, n)
        return one(mean_change(a, a + rng.exponential(1, n) - 0.5, range(n), "points"), 0.5)

    return [
        Case("paired, 2 % change", changed(0.02, 1, 0.5), True),
        Case("paired, 2 % change, for the better", changed(0.02, 1, 0.95), True),
        Case("paired, 2 % change, 10 answers a question", changed(0.02, 10, 0.5), True),
        Case("paired, 20 % change, for the better", changed(0.2, 1, 0.8), True),
        Case("paired, one question in 25 changes", whole, True),
        Case("paired, 20 % change, few", changed(0.2, 1, 0.8), True, sizes=FEW),
        Case("paired, scores", scores, True),
    ]


def _by_question(right_MN: npt.NDArray[np.bool_]) -> Figure:
    questions = np.repeat(np.arange(len(right_MN)), right_MN.shape[1]).tolist()
    return mean_by_question(right_MN.astype(float).ravel(), questions)


def _world() -> Toy:
    """Answers of mixed style to 300 questions, judged by the grammar; samples of the questions are asked."""
    world = World("small")
    rng = random.Random(0)
    table = []
    for i in range(300):
        question = world.question(rng)
        wrong = (i % 10) / 20
        manners = ["wrong" if rng.random() < wrong else "sentence" for _ in range(6)]
        said = [world.answer(question, manner, rng) for manner in manners]  # type: ignore[arg-type]
        table.append([bool(world.judge(question, text).right) for text in said])
    right_MN = np.array(table)

    def toy(noise: Rng, n: int) -> Told:
        asked, drawn = noise.integers(0, 300, n), noise.integers(0, 6, (n, 2))
        return one(_by_question(right_MN[asked[:, None], drawn]), float(right_MN.mean()))

    return toy
