"""How long answers stay right: R_n as they are, K_n had they gone on, and what independence would make of it.

h_t, the chance that the first error is word t given right and open before it, is the mean of 1 − S over the model's
own right prefixes when S is known there (exact per prefix), else the observed share. An answer that ended right stays
right (a competing event: open + ended right + erred = 1 at every t, Aalen–Johansen); only the token limit censors.
K_n = Π(1 − h_t) (Kaplan–Meier) is compared with Π(1 − h̄_t), each position's own hazard: h̄_t is the mean over
right beginnings drawn from what can follow, of which those that survive by the chance Π S stand for 1 / Π S each. The
two agree where errors are independent given the position, whatever the positions are like; S̄^n would mix both. Where
fewer than ten questions are at risk none of them is told (a hazard of 0 where nobody is left would keep K too high).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from klype.examine.evidence import Answered, Evidence
from klype.examine.intervals import (
    ONE,
    difference_limits,
    pseudo_values,
    ratio_of_means,
    share_limits,
    without_each,
)
from klype.values import Figure

Array = npt.NDArray[np.floating[Any]]
LEAST = 10
"""Questions still right and open: K, and what it is compared with, stop where there are fewer."""
FEW = "fewer than ten questions were still right and open"
SHARES = "share of answers"


@dataclass(frozen=True, slots=True)
class Survival:
    """Curves over t = 1, 2, … (index 0 is t = 1). ``open``, ``ended`` and ``erred`` are shares that sum to one."""

    s: Figure
    r: tuple[Figure, ...]
    k: tuple[Figure, ...]
    independent: tuple[Figure, ...]  # S̄^t
    by_position: tuple[Figure, ...]  # Π(1 − h̄_t)
    difference: tuple[Figure, ...]  # K less that
    open: tuple[float, ...]
    ended: tuple[float, ...]
    erred: tuple[float, ...]


def survival(answers: Sequence[Answered]) -> Survival:
    """The curves up to the longest answer; intervals from what each question weighs in them (``pseudo_values``)."""
    table_MTE = hazards(answers)
    questions, length = table_MTE.shape[:2]
    curves = _curves(table_MTE.mean(axis=0)[None])
    weighed = {}
    if questions > 1:
        without = _curves(without_each(table_MTE))
        weighed = {name: pseudo_values(curves[name], without[name]) for name in curves}
    risk_T = (table_MTE[:, :, AT_RISK] > 0).sum(axis=0)
    known = any(answer.s for answer in answers)

    def figure(name: str, t: int, unit: str, at_risk: int = 0) -> Figure:
        """``at_risk``: how many questions a product of hazards rests on at the last; 0: on all of them."""
        value, n = float(curves[name][0, t]), len(answers)
        if 0 < at_risk < LEAST:
            return Figure(None, n=n, unit=unit, why=FEW)
        if name in ("by_position", "difference") and not known:
            return Figure(None, n=n, unit=unit, why="S is not known")
        if questions == 1:
            return Figure(value, None, None, n, unit, why=ONE)
        part_M, size = weighed[name][:, t], questions / (at_risk or questions)
        if unit.startswith("difference"):
            low, high = difference_limits(part_M, size)
        else:
            low, high = share_limits(part_M, np.ones(questions), size)
        return Figure(value, min(low, value), max(high, value), n, unit)

    at_risk_M, erred_M = (table_MTE[:, :, column].sum(axis=1) for column in (AT_RISK, ERRED))
    return Survival(
        s=replace(ratio_of_means(at_risk_M - erred_M, at_risk_M, "share a word"), n=len(answers)),
        r=tuple(figure("r", t, SHARES) for t in range(length)),
        k=tuple(figure("k", t, SHARES, int(risk_T[t])) for t in range(length)),
        independent=tuple(figure("independent", t, SHARES, int(risk_T[t])) for t in range(length)),
        by_position=tuple(figure("by_position", t, SHARES, int(risk_T[t])) for t in range(length)),
        difference=tuple(figure("difference", t, "difference of shares", int(risk_T[t])) for t in range(length)),
        open=tuple(curves["open"][0].tolist()),
        ended=tuple(curves["ended"][0].tolist()),
        erred=tuple((1 - curves["r"])[0].tolist()),
    )


def survival_of(evidence: Evidence) -> Survival:
    """Of all its answers."""
    return evidence.once("survival", lambda: survival(evidence.answers))


COLUMNS = 6
AT_RISK, ERRED, CLEAN, ENDED, WEIGHT, WEIGHED = range(COLUMNS)
LEAST_S = 1e-6
"""Who survives a smaller chance stands for as many as one who survived this one."""


def hazards(answers: Sequence[Answered]) -> Array:
    """table_MTE by question and position: answers at risk; errors (exact or observed); without error; ended so; how
    many right beginnings the answers at risk stand for, and the errors of those, where S is known."""
    assert answers
    place: dict[str, int] = {}
    index = [place.setdefault(answer.question, len(place)) for answer in answers]
    table_MTE = np.zeros((len(place), max(1, *(_positions(answer) for answer in answers)), COLUMNS))
    for m, answer in zip(index, answers, strict=True):
        positions = _positions(answer)
        table_MTE[m, :positions, AT_RISK] += 1
        table_MTE[m, :positions, CLEAN] += 1
        if answer.first_error is not None:
            table_MTE[m, answer.first_error - 1, CLEAN] -= 1
        elif answer.ended == "stop":
            table_MTE[m, positions - 1, ENDED] += 1
        if answer.s:
            assert len(answer.s) == positions, "S must be known at every right and open prefix, or at none"
            s_T = np.array(answer.s)
            stands_for_T = 1 / np.cumprod(np.concatenate([[1.0], np.maximum(s_T[:-1], LEAST_S)]))
            table_MTE[m, :positions, ERRED] += 1 - s_T
            table_MTE[m, :positions, WEIGHT] += stands_for_T
            table_MTE[m, :positions, WEIGHED] += stands_for_T * (1 - s_T)
        elif answer.first_error is not None:
            table_MTE[m, answer.first_error - 1, ERRED] += 1
    return table_MTE


def _positions(answer: Answered) -> int:
    """How many positions it was right and open before: to its first error, its end, or the limit."""
    if answer.first_error is not None:
        return answer.first_error
    return len(answer.words) + (answer.ended == "stop")


def _curves(counts_BTE: Array) -> dict[str, Array]:
    hazard_BT = _ratio(counts_BTE[..., ERRED], counts_BTE[..., AT_RISK])
    ending_BT = _ratio(counts_BTE[..., ENDED], counts_BTE[..., CLEAN])
    open_BT = np.cumprod((1 - hazard_BT) * (1 - ending_BT), axis=1)
    before_BT = np.concatenate([np.ones_like(open_BT[:, :1]), open_BT[:, :-1]], axis=1)
    risk_B1 = counts_BTE[..., AT_RISK].sum(axis=1, keepdims=True)
    s_BT = np.broadcast_to(1 - _ratio(counts_BTE[..., ERRED].sum(axis=1, keepdims=True), risk_B1), open_BT.shape)
    k_BT = np.cumprod(1 - hazard_BT, axis=1)
    by_position_BT = np.cumprod(1 - _ratio(counts_BTE[..., WEIGHED], counts_BTE[..., WEIGHT]), axis=1)
    return {
        "s": s_BT,
        "open": open_BT,
        "r": 1 - np.cumsum(before_BT * hazard_BT, axis=1),
        "ended": np.cumsum(before_BT * (1 - hazard_BT) * ending_BT, axis=1),
        "k": k_BT,
        "independent": s_BT ** np.arange(1, s_BT.shape[1] + 1),
        "by_position": by_position_BT,
        "difference": k_BT - by_position_BT,
    }


def _ratio(top: Array, under: Array) -> Array:
    """top / under, and 0 where nobody is left."""
    return np.divide(top, under, out=np.zeros_like(top), where=under > 0)
