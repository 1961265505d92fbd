"""Whether an answer about a word is well-formed: an answer that a dictionary could give, true or not.

The rules are few and stated; they read no meaning. A model that has never seen a word cannot know what it means: what
it can show is that it has learnt how one answers.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Set

from klype.runs.dictionary import CLASSES, IDIOM
from klype.values import Question

MOST_WORDS = 30
_TOKEN = re.compile(r"[^\W_]+(?:[-’'.][^\W_]+)*")
_PAIRS = {"(": ")", "[": "]", "«": "»", "“": "”"}


class WellFormed:
    """``known``: every word, in small letters, that an answer may use; compounds of two of them are words too."""

    def __init__(self, known: Set[str], forms: dict[str, Set[str]]) -> None:
        self._known, self._forms = known, forms

    def __call__(self, question: Question, answer: str, finished: bool) -> bool:
        """Finished, of known words, nothing twice in a row, brackets closed; and what its kind of question asks for.

        A meaning has at most MOST_WORDS and is not the word itself; an example uses the word; a class is one.
        """
        text, kind = answer.strip(), question.extra.get("kind")
        said = tokens_of(text)
        if not finished or not said or not (text[0].isalnum() or text[0] in "([«–"):
            return False
        lemma = str(question.extra.get("lemma", "")).lower()
        if kind == "class":
            return text.rstrip(".").lower() in {name for name in CLASSES.values() if name != IDIOM}
        if len(said) > MOST_WORDS or _repeats(said) or not _closed(text):
            return False
        forms = self._forms.get(lemma, frozenset()) | {lemma}
        if not all(token in forms or self.is_word(token) for token in said):
            return False
        if kind == "example":
            return len(said) >= 3 and _uses(said, lemma, forms)
        return " ".join(said) != lemma

    def is_word(self, token: str) -> bool:
        """A known word, a number, or two known words joined (by s, e or a hyphen), each of three letters or more."""
        if token in self._known or token.isdigit():
            return True
        if "-" in token:
            return all(part in self._known or part.isdigit() for part in token.split("-"))
        for cut in range(3, len(token) - 2):
            first, second = token[:cut], token[cut:]
            if second in self._known and (first in self._known or (first[-1] in "se" and first[:-1] in self._known)):
                return True
        return False


def words_of(texts: Iterable[str]) -> set[str]:
    """The words of texts, in small letters."""
    return {token for text in texts for token in tokens_of(text)}


def tokens_of(text: str) -> list[str]:
    """Words without punctuation, in small letters, in their order."""
    return [token.lower() for token in _TOKEN.findall(text)]


def _uses(said: list[str], lemma: str, forms: Set[str]) -> bool:
    """The word in any of its forms; of an idiom at least half of its words."""
    parts = _TOKEN.findall(lemma)
    if len(parts) < 2:
        return any(token in forms for token in said)
    return 2 * sum(part in said for part in parts) >= len(parts)


def _repeats(said: list[str]) -> bool:
    """One, two or three words that come again at once."""
    return any(said[i : i + n] == said[i + n : i + 2 * n] for n in (1, 2, 3) for i in range(len(said) - 2 * n + 1))


def _closed(text: str) -> bool:
    waiting: list[str] = []
    for char in text:
        if char in _PAIRS:
            waiting.append(_PAIRS[char])
        elif char in _PAIRS.values() and (not waiting or waiting.pop() != char):
            return False
    return not waiting
