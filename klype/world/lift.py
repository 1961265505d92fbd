"""The truth over tokens: the words' distribution pushed through a trie of their spellings, exactly."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from klype.world.automaton import END, Filter

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
                for spelling, p in self._possible(words, read):
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
            self._slip()
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

    def _possible(self, words: Filter, read: Spelling) -> list[tuple[Spelling, float]]:
        return [
            (spelling, p)
            for word, p in words.next().items()
            if len(spelling := self._spellings.of[word]) > len(read) and spelling[: len(read)] == read
        ]

    def _slip(self) -> None:
        words = max(self._readings, key=lambda reading: reading[0])[1].copy()
        words.push("\N{REPLACEMENT CHARACTER}")
        self._readings, self._lost = [(1.0, words, ())], True
