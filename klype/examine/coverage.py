"""Do our 95 % intervals hold the truth 95 times of 100? Every estimator, on toys and a world whose truth is known.

A nominal 95 % covers 93–97 % of 1,000 runs (chance lets a correct one miss that band once in three hundred);
conservative estimators have no ceiling, and their width is shown.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import special

from klype.answers.forks import strength
from klype.examine.calibration import calibration_error
from klype.examine.diversity import good_turing
from klype.examine.evidence import Answered
from klype.examine.feedback import ARMS, Aftermath, Arm, Shock, effect
from klype.examine.independence import weibull_shape
from klype.examine.intervals import mean_by_question, paired, proportion, ratio_of_means
from klype.examine.survival import survival
from klype.examine.tuning import TEMPERATURES, best_temperature, excess_error
from klype.values import Figure
from klype.world import World

Rng = np.random.Generator
Toy = Callable[[Rng, int], tuple[Figure, float]]
"""(noise, seed) → what the estimator says, and the truth."""


@dataclass(frozen=True, slots=True)
class Case:
    """``share`` of the runs asked for are made (slow ones make fewer)."""

    name: str
    toy: Toy
    conservative: bool = False
    share: float = 1.0


def run(runs: int = 1000, seed: int = 0) -> dict[str, Any]:
    """{"rows": [{name, runs, covered, low, high, width, conservative, passed}], "passed"}.

    low and high are 95 % limits of the coverage itself; a row passes when it covers 93–97 % (no ceiling when it is
    conservative), give or take three standard errors where fewer than 1,000 runs were made.
    """
    rows = [covered(case, max(20, round(runs * case.share)), seed) for case in cases()]
    return {"rows": rows, "passed": all(row["passed"] for row in rows)}


def covered(case: Case, runs: int, seed: int) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    found = [case.toy(rng, i) for i in range(runs)]
    known = [(f, truth) for f, truth in found if f.low is not None and f.high is not None]
    hits = sum(f.low <= truth <= f.high for f, truth in known if f.low is not None and f.high is not None)
    share = proportion(hits, len(known))
    assert share.value is not None
    slack = 0.0 if runs >= 1000 else 3 * math.sqrt(0.95 * 0.05 / runs)
    fine = share.value >= 0.93 - slack and (case.conservative or share.value <= 0.97 + slack)
    width = float(np.mean([(f.high or 0.0) - (f.low or 0.0) for f, _ in known]))
    return {
        "name": case.name,
        "runs": len(known),
        "covered": share.value,
        "low": share.low,
        "high": share.high,
        "width": width,
        "conservative": case.conservative,
        "passed": fine,
    }


def cases() -> list[Case]:
    """All estimators that put an interval on a figure."""
    return [
        Case("clopper-pearson, 100 trials of .995", _proportion, conservative=True),
        Case("right or wrong, 30 questions × 10", lambda r, s: _right(r, s, 30, 10), conservative=True),
        Case("right or wrong, 200 questions × 4", lambda r, s: _right(r, s, 200, 4), conservative=True),
        Case("mean of 12 questions (t)", lambda r, s: _mean(r, s, 12)),
        Case("mean of 60 questions (bootstrap)", lambda r, s: _mean(r, s, 60)),
        Case("ratio of 12 documents", lambda r, s: _ratio(r, s, 12)),
        Case("ratio of 60 documents", lambda r, s: _ratio(r, s, 60)),
        Case("difference, paired", _paired, conservative=True),
        Case("survival R₁₀, questions differ", _survival, share=0.5),
        Case("Weibull shape", _weibull, share=0.2),
        Case("feedback, difference", lambda r, s: _feedback(r, s)),
        Case("excess error", _excess),
        Case("calibration error of a boaster", _calibration),
        Case("best temperature", _temperature),
        Case("unseen mass (Good–Turing, Esty)", _unseen),
        Case("strength of a fork", _fork, conservative=True),
        Case("strength of a fork, a quarter of its samples shared", _fork_shared, conservative=True),
        Case("right in the demo world, 60 questions × 2", _world(), conservative=True),
    ]


def _proportion(rng: Rng, seed: int) -> tuple[Figure, float]:
    return proportion(int(rng.binomial(100, 0.995)), 100), 0.995


def _right(rng: Rng, seed: int, questions: int, samples: int) -> tuple[Figure, float]:
    right = rng.binomial(1, rng.beta(1.9, 0.1, (questions, 1)), (questions, samples)).ravel().astype(float)
    return mean_by_question(right, np.repeat(np.arange(questions), samples).tolist(), seed=seed), 0.95


def _mean(rng: Rng, seed: int, questions: int) -> tuple[Figure, float]:
    return mean_by_question(rng.normal(0.2, 1, questions), range(questions), seed=seed), 0.2


def _ratio(rng: Rng, seed: int, documents: int) -> tuple[Figure, float]:
    words = rng.integers(20, 60, documents)
    return ratio_of_means(rng.gamma(2.0 * words, 0.05), words.astype(float), seed=seed), 0.1


def _paired(rng: Rng, seed: int) -> tuple[Figure, float]:
    a = rng.random(60) < 0.8
    b = np.where(rng.random(60) < 0.1, rng.random(60) < 0.95, a)
    return paired(a.astype(float), b.astype(float), range(60), seed=seed), 0.1 * 0.15


def _chain(rng: Rng, question: str, errors: list[float]) -> Answered:
    hit = next((t for t, e in enumerate(errors, 1) if rng.random() < e), None)
    return Answered(question, ("w",) * (hit or len(errors)), "length", first_error=hit)


def _survival(rng: Rng, seed: int) -> tuple[Figure, float]:
    """e ~ Beta(2, 18) a question: R₁₀ = B(2, 28) / B(2, 18)."""
    answers = [_chain(rng, str(i), [float(e)] * 10) for i, e in enumerate(rng.beta(2, 18, 120))]
    return survival(answers, seed).r[9], float(special.beta(2, 28) / special.beta(2, 18))


def _weibull(rng: Rng, seed: int) -> tuple[Figure, float]:
    t = np.arange(1, 13)
    h = (1 - np.exp(-(0.06**1.5) * (t**1.5 - (t - 1) ** 1.5))).tolist()
    return weibull_shape([_chain(rng, str(i), h) for i in range(200)], seed), 1.5


def _feedback(rng: Rng, seed: int) -> tuple[Figure, float]:
    """Error mass after a wrong word Beta(4, 6), after a right one Beta(1, 9), question by question: difference .3."""
    found = []
    for i, (wrong, right) in enumerate(zip(rng.beta(4, 6, 60), rng.beta(1, 9, 60), strict=True)):
        errors: dict[Arm, tuple[float, ...]] = {a: (float(wrong if a == "wrong" else right),) for a in ARMS}
        found.append(Aftermath(Shock(str(i), (), (1, 2, 2), 0.9), errors, errors, errors, (None,)))
    return effect(found, seed=seed).difference[0], 0.3


def _excess(rng: Rng, seed: int) -> tuple[Figure, float]:
    """Own divergence is 1.5 times the true one in the mean."""
    true = rng.gamma(4, 0.5, 80)
    return excess_error((1.5 * true * rng.gamma(20, 1 / 20, 80)).tolist(), true.tolist(), seed), 50.0


def _calibration(rng: Rng, seed: int) -> tuple[Figure, float]:
    """Says .9, is right .6 of the time."""
    came = (rng.random(300) < 0.6).astype(float)
    return calibration_error(np.full(300, 0.9), came, list(range(300)), seed=seed), 0.3


def _temperature(rng: Rng, seed: int) -> tuple[Figure, float]:
    """Each question's cross-entropy is a parabola in ln T around a best one of its own, ln T ~ N(ln 1.2, .3)."""
    best = rng.normal(math.log(1.2), 0.3, 80)
    table = (np.log(np.array(TEMPERATURES))[None] - best[:, None]) ** 2
    return best_temperature(table, seed), 1.2


def _unseen(rng: Rng, seed: int) -> tuple[Figure, float]:
    p = np.random.default_rng(5).dirichlet(np.full(400, 0.3))
    said = rng.choice(400, 250, p=p)
    return good_turing(said.tolist()), float(1 - p[np.unique(said)].sum())


def _fork(rng: Rng, seed: int) -> tuple[Figure, float]:
    """Two meanings, .3 before and .8 after: what B gains is .5."""
    labels = np.stack([rng.random(64) < 0.3, rng.random(64) < 0.8]).astype(np.int64)
    return strength(labels, 0), 0.5


def _fork_shared(rng: Rng, seed: int) -> tuple[Figure, float]:
    """The same gain, a quarter of the samples being the same before and after: .3 = .25 · .8 + .75 · .1333."""
    after = rng.random(64) < 0.8
    before = np.where(rng.random(64) < 0.25, after, rng.random(64) < 0.4 / 3)
    return strength(np.stack([before, after]).astype(np.int64), 0), 0.5


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
        table.append([float(bool(world.judge(question, text).right)) for text in said])
    right_MN = np.array(table)

    def toy(noise: Rng, seed: int) -> tuple[Figure, float]:
        asked = noise.integers(0, 300, 60)
        drawn = noise.integers(0, 6, (60, 2))
        values = right_MN[asked[:, None], drawn].ravel()
        return mean_by_question(values, np.repeat(np.arange(60), 2).tolist(), seed=seed), float(right_MN.mean())

    return toy
