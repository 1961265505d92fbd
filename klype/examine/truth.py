"""Reading with the truth: which tokens can follow, also after mistakes, remembered for every beginning."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt

from klype.answers import bounds
from klype.values import Distribution, Floats, Ints

Tokens = tuple[int, ...]


class Truth(Protocol):
    """The exact next-token distribution after what was pushed. A shallow copy is a snapshot."""

    def next(self) -> Mapping[int, float]: ...

    def push(self, token: int) -> float:
        """The token's probability before it was read: 0 for a mistake."""
        ...


class Reader:
    """One question's truth at any beginning of an answer."""

    def __init__(self, start: Callable[[], Truth]) -> None:
        self._truths: dict[Tokens, Truth] = {(): start()}
        self._right: dict[Tokens, bool] = {(): True}
        self._next: dict[Tokens, Mapping[int, float]] = {}
        self._errors: dict[Tokens, int | None] = {(): None}

    def next(self, tokens: Tokens) -> Mapping[int, float]:
        """{token: p} after these tokens; its keys are A(x)."""
        if tokens not in self._next:
            self._next[tokens] = self._at(tokens).next()
        return self._next[tokens]

    def is_right(self, tokens: Tokens) -> bool:
        """Whether the last of these tokens could follow the others."""
        self._at(tokens)
        return self._right[tokens]

    def first_error(self, tokens: Tokens) -> int | None:
        """The position (1, 2, …) of the first token that could not follow."""
        known = len(tokens)
        while tokens[:known] not in self._errors:
            known -= 1
        error = self._errors[tokens[:known]]
        for t in range(known + 1, len(tokens) + 1):
            error = error or (None if self.is_right(tokens[:t]) else t)
            self._errors[tokens[:t]] = error
        return error

    def _at(self, tokens: Tokens) -> Truth:
        known = len(tokens)
        while tokens[:known] not in self._truths:
            known -= 1
        for t in range(known, len(tokens)):
            truth = copy.copy(self._truths[tokens[:t]])
            self._right[tokens[: t + 1]] = truth.push(tokens[t]) > 0.0
            self._truths[tokens[: t + 1]] = truth
        return self._truths[tokens]


def at_temperature(q: Distribution, temperature: float) -> Floats:
    """Probabilities of the listed tokens at a temperature (0: all on the most probable), as shares of what is listed
    when nothing is unlisted; a partial distribution at temperature 1 keeps its unlisted mass."""
    if temperature == 0.0:
        q_K = np.zeros(len(q.logp))
        q_K[int(np.argmax(q.logp))] = 1.0
        return q_K
    q_K = np.exp(bounds.relative(q, temperature))
    return np.asarray(q_K / q_K.sum() * (1.0 - q.rest))


def among(ids_K: Ints, tokens: Sequence[int] | Mapping[int, float]) -> npt.NDArray[np.bool_]:
    """Which of these ids are in a set. Whole distributions list all ids below their length: a table tells at once."""
    wanted = np.fromiter(tokens, np.int64, len(tokens))
    if len(ids_K) == 0 or int(ids_K.max()) >= len(ids_K) or int(ids_K.min()) < 0:
        return np.isin(ids_K, wanted)
    is_in = np.zeros(len(ids_K), bool)
    is_in[wanted[(wanted >= 0) & (wanted < len(ids_K))]] = True
    found: npt.NDArray[np.bool_] = is_in[ids_K]
    return found


def mass(q: Distribution, temperature: float, tokens: Sequence[int] | Mapping[int, float]) -> float:
    """The probability of a set of tokens at a temperature."""
    return min(1.0, float(at_temperature(q, temperature)[among(q.ids, tokens)].sum()))


def entropy(q: Distribution, temperature: float) -> float:
    """Nats, at a temperature, of a whole distribution."""
    p_K = at_temperature(q, temperature)
    p_K = p_K[p_K > 0]
    return float(-(p_K * np.log(p_K)).sum())
