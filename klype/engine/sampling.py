"""From logits to a distribution to a token, as pure functions. Shapes: B rows, V vocabulary.

``shape`` makes the distribution that is sampled from, ``draw`` samples from it with noise that depends on (seed,
sample, position) only. Greedy decoding is temperature 0: a one-hot distribution, not another code path.
"""

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn.functional import pad

from klype.errors import UsageError
from klype.samplers import SAMPLERS, Sampling, TokenCounts, active, needs_counts
from klype.values import Distribution

Words = npt.NDArray[np.uint64]
Tokens = Sequence[int] | npt.NDArray[np.int64]
# wide vocabularies are searched in two levels: first the block of this many tokens, then the token in it
BLOCK = 64


def check_sampling(sampling: Sampling, vocab_size: int) -> None:
    """Raise UsageError for a setting that makes no distribution."""
    for name, row in SAMPLERS.items():
        value = getattr(sampling, name)
        _check(row.supports(value), name, value, row.range)
    for pair in sampling.logit_bias:
        if not isinstance(pair, tuple | list) or len(pair) != 2:
            raise UsageError("logit_bias holds pairs: a token's id, and what is added to its logit.")
        token, bias = pair
        _check(0 <= token < vocab_size, "logit_bias token", token, f"an id below {vocab_size}")
        _check(not math.isnan(bias) and bias < math.inf, "logit_bias", bias, "a number or minus infinity")


def count_tokens(prompts: Sequence[Tokens], answers: Sequence[Tokens], vocabulary: int) -> TokenCounts:
    """Token counts for penalties, [B, V], of answers so far, each with a prompt of its own or all with the same."""
    uses, counts = (
        torch.from_numpy(np.stack([np.bincount(np.asarray(t, np.int64), minlength=vocabulary) for t in texts])).float()
        for texts in (prompts, answers)
    )
    return TokenCounts(uses + counts, counts)


def shape(logits_BV: Tensor, sampling: Sampling, seen: TokenCounts | None = None) -> Tensor:
    """Log-probabilities [B, V] of the distribution that is sampled from; -inf for tokens that are cut off.

    Order: bias and penalties on logits; temperature; then truncation (top-k, top-p …), each on what the one before left
    (renormalised), as in Hugging Face's chain of warpers.
    """
    logits, values = logits_BV.float(), active(sampling)
    if sampling.logit_bias:  # OpenAI's
        ids, added = (torch.tensor(column, device=logits.device) for column in zip(*sampling.logit_bias, strict=True))
        logits = logits.index_add(-1, ids, added.to(logits.dtype).expand(len(logits), -1))
    for name, value in values.items():
        if (adjust := SAMPLERS[name].adjust) is not None:
            assert seen is not None, "penalties need to know what was said"
            logits = adjust(logits, value, TokenCounts(seen.text.to(logits.device), seen.counts.to(logits.device)))
    if sampling.temperature == 0:  # one-hot, on the lowest id of equals; a row of NaN stays NaN
        best_B1 = logits.argmax(-1, keepdim=True)
        return torch.full_like(logits, -math.inf).scatter_(-1, best_B1, logits.gather(-1, best_B1) * 0)
    if sampling.temperature < 1e-3:  # lest logits / temperature overflow
        logits = logits - logits.amax(-1, keepdim=True)
    logp = (logits if sampling.temperature == 1 else logits / max(sampling.temperature, 1e-30)).log_softmax(-1)
    for name, value in values.items():
        if (shaped := SAMPLERS[name].shape) is not None:
            logp = shaped(logp, value)
    return logp


def shape_whole(q: Distribution, sampling: Sampling, before: tuple[Tokens, Tokens], vocabulary: int) -> Tensor:
    """As ``shape``, [V], for a whole distribution after a prompt and its answer so far (``before``)."""
    vocabulary = max(vocabulary, int(q.ids.max()) + 1)  # 0 where it is unknown
    logits_1V = torch.full((1, vocabulary), -math.inf)
    logits_1V[0, torch.tensor(q.ids)] = torch.tensor(q.logp, dtype=torch.float32)
    seen = count_tokens(before[:1], before[1:], vocabulary) if needs_counts(sampling) else None
    return shape(logits_1V, sampling, seen)[0]


def sample(
    logits_BV: Tensor, sampling: Sampling, noise_B: npt.NDArray[np.float64], seen: TokenCounts | None = None
) -> tuple[Tensor, Tensor]:
    """Tokens [B] and their log-probabilities [2, B], on the CPU: under the model and under the sampling distribution.

    The same as ``shape`` and ``draw`` except for rounding, with fewer passes over [B, V].
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


def draw(logp_BV: Tensor, noise_B: npt.NDArray[np.float64] | Tensor) -> Tensor:
    """Tokens [B] by inverse cumulative distribution: the first whose cumulated mass exceeds noise * total."""
    return _inverse_cdf(logp_BV.exp(), noise_B)


def distributions(logp_BV: Tensor, top: int) -> list[Distribution]:
    """The most probable ``top`` tokens (-1: all) of every row, most probable first."""
    V = logp_BV.shape[-1]
    if 0 <= top < V:
        values_BK, ids_BK = (found.cpu() for found in logp_BV.topk(top))
        rest = (1.0 - values_BK.double().exp().sum(-1)).clamp(min=0.0).tolist()
        return [Distribution(*row) for row in zip(ids_BK.numpy(), values_BK.numpy(), rest, strict=True)]
    # value and id are sorted as one integer (ties by id): several times as fast as topk, and equal on all processors
    values_BV = np.ascontiguousarray(logp_BV.cpu().numpy())
    bits_BV = values_BV.view(np.uint32)
    rising_BV = np.where(bits_BV >> 31, ~bits_BV, bits_BV | np.uint32(1 << 31))
    keys_BV = (~rising_BV).astype(np.uint64) << np.uint64(32)
    keys_BV |= np.arange(V, dtype=np.uint64)
    keys_BV.sort(axis=1)
    ids_BV = (keys_BV & np.uint64(0xFFFFFFFF)).astype(np.int64)
    return list(map(Distribution, ids_BV, np.take_along_axis(values_BV, ids_BV, axis=1)))


def _at(values_BV: Tensor, tokens_B: Tensor) -> Tensor:
    return values_BV.gather(1, tokens_B[:, None].to(values_BV.device))[:, 0]


def _inverse_cdf(p_BV: Tensor, noise_B: npt.NDArray[np.float64] | Tensor) -> Tensor:
    """Tokens [B] by inverse transform sampling: of blocks first, then inside one. Computed on the CPU, which always has
    float64, so that equal noise gives equal tokens on every machine."""
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
    """Uniform noise in the open interval (0, 1) that depends on the arguments only; they broadcast.

    Each argument is mixed in by a round of splitmix64's finaliser (Steele, Lea & Flood 2014, "Fast splittable
    pseudorandom number generators"); ``stream`` separates uses at one position.
    """
    with np.errstate(over="ignore"):
        state = _mix(_word(seed) + np.uint64(0x9E3779B97F4A7C15))
        state = _mix(state ^ (_word(sample) * np.uint64(0xD1342543DE82EF95) + np.uint64(0x632BE59BD9B4E019)))
        state = _mix(state ^ (_word(position) * np.uint64(0xAF251AF3B0F025B5) + np.uint64(stream)))
        state = _mix(state + np.uint64(0x9E3779B97F4A7C15))
    # 52 bits and a half: never 0, and never rounded up to 1
    uniform: npt.NDArray[np.float64] = ((state >> np.uint64(12)).astype(np.float64) + 0.5) * 2.0**-52
    return uniform


def _word(value: int | npt.ArrayLike) -> Words:
    """The low 64 bits of integers of any size and sign."""
    if isinstance(value, int):
        return np.asarray(value & 0xFFFFFFFFFFFFFFFF, np.uint64)
    return np.asarray(value).astype(np.uint64)


def _mix(z: Words) -> Words:
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def _first_above(cumulative_BV: Tensor, u_B1: Tensor) -> Tensor:
    """Index of the first entry above u * total, so that an entry without mass is never chosen.

    Where u * total rounds to the total, the first entry that reaches it is taken.
    """
    total_B1 = cumulative_BV[:, -1:]
    target_B1 = torch.minimum((u_B1 * total_B1).to(cumulative_BV.dtype), total_B1.nextafter(torch.zeros_like(total_B1)))
    return torch.searchsorted(cumulative_BV, target_B1, right=True)[:, 0].clamp_(max=cumulative_BV.shape[-1] - 1)


def _check(fine: bool, name: str, value: float, must: str) -> None:
    if not fine:
        raise UsageError(f"{name} is {value!r}: it must be {must}.")
