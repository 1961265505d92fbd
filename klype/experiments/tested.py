"""What the article's claims are tested on: long texts or answers, the forced words, and figures beside each other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from klype.examine import dependence
from klype.examine.evidence import Answered
from klype.examine.feedback import Aftermath
from klype.examine.feedback_effect import FEW
from klype.examine.independence import weibull_shape
from klype.examine.rulings import Outcome, effect, from_interval, more
from klype.examine.survival import hazards, survival

Document = Mapping[str, Any]
LIKELIER = 0.05
"""An error is made likelier when its probability rises by more than this."""
GROWTH = 0.01
"""The effect grows when it does by more than this a word."""
PARTED = 0.05
"""The direction changes when more than this share of the words differ, beyond chance, or so many answers' meaning."""
SELDOM = 0.2
"""A share of pairs below it is seldom."""
MUCH = 0.1
"""Share of answers from which on a gain is a great one."""
DIVERSE = 0.1
"""Nats from which on answers are more diverse."""
POOR = 0.05
"""Share from which on fewer answers are right, or more of them repeats."""


def along_texts(texts: Sequence[Answered]) -> dict[str, Outcome | None]:
    """Whether all positions are alike, and whether errors are independent given the position."""
    if not any(text.s for text in texts):
        return {}
    table_MTE = hazards(texts)
    return {"constant": dependence.constant(table_MTE), "independent": dependence.independent(table_MTE)}


def dependence_facts(texts: Sequence[Answered], of: str) -> dict[str, Any] | None:
    """The figures beside those tests, at the last position that they look at."""
    n = dependence.reach(table_MTE := hazards(texts)) if any(text.s for text in texts) else 0
    if n < 1:
        return None
    curve = survival(texts)
    at = {"k": curve.k, "reference": curve.by_position, "difference": curve.difference}
    return {
        "of": of,
        "texts": len(texts),
        "n": n,
        "stretches": dependence.stretches(table_MTE),
        "shape": weibull_shape(texts).json(),
        **{name: figures[n - 1].json() for name, figures in at.items()},
    }


def after_forced(found: Sequence[Aftermath]) -> dict[str, Outcome | None]:
    """Feedback and its growth over all distances, on matched pairs by edit distance; the direction, by rule."""
    out: dict[str, Outcome | None] = {}
    matched = [one for one in found if one.shock.matched]
    if len(matched) >= FEW:
        up_ND = np.array([np.subtract(row["wrong"], row["near"]) for row in map(Aftermath.cautious, matched)])
        asked = [one.shock.question for one in matched]
        out["feedback"] = effect(up_ND[:, 0], asked, LIKELIER)
        if up_ND.shape[1] > 1:
            out["grows"] = effect(up_ND @ slope(up_ND.shape[1]), asked, GROWTH)
    parted = [(one.parted, one.shock.question) for one in found if one.shock.by_rule and one.parted is not None]
    if len(parted) >= FEW:
        out["direction"] = effect([value for value, _ in parted], [question for _, question in parted], PARTED)
    return out


def slope(distances: int) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Weights that make the least-squares slope over distances 1, 2, …"""
    off_D = np.arange(distances) - (distances - 1) / 2
    return np.asarray(off_D / (off_D**2).sum())


def of_figures(made: Document) -> dict[str, Outcome | None]:
    """Tests that need no more than figures and their intervals."""
    t, none = made["main"], {"value": None}
    hottest = max(made["figures"], key=float)

    def figure(name: str, at: str = t) -> Document:
        found: Document = made["figures"].get(at, {}).get(name) or none
        return found

    less = figure("feedback_meaning")
    out: dict[str, Outcome | None] = {
        "seldom_same": _below(from_interval(figure("same_text"), SELDOM)),
        "meaning": from_interval(made["extra"]["meaning_gain"], MUCH),
        "direction_meaning": from_interval(less if less.get("n", 0) >= FEW else none, PARTED),
    }
    if hottest != t:
        out["diverse"] = more(figure("answer_entropy", hottest), figure("answer_entropy"), DIVERSE)
    if t != "0":
        out["greedy_poor"] = more(figure("right"), figure("right", "0"), POOR)
        out["greedy_repeats"] = more(figure("repetition", "0"), figure("repetition"), POOR)
    return out


def _below(tested: Outcome | None) -> Outcome | None:
    """The claim that it is less."""
    return tested and replace(tested, supports=tested.against, against=tested.supports)
