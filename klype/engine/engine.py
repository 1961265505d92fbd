"""The engine under chat, rollouts, examination and server. Shapes: R running rows, V vocabulary.

Every step reads: schedule (who joins), run (one pass of the model), postprocess (draw, record, end). A row is one
sample of a request; rows join a running batch and leave it at once. What is computed, and how, is a runner's business.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from klype.device import threads_for
from klype.engine.prefix_cache import PrefixCache
from klype.engine.requests import Ended, QueuedRequest, Records, Rows, check_answer, check_prompt, check_request
from klype.engine.runner import AnyRunner, NativeRunner, batches, score
from klype.engine.sampling import count_tokens, distributions, noise, sample
from klype.errors import KlypeError, UsageError
from klype.model.transformer import Transformer
from klype.samplers import needs_counts
from klype.values import Distribution, Request, Step, Trace


@dataclass(frozen=True, slots=True)
class Event:
    """One token of one sample; ``trace`` is the whole answer when this token ended it."""

    request: int
    sample: int
    step: Step
    trace: Trace | None


@dataclass(frozen=True, slots=True)
class StepResult:
    """What one step did: the row's job, sample and token, and the traces of rows that ended (by row)."""

    jobs: npt.NDArray[np.object_]
    samples: npt.NDArray[np.int64]
    lines: npt.NDArray[np.int64]
    counts: npt.NDArray[np.int64]
    ended: dict[int, Trace]


class Engine:
    """Generates with one model. ``decode_bytes`` (token to bytes) is needed for stop texts only."""

    def __init__(
        self,
        model: Transformer | AnyRunner,
        *,
        decode_bytes: Callable[[int], bytes] | None = None,
        name: str = "",
        max_batch: int = 256,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        assert max_batch > 0
        self.runner: AnyRunner = NativeRunner(model) if isinstance(model, Transformer) else model
        self.decode_bytes = decode_bytes
        self.name = name
        self.max_batch = max_batch
        self.clock = clock
        self.version: int | str = 0
        self._fingerprint = self.runner.weights.changes()
        self._next_id = 0
        self._queue: deque[QueuedRequest] = deque()
        self._records = Records()
        self._clear_rows()

    @property
    def native(self) -> NativeRunner:
        """The runner of klype's own Transformer; UsageError where another computes."""
        if not isinstance(self.runner, NativeRunner):
            raise UsageError(
                f"{self.name or 'The model'} is not computed by klype itself, which this needs.",
                "Give a checkpoint folder of klype's own, Llama's, Mistral's or Qwen's architecture, or a GGUF file.",
            )
        return self.runner

    @property
    def model(self) -> Transformer:
        return self.native.model

    @property
    def prefixes(self) -> PrefixCache:
        return self.native.prefixes

    def beside(self) -> Engine:
        """An engine of the same weights for another thread."""
        return Engine(
            self.runner.beside(),
            decode_bytes=self.decode_bytes,
            name=self.name,
            max_batch=self.max_batch,
            clock=self.clock,
        )

    @property
    def busy(self) -> bool:
        return bool(self._queue) or len(self._rows) > 0

    @property
    def label(self) -> str:
        """Names the weights: the model's name and their version."""
        return f"{self.name}@{self.version}" if self.version else self.name

    def add(self, request: Request) -> int:
        """Queue a request; its samples join as soon as there is room. Returns its id."""
        self.check(request)
        max_new_tokens = min(request.limit, self.runner.window - len(request.prompt) + 1)
        self._next_id += 1
        self._queue.append(QueuedRequest(self._next_id, request, max_new_tokens, request.n))
        return self._next_id

    def check(self, request: Request) -> None:
        """Raise what is wrong with a request, or with the freshness of what is remembered."""
        check_request(request, self.runner.window, self.runner.vocab_size, self.decode_bytes is not None)
        self._check_fresh()

    def step(self) -> list[Event]:
        """One token for every running row. When it fails (damaged weights), all that was running is dropped."""
        try:
            drawn = self._advance()
        except BaseException:  # half a step cannot be gone on from
            self.abandon()
            raise
        events = []
        for row, job in enumerate(drawn.jobs):
            trace = drawn.ended.get(row)
            if trace is not None:
                last = trace.steps[-1]
            else:
                last = self._records.last(int(drawn.lines[row]), int(drawn.counts[row]))
            events.append(Event(job.id, int(drawn.samples[row]), last, trace))
        return events

    # rows that leave move others in the cache, whose tensors belong to inference mode
    @torch.inference_mode()
    def cancel(self, request_id: int) -> list[Trace]:
        """Stop a request at once; returns what its running samples had said. An unknown or finished id is no error."""
        self._queue = deque(job for job in self._queue if job.id != request_id)
        mine = np.array([job.id == request_id for job in self._rows.jobs], bool)
        traces = [self._trace(int(row), "cancelled") for row in np.flatnonzero(mine)]
        if traces:
            self._leave(mine)
        return traces

    def abandon(self) -> None:
        """Drop all that runs and waits, whatever state a failure has left it in."""
        self._queue.clear()
        self._records = Records()  # a failure may have left lines half put away
        self._clear_rows()

    def run(self, requests: Sequence[Request]) -> list[list[Trace]]:
        """Answers to all requests, in order of request and sample. The engine must be idle."""
        occupied = self.busy
        if occupied:
            raise KlypeError("The engine is already answering: finish or cancel its requests first.")
        jobs = []
        try:
            for request in requests:
                self.add(request)
                jobs.append(self._queue[-1])
            while self.busy:
                self._advance()
        except BaseException:
            self.abandon()
            raise
        return [sorted(job.traces, key=lambda trace: trace.sample) for job in jobs]

    def next(self, prefixes: Sequence[Sequence[int]], top: int = -1) -> list[Distribution]:
        """The model's distribution (temperature 1) after each prefix; ``top`` -1: whole."""
        for prefix in prefixes:
            check_prompt(prefix, self.runner.window, self.runner.vocab_size)
        self._check_fresh()
        if not prefixes:
            return []
        read = self.runner.prefill([tuple(prefix) for prefix in prefixes])
        found = distributions(torch.stack([prompt.logits for prompt in read]).float().log_softmax(-1), top)
        if any(np.isnan(d.logp).any() for d in found):
            raise self.not_numbers()
        return found

    def score(self, prompts: Sequence[Sequence[int]], answers: Sequence[Sequence[int]], top: int = 0) -> list[Trace]:
        """How probable given answers are, token by token ("forced"), ``top`` of the distribution beside each."""
        window, vocab_size = self.runner.window, self.runner.vocab_size
        for prompt, answer in zip(prompts, answers, strict=True):
            check_prompt(prompt, window, vocab_size)
            check_answer(prompt, answer, window, vocab_size)
        self._check_fresh()
        traces = score(self.runner, prompts, answers, top, self.label)
        if any(np.isnan(step.logp) for trace in traces for step in trace.steps):
            raise self.not_numbers()
        return traces

    def mean_states(self, texts: Sequence[Sequence[int]]) -> list[npt.NDArray[np.float32]]:
        """The mean of the last layer's states over each text's tokens, [D]."""
        for text in texts:
            check_prompt(text, self.runner.window, self.runner.vocab_size)
        self._check_fresh()
        found: dict[int, npt.NDArray[np.float32]] = {}
        for rows in batches([len(text) for text in texts]):
            states = self.runner.states([tuple(texts[row]) for row in rows])
            found |= {row: own_TD.float().mean(0).cpu().numpy() for row, own_TD in zip(rows, states, strict=True)}
        if any(np.isnan(mean_D).any() for mean_D in found.values()):
            raise self.not_numbers()
        return [found[row] for row in range(len(texts))]

    def refresh(self, version: int | str) -> None:
        """The weights have changed: forget everything computed with the old ones."""
        if len(self._rows):
            raise KlypeError("The weights cannot change while answers are being written: finish or cancel them first.")
        self.version = version
        self._fingerprint = self.runner.weights.changes()
        self.runner.forget()
        for job in self._queue:
            job.read = None
        self._clear_rows()

    def not_numbers(self) -> KlypeError:
        model = f"The model {self.label}" if self.label else "The model"
        return KlypeError(f"{model} returns values that are not numbers: it is damaged, or its training diverged.")

    def _advance(self) -> StepResult:
        self._check_fresh()
        with torch.inference_mode():
            joining = self._schedule()
            if not joining and not len(self._rows):
                return StepResult(self._rows.jobs, self._rows.samples, self._rows.lines, self._rows.counts, {})
            # a step of a small model is one thread's: waking another takes longer than it saves
            with threads_for(self.runner.operations(len(self._rows))):
                logits_RV = self._run(joining)
                return self._postprocess(logits_RV)

    def _schedule(self) -> list[tuple[QueuedRequest, int]]:
        """Which samples join: (job, how many), first come first served, as far as there is room."""
        room, joining = self.max_batch - len(self._rows), []
        while room > 0 and self._queue:
            job = self._queue[0]
            count = min(room, job.waiting)
            joining.append((job, count))
            room -= count
            if count < job.waiting:
                break
            self._queue.popleft()
        unread = [job for job, _ in joining if job.read is None]
        now = self.clock()
        if unread:
            prompts = self.runner.prefill([job.request.prompt for job in unread])
            for job, prompt in zip(unread, prompts, strict=True):
                job.read, job.started = prompt, now
        return joining

    def _run(self, joining: list[tuple[QueuedRequest, int]]) -> Tensor:
        """Logits [R, V] of the next token of every row: those that go on, then those that join."""
        parts = [self.runner.decode(self._last_R)] if len(self._rows) else []
        if joining:
            # prompts that lie in one store are added in one call
            order = self.runner.order([job.prompt() for job, _ in joining])
            joining = [joining[i] for i in order]
            prompts, counts = [job.prompt() for job, _ in joining], [count for _, count in joining]
            parts += [prompt.logits.expand(count, -1) for prompt, count in zip(prompts, counts, strict=True)]
            for job, count in joining:
                self._rows.append(job, self._records.open(count))
            self.runner.append(prompts, counts)
        return torch.cat(parts)

    def _postprocess(self, logits_RV: Tensor) -> StepResult:
        stuck = self._constrain(logits_RV)
        noise_R = noise(self._rows.seeds, self._rows.samples, self._rows.offsets + self._rows.counts)
        kinds = np.unique(self._rows.which)
        # where all rows are drawn alike none need be gathered and put back
        if len(kinds) == 1:
            tokens_R, logps_2R = self._sample(logits_RV, noise_R, np.arange(len(self._rows.which)))
        else:
            tokens_R, logps_2R = torch.empty(len(noise_R), dtype=torch.int64), torch.empty(2, len(noise_R))
            for kind in kinds:
                alike = np.flatnonzero(self._rows.which == kind)
                index = torch.from_numpy(alike)
                tokens_R[index], logps_2R[:, index] = self._sample(logits_RV[index], noise_R[alike], alike)
        logp_2R = logps_2R.double().numpy()  # the model's, and those of the distribution drawn from
        if np.isnan(logp_2R).any():
            raise self.not_numbers()
        tokens = tokens_R.numpy()
        self._records.write(self._rows.lines, self._rows.counts, tokens, logp_2R)
        self._rows.counts = self._rows.counts + 1
        stopped = (tokens[:, None] == self._rows.stop).any(1)
        if self._rows.special.any():
            self._look(logits_RV, tokens, stopped)
        for row in np.flatnonzero(self._rows.constraints).tolist():
            stopped[row] |= self._rows.constraints[row].accept(int(tokens[row]))
        ended = stopped | stuck | (self._rows.counts >= self._rows.max_new_tokens)
        self._last_R = tokens_R
        rows = self._rows
        drawn = StepResult(rows.jobs, rows.samples, rows.lines, rows.counts, {})
        for row in np.flatnonzero(ended).tolist():
            why: Ended = "cancelled" if stuck[row] else "stop" if stopped[row] else "length"
            drawn.ended[row] = self._trace(row, why)
        if drawn.ended:
            self._leave(ended)
        return drawn

    def _constrain(self, logits_RV: Tensor) -> npt.NDArray[np.bool_]:
        """Leaves each constrained row only the tokens that are allowed; which rows have none."""
        stuck = np.zeros(len(logits_RV), bool)
        for row in np.flatnonzero(self._rows.constraints).tolist():
            allowed = self._rows.constraints[row].allowed()
            stuck[row] = allowed is None
            if allowed is not None:
                logits_RV[row].masked_fill_(torch.from_numpy(~allowed).to(logits_RV.device), -math.inf)
        return stuck

    def _sample(
        self, logits_RV: Tensor, noise_R: npt.NDArray[np.float64], rows: npt.NDArray[np.int64]
    ) -> tuple[Tensor, Tensor]:
        """As ``sample``, for rows that are all drawn alike."""
        seen, sampling = None, self._rows.samplings[self._rows.which[rows[0]]]
        if needs_counts(sampling):
            said = [self._records.tokens[self._rows.lines[row], : self._rows.counts[row]] for row in rows]
            seen = count_tokens([self._rows.jobs[row].request.prompt for row in rows], said, logits_RV.shape[1])
        return sample(logits_RV, sampling, noise_R, seen)

    def _look(self, logits_RV: Tensor, tokens: npt.NDArray[np.int64], stopped: npt.NDArray[np.bool_]) -> None:
        """Rows that asked for distributions or for stop texts."""
        special = np.flatnonzero(self._rows.special).tolist()
        for top, group in groupby(sorted(special, key=self._top_of), key=self._top_of):
            rows = list(group)
            if not top:
                continue
            listed = distributions(logits_RV[rows].float().log_softmax(-1), top)
            for row, q in zip(rows, listed, strict=True):
                self._records.distributions.setdefault(int(self._rows.lines[row]), []).append(q)
        for row in special:
            request, line = self._rows.jobs[row].request, int(self._rows.lines[row])
            if request.stop_texts:
                assert self.decode_bytes is not None
                text = self._records.texts.setdefault(line, bytearray())
                added = self.decode_bytes(int(tokens[row]))
                text += added
                for stop in request.stop_texts:
                    sought = stop.encode()
                    # only what the new token can have completed: an earlier one had ended the answer
                    stopped[row] |= sought in text[-len(sought) - len(added) :]

    def _top_of(self, row: int) -> int:
        return int(self._rows.jobs[row].request.top)

    def _trace(self, row: int, ended: Ended) -> Trace:
        job, line, count = self._rows.jobs[row], int(self._rows.lines[row]), int(self._rows.counts[row])
        request = job.request
        trace = Trace(
            prompt=request.prompt,
            steps=self._records.steps(line, count),
            sampling=request.sampling,
            seed=request.seed,
            sample=int(self._rows.samples[row]),
            model=self.label,
            ended=ended,
            passes=count,
            seconds=self.clock() - job.started,
        )
        job.traces.append(trace)
        return trace

    def _leave(self, ended: npt.NDArray[np.bool_]) -> None:
        for line in self._rows.lines[ended].tolist():
            self._records.close(line)
        if ended.all():
            self._clear_rows()
            return
        # rows from the end take the places of those that left
        order = self.runner.remove(ended)
        self._last_R = self._last_R[torch.from_numpy(order)]
        self._rows.take(order)

    def _clear_rows(self) -> None:
        self.runner.clear()
        self._rows = Rows.none()
        self._last_R = torch.zeros(0, dtype=torch.int64)

    def _check_fresh(self) -> None:
        changes = self.runner.weights.changes()
        if changes != self._fingerprint:
            if self.runner.remembers or len(self._rows):
                raise KlypeError(
                    "The model's weights have changed since this was computed: call refresh(version) first."
                )
            self._fingerprint = changes
