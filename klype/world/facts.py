"""What can be true in a story, and how likely: facts are plain tuples, drawn slot by slot.

``("loc", person, place)`` · ``("has", person, object, colour)`` · ``("like", person, animal)`` ·
``("did", agent, act, thing, place or "")`` · ``("walk", place, weather)``
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from typing import Any

import numpy as np

from klype.world import lexicon as lex

Fact = tuple[str, ...]


@dataclass(frozen=True)
class Lexicon:
    """The part of the lexicon that a world of some size uses. Hashed by identity: one per world."""

    persons: tuple[str, ...] = lex.PERSONS
    objects: tuple[str, ...] = tuple(lex.OBJECTS)
    colours: tuple[str, ...] = tuple(lex.COLOURS)
    places: tuple[str, ...] = tuple(lex.PLACES)
    animals: tuple[str, ...] = tuple(lex.ANIMALS)
    agents: tuple[str, ...] = tuple(lex.AGENTS)
    acts: tuple[str, ...] = tuple(lex.ACTS)
    capitals: tuple[str, ...] = tuple(lex.CAPITALS)
    seed: int = field(default=7)

    @staticmethod
    def small() -> Lexicon:
        """A smaller world, for tests."""
        return Lexicon(
            lex.PERSONS[:6],
            tuple(lex.OBJECTS)[:4],
            tuple(lex.COLOURS)[:3],
            tuple(lex.PLACES)[:4],
            tuple(lex.ANIMALS)[:4],
            ("dog", "cat", "girl", "farmer", "baker"),
            ("drink", "eat", "read"),
            tuple(lex.CAPITALS)[:3],
        )

    __hash__ = object.__hash__

    @cached_property
    def things(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(thing for act in self.acts for thing in lex.ACTS[act][4]))

    @cached_property
    def event_places(self) -> tuple[str, ...]:
        """ "" (not said) first."""
        return ("", *self.places[:6])

    @cached_property
    def events(self) -> np.ndarray[Any, np.dtype[np.float64]]:
        """The joint table P(agent, act, thing, place): who does what, to what, where; sums to one."""
        rng = np.random.default_rng(self.seed)
        table = np.zeros((len(self.agents), len(self.acts), len(self.things), len(self.event_places)))
        for j, act in enumerate(self.acts):
            _, _, _, kinds, things = lex.ACTS[act]
            where = rng.dirichlet(np.full(len(self.event_places) - 1, 1.0)) * 0.35
            for i, agent in enumerate(self.agents):
                if lex.AGENTS[agent][0] not in kinds:
                    continue
                liking = rng.gamma(2.0)
                what = rng.dirichlet(np.full(len(things), 2.0))
                for thing, p in zip(things, what, strict=True):
                    table[i, j, self.things.index(thing)] = liking * p * np.concatenate([[0.65], where])
        table /= table.sum(axis=(1, 2, 3), keepdims=True) * len(self.agents)
        return table

    @lru_cache(maxsize=100_000)  # noqa: B019 — a lexicon lives as long as its world
    def event(
        self, slot: str, agent: str = "", act: str = "", thing: str = "", taken: frozenset[str] = frozenset()
    ) -> tuple[tuple[float, str], ...]:
        """P(slot | what is bound), by exact marginalisation; ``taken`` agents are left out."""
        names = (self.agents, self.acts, self.things, self.event_places)
        table = self.events
        if taken:
            table = table.copy()
            table[[self.agents.index(a) for a in taken]] = 0
        for axis, bound in enumerate((agent, act, thing)):
            if bound:
                table = np.take(table, [names[axis].index(bound)], axis=axis)
        axis = ("agent", "act", "thing", "place").index(slot)
        marginal = table.sum(axis=tuple(k for k in range(4) if k != axis))
        total = float(marginal.sum())
        if marginal.size == 1:
            raise AssertionError(f"{slot} is bound already")
        return tuple((float(p) / total, names[axis][k]) for k, p in enumerate(marginal) if p > 0)


def uniform(options: tuple[str, ...]) -> list[tuple[float, str]]:
    return [(1 / len(options), option) for option in options]


def weighted(options: tuple[str, ...], favour: dict[str, float]) -> list[tuple[float, str]]:
    """Each option has weight 1, or the one named in ``favour``; probabilities sum to one."""
    raw = [(favour.get(option, 1.0), option) for option in options]
    total = sum(w for w, _ in raw)
    return [(w / total, option) for w, option in raw if w > 0]


def key(facts: tuple[Fact, ...]) -> str:
    """A story's identity, whatever the order it is told in."""
    return "|".join(sorted(":".join(fact) for fact in facts))
