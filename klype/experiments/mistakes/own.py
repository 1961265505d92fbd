"""A model's own texts, and who says what should have followed in them: the truth, or teachers.

Half of the texts are as the model writes them; in the others an error is forced, as the feedback experiment does it,
and the model goes on from there. A text begins as a document does, with a few words of one.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from typing import Protocol

import torch

from klype.data.order import mix
from klype.examine.feedback import Asked, FeedbackSettings, shocks
from klype.examine.truth import Reader
from klype.experiments.bias.corpus import Ids
from klype.experiments.bias.lab import LabelledBatches, Lesson, Mixture, Soft
from klype.experiments.bias.targets import average, rows, true
from klype.experiments.mistakes.course import Course, InOneGo, joined, up_to_slips
from klype.sources.source import answers
from klype.values import Batch, Request

OPENING = 8
"""Words of a document that a text of one's own begins with, at most."""
PLACES = 8
"""An error is forced at one of so many first words of one's own."""
UNLIKELY = 1e-3
"""What teachers hold for less probable than this they hold for impossible."""


class Labeller(Protocol):
    """Who says what follows. ``impossible``: what is no more probable than this cannot."""

    impossible: float

    def documents(self) -> Soft:
        """At every position of the documents to learn from."""
        ...

    def reader(self, prompt: Ids) -> Reader:
        """What can follow on the prompt."""
        ...

    def label(self, texts: Sequence[Ids]) -> tuple[list[Ids], torch.Tensor]:
        """The texts (or their beginnings), and what should follow at all of their positions, [N, V] in half
        precision."""
        ...


class ByTruth:
    """p itself, exact also after mistakes."""

    impossible = 0.0

    def __init__(self, course: Course) -> None:
        self._course = course

    def documents(self) -> Soft:
        assert self._course.corpus.truth is not None, "only the world knows its truth"
        return true(self._course.corpus.truth, self._course.corpus.size)

    def reader(self, prompt: Ids) -> Reader:
        return self._course.reader(prompt)

    def label(self, texts: Sequence[Ids]) -> tuple[list[Ids], torch.Tensor]:
        kept, found = list[Ids](), list[Mapping[int, float]]()
        for text in texts:
            reader = self.reader(text[:1])
            if read := up_to_slips(reader, text[1:]):
                kept.append((*text[:1], *read))
                found += [reader.next(read[:t]) for t in range(len(read))]
        table_NV = torch.zeros(len(found), self._course.corpus.size, dtype=torch.half)
        for row_V, p in zip(table_NV, found, strict=True):
            row_V[list(p)] = torch.tensor(list(p.values()), dtype=torch.half)
        return kept, table_NV


class ByTeachers:
    """The mean of what several models say that were trained as the pupil was: no truth is needed."""

    impossible = UNLIKELY

    def __init__(self, course: Course) -> None:
        self._course = course
        self._models = [one.model for one in course.teachers()]
        self._reads = sum(one.reads for one in course.teachers())
        course.spent.teachers += sum(one.flops for one in course.teachers())

    def documents(self) -> Soft:
        return rows(self._said(self._course.corpus.train))

    def reader(self, prompt: Ids) -> Reader:
        mixture = Mixture(self._models)
        return Reader(lambda: Held(mixture, prompt))

    def label(self, texts: Sequence[Ids]) -> tuple[list[Ids], torch.Tensor]:
        return list(texts), self._said(texts)

    def _said(self, texts: Sequence[Ids]) -> torch.Tensor:
        self._course.spent.teachers += self._reads * sum(len(text) - 1 for text in texts)
        return average(self._models, texts)


class Held:
    """What a model holds for possible: a truth as far as it goes. A shallow copy is a snapshot."""

    def __init__(self, model: torch.nn.Module, text: Ids) -> None:
        self._model, self._text = model, text

    @torch.no_grad()
    def next(self) -> dict[int, float]:
        p_V = self._model(torch.tensor([self._text]))[0, -1].softmax(-1)
        ids = (p_V >= min(UNLIKELY, float(p_V.max()))).nonzero()[:, 0]
        return dict(zip(ids.tolist(), p_V[ids].tolist(), strict=True))

    def push(self, token: int) -> float:
        p = self.next().get(token, 0.0)
        self._text = (*self._text, token)
        return p


def own_texts(course: Course, labeller: Labeller, round_: int) -> list[Ids]:
    """``settings.own`` texts that the model writes at temperature 1, fewer where no error could be forced."""
    rng = random.Random(mix(course.seed, 11, round_))
    begun = [document[: rng.randint(1, min(OPENING, len(document) - 1))]
             for document in rng.choices(course.corpus.train, k=course.settings.own)]  # fmt: skip
    half = len(begun) // 2
    asked = [Asked(f"{round_} {i}", begun[i], labeller.reader(begun[i])) for i in range(half, len(begun))]
    settings = FeedbackSettings(positions=PLACES, seed=mix(course.seed, 12, round_) % 2**31)
    forced, _ = shocks(course.pupil, asked, settings, course.is_word)
    by_name = {one.question: one.prompt for one in asked}
    erring = [(*by_name[shock.question], *shock.before, shock.tokens[0]) for shock in forced]
    course.spent.tokens += sum(map(len, erring))
    return gone_on(course, [*begun[:half], *erring], mix(course.seed, 13, round_) % 2**31)


def gone_on(course: Course, prompts: Sequence[Ids], seed: int) -> list[Ids]:
    """Each prompt with what the model writes after it, no longer than the longest document."""
    end = course.corpus.end
    requests = [
        Request(prompt, limit=max(1, course.longest - len(prompt)), seed=seed + i, stop=(end,))
        for i, prompt in enumerate(prompts)
    ]
    texts = [(*trace.prompt, *trace.tokens) for (trace,) in answers(course.pupil, requests)]
    course.spent.tokens += sum(map(len, texts))
    return texts


class Rounds(InOneGo):
    """Half documents, half the model's own texts, all labelled; own ones are added round by round (DAgger: Ross,
    Gordon & Bagnell 2011, arXiv:1011.0686)."""

    def __init__(self, course: Course, labeller: Labeller) -> None:
        self._course, self._labeller = course, labeller
        half = course.settings.rows // 2
        lesson = Lesson(course.corpus.train, labeller.documents())
        self._documents = LabelledBatches(lesson, course.settings.rows - half, mix(course.seed, 14))
        self._own: LabelledBatches | None = None
        self._texts: list[Ids] = []
        self._tables: list[torch.Tensor] = []
        self._position = 0

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        settings = self._course.settings
        round_, again = divmod(self._position, -(-settings.steps // settings.rounds))
        self._position += 1
        if not again:
            self._begin(round_)
        assert self._own is not None
        return joined(next(self._documents), next(self._own))

    def _begin(self, round_: int) -> None:
        self._course.pupil.refresh()
        texts, table_NV = self._labeller.label(own_texts(self._course, self._labeller, round_))
        self._texts += texts
        self._tables.append(table_NV)
        lesson = Lesson(tuple(self._texts), rows(torch.cat(self._tables)))
        self._own = LabelledBatches(lesson, self._course.settings.rows // 2, mix(self._course.seed, 15, round_))
