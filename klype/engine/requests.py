"""Requests on their way through the engine: checked, queued, running as rows, and what was drawn for them.

A row is one running sample. Rows and records are plain arrays, so that a step costs a few array operations and no loop;
Python objects are made when an answer has ended.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from klype.engine.runner import ReadPrompt
from klype.engine.sampling import check_sampling
from klype.errors import UsageError
from klype.values import Distribution, Request, Sampling, Step, StepSource, Trace

Indices = npt.NDArray[np.int64]
Ended = Literal["stop", "length", "cancelled"]
MASK = 0xFFFFFFFFFFFFFFFF
# with more distinct samplings than this, the unused ones are dropped
KINDS = 64


def check_request(request: Request, window: int, vocab_size: int, decodes: bool) -> None:
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
    if request.stop_texts and not decodes:
        raise UsageError("Stop texts need a tokenizer, and this engine was made without one.")
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


@dataclass(eq=False)
class QueuedRequest:
    """A request on its way: which samples are still to be started and which are done."""

    id: int
    request: Request
    max_new_tokens: int  # what was asked for, or what the window leaves
    waiting: int  # samples not started
    read: ReadPrompt | None = None
    started: float = 0.0
    traces: list[Trace] = field(default_factory=list)

    @property
    def next_sample(self) -> int:
        return self.request.first_sample + self.request.n - self.waiting

    def prompt(self) -> ReadPrompt:
        assert self.read is not None, "the prompt has been read before its samples join"
        return self.read


class Records:
    """Tokens and their log-probabilities, [lines, positions]; lines are reused."""

    def __init__(self) -> None:
        self.tokens: npt.NDArray[np.int64] = np.zeros((0, 32), np.int64)
        self.logp: npt.NDArray[np.float64] = np.zeros((0, 32))
        self.sampling_logprob: npt.NDArray[np.float64] = np.zeros((0, 32))
        self.distributions: dict[int, list[Distribution]] = {}
        self.texts: dict[int, bytearray] = {}
        self._free: list[int] = []

    def open(self, count: int) -> Indices:
        """Lines for so many new answers."""
        missing = count - len(self._free)
        if missing > 0:
            used = len(self.tokens)
            # by half at least: one answer more at a time would copy all records each time
            grown = max(missing, used // 2)
            self._free.extend(range(used + grown - 1, used - 1, -1))
            self._grow(grown, 0)
        return np.array([self._free.pop() for _ in range(count)], np.int64)

    def close(self, line: int) -> None:
        self.distributions.pop(line, None)
        self.texts.pop(line, None)
        self._free.append(line)

    def write(self, lines: Indices, at: Indices, tokens: Indices, logp: npt.NDArray[np.float64]) -> None:
        """``logp`` [2, R]: under the model, and under what was drawn from."""
        last = int(at.max(initial=0))
        if last >= self.tokens.shape[1]:
            self._grow(0, max(self.tokens.shape[1], last + 1 - self.tokens.shape[1]))
        self.tokens[lines, at] = tokens
        self.logp[lines, at] = logp[0]
        self.sampling_logprob[lines, at] = logp[1]

    def last(self, line: int, count: int) -> Step:
        """The newest of ``count`` steps."""
        at = count - 1
        listed = self.distributions.get(line)
        token, logp, drawn = self.tokens[line, at], self.logp[line, at], self.sampling_logprob[line, at]
        return Step(int(token), float(logp), float(drawn), "drawn", listed[at] if listed else None)

    def steps(self, line: int, count: int) -> tuple[Step, ...]:
        tokens, logp = self.tokens[line, :count].tolist(), self.logp[line, :count].tolist()
        drawn = self.sampling_logprob[line, :count].tolist()
        listed: Sequence[Distribution | None] = self.distributions.get(line) or [None] * count
        source: StepSource = "drawn"
        return tuple(Step(t, p, d, source, q) for t, p, d, q in zip(tokens, logp, drawn, listed, strict=True))

    def _grow(self, lines: int, positions: int) -> None:
        more = ((0, lines), (0, positions))
        self.tokens = np.pad(self.tokens, more)
        self.logp = np.pad(self.logp, more)
        self.sampling_logprob = np.pad(self.sampling_logprob, more)


@dataclass
class Rows:
    """``offsets`` are prompt lengths, ``counts`` tokens drawn, ``max_new_tokens`` tokens at most.

    ``which`` indexes ``samplings``; ``lines`` are lines of the records; ``stop`` [R, S] holds stop tokens, -1 where a
    row has fewer; ``special`` rows want distributions or have stop texts; ``constraints``: None where all is allowed.
    """

    jobs: npt.NDArray[np.object_]
    samples: Indices
    seeds: npt.NDArray[np.uint64]
    offsets: Indices
    counts: Indices
    max_new_tokens: Indices
    which: Indices
    lines: Indices
    special: npt.NDArray[np.bool_]
    stop: Indices
    constraints: npt.NDArray[np.object_]
    samplings: list[Sampling]

    @staticmethod
    def none() -> Rows:
        def empty() -> Indices:
            return np.zeros(0, np.int64)

        jobs, seeds, special = np.empty(0, object), np.zeros(0, np.uint64), np.zeros(0, bool)
        stop, free = np.zeros((0, 1), np.int64), np.empty(0, object)
        return Rows(jobs, empty(), seeds, empty(), empty(), empty(), empty(), empty(), special, stop, free, [])

    def __len__(self) -> int:
        return len(self.jobs)

    def append(self, job: QueuedRequest, lines: Indices) -> None:
        """Add the job's next samples, one for each line of the records."""
        request, count = job.request, len(lines)
        if request.sampling not in self.samplings:
            if len(self.samplings) >= KINDS:
                used, self.which = np.unique(self.which, return_inverse=True)
                self.samplings = [self.samplings[kind] for kind in used]
            self.samplings.append(request.sampling)
        jobs = np.empty(count, object)
        jobs[:] = job
        constraints = np.empty(count, object)
        if request.constraint is not None:
            constraints[:] = [request.constraint() for _ in range(count)]
        stop = np.full((count, max(self.stop.shape[1], len(request.stop))), -1, np.int64)
        stop[:, : len(request.stop)] = request.stop
        more = stop.shape[1] - self.stop.shape[1]
        new: dict[str, npt.NDArray[Any]] = {
            "jobs": jobs,
            "samples": job.next_sample + np.arange(count),
            "seeds": np.full(count, request.seed & MASK, np.uint64),
            "offsets": np.full(count, len(request.prompt)),
            "counts": np.zeros(count, np.int64),
            "max_new_tokens": np.full(count, job.max_new_tokens),
            "which": np.full(count, self.samplings.index(request.sampling)),
            "lines": lines,
            "special": np.full(count, bool(request.top or request.stop_texts)),
            "stop": stop,
            "constraints": constraints,
        }
        self.stop = np.pad(self.stop, ((0, 0), (0, more)), constant_values=-1)
        for name, value in new.items():
            setattr(self, name, np.concatenate((getattr(self, name), value)))
        job.waiting -= count

    def take(self, order: Indices) -> None:
        """Only these rows stay, in this order."""
        for entry in fields(self):
            if entry.name != "samplings":
                setattr(self, entry.name, getattr(self, entry.name)[order])
