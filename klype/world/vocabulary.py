"""Every word that the world can say, by saying everything once: facts, questions and answers of every kind."""

from __future__ import annotations

import random
from collections.abc import Iterable

from klype.world import lexicon as lex
from klype.world import phrases
from klype.world.automaton import END, Call, Choice, Symbols, capital, form, sample
from klype.world.facts import Fact, Lexicon
from klype.world.grammar import Grammar
from klype.world.questions import KINDS, fixed_items


def vocabulary(grammar: Grammar) -> tuple[str, ...]:
    """Sorted. A test reads twenty thousand documents and meets no other word."""
    lexicon, found = grammar.lexicon, set[str]()
    for lang in lex.LANGUAGES:
        for fact in _facts(lexicon):
            if fact[0] in ("loc", "has", "like", "did"):
                found |= _words(phrases.clause(lang, fact), phrases.clause(lang, fact, where=False))
        for name, kind in KINDS.items():
            abouts = fixed_items(name, lexicon) if kind.relation == "fixed" else _about(kind.relation, lexicon)
            for about in abouts:
                found |= _words(kind.ask(lang, about))
                for content in kind.domain(about, (about,), lexicon):
                    found |= _words(kind.bare(lang, about, content), kind.sentence(lang, about, content))
        for saying in lex.PROVERBS[lang]:
            found |= _words(form(saying))
        frames = (*lex.COURTESIES[lang], *lex.LONG_WINDED[lang], lex.SAYING[lang], lex.DEMAND[lang], lex.WENT[lang])
        for frame in (*frames, *(when for _, when in lex.WHEN[lang])):
            found |= _words(form(frame))
        for season in lex.SEASONS:
            found |= _words(form(lex.WEAR[lang][season]))
    rng = random.Random(0)
    for _ in range(600):  # the words of the frames around all this
        words, _ = sample(grammar.document(), rng)
        found |= set(words)
    return tuple(sorted(found - {END}))


def _facts(lexicon: Lexicon) -> Iterable[Fact]:
    """Every word of every relation once, not every combination."""
    one = lexicon.persons[0]
    yield from (("loc", p, lexicon.places[0]) for p in lexicon.persons)
    yield from (("loc", one, v) for v in lexicon.places)
    yield from (("like", one, v) for v in lexicon.animals)
    yield from (("has", one, o, c) for o in lexicon.objects for c in lexicon.colours)
    for act in lexicon.acts:
        agents = [a for a in lexicon.agents if lex.AGENTS[a][0] in lex.ACTS[act][3]]
        yield from (("did", a, act, t, v) for a in agents for t in lex.ACTS[act][4] for v in lexicon.event_places[:2])
    yield from (("walk", place, weather) for place, _, _ in lex.WALKS[lex.NB] for weather in lex.WEATHER_WORDS[lex.NB])


def _about(relation: str, lexicon: Lexicon) -> list[Fact]:
    wanted = {"any": ("loc", "has", "like", "did"), "story": ("loc", "did")}.get(relation, tuple(relation.split()))
    return [fact for fact in _facts(lexicon) if fact[0] in wanted]


def _words(*said: Symbols) -> set[str]:
    """As they are, and with a capital at the start."""
    found: set[str] = set()
    for symbols in said:
        for symbol in (*symbols, *capital(symbols[:1])):
            if isinstance(symbol, Choice):
                found |= {word for _, words in symbol.options for word in words}
            else:
                assert not isinstance(symbol, Call)
                found.add(symbol)
    return found
