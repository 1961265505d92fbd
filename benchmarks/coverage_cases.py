"""The cases of the coverage benchmark: toys whose truth is known, each of n questions (or documents, or draws)."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import numpy.typing as npt
from scipy import special

from benchmarks.coverage_toys import Array, Case, Rng, Told, Toy, of_values, one
from klype.answers.forks import strength
from klype.examine.calibration import TEMPERATURES, best_temperature, calibration_error, rejection_ratio
from klype.examine.estimators import verdict
from klype.examine.evidence import Evidence, JudgedAnswer
from klype.examine.intervals import ratio_of_means
from klype.examine.repetition import good_turing
from klype.examine.survival import survival, weibull_shape
from klype.values import Figure

# maximum number of words of an answer
LONG = 14
AT_RISK = "fewer than ten questions are still right and open there"
ERRORS = "fewer than ten errors"
FEWER = "fewer than ten answers are right, or fewer are wrong"


def cases() -> list[Case]:
    """The cases of all estimators that give an interval."""
    return [*of_values(), *_curves(), *_others()]


def _curves() -> list[Case]:
    def same(rng: Rng, n: int) -> Told:
        """Every word is wrong with probability .05, and from the third on an answer ends with .12: S^n holds."""
        return _survived(rng, np.full((n, 1), 0.05), 0.12, 1, [0.95**t for t in range(1, LONG + 1)], 0.95)

    def differ(rng: Rng, n: int) -> Told:
        """Error rate e ~ Beta(2, 18) per question, endless answers: K_t = R_t = B(2, 18 + t) / B(2, 18)."""
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
        return one(weibull_shape(_answers(rng, np.tile(hazards, (n, 1)), 0.0, 1)), 1.5)

    return [
        Case("survival, answers end", same, True, AT_RISK),
        Case("survival, questions differ, 3 answers each", differ, True, AT_RISK),
        Case("Weibull shape", shape, True, withheld=ERRORS),
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


def _answers(rng: Rng, hazard_MT: Array, end: float, samples: int) -> list[JudgedAnswer]:
    """Answers with these hazards, which end with probability ``end`` from the third word on, or reach the limit."""
    questions, length = hazard_MT.shape
    shape = (questions, samples, length)
    wrong = _first(rng.random(shape) < hazard_MT[:, None, :])
    ended = _first((rng.random(shape) < end) & (np.arange(length) >= 2))
    out = []
    for m in range(questions):
        for erred, over in zip(wrong[m].tolist(), ended[m].tolist(), strict=True):
            if erred <= min(over, length):
                out.append(JudgedAnswer(str(m), ("w",) * erred, "length", first_error=erred))
            else:  # the end is a word, too
                out.append(
                    JudgedAnswer(str(m), ("w",) * (min(over, length + 1) - 1), "stop" if over <= length else "length")
                )
    return out


def _first(true_MST: npt.NDArray[np.bool_]) -> npt.NDArray[np.int64]:
    """The position (1, 2, …) at which each row is true first; beyond its end if it never is."""
    found: npt.NDArray[np.int64] = np.where(true_MST.any(-1), true_MST.argmax(-1) + 1, true_MST.shape[-1] + 1)
    return found


def _rest(favours: bool) -> float:
    """The share of correct answers among those that are judged correctly, such that .6 of all are correct."""
    apart = 0.1 + 0.9 * 0.08
    return (0.6 - (0.0 if favours else apart)) / (1 - apart)


def _others() -> list[Case]:
    def honest(rng: Rng, n: int) -> Told:
        said = rng.random(n)
        return one(calibration_error(said, (rng.random(n) < said).astype(float), range(n)), 0.0)

    def says(said: float, true: float) -> Toy:
        def toy(rng: Rng, n: int) -> Told:
            came = (rng.random(n) < true).astype(float)
            return one(calibration_error(np.full(n, said), came, range(n)), abs(said - true))

        return toy

    def temperature(rng: Rng, n: int) -> Told:
        """Each question's cross-entropy is a parabola in ln T around its own minimum, ln T ~ N(ln 1.2, .3)."""
        best = rng.normal(math.log(1.2), 0.3, n)
        return one(best_temperature((np.log(np.array(TEMPERATURES))[None] - best[:, None]) ** 2), 1.2)

    def random_score(rng: Rng, n: int) -> Told:
        return one(rejection_ratio(rng.random(n).tolist(), (rng.random(n) < 0.5).tolist(), range(n)), 0.0)

    def good_score(rng: Rng, n: int) -> Told:
        """The score is the probability of being wrong, uniform: the risk at coverage c is c / 2, at random ½, and with
        perfect knowledge 0 up to ½ and then 1 − ½ / c: (½ − ¼) / (½ − (1 − ln 2) / 2) = 1 / (2 ln 2)."""
        score = rng.random(n)
        return one(rejection_ratio(score.tolist(), (rng.random(n) >= score).tolist(), range(n)), 0.5 / math.log(2))

    def unseen(p: Array) -> Toy:
        def toy(rng: Rng, n: int) -> Told:
            said = rng.choice(len(p), n, p=p)
            return one(good_turing(said.tolist()), float(1 - p[np.unique(said)].sum()))

        return toy

    def fork(rng: Rng, n: int) -> Told:
        """Two meanings, .3 before and .8 after: B gains .5."""
        return one(strength(np.stack([rng.random(n) < 0.3, rng.random(n) < 0.8]).astype(np.int64), 0), 0.5)

    def shared(rng: Rng, n: int) -> Told:
        """The same gain, where a quarter of the samples is the same before and after: .3 = .25 · .8 + .75 · .1333."""
        after = rng.random(n) < 0.8
        before = np.where(rng.random(n) < 0.25, after, rng.random(n) < 0.4 / 3)
        return one(strength(np.stack([before, after]).astype(np.int64), 0), 0.5)

    def misjudged(favours: bool) -> Toy:
        """.6 of all answers are correct; a tenth is undecided, and .08 of the others are misjudged, all on one side.
        The error rate is known from 30 other questions, four answers each."""

        def toy(rng: Rng, n: int) -> Told:
            drawn = rng.random((n, 3))
            undecided = drawn < 0.1
            wrongly = (drawn >= 0.1) & (drawn < 0.1 + 0.9 * 0.08)
            right = np.where(undecided | wrongly, not favours, rng.random((n, 3)) < _rest(favours))
            said = np.where(wrongly, favours, right)
            answers = [
                JudgedAnswer(str(q), ("a",), "stop", right=None if undecided[q, i] else bool(said[q, i]))
                for q in range(n)
                for i in range(3)
            ]
            labelled = rng.binomial(4, 0.08, 30).tolist()
            error = ratio_of_means(labelled, [4.0] * 30, "share of answers")
            figure = verdict("right", Evidence(answers, judge="one", errors={"right": error, "same": error}))
            assert figure.bounds is not None
            return one(replace(figure, low=figure.bounds[0], high=figure.bounds[1]), 0.6)

        return toy

    zipf = 1 / np.arange(1.0, 2001.0) ** 1.5
    return [
        Case("calibration error, honest", honest, True),
        Case("calibration error, honest at .9", says(0.9, 0.9), True),
        Case("calibration error, says .9, true .6", says(0.9, 0.6), True),
        Case("best temperature", temperature, True),
        Case("selective, random score", random_score, True, withheld=FEWER),
        Case("selective, good score", good_score, True, withheld=FEWER),
        Case("unseen mass, Dirichlet(.3) on 400", unseen(np.random.default_rng(5).dirichlet(np.full(400, 0.3))), True),
        Case("unseen mass, Zipf", unseen(zipf / zipf.sum()), True),
        Case("unseen mass, all differ", unseen(np.full(20_000, 1 / 20_000)), True),
        Case("right, a judge that errs in its favour", misjudged(True), True),
        Case("right, a judge that errs against it", misjudged(False), True),
        Case("strength of a fork", fork, True, sizes=(64,)),
        Case("strength of a fork, a quarter of its samples shared", shared, True, sizes=(64,)),
    ]
