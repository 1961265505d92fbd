"""The temperature at which a model would be most honest, and how much its own mistakes cost it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from klype.examine.divergence import of, possible
from klype.examine.intervals import (
    FEWEST,
    MISSED,
    ONE,
    SAME,
    Array,
    few_differ,
    pseudo_values,
    ratio_limits,
    ratio_of_means,
    without_each,
)
from klype.values import Distribution, Figure

TEMPERATURES = tuple(float(t) for t in np.exp(np.linspace(math.log(0.25), math.log(4.0), 49)))


def cross_entropies(p: Mapping[int, float], q: Distribution) -> Array:
    """−Σ p ln softmax(z/T) for every T of TEMPERATURES. ``p``: the truth, or {the token that came: 1}."""
    ids_A, p_A = possible(p)
    logq_A = of(q, ids_A)
    listed_A = logq_A > -math.inf if not q.whole else np.ones(len(ids_A), bool)
    cold_G = 1 / np.array(TEMPERATURES)
    most = float(q.logp.max())
    weight_GK = np.multiply.outer(cold_G, q.logp.astype(np.float64) - most)
    norm_G = most * cold_G + np.log(np.exp(weight_GK, out=weight_GK).sum(axis=1))
    found: Array = norm_G * p_A[listed_A].sum() - cold_G * float(p_A[listed_A] @ logq_A[listed_A])
    return found


def best_temperature(table_MG: Array) -> Figure:
    """The T of least cross-entropy, from each question's summed ``cross_entropies``; interval: of ln T."""
    questions = table_MG.shape[0]
    if questions == 0:
        return Figure(None, unit="temperature", why="nothing was measured")
    value = float(_least(table_MG.mean(axis=0)[None])[0])
    if questions == 1:
        return Figure(value, None, None, 1, "temperature", why=ONE)
    part_M = pseudo_values(np.log(value), np.log(_least(without_each(table_MG))))
    limits = None if questions < FEWEST or few_differ(part_M) else ratio_limits(part_M, np.ones_like(part_M))
    if limits is None:
        return Figure(value, None, None, questions, "temperature", why=MISSED if questions < FEWEST else SAME)
    low, high = (math.exp(min(end, 700.0)) for end in limits)
    return Figure(value, min(low, value), max(high, value), questions, "temperature")


def excess_error(own: Sequence[float], true: Sequence[float]) -> Figure:
    """ExAccErr (Arora et al. 2022, arXiv:2204.01171): 100 (ρ − 1) %, ρ = mean Σ KL(p‖q) over one's own open beginnings
    ÷ the same over true ones; one sum a question in each."""
    ratio = ratio_of_means(own, true, "ratio")
    if ratio.value is None:
        return Figure(None, n=ratio.n, unit="% more", why=ratio.why)
    ends = [None if end is None else 100 * (end - 1) for end in (ratio.low, ratio.high)]
    return Figure(100 * (ratio.value - 1), ends[0], ends[1], ratio.n, "% more", why=ratio.why)


def _least(mean_BG: Array) -> Array:
    """The lowest point of each curve, between grid points by a parabola in ln T."""
    at_B = np.clip(np.argmin(mean_BG, axis=1), 1, mean_BG.shape[1] - 2)
    rows = np.arange(len(mean_BG))
    before, here, after = (mean_BG[rows, at_B + step] for step in (-1, 0, 1))
    bend = before - 2 * here + after
    shift = np.divide(before - after, 2 * bend, out=np.zeros_like(bend), where=bend > 0)
    step = math.log(TEMPERATURES[1] / TEMPERATURES[0])
    found: Array = np.exp(np.log(np.array(TEMPERATURES))[at_B] + step * np.clip(shift, -1, 1))
    return found
