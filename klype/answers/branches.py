"""A tree of answers made small enough to look at: the most probable ones, common beginnings drawn once."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable
from dataclasses import dataclass

from klype.answers.tree import Found, Tree


@dataclass(frozen=True, slots=True)
class Branch:
    """``text``: the words from the branching before it to the next one; ``mass``: of the answers shown below it, a
    lower bound; ``answer``: the answer that ends here."""

    text: str
    mass: float
    children: tuple[Branch, ...]
    answer: Found | None = None
    meaning: Hashable = None


def branches(tree: Tree, spell: Callable[[tuple[int, ...]], str], most: int = 12) -> Branch:
    """The ``most`` likeliest answers by their likeliest spelling."""
    return _branch([(answer, answer.tokens) for answer in tree.answers[:most]], spell)


def _branch(rows: list[tuple[Found, tuple[int, ...]]], spell: Callable[[tuple[int, ...]], str]) -> Branch:
    mass = math.fsum(answer.low for answer, _ in rows)
    kept: tuple[int, ...] = ()
    while len(rows) > 1 and all(len(left) > len(kept) for _, left in rows):
        following = {left[len(kept)] for _, left in rows}
        if len(following) > 1:
            break
        kept = (*kept, next(iter(following)))
    if len(rows) == 1:
        answer, left = rows[0]
        return Branch(spell(left), mass, (), answer, answer.meaning)
    groups: dict[int, list[tuple[Found, tuple[int, ...]]]] = {}
    for answer, left in rows:
        groups.setdefault(left[len(kept)], []).append((answer, left[len(kept) :]))
    children = [_branch(group, spell) for group in groups.values()]
    return Branch(spell(kept), mass, tuple(sorted(children, key=lambda child: -child.mass)))
