"""How often ``klype article`` rules wrongly: all tests of a document in simulated worlds whose truth is known.

A document has 1,000 texts of 100 words, 120 interventions by rule and 110 matched pairs. S differs from prefix to
prefix (1 − S is Beta-distributed), so that nothing is exact except on average.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from klype.examine.error_feedback import InterventionOutcome, separation
from klype.examine.hypothesis_tests import LEFT, PART, TIMES, Ruling, constant_hazard, independent_errors, rulings
from klype.examine.intervals import Array, proportion
from klype.examine.interventions import Arm, Intervention
from klype.examine.survival import AT_RISK, COLUMNS, ERRED, S_MIN, WEIGHED, WEIGHT
from klype.experiments.claims import GROWTH, LIKELIER, PARTED, after_forced

# number of hypotheses of a whole document: those that no world here is about count as never rejected
FAMILY = 20
TEXTS, WORDS, HAZARD = 1000, 100, 0.01
HALF = 5
PAIRS, SHOCKED, DISTANCES, ERRORS = 110, 120, 5, 0.03
# how often two texts have the same word at a position (geometric with ½): no more can be made to differ
EQUAL = 1 / 3
WRONG, RIGHT = 0.05, 0.8
Truth = Literal["supports", "does_not_support"]
RULED = ("constant", "independent", "feedback", "grows", "direction")


@dataclass(frozen=True, slots=True)
class World:
    """A simulated world. ``early``: the first word's hazard relative to ``HAZARD``; the excess halves every ``HALF``
    words. ``spread``: coefficient of variation of the texts' hazards (gamma). ``effect``: what a wrong word adds to the
    hazard of the next, and how much more at each further word. ``turned``: share of words that another word before them
    changes."""

    name: str
    early: float = 1.0
    spread: float = 0.0
    effect: tuple[float, float] = (0.0, 0.0)
    turned: float = 0.0

    @property
    def truth(self) -> dict[str, Truth]:
        """The true side of each claim's margin: no stretch has more than ``early`` times the mean hazard."""
        holds = {
            "constant": self.early <= TIMES,
            "independent": self.share_of_errors >= 1 - PART,
            "feedback": self.effect[0] > LIKELIER,
            "grows": self.effect[1] > GROWTH,
            "direction": self.turned * EQUAL > PARTED,
        }
        return {name: "supports" if true else "does_not_support" for name, true in holds.items()}

    @property
    def share_of_errors(self) -> float:
        """(1 − K) / (1 − Π(1 − h̄)) where K has fallen to ``LEFT``: from E e^(−H g) over the texts' g, and e^(−H)."""
        left, variance = LEFT, self.spread**2
        total = (left**-variance - 1) / variance if variance else -math.log(left)
        return (1 - left) / (1 - math.exp(-total))


WORLDS = (
    World("independent, constant"),
    World("independent, by position", early=5.0),
    World("dependent", spread=1.0, effect=(0.2, 0.07), turned=0.4),
    World("within the margins", early=1.2, spread=0.3, effect=(0.02, 0.002), turned=0.04),
)


def run(documents: int = 400, seed: int = 0, worlds: Sequence[World] = WORLDS) -> dict[str, Any]:
    """The document {"rows": [{world, documents, wrong: figure, rulings: {name: {truth, right, undetermined, wrong}},
    passed}], "passed"}. A row passes if at most ``WRONG`` of the documents have a wrong ruling, and claims about texts,
    and claims that hold, are ruled on correctly in ``RIGHT`` of them."""
    rows = [_row(world, documents, seed + i) for i, world in enumerate(worlds)]
    return {"rows": rows, "passed": all(row["passed"] for row in rows)}


def _row(world: World, documents: int, seed: int) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    found = [ruled(world, rng) for _ in range(documents)]
    told: dict[str, Any] = {}
    for name, truth in world.truth.items():
        right, open_ = (sum(one[name] == kind for one in found) for kind in (truth, "undetermined"))
        shares = {"right": right, "undetermined": open_, "wrong": documents - right - open_}
        told[name] = {"truth": truth, **{kind: count / documents for kind, count in shares.items()}}
    wrong = sum(any(one[n] not in (t, "undetermined") for n, t in world.truth.items()) for one in found)
    must = [name for name, truth in world.truth.items() if name in RULED[:2] or truth == "supports"]
    return {
        "world": world.name,
        "documents": documents,
        "wrong": proportion(wrong, documents, "share").json(),
        "rulings": told,
        "passed": wrong <= WRONG * documents and all(told[name]["right"] >= RIGHT for name in must),
    }


def ruled(world: World, rng: np.random.Generator) -> dict[str, Ruling]:
    """The rulings of one simulated document."""
    table_MTE = texts(world, rng)
    tests = {"constant": constant_hazard(table_MTE), "independent": independent_errors(table_MTE)}
    tests |= after_forced(outcomes(world, rng))
    known = rulings({name: test for name, test in tests.items() if test is not None}, FAMILY)
    return {name: known.get(name, "undetermined") for name in RULED}


def texts(world: World, rng: np.random.Generator) -> Array:
    """A table of simulated texts, as ``survival.hazards`` makes it."""
    along_T = HAZARD * (1 + (world.early - 1) * 0.5 ** (np.arange(WORDS) / HALF))
    hazard_MT = _beta(rng, np.minimum(0.9, _spread(rng, TEXTS, world.spread)[:, None] * along_T))
    open_MT = np.cumprod(rng.random((TEXTS, WORDS)) >= hazard_MT, axis=1)
    ones_M1 = np.ones((TEXTS, 1))
    risk_MT = np.hstack([ones_M1, open_MT[:, :-1]])
    chance_MT = np.cumprod(np.hstack([ones_M1, np.maximum(1 - hazard_MT[:, :-1], S_MIN)]), axis=1)
    table_MTE = np.zeros((TEXTS, WORDS, COLUMNS))
    table_MTE[..., AT_RISK], table_MTE[..., ERRED] = risk_MT, risk_MT * hazard_MT
    table_MTE[..., WEIGHT], table_MTE[..., WEIGHED] = risk_MT / chance_MT, risk_MT * hazard_MT / chance_MT
    return table_MTE


def outcomes(world: World, rng: np.random.Generator) -> list[InterventionOutcome]:
    """Simulated outcomes: interventions by rule, of which the words count, and matched pairs, of which the errors
    count."""
    up_D = world.effect[0] + world.effect[1] * np.arange(DISTANCES)
    times_N1 = _spread(rng, PAIRS, 1.0)[:, None]
    wrong_ND, near_ND = (_beta(rng, np.minimum(0.9, times_N1 * (ERRORS + by_D))) for by_D in (up_D, 0 * up_D))
    nothing = (0.0,) * DISTANCES
    out = []
    for i, (wrong_D, near_D) in enumerate(zip(wrong_ND, near_ND, strict=True)):
        errors: dict[Arm, tuple[float, ...]] = {"wrong": tuple(wrong_D), "right": nothing, "near": tuple(near_D)}
        intervention = Intervention(f"pair {i}", (), (1, 2, 2), by_rule=False)
        out.append(InterventionOutcome(intervention, errors, errors, errors, (None,) * DISTANCES))
    flat: dict[Arm, tuple[float, ...]] = {"wrong": nothing, "right": nothing, "near": nothing}
    for i in range(SHOCKED):
        said_ND = rng.geometric(0.5, (4, DISTANCES))
        said_ND[:2] += 100 * (rng.random(DISTANCES) < world.turned)
        intervention = Intervention(f"rule {i}", (), (1, 2, 2), rarity=9.0)
        out.append(
            InterventionOutcome(
                intervention, flat, flat, flat, (None,) * DISTANCES, parted=separation(said_ND[:2], said_ND[2:])
            )
        )
    return out


def _spread(rng: np.random.Generator, n: int, variation: float) -> Array:
    return rng.gamma(variation**-2, variation**2, n) if variation else np.ones(n)


def _beta(rng: np.random.Generator, mean: Array) -> Array:
    """Samples of these means from Beta distributions with most of their mass near 0 and 1."""
    found: Array = rng.beta(0.3, 0.3 * (1 - mean) / mean)
    return found
