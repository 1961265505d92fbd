"""Documents that are altered with the model's own words as they are learnt, batch by batch."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from klype.data.order import mix
from klype.experiments.bias.lab import LabelledBatches, Lesson
from klype.experiments.mistakes.course import Course, InOneGo, joined
from klype.experiments.mistakes.own import Labeller
from klype.values import Batch

LEAST = 1e-9
"""Words that are together less likely than this are none."""


class Scheduled(InOneGo):
    """Scheduled sampling (Bengio et al. 2015, arXiv:1506.03099) in two passes (Mihaylova & Martins 2019,
    arXiv:1906.07651): words of a document are replaced by what the model would have said in their place, more and more
    of them; what is to follow stays the document's word, which is why it is biased (Huszár 2015, arXiv:1511.05101)."""

    def __init__(self, course: Course) -> None:
        self._course = course
        self._batches = LabelledBatches(Lesson(course.corpus.train), course.settings.rows, mix(course.seed, 14))
        self._position = 0

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        course, batch = self._course, next(self._batches)
        rate = course.settings.replaced * self._position / course.settings.steps
        self._position += 1
        if rate == 0:
            return batch
        drawing = torch.Generator().manual_seed(mix(course.seed, 16, self._position) % 2**63)
        said_BT = drawn(said(course, batch), drawing)
        tokens_BT = batch.tokens_BT.clone()
        chosen_BT = torch.rand(tokens_BT[:, 1:].shape, generator=drawing) < rate
        tokens_BT[:, 1:] = torch.where(chosen_BT, said_BT[:, :-1], tokens_BT[:, 1:])
        return Batch(tokens_BT, batch.targets_BT, batch.weights_BT)


class Enriched(InOneGo):
    """The documents as they are, and beside them half as many with a word somewhere that the model might say there and
    that cannot follow, as the labeller has it. What should come then is the token that takes back, also ``late``, when
    words of the document stand between. Nobody learns to say the wrong word."""

    def __init__(self, course: Course, labeller: Labeller) -> None:
        self._course, self._impossible = course, labeller.impossible
        half, said = course.settings.rows // 2, labeller.documents()
        train = course.corpus.train
        self._plain = LabelledBatches(Lesson(train), course.settings.rows, mix(course.seed, 14))
        self._broken = LabelledBatches(Lesson(train, said), half, mix(course.seed, 17))
        self._position = 0

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        self._position += 1
        drawing = torch.Generator().manual_seed(mix(self._course.seed, 18, self._position) % 2**63)
        return joined(next(self._plain), broken(self._course, next(self._broken), self._impossible, drawing))


def broken(course: Course, batch: Batch, impossible: float, drawing: torch.Generator) -> Batch:
    """Each row up to some place, a wrong word and the token that takes it back, there and later; whole where nothing
    wrong is likely."""
    q_BTV = said(course, batch)
    wrong_BTV = q_BTV * (batch.extra["soft_BTV"] <= impossible)
    wrong_BTV.scatter_(-1, batch.targets_BT[..., None], 0.0)  # teachers may think it impossible
    wrong_BTV[..., [i for i in range(course.corpus.size) if not course.is_word(i)]] = 0
    tokens_BT, targets_BT, weights_BT = (t.clone() for t in (batch.tokens_BT, batch.targets_BT, batch.weights_BT))
    for row, weight_T in enumerate(batch.weights_BT):
        targets = int(weight_T.sum())
        at = int(torch.randint(max(1, targets - 1), (1,), generator=drawing))
        if targets < 2 or float(wrong_BTV[row, at].sum()) < LEAST:
            continue
        tokens_BT[row, at + 1] = torch.multinomial(wrong_BTV[row, at], 1, generator=drawing)[0]
        until = min(at + 2 + course.settings.late, targets)
        targets_BT[row, at + 1 : until] = course.back
        weights_BT[row, at] = 0
        weights_BT[row, until:] = 0
    return Batch(tokens_BT, targets_BT, weights_BT)


@torch.no_grad()
def said(course: Course, batch: Batch) -> torch.Tensor:
    """The model's next-word distributions, [B, T, V]."""
    course.spent.tokens += int(batch.weights_BT.sum())
    q_BTV: torch.Tensor = course.pupil.model(batch.tokens_BT).softmax(-1)
    return q_BTV


def drawn(p_BTV: torch.Tensor, drawing: torch.Generator) -> torch.Tensor:
    """One word from each distribution, [B, T]."""
    return torch.multinomial(p_BTV.flatten(0, 1), 1, generator=drawing).view(p_BTV.shape[:2])
