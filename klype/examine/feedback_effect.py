"""What the feedback experiment found, by distance, with intervals over questions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from klype.examine.feedback import ARMS, Aftermath, Arm
from klype.examine.intervals import ratio_of_means
from klype.values import Figure

FEW = 30
"""Fewer matched pairs than this are too few for a figure."""


@dataclass(frozen=True, slots=True)
class Effect:
    """By distance: *wrong* less *right*, wrong ÷ right, *wrong* less *near* over matched pairs (``cautious``: errors
    by edit distance), recovery, prefix-blind change of q. ``further``: errors within all distances after *wrong* and
    *near* of matched pairs, by substitution and by edit distance. All but the matched are of beginnings by rule."""

    difference: tuple[Figure, ...]
    ratio: tuple[Figure, ...]
    beside_near: tuple[Figure, ...]
    cautious: tuple[Figure, ...]
    recovery: tuple[Figure, ...]
    moved: tuple[Figure, ...]
    ended: dict[Arm, tuple[float, ...]]
    further: dict[str, Figure]
    shocks: int
    matched: int


def effect(found: Sequence[Aftermath], weights: Literal["shock", "errors"] = "shock") -> Effect:
    """Figures by distance, over questions. ``weights``: every beginning alike (a shock), or ∝ 1 − S (errors where they
    occur by themselves)."""
    ruled, matched = [one for one in found if one.shock.by_rule], [one for one in found if one.shock.matched]
    every = range(len(found[0].moved) if found else 0)
    difference = "difference of shares"

    def ratio(rows: Sequence[Aftermath], top: Sequence[float], under: Sequence[float], unit: str) -> Figure:
        questions = list(dict.fromkeys(one.shock.question for one in rows))
        place = {question: i for i, question in enumerate(questions)}
        weight_N = np.array([1.0 if weights == "shock" else 1.0 - one.shock.s for one in rows])
        index_N = np.array([place[one.shock.question] for one in rows], dtype=int)
        above, below = (np.zeros(len(questions)) for _ in range(2))
        np.add.at(above, index_N, weight_N * np.asarray(top))
        np.add.at(below, index_N, weight_N * np.asarray(under))
        return replace(ratio_of_means(above, below, unit), n=len(rows))

    def mean(rows: Sequence[Aftermath], values: Sequence[float], unit: str) -> Figure:
        return ratio(rows, values, [1.0] * len(rows), unit)

    def of_matched(values: Sequence[float], unit: str = difference) -> Figure:
        if len(matched) < FEW:
            return Figure(None, n=len(matched), unit=unit, why=f"fewer than {FEW} matched pairs")
        return mean(matched, values, unit)

    def at(d: int, arm: Arm) -> list[float]:
        return [one.errors[arm][d] for one in ruled]

    return Effect(
        difference=tuple(mean(ruled, [one.errors["wrong"][d] - one.errors["right"][d] for one in ruled], difference)
                         for d in every),
        ratio=tuple(_within(ratio(ruled, at(d, "wrong"), at(d, "right"), "times as likely"), math.inf) for d in every),
        beside_near=tuple(of_matched([one.errors["wrong"][d] - one.errors["near"][d] for one in matched])
                          for d in every),
        cautious=tuple(of_matched([row["wrong"][d] - row["near"][d] for row in map(Aftermath.cautious, matched)])
                       for d in every),
        recovery=tuple(_within(mean(ruled, [one.clean["wrong"][d] for one in ruled], "share of answers"))
                       for d in every),
        moved=tuple(_moved_figure(ruled, d) for d in every),
        ended={arm: tuple(float(np.mean([one.ended[arm][d] for one in ruled] or [0.0])) for d in every)
               for arm in ARMS},
        further={
            f"{arm}_{name}": _within(of_matched([sum(getattr(one, name)[arm]) for one in matched], "errors"), math.inf)
            for arm in ("wrong", "near")
            for name in ("errors", "edits")
            if all(getattr(one, name) for one in matched)
        },
        shocks=len(ruled),
        matched=len(matched),
    )  # fmt: skip


def _moved_figure(found: Sequence[Aftermath], d: int) -> Figure:
    known = [value for one in found if (value := one.moved[d]) is not None]
    return _within(ratio_of_means(known, [1.0] * len(known), "share"))


def _within(figure: Figure, most: float = 1.0) -> Figure:
    """A share lies between 0 and 1, and so does its interval; a ratio or a number of errors is not below 0."""
    if figure.value is None or figure.low is None or figure.high is None:
        return figure
    return Figure(figure.value, max(0.0, figure.low), min(most, figure.high), figure.n, figure.unit)
