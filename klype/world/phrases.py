"""How facts are said in each language: concepts in, symbols out (no capital, no full stop).

Facts are plain tuples: ``("loc", person, place)``, ``("has", person, object, colour)``, ``("like", person, animal)``,
``("did", agent, act, thing, place or "")``, ``("walk", place, weather)``
"""

from __future__ import annotations

from collections.abc import Sequence

from klype.world import lexicon as lex
from klype.world.automaton import Symbols, form

Fact = tuple[str, ...]
ONE = {lex.NB: "er", lex.EN: "is"}
MANY = {lex.NB: "er", lex.EN: "are"}
HAS = {lex.NB: ("har", "har"), lex.EN: ("has", "have")}
LIKES = {lex.NB: ("liker", "liker"), lex.EN: ("likes", "like")}


def pick(lang: str, nb: str, en: str) -> str:
    return nb if lang == lex.NB else en


def place(lang: str, concept: str) -> Symbols:
    return form(pick(lang, *lex.PLACES[concept]))


def animals(lang: str, concept: str) -> Symbols:
    return form(pick(lang, *lex.ANIMALS[concept]))


def agent(lang: str, concept: str) -> Symbols:
    return form(pick(lang, *lex.AGENTS[concept][1:]))


def act(lang: str, concept: str) -> Symbols:
    return form(pick(lang, *lex.ACTS[concept][:2]))


def thing(lang: str, concept: str) -> Symbols:
    return form(pick(lang, *lex.THINGS[concept]))


def colour(lang: str, noun: str, concept: str) -> Symbols:
    neuter = lex.OBJECTS[noun].gender == "et"
    return (lex.COLOURS[concept][2 if lang == lex.EN else int(neuter)],)


def an_object(lang: str, noun: str, concept: str) -> Symbols:
    """``en rød ball`` · ``a red ball``"""
    word = lex.OBJECTS[noun]
    return (pick(lang, word.gender, "a"), *colour(lang, noun, concept), pick(lang, word.nb, word.en))


def the_object(lang: str, noun: str) -> Symbols:
    """``ballen`` · ``the ball``"""
    word = lex.OBJECTS[noun]
    return form(pick(lang, word.nb_definite, f"the {word.en}"))


def listed(lang: str, items: Sequence[Symbols]) -> Symbols:
    """``Kari , Ola og Liv``"""
    out: Symbols = items[0]
    for k, item in enumerate(items[1:], 2):
        out += ((pick(lang, "og", "and"),) if k == len(items) else (",",)) + item
    return out


def number(lang: str, n: int) -> str:
    return lex.NUMBERS[lang][n]


def clause(lang: str, fact: Fact, subject: Symbols = (), count: int = 1, *, where: bool = True) -> Symbols:
    """The fact as a main clause; ``subject`` (of ``count`` members) may stand in for its own."""
    relation = fact[0]
    many = count > 1
    if relation == "loc":
        return (subject or (fact[1],)) + ((MANY if many else ONE)[lang],) + place(lang, fact[2])
    if relation == "has":
        return (subject or (fact[1],)) + (HAS[lang][many],) + an_object(lang, fact[2], fact[3])
    if relation == "like":
        return (subject or (fact[1],)) + (LIKES[lang][many],) + animals(lang, fact[2])
    assert relation == "did"
    said = (subject or agent(lang, fact[1])) + act(lang, fact[2]) + thing(lang, fact[3])
    return said + (place(lang, fact[4]) if where and fact[4] else ())


def capital_of(lang: str, country: str) -> tuple[Symbols, Symbols]:
    """(the country, its capital)"""
    nb, en, nb_city, en_city = lex.CAPITALS[country]
    return (pick(lang, nb, en),), (pick(lang, nb_city, en_city),)


def in_town(lang: str, town: str) -> Symbols:
    return (pick(lang, "i", "in"), town)


def opposites(lang: str, item: str) -> tuple[Symbols, Symbols]:
    """``big>`` asks for the opposite of big, ``big<`` for the opposite of small."""
    index = 0 if lang == lex.NB else 1
    left, right = (pair[index] for pair in lex.OPPOSITES[item[:-1]])
    return ((left,), (right,)) if item.endswith(">") else ((right,), (left,))


def translation(lang: str, noun: str) -> tuple[Symbols, Symbols]:
    """(the word in this language, in the other)"""
    word = lex.OBJECTS[noun]
    return ((word.nb,), (word.en,)) if lang == lex.NB else ((word.en,), (word.nb,))


def other(lang: str) -> str:
    return lex.EN if lang == lex.NB else lex.NB


def key(facts: tuple[Fact, ...]) -> str:
    """A story's identity, whatever the order it is told in."""
    return "|".join(sorted(":".join(fact) for fact in facts))
