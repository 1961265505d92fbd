"""The values that travel between the rooms. Frozen; shapes: B batch, T time, V vocabulary, K listed tokens."""

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

    ``ids`` [K] are the listed tokens, ``logp`` [K] their log-probabilities in nats; ``rest`` is the probability mass
    not listed: 0 when the distribution is whole, more when only the most probable were returned (a *partial*
    distribution).
    """

    ids: Ints
    logp: Floats
    rest: float = 0.0

    @property
    def whole(self) -> bool:
        return self.rest == 0.0

    def p(self, token: int) -> float | None:
        """The token's probability; None when it is not listed and some mass is unlisted."""
        found = np.flatnonzero(self.ids == token)
        if found.size:
            return float(np.exp(self.logp[found[0]]))
        return 0.0 if self.whole else None


@dataclass(frozen=True, slots=True)
class Step:
    """One token of an answer. ``logp`` under the model at temperature 1, ``sampling_logprob`` under what it was drawn
    from; ``source``: where the token came from."""

    token: int
    logp: float
    sampling_logprob: float
    source: StepSource
    distribution: Distribution | None = None


class Constraint(Protocol):
    """What one answer may say, token by token."""

    def allowed(self) -> npt.NDArray[np.bool_] | None:
        """Which tokens may come next, [V]; None: nothing may, though the answer is not complete."""

    def accept(self, token: int) -> bool:
        """Takes the next token; returns whether the answer is complete with it."""


@dataclass(frozen=True, slots=True)
class Request:
    """``n`` answers to one prompt. ``stop`` are token ids that end an answer and are kept as its last step.

    ``limit``: tokens of an answer at most. ``stop_texts`` end it at their first appearance in the
    decoded text. ``top`` asks for the distribution of every step: 0 none, k the k most probable, -1 whole.
    ``first_sample``: the number of the first sample (noise depends on it). ``constraint`` makes what restricts a
    sample: all probabilities are then those over the tokens that are allowed.
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
    """One answer: everything a measure needs, so that the model is never asked twice.

    ``ended`` is "stop" (a stop token or text, or a constraint's end), "length" (the limit) or "cancelled". ``model``
    names the weights (path and version). ``passes`` counts forward passes of the model that this answer needed.
    ``sample``: its number among the request's samples, which with ``seed`` gives the noise. ``seconds``: from the
    request's start to this answer's end. ``joules``: energy; None where it was not measured.
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
    """Tokens to learn from. ``weights_BT`` is the loss weight of each target (0: not learnt)."""

    tokens_BT: torch.Tensor
    targets_BT: torch.Tensor
    weights_BT: torch.Tensor
    extra: dict[str, Any] = field(default_factory=dict)

    def to(self, device: torch.device) -> Batch:
        """The batch, and batches in ``extra``, on ``device``; batches are made on the CPU."""
        if self.tokens_BT.device == device:
            return self
        movable = {name: value for name, value in self.extra.items() if callable(getattr(value, "to", None))}
        extra = {**self.extra, **{name: value.to(device) for name, value in movable.items()}}
        return Batch(self.tokens_BT.to(device), self.targets_BT.to(device), self.weights_BT.to(device), extra)


@dataclass(frozen=True, slots=True)
class Loss:
    """Sums, divided once after all micro-batches and workers: loss = total / count, both scalar tensors (shape [])."""

    total: torch.Tensor
    count: torch.Tensor
    metrics: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Question:
    """A question to be answered. ``answers`` are references (any is right); ``extra`` is for the asker's own use,
    except ``before``: the messages (role and content) of a system prompt and of earlier turns.
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
        """What was said before the question, the question, and its answer."""
        said = [*self.extra.get("before", ()), {"role": "user", "content": self.prompt}]
        return said if answer is None else [*said, {"role": "assistant", "content": answer}]

    @property
    def transcript(self) -> str:
        """The user's message as a judge reads it: after all earlier messages, each with its role."""
        before = [f"{message['role'].capitalize()}: {message['content']}" for message in self.extra.get("before", ())]
        return "\n\n".join([*before, f"User: {self.prompt}"]) if before else self.prompt


@dataclass(frozen=True, slots=True)
class Verdict:
    """What an annotator thinks of one answer; None: cannot decide. ``words`` counts no punctuation; ``well_formed``: by
    rules of form alone. ``score``: points, higher is better; how many there can be is up to the annotator (a task's
    ``scores`` gives least and most); NaN from a judge that only rules."""

    right: bool | None
    polite: bool | None
    concise: bool | None
    words: int
    score: float
    well_formed: bool | None = None


@dataclass(frozen=True, slots=True)
class Ranking:
    """An order over candidates, best first; candidates in one inner tuple are tied. Indices into ``candidates``.

    ``when``: ISO 8601, klype's own in UTC; empty where it is unknown.
    """

    question: Question
    candidates: tuple[str, ...]
    order: tuple[tuple[int, ...], ...]
    annotator: str
    when: str = ""


@dataclass(frozen=True, slots=True)
class Figure:
    """An estimate with a 95 % confidence interval, or certain bounds, or the reason why it is missing.

    ``n`` counts the values that it was estimated from (answers, pairs or questions, as the measure has it; a question
    may have several). ``why``: the reason why the value, or only its interval, is missing.

    ``judge`` says whose judgement it rests on, ``error_rate`` how often that errs (without a value where it was not
    measured; None where it cannot err), and ``bounds`` between what the figure lies when the judge's errors and what it
    left undecided are allowed for (None: without an end).
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
        """From its ``json``; what else stands there is left out."""
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
    """An endless iterator of batches that can say where it is and be put back there."""

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
        self.index = state["index"]


def end(batches: Batches) -> None:
    """Stops the workers that make the batches, if there are any."""
    close: Callable[[], None] | None = getattr(batches, "close", None)
    if close is not None:
        close()


# Reward function: (questions, answers as text) → one number per answer; higher is better.
Reward = Callable[[Sequence[str], Sequence[str]], Sequence[float] | Floats]


def mean_of_known(values: Sequence[float | None]) -> float | None:
    """The mean of the values that are not None; None where there are none."""
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None
