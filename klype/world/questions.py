"""The kinds of questions: how each is asked, what its right answers are, and how an answer is said.

One class a kind would be long-winded: a kind is a row of ``KINDS`` whose functions take the query and the story.
Contents are plain values (a place, a tuple of persons, a number), the same in both languages.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from klype.world import lexicon as lex
from klype.world import phrases
from klype.world.automaton import Symbols, form, words
from klype.world.lexicon import Lexicon
from klype.world.phrases import Fact


class Query(NamedTuple):
    """A question: its kind, the fact or item it is about, and whether one word is demanded."""

    kind: str
    about: Fact
    one_word: bool = False


Content = Any
Story = tuple[Fact, ...]


class Kind(NamedTuple):
    relation: str  # of the fact asked about; "story", "fixed" or "walk" for the rest
    weight: float
    ask: Callable[[str, Fact], Symbols]
    right: Callable[[Fact, Story], list[tuple[float, Content]]]
    domain: Callable[[Fact, Story, Lexicon], list[Content]]
    bare: Callable[[str, Fact, Content], Symbols]
    sentence: Callable[[str, Fact, Content], Symbols]
    one_word: bool = False  # whether a bare answer is one word


def w(lang: str, nb: str, en: str) -> Symbols:
    return words(phrases.pick(lang, nb, en))


def subjects(fact: Fact, story: Story) -> list[tuple[float, Content]]:
    """Who it is true of: any one of them, or all in the order of the story."""
    same = [f[1] for f in story if f[0] == fact[0] and f[2] == fact[2] and (f[0] != "did" or f[3] == fact[3])]
    found = tuple(dict.fromkeys(same))
    if len(found) == 1:
        return [(1.0, found)]
    return [(0.7 / len(found), (name,)) for name in found] + [(0.3, found)]


def _who_domain(names: Callable[[Lexicon], tuple[str, ...]]) -> Callable[[Fact, Story, Lexicon], list[Content]]:
    def domain(fact: Fact, story: Story, lexicon: Lexicon) -> list[Content]:
        present = tuple(dict.fromkeys(f[1] for f in story if f[0] == fact[0]))
        pairs = [(a, b) for a in present for b in present if a != b]
        return [(name,) for name in names(lexicon)] + pairs

    return domain


def persons(lang: str, names: tuple[str, ...]) -> Symbols:
    return phrases.listed(lang, [(name,) for name in names])


def agents(lang: str, names: tuple[str, ...]) -> Symbols:
    return phrases.listed(lang, [phrases.agent(lang, name) for name in names])


def who_clause(lang: str, fact: Fact, names: tuple[str, ...]) -> Symbols:
    subject = agents(lang, names) if fact[0] == "did" else persons(lang, names)
    return phrases.clause(lang, fact, subject, len(names), where=False)


def _one(value: Callable[[Fact], Content]) -> Callable[[Fact, Story], list[tuple[float, Content]]]:
    return lambda fact, story: [(1.0, value(fact))]


def yes_no(fact: Fact, story: Story) -> list[tuple[float, Content]]:
    """Yes, or no with what is true instead."""
    if fact in story or any(f[:4] == fact[:4] for f in story if f[0] == "did"):
        return [(1.0, ("yes", fact))]
    return [(1.0, ("no", next(f for f in story if f[:2] == fact[:2])))]


def yes_no_domain(fact: Fact, story: Story, lexicon: Lexicon) -> list[Content]:
    true = yes_no(fact, story)[0][1]
    instead = [f for f in story if f[0] == fact[0]] if true[0] == "no" else []
    moved = {tuple([fact[0], fact[1], *f[2:]]) for f in instead}
    return (
        [("yes", fact)]
        + [("no", f) for f in sorted(moved | ({true[1]} if true[0] == "no" else set()))]
        + ([("no", ())] if true[0] == "yes" else [])
    )


def yes_no_bare(lang: str, fact: Fact, content: Content) -> Symbols:
    return w(lang, "ja", "yes") if content[0] == "yes" else w(lang, "nei", "no")


def yes_no_sentence(lang: str, fact: Fact, content: Content) -> Symbols:
    if not content[1]:
        return yes_no_bare(lang, fact, content)
    return (*yes_no_bare(lang, fact, content), ",", *phrases.clause(lang, content[1], where=False))


def ask_yes_no(lang: str, f: Fact) -> Symbols:
    if f[0] == "loc":
        return (phrases.ONE[lang], f[1], *phrases.place(lang, f[2]))
    if f[0] == "has":
        return (*w(lang, "har", "does"), f[1], *w(lang, "", "have"), *phrases.an_object(lang, f[2], f[3]))
    if f[0] == "like":
        return (*w(lang, "liker", "does"), f[1], *w(lang, "", "like"), *phrases.animals(lang, f[2]))
    if lang == lex.NB:
        return (*phrases.act(lang, f[2]), *phrases.agent(lang, f[1]), *phrases.thing(lang, f[3]))
    return ("did", *phrases.agent(lang, f[1]), lex.ACTS[f[2]][2], *phrases.thing(lang, f[3]))


def did(nb_lead: str, en_lead: str, *, thing: bool) -> Callable[[str, Fact], Symbols]:
    """``hva drakk hunden`` · ``where did the dog drink water``"""

    def ask(lang: str, f: Fact) -> Symbols:
        object_ = phrases.thing(lang, f[3]) if thing else ()
        if lang == lex.NB:
            return (nb_lead, *phrases.act(lang, f[2]), *phrases.agent(lang, f[1]), *object_)
        return (en_lead, "did", *phrases.agent(lang, f[1]), lex.ACTS[f[2]][2], *object_)

    return ask


def told_of(fact: Fact, story: Story) -> list[tuple[float, Content]]:
    return [(1.0, tuple(dict.fromkeys(f[1] for f in story)))]


def told_domain(fact: Fact, story: Story, lexicon: Lexicon) -> list[Content]:
    """Every order-preserving part of the story's subjects, and anybody else alone."""
    names = told_of(fact, story)[0][1]
    parts = [tuple(n for k, n in enumerate(names) if mask >> k & 1) for mask in range(1, 1 << len(names))]
    return parts + [(n,) for n in (*lexicon.persons, *lexicon.agents) if n not in names]


def anyone(lang: str, names: tuple[str, ...]) -> Symbols:
    return phrases.listed(lang, [phrases.agent(lang, n) if n in lex.AGENTS else (n,) for n in names])


def walk_place(lang: str, concept: str) -> Symbols:
    return form(next(said for name, said, _ in lex.WALKS[lang] if name == concept))


def weather(lang: str, concept: str) -> Symbols:
    return form(lex.WEATHER_WORDS[lang][concept])


PERSON = _who_domain(lambda lexicon: lexicon.persons)
AGENT = _who_domain(lambda lexicon: lexicon.agents)

KINDS: dict[str, Kind] = {
    # the story's facts
    "where": Kind(
        "loc",
        1.0,
        lambda g, f: (*w(g, "hvor er", "where is"), f[1]),
        _one(lambda f: f[2]),
        lambda f, s, x: list(x.places),
        lambda g, f, c: phrases.place(g, c),
        lambda g, f, c: phrases.clause(g, ("loc", f[1], c)),
    ),
    "who-is": Kind(
        "loc",
        1.0,
        lambda g, f: (*w(g, "hvem er", "who is"), *phrases.place(g, f[2])),
        subjects,
        PERSON,
        lambda g, f, c: persons(g, c),
        who_clause,
        True,
    ),
    "what-has": Kind(
        "has",
        1.0,
        lambda g, f: (*w(g, "hva har", "what does"), f[1], *w(g, "", "have")),
        _one(lambda f: (f[2], f[3])),
        lambda f, s, x: [(o, c) for o in x.objects for c in x.colours],
        lambda g, f, c: phrases.an_object(g, *c),
        lambda g, f, c: phrases.clause(g, ("has", f[1], *c)),
    ),
    "who-has": Kind(
        "has",
        1.0,
        lambda g, f: (*w(g, "hvem har", "who has"), *phrases.the_object(g, f[2])),
        subjects,
        PERSON,
        lambda g, f, c: persons(g, c),
        lambda g, f, c: (*persons(g, c), phrases.HAS[g][len(c) > 1], *phrases.the_object(g, f[2])),
        True,
    ),
    "colour": Kind(
        "has",
        0.8,
        lambda g, f: (*w(g, "hvilken farge har", "what colour is"), *phrases.the_object(g, f[2])),
        _one(lambda f: f[3]),
        lambda f, s, x: list(x.colours),
        lambda g, f, c: phrases.colour(g, f[2], c),
        lambda g, f, c: (*phrases.the_object(g, f[2]), phrases.ONE[g], *phrases.colour(g, f[2], c)),
        True,
    ),
    "what-likes": Kind(
        "like",
        1.0,
        lambda g, f: (*w(g, "hva liker", "what does"), f[1], *w(g, "", "like")),
        _one(lambda f: f[2]),
        lambda f, s, x: list(x.animals),
        lambda g, f, c: phrases.animals(g, c),
        lambda g, f, c: phrases.clause(g, ("like", f[1], c)),
        True,
    ),
    "who-likes": Kind(
        "like",
        1.0,
        lambda g, f: (*w(g, "hvem liker", "who likes"), *phrases.animals(g, f[2])),
        subjects,
        PERSON,
        lambda g, f, c: persons(g, c),
        who_clause,
        True,
    ),
    "who-did": Kind(
        "did",
        1.0,
        lambda g, f: (*w(g, "hvem", "who"), *phrases.act(g, f[2]), *phrases.thing(g, f[3])),
        subjects,
        AGENT,
        lambda g, f, c: agents(g, c),
        who_clause,
    ),
    "what-did": Kind(
        "did",
        1.0,
        did("hva", "what", thing=False),
        _one(lambda f: f[3]),
        lambda f, s, x: list(lex.ACTS[f[2]][4]),
        lambda g, f, c: phrases.thing(g, c),
        lambda g, f, c: phrases.clause(g, (*f[:3], c, ""), where=False),
    ),
    "where-did": Kind(
        "did",
        0.8,
        did("hvor", "where", thing=True),
        _one(lambda f: f[4]),
        lambda f, s, x: [p for p in x.event_places if p],
        lambda g, f, c: phrases.place(g, c),
        lambda g, f, c: phrases.clause(g, (*f[:4], c)),
    ),
    "yes-no": Kind("any", 0.25, ask_yes_no, yes_no, yes_no_domain, yes_no_bare, yes_no_sentence, True),
    "how-many": Kind(
        "loc like",
        0.2,
        lambda g, f: (
            *w(g, "hvor mange", "how many"),
            *(((phrases.MANY if f[0] == "loc" else {lex.NB: "liker", lex.EN: "like"})[g]),),
            *(phrases.place(g, f[2]) if f[0] == "loc" else phrases.animals(g, f[2])),
        ),
        lambda f, s: [(1.0, sum(one[0] == f[0] and one[2] == f[2] for one in s))],
        lambda f, s, x: [1, 2, 3, 4],
        lambda g, f, c: (phrases.number(g, c),),
        lambda g, f, n: phrases.clause(g, f, (phrases.number(g, n),), n),
        True,
    ),
    "summary": Kind(
        "story",
        0.35,
        lambda g, f: w(g, "hvem handler historien om", "who is the story about"),
        told_of,
        told_domain,
        lambda g, f, c: anyone(g, c),
        lambda g, f, c: (*w(g, "historien handler om", "the story is about"), *anyone(g, c)),
    ),
    # world knowledge
    "capital": Kind(
        "fixed",
        1.0,
        lambda g, f: (*w(g, "hva er hovedstaden i", "what is the capital of"), *phrases.capital_of(g, f[1])[0]),
        _one(lambda f: f[1]),
        lambda f, s, x: list(x.capitals),
        lambda g, f, c: phrases.capital_of(g, c)[1],
        lambda g, f, c: (
            *w(g, "hovedstaden i", "the capital of"),
            *phrases.capital_of(g, f[1])[0],
            phrases.ONE[g],
            *phrases.capital_of(g, c)[1],
        ),
        True,
    ),
    "home": Kind(
        "fixed",
        1.0,
        lambda g, f: (*w(g, "hvor bor", "where does"), f[1], *w(g, "", "live")),
        _one(lambda f: lex.HOMES[f[1]]),
        lambda f, s, x: list(lex.TOWNS),
        lambda g, f, c: phrases.in_town(g, c),
        lambda g, f, c: (f[1], *w(g, "bor", "lives"), *phrases.in_town(g, c)),
    ),
    "habit": Kind(
        "fixed",
        1.0,
        lambda g, f: (
            *w(g, "hva", "what does"),
            *(
                (lex.HABIT_VERBS[f[2]][0], *form(lex.BEASTS[f[1]][0]))
                if g == lex.NB
                else (*form(lex.BEASTS[f[1]][1]), lex.HABIT_VERBS[f[2]][2])
            ),
        ),
        _one(lambda f: lex.HABITS[f[1], f[2]]),
        lambda f, s, x: sorted(set(lex.HABITS.values())),
        lambda g, f, c: phrases.thing(g, c),
        lambda g, f, c: (
            *form(phrases.pick(g, *lex.BEASTS[f[1]])),
            phrases.pick(g, *lex.HABIT_VERBS[f[2]][:2]),
            *phrases.thing(g, c),
        ),
        True,
    ),
    "opposite": Kind(
        "fixed",
        0.7,
        lambda g, f: (*w(g, "hva er det motsatte av", "what is the opposite of"), *phrases.opposites(g, f[1])[0]),
        _one(lambda f: f[1]),
        lambda f, s, x: [a + d for a in lex.OPPOSITES for d in "<>"],
        lambda g, f, c: phrases.opposites(g, c)[1],
        lambda g, f, c: (
            *w(g, "det motsatte av", "the opposite of"),
            *phrases.opposites(g, f[1])[0],
            phrases.ONE[g],
            *phrases.opposites(g, c)[1],
        ),
        True,
    ),
    "word": Kind(
        "fixed",
        0.7,
        lambda g, f: (
            *w(g, "hva heter", "what is"),
            *phrases.translation(g, f[1])[0],
            *w(g, "på engelsk", "in Norwegian"),
        ),
        _one(lambda f: f[1]),
        lambda f, s, x: [o for o in x.objects if lex.OBJECTS[o].nb != lex.OBJECTS[o].en],
        lambda g, f, c: phrases.translation(g, c)[1],
        lambda g, f, c: (
            *phrases.translation(g, f[1])[0],
            *w(g, "heter", "is"),
            *phrases.translation(g, c)[1],
            *w(g, "på engelsk", "in Norwegian"),
        ),
        True,
    ),
    "translate": Kind(
        "fixed",
        0.6,
        lambda g, f: (*w(g, "oversett til engelsk :", "translate to Norwegian :"), *phrases.clause(g, f[1:])),
        _one(lambda f: f[1:]),
        lambda f, s, x: [f[1:]] + [(f[1], f[2], v) for v in (x.places if f[1] == "loc" else x.animals) if v != f[3]],
        lambda g, f, c: phrases.clause(phrases.other(g), c),
        lambda g, f, c: phrases.clause(phrases.other(g), c),
    ),
    # a walk
    "walk-where": Kind(
        "walk",
        1.0,
        lambda g, f: w(g, "hvor gikk du", "where did you walk"),
        _one(lambda f: f[1]),
        lambda f, s, x: [name for name, _, _ in lex.WALKS[lex.NB]],
        lambda g, f, c: walk_place(g, c),
        lambda g, f, c: (*w(g, "jeg gikk", "I walked"), *walk_place(g, c)),
    ),
    "weather": Kind(
        "walk",
        1.0,
        lambda g, f: w(g, "hvordan var været", "how was the weather"),
        _one(lambda f: f[2]),
        lambda f, s, x: list(lex.WEATHER_WORDS[lex.NB]),
        lambda g, f, c: weather(g, c),
        lambda g, f, c: weather(g, c),
    ),
}


def fixed_items(kind: str, lexicon: Lexicon) -> list[Fact]:
    """What a question of world knowledge can be about."""
    if kind == "capital":
        return [("capital", c) for c in lexicon.capitals]
    if kind == "home":
        return [("home", p) for p in lexicon.persons]
    if kind == "habit":
        return [("habit", *pair) for pair in lex.HABITS]
    if kind == "opposite":
        return [("opposite", a + d) for a in lex.OPPOSITES for d in "<>"]
    if kind == "word":
        return [("word", o) for o in lexicon.objects if lex.OBJECTS[o].nb != lex.OBJECTS[o].en]
    assert kind == "translate"
    values: tuple[tuple[str, tuple[str, ...]], ...] = (("loc", lexicon.places), ("like", lexicon.animals))
    return [("translate", relation, p, v) for relation, vs in values for p in lexicon.persons for v in vs]


FIXED = tuple(name for name, kind in KINDS.items() if kind.relation == "fixed")
