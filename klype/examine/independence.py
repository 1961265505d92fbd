"""Are errors independent of where in an answer they stand? The shape k of a discrete Weibull hazard (Nakagawa & Osaki
1975): 1 − h_t = exp(−λ^k (t^k − (t − 1)^k)). k = 1: the hazard is constant, K_n = S^n; below 1 it falls with t."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from klype.examine.evidence import Answered
from klype.examine.intervals import FEWEST, ONE, Array, few_differ, pseudo_values, ratio_limits, without_each
from klype.examine.survival import AT_RISK, ERRED, hazards
from klype.values import Figure

UNIT = "shape"
GROUPS = 100
"""Questions are left out in so many groups at most: every one is a fit."""
LEAST = 10.0
"""Errors; from fewer there is no interval."""
ROUNDS, NEAR = 200, 1e-7
"""Steps of a fit, and a step so small that it is the last."""
WIDEST = 3.0
"""ln k lies within ± this; a step is never longer."""


def weibull_shape(answers: Sequence[Answered]) -> Figure:
    """k by maximum likelihood (exact hazards enter as expected counts); interval: of ln k, from what groups of
    questions weigh in it.

    No error at all, or none but at one position: no figure.
    """
    table_MTE = hazards(answers)
    counts_TE = table_MTE.sum(axis=0)
    if counts_TE.shape[0] < 2 or counts_TE[:, ERRED].sum() < 1e-9:
        return Figure(None, n=len(answers), unit=UNIT, why="too few errors")
    value = float(_fit(counts_TE[None])[0])
    questions = table_MTE.shape[0]
    if questions == 1:
        return Figure(value, None, None, len(answers), UNIT, why=ONE)
    grouped = np.zeros((min(questions, GROUPS), *counts_TE.shape))
    np.add.at(grouped, np.arange(questions) % len(grouped), table_MTE)
    part_G = pseudo_values(np.log(value), np.log(_fit(without_each(grouped))))
    limits = None
    if questions >= FEWEST and counts_TE[:, ERRED].sum() >= LEAST and not few_differ(part_G):
        limits = ratio_limits(part_G, np.ones_like(part_G))
    if limits is None:
        return Figure(value, None, None, len(answers), UNIT, why="too few errors")
    low, high = (math.exp(min(end, 700.0)) for end in limits)
    return Figure(value, min(low, value), max(high, value), len(answers), UNIT)


def _fit(counts_BTE: Array) -> Array:
    """k of every table, by Fisher's scoring with Levenberg's damping in (ln λ, ln k), all tables at once."""
    erred_BT, risk_BT = counts_BTE[..., ERRED], counts_BTE[..., AT_RISK]
    scale_B1 = np.maximum(1e-9, risk_BT.sum(axis=1, keepdims=True))
    erred_BT, risk_BT = erred_BT / scale_B1, risk_BT / scale_B1
    at_B2 = np.stack([np.log(np.maximum(1e-6, erred_BT.sum(axis=1))), np.zeros(len(erred_BT))], axis=1)
    damping_B = np.full(len(at_B2), 1e-3)
    here_B = _unlikely(at_B2, erred_BT, risk_BT)
    for _ in range(ROUNDS):
        step_B2 = _step(at_B2, erred_BT, risk_BT, damping_B)
        next_B2 = at_B2 + step_B2
        next_B2[:, 1] = np.clip(next_B2[:, 1], -WIDEST, WIDEST)
        there_B = _unlikely(next_B2, erred_BT, risk_BT)
        better_B = there_B <= here_B
        at_B2[better_B], here_B[better_B] = next_B2[better_B], there_B[better_B]
        damping_B = np.clip(np.where(better_B, damping_B / 5, damping_B * 10), 1e-12, 1e12)
        if np.abs(step_B2).max() < NEAR:
            break
    k_B: Array = np.exp(at_B2[:, 1])
    return k_B


def _unlikely(at_B2: Array, erred_BT: Array, risk_BT: Array) -> Array:
    """−log-likelihood: Σ_t c_t (at risk − erred) − ln(1 − e^−c_t) erred, c_t the cumulated hazard's growth."""
    growth_BT = np.diff(_cumulated(at_B2, erred_BT.shape[1])[0], axis=1, prepend=0.0)
    log_hazard_BT = np.log(np.maximum(-np.expm1(-growth_BT), 1e-300))
    found: Array = (growth_BT * (risk_BT - erred_BT) - log_hazard_BT * erred_BT).sum(axis=1)
    return found


def _cumulated(at_B2: Array, positions: int) -> tuple[Array, Array]:
    """u = (λt)^k, and its logarithm."""
    log_BT = np.exp(at_B2[:, 1:]) * (at_B2[:, :1] + np.log(np.arange(1, positions + 1)))
    log_BT = np.clip(log_BT, -60, 60)
    return np.exp(log_BT), log_BT


def _step(at_B2: Array, erred_BT: Array, risk_BT: Array, damping_B: Array) -> Array:
    u_BT, log_BT = _cumulated(at_B2, erred_BT.shape[1])
    growth_BT = np.maximum(np.diff(u_BT, axis=1, prepend=0.0), 1e-300)
    # du/d ln λ = k u, du/d ln k = u ln u
    moved_2BT = np.stack([np.exp(at_B2[:, 1:]) * u_BT, u_BT * log_BT])
    moved_2BT = np.diff(moved_2BT, axis=2, prepend=0.0)
    odds_BT = np.maximum(np.expm1(growth_BT), 1e-300)
    slope_BT = risk_BT - erred_BT - erred_BT / odds_BT
    gradient_B2 = np.einsum("ibt,bt->bi", moved_2BT, slope_BT)
    curve_B22 = np.einsum("ibt,jbt,bt->bij", moved_2BT, moved_2BT, risk_BT / odds_BT)
    spread_B2 = np.einsum("bii->bi", curve_B22)
    curve_B22 = curve_B22 + np.eye(2) * (damping_B[:, None] * spread_B2 + 1e-12)[:, None]
    step_B2: Array = np.clip(np.linalg.solve(curve_B22, -gradient_B2[..., None])[..., 0], -WIDEST, WIDEST)
    return step_B2
