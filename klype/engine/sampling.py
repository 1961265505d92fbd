"""Logits to a distribution to a token, as pure functions. Shapes: B rows, V vocabulary.

The distribution drawn from is a value: ``shape`` makes it, ``draw`` draws from it with noise that is a function of
(seed, sample, position) only. Greedy is temperature 0: a one-hot distribution, not another path.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn.functional import pad

from klype.errors import UsageError
from klype.values import Sampling

Words = npt.NDArray[np.uint64]
NUCLEUS = 512
"""In wide vocabularies the nucleus is looked for among so many tokens before all are sorted."""
BLOCK = 64
"""Wide vocabularies are searched in two levels: the block of this many tokens first, then the token in it."""


@dataclass(frozen=True)
class Seen:
    """What penalties look at, [B, V]: uses of each token in prompt and answer together, and in the answer alone."""

    text: Tensor
    counts: Tensor


def check_sampling(sampling: Sampling, vocab_size: int) -> None:
    """One clear sentence when a setting makes no distribution."""
    s = sampling
    _check(math.isfinite(s.temperature) and s.temperature >= 0, "temperature", s.temperature, "0 or more")
    _check(s.top_k >= 0, "top_k", s.top_k, "0 (off) or more")
    _check(0 < s.top_p <= 1, "top_p", s.top_p, "above 0 and at most 1")
    _check(0 <= s.min_p <= 1, "min_p", s.min_p, "between 0 and 1")
    _check(0 < s.typical_p <= 1, "typical_p", s.typical_p, "above 0 and at most 1")
    good = math.isfinite(s.repetition_penalty) and s.repetition_penalty > 0
    _check(good, "repetition_penalty", s.repetition_penalty, "above 0")
    _check(math.isfinite(s.presence_penalty), "presence_penalty", s.presence_penalty, "a number")
    _check(math.isfinite(s.frequency_penalty), "frequency_penalty", s.frequency_penalty, "a number")
    for token, bias in s.logit_bias:
        _check(0 <= token < vocab_size, "logit_bias token", token, f"an id below {vocab_size}")
        _check(not math.isnan(bias) and bias < math.inf, "logit_bias", bias, "a number or minus infinity")


def needs_seen(sampling: Sampling) -> bool:
    return sampling.repetition_penalty != 1 or sampling.presence_penalty != 0 or sampling.frequency_penalty != 0


def shape(logits_BV: Tensor, sampling: Sampling, seen: Seen | None = None) -> Tensor:
    """Log-probabilities [B, V] of what is drawn from: -inf for what cannot be.

    Order: bias and penalties on logits; temperature; then top-k, top-p, min-p and typical, each on what the one before
    left (renormalised), as in Hugging Face's chain of warpers.
    """
    s = sampling
    logits = logits_BV.float()
    if s.logit_bias:
        logits = bias(logits, s.logit_bias)
    if needs_seen(s):
        assert seen is not None, "penalties need to know what was said"
        logits = penalise(logits, s, seen)
    if s.temperature == 0:
        return one_hot(logits)
    logp = tempered(logits, s.temperature)
    if s.top_k and s.top_k < logp.shape[-1]:
        logp = top_k(logp, s.top_k)
    if s.top_p < 1:
        logp = top_p(logp, s.top_p)
    if s.min_p > 0:
        logp = min_p(logp, s.min_p)
    if s.typical_p < 1:
        logp = typical(logp, s.typical_p)
    return logp


def sample(
    logits_BV: Tensor, sampling: Sampling, noise_B: npt.NDArray[np.float64], seen: Seen | None = None
) -> tuple[Tensor, Tensor]:
    """Tokens [B] and their log-probabilities [2, B], on the CPU: under the model, and under what was drawn from.

    The same as ``shape`` and ``draw`` but for rounding; a whole distribution is not written out more often than needed.
    """
    logits = logits_BV.float()
    tempered_only = sampling == Sampling(temperature=sampling.temperature)
    if tempered_only and sampling.temperature == 0:
        best_B, at_B = logits.max(-1)
        tokens_B, drawn_B = at_B.cpu(), best_B * 0
    elif tempered_only and sampling.temperature > 1e-3:
        p_BV = (logits if sampling.temperature == 1 else logits / sampling.temperature).softmax(-1)
        tokens_B = _inverse_cdf(p_BV, noise_B)
        drawn_B = _at(p_BV, tokens_B).log()
        if sampling.temperature == 1:
            return tokens_B, torch.stack((drawn_B, drawn_B)).cpu()
    else:
        shaped_BV = shape(logits, sampling, seen)
        tokens_B = draw(shaped_BV, noise_B)
        drawn_B = _at(shaped_BV, tokens_B)
    logp_B = _at(logits, tokens_B) - logits.logsumexp(-1)
    return tokens_B, torch.stack((logp_B, drawn_B)).cpu()


def one_hot(logits_BV: Tensor) -> Tensor:
    """Temperature 0: all mass on the greatest logit (the lowest id of equals). A row of NaN stays NaN."""
    best_B1 = logits_BV.argmax(-1, keepdim=True)
    out = torch.full_like(logits_BV, -math.inf)
    return out.scatter_(-1, best_B1, logits_BV.gather(-1, best_B1) * 0)


def tempered(logits_BV: Tensor, temperature: float) -> Tensor:
    """Log-probabilities of softmax(logits / temperature); however near 0 the temperature is, nothing overflows."""
    if temperature == 1:
        return logits_BV.log_softmax(-1)
    if temperature < 1e-3:
        logits_BV = logits_BV - logits_BV.amax(-1, keepdim=True)
    return (logits_BV / max(temperature, 1e-30)).log_softmax(-1)


def bias(logits_BV: Tensor, pairs: tuple[tuple[int, float], ...]) -> Tensor:
    """Add to chosen tokens' logits (OpenAI's ``logit_bias``)."""
    ids = torch.tensor([token for token, _ in pairs], device=logits_BV.device)
    values = torch.tensor([value for _, value in pairs], dtype=logits_BV.dtype, device=logits_BV.device)
    return logits_BV.index_add(-1, ids, values.expand(logits_BV.shape[0], -1))


def penalise(logits_BV: Tensor, sampling: Sampling, seen: Seen) -> Tensor:
    """Repetition: divide positive and multiply negative logits of anything said (CTRL, Keskar et al. 2019,
    arXiv:1909.05858). Presence and frequency: subtract for tokens of the answer, once and per use (OpenAI's API)."""
    r, text_BV, counts_BV = sampling.repetition_penalty, *(n.to(logits_BV.device) for n in (seen.text, seen.counts))
    if r != 1:
        punished = torch.where(logits_BV > 0, logits_BV / r, logits_BV * r)
        logits_BV = torch.where(text_BV > 0, punished, logits_BV)
    said = (counts_BV > 0).to(logits_BV.dtype)
    return logits_BV - sampling.presence_penalty * said - sampling.frequency_penalty * counts_BV


def top_k(logp_BV: Tensor, k: int) -> Tensor:
    """Only the k most probable (Fan et al. 2018, arXiv:1805.04833); tokens equal to the k-th stay too."""
    return _renormalise(logp_BV.masked_fill(logp_BV < logp_BV.topk(k).values[:, -1:], -math.inf))


def top_p(logp_BV: Tensor, p: float) -> Tensor:
    """The smallest set of most probable tokens with mass at least p (nucleus; Holtzman et al. 2020, 1904.09751)."""
    if logp_BV.shape[-1] > 4 * NUCLEUS:
        values_BK, ids_BK = logp_BV.topk(NUCLEUS)
        before_BK = values_BK.exp().cumsum(-1) - values_BK.exp()
        if bool((before_BK[:, -1] >= p).all()):  # every row's nucleus is among them
            kept_BK = values_BK.masked_fill(before_BK >= p, -math.inf)
            return torch.full_like(logp_BV, -math.inf).scatter_(-1, ids_BK, kept_BK.log_softmax(-1))
    return _keep_first(logp_BV, -logp_BV, p)


def min_p(logp_BV: Tensor, p: float) -> Tensor:
    """Tokens at least p times as probable as the most probable (Nguyen et al. 2024, arXiv:2407.01082)."""
    return _renormalise(logp_BV.masked_fill(logp_BV < logp_BV.amax(-1, keepdim=True) + math.log(p), -math.inf))


def typical(logp_BV: Tensor, p: float) -> Tensor:
    """Locally typical: tokens whose surprise is nearest to the entropy, until mass p (Meister et al. 2023,
    arXiv:2202.00666)."""
    probable = logp_BV.exp()
    entropy = -(probable * logp_BV.clamp_min(-1e30)).sum(-1, keepdim=True)
    return _keep_first(logp_BV, (-logp_BV - entropy).abs(), p)


def draw(logp_BV: Tensor, noise_B: npt.NDArray[np.float64] | Tensor) -> Tensor:
    """Tokens [B] by inverse cumulative distribution: the first whose cumulated mass exceeds noise * total."""
    return _inverse_cdf(logp_BV.exp(), noise_B)


def _at(values_BV: Tensor, tokens_B: Tensor) -> Tensor:
    return values_BV.gather(1, tokens_B[:, None].to(values_BV.device))[:, 0]


def _inverse_cdf(p_BV: Tensor, noise_B: npt.NDArray[np.float64] | Tensor) -> Tensor:
    """On the CPU, where noise is the same on every machine and float64 is everywhere: blocks' masses, and one block."""
    u_B1 = torch.as_tensor(noise_B, dtype=torch.float64, device="cpu")[:, None]
    B, V = p_BV.shape
    if V <= 16 * BLOCK:
        return _first_above(p_BV.cpu().cumsum(-1), u_B1)
    blocks_BNC = pad(p_BV, (0, -V % BLOCK)).view(B, -1, BLOCK)
    mass_BN = blocks_BNC.sum(-1).cpu().double()
    total_BN = mass_BN.cumsum(-1)
    block_B = _first_above(total_BN, u_B1)
    rows = torch.arange(B)
    before_B = total_BN[rows, block_B] - mass_BN[rows, block_B]
    inside_B = (u_B1[:, 0] * total_BN[:, -1] - before_B) / mass_BN[rows, block_B]
    chosen_BC = blocks_BNC[rows.to(p_BV.device), block_B.to(p_BV.device)]
    cumulative = chosen_BC.cpu().double().cumsum(-1)
    return block_B * BLOCK + _first_above(cumulative, inside_B.clamp(0, 1)[:, None])


def noise(
    seed: int | npt.ArrayLike, sample: int | npt.ArrayLike, position: int | npt.ArrayLike, stream: int = 0
) -> npt.NDArray[np.float64]:
    """Uniform in the open interval (0, 1), a function of its arguments only; they broadcast.

    Each argument is mixed in by a round of splitmix64's finaliser (Steele, Lea & Flood 2014, "Fast splittable
    pseudorandom number generators"); ``stream`` separates uses at one position.
    """
    with np.errstate(over="ignore"):
        state = _mix(_word(seed) + np.uint64(0x9E3779B97F4A7C15))
        state = _mix(state ^ (_word(sample) * np.uint64(0xD1342543DE82EF95) + np.uint64(0x632BE59BD9B4E019)))
        state = _mix(state ^ (_word(position) * np.uint64(0xAF251AF3B0F025B5) + np.uint64(stream)))
        state = _mix(state + np.uint64(0x9E3779B97F4A7C15))
    uniform: npt.NDArray[np.float64] = ((state >> np.uint64(12)).astype(np.float64) + 0.5) * 2.0**-52
    return uniform


def _word(value: int | npt.ArrayLike) -> Words:
    """Any integer, of any size and sign, as 64 bits."""
    if isinstance(value, int):
        return np.asarray(value & 0xFFFFFFFFFFFFFFFF, np.uint64)
    return np.asarray(value).astype(np.uint64)


def _mix(z: Words) -> Words:
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def _first_above(cumulative_BV: Tensor, u_B1: Tensor) -> Tensor:
    """Index of the first entry above u * total, so that an entry without mass is never chosen.

    Rounding up to the whole total would choose nothing: then the first entry that reaches it is taken.
    """
    total_B1 = cumulative_BV[:, -1:]
    target_B1 = torch.minimum((u_B1 * total_B1).to(cumulative_BV.dtype), total_B1.nextafter(torch.zeros_like(total_B1)))
    return torch.searchsorted(cumulative_BV, target_B1, right=True)[:, 0].clamp_(max=cumulative_BV.shape[-1] - 1)


def _keep_first(logp_BV: Tensor, order_BV: Tensor, p: float) -> Tensor:
    """Keep tokens in rising order of ``order_BV`` until their mass reaches p (at least one)."""
    order = order_BV.sort(stable=True, dim=-1)[1]
    sorted_p = logp_BV.gather(-1, order).exp()
    drop = sorted_p.cumsum(-1) - sorted_p >= p
    drop[:, 0] = False
    return _renormalise(logp_BV.masked_fill(torch.zeros_like(drop).scatter(-1, order, drop), -math.inf))


def _renormalise(logp_BV: Tensor) -> Tensor:
    return logp_BV.log_softmax(-1)


def _check(fine: bool, name: str, value: float, must: str) -> None:
    if not fine:
        raise UsageError(f"{name} is {value}: it must be {must}.")
