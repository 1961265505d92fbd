"""The words of the demo language (lexicon.toml), the phrases for facts, and the kinds of questions with their answers.

Facts are plain tuples: ``("loc", person, place)``, ``("has", person, object, colour)``, ``("like", person, animal)``,
``("did", agent, act, thing, place or "")``, ``("walk", place, weather)``, and those of world knowledge. Phrases have no
capital letter and no full stop, and use the notation of lexicon.toml, which ``automaton.form`` parses. The templates of
questions and answers are also in that file. Contents of answers are plain values (a place, a tuple of persons, a
number), the same in both languages.
"""

import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from importlib import resources
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

WORDS: dict[str, Any] = tomllib.loads((resources.files(__package__) / "lexicon.toml").read_text(encoding="utf-8"))
NB, EN = LANGUAGES = ("nb", "en")
HOMES = {name: WORDS["towns"][(7 * i + i // 6) % len(WORDS["towns"])] for i, name in enumerate(WORDS["persons"])}
HABITS = {(who, act): thing for who, act, thing in WORDS["habits"]}
# the smaller world, for tests: how many of each table, or which concepts
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


def enumeration(lang: str, names: Sequence[str]) -> str:
    """An enumeration of persons or agents: ``Kari , Ola og Liv``."""
    *first, last = [phrase(lang, "agents", n) if n in WORDS["agents"] else n for n in names]
    return f"{' , '.join(first)} {phrase(lang, 'frames', 'and')} {last}" if first else last


def opposites(lang: str, item: str) -> list[str]:
    """A word and its opposite: ``big>`` is (big, small), ``big<`` (small, big)."""
    pair: list[str] = WORDS["opposites"][item[:-1]][lang]
    return pair if item.endswith(">") else pair[::-1]


def other(lang: str) -> str:
    return EN if lang == NB else NB


def clause(lang: str, fact: Fact, *, where: bool = True) -> str:
    """The fact as a main clause; ``where``: with the place of an event."""
    said = words_about(lang, fact if where else (*fact[:4], "") if fact[0] == "did" else fact)
    return str(WORDS["clauses"][fact[0]]).format_map(said)


def words_about(lang: str, fact: Fact, many: bool = False) -> dict[str, str]:
    """The fields of a fact for lexicon.toml's templates, and verbs in singular or plural (``many``)."""
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
    """A story's identity, independent of the order of its facts."""
    return "|".join(sorted(":".join(fact) for fact in facts))


class Lexicon:
    """The concepts of a world of some size, and the probabilities of its events. Hashed by identity."""

    def __init__(self, small: bool = False) -> None:
        kept = [tuple[str, ...](WORDS[name])[: most if small else None] for name, most in SMALL.items()]
        self.persons, self.objects, self.colours, self.places, self.animals, self.capitals = kept
        cast = SMALL_CAST if small else WORDS
        self.agents, self.acts = tuple(cast["agents"]), tuple(cast["acts"])
        self.things = tuple(dict.fromkeys(thing for act in self.acts for thing in WORDS["objects_of"][act]))
        self.event_places = ("", *self.places[:6])  # "": not mentioned

    @cached_property
    def events(self) -> npt.NDArray[np.float64]:
        """The joint distribution P(agent, act, thing, place) of events."""
        rng = np.random.default_rng(7)
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
        """P(slot | bound slots) as (probability, value), by exact marginalisation without the agents in ``taken``."""
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


class WorldQuery(NamedTuple):
    """A question: its kind, the fact or item it is about, and whether one word is demanded."""

    kind: str
    about: Fact
    one_word: bool = False


Content = Any
Story = tuple[Fact, ...]
Weighed = list[tuple[float, Content]]


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of question: its row in lexicon.toml, and its answers.

    ``relation``: of the fact that is asked about, or "story", "fixed", "walk" or "any". ``one_word``: whether a bare
    answer is a single word. ``right``: correct contents with their probabilities; ``domain``: all contents that an
    answer can have; ``bare``: a content in words; ``count``: the number of subjects in it.
    """

    row: Mapping[str, Any]
    relation: str
    weight: float
    one_word: bool
    right: Callable[[Fact, Story], Weighed]
    domain: Callable[[Fact, Story, Lexicon], Sequence[Content]]
    bare: Callable[[str, Fact, Content], str]
    count: Callable[[Content], int] = lambda content: 1

    def ask(self, lang: str, fact: Fact) -> str:
        return self._template("ask", lang, fact).format_map(words_about(lang, fact))

    def sentence(self, lang: str, fact: Fact, content: Content) -> str:
        bare = self.bare(lang, fact, content)
        if self.relation == "any":  # yes or no, with what is true
            return f"{bare} , {clause(lang, content[1], where=False)}" if content[1] else bare
        said = words_about(lang, fact, many=self.count(content) > 1)
        return self._template("sentence", lang, fact).format_map({**said, "answer": bare})

    def _template(self, what: str, lang: str, fact: Fact) -> str:
        """The row's template, which may depend on the language and on the relation."""
        found = self.row[what]
        for key in (lang, fact[0]):
            found = found.get(key, found) if isinstance(found, dict) else found
        return str(found)


def right_who(fact: Fact, story: Story) -> Weighed:
    """Those of whom the fact is true: any one of them, or all in the order of the story."""
    same = [f[1] for f in story if f[0] == fact[0] and f[2] == fact[2] and (f[0] != "did" or f[3] == fact[3])]
    found = tuple(dict.fromkeys(same))
    if len(found) == 1:
        return [(1.0, found)]
    return [(0.7 / len(found), (name,)) for name in found] + [(0.3, found)]


def anybody(fact: Fact, story: Story, lexicon: Lexicon) -> list[Content]:
    """Everybody, and any ordered pair of the story's subjects."""
    present = tuple(dict.fromkeys(f[1] for f in story if f[0] == fact[0]))
    pairs = [(a, b) for a in present for b in present if a != b]
    return [(name,) for name in (lexicon.agents if fact[0] == "did" else lexicon.persons)] + pairs


def right_yes_no(fact: Fact, story: Story) -> Weighed:
    """Yes with the fact, or no with what is true instead."""
    if fact in story or any(f[:4] == fact[:4] for f in story if f[0] == "did"):
        return [(1.0, ("yes", fact))]
    return [(1.0, ("no", next(f for f in story if f[:2] == fact[:2])))]


def any_yes_no(fact: Fact, story: Story, lexicon: Lexicon) -> list[Content]:
    ((_, true),) = right_yes_no(fact, story)
    if true[0] == "yes":
        return [("yes", fact), ("no", ())]
    moved = {(*fact[:2], *f[2:]) for f in story if f[0] == fact[0]}
    return [("yes", fact), *(("no", f) for f in sorted(moved | {true[1]}))]


def told_of(fact: Fact, story: Story) -> Weighed:
    return [(1.0, tuple(dict.fromkeys(f[1] for f in story)))]


def any_told(fact: Fact, story: Story, lexicon: Lexicon) -> list[Content]:
    """Every subset of the story's subjects in their order, and anybody else alone."""
    ((_, names),) = told_of(fact, story)
    parts = [tuple(n for k, n in enumerate(names) if mask >> k & 1) for mask in range(1, 1 << len(names))]
    return parts + [(n,) for n in (*lexicon.persons, *lexicon.agents) if n not in names]


def only(value: Callable[[Fact], Content]) -> Callable[[Fact, Story], Weighed]:
    return lambda fact, story: [(1.0, value(fact))]


def word(at: int, domain: Callable[[Fact, Lexicon], Sequence[Content]], table: str) -> tuple[Any, ...]:
    """right, domain and bare of a kind whose answer is an element of the fact, phrased by a table of lexicon.toml."""
    return only(lambda f: f[at]), lambda f, s, x: domain(f, x), lambda g, f, c: phrase(g, table, c)


def thing(kind: str, said: Callable[[str, str], str]) -> tuple[Any, ...]:
    """right, domain and bare of a kind of world knowledge that asks for another word of a thing."""
    return only(lambda f: f[1]), lambda f, s, x: [i for _, i in items_of(kind, x)], lambda g, f, c: said(g, c)


SUBJECTS = (right_who, anybody, lambda g, f, c: enumeration(g, c), len)
_PARTS: dict[str, tuple[Any, ...]] = {  # right, domain, bare and perhaps count of each Kind
    "where": word(2, lambda f, x: x.places, "places"),
    "who-is": SUBJECTS,
    "what-has": (
        only(lambda f: f[2:4]),
        lambda f, s, x: [(o, c) for o in x.objects for c in x.colours],
        lambda g, f, c: an_object(g, *c),
    ),
    "who-has": SUBJECTS,
    "colour": (only(lambda f: f[3]), lambda f, s, x: x.colours, lambda g, f, c: colour(g, f[2], c)),
    "what-likes": word(2, lambda f, x: x.animals, "animals"),
    "who-likes": SUBJECTS,
    "who-did": SUBJECTS,
    "what-did": word(3, lambda f, x: WORDS["objects_of"][f[2]], "things"),
    "where-did": word(4, lambda f, x: x.event_places[1:], "places"),
    "yes-no": (right_yes_no, any_yes_no, lambda g, f, c: phrase(g, "frames", c[0])),
    "how-many": (
        lambda f, s: [(1.0, sum(one[0] == f[0] and one[2] == f[2] for one in s))],
        lambda f, s, x: (1, 2, 3, 4),
        lambda g, f, c: WORDS["numbers"][g][c],
        int,
    ),
    "summary": (told_of, any_told, SUBJECTS[2]),
    "capital": thing("capital", lambda g, c: str(WORDS["capitals"][c][g][1])),
    "home": (
        only(lambda f: HOMES[f[1]]),
        lambda f, s, x: WORDS["towns"],
        lambda g, f, c: f"{phrase(g, 'frames', 'in')} {c}",
    ),
    "habit": (
        only(lambda f: HABITS[f[1], f[2]]),
        lambda f, s, x: sorted(set(HABITS.values())),
        lambda g, f, c: phrase(g, "things", c),
    ),
    "opposite": thing("opposite", lambda g, c: opposites(g, c)[1]),
    "word": thing("word", lambda g, c: phrase(other(g), "objects", c)),
    "translate": (
        only(lambda f: f[1:]),
        lambda f, s, x: [f[1:], *((*f[1:3], v) for v in (x.places if f[1] == "loc" else x.animals) if v != f[3])],
        lambda g, f, c: clause(other(g), c),
    ),
    "walk-where": word(1, lambda f, x: list(WORDS["walks"]), "walks"),
    "weather": word(2, lambda f, x: list(WORDS["weather"]), "weather"),
}
KINDS = {
    name: Kind(row, row["about"], row["weight"], row["one_word"], *_PARTS[name])
    for name, row in WORDS["questions"].items()
}
# kinds about world knowledge
FIXED = tuple(name for name, kind in KINDS.items() if kind.relation == "fixed")


def items_of(kind: str, lexicon: Lexicon) -> list[Fact]:
    """Everything that a kind of question about world knowledge can be about."""
    match kind:
        case "capital":
            return [(kind, country) for country in lexicon.capitals]
        case "home":
            return [(kind, person) for person in lexicon.persons]
        case "habit":
            return [(kind, *pair) for pair in HABITS]
        case "opposite":
            return [(kind, a + d) for a in WORDS["opposites"] for d in "<>"]
        case "word":
            return [(kind, o) for o in lexicon.objects if phrase("nb", "objects", o) != phrase("en", "objects", o)]
        case _:
            values = (("loc", lexicon.places), ("like", lexicon.animals))
            return [("translate", relation, p, v) for relation, vs in values for p in lexicon.persons for v in vs]
