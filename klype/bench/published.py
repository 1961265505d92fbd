"""Figures that others published, computed here anew: each with its source, ours beside it, or why it was not run."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import numpy as np
from scipy import special

from klype.bench.monofacts import relationship, singletons
from klype.errors import UsageError
from klype.values import Distribution, Figure

RUNS = 200_000
NEXT_ORDER = (20 * 20 - 1) / (12 * 200**2)
"""(Σ 1/p − 1) / 12n²: what the first-order formula leaves out, hence how near it can be expected to be. Allowed for
after ours had come out .001 above the formula, the interval clear of it."""
PASSES = 2000
TOY = {"vocab_size": 12, "width": 16, "layers": 1, "heads": 2, "hidden": 32, "window": 16, "tie": False}
"""Small enough that every draw is cheap and every probability is known."""


@dataclass(frozen=True, slots=True)
class Row:
    """``ours`` agrees when the published value, as precise as it was printed (``within``), is in its interval; where it
    was published as a ``bound``, when the whole interval keeps to it."""

    name: str
    source: str
    published: float
    within: float
    ours: Figure
    bound: Literal["", "least", "most"] = ""

    def json(self) -> dict[str, Any]:
        agrees = None
        if self.ours.value is not None:
            low = self.ours.value if self.ours.low is None else self.ours.low
            high = self.ours.value if self.ours.high is None else self.ours.high
            at_least, at_most = low + self.within >= self.published, high - self.within <= self.published
            inside = low - self.within <= self.published <= high + self.within
            agrees = {"least": at_least, "most": at_most}.get(self.bound, inside)
        return {"name": self.name, "source": self.source, "published": self.published, "bound": self.bound,
                "ours": self.ours.json(), "agrees": agrees}  # fmt: skip


def published(names: Path | None = None, seed: int = 0) -> dict[str, Any]:
    """``names``: makemore's names.txt, one a line. Errors: it is not there, or empty."""
    brown = "Brown, Cai & DasGupta 2001, Interval Estimation for a Binomial Proportion"
    rows = [
        Row("Tokens a pass of speculative decoding, α = 0.8, 5 drafted", "Leviathan et al. 2023, arXiv:2211.17192",
            3.689, 0.0005, speculation(0.8, 5, seed)),
        *speculative(seed),
        Row("Coverage of the Wald interval, n = 100, p = 0.106", brown, 0.952, 0.0005, wald_coverage(100, 0.106)),
        Row("Coverage of the Wald interval, n = 100, p = 0.107", brown, 0.911, 0.0005, wald_coverage(100, 0.107)),
        Row("E KL(counts‖p), 20 classes alike, 200 draws: (K − 1) / 2n to first order", "Miller 1955, Note on the Bias",
            0.0475, NEXT_ORDER, count_divergence(20, 200, seed)),
        Row("Bigram of 32,033 names, nats a character", "Karpathy, makemore", 2.454, 0.0005, bigram(names)),
        Row("Character-level Shakespeare after three minutes of CPU, nats", "Karpathy, nanoGPT", 1.88, 0.005,
            _not_run("it is a training run: klype bench quality")),
        *seen_once(seed),
    ]  # fmt: skip
    documents = [row.json() for row in rows]
    return {"rows": documents, "passed": all(row["agrees"] is not False for row in documents)}


def seen_once(seed: int) -> list[Row]:
    """False statements and facts that were seen once. The papers print no single figure: what is held against ours is
    the sign that the one found, and the bounds that the others proved."""
    tau, room = relationship(seed)
    false, least, most = singletons(seed)
    kalai = "Kalai et al. 2025, arXiv:2509.04664, theorem 2"
    return [
        Row("False statements rise with facts seen once (bigrams, Pareto corpora): Kendall's τ above 0",
            "Miao & Kearns 2025, arXiv:2502.08666: a positive relationship", 0.0, 0.0, tau, "least"),
        Row("False statements − (facts seen once − miscalibration), the least of 40 corpora",
            "Kalai & Vempala 2024, arXiv:2311.14648, as tried by Miao & Kearns", 0.0, 0.0, room, "least"),
        Row("False answers of a model that remembers, from below", kalai, least, 0.0, false, "least"),
        Row("False answers of a model that remembers, from above", kalai, most, 0.0, false, "most"),
    ]  # fmt: skip


def speculation(alpha: float, drafted: int, seed: int) -> Figure:
    """Accepted until the first refusal, and one token of the model's own: mean over simulated passes."""
    accepted = np.random.default_rng(seed).random((RUNS, drafted)) < alpha
    return _mean(np.cumprod(accepted, axis=1).sum(axis=1) + 1.0, "tokens a pass")


def speculative(seed: int, samples: int = PASSES) -> list[Row]:
    """klype's own engine and two toy models with random weights: how often a guess is accepted, and what is drawn.

    ``p`` and ``q`` are read from the models; the second token of each answer is guessed.
    """
    import torch

    from klype.engine.drafts import ModelDraft
    from klype.engine.engine import Engine
    from klype.engine.speculation import speculate
    from klype.model.config import ModelConfig
    from klype.model.transformer import Transformer
    from klype.values import Request

    chance = torch.Generator().manual_seed(seed)
    model, guesser = (Transformer(ModelConfig.parse(TOY)).eval() for _ in range(2))
    with torch.no_grad():
        for one in (model, guesser):
            one.embed.weight.normal_(0.0, 1.0, generator=chance)
            one.head.weight.normal_(0.0, 0.4, generator=chance)
    engine = Engine(model)
    first_V = _probabilities(engine.next([(1,)])[0])
    after = [(1, token) for token in range(len(first_V))]
    p_VV, q_VV = (np.stack([_probabilities(q) for q in one.next(after)]) for one in (engine, Engine(guesser)))
    # The first token comes of reading the prompt, the second is guessed, the third is the last one's own.
    traces, counts = speculate(engine, Request((1,), n=samples, limit=3, seed=seed), ModelDraft(guesser), gamma=1)
    overlap, p_V = float(first_V @ np.minimum(p_VV, q_VV).sum(axis=1)), first_V @ p_VV
    accepted = np.repeat([1.0, 0.0], [counts.accepted, counts.rejected]) / overlap
    drawn_V = np.bincount([trace.tokens[1] for trace in traces], minlength=len(p_V))
    kept_V = p_V * samples >= 5
    others = ~kept_V
    seen = np.append(drawn_V[kept_V], drawn_V[others].sum())
    expected = np.append(p_V[kept_V], p_V[others].sum()) * samples
    seen, expected = seen[expected > 0], expected[expected > 0]
    freedom = len(seen) - 1
    value, half = float(((seen - expected) ** 2 / expected).sum()) / freedom, 1.959964 * (2 / freedom) ** 0.5
    source = "Leviathan et al. 2023, arXiv:2211.17192"
    return [
        Row("Guesses accepted ÷ Σ min(p, q), klype's engine on toys", f"{source}, theorem 3.5", 1.0, 0.0,
            _mean(accepted, "ratio")),
        Row("Speculation is lossless: χ² of the tokens drawn against p ÷ degrees of freedom", f"{source}, appendix A.1",
            1.0, 0.0, Figure(value, max(0.0, value - half), value + half, samples, "χ² ÷ degrees of freedom")),
    ]  # fmt: skip


def _probabilities(q: Distribution) -> np.ndarray[Any, np.dtype[np.float64]]:
    p_V = np.zeros(len(q.ids))
    p_V[q.ids] = np.exp(q.logp.astype(np.float64))
    p_V /= p_V.sum()
    return p_V


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
