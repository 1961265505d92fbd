"""One question put in other ways that mean the same, and without what its answer should depend on."""

from __future__ import annotations

import random
import re

SENTENCES = re.compile(r"(?<=[.!?])\s+")
MOST = 6


def reordered(context: str, most: int = MOST) -> list[str]:
    """The sentences of a context in other orders, the same ones every time; none for a single sentence."""
    sentences = SENTENCES.split(context.strip())
    rng, found, seen = random.Random(context), list[str](), {tuple(sentences)}
    for _ in range(8 * most):
        mixed = sentences[:]
        rng.shuffle(mixed)
        if tuple(mixed) not in seen and len(found) < most:
            seen.add(tuple(mixed))
            found.append(" ".join(mixed))
    return found


def parted(text: str) -> tuple[str, str]:
    """(context, question): the last sentence asks."""
    sentences = SENTENCES.split(text.strip())
    return " ".join(sentences[:-1]), sentences[-1]
