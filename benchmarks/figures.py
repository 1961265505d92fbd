"""Figures from timings in rounds: medians with their spread, ratios paired within rounds, and the loss of int8."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import product

import numpy as np
import numpy.typing as npt

from klype.values import Figure

# seconds by (engine, measurement), one per round; the engines of a round ran one after another
Timings = Mapping[tuple[str, str], Sequence[float]]
Floats = npt.NDArray[np.float64]

# name: (measurement, ours, theirs, floor, goal); of several engines the fastest counts
RATIOS: dict[str, tuple[str, tuple[str, ...], tuple[str, ...], float, float]] = {
    "single_fp32_vs_transformers_fp32": ("single", ("klype float32",), ("transformers float32",), 2.1, 2.6),
    "n64_fp32_vs_transformers_fp32": ("n64", ("klype float32",), ("transformers float32",), 5.5, 7.0),
    "n256_vs_transformers_bf16": ("n256", ("EXACT",), ("transformers bfloat16",), 5.8, 8.0),
    "n256_vs_llama_cpp": ("n256", ("EXACT",), ("llama.cpp Q4_0", "llama.cpp BF16"), 3.0, 4.0),
    "n256_vs_openvino": ("n256", ("EXACT",), ("OpenVINO GenAI",), 0.95, 1.2),
    **{
        f"single_{kind.lower()}_vs_llama_cpp": ("single", (f"klype {kind}",), (f"llama.cpp {kind}",), 0.9, 1.1)
        for kind in ("Q4_0", "Q4_1", "Q8_0")
    },
    "single_best_vs_llama_cpp": (
        "single",
        ("klype float32", "klype bfloat16", "klype int8"),
        ("llama.cpp Q4_0", "llama.cpp BF16"),
        0.5,
        1.0,
    ),
}
EXACT_KL = 0.005


def median(values: Sequence[float], unit: str) -> Figure:
    """The median as a figure; ``low`` and ``high`` are the minimum and maximum of the rounds."""
    if not values:
        return Figure(None, why="not measured")
    return Figure(float(np.median(values)), min(values), max(values), len(values), unit)


def ratios(timings: Timings, exact: Sequence[str], why: Mapping[str, str]) -> dict[str, Figure]:
    """How many times faster klype is; ``exact``: its precisions with a loss small enough to count as "EXACT"."""
    found = {}
    for name, (what, ours, theirs, _, _) in RATIOS.items():
        ours = tuple(exact) if ours == ("EXACT",) else ours
        mine, other = _fastest(timings, what, ours), _fastest(timings, what, theirs)
        if mine and other:
            pairs = zip(timings[mine, what], timings[other, what], strict=False)
            found[name] = median([b / a for a, b in pairs], "times")
        else:
            engines = theirs if mine else ours
            missing = "; ".join(f"{engine}: {why.get(engine, 'not measured')}" for engine in engines)
            found[name] = Figure(None, why=missing or "no precision is exact enough")
    return found


def decode_seconds(whole: Sequence[float], prefill: Sequence[float]) -> list[float]:
    """The seconds for all tokens after the first, by round."""
    return [max(a - b, 1e-9) for a, b in zip(whole, prefill, strict=True)]


def loss(exact_TV: Floats, other_TV: Floats, tokens: Sequence[int]) -> dict[str, Figure]:
    """KL(exact‖other) per token, and S (the probability of the token that followed), from log-probabilities [T, V] of a
    text."""
    kl_T = (np.exp(exact_TV) * (exact_TV - other_TV)).sum(-1)
    after = list(tokens[1:])
    at = np.arange(len(after))
    return {
        "kl": _mean(kl_T, "nats a token"),
        "s": _mean(np.exp(other_TV[at, after]), "probability"),
        "s_float32": _mean(np.exp(exact_TV[at, after]), "probability"),
    }


def _mean(values_T: Floats, unit: str) -> Figure:
    mean, n = float(values_T.mean()), len(values_T)
    half = 1.96 * float(values_T.std(ddof=1)) / n**0.5 if n > 1 else 0.0
    return Figure(mean, mean - half, mean + half, n, unit)


def _fastest(timings: Timings, what: str, engines: Sequence[str]) -> str | None:
    measured = [engine for engine, w in product(engines, (what,)) if timings.get((engine, w))]
    return min(measured, key=lambda engine: float(np.median(timings[engine, what])), default=None)
