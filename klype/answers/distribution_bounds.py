"""Certain bounds of what a partial distribution (the k most probable tokens) or an unfinished tree tells. Nats.

A partial distribution may be completed in any way that gives no unlisted token more than the least probable listed one:
its mass r lies on the V − k other tokens. Where no token is listed, nothing is known. Each bound is attained by some
completion, except where a function says otherwise. ``vocabulary``: V, or 0 if it is unknown, hence unbounded.
"""

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np

from klype.errors import UsageError
from klype.values import Distribution, Floats, Sampling

TINY = 1e-12  # masses below this are rounding errors
ROUNDING = 1e-7  # possible error of a sum of probabilities in float32


@dataclass(frozen=True, slots=True)
class TokenBounds:
    """Probabilities of the listed tokens at a temperature, each from ``low_K`` to ``high_K``; ``rest`` = 1 − Σ low."""

    low_K: Floats
    high_K: Floats
    rest: float


def entropy(q: Distribution, vocabulary: int) -> tuple[float, float]:
    """Bounds of H(q): lowest if the rest is on as few tokens as possible, highest if it is spread evenly."""
    if not q.ids.size:
        return 0.0, math.log(vocabulary) if vocabulary else math.inf
    p_K = np.exp(q.logp.astype(np.float64))
    p_K = p_K[p_K > 0.0]  # 0 · log 0 is 0, which numpy does not know
    listed = float(-(p_K * np.log(p_K)).sum())
    if q.rest <= 0.0:
        return listed, listed
    least, r = float(p_K.min()), q.rest
    full, left = _fewest_tokens(r, least)
    low = listed - full * least * math.log(least) - (left * math.log(left) if left > TINY else 0.0)
    others = vocabulary - len(q.ids) if vocabulary else 0
    high = listed - r * math.log(r / others) if others > 0 else math.inf
    return low, max(low, high)


def entropy_at(q: Distribution, temperature: float, vocabulary: int) -> tuple[float, float]:
    """Bounds of the entropy at a temperature: valid, but not always attained.

    The listed tokens' shares of their own mass are known. With mass R on the unlisted tokens,
    H = h(R) + (1 − R)·H(listed) + R·H(unlisted), where none of the V − k unlisted tokens has more than the least
    probable listed one. Both bounds are concave in R, which is itself bounded.
    """
    if temperature == 0.0:
        return 0.0, 0.0
    if temperature == 1.0 or q.rest <= 0.0 or not q.ids.size:
        return entropy(q if temperature == 1.0 or q.rest > 0.0 else whole_at(q, temperature), vocabulary)
    at = temperature_bounds(q, temperature, vocabulary)
    share_K = np.exp(relative(q, temperature))
    share_K /= share_K.sum()
    listed = float(-(share_K[share_K > 0] * np.log(share_K[share_K > 0])).sum())
    most = min(1.0, max(0.0, at.rest))
    least = min(most, max(0.0, 1.0 - float(at.high_K.sum())))
    rarest = -math.log(max(float(at.high_K.min()), TINY))
    # concave in R, so lowest at one of the ends
    low = min(_plogp(1 - r) + (1 - r) * listed + r * rarest for r in (least, most))
    others = vocabulary - len(q.ids) if vocabulary else 0
    if others <= 0:
        return low, math.inf
    # where the derivative in R is 0, or the end nearest to that
    best = min(most, max(least, others / (others + math.exp(listed))))
    return low, max(low, _plogp(best) + _plogp(1 - best) + (1 - best) * listed + best * math.log(others))


def mass_at(q: Distribution, temperature: float, vocabulary: int, acceptable: Collection[int]) -> tuple[float, float]:
    """Bounds of the probability of a set of tokens at a temperature."""
    if not q.ids.size:
        return 0.0, 1.0
    at = temperature_bounds(q, temperature, vocabulary)
    inside_K = np.isin(q.ids, list(acceptable))
    low = min(1.0, float(at.low_K[inside_K].sum()))
    unlisted = len(set(acceptable)) - int(inside_K.sum())
    # no unlisted token has more than the least probable listed one
    spare = unlisted * float(at.high_K.min()) if q.rest > 0.0 else 0.0
    high = min(float(at.high_K[inside_K].sum()) + spare, 1.0 - float(at.low_K[~inside_K].sum()))
    return low, min(1.0, max(low, high))


def relative(q: Distribution, temperature: float) -> Floats:
    """log p^(1/τ) of the listed tokens, minus that of the most probable: it overflows at no temperature τ > 0."""
    logp_K = q.logp.astype(np.float64)
    with np.errstate(over="ignore"):
        relative_K: Floats = (logp_K - logp_K.max()) / temperature
    return relative_K


def whole_at(q: Distribution, temperature: float) -> Distribution:
    """A whole distribution at a temperature above 0."""
    z_K = relative(q, temperature)
    return Distribution(q.ids, z_K - math.log(float(np.exp(z_K).sum())))


def _plogp(p: float) -> float:
    return -p * math.log(p) if p > TINY else 0.0


def temperature_bounds(q: Distribution, temperature: float, vocabulary: int) -> TokenBounds:
    """Probabilities of the listed tokens at a temperature. Of the unlisted tokens' share of the normaliser only bounds
    are known."""
    logp_K = q.logp.astype(np.float64)
    if not logp_K.size:
        return TokenBounds(logp_K, logp_K, 1.0)
    if temperature == 0.0:
        p_K = np.zeros(len(logp_K))
        p_K[int(np.argmax(logp_K))] = 1.0
        return TokenBounds(p_K, p_K, 0.0)
    weight_K = np.exp(relative(q, temperature))
    listed = float(weight_K.sum())
    if q.rest <= 0.0:
        return TokenBounds(weight_K / listed, weight_K / listed, 0.0)
    if temperature == 1.0:
        p_K = np.exp(logp_K)
        return TokenBounds(p_K, p_K, max(0.0, 1.0 - float(p_K.sum())))
    # Σ over unlisted tokens of (p / e^top)^(1/τ): its bounds are the rest packed on few tokens and spread over all. The
    # rest is 1 minus a sum of rounded numbers: it may be off by ROUNDING, which matters above temperature 1.
    top = float(logp_K.max())
    ends = [_ends(max(0.0, q.rest + off), q, temperature, vocabulary, top) for off in (-ROUNDING, ROUNDING)]
    least, most = min(ends[0]), max(ends[1])
    low_K, high_K = weight_K / (listed + most), weight_K / (listed + least)
    return TokenBounds(low_K, np.minimum(1.0, high_K), max(0.0, 1.0 - float(low_K.sum())))


def sampling_bounds(q: Distribution, sampling: Sampling, vocabulary: int) -> TokenBounds:
    """``temperature_bounds`` at a sampling's temperature. Raises UsageError for one with other options, which needs
    the unlisted tokens."""
    if sampling != Sampling(temperature=sampling.temperature):
        raise UsageError("This model tells only its most probable tokens: nothing but a temperature can be applied.")
    return temperature_bounds(q, sampling.temperature, vocabulary)


def _ends(rest: float, q: Distribution, temperature: float, vocabulary: int, top: float) -> tuple[float, float]:
    """Σ (p / e^top)^(1/τ) with the rest packed on as few tokens as possible, and spread over all."""
    power, scale, most = 1 / temperature, math.exp(-top), math.exp(float(q.logp.min()))
    full, left = _fewest_tokens(rest, most)
    packed = full * (most * scale) ** power + (left * scale) ** power
    others = vocabulary - len(q.ids) if vocabulary else 0
    if others <= 0:
        # any number of tokens: spread over infinitely many, the sum is 0 above power 1 and infinite below
        return (0.0, packed) if power > 1 else (packed, math.inf)
    return packed, others * (rest / others * scale) ** power


def _fewest_tokens(rest: float, least: float) -> tuple[int, float]:
    """The rest on as few tokens as possible, none above ``least``: their number, and what is left for one more."""
    # TINY: a rest that is an exact multiple must not be rounded down to one token fewer
    full = math.floor(rest / least + TINY)
    return full, max(0.0, rest - full * least)


def entropy_bounds(low: Sequence[float], unexplored: float, opened: tuple[Floats, Floats]) -> tuple[float, float]:
    """Bounds of the entropy (nats) of a tree's answers: their masses are at least ``low``, and ``unexplored`` is left.

    Lowest: all of it belongs to the largest. Highest: the entropy of the known masses and the open parts together, plus
    what each part can add. ``opened``: masses of the open parts, and the most nats of entropy within each.
    """
    masses = sorted((mass for mass in low if mass > 0), reverse=True)
    # entropy is Schur-concave: the more uneven, the lower
    least = _entropy([(masses[0] if masses else 0.0) + unexplored, *masses[1:]])
    mass_N, behind_N = opened
    more = float((mass_N * behind_N).sum()) if len(mass_N) else 0.0
    return least, max(least, _entropy(masses) + float(-(mass_N * np.log(mass_N)).sum()) + more)


def _entropy(masses: Sequence[float]) -> float:
    return math.fsum(-mass * math.log(mass) for mass in masses if mass > 0)
