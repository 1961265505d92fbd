"""The kinds of questions: what their right answers are, what else could be answered, and how that is said.

How each is asked, and how its answer is said as a sentence, stands in lexicon.toml. Contents are plain values (a place,
a tuple of persons, a number), the same in both languages.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from klype.world.lexicon import (
    HABITS,
    HOMES,
    WORDS,
    Fact,
    Lexicon,
    an_object,
    clause,
    colour,
    listed,
    opposites,
    other,
    phrase,
    words_about,
)


class Query(NamedTuple):
    """A question: its kind, the fact or item it is about, and whether one word is demanded."""

    kind: str
    about: Fact
    one_word: bool = False


Content = Any
Story = tuple[Fact, ...]
Weighed = list[tuple[float, Content]]


@dataclass(frozen=True, slots=True)
class Kind:
    """A row of lexicon.toml's questions; ``bare``: an answer by itself. ``count``: of answers that are subjects."""

    row: Mapping[str, Any]
    right: Callable[[Fact, Story], Weighed]
    domain: Callable[[Fact, Story, Lexicon], Sequence[Content]]
    bare: Callable[[str, Fact, Content], str]
    count: Callable[[Content], int] = lambda content: 1

    @property
    def relation(self) -> str:
        """The relation of the fact asked about; "story", "fixed" or "walk" for the rest."""
        return str(self.row["about"])

    @property
    def weight(self) -> float:
        return float(self.row["weight"])

    @property
    def one_word(self) -> bool:
        """Whether a bare answer is one word."""
        return bool(self.row["one_word"])

    def ask(self, lang: str, fact: Fact) -> str:
        return self._worded("ask", lang, fact).format_map(words_about(lang, fact))

    def sentence(self, lang: str, fact: Fact, content: Content) -> str:
        bare = self.bare(lang, fact, content)
        if self.relation == "any":  # yes or no, with what is true
            return f"{bare} , {clause(lang, content[1], where=False)}" if content[1] else bare
        said = words_about(lang, fact, many=self.count(content) > 1)
        return self._worded("sentence", lang, fact).format_map({**said, "answer": bare})

    def _worded(self, what: str, lang: str, fact: Fact) -> str:
        """The row's text: one for all, or by language, and there by relation."""
        found = self.row[what]
        for key in (lang, fact[0]):
            found = found.get(key, found) if isinstance(found, dict) else found
        return str(found)


def right_who(fact: Fact, story: Story) -> Weighed:
    """Who it is true of: any one of them, or all in the order of the story."""
    same = [f[1] for f in story if f[0] == fact[0] and f[2] == fact[2] and (f[0] != "did" or f[3] == fact[3])]
    found = tuple(dict.fromkeys(same))
    if len(found) == 1:
        return [(1.0, found)]
    return [(0.7 / len(found), (name,)) for name in found] + [(0.3, found)]


def anybody(fact: Fact, story: Story, lexicon: Lexicon) -> list[Content]:
    """Everybody, and any two of the story's."""
    present = tuple(dict.fromkeys(f[1] for f in story if f[0] == fact[0]))
    pairs = [(a, b) for a in present for b in present if a != b]
    return [(name,) for name in (lexicon.agents if fact[0] == "did" else lexicon.persons)] + pairs


def right_yes_no(fact: Fact, story: Story) -> Weighed:
    """Yes, or no with what is true instead."""
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
    """Every order-preserving part of the story's subjects, and anybody else alone."""
    ((_, names),) = told_of(fact, story)
    parts = [tuple(n for k, n in enumerate(names) if mask >> k & 1) for mask in range(1, 1 << len(names))]
    return parts + [(n,) for n in (*lexicon.persons, *lexicon.agents) if n not in names]


def only(value: Callable[[Fact], Content]) -> Callable[[Fact, Story], Weighed]:
    return lambda fact, story: [(1.0, value(fact))]


def names(lang: str, fact: Fact, content: Content) -> str:
    return listed(lang, content)


_PARTS: dict[str, tuple[Any, ...]] = {  # what a Kind has besides its row
    "where": (only(lambda f: f[2]), lambda f, s, x: x.places, lambda g, f, c: phrase(g, "places", c)),
    "who-is": (right_who, anybody, names, len),
    "what-has": (
        only(lambda f: f[2:4]),
        lambda f, s, x: [(o, c) for o in x.objects for c in x.colours],
        lambda g, f, c: an_object(g, *c),
    ),
    "who-has": (right_who, anybody, names, len),
    "colour": (only(lambda f: f[3]), lambda f, s, x: x.colours, lambda g, f, c: colour(g, f[2], c)),
    "what-likes": (only(lambda f: f[2]), lambda f, s, x: x.animals, lambda g, f, c: phrase(g, "animals", c)),
    "who-likes": (right_who, anybody, names, len),
    "who-did": (right_who, anybody, names, len),
    "what-did": (
        only(lambda f: f[3]),
        lambda f, s, x: WORDS["objects_of"][f[2]],
        lambda g, f, c: phrase(g, "things", c),
    ),
    "where-did": (only(lambda f: f[4]), lambda f, s, x: x.event_places[1:], lambda g, f, c: phrase(g, "places", c)),
    "yes-no": (right_yes_no, any_yes_no, lambda g, f, c: phrase(g, "frames", c[0])),
    "how-many": (
        lambda f, s: [(1.0, sum(one[0] == f[0] and one[2] == f[2] for one in s))],
        lambda f, s, x: (1, 2, 3, 4),
        lambda g, f, c: WORDS["numbers"][g][c],
        int,
    ),
    "summary": (told_of, any_told, names),
    "capital": (only(lambda f: f[1]), lambda f, s, x: x.capitals, lambda g, f, c: WORDS["capitals"][c][g][1]),
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
    "opposite": (
        only(lambda f: f[1]),
        lambda f, s, x: [item for _, item in fixed_items("opposite", x)],
        lambda g, f, c: opposites(g, c)[1],
    ),
    "word": (
        only(lambda f: f[1]),
        lambda f, s, x: [noun for _, noun in fixed_items("word", x)],
        lambda g, f, c: phrase(other(g), "objects", c),
    ),
    "translate": (
        only(lambda f: f[1:]),
        lambda f, s, x: [f[1:], *((*f[1:3], v) for v in (x.places if f[1] == "loc" else x.animals) if v != f[3])],
        lambda g, f, c: clause(other(g), c),
    ),
    "walk-where": (only(lambda f: f[1]), lambda f, s, x: list(WORDS["walks"]), lambda g, f, c: phrase(g, "walks", c)),
    "weather": (only(lambda f: f[2]), lambda f, s, x: list(WORDS["weather"]), lambda g, f, c: phrase(g, "weather", c)),
}
KINDS = {name: Kind(row, *_PARTS[name]) for name, row in WORDS["questions"].items()}
# of what is always true
FIXED = tuple(name for name, kind in KINDS.items() if kind.relation == "fixed")


def fixed_items(kind: str, lexicon: Lexicon) -> list[Fact]:
    """What a question of world knowledge can be about."""
    match kind:
        case "capital":
            items: list[Any] = [*lexicon.capitals]
        case "home":
            items = [*lexicon.persons]
        case "habit":
            return [("habit", *pair) for pair in HABITS]
        case "opposite":
            items = [a + d for a in WORDS["opposites"] for d in "<>"]
        case "word":
            items = [o for o in lexicon.objects if phrase("nb", "objects", o) != phrase("en", "objects", o)]
        case _:
            values = (("loc", lexicon.places), ("like", lexicon.animals))
            return [("translate", relation, p, v) for relation, vs in values for p in lexicon.persons for v in vs]
    return [(kind, item) for item in items]
