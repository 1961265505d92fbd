"""Training methods, one row each: a new method is one function and one row.

A row is a function (context) → training. ``knows`` says what the method must be told beside documents: nothing, what
teachers say, which words the language allows, or the true probabilities.
"""

from __future__ import annotations

import copy
import itertools
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

import numpy as np
import torch

from klype.data.seeds import mix
from klype.examine.interventions import Asked, FeedbackSettings, interventions
from klype.examine.truth import Reader
from klype.experiments.corpus import Ids
from klype.experiments.mistakes.context import Training, TrainingContext, joined, up_to_slips
from klype.experiments.training import LabelledBatches, Mixture, Soft, TrainingSet, average, rows, true
from klype.sources.source import answers
from klype.train import rewards
from klype.train.objectives import Objective, cross_entropy, reverse_divergence, soft_cross_entropy, with_rehearsal
from klype.train.policy import PolicySettings, grpo
from klype.train.rollout import RolloutBatches, RolloutSettings
from klype.values import Batch, Floats, Request

# what a student learns from: half of its own texts are as it writes them, in the others an error is forced, and it goes
# on from there; a text begins as a document does, with a few words of one


# most words of a document that the model's own text starts from
OPENING = 8
# an error is forced at one of this many first words of the model's own text
PLACES = 8
LEAST = 1e-9  # words that are together less likely than this are none
# words that the teachers give less than this count as impossible
UNLIKELY = 1e-3


class TruthLabels:
    """p itself, exact also after mistakes. ``impossible``: what is no more probable than this cannot follow."""

    impossible = 0.0

    def __init__(self, context: TrainingContext) -> None:
        self._course = context

    def documents(self) -> Soft:
        """What follows at every position of the documents to learn from."""
        assert self._course.corpus.truth is not None, "only the world knows its truth"
        return true(self._course.corpus.truth, self._course.corpus.size)

    def reader(self, prompt: Ids) -> Reader:
        """What can follow on the prompt."""
        return self._course.reader(prompt)

    def label(self, texts: Sequence[Ids]) -> tuple[list[Ids], torch.Tensor]:
        """The texts (or their beginnings), and what should follow at all of their positions, [N, V] in half
        precision."""
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


class TeacherLabels:
    """The mean of what several models say that were trained as the student was: no truth is needed."""

    impossible = UNLIKELY

    def __init__(self, context: TrainingContext) -> None:
        self._course = context
        self._models = [one.model for one in context.teachers()]
        self._reads = sum(one.reads for one in context.teachers())
        context.spent.teachers += sum(one.flops for one in context.teachers())

    def documents(self) -> Soft:
        return rows(self._said(self._course.corpus.train))

    def reader(self, prompt: Ids) -> Reader:
        mixture = Mixture(self._models)
        return Reader(lambda: ModelTruth(mixture, prompt))

    def label(self, texts: Sequence[Ids]) -> tuple[list[Ids], torch.Tensor]:
        return list(texts), self._said(texts)

    def _said(self, texts: Sequence[Ids]) -> torch.Tensor:
        self._course.spent.teachers += self._reads * sum(len(text) - 1 for text in texts)
        return average(self._models, texts)


# what says what should follow a text
Labeller = TruthLabels | TeacherLabels


class ModelTruth:
    """The words that a model considers possible, in the shape of a truth. A shallow copy is a snapshot."""

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


def own_texts(context: TrainingContext, labeller: Labeller, round_: int) -> list[Ids]:
    """``settings.own`` texts that the model writes at temperature 1, fewer where no error could be forced."""
    rng = random.Random(mix(context.seed, 11, round_))
    begun = [document[: rng.randint(1, min(OPENING, len(document) - 1))]
             for document in rng.choices(context.corpus.train, k=context.settings.own)]  # fmt: skip
    half = len(begun) // 2
    asked = [Asked(f"{round_} {i}", begun[i], labeller.reader(begun[i])) for i in range(half, len(begun))]
    settings = FeedbackSettings(positions=PLACES, seed=mix(context.seed, 12, round_) % 2**31)
    forced = interventions(context.student, asked, settings, context.is_word)
    by_name = {one.question: one.prompt for one in asked}
    erring = [
        (*by_name[intervention.question], *intervention.before, intervention.tokens[0]) for intervention in forced
    ]
    context.spent.tokens += sum(map(len, erring))
    return gone_on(context, [*begun[:half], *erring], mix(context.seed, 13, round_) % 2**31)


def gone_on(context: TrainingContext, prompts: Sequence[Ids], seed: int) -> list[Ids]:
    """Each prompt with what the model writes after it, no longer than the longest document."""
    end = context.corpus.end
    requests = [
        Request(prompt, limit=max(1, context.longest - len(prompt)), seed=seed + i, stop=(end,))
        for i, prompt in enumerate(prompts)
    ]
    texts = [(*trace.prompt, *trace.tokens) for (trace,) in answers(context.student, requests)]
    context.spent.tokens += sum(map(len, texts))
    return texts


def rounds(context: TrainingContext, labeller: Labeller) -> Iterator[Batch]:
    """Half documents, half the student's own texts, all labelled; own ones are added round by round (DAgger: Ross,
    Gordon & Bagnell 2011, arXiv:1011.0686)."""
    settings = context.settings
    half = settings.rows // 2
    data = TrainingSet(context.corpus.train, labeller.documents())
    documents = LabelledBatches(data, settings.rows - half, mix(context.seed, 14))
    texts, tables = list[Ids](), list[torch.Tensor]()
    for round_ in itertools.count():
        context.student.refresh()
        more, table_NV = labeller.label(own_texts(context, labeller, round_))
        texts += more
        tables.append(table_NV)
        data = TrainingSet(tuple(texts), rows(torch.cat(tables)))
        own = LabelledBatches(data, half, mix(context.seed, 15, round_))
        for _ in range(-(-settings.steps // settings.rounds)):
            yield joined(next(documents), next(own))


# documents, altered as they are learnt


def scheduled(context: TrainingContext) -> Iterator[Batch]:
    """Scheduled sampling (Bengio et al. 2015, arXiv:1506.03099) in two passes (Mihaylova & Martins 2019,
    arXiv:1906.07651): words of a document are replaced by what the student would have said in their place, more and
    more of them; what is to follow stays the document's word, which is why it is biased (Huszár 2015,
    arXiv:1511.05101)."""
    batches = LabelledBatches(TrainingSet(context.corpus.train), context.settings.rows, mix(context.seed, 14))
    for position, batch in enumerate(batches):
        rate = context.settings.replaced * position / context.settings.steps
        if rate == 0:
            yield batch
            continue
        drawing = torch.Generator().manual_seed(mix(context.seed, 16, position + 1) % 2**63)
        said_BT = drawn(said(context, batch), drawing)
        tokens_BT = batch.tokens_BT.clone()
        chosen_BT = torch.rand(tokens_BT[:, 1:].shape, generator=drawing) < rate
        tokens_BT[:, 1:] = torch.where(chosen_BT, said_BT[:, :-1], tokens_BT[:, 1:])
        yield Batch(tokens_BT, batch.targets_BT, batch.weights_BT)


def enriched(context: TrainingContext, labeller: Labeller) -> Iterator[Batch]:
    """The documents as they are, and beside them half as many with a word somewhere that the student might say there
    and that cannot follow, as the labeller has it. What should come then is the token that takes back, also ``late``,
    when words of the document stand between. Nobody learns to say the wrong word."""
    train, half = context.corpus.train, context.settings.rows // 2
    plain = LabelledBatches(TrainingSet(train), context.settings.rows, mix(context.seed, 14))
    labelled = LabelledBatches(TrainingSet(train, labeller.documents()), half, mix(context.seed, 17))
    for position in itertools.count(1):
        drawing = torch.Generator().manual_seed(mix(context.seed, 18, position) % 2**63)
        yield joined(next(plain), broken(context, next(labelled), labeller.impossible, drawing))


def broken(context: TrainingContext, batch: Batch, impossible: float, drawing: torch.Generator) -> Batch:
    """Each row up to some place, a wrong word and the token that takes it back, there and later; whole where nothing
    wrong is likely."""
    q_BTV = said(context, batch)
    wrong_BTV = q_BTV * (batch.extra["soft_BTV"] <= impossible)
    wrong_BTV.scatter_(-1, batch.targets_BT[..., None], 0.0)  # teachers may think it impossible
    wrong_BTV[..., [i for i in range(context.corpus.size) if not context.is_word(i)]] = 0
    tokens_BT, targets_BT, weights_BT = (t.clone() for t in (batch.tokens_BT, batch.targets_BT, batch.weights_BT))
    for row, weight_T in enumerate(batch.weights_BT):
        targets = int(weight_T.sum())
        at = int(torch.randint(max(1, targets - 1), (1,), generator=drawing))
        if targets < 2 or float(wrong_BTV[row, at].sum()) < LEAST:
            continue
        tokens_BT[row, at + 1] = torch.multinomial(wrong_BTV[row, at], 1, generator=drawing)[0]
        until = min(at + 2 + context.settings.late, targets)
        targets_BT[row, at + 1 : until] = context.back
        weights_BT[row, at] = 0
        weights_BT[row, until:] = 0
    return Batch(tokens_BT, targets_BT, weights_BT)


@torch.no_grad()
def said(context: TrainingContext, batch: Batch) -> torch.Tensor:
    """The model's next-word distributions, [B, T, V]."""
    context.spent.tokens += int(batch.weights_BT.sum())
    q_BTV: torch.Tensor = context.student.model(batch.tokens_BT).softmax(-1)
    return q_BTV


def drawn(p_BTV: torch.Tensor, drawing: torch.Generator) -> torch.Tensor:
    """One word from each distribution, [B, T]."""
    return torch.multinomial(p_BTV.flatten(0, 1), 1, generator=drawing).view(p_BTV.shape[:2])


# the methods


Kind = Literal["control", "baseline", "beside", "cure"]
Knows = Literal["nothing", "teachers", "language", "truth"]
# answers per beginning that are compared with each other; words of each
GROUP, WORDS = 8, 12


@dataclass(frozen=True, slots=True)
class Method:
    """``kind``: the control, a known baseline, beside (a cure's labels on documents alone: what own texts add shows
    against it), or a cure. ``times`` the steps; ``back``: the model learns to take words back; ``own``: it learns
    from texts of its own that the truth must be told of."""

    name: str
    make: Callable[[TrainingContext], Training]
    kind: Kind = "cure"
    knows: Knows = "nothing"
    times: int = 1
    back: bool = False
    own: bool = False

    @property
    def needs_truth(self) -> bool:
        return self.knows not in ("nothing", "teachers")


# the rows


def documents(context: TrainingContext) -> Training:
    """The documents again, one-hot."""
    return Training(_documents(context, TrainingSet(context.corpus.train)), cross_entropy)


def scheduled_sampling(context: TrainingContext) -> Training:
    """Words of the documents replaced by the model's own; one-hot."""
    return Training(scheduled(context), cross_entropy)


def labelled(context: TrainingContext, by: Callable[[TrainingContext], Labeller]) -> Training:
    """The documents with whole distributions: what labels do without own texts."""
    return Training(_documents(context, TrainingSet(context.corpus.train, by(context).documents())), soft_cross_entropy)


def own(context: TrainingContext, by: Callable[[TrainingContext], Labeller], objective: Objective) -> Training:
    """Documents and own texts with whole distributions."""
    return Training(rounds(context, by(context)), objective)


def backspace(context: TrainingContext, by: Callable[[TrainingContext], Labeller]) -> Training:
    """Documents, and some with a wrong word of the model's own and the token that takes it back; one-hot."""
    return Training(enriched(context, by(context)), cross_entropy)


def outcome(context: TrainingContext) -> Training:
    """Continuations rewarded when the language allows every word of them (a policy gradient), and documents beside."""
    settings = RolloutSettings(
        answers=GROUP, limit=WORDS, unfinished=0.0, seed=mix(context.seed, 19) % 2**20, stop=(context.corpus.end,)
    )
    half = max(GROUP, context.settings.rows // 2)
    plain = LabelledBatches(
        TrainingSet(context.corpus.train), context.settings.rows - half or half, mix(context.seed, 14)
    )
    train, readers = context.corpus.train, dict[Ids, Reader]()

    def ask(step: int) -> Sequence[rewards.QuestionPrompt]:
        chosen = [mix(context.seed, 20, step, k) for k in range(half // GROUP)]
        found = [train[number % len(train)] for number in chosen]
        return [rewards.QuestionPrompt(d[: 1 + n // 7 % (len(d) - 1)]) for d, n in zip(found, chosen, strict=True)]

    def reward(asked: Sequence[rewards.QuestionPrompt], said: Sequence[Sequence[int]]) -> Floats:
        readers.clear()
        context.spent.tokens += 2 * sum(len(a.prompt) + len(t) for a, t in zip(asked, said, strict=True))
        out = []
        for one, tokens in zip(asked, said, strict=True):
            if one.prompt not in readers:
                readers[one.prompt] = context.reader(one.prompt)
            out.append(float(readers[one.prompt].first_error(tuple(tokens)) is None))
        return np.array(out)

    def rehearsal(step: int) -> Batch:
        return next(plain)

    reference = copy.deepcopy(context.student.model).eval()
    objective = with_rehearsal(partial(grpo, settings=PolicySettings()), cross_entropy, 1.0)
    return Training(
        RolloutBatches(settings, ask, context.student.engine, reward, reference, rehearsal), objective, rate=0.2
    )


METHODS = (
    Method("documents", documents, "control"),
    Method("longer", documents, "control", times=2),
    Method("scheduled-sampling", scheduled_sampling, "baseline"),
    Method("truth", partial(labelled, by=TruthLabels), "beside", "truth"),
    Method("own-truth", partial(own, by=TruthLabels, objective=soft_cross_entropy), knows="truth", own=True),
    Method("teachers", partial(labelled, by=TeacherLabels), "beside", "teachers"),
    Method("own-teachers", partial(own, by=TeacherLabels, objective=soft_cross_entropy), knows="teachers"),
    Method("own-teachers-reverse", partial(own, by=TeacherLabels, objective=reverse_divergence), knows="teachers"),
    Method("backspace", partial(backspace, by=TruthLabels), knows="language", back=True),
    Method("backspace-teachers", partial(backspace, by=TeacherLabels), knows="teachers", back=True),
    Method("outcome", outcome, knows="language", own=True),
)
CONTROL = "documents"
# the model before any method, which all of them start from
BEFORE = "before"


def method(name: str) -> Method:
    """The row of this name, which is there."""
    return next(row for row in METHODS if row.name == name)


def knows(name: str) -> Knows:
    """What the method of this name must be told; a model before any method: nothing."""
    return next((row.knows for row in METHODS if row.name == name), "nothing")


def _documents(context: TrainingContext, data: TrainingSet) -> LabelledBatches:
    return LabelledBatches(data, context.settings.rows, mix(context.seed, 14))
