"""The vocabulary of the demo language, its tokenization, and the exact next-token distribution.

The distribution over words is mapped exactly to one over the tokens of their spellings.
"""

import random
from collections.abc import Callable, Iterable, Sequence
from copy import copy

from klype.world.automaton import END, Filter, RuleCall, WordChoice, capital, form, sample
from klype.world.grammar import Grammar
from klype.world.lexicon import KINDS, LANGUAGES, WORDS, Fact, Lexicon, clause, items_of, phrase


def vocabulary(grammar: Grammar) -> tuple[str, ...]:
    """All words of the grammar, sorted. A test finds no other word in twenty thousand documents."""
    lexicon, said = grammar.lexicon, set[str]()
    facts = list(_facts(lexicon))
    for lang in LANGUAGES:
        said |= {clause(lang, fact) for fact in facts if fact[0] in WORDS["clauses"]}
        for name, kind in KINDS.items():
            wanted = {"any": list(WORDS["clauses"]), "story": ["loc", "did"]}.get(kind.relation, kind.relation.split())
            fixed = kind.relation == "fixed"
            for about in items_of(name, lexicon) if fixed else (fact for fact in facts if fact[0] in wanted):
                said.add(kind.ask(lang, about))
                for content in kind.domain(about, (about,), lexicon):
                    said |= {kind.bare(lang, about, content), kind.sentence(lang, about, content)}
        said |= {text for table in ("proverbs", "courtesies", "long_winded", "when") for text in WORDS[table][lang]}
        said |= {phrase(lang, "frames", part) for part in ("saying", "demand", "went")}
        said |= {phrase(lang, "wear", season) for season in WORDS["seasons"]}
    found: set[str] = set()
    for text in said:
        symbols = form(text)
        for symbol in (*symbols, *capital(symbols[:1])):  # the first word may begin a sentence
            if isinstance(symbol, WordChoice):
                found |= {word for _, words in symbol.options for word in words}
            else:
                assert not isinstance(symbol, RuleCall)
                found.add(symbol)
    rng = random.Random(0)
    for _ in range(600):  # the remaining words, of frames around the phrases
        found |= set(sample(grammar.document(), rng)[0])
    return tuple(sorted(found - {END}))


def _facts(lexicon: Lexicon) -> Iterable[Fact]:
    """Facts with every word of every relation, but not every combination."""
    one = lexicon.persons[0]
    yield from (("loc", p, lexicon.places[0]) for p in lexicon.persons)
    yield from (("loc", one, v) for v in lexicon.places)
    yield from (("like", one, v) for v in lexicon.animals)
    yield from (("has", one, o, c) for o in lexicon.objects for c in lexicon.colours)
    for act in lexicon.acts:
        agents = [a for a in lexicon.agents if WORDS["agents"][a]["kind"] in WORDS["doers"][act]]
        things, places = WORDS["objects_of"][act], lexicon.event_places[:2]
        yield from (("did", a, act, t, v) for a in agents for t in things for v in places)
    yield from (("walk", place, weather) for place in WORDS["walks"] for weather in WORDS["weather"])


Spelling = tuple[int, ...]
ATTACHED = frozenset(".,?!:")  # written without a space before them


class Spellings:
    """The tokens of each word, including END. ``encode``: a tokenizer's; words are encoded with a leading space,
    punctuation without."""

    def __init__(self, words: Sequence[str], encode: Callable[[str], list[int]], end: int) -> None:
        spaced = {word: word if word in ATTACHED else f" {word}" for word in words}
        self.of: dict[str, Spelling] = {word: tuple(encode(text)) for word, text in spaced.items()} | {END: (end,)}
        self.first = {spelling[0] for spelling in self.of.values()}  # tokens that begin a word


class TokenFilter:
    """The exact next-token distribution after tokens: the probabilities of a word's tokens multiply to that of the
    word.

    A token that cannot follow makes its word a slip, which lasts until the next word begins.
    """

    def __init__(self, words: Filter, spellings: Spellings) -> None:
        self._spellings = spellings
        # (weight, filter at the last word boundary, tokens since); more than one only while the spelling of one word is
        # a prefix of another's
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
        """Appends a token and returns its probability (0: a slip)."""
        if self._lost and token not in self._spellings.first:
            return 0.0
        p = self.next().get(token, 0.0)
        self._next = None
        if p == 0.0:
            likeliest = copy(max(self._readings, key=lambda reading: reading[0])[1])
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
                    after = copy(words)
                    after.push(word)
                    readings.append((weight * q, after, ()))
                elif spelling[: len(read)] == read:
                    continued = True
            if continued:
                readings.append((weight, words, read))
        self._readings = readings
        return p
