"""Training methods of ``klype mistakes``: a new method is one function and one row of ``METHODS``.

A method makes batches from a ``TrainingContext``: the pre-trained student, its documents, the truth and the teachers.
``knows`` is what it needs besides documents: nothing, teachers' distributions, which words the language allows, or the
true probabilities.
"""

import copy
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import count
from typing import Literal

import numpy as np
import torch
from pydantic import Field
from torch.nn.utils.rnn import pad_sequence

from klype.data.batches import WithRehearsal
from klype.data.seeds import mix
from klype.engine.engine import Engine
from klype.examine.interventions import FeedbackSettings, Query, interventions
from klype.examine.truth import Reader, Truth
from klype.experiments import training
from klype.experiments.corpus import Corpus, sparse_truth
from klype.experiments.framework import Arm, by_name
from klype.experiments.training import LabelledBatches, LabSettings, Mixture, Soft, TrainedModel, TrainingSet
from klype.model.transformer import Transformer
from klype.sources.source import EngineSource, Message, answers
from klype.train import rewards
from klype.train.objectives import Objective, cross_entropy, reverse_divergence, soft_cross_entropy, with_rehearsal
from klype.train.policy import PolicySettings, grpo
from klype.train.rollout import RolloutBatches, RolloutSettings
from klype.values import Batch, Floats, Request, Tokens

# the backspace token: the last of every model's vocabulary, and in no document
BACK = "⌫"

# wrong words up to which texts are read: each makes the truth about ten times as expensive to compute
SLIPS = 2


class MistakesSettings(LabSettings):
    """Settings of the first training, and of the methods: ``steps`` of ``rows`` texts with ``again`` times the learning
    rates.

    Methods that learn from the model's own texts draw ``own`` of them at the beginning of each of ``rounds``, from the
    model as it is then, and keep those of earlier rounds (DAgger). ``replaced``: share of words that scheduled sampling
    replaces at its end. ``late``: how many words later a wrong word is still to be taken back.
    """

    rows: int = 32
    epochs: int = 8
    teachers: int = Field(default=3, ge=1)
    steps: int = Field(default=200, ge=1)
    rounds: int = Field(default=5, ge=1)
    own: int = Field(default=96, ge=2)
    again: float = Field(default=0.5, gt=0)
    replaced: float = Field(default=0.25, ge=0, le=1)
    late: int = Field(default=1, ge=0)


@dataclass(frozen=True, slots=True)
class WordCodec:
    """A codec that only decodes: a student is given tokens, never text."""

    vocabulary: Sequence[str]
    stop: tuple[int, ...]

    def encode(self, text: str) -> list[int]:
        raise NotImplementedError

    def prompt(self, messages: Sequence[Message]) -> list[int]:
        raise NotImplementedError

    def decode(self, ids: Sequence[int]) -> str:
        return " ".join(self.vocabulary[i] for i in ids if i not in self.stop)


class Student(EngineSource):
    """A source whose model is being trained: it answers with the model's current weights. ``back``: backspace."""

    def __init__(self, model: Transformer, corpus: Corpus) -> None:
        super().__init__(Engine(model), WordCodec(corpus.vocabulary, (corpus.end,)))
        self.model, self.back, self._version = model, corpus.size - 1, 0
        self._controls = corpus.train[0][0], corpus.end, self.back

    def is_word(self, token: int) -> bool:
        """Whether a token is a word: not the begin or end of a text, and not backspace."""
        return token not in self._controls

    def refresh(self) -> None:
        """Drops what was computed with earlier weights."""
        self._version += 1
        self.engine.refresh(self._version)


@dataclass(slots=True)
class TrainingContext:
    """What a method works with.

    ``initial_truth``: returns the truth at the beginning of a document, or None where it is not known. ``teachers``:
    trains them when first called. Counted besides the training: ``tokens`` that went through the model once (drawn or
    read), and the FLOPs of teachers.
    """

    corpus: Corpus
    settings: MistakesSettings
    seed: int
    student: Student
    initial_truth: Callable[[], Truth | None]
    teachers: Callable[[], list[TrainedModel]]
    tokens: int = 0
    teacher_flops: float = 0.0


def reader(initial_truth: Callable[[], Truth | None], prompt: Tokens) -> Reader:
    """The truth after a prompt, whose first token is the one that begins a document."""
    truth = initial_truth()
    assert truth is not None, "only the world knows its truth"
    for token in prompt[1:]:
        truth.push(token)
    return Reader(lambda: truth)


def up_to_slips(reader: Reader, text: Tokens) -> Tokens:
    """The text before its wrong word number SLIPS + 1, so that the truth can be computed at all of its positions."""
    slips = 0
    for t, token in enumerate(text):
        slips += token not in reader.next(text[:t])
        if slips > SLIPS:
            return text[:t]
    return text


def concat_batches(a: Batch, b: Batch) -> Batch:
    """The rows of both, padded to the longer."""

    def both(one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        return pad_sequence([*one, *other], batch_first=True)

    extra = {name: both(tensor, b.extra[name]) for name, tensor in a.extra.items()}
    tokens_BT, targets_BT = both(a.tokens_BT, b.tokens_BT), both(a.targets_BT, b.targets_BT)
    return Batch(tokens_BT, targets_BT, both(a.weights_BT, b.weights_BT), extra)


# A student's own texts continue the first words of documents. Half of them are as it writes them; in the others an
# error is forced, and the student continues after it.

OPENING = 8  # maximum number of words of a document that an own text continues
PLACES = 8  # an error is forced at one of this many first words of an own text
MIN_MASS = 1e-9  # wrong words whose total probability is less than this are ignored
UNLIKELY = 1e-3  # words to which teachers give less than this count as impossible


class TruthLabels:
    """Labels texts with the true distribution, which is exact also after mistakes. ``impossible``: words with at most
    this probability cannot follow."""

    impossible = 0.0

    def __init__(self, context: TrainingContext) -> None:
        self._context = context

    def documents(self) -> Soft:
        """The labels at every position of the training documents."""
        assert self._context.corpus.truth is not None, "only the world knows its truth"
        return training.true(self._context.corpus.truth, self._context.corpus.size)

    def reader(self, prompt: Tokens) -> Reader:
        """What can follow the prompt."""
        return reader(self._context.initial_truth, prompt)

    def label(self, texts: Sequence[Tokens]) -> tuple[list[Tokens], torch.Tensor]:
        """The texts, or as much of each as can be labelled, and the labels at all of their positions, [N, V] in half
        precision."""
        kept, found = list[Tokens](), list[Mapping[int, float]]()
        for text in texts:
            reader = self.reader(text[:1])
            if read := up_to_slips(reader, text[1:]):
                kept.append((*text[:1], *read))
                found += [reader.next(read[:t]) for t in range(len(read))]
        return kept, torch.from_numpy(sparse_truth(found, self._context.corpus.size).toarray()).half()


class TeacherLabels:
    """Labels texts with the mean distribution of several models that were trained as the student was: the truth is not
    needed."""

    impossible = UNLIKELY

    def __init__(self, context: TrainingContext) -> None:
        self._context = context
        self._models = [one.model for one in context.teachers()]
        self._reads = sum(one.reads for one in context.teachers())
        context.teacher_flops += sum(one.flops for one in context.teachers())

    def documents(self) -> Soft:
        return training.rows(self._next_word_distributions(self._context.corpus.train))

    def reader(self, prompt: Tokens) -> Reader:
        mixture = Mixture(self._models)
        return Reader(lambda: ModelTruth(mixture, prompt))

    def label(self, texts: Sequence[Tokens]) -> tuple[list[Tokens], torch.Tensor]:
        return list(texts), self._next_word_distributions(texts)

    def _next_word_distributions(self, texts: Sequence[Tokens]) -> torch.Tensor:
        self._context.teacher_flops += self._reads * sum(len(text) - 1 for text in texts)
        return training.average(self._models, texts)


Labeller = TruthLabels | TeacherLabels


class ModelTruth:
    """A model's distribution over the words that it considers possible, with the interface of a ``Truth``. A shallow
    copy is a snapshot."""

    def __init__(self, model: torch.nn.Module, text: Tokens) -> None:
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


def own_texts(context: TrainingContext, labeller: Labeller, round_: int) -> list[Tokens]:
    """``settings.own`` texts that the model writes at temperature 1, fewer if an error could not be forced in some."""
    rng = random.Random(mix(context.seed, 11, round_))
    begun = [document[: rng.randint(1, min(OPENING, len(document) - 1))]
             for document in rng.choices(context.corpus.train, k=context.settings.own)]  # fmt: skip
    half = len(begun) // 2
    asked = [Query(f"{round_} {i}", begun[i], labeller.reader(begun[i])) for i in range(half, len(begun))]
    settings = FeedbackSettings(positions=PLACES, seed=mix(context.seed, 12, round_) % 2**31)
    forced = interventions(context.student, asked, settings, context.student.is_word)
    by_name = {one.question: one.prompt for one in asked}
    erring = [(*by_name[one.question], *one.before, one.tokens[0]) for one in forced]
    # the model continues each of them, no longer than the longest document
    longest, seed = max(map(len, context.corpus.train)), mix(context.seed, 13, round_) % 2**31
    requests = [
        Request(prompt, limit=max(1, longest - len(prompt)), seed=seed + i, stop=(context.corpus.end,))
        for i, prompt in enumerate([*begun[:half], *erring])
    ]
    texts = [(*trace.prompt, *trace.tokens) for (trace,) in answers(context.student, requests)]
    context.tokens += sum(map(len, [*erring, *texts]))
    return texts


def rounds(context: TrainingContext, labeller: Labeller) -> Iterator[Batch]:
    """Batches of documents and the student's own texts, half of each, all labelled; own texts are added round by round
    (DAgger: Ross, Gordon & Bagnell 2011, arXiv:1011.0686)."""
    settings = context.settings
    half = settings.rows // 2
    plain = documents(context, labeller, settings.rows - half)
    texts, tables = list[Tokens](), list[torch.Tensor]()
    for round_ in count():
        context.student.refresh()
        more, table_NV = labeller.label(own_texts(context, labeller, round_))
        texts += more
        tables.append(table_NV)
        data = TrainingSet(tuple(texts), training.rows(torch.cat(tables)))
        own = LabelledBatches(data, half, mix(context.seed, 15, round_))
        for _ in range(-(-settings.steps // settings.rounds)):
            yield concat_batches(next(plain), next(own))


def documents(context: TrainingContext, labeller: Labeller | None = None, rows: int = 0) -> LabelledBatches:
    """Batches of the training documents, with one-hot targets or a labeller's distributions."""
    data = TrainingSet(context.corpus.train, None if labeller is None else labeller.documents())
    return LabelledBatches(data, rows or context.settings.rows, mix(context.seed, 14))


def scheduled_sampling(context: TrainingContext) -> Iterator[Batch]:
    """Scheduled sampling (Bengio et al. 2015, arXiv:1506.03099) in two passes (Mihaylova & Martins 2019,
    arXiv:1906.07651): an increasing share of a document's words is replaced by samples from the student. The targets
    remain the document's words, which is why the method is biased (Huszár 2015, arXiv:1511.05101)."""
    for position, batch in enumerate(documents(context)):
        rate = context.settings.replaced * position / context.settings.steps
        if rate == 0:
            yield batch
            continue
        drawing = torch.Generator().manual_seed(mix(context.seed, 16, position + 1) % 2**63)
        q_BTV = next_word_distributions(context, batch)
        said_BT = torch.multinomial(q_BTV.flatten(0, 1), 1, generator=drawing).view(q_BTV.shape[:2])
        tokens_BT = batch.tokens_BT.clone()
        chosen_BT = torch.rand(tokens_BT[:, 1:].shape, generator=drawing) < rate
        tokens_BT[:, 1:] = torch.where(chosen_BT, said_BT[:, :-1], tokens_BT[:, 1:])
        yield Batch(tokens_BT, batch.targets_BT, batch.weights_BT)


def with_backspaces(context: TrainingContext, labeller: Labeller) -> Iterator[Batch]:
    """The documents, and half as many with one word replaced by a word that the student might say there but that cannot
    follow, according to the labeller. The target after it is backspace, also up to ``late`` words later. The wrong word
    itself is never a target."""
    plain, data = documents(context), TrainingSet(context.corpus.train, labeller.documents())
    labelled = LabelledBatches(data, context.settings.rows // 2, mix(context.seed, 17))
    for position in count(1):
        drawing = torch.Generator().manual_seed(mix(context.seed, 18, position) % 2**63)
        yield concat_batches(next(plain), with_wrong_words(context, next(labelled), labeller.impossible, drawing))


def with_wrong_words(context: TrainingContext, batch: Batch, impossible: float, drawing: torch.Generator) -> Batch:
    """The batch with a wrong word at a random position of each row and backspace as the target after it; rows in which
    no wrong word is likely are unchanged."""
    q_BTV = next_word_distributions(context, batch)
    wrong_BTV = q_BTV * (batch.extra["soft_BTV"] <= impossible)
    wrong_BTV.scatter_(-1, batch.targets_BT[..., None], 0.0)  # teachers may consider the document's word impossible
    wrong_BTV[..., [i for i in range(context.corpus.size) if not context.student.is_word(i)]] = 0
    tokens_BT, targets_BT, weights_BT = (t.clone() for t in (batch.tokens_BT, batch.targets_BT, batch.weights_BT))
    for row, weight_T in enumerate(batch.weights_BT):
        targets = int(weight_T.sum())
        at = int(torch.randint(max(1, targets - 1), (1,), generator=drawing))
        if targets < 2 or float(wrong_BTV[row, at].sum()) < MIN_MASS:
            continue
        tokens_BT[row, at + 1] = torch.multinomial(wrong_BTV[row, at], 1, generator=drawing)[0]
        until = min(at + 2 + context.settings.late, targets)
        targets_BT[row, at + 1 : until] = context.student.back
        weights_BT[row, at] = 0
        weights_BT[row, until:] = 0
    return Batch(tokens_BT, targets_BT, weights_BT)


@torch.no_grad()
def next_word_distributions(context: TrainingContext, batch: Batch) -> torch.Tensor:
    """The model's next-word distributions, [B, T, V]."""
    context.tokens += int(batch.weights_BT.sum())
    q_BTV: torch.Tensor = context.student.model(batch.tokens_BT).softmax(-1)
    return q_BTV


GROUP, WORDS = 8, 12  # continuations of a prompt that are compared with each other; words of each


def outcome(context: TrainingContext) -> Iterator[Batch]:
    """Policy gradient: continuations are rewarded if the language allows every word of them; documents are rehearsed
    beside them."""
    settings = RolloutSettings(
        answers=GROUP, limit=WORDS, unfinished=0.0, seed=mix(context.seed, 19) % 2**20, stop=(context.corpus.end,)
    )
    train, half = context.corpus.train, max(GROUP, context.settings.rows // 2)
    plain = documents(context, rows=context.settings.rows - half or half)

    def ask(step: int) -> Sequence[rewards.QuestionPrompt]:
        chosen = [mix(context.seed, 20, step, k) for k in range(half // GROUP)]
        found = [train[number % len(train)] for number in chosen]
        return [rewards.QuestionPrompt(d[: 1 + n // 7 % (len(d) - 1)]) for d, n in zip(found, chosen, strict=True)]

    def reward(asked: Sequence[rewards.QuestionPrompt], said: Sequence[Sequence[int]]) -> Floats:
        context.tokens += 2 * sum(len(a.prompt) + len(t) for a, t in zip(asked, said, strict=True))
        readers = {prompt: reader(context.initial_truth, prompt) for prompt in {one.prompt for one in asked}}
        errors = [readers[a.prompt].first_error(tuple(t)) for a, t in zip(asked, said, strict=True)]
        return np.array([float(error is None) for error in errors])

    reference = copy.deepcopy(context.student.model).eval()
    batches = RolloutBatches(settings, ask, context.student.engine, reward, reference)
    return WithRehearsal(batches, lambda step: next(plain))


Knows = Literal["nothing", "teachers", "language", "truth"]


@dataclass(frozen=True)
class Method(Arm):
    """A way to continue training. ``make(context)``, or ``make(context, labeller)``, returns its batches.

    Arms of kind "beside" use a cure's labels on documents alone, which shows what own texts add. ``by``: the labeller.
    ``times``: factor on the number of steps; ``rate``: factor on the learning rates. ``back``: the model learns
    backspace. ``own``: it learns from its own texts, of which the truth must be computed.
    """

    knows: Knows = "nothing"
    by: type[Labeller] | None = None
    objective: Objective = cross_entropy
    times: int = 1
    rate: float = 1.0
    back: bool = False
    own: bool = False

    @property
    def needs_truth(self) -> bool:
        return self.knows not in ("nothing", "teachers")

    def batches(self, context: TrainingContext) -> Iterator[Batch]:
        """The method's batches."""
        made: Iterator[Batch] = self.make(context, *([] if self.by is None else [self.by(context)]))
        return made


REWARDED = with_rehearsal(partial(grpo, settings=PolicySettings()), cross_entropy, 1.0)
METHODS = by_name(
    Method("documents", documents, "control"),
    Method("longer", documents, "control", times=2),
    Method("scheduled-sampling", scheduled_sampling, "baseline"),
    Method("truth", documents, "beside", "truth", TruthLabels, soft_cross_entropy),
    Method("own-truth", rounds, "cure", "truth", TruthLabels, soft_cross_entropy, own=True),
    Method("teachers", documents, "beside", "teachers", TeacherLabels, soft_cross_entropy),
    Method("own-teachers", rounds, "cure", "teachers", TeacherLabels, soft_cross_entropy),
    Method("own-teachers-reverse", rounds, "cure", "teachers", TeacherLabels, reverse_divergence),
    Method("backspace", with_backspaces, "cure", "language", TruthLabels, back=True),
    Method("backspace-teachers", with_backspaces, "cure", "teachers", TeacherLabels, back=True),
    Method("outcome", outcome, "cure", "language", objective=REWARDED, rate=0.2, own=True),
)
CONTROL = "documents"
# the model before any method, from which all of them start
BEFORE = "before"
