"""The world's endless lessons as examples: example i is a pure function of i, so a place in them is one number."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from klype.data.order import mix
from klype.data.pools import Example
from klype.text.chat import Chat
from klype.values import Question
from klype.world import Document, Spellings, World

ATTACHED = ".,?!:"


def spell(world: World, chat: Chat) -> Spellings:
    tokenizer = chat.tokenizer
    return Spellings(world.words, tokenizer.encode, tokenizer.end, ATTACHED)


@dataclass(frozen=True)
class Documents:
    """Pre-training documents: plain manners before example ``styled_from``, all manners after.

    Before example ``easy_until`` some stories have two facts at most: all at first, then fewer and fewer.
    ``answer_weight`` is the loss weight of words inside answers: what one wants to learn is rare.
    """

    world: World
    spellings: Spellings
    begin: int
    seed: int
    styled_from: int = 0
    easy_until: int = 0
    answer_weight: float = 5.0

    def __call__(self, index: int) -> Example:
        rng = random.Random(mix(self.seed, index, 11))
        easy = rng.random() * self.easy_until > index
        return self.example(self.world.document(rng, index >= self.styled_from, most_facts=2 if easy else None))

    def example(self, document: Document) -> Example:
        tokens, weights = [self.begin], [0.0]
        for word, inside in zip((*document.words, "</s>"), (*document.answers, False), strict=True):
            spelling = self.spellings.of[word]
            tokens += spelling
            weights += [self.answer_weight if inside else 1.0] * len(spelling)
        return tokens, weights


@dataclass(frozen=True)
class Turns:
    """Fine-tuning: one question and one right answer, in the manners' shares."""

    world: World
    chat: Chat
    seed: int

    def __call__(self, index: int) -> Example:
        rng = random.Random(mix(self.seed, index, 12))
        question = self.world.question(rng)
        manners = self.world.manners
        manner: Literal["bare", "sentence", "polite", "boring"] = rng.choices(list(manners), list(manners.values()))[0]  # type: ignore[assignment]
        answer = self.world.answer(question, manner, rng)
        ids, learnt = self.chat.conversation(messages(question, answer))
        return ids, [float(x) for x in learnt]


@dataclass(frozen=True)
class Questions:
    """Questions of the training side, endless: for ranking and alignment. ``part`` keeps stages apart."""

    world: World
    seed: int
    part: int

    def __call__(self, index: int) -> Question:
        return self.world.question(random.Random(mix(self.seed, index, self.part)))


Asked = Callable[[int], Question]


def messages(question: Question, answer: str | None = None) -> list[dict[str, str]]:
    """What was said before the question (``extra["before"]``: messages), the question, and its answer."""
    said = [*question.extra.get("before", ()), {"role": "user", "content": question.prompt}]
    return said if answer is None else [*said, {"role": "assistant", "content": answer}]
