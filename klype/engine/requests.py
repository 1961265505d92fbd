"""The state of requests in the engine: checks, the queue, running rows, and records of sampled tokens.

A row is one running sample. Rows and records are plain arrays, so that a step costs a few array operations and no loop;
Python objects are made when an answer has ended.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import zip_longest
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from klype.engine.sampling import check_sampling
from klype.errors import UsageError
from klype.model.cache import Indices
from klype.values import Distribution, Request, Sampling, Step, Trace

Ended = Literal["stop", "length", "cancelled"]
MASK = 0xFFFFFFFFFFFFFFFF
# when there are so many kinds of rows, unused ones are dropped
KINDS = 64
# fields of a step, in their order
RECORD = np.dtype([("token", np.int64), ("logp", np.float64), ("sampling_logprob", np.float64)])
# offset: tokens of the prompt; count: tokens sampled; line: in Records; constraint: None where all tokens are allowed
ROW = np.dtype(
    [
        *(("job", object), ("sample", np.int64), ("seed", np.uint64), ("offset", np.int64), ("count", np.int64)),
        *(("max_new_tokens", np.int64), ("kind", np.int64), ("line", np.int64), ("constraint", object)),
    ]
)


def check_request(request: Request, window: int, vocab_size: int) -> None:
    """Raise UsageError for a request that a model of this window and vocabulary cannot answer."""
    check_prompt(request.prompt, window, vocab_size)
    if request.limit < 1:
        raise UsageError(f"limit is {request.limit}: an answer needs at least one token.")
    if request.n < 1:
        raise UsageError(f"n is {request.n}: ask for at least one answer.")
    if request.top < -1:
        raise UsageError(f"top is {request.top}: it must be -1 (whole), 0 (none) or more.")
    if request.first_sample < 0:
        raise UsageError(f"first_sample is {request.first_sample}: samples are numbered from 0.")
    if any(not 0 <= token < vocab_size for token in request.stop):
        raise UsageError(f"A stop token is not one of the model's {vocab_size} tokens.")
    if any(not isinstance(text, str) or not text for text in request.stop_texts):
        raise UsageError("A stop text must be a string that is not empty.")
    check_sampling(request.sampling, vocab_size)


def check_prompt(prompt: Sequence[int], window: int, vocab_size: int) -> None:
    if not prompt:
        raise UsageError("The prompt is empty: give at least one token (a begin token will do).")
    if len(prompt) > window:
        raise UsageError(f"The prompt has {len(prompt)} tokens, more than the model's window of {window}.")
    if min(prompt) < 0 or max(prompt) >= vocab_size:
        wrong = next(token for token in prompt if not 0 <= token < vocab_size)
        raise UsageError(f"The prompt contains token {wrong}; the model knows 0 to {vocab_size - 1}.")


def check_answer(prompt: Sequence[int], answer: Sequence[int], window: int, vocab_size: int) -> None:
    if len(prompt) + len(answer) > window + 1:
        raise UsageError(
            f"Prompt and answer have {len(prompt) + len(answer)} tokens, more than the model's window of {window}."
        )
    if answer and not 0 <= min(answer) <= max(answer) < vocab_size:
        wrong = next(token for token in answer if not 0 <= token < vocab_size)
        raise UsageError(f"The answer contains token {wrong}; the model knows 0 to {vocab_size - 1}.")


class RowKind(NamedTuple):
    """How a row is sampled and ended. Rows of one kind share the calls that do so."""

    sampling: Sampling
    stop: tuple[int, ...]
    stop_texts: tuple[str, ...]
    top: int


@dataclass(eq=False)
class QueuedRequest:
    """A request in the queue or running, with the traces of its samples that have ended."""

    id: int
    request: Request
    max_new_tokens: int  # of the request, or what the window leaves
    waiting: int  # samples not started
    read: Any = None  # the prompt's CachedPrompt, once its runner has read it
    started: float = 0.0
    traces: list[Trace] = field(default_factory=list)


class Records:
    """Sampled tokens and their log-probabilities: ``steps`` [lines, positions], one line per running row, reused."""

    def __init__(self) -> None:
        self.steps = np.zeros((0, 32), RECORD)
        self.distributions: dict[int, list[Distribution]] = {}
        self.texts: dict[int, bytearray] = {}
        self._free: list[int] = []

    def open(self, count: int) -> list[int]:
        """Free lines for so many new answers."""
        missing = count - len(self._free)
        if missing > 0:
            used = len(self.steps)
            # by half at least, lest all records be copied for every single answer
            grown = max(missing, used // 2)
            self._free.extend(range(used + grown - 1, used - 1, -1))
            self._grow(grown, 0)
        return [self._free.pop() for _ in range(count)]

    def close(self, line: int) -> None:
        self.distributions.pop(line, None)
        self.texts.pop(line, None)
        self._free.append(line)

    def write(self, lines: Indices, at: Indices, tokens: Indices, logp: npt.NDArray[np.float64]) -> None:
        """Record a token for each line. ``logp`` [2, R]: under the model, and under the sampling distribution."""
        positions, last = self.steps.shape[1], int(at.max(initial=0))
        if last >= positions:
            self._grow(0, max(positions, last + 1 - positions))
        for name, values in zip(RECORD.names or (), (tokens, *logp), strict=True):
            self.steps[name][lines, at] = values

    def read(self, line: int, count: int) -> tuple[Step, ...]:
        # column by column, which is twice as fast as record by record
        columns = [self.steps[name][line, :count].tolist() for name in RECORD.names or ()]
        listed = self.distributions.get(line, [])
        return tuple(Step(t, p, d, "drawn", q) for t, p, d, q in zip_longest(*columns, listed))

    def _grow(self, lines: int, positions: int) -> None:
        old = self.steps
        self.steps = np.zeros((old.shape[0] + lines, old.shape[1] + positions), RECORD)
        self.steps[: old.shape[0], : old.shape[1]] = old


class Rows:
    """The running rows as a table; its column ``kind`` is an index into ``kinds``."""

    def __init__(self) -> None:
        self.table = np.zeros(0, ROW)
        self.kinds: list[RowKind] = []

    def __len__(self) -> int:
        return len(self.table)

    def __getitem__(self, column: str) -> npt.NDArray[Any]:
        return self.table[column]

    def append(self, job: QueuedRequest, lines: Sequence[int]) -> None:
        """Add the job's next samples, one for each of these lines of the records."""
        request = job.request
        kind = RowKind(request.sampling, request.stop, request.stop_texts, request.top)
        if kind not in self.kinds:
            if len(self.kinds) >= KINDS:
                used, self.table["kind"] = np.unique(self.table["kind"], return_inverse=True)
                self.kinds = [self.kinds[old] for old in used]
            self.kinds.append(kind)
        fixed = len(request.prompt), 0, job.max_new_tokens, self.kinds.index(kind)
        first = request.first_sample + request.n - job.waiting
        new = [
            (job, sample, request.seed & MASK, *fixed, line, request.constraint and request.constraint())
            for sample, line in enumerate(lines, first)
        ]
        self.table = np.concatenate((self.table, np.array(new, ROW)))
        job.waiting -= len(lines)

    def by_kind(self) -> list[tuple[RowKind, Indices]]:
        """The kinds of the running rows, each with the indices of its rows."""
        kinds = self.table["kind"]
        return [(self.kinds[kind], np.flatnonzero(kinds == kind)) for kind in np.unique(kinds)]
