"""Are errors independent of where in an answer they stand? The shape k of a discrete Weibull hazard (Nakagawa & Osaki
1975): 1 − h_t = exp(−λ^k (t^k − (t − 1)^k)). k = 1: the hazard is constant, K_n = S^n; below 1 it falls with t."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from scipy import optimize

from klype.examine.evidence import Answered
from klype.examine.intervals import Array, resampled_means
from klype.examine.survival import AT_RISK, ERRED, hazards
from klype.values import Figure

RESAMPLES = 100
UNIT = "shape"
FINE = {"xatol": 1e-4, "fatol": 1e-9, "maxiter": 400}


def weibull_shape(answers: Sequence[Answered], seed: int = 0) -> Figure:
    """k by maximum likelihood (exact hazards enter as expected counts); interval: bootstrap standard error of ln k.

    No error at all, or none but at one position: no figure.
    """
    table_MTE = hazards(answers)
    counts_TE = table_MTE.sum(axis=0)
    if counts_TE.shape[0] < 2 or counts_TE[:, ERRED].sum() < 1e-9:
        return Figure(None, n=len(answers), unit=UNIT, why="too few errors")
    value = _fit(counts_TE)
    questions = table_MTE.shape[0]
    if questions == 1:
        return Figure(value, None, None, len(answers), UNIT, why="one question only: nothing is known about others")
    drawn = resampled_means(table_MTE.reshape(questions, -1), seed, RESAMPLES).reshape(RESAMPLES, *counts_TE.shape)
    kept = [math.log(_fit(one, value)) for one in drawn if one[:, ERRED].sum() > 1e-12]
    error = 1.96 * float(np.std(kept, ddof=1)) if len(kept) > 2 else math.inf
    if not math.isfinite(error):
        return Figure(value, None, None, len(answers), UNIT, why="too few errors")
    return Figure(value, value * math.exp(-error), value * math.exp(error), len(answers), UNIT)


def _fit(counts_TE: Array, start: float = 1.0) -> float:
    t = np.arange(1, counts_TE.shape[0] + 1, dtype=float)
    erred, fine = counts_TE[:, ERRED], counts_TE[:, AT_RISK] - counts_TE[:, ERRED]
    scale = max(1e-9, counts_TE[:, AT_RISK].sum())
    rate = max(1e-6, float(erred.sum() / scale))

    def unlikely(at: Array) -> float:
        k = math.exp(min(3.0, max(-3.0, float(at[1]))))
        cumulated_T = np.exp(np.clip(k * at[0], -60, 60)) * (t**k - (t - 1) ** k)
        log_hazard_T = np.log(np.maximum(-np.expm1(-cumulated_T), 1e-300))
        return float((cumulated_T * fine - log_hazard_T * erred).sum() / scale)

    found = optimize.minimize(
        unlikely,
        [math.log(rate), math.log(start)],
        method="Nelder-Mead",
        options={"xatol": 1e-4, "fatol": 1e-9, "maxiter": 400},
    )
    return math.exp(min(3.0, max(-3.0, float(found.x[1]))))
