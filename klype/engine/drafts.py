"""Who guesses ahead for speculative decoding: a smaller model, the text itself, or counts of the training text."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from klype.engine.sampling import draw, noise, shape
from klype.errors import KlypeError
from klype.model.cache import Cache
from klype.model.transformer import Transformer
from klype.samplers import unpenalised
from klype.values import Sampling

DRAFT_STREAM = 1


@dataclass(frozen=True, eq=False)
class Proposal:
    """Guessed tokens; ``logq`` [tokens, V] is what each was drawn from, None when it was not drawn but chosen."""

    tokens: tuple[int, ...]
    logq: Tensor | None = None


@dataclass(frozen=True)
class Setting:
    """For whom is guessed: how tokens are drawn, and the noise's seed and sample."""

    sampling: Sampling
    seed: int = 0
    sample: int = 0


class Draft(Protocol):
    """Guesses how a text goes on, at most ``count`` tokens (none is fine)."""

    @property
    def vocab_size(self) -> int | None:
        """None: knows no vocabulary of its own."""
        ...

    def propose(self, text: Sequence[int], count: int, setting: Setting) -> Proposal: ...


class LookupDraft:
    """What followed the last time the same few tokens were seen in this text (prompt look-up; Saxena 2023)."""

    vocab_size = None

    def __init__(self, longest: int = 3) -> None:
        assert longest > 0
        self.longest = longest

    def propose(self, text: Sequence[int], count: int, setting: Setting) -> Proposal:
        tokens = np.asarray(text, np.int64)
        for n in range(min(self.longest, len(tokens) - 1), 0, -1):
            windows = np.lib.stride_tricks.sliding_window_view(tokens[:-1], n)
            found = np.flatnonzero((windows == tokens[-n:]).all(1))
            if len(found):
                after = int(found[-1]) + n
                return Proposal(tuple(tokens[after : after + count].tolist()))
        return Proposal(())


class NgramDraft:
    """The commonest continuation of the last tokens in a training text, longest context first."""

    def __init__(self, texts: Iterable[Sequence[int]], vocab_size: int, order: int = 4) -> None:
        """``order`` tokens, the guessed one included, are looked at."""
        if order < 2 or vocab_size ** (order - 1) >= 2**63:
            raise KlypeError(f"An n-gram draft of order {order} over {vocab_size} tokens cannot be counted.")
        self.vocab_size: int | None = vocab_size
        self.order = order
        rows = list(texts)
        self._tables = [_commonest(rows, vocab_size, length) for length in range(order, 1, -1)]

    def propose(self, text: Sequence[int], count: int, setting: Setting) -> Proposal:
        recent = list(text[-self.order + 1 :])
        guessed: list[int] = []
        while len(guessed) < count:
            token = self._next(recent)
            if token is None:
                break
            guessed.append(token)
            recent = [*recent, token][-self.order + 1 :]
        return Proposal(tuple(guessed))

    def _next(self, recent: list[int]) -> int | None:
        assert self.vocab_size is not None
        for back, (keys, following) in zip(range(self.order - 1, 0, -1), self._tables, strict=True):
            if len(recent) < back:
                continue
            key = 0
            for token in recent[-back:]:
                key = key * self.vocab_size + token
            at = int(np.searchsorted(keys, key))
            if at < len(keys) and keys[at] == key:
                return int(following[at])
        return None


class ModelDraft:
    """A smaller model with the same tokens. It keeps a cache of the text it guessed on last."""

    def __init__(self, model: Transformer) -> None:
        self.model = model
        self.vocab_size: int | None = model.config.vocab_size
        self._cache = Cache.of(model, 1)
        self._fed: list[int] = []

    @torch.inference_mode()
    def propose(self, text: Sequence[int], count: int, setting: Setting) -> Proposal:
        if len(text) + count > self.model.config.window:
            return Proposal(())
        same = next((i for i, (a, b) in enumerate(zip(self._fed, text, strict=False)) if a != b), len(self._fed))
        same = min(same, len(text) - 1)
        self._cache.truncate([same])
        sampling = unpenalised(setting.sampling)
        text, new, logq = list(text), list(text[same:]), []
        start = len(text)
        while len(text) < start + count:
            hidden_BTD = self.model.hidden(torch.tensor([new], device=self._cache.device), self._cache)
            shaped_BV = shape(self.model.unembed(hidden_BTD[:, -1]).cpu(), sampling)
            u = noise(setting.seed, setting.sample, np.array([len(text)]), DRAFT_STREAM)
            new = [int(draw(shaped_BV, u))]
            text += new
            logq.append(shaped_BV)
        self._fed = text[: int(self._cache.lengths[0])]
        return Proposal(tuple(text[start:]), torch.cat(logq) if logq else None)


def _commonest(
    texts: Iterable[Sequence[int]], vocab_size: int, order: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Contexts of ``order`` - 1 tokens as sorted numbers, and what follows each most often (of equals the least id)."""
    contexts, nexts = [], []
    for text in texts:
        tokens = np.asarray(text, np.int64)
        if len(tokens) >= order:
            windows = np.lib.stride_tricks.sliding_window_view(tokens, order)
            contexts.append(windows[:, :-1] @ (vocab_size ** np.arange(order - 2, -1, -1)))
            nexts.append(windows[:, -1])
    if not contexts:
        return np.zeros(0, np.int64), np.zeros(0, np.int64)
    pairs, counts = np.unique(np.stack((np.concatenate(contexts), np.concatenate(nexts))), axis=1, return_counts=True)
    best_first = np.lexsort((pairs[1], -counts, pairs[0]))
    keys, first = np.unique(pairs[0][best_first], return_index=True)
    return keys, pairs[1][best_first][first]
