"""The values that the packages exchange, all immutable. Shapes: B batch, T time, V vocabulary, K listed tokens."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np
import numpy.typing as npt

from klype.samplers import PLAIN
from klype.samplers import Sampling as Sampling

if TYPE_CHECKING:
    import torch

Floats = npt.NDArray[np.floating[Any]]
Ints = npt.NDArray[np.integer[Any]]
Tokens = tuple[int, ...]
StepSource = Literal["prompt", "forced", "drawn", "drafted"]


@dataclass(frozen=True, slots=True)
class Distribution:
    """A next-token distribution, most probable first.

    ``ids`` [K]: the listed tokens; ``logp`` [K]: their log-probabilities in nats; ``rest``: the probability that is not
    listed, which is 0 if the distribution is whole, and more if a server returned only the most probable tokens.
    """

    ids: Ints
    logp: Floats
    rest: float = 0.0

    @property
    def whole(self) -> bool:
        return self.rest == 0.0

    def p(self, token: int) -> float | None:
        """The token's probability; None if it is not listed in a distribution that is not whole."""
        found = np.flatnonzero(self.ids == token)
        if found.size:
            return float(np.exp(self.logp[found[0]]))
        return 0.0 if self.whole else None


@dataclass(frozen=True, slots=True)
class Step:
    """One token of an answer. ``logp``: its log-probability under the model at temperature 1; ``sampling_logprob``:
    under the distribution that it was drawn from; ``source``: where it came from."""

    token: int
    logp: float
    sampling_logprob: float
    source: StepSource
    distribution: Distribution | None = None


class Constraint(Protocol):
    """A restriction of one answer, token by token."""

    def allowed(self) -> npt.NDArray[np.bool_] | None:
        """Which tokens may come next, [V]; None: none, although the answer is incomplete."""

    def accept(self, token: int) -> bool:
        """Appends the next token; returns whether the answer is complete with it."""


@dataclass(frozen=True, slots=True)
class Request:
    """A request for ``n`` answers to one prompt.

    ``limit``: maximum number of tokens per answer. ``stop``: token ids that end an answer, kept as its last step;
    ``stop_texts`` end it at their first occurrence in the decoded text. ``top``: the distribution that is returned with
    every step: 0 none, k the k most probable tokens, -1 whole. ``first_sample``: the number of the first sample, on
    which the noise depends. ``constraint``: makes the constraint of one sample; probabilities are then renormalised
    over the tokens that it allows.
    """

    prompt: tuple[int, ...]
    n: int = 1
    limit: int = 64
    sampling: Sampling = PLAIN
    seed: int = 0
    stop: tuple[int, ...] = ()
    stop_texts: tuple[str, ...] = ()
    top: int = 0
    first_sample: int = 0
    constraint: Callable[[], Constraint] | None = None


@dataclass(frozen=True, slots=True)
class Trace:
    """One answer with everything that a measure needs, so that the model is never asked twice.

    ``ended``: "stop" (a stop token or text, or the constraint), "length" (the limit) or "cancelled". ``model``: path
    and version of the weights. ``passes``: forward passes that this answer took. ``sample``: its number among the
    request's samples, which with ``seed`` determines the noise. ``seconds``: from the request's start to this answer's
    end. ``joules``: energy; None if it was not measured.
    """

    prompt: tuple[int, ...]
    steps: tuple[Step, ...]
    sampling: Sampling
    seed: int
    sample: int
    model: str
    ended: Literal["stop", "length", "cancelled"]
    passes: int
    seconds: float
    joules: float | None = None

    @property
    def tokens(self) -> tuple[int, ...]:
        return tuple(s.token for s in self.steps)

    @property
    def logp(self) -> float:
        return sum(s.logp for s in self.steps)


@dataclass(frozen=True, slots=True)
class Batch:
    """A training batch. ``weights_BT``: the loss weight of each target (0: ignored)."""

    tokens_BT: torch.Tensor
    targets_BT: torch.Tensor
    weights_BT: torch.Tensor
    extra: dict[str, Any] = field(default_factory=dict)

    def to(self, device: torch.device) -> Batch:
        """The batch, with tensors and batches in ``extra``, on ``device``."""
        if self.tokens_BT.device == device:
            return self
        movable = {name: value for name, value in self.extra.items() if callable(getattr(value, "to", None))}
        extra = {**self.extra, **{name: value.to(device) for name, value in movable.items()}}
        return Batch(self.tokens_BT.to(device), self.targets_BT.to(device), self.weights_BT.to(device), extra)


@dataclass(frozen=True, slots=True)
class Loss:
    """A loss as sums over a micro-batch: loss = total / count after all micro-batches and workers; both of shape []."""

    total: torch.Tensor
    count: torch.Tensor
    metrics: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Question:
    """A question. ``answers``: references, any of which is correct; ``extra``: further fields of any kind, of which
    ``before`` holds the messages (role and content) of a system prompt and of earlier turns.
    """

    id: str
    question: str
    context: str = ""
    answers: tuple[str, ...] = ()
    choices: tuple[str, ...] = ()
    extra: dict[str, Any] = field(default_factory=dict)

    @property
    def prompt(self) -> str:
        """The user's message: context, then question."""
        return f"{self.context} {self.question}".strip()

    def messages(self, answer: str | None = None) -> list[dict[str, str]]:
        """The conversation: earlier messages, the question, and its answer if there is one."""
        said = [*self.extra.get("before", ()), {"role": "user", "content": self.prompt}]
        return said if answer is None else [*said, {"role": "assistant", "content": answer}]

    @property
    def transcript(self) -> str:
        """The conversation as one text, for a judge: earlier messages, each with its role, and the question."""
        before = [f"{message['role'].capitalize()}: {message['content']}" for message in self.extra.get("before", ())]
        return "\n\n".join([*before, f"User: {self.prompt}"]) if before else self.prompt


@dataclass(frozen=True, slots=True)
class Verdict:
    """An annotator's verdict on one answer; None: undecided. ``words``: their number, without punctuation;
    ``well_formed``: by form alone; ``score``: higher is better, on the annotator's own scale (a task's ``scores`` gives
    its ends), NaN from a judge that gives no score."""

    right: bool | None
    polite: bool | None
    concise: bool | None
    words: int
    score: float
    well_formed: bool | None = None


@dataclass(frozen=True, slots=True)
class Ranking:
    """A ranking of candidates: ``order`` holds indices into ``candidates``, best first, with ties in one inner tuple.

    ``when``: ISO 8601, in UTC if klype wrote it; empty if unknown.
    """

    question: Question
    candidates: tuple[str, ...]
    order: tuple[tuple[int, ...], ...]
    annotator: str
    when: str = ""


@dataclass(frozen=True, slots=True)
class Figure:
    """An estimate with a 95 % confidence interval, or certain bounds, or the reason why it is missing.

    ``n``: the number of values it was estimated from (answers, pairs or questions, depending on the measure). ``why``:
    the reason why the value, or only its interval, is missing.

    ``judge``: whose judgement it rests on; ``error_rate``: how often that judge errs, without a value where that was
    not measured, None if it cannot err; ``bounds``: of the figure when the judge's errors and undecided answers are
    allowed for (None: unbounded).
    """

    value: float | None
    low: float | None = None
    high: float | None = None
    n: int = 0
    unit: str = ""
    certain: bool = False
    why: str = ""
    judge: str = ""
    error_rate: Figure | None = None
    bounds: tuple[float | None, float | None] | None = None

    @staticmethod
    def of(row: Mapping[str, Any]) -> Figure:
        """The figure whose ``json`` this is; other fields are ignored."""
        found = {one.name: row[one.name] for one in fields(Figure) if one.name in row}
        if "error_rate" in found:
            found["error_rate"] = Figure.of(row["error_rate"])
        if "bounds" in found:
            found["bounds"] = (row["bounds"]["low"], row["bounds"]["high"])
        return Figure(**found)

    def json(self) -> dict[str, Any]:
        out: dict[str, Any]
        if self.value is None or not math.isfinite(self.value):
            out = {"value": None, "why": self.why or "not finite"}
        else:
            out = {"value": self.value, "low": self.low, "high": self.high, "n": self.n, "unit": self.unit}
            out |= {"why": self.why} if self.low is None and self.why else {}
            out |= {"certain": True} if self.certain else {}
            out |= {"judge": self.judge} if self.judge else {}
        if self.error_rate is not None:
            out |= {"judge": self.judge, "error_rate": self.error_rate.json()}
        if self.bounds is not None:
            out["bounds"] = dict(zip(("low", "high"), self.bounds, strict=True))
        return out


class Batches(Protocol):
    """An endless iterator of batches whose position can be saved and restored."""

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch: ...
    def state(self) -> dict[str, Any]: ...
    def restore(self, state: dict[str, Any]) -> None: ...


class NumberedBatches(Batches):
    """Endless batches, each made from its number, which is therefore the whole state."""

    index = 0

    def __next__(self) -> Batch:
        batch = self.batch(self.index)
        self.index += 1
        return batch

    def batch(self, index: int) -> Batch:
        """Batch number ``index``."""
        raise NotImplementedError

    def state(self) -> dict[str, Any]:
        return {"index": self.index}

    def restore(self, state: dict[str, Any]) -> None:
        self.index = state["position"] if "position" in state else state["index"]  # the former in an earlier klype


def end(batches: Batches) -> None:
    """Stops the processes that make the batches, if there are any."""
    close: Callable[[], None] | None = getattr(batches, "close", None)
    if close is not None:
        close()


# Reward function: (questions, answers as text) → one number per answer; higher is better.
Reward = Callable[[Sequence[str], Sequence[str]], Sequence[float] | Floats]


def mean_of_known(values: Sequence[float | None]) -> float | None:
    """The mean of the values that are not None; None if there are none."""
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None
