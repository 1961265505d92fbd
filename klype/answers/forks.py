"""Forks: the token at which an answer's meaning was decided (after Bigelow et al. 2024, arXiv:2412.07961).

o_t is the distribution over meanings of the answers that begin with this answer's first t tokens. The strength of token
t is how far it moves o. It is not the total variation between two samples, which is never zero, least of all where
nearly every answer has a meaning of its own. Instead, the meanings B that gain at t are chosen on one half of the
samples, and o_t(B) − o_{t−1}(B) is measured on the other half, without bias.

The candidate for the fork is the token that moves o farthest in the squared distance ‖o_t − o_{t−1}‖², of which there
is an unbiased estimate, on the half that chooses. Whether there is a fork at all is decided by a permutation test of
the largest such distance over all tokens. Neighbouring rows share samples (see ``_continue``), so that chance shows
less than the test allows for: the test is conservative.
"""

import math
from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, replace
from itertools import chain

import numpy as np
import numpy.typing as npt

from klype.answers.tree import TreeSettings, continuations
from klype.errors import UsageError
from klype.samplers import PLAIN
from klype.sources.source import Source, answers
from klype.values import Figure, Floats, Request, Sampling, Trace, mean_of_known

Labels = npt.NDArray[np.int64]
TOGETHER = 32  # permutations that are counted at once


@dataclass(frozen=True, slots=True)
class ForkSettings:
    """``limit``: maximum number of tokens of an answer. ``n``: samples per position. ``others``: alternatives at the
    fork that are at least this probable are explored (at most eight). ``permutations`` and ``level`` of the
    significance test for a fork."""

    sampling: Sampling = PLAIN
    limit: int = 32
    n: int = 32
    seed: int = 0
    others: float = 0.05
    permutations: int = 999
    level: float = 0.05


@dataclass(frozen=True, slots=True)
class Position:
    """A token of the answer: how far it moved the meaning, and the shares of samples after it that have the answer's
    ``own`` meaning and that are correct (None: not known)."""

    token: int
    strength: Figure
    variation: float
    own: float
    right: float | None


@dataclass(frozen=True, slots=True)
class ForkToken:
    """An alternative token at the fork, and the meanings of the answers that continue it, with their shares, most
    frequent first."""

    token: int
    p: float
    meanings: tuple[tuple[Hashable, float], ...]


@dataclass(frozen=True, slots=True)
class Forks:
    """Where the meaning of one answer was decided.

    ``fork``: index of the deciding token, None if it is not significant; ``p``: p-value of the test. ``before``: shares
    of own and correct meanings before the first token. ``lost``: the first index after which less than half of the
    samples are correct (−1: before the first token), None if there is none or it is not known. ``samples``: per
    position.
    """

    text: str
    positions: tuple[Position, ...]
    before: tuple[float, float | None]
    fork: int | None
    p: float
    others: tuple[ForkToken, ...]
    lost: int | None
    samples: int


def forks(
    source: Source,
    trace: Trace,
    settings: ForkSettings,
    meaning: Callable[[str], Hashable],
    right: Callable[[str], bool | None] | None = None,
) -> Forks:
    """The forks of one answer. ``meaning`` and ``right`` judge a text. Raises UsageError for an empty answer and for
    fewer than four samples."""
    if settings.n < 4:
        raise UsageError(f"Forks need at least 4 samples a position (asked for {settings.n}).")
    if not trace.steps:
        raise UsageError("The answer is empty: there is no word at which it could have been decided.")
    answer = trace.tokens
    texts = _continue(source, trace.prompt, answer, settings)
    own, place = texts[-1][0], dict[Hashable, int]()
    of_text = {
        text: place.setdefault(meaning(text), len(place)) for text in dict.fromkeys([own, *chain.from_iterable(texts)])
    }
    labels_TN = np.array([[of_text[text] for text in row] for row in texts])
    variation_T, p = permutation_test(labels_TN, settings.permutations, settings.seed)
    at = int(np.argmax(_distances(labels_TN[None, :, 0::2])))
    # a token whose gain may be zero decided nothing, however different the samples before and after it are
    fork = at if p < settings.level and (strength(labels_TN, at).low or 0.0) > 0 else None
    rights = [None if right is None else mean_of_known([right(text) for text in row]) for row in texts]
    owns = (labels_TN == of_text[own]).mean(axis=1).tolist()
    positions = tuple(
        Position(token, strength(labels_TN, t), float(variation_T[t]), owns[t + 1], rights[t + 1])
        for t, token in enumerate(answer)
    )
    others = () if fork is None else _others(source, trace.prompt, answer[:fork], settings, meaning)
    lost = next((t - 1 for t, r in enumerate(rights) if r is not None and r < 0.5), None)
    return Forks(own, positions, (owns[0], rights[0]), fork, p, others, lost, settings.n)


def strength(labels_TN: Labels, at: int) -> Figure:
    """How much the meanings that token ``at`` favours gained by it: chosen on even samples, measured on odd ones.

    Sample i before the token and sample i after it are a pair, often the same text. Interval: Agresti & Min 2005, for
    a difference of matched proportions.
    """
    before, after = labels_TN[at, 0::2], labels_TN[at + 1, 0::2]
    classes = int(labels_TN.max()) + 1
    gained = np.bincount(after, minlength=classes) > np.bincount(before, minlength=classes)
    x0, x1 = gained[labels_TN[at, 1::2]], gained[labels_TN[at + 1, 1::2]]
    value = float(x1.mean() - x0.mean())
    # Agresti & Min add half a pair to each of the four cells
    won, lost, n = int((x1 & ~x0).sum()), int((x0 & ~x1).sum()), x0.size + 2
    middle = (won - lost) / n
    spread = 1.959964 * math.sqrt((won + lost + 1) / n - middle**2) / math.sqrt(n)
    low, high = max(-1.0, middle - spread), min(1.0, middle + spread)
    return Figure(value, min(low, value), max(high, value), int(x0.size), "share of answers")


def permutation_test(labels_TN: Labels, permutations: int, seed: int) -> tuple[Floats, float]:
    """Total variation between neighbouring rows, and the p-value of the largest distance between two of them."""
    rng = np.random.default_rng(seed)
    flat, greatest, as_great = labels_TN.ravel(), float(_distances(labels_TN[None]).max()), 0
    for first in range(0, permutations, TOGETHER):
        drawn = rng.permuted(np.tile(flat, (min(TOGETHER, permutations - first), 1)), axis=1)
        moved_BT = _distances(drawn.reshape(-1, *labels_TN.shape))
        # the largest over all positions: one test, however long the answer; equal values differ by rounding
        as_great += int((moved_BT.max(axis=1) >= greatest - 1e-12).sum())
    count_TC = _counts(labels_TN[None])[0]
    variation_T = np.abs(np.diff(count_TC, axis=0)).sum(axis=1) / (2 * labels_TN.shape[1])
    # + 1: the observed order is one of the permutations
    return variation_T, (1 + as_great) / (1 + permutations)


def _distances(labels_BTN: Labels) -> Floats:
    """Unbiased squared distance between neighbouring rows' distributions over meanings, [B, T − 1]: how much more often
    two different samples agree within a row than across. Sample i of both rows is a pair and does not count."""
    n, count_BTC = labels_BTN.shape[2], _counts(labels_BTN)
    within_BT = (count_BTC * (count_BTC - 1)).sum(axis=2)
    pairs_BT = (labels_BTN[:, 1:] == labels_BTN[:, :-1]).sum(axis=2)
    across_BT = (count_BTC[:, 1:] * count_BTC[:, :-1]).sum(axis=2) - pairs_BT
    found: Floats = (within_BT[:, 1:] + within_BT[:, :-1] - 2 * across_BT) / (n * (n - 1))
    return found


def _counts(labels_BTN: Labels) -> Floats:
    """How often each row of each table has each meaning, [B, T, C]."""
    tables, rows, n = labels_BTN.shape
    classes = int(labels_BTN.max()) + 1
    index = (np.arange(tables * rows)[:, None] * classes + labels_BTN.reshape(-1, n)).ravel()
    found: Floats = np.bincount(index, minlength=tables * rows * classes).reshape(tables, rows, classes).astype(float)
    return found


def _continue(source: Source, prompt: Sequence[int], answer: Sequence[int], settings: ForkSettings) -> list[list[str]]:
    """Texts [T + 1][n] that begin with the answer's first t tokens, t = 0 … T; the last row is the answer itself.

    The next token is drawn n times at every t, with noise of its own. A sample i that draws the answer's own token is
    continued as sample i of the next row: only samples that leave the answer are drawn to their end.
    """
    stop, decode, T = source.codec.stop, source.codec.decode, len(answer)
    firsts = answers(
        source, [_request((*prompt, *answer[:t]), settings, settings.n, 1, t + 1, source) for t in range(T)]
    )
    ended = answer[-1] in stop or settings.limit <= T  # an answer that was cut short would go on
    leaving: dict[tuple[int, int], list[int]] = {}  # index and token: samples
    for t, group in enumerate(firsts):
        for i, trace in enumerate(group):
            if trace.tokens[0] != answer[t] or (t == T - 1 and not ended):
                leaving.setdefault((t, trace.tokens[0]), []).append(i)
    drawn = {(t, v): samples for (t, v), samples in leaving.items() if v not in stop and settings.limit - t > 1}
    taken, requests = [0] * T, []
    for (t, token), samples in drawn.items():
        prefix, limit = (*prompt, *answer[:t], token), settings.limit - t - 1
        request = _request(prefix, settings, len(samples), limit, t + 1, source)
        requests.append(replace(request, first_sample=taken[t]))
        taken[t] += len(samples)
    after = dict(zip(drawn, answers(source, requests), strict=True))
    texts = [[decode(answer)] * settings.n]
    for t in reversed(range(T)):
        row = list(texts[0])
        for (_, token), samples in (item for item in leaving.items() if item[0][0] == t):
            ends = [trace.tokens for trace in after.get((t, token), ())] or [()] * len(samples)
            for i, end in zip(samples, ends, strict=True):
                row[i] = decode((*answer[:t], token, *end))
        texts.insert(0, row)
    return texts


def _request(prefix: Sequence[int], settings: ForkSettings, n: int, limit: int, number: int, source: Source) -> Request:
    """A request to continue a prefix; ``number`` gives its noise a seed of its own."""
    seed, stop = settings.seed * 1_000_003 + number, tuple(sorted(set(source.codec.stop)))
    return Request(tuple(prefix), n, limit, settings.sampling, seed, stop)


def _others(
    source: Source,
    prompt: Sequence[int],
    kept: Sequence[int],
    settings: ForkSettings,
    meaning: Callable[[str], Hashable],
) -> tuple[ForkToken, ...]:
    """The most probable tokens after ``kept``, the answer's tokens before the fork, and what follows them."""
    prefix, decode, limit = (*prompt, *kept), source.codec.decode, settings.limit - len(kept) - 1
    ((ids, p_K, _),) = continuations(source.next([prefix], -1), TreeSettings(settings.sampling))
    likely = [(int(token), float(p)) for token, p in zip(ids, p_K, strict=True) if p >= settings.others][:8]
    going_on = [token for token, _ in likely if token not in source.codec.stop and limit > 0]
    # negative numbers: seeds apart from those of _continued
    requests = [_request((*prefix, token), settings, settings.n, limit, -token - 1, source) for token in going_on]
    groups = dict(zip(going_on, answers(source, requests), strict=True))
    out = []
    for token, p in likely:
        ends = [trace.tokens for trace in groups[token]] if token in groups else [()]
        counts = Counter(meaning(decode((*kept, token, *tokens))) for tokens in ends)
        out.append(ForkToken(token, p, tuple((said, count / len(ends)) for said, count in counts.most_common())))
    return tuple(out)
