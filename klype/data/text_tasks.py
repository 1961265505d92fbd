"""Tasks made from a user's own text when there are no instructions: continue it, or fill in a missing word.

Nothing is invented: every answer consists of the text's own words, and the user message says what is asked.
"""

import random
import re
from collections.abc import Iterable
from typing import Literal

from klype.data.readers import TextDocument
from klype.data.rows import Conversation
from klype.errors import KlypeError

Language = Literal["nb", "en"]

_COMMON = {
    "nb": frozenset(
        "og i det som er på til av for en et med har ikke de den å jeg du han hun vi skal kan om var".split()  # noqa: SIM905
    ),
    "en": frozenset(
        "the and of to in is that it for was on are with as his her be at by this have not he you i".split()  # noqa: SIM905
    ),
}
_ASK = {
    ("nb", "continue"): "Fortsett teksten: {text}",
    ("en", "continue"): "Continue the text: {text}",
    ("nb", "cloze"): "Hvilket ord mangler (___)? {text}",
    ("en", "cloze"): "Which word is missing (___)? {text}",
}
_SENTENCE = re.compile(r"\S[^.!?]*(?:[.!?](?!\s)[^.!?]*)*[.!?]+[»”\"')]*(?=\s|$)")
_WORD = re.compile(r"[^\W\d_]{3,}")


def language(text: str, otherwise: Language = "en", lead: int = 1) -> Language:
    """Norwegian Bokmål or English, whichever's most common words (and letters) are at least ``lead`` more in the text;
    else ``otherwise``."""
    words = re.findall(r"[^\W\d_]+", text[:20_000].lower())
    norwegian = sum(w in _COMMON["nb"] for w in words) + sum(any(c in "æøå" for c in w) for w in words)
    english = sum(w in _COMMON["en"] for w in words)
    if abs(norwegian - english) < lead:
        return otherwise
    return "nb" if norwegian > english else "en"


def make_tasks(documents: Iterable[TextDocument], count: int, seed: int = 0) -> list[Conversation]:
    """At most ``count`` tasks, about half continuations and half with a missing word; the same for the same seed.

    Raises KlypeError when the text holds no two sentences or lines.
    """
    pool = [(language(d.text), s) for d in documents if len(s := _sentences(d.text)) >= 2]
    if not pool:
        raise KlypeError("The text holds no two sentences to make tasks from.", "Give instructions, or more text.")
    order, made = random.Random(seed), dict[str, Conversation]()
    weights = [len(sentences) for _, sentences in pool]
    for _ in range(20 * count):
        if len(made) == count:
            break
        lang, sentences = order.choices(pool, weights)[0]
        i = order.randrange(len(sentences) - 1)
        words = list(_WORD.finditer(sentences[i]))
        if order.random() < 0.5 or not words:
            asked, answer = _ASK[lang, "continue"].format(text=sentences[i]), sentences[i + 1]
        else:
            word = order.choice(words)
            gap = f"{sentences[i][: word.start()]}___{sentences[i][word.end() :]}"
            asked, answer = _ASK[lang, "cloze"].format(text=gap), word.group()
        made.setdefault(asked, [{"role": "user", "content": asked}, {"role": "assistant", "content": answer}])
    return list(made.values())


def _sentences(text: str) -> list[str]:
    """Sentences of at most 300 characters; lines when there are fewer than two sentences."""
    found = [" ".join(s.split()) for s in _SENTENCE.findall(text)]
    lines = [" ".join(line.split()) for line in text.splitlines() if line.strip()]
    return [s for s in (found if len(found) >= 2 else lines) if 2 <= len(s) <= 300]
