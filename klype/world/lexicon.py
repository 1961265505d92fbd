"""What the demo world can say: its words (lexicon.toml), what a fact's words are, and the part that one world uses.

Facts are plain tuples: ``("loc", person, place)``, ``("has", person, object, colour)``, ``("like", person, animal)``,
``("did", agent, act, thing, place or "")``, ``("walk", place, weather)``, and those of world knowledge. What is said of
them is text without a capital letter and a full stop, with forms as in lexicon.toml: ``automaton.form`` reads it.
"""

from __future__ import annotations

import tomllib
from collections.abc import Sequence
from functools import cached_property, lru_cache
from importlib import resources
from typing import Any

import numpy as np
import numpy.typing as npt

WORDS: dict[str, Any] = tomllib.loads((resources.files(__package__) / "lexicon.toml").read_text(encoding="utf-8"))
NB, EN = LANGUAGES = ("nb", "en")
HOMES = {name: WORDS["towns"][(7 * i + i // 6) % len(WORDS["towns"])] for i, name in enumerate(WORDS["persons"])}
HABITS = {(who, act): thing for who, act, thing in WORDS["habits"]}
# of a smaller world, for tests: how many of each, or which
SMALL = {"persons": 6, "objects": 4, "colours": 3, "places": 4, "animals": 4, "capitals": 3}
SMALL_CAST = {"agents": ("dog", "cat", "girl", "farmer", "baker"), "acts": ("drink", "eat", "read")}

Fact = tuple[str, ...]


def phrase(lang: str, table: str, concept: str) -> str:
    return str(WORDS[table][concept][lang])


def colour(lang: str, noun: str, concept: str) -> str:
    neuter = lang == NB and WORDS["objects"][noun]["article"] == "et"
    return phrase("neuter" if neuter else lang, "colours", concept)


def an_object(lang: str, noun: str, concept: str) -> str:
    """``en rød ball`` · ``a red ball``"""
    article = WORDS["objects"][noun]["article"] if lang == NB else "a"
    return f"{article} {colour(lang, noun, concept)} {phrase(lang, 'objects', noun)}"


def listed(lang: str, names: Sequence[str]) -> str:
    """``Kari , Ola og Liv``, or agents"""
    *first, last = [phrase(lang, "agents", n) if n in WORDS["agents"] else n for n in names]
    return f"{' , '.join(first)} {phrase(lang, 'frames', 'and')} {last}" if first else last


def opposites(lang: str, item: str) -> list[str]:
    """``big>`` asks for the opposite of big, ``big<`` for the opposite of small."""
    pair: list[str] = WORDS["opposites"][item[:-1]][lang]
    return pair if item.endswith(">") else pair[::-1]


def other(lang: str) -> str:
    return EN if lang == NB else NB


def clause(lang: str, fact: Fact, *, where: bool = True) -> str:
    """The fact as a main clause; ``where``: with the place of what was done."""
    said = words_about(lang, fact if where else (*fact[:4], "") if fact[0] == "did" else fact)
    return str(WORDS["clauses"][fact[0]]).format_map(said)


def words_about(lang: str, fact: Fact, many: bool = False) -> dict[str, str]:
    """What lexicon.toml's sentences can name of a fact, and the verbs for one subject or for many."""
    verbs = {verb: forms[lang][many] for verb, forms in WORDS["verbs"].items()}
    match fact:
        case "loc", who, place:
            said = {"who": who, "place": phrase(lang, "places", place)}
        case "has", who, noun, shade:
            the = phrase("the", "objects", noun) if lang == NB else f"the {phrase(EN, 'objects', noun)}"
            said = {"who": who, "a": an_object(lang, noun, shade), "the": the}
        case "like", who, animals:
            said = {"who": who, "animals": phrase(lang, "animals", animals)}
        case "did", who, act, thing, place:
            said = {"who": phrase(lang, "agents", who), "act": phrase(lang, "acts", act)}
            said |= {"infinitive": phrase("infinitive", "acts", act), "thing": phrase(lang, "things", thing)}
            said |= {"place": place and phrase(lang, "places", place)}
        case "capital", country:
            said = {"country": WORDS["capitals"][country][lang][0]}
        case "home", who:
            said = {"who": who}
        case "habit", beast, act:
            said = {"beast": phrase(lang, "beasts", beast), "present": phrase(lang, "present", act)}
            said |= {"infinitive": phrase("infinitive", "acts", act)}
        case "opposite", item:
            said = {"word": opposites(lang, item)[0]}
        case "word", noun:
            said = {"word": phrase(lang, "objects", noun)}
        case "translate", *told:
            said = {"clause": clause(lang, tuple(told))}
        case _:
            said = {}
    return verbs | said


def key(facts: tuple[Fact, ...]) -> str:
    """A story's identity, whatever the order it is told in."""
    return "|".join(sorted(":".join(fact) for fact in facts))


class Lexicon:
    """The concepts that a world of some size uses, and who does what there. Hashed by identity: one per world."""

    def __init__(self, small: bool = False, seed: int = 7) -> None:
        self.seed = seed
        kept = [tuple[str, ...](WORDS[name])[: most if small else None] for name, most in SMALL.items()]
        self.persons, self.objects, self.colours, self.places, self.animals, self.capitals = kept
        cast = SMALL_CAST if small else WORDS
        self.agents, self.acts = tuple(cast["agents"]), tuple(cast["acts"])
        self.things = tuple(dict.fromkeys(thing for act in self.acts for thing in WORDS["objects_of"][act]))
        self.event_places = ("", *self.places[:6])  # "": it is not said

    def of(self, table: str) -> tuple[str, ...]:
        concepts: tuple[str, ...] = getattr(self, table)
        return concepts

    @cached_property
    def events(self) -> npt.NDArray[np.float64]:
        """The joint table P(agent, act, thing, place): who does what, to what, where; sums to one."""
        rng = np.random.default_rng(self.seed)
        table = np.zeros((len(self.agents), len(self.acts), len(self.things), len(self.event_places)))
        for j, act in enumerate(self.acts):
            where = rng.dirichlet(np.full(len(self.event_places) - 1, 1.0)) * 0.35
            for i, agent in enumerate(self.agents):
                if WORDS["agents"][agent]["kind"] not in WORDS["doers"][act]:
                    continue
                liking, things = rng.gamma(2.0), WORDS["objects_of"][act]
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
        return tuple((float(p) / total, names[axis][k]) for k, p in enumerate(marginal) if p > 0)
