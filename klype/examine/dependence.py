"""Two questions about errors along an answer, each with a margin within which they are equal, beyond which they differ.

*Constant*: is the hazard the same at every position? *Independent*: given the position, are some answers likelier to
err than others? Hazards are those of right beginnings drawn word by word from what can follow (q restricted to A): a
beginning that was right by the chance Π S stands for 1 / Π S of them, so that hard ones do not drop out of the mean.
On such beginnings K_n = E Π S_t, and independence of the positions is K_n = Π E S_t, with each position's own hazard.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from scipy import special

from klype.examine.intervals import Array
from klype.examine.rulings import Outcome
from klype.examine.survival import AT_RISK, ERRED, WEIGHED, WEIGHT

LEAST = 30
"""Questions that are still at risk at the last position looked at."""
LEFT = 0.7
"""Share without an error down to which positions are looked at: beyond it too few stand for too many."""
STRETCHES = 4
"""Positions are compared in so many stretches."""
TIMES = 1.25
"""A hazard is constant when no stretch's is more than so many times the mean's, or less than one part of so many."""
PART = 0.05
"""Errors are independent when the share with an error is what independence gives, within this part of it."""


def reach(table_MTE: Array) -> int:
    """The last position up to which ``LEAST`` questions and ``LEFT`` of what can be left are there; 0: none."""
    questions_T = (table_MTE[:, :, AT_RISK] > 0).sum(axis=0)
    total_TE = table_MTE.sum(axis=0)
    hazard_T = total_TE[:, ERRED] / np.maximum(total_TE[:, AT_RISK], 1e-300)
    fine_T = (questions_T >= LEAST) & (np.cumprod(1 - hazard_T) >= LEFT)
    return int(np.argmin(fine_T)) if not fine_T.all() else len(fine_T)


def independent(table_MTE: Array) -> Outcome | None:
    """ln of (1 − K_n) / (1 − Π(1 − h̄_t)): t over texts by the jackknife. None: too few of them, or of errors."""
    n = reach(table_MTE)
    return None if n < 2 else _alike(_jackknifed(table_MTE[:, :n], _excess), -math.log(1 - PART), PART)


def constant(table_MTE: Array) -> Outcome | None:
    """ln of each stretch's hazard over their mean, t over texts by the jackknife."""
    n = reach(table_MTE)
    return None if n < STRETCHES else _alike(_jackknifed(table_MTE[:, :n], _log_ratios), math.log(TIMES), TIMES)


def _alike(pseudo_MS: Array, most: float, margin: float) -> Outcome | None:
    """That every column's mean is within ± ``most``. Against that all are: the least sure of them (intersection–union);
    against that one is not: the furthest out, times their number (Bonferroni); the statistic is the furthest's. None:
    a figure is not finite, or never differs."""
    texts, columns = pseudo_MS.shape
    mean_S, error_S = np.abs(pseudo_MS.mean(axis=0)), pseudo_MS.std(axis=0, ddof=1) / math.sqrt(texts)
    if not np.isfinite(mean_S).all() or not (error_S > 0).all():
        return None
    freedom, t_S = texts - 1, (mean_S - most) / error_S
    beyond_S = special.stdtr(freedom, -t_S) + special.stdtr(freedom, -(mean_S + most) / error_S)
    inside = float(special.stdtr(freedom, t_S).max())
    return Outcome("jackknife t", float(t_S.max()), texts, inside, min(1.0, columns * float(beyond_S.min())), margin)


def _excess(sums_BTE: Array) -> Array:
    k_B, reference_B = (
        np.prod(1 - sums_BTE[..., error] / np.maximum(sums_BTE[..., risk], 1e-300), axis=1)
        for error, risk in ((ERRED, AT_RISK), (WEIGHED, WEIGHT))
    )
    with np.errstate(divide="ignore", invalid="ignore"):
        found: Array = np.log((1 - k_B) / (1 - reference_B))[:, None]
    return found


def _stretches(sums_BTE: Array) -> Array:
    """The mean hazard of each stretch of positions."""
    hazard_BT = sums_BTE[..., WEIGHED] / np.maximum(sums_BTE[..., WEIGHT], 1e-300)
    return np.stack([part_BT.mean(axis=1) for part_BT in np.array_split(hazard_BT, STRETCHES, axis=1)], axis=1)


def _log_ratios(sums_BTE: Array) -> Array:
    stretch_BS = _stretches(sums_BTE)
    with np.errstate(divide="ignore", invalid="ignore"):
        found: Array = np.log(stretch_BS / stretch_BS.mean(axis=1, keepdims=True))
    return found


def _jackknifed(table_MTE: Array, function: Callable[[Array], Array]) -> Array:
    """Pseudo-values over questions of a function of their sums."""
    total_1TE = table_MTE.sum(axis=0)[None]
    m = len(table_MTE)
    return m * function(total_1TE) - (m - 1) * function(total_1TE - table_MTE)


def stretches(table_MTE: Array) -> list[float]:
    """The mean hazard in each stretch of the positions looked at; none where there are too few."""
    n = reach(table_MTE)
    return [] if n < STRETCHES else [float(h) for h in _stretches(table_MTE[:, :n].sum(axis=0)[None])[0]]
