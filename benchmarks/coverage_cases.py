"""The cases of the coverage benchmark: toys whose truth is known, each from n questions (documents, draws)."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
from scipy import special

from klype.answers.forks import strength
from klype.examine.calibration import calibration_error
from klype.examine.diversity import good_turing
from klype.examine.evidence import Answered
from klype.examine.feedback import ARMS, Aftermath, Arm, Shock
from klype.examine.feedback_effect import effect
from klype.examine.independence import weibull_shape
from klype.examine.intervals import mean_by_question, paired, ratio_of_means
from klype.examine.selective import rejection_ratio
from klype.examine.survival import survival
from klype.examine.tuning import TEMPERATURES, best_temperature, excess_error
from klype.values import Figure
from klype.world import World

Rng = np.random.Generator
Array = npt.NDArray[np.floating]
Told = dict[str, tuple[Figure, float]]
Toy = Callable[[Rng, int], Told]
"""(noise, n) → figures by name, each with the truth."""
LONG = 14
"""Words of the longest answer that is drawn here."""


@dataclass(frozen=True, slots=True)
class Case:
    """``withheld``: why there may be no interval with 30 questions or more. ``sizes``: where they are not the usual."""

    name: str
    toy: Toy
    conservative: bool = False
    withheld: str = ""
    sizes: tuple[int, ...] = ()


SAME = "fewer than five values differ from the commonest"
UNDERNEATH = "the mean below the line cannot be told from 0"
AT_RISK = "fewer than ten questions are still right and open there"
ERRORS = "fewer than ten errors"
FEW = "fewer than ten answers are right, or fewer are wrong"


def cases() -> list[Case]:
    """All estimators that put an interval on a figure."""
    return [*_shares(), *_means(), *_ratios(), *_pairs(), *_curves(), *_others()]


def _shares() -> list[Case]:
    def trials(p: float) -> Toy:
        return lambda rng, n: _one(mean_by_question((rng.random(n) < p).astype(float), range(n)), p)

    def rare(rng: Rng, n: int) -> Told:
        """One question in twenty is nearly always answered wrongly."""
        wrong = np.where(rng.random((n, 1)) < 0.05, 0.9, 0.02)
        return _one(_by_question(rng.random((n, 10)) >= wrong), 0.95 * 0.98 + 0.05 * 0.1)

    def differ(rng: Rng, n: int) -> Told:
        return _one(_by_question(rng.random((n, 10)) < rng.beta(1.9, 0.1, (n, 1))), 0.95)

    def near(rng: Rng, n: int) -> Told:
        return _one(mean_by_question(rng.beta(9.8, 0.2, n), range(n), "share of words"), 0.98)

    def pairs(rng: Rng, n: int) -> Told:
        size = rng.integers(1, 7, n)
        right = rng.binomial(size, 0.995).astype(float)
        return _one(ratio_of_means(right, size.astype(float), "share of pairs"), 0.995)

    def words(rng: Rng, n: int) -> Told:
        """Documents of unequal length, one in twenty of them bad."""
        size = rng.integers(5, 60, n).astype(float)
        share = np.where(rng.random(n) < 0.05, 0.4, rng.beta(99, 1, n))
        return _one(ratio_of_means(size * share, size, "share of words"), 0.95 * 0.99 + 0.05 * 0.4)

    def s(rng: Rng, n: int) -> Told:
        """S of documents of unequal length, .98 in the mean."""
        size = rng.integers(15, 45, n).astype(float)
        return _one(ratio_of_means(size * rng.beta(98, 2, n), size, "share a word"), 0.98)

    return [
        *(Case(f"share of trials, {p:g}", trials(p), True) for p in (0.5, 0.9, 0.995)),
        Case("share, 10 trials a question, rare bad ones", rare, True),
        Case("share, 10 trials a question, questions differ", differ, True),
        Case("share near 1 (Beta(9.8, .2))", near, True),
        Case("share of 1 to 6 pairs a question, .995", pairs, True),
        Case("share of words, rare bad documents", words, True),
        Case("S of documents, a share a word", s, True),
        Case("right in the demo world, 2 answers a question", _world(), True),
    ]


def _means() -> list[Case]:
    def mean(draw: Callable[[Rng, int], Array], truth: float) -> Toy:
        return lambda rng, n: _one(mean_by_question(draw(rng, n), range(n), "nats"), truth)

    return [
        Case("mean, normal", mean(lambda rng, n: rng.normal(0.2, 1, n), 0.2)),
        Case("mean, exponential", mean(lambda rng, n: rng.exponential(1, n), 1)),
        Case("mean, lognormal (σ = 1)", mean(lambda rng, n: rng.lognormal(0, 1, n), math.exp(0.5))),
        Case("mean, heavy tails (t₃)", mean(lambda rng, n: rng.standard_t(3, n), 0)),
        Case(
            "mean, four of five 0", mean(lambda rng, n: (rng.random(n) < 0.2) * rng.exponential(1, n), 0.2), True, SAME
        ),
    ]


def _ratios() -> list[Case]:
    def kl(rng: Rng, n: int) -> Told:
        words = rng.integers(20, 60, n).astype(float)
        return _one(ratio_of_means(rng.gamma(0.05 * words, 2.0), words, "nats a word"), 0.1)

    def both(rng: Rng, n: int) -> Told:
        return _one(ratio_of_means(rng.gamma(2, 1, n), rng.gamma(2, 1, n), "times"), 1.0)

    def joules(p: float) -> Toy:
        def toy(rng: Rng, n: int) -> Told:
            right = (rng.random(n) < p).astype(float)
            return _one(ratio_of_means(rng.gamma(5, 1, n), right, "J per right answer"), 5 / p)

        return toy

    def feedback(rng: Rng, n: int) -> Told:
        """Error mass after a wrong word Beta(4, 6), after a right one Beta(1, 9), question by question."""
        found = []
        for i, (wrong, right) in enumerate(zip(rng.beta(4, 6, n), rng.beta(1, 9, n), strict=True)):
            errors: dict[Arm, tuple[float, ...]] = {a: (float(wrong if a == "wrong" else right),) for a in ARMS}
            found.append(Aftermath(Shock(str(i), (), (1, 2, 2), 0.9), errors, errors, errors, (None,)))
        told = effect(found)
        return {"difference": (told.difference[0], 0.3), "ratio": (told.ratio[0], 4.0)}

    def excess(rng: Rng, n: int) -> Told:
        """Own divergence is 1.5 times the true one in the mean."""
        true = rng.gamma(4, 0.5, n)
        return _one(excess_error((1.5 * true * rng.gamma(20, 1 / 20, n)).tolist(), true.tolist()), 50.0)

    return [
        Case("ratio, KL a word of documents", kl),
        Case("ratio, both sides Gamma(2)", both, withheld=UNDERNEATH),
        Case("ratio, joules a right answer, half right", joules(0.5), withheld=UNDERNEATH),
        Case("ratio, joules a right answer, one in ten right", joules(0.1), True, UNDERNEATH),
        Case("feedback", feedback),
        Case("excess error", excess),
    ]


def _pairs() -> list[Case]:
    def changed(share: float, samples: int, up: float) -> Toy:
        """So many answers change, each for the better with probability ``up``."""

        def toy(rng: Rng, n: int) -> Told:
            before = rng.random((n, samples)) < 0.5
            better = rng.random((n, samples)) < up
            change = rng.random((n, samples)) < share
            a, b = (np.where(change, side, before).astype(float).ravel() for side in (~better, better))
            return _one(paired(a, b, np.repeat(np.arange(n), samples).tolist()), share * (2 * up - 1))

        return toy

    def whole(rng: Rng, n: int) -> Told:
        """One question in twenty-five is lost, with all its answers."""
        b = np.repeat(rng.random(n) >= 0.04, 5).astype(float)
        return _one(paired(np.ones(5 * n), b, np.repeat(np.arange(n), 5).tolist()), -0.04)

    def scores(rng: Rng, n: int) -> Told:
        a = rng.normal(0, 1, n)
        return _one(paired(a, a + rng.exponential(1, n) - 0.5, range(n), "points"), 0.5)

    return [
        Case("paired, 2 % change", changed(0.02, 1, 0.5), True),
        Case("paired, 2 % change, for the better", changed(0.02, 1, 0.95), True),
        Case("paired, 2 % change, 10 answers a question", changed(0.02, 10, 0.5), True),
        Case("paired, 20 % change, for the better", changed(0.2, 1, 0.8), True),
        Case("paired, one question in 25 changes", whole, True),
        Case("paired, scores", scores),
    ]


def _curves() -> list[Case]:
    def same(rng: Rng, n: int) -> Told:
        """Every word errs with .05, and from the third on an answer ends with .12: S^n holds."""
        return _survived(rng, np.full((n, 1), 0.05), 0.12, 1, [0.95**t for t in range(1, LONG + 1)], 0.95)

    def differ(rng: Rng, n: int) -> Told:
        """e ~ Beta(2, 18) a question, which answers to no end: K_t = R_t = B(2, 18 + t) / B(2, 18)."""
        k = [float(special.beta(2, 18 + t) / special.beta(2, 18)) for t in range(1, LONG + 1)]
        at_risk = np.array([1.0, *k[:-1]])
        s = 1 - float((at_risk - np.array(k)).sum() / at_risk.sum())
        hazard = rng.beta(2, 18, (n, 1))
        told = _survived(rng, hazard, 0.0, 3, k, s)
        exact = [replace(a, s=(1 - float(hazard[int(a.question), 0]),) * (a.first_error or LONG))
                 for a in _answers(rng, np.broadcast_to(hazard, (n, LONG)), 0.0, 3)]  # fmt: skip
        beside = [*survival(exact).difference, *[NOBODY] * LONG]
        return told | {f"K beside each position's hazard at {t}": (beside[t - 1], k[t - 1] - 0.9**t) for t in (5, 10)}

    def shape(rng: Rng, n: int) -> Told:
        t = np.arange(1, 13)
        hazards = 1 - np.exp(-(0.06**1.5) * (t**1.5 - (t - 1) ** 1.5))
        return _one(weibull_shape(_answers(rng, np.tile(hazards, (n, 1)), 0.0, 1)), 1.5)

    return [
        Case("survival, answers end", same, True, AT_RISK),
        Case("survival, questions differ, 3 answers each", differ, True, AT_RISK),
        Case("Weibull shape", shape, withheld=ERRORS),
    ]


def _survived(rng: Rng, hazard: Array, end: float, samples: int, k: list[float], s: float) -> Told:
    found = survival(_answers(rng, np.broadcast_to(hazard, (len(hazard), LONG)), end, samples))
    told = {"S": (found.s, s)}
    for t in (5, 10):
        if t <= len(found.k):
            told |= {
                f"K at {t}": (found.k[t - 1], k[t - 1]),
            }
        else:
            told |= {f"K at {t}": (NOBODY, 0.0)}
    return told | ({} if end else {"R at 10": (found.r[9], k[9])})


NOBODY = Figure(None, why="nobody was at risk")


def _answers(rng: Rng, hazard_MT: Array, end: float, samples: int) -> list[Answered]:
    """Answers that err by these hazards, end right with ``end`` from the third word on, or reach the limit."""
    questions, length = hazard_MT.shape
    shape = (questions, samples, length)
    wrong = _first(rng.random(shape) < hazard_MT[:, None, :])
    ended = _first((rng.random(shape) < end) & (np.arange(length) >= 2))
    out = []
    for m in range(questions):
        for erred, over in zip(wrong[m].tolist(), ended[m].tolist(), strict=True):
            if erred <= min(over, length):
                out.append(Answered(str(m), ("w",) * erred, "length", first_error=erred))
            else:  # the end is a word, too
                out.append(
                    Answered(str(m), ("w",) * (min(over, length + 1) - 1), "stop" if over <= length else "length")
                )
    return out


def _first(true_MST: npt.NDArray[np.bool_]) -> npt.NDArray[np.int64]:
    """Where (1, 2, …) each row is true first; beyond its end where it never is."""
    found: npt.NDArray[np.int64] = np.where(true_MST.any(-1), true_MST.argmax(-1) + 1, true_MST.shape[-1] + 1)
    return found


def _others() -> list[Case]:
    def honest(rng: Rng, n: int) -> Told:
        said = rng.random(n)
        return _one(calibration_error(said, (rng.random(n) < said).astype(float), range(n)), 0.0)

    def says(said: float, true: float) -> Toy:
        def toy(rng: Rng, n: int) -> Told:
            came = (rng.random(n) < true).astype(float)
            return _one(calibration_error(np.full(n, said), came, range(n)), abs(said - true))

        return toy

    def temperature(rng: Rng, n: int) -> Told:
        """Each question's cross-entropy is a parabola in ln T around a best one of its own, ln T ~ N(ln 1.2, .3)."""
        best = rng.normal(math.log(1.2), 0.3, n)
        return _one(best_temperature((np.log(np.array(TEMPERATURES))[None] - best[:, None]) ** 2), 1.2)

    def random_score(rng: Rng, n: int) -> Told:
        return _one(rejection_ratio(rng.random(n).tolist(), (rng.random(n) < 0.5).tolist(), range(n)), 0.0)

    def good_score(rng: Rng, n: int) -> Told:
        """The score is the probability of being wrong, uniform: risk kept c is c / 2, at random ½, with the truth
        0 up to ½ and then 1 − ½ / c: (½ − ¼) / (½ − (1 − ln 2) / 2) = 1 / (2 ln 2)."""
        score = rng.random(n)
        return _one(rejection_ratio(score.tolist(), (rng.random(n) >= score).tolist(), range(n)), 0.5 / math.log(2))

    def unseen(p: Array) -> Toy:
        def toy(rng: Rng, n: int) -> Told:
            said = rng.choice(len(p), n, p=p)
            return _one(good_turing(said.tolist()), float(1 - p[np.unique(said)].sum()))

        return toy

    def fork(rng: Rng, n: int) -> Told:
        """Two meanings, .3 before and .8 after: what B gains is .5."""
        return _one(strength(np.stack([rng.random(n) < 0.3, rng.random(n) < 0.8]).astype(np.int64), 0), 0.5)

    def shared(rng: Rng, n: int) -> Told:
        """The same gain, a quarter of the samples being the same before and after: .3 = .25 · .8 + .75 · .1333."""
        after = rng.random(n) < 0.8
        before = np.where(rng.random(n) < 0.25, after, rng.random(n) < 0.4 / 3)
        return _one(strength(np.stack([before, after]).astype(np.int64), 0), 0.5)

    zipf = 1 / np.arange(1.0, 2001.0) ** 1.5
    return [
        Case("calibration error, honest", honest, True),
        Case("calibration error, honest at .9", says(0.9, 0.9), True),
        Case("calibration error, says .9, true .6", says(0.9, 0.6), True),
        Case("best temperature", temperature),
        Case("selective, random score", random_score, withheld=FEW),
        Case("selective, good score", good_score, withheld=FEW),
        Case("unseen mass, Dirichlet(.3) on 400", unseen(np.random.default_rng(5).dirichlet(np.full(400, 0.3))), True),
        Case("unseen mass, Zipf", unseen(zipf / zipf.sum()), True),
        Case("unseen mass, all differ", unseen(np.full(20_000, 1 / 20_000)), True),
        Case("strength of a fork", fork, True, sizes=(64,)),
        Case("strength of a fork, a quarter of its samples shared", shared, True, sizes=(64,)),
    ]


def _one(figure: Figure, truth: float) -> Told:
    return {"": (figure, truth)}


def _by_question(right_MN: npt.NDArray[np.bool_]) -> Figure:
    questions = np.repeat(np.arange(len(right_MN)), right_MN.shape[1]).tolist()
    return mean_by_question(right_MN.astype(float).ravel(), questions)


def _world() -> Toy:
    """Answers in mixed manners to 300 questions, judged by the grammar; samples of the questions are asked."""
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
        return _one(_by_question(right_MN[asked[:, None], drawn]), float(right_MN.mean()))

    return toy
