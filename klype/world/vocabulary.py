"""Every word that the world can say, how it is spelled in tokens, and the truth over tokens.

The words' distribution is pushed through a trie of their spellings, exactly.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Sequence

from klype.world import lexicon as lex
from klype.world import phrases
from klype.world.automaton import END, Filter, RuleCall, Symbols, WordChoice, capital, form, sample
from klype.world.grammar import Grammar
from klype.world.lexicon import Lexicon
from klype.world.phrases import Fact
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
            if isinstance(symbol, WordChoice):
                found |= {word for _, words in symbol.options for word in words}
            else:
                assert not isinstance(symbol, RuleCall)
                found.add(symbol)
    return found


Spelling = tuple[int, ...]


class Spellings:
    """How each word of the world is spelled in tokens, the end of a text included.

    ``encode`` is a tokenizer's; a word is spelled with the space before it, and punctuation without.
    """

    def __init__(self, words: Sequence[str], encode: Callable[[str], list[int]], end: int, attached: str) -> None:
        self.of: dict[str, Spelling] = {word: tuple(encode(word if word in attached else f" {word}")) for word in words}
        self.of[END] = (end,)
        self._first = {spelling[0] for spelling in self.of.values()}

    def starts_word(self, token: int) -> bool:
        return token in self._first


class TokenFilter:
    """The exact next-token distribution after tokens. Laws: sums to one; a word's tokens multiply to its p.

    A token that no word of the language has here makes the word it stands in a slip, until the next word begins.
    """

    def __init__(self, words: Filter, spellings: Spellings) -> None:
        self._spellings = spellings
        # Readings: a filter at a word's border, and the tokens read since. More than one only while the spelling of
        # one word begins another's.
        self._readings: list[tuple[float, Filter, Spelling]] = [(1.0, words, ())]
        self._lost = False
        self._next: dict[int, float] | None = None

    def next(self) -> dict[int, float]:
        """{token: probability}, summing to one."""
        if self._next is None:
            out: dict[int, float] = {}
            total = 0.0
            for weight, words, read in self._readings:
                for word, p in words.next().items():
                    spelling = self._spellings.of[word]
                    if len(spelling) > len(read) and spelling[: len(read)] == read:
                        out[spelling[len(read)]] = out.get(spelling[len(read)], 0.0) + weight * p
                        total += weight * p
            self._next = {token: p / total for token, p in out.items()}
        return self._next

    def push(self, token: int) -> float:
        """Read a token; its probability before (0: a slip)."""
        if self._lost and not self._spellings.starts_word(token):
            return 0.0
        p = self.next().get(token, 0.0)
        self._next = None
        if p == 0.0:
            likeliest = max(self._readings, key=lambda reading: reading[0])[1].copy()
            likeliest.push("\N{REPLACEMENT CHARACTER}")
            self._readings, self._lost = [(1.0, likeliest, ())], True
            return 0.0
        self._lost = False
        readings: list[tuple[float, Filter, Spelling]] = []
        for weight, words, before in self._readings:
            read = (*before, token)
            continued = False
            for word, q in words.next().items():
                spelling = self._spellings.of[word]
                if spelling == read:
                    after = words.copy()
                    after.push(word)
                    readings.append((weight * q, after, ()))
                elif spelling[: len(read)] == read:
                    continued = True
            if continued:
                readings.append((weight, words, read))
        self._readings = readings
        return p
