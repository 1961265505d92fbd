"""Figures that others published, computed here anew: each with its source, ours beside it, or why it was not run."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from scipy import special

from klype.errors import UsageError
from klype.values import Figure

RUNS = 200_000
NEXT_ORDER = (20 * 20 - 1) / (12 * 200**2)
"""(Σ 1/p − 1) / 12n²: what the first-order formula leaves out, hence how near it can be expected to be."""


@dataclass(frozen=True, slots=True)
class Row:
    """``ours`` agrees when the published value, as precise as it was printed (``within``), is in its interval."""

    name: str
    source: str
    published: float
    within: float
    ours: Figure

    def json(self) -> dict[str, Any]:
        agrees = None
        if self.ours.value is not None:
            low = self.ours.value if self.ours.low is None else self.ours.low
            high = self.ours.value if self.ours.high is None else self.ours.high
            agrees = low - self.within <= self.published <= high + self.within
        return {"name": self.name, "source": self.source, "published": self.published, "ours": self.ours.json(),
                "agrees": agrees}  # fmt: skip


def published(names: Path | None = None, seed: int = 0) -> dict[str, Any]:
    """``names``: makemore's names.txt, one a line. Errors: it is not there, or empty."""
    brown = "Brown, Cai & DasGupta 2001, Interval Estimation for a Binomial Proportion"
    rows = [
        Row("Tokens a pass of speculative decoding, α = 0.8, 5 drafted", "Leviathan et al. 2023, arXiv:2211.17192",
            3.689, 0.0005, speculation(0.8, 5, seed)),
        Row("Coverage of the Wald interval, n = 100, p = 0.106", brown, 0.952, 0.0005, wald_coverage(100, 0.106)),
        Row("Coverage of the Wald interval, n = 100, p = 0.107", brown, 0.911, 0.0005, wald_coverage(100, 0.107)),
        Row("E KL(counts‖p), 20 classes alike, 200 draws: (K − 1) / 2n to first order", "Miller 1955, Note on the Bias",
            0.0475, NEXT_ORDER, count_divergence(20, 200, seed)),
        Row("Bigram of 32,033 names, nats a character", "Karpathy, makemore", 2.454, 0.0005, bigram(names)),
        Row("Character-level Shakespeare after three minutes of CPU, nats", "Karpathy, nanoGPT", 1.88, 0.005,
            _not_run("it is a training run: klype run --text input.txt --minutes 3")),
        Row("Hallucination rate ÷ rate of facts seen once, n-gram model", "Miao & Kearns 2025, arXiv:2502.08666", 1.0,
            0.1, _not_run("its corpus of facts is not here, and no fresh one is generated yet")),
        Row("False answers ÷ share of facts seen once (at least)", "Kalai et al. 2025, arXiv:2509.04664", 1.0, 0.1,
            _not_run("it needs a model trained on counted facts")),
    ]  # fmt: skip
    documents = [row.json() for row in rows]
    return {"rows": documents, "passed": all(row["agrees"] is not False for row in documents)}


def speculation(alpha: float, drafted: int, seed: int) -> Figure:
    """Accepted until the first refusal, and one token of the model's own: mean over simulated passes."""
    accepted = np.random.default_rng(seed).random((RUNS, drafted)) < alpha
    return _mean(np.cumprod(accepted, axis=1).sum(axis=1) + 1.0, "tokens a pass")


def wald_coverage(n: int, p: float) -> Figure:
    """Summed over all outcomes: no sampling error."""
    k = np.arange(n + 1)
    share = k / n
    half = special.ndtri(0.975) * np.sqrt(share * (1 - share) / n)
    chance = np.exp(
        special.gammaln(n + 1)
        - special.gammaln(k + 1)
        - special.gammaln(n - k + 1)
        + k * np.log(p)
        + (n - k) * np.log1p(-p)
    )
    covered = float(chance[(share - half <= p) & (p <= share + half)].sum())
    return Figure(covered, covered, covered, n + 1, "share", certain=True)


def count_divergence(classes: int, draws: int, seed: int) -> Figure:
    """KL of counted shares from the even distribution they were drawn from."""
    counts = np.random.default_rng(seed).multinomial(draws, np.full(classes, 1 / classes), size=RUNS // 10)
    return _mean(special.xlogy(counts / draws, counts / draws * classes).sum(axis=1), "nats")


def bigram(names: Path | None) -> Figure:
    """Negative log-likelihood a character (the end counted) of the names that the counts are from."""
    if names is None:
        return _not_run("its names are not here: --names names.txt")
    if not names.is_file():
        raise UsageError(f"--names: there is no file {names}.")
    words = names.read_text(encoding="utf-8").split()
    if not words:
        raise UsageError(f"--names: {names} is empty.")
    pairs = Counter(pair for word in words for pair in pairwise(f".{word}."))
    before: Counter[str] = Counter()
    for (first, _), count in pairs.items():
        before[first] += count
    counts = np.array(list(pairs.values()), float)
    of = np.array([before[first] for first, _ in pairs], float)
    value = float(-(counts * np.log(counts / of)).sum() / counts.sum())
    return Figure(value, value, value, int(counts.sum()), "nats a character", certain=True)


def _mean(value_N: np.ndarray[Any, np.dtype[np.float64]], unit: str) -> Figure:
    mean, half = float(value_N.mean()), 1.959964 * float(value_N.std(ddof=1)) / len(value_N) ** 0.5
    return Figure(mean, mean - half, mean + half, len(value_N), unit)


def _not_run(why: str) -> Figure:
    return Figure(None, why=f"not run: {why}")
