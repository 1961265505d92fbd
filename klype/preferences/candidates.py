"""Candidate answers: those that say the same in nearly the same words are one."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Merged:
    """One candidate and the indices of all that were merged into it, its own first."""

    text: str
    members: tuple[int, ...]


def merge_near_duplicates(candidates: Sequence[str], similar: float = 0.9) -> list[Merged]:
    """Candidates in their order, each merged into the first earlier one that it nearly equals.

    Nearly: the same words once case, punctuation and spaces are ignored, or a share of common character trigrams
    (Jaccard) of at least ``similar``; in short answers a single other word is a difference.
    """
    kept: list[tuple[str, frozenset[str], list[int]]] = []
    for index, text in enumerate(candidates):
        plain = _plain(text)
        trigrams = _trigrams(plain)
        for other, known, members in kept:
            if plain == other or (bool(plain) and bool(other) and _jaccard(trigrams, known) >= similar):
                members.append(index)
                break
        else:
            kept.append((plain, trigrams, [index]))
    return [Merged(candidates[members[0]], tuple(members)) for _, _, members in kept]


def _plain(text: str) -> str:
    return " ".join(re.findall(r"\w+", text.casefold()))


def _trigrams(plain: str) -> frozenset[str]:
    padded = f"  {plain} "
    return frozenset(padded[i : i + 3] for i in range(len(padded) - 2))


def _jaccard(a: frozenset[str], b: frozenset[str]) -> float:
    return len(a & b) / len(a | b)
