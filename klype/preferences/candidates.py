"""Candidate answers: which are one and the same, which to show, and which question teaches the most."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Hashable, Sequence

import numpy as np
from scipy import special

from klype.values import Floats

SIMILAR = 0.9


def merge_near_duplicates(
    candidates: Sequence[str], meaning: Callable[[str], Hashable] = lambda text: None
) -> list[tuple[int, ...]]:
    """Indices of candidates in their order, each merged into the first earlier one that it nearly equals and that means
    the same: one tuple for each that stays, its own index first.

    Nearly: the same words once case, punctuation and spaces are ignored, or a share of common character trigrams
    (Jaccard) of at least SIMILAR. One other name in a long answer is a small difference to trigrams and a large one
    to the truth: give ``meaning`` where it is known.
    """
    kept: list[tuple[str, frozenset[str], Hashable, list[int]]] = []
    for index, text in enumerate(candidates):
        plain, means = " ".join(re.findall(r"\w+", text.casefold())), meaning(text)
        padded = f"  {plain} "
        trigrams = frozenset(padded[i : i + 3] for i in range(len(padded) - 2))
        for other, known, meant, members in kept:
            if means != meant:
                continue
            both = len(trigrams & known) / len(trigrams | known) if plain and other else 0.0  # Jaccard
            if plain == other or (plain and other and both >= SIMILAR):
                members.append(index)
                break
        else:
            kept.append((plain, trigrams, means, [index]))
    return [tuple(members) for *_, members in kept]


def spread(meanings: Sequence[Hashable], most: int) -> list[int]:
    """Which ``most`` candidates to show: each meaning once before any twice, earlier ones first. Indices in
    ascending order."""
    turn = Counter[Hashable]()
    rounds = []
    for index, meaning in enumerate(meanings):
        turn[meaning] += 1
        rounds.append((turn[meaning], index))
    return sorted(index for _, index in sorted(rounds)[:most])


def information(scores_KH: Floats) -> Floats:
    """[K, K]: how much (in nats) learning which of two candidates is better would tell about the heads of an ensemble.

    BALD (Houlsby et al. 2011) on Bradley–Terry: the entropy of the mean prediction less the mean entropy of the heads'.
    Zero where the heads agree, however unsure all of them are: that is the annotator's noise, not ignorance.
    """
    p_KKH = special.expit(scores_KH[:, None, :] - scores_KH[None, :, :])
    entropy: Callable[[Floats], Floats] = lambda p: special.entr(p) + special.entr(1 - p)
    gain_KK: Floats = np.maximum(0.0, entropy(p_KKH.mean(-1)) - entropy(p_KKH).mean(-1))
    return gain_KK


def most_informative(groups: Sequence[Floats]) -> list[int]:
    """Questions in the order in which to rank them: whose candidates' comparisons would tell the most, first.

    ``groups``: the ensemble's scores [candidates, heads] of each question. Per question it is the sum over its pairs:
    a ranking orders all of them at the price of one question.
    """
    value = [float(np.triu(information(scores), 1).sum()) for scores in groups]
    return sorted(range(len(groups)), key=lambda i: -value[i])
