"""What of a tree's open mass can still become a given text: the upper bounds of single answers."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from klype.answers.tree import Growth, Node


class Reach:
    """How much open mass can still become a given text."""

    def __init__(self, growth: Growth) -> None:
        self._nodes: dict[bytes, list[Node]] = {}
        self._tokens: dict[bytes, list[int]] = {}
        self._unread: dict[bytes, float] = {}
        self._masses: dict[tuple[bytes, bytes], float] = {}
        self._longest = 0
        self._known = growth.spell is not None
        if growth.spell is None:
            return
        for tokens, mass in growth.unread:
            spelled = b"".join(map(growth.spell, tokens))
            self._unread[spelled] = self._unread.get(spelled, 0.0) + mass
        for node in growth.nodes:
            self._nodes.setdefault(node.spelled, []).append(node)
        for token in np.unique(np.concatenate([node.ids[node.taken :] for node in growth.nodes])).tolist():
            spelled = growth.spell(token)
            self._tokens.setdefault(spelled, []).append(token)
            self._longest = max(self._longest, len(spelled))

    def of(self, text: bytes) -> float:
        """An upper bound; the text may have been led by a space."""
        if not self._known:
            return math.inf
        whole = [b" " + text] + ([text] if text[:1] != b" " else [])
        return math.fsum(mass for raw in whole for mass in self._from(raw))

    def _from(self, raw: bytes) -> list[float]:
        total = []
        for at in range(len(raw) + 1):
            begin = raw[:at]
            total.append(self._unread.get(begin, 0.0))
            if begin in self._nodes:
                total += [node.tail for node in self._nodes[begin]]
                ends = range(at, min(at + self._longest, len(raw)) + 1)
                total += [self._into(begin, raw[at:to]) for to in ends if raw[at:to] in self._tokens]
        return total

    def _into(self, begin: bytes, spelled: bytes) -> float:
        """Open mass that goes on from a beginning with so many bytes; many texts share it."""
        if (begin, spelled) not in self._masses:
            found = []
            for node in self._nodes[begin]:
                ids = node.ids[node.taken :]
                places = np.flatnonzero(np.logical_or.reduce([ids == token for token in self._tokens[spelled]]))
                found += [node.mass * float(node.p_K[node.taken + place]) for place in places.tolist()]
            self._masses[begin, spelled] = math.fsum(found)
        return self._masses[begin, spelled]
