"""The generation engine under chat, rollouts, examination and server. Shapes: R running rows, A rows of one kind, V
vocabulary.

A step schedules (which samples join the batch), runs (one forward pass) and postprocesses (sample, record, end). A row
is one sample of a request; rows join and leave the running batch at any step (continuous batching). The forward pass
is a ModelRunner's.
"""

import math
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from klype.device import threads_for
from klype.engine.requests import Ended, QueuedRequest, Records, Rows, check_answer, check_prompt, check_request
from klype.engine.runner import PADDED, ModelRunner, NativeRunner
from klype.engine.sampling import count_tokens, distributions, noise, sample
from klype.errors import KlypeError, not_native
from klype.model.cache import Indices
from klype.model.transformer import Transformer
from klype.samplers import Sampling, TokenCounts, needs_counts
from klype.values import Distribution, Request, Step, Trace


@dataclass(frozen=True, slots=True)
class Event:
    """A new token of one sample; ``trace`` is the whole answer if the token ended it."""

    request: int
    sample: int
    step: Step
    trace: Trace | None


class Engine:
    """Generates with one model. ``decode_bytes`` (a token's bytes) is needed for stop texts only."""

    def __init__(
        self,
        model: Transformer | ModelRunner,
        *,
        decode_bytes: Callable[[int], bytes] | None = None,
        name: str = "",
        max_batch: int = 256,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        assert max_batch > 0
        self.runner: ModelRunner = NativeRunner(model) if isinstance(model, Transformer) else model
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
            raise not_native(self.name or "The model")
        return self.runner

    @property
    def model(self) -> Transformer:
        return self.native.model

    def twin(self) -> "Engine":
        """Another engine with the same weights, for another thread."""
        fixed = {"decode_bytes": self.decode_bytes, "name": self.name, "max_batch": self.max_batch, "clock": self.clock}
        return Engine(self.runner.twin(), **fixed)  # type: ignore[arg-type]

    @property
    def busy(self) -> bool:
        return bool(self._queue) or len(self._rows) > 0

    @property
    def label(self) -> str:
        """Name and version of the weights, as traces have it."""
        return f"{self.name}@{self.version}" if self.version else self.name

    def add(self, request: Request) -> int:
        """Queue a request, whose samples join the batch as soon as there is room. Returns its id."""
        self.check(request)
        max_new_tokens = min(request.limit, self.runner.window - len(request.prompt) + 1)
        self._next_id += 1
        self._queue.append(QueuedRequest(self._next_id, request, max_new_tokens, request.n))
        return self._next_id

    def check(self, request: Request) -> None:
        """Raise if the request is invalid, or if the weights changed without ``refresh`` while something computed with
        the old ones is kept."""
        check_request(request, self.runner.window, self.runner.vocab_size)
        self._check_fresh()

    def step(self) -> list[Event]:
        """Generate one token for every running row. If that fails, all running and queued requests are dropped."""
        try:
            return self._advance(with_events=True)
        except BaseException:  # half a step cannot be gone on from
            self.abandon()
            raise

    # removing rows writes in place to the cache, whose tensors were made in inference mode
    @torch.inference_mode()
    def cancel(self, request_id: int) -> list[Trace]:
        """Stop a request at once; returns the traces of its running samples. No error for an unknown or finished id."""
        self._queue = deque(job for job in self._queue if job.id != request_id)
        mine = np.array([job.id == request_id for job in self._rows["job"]], bool)
        traces = [self._trace(int(row), "cancelled") for row in np.flatnonzero(mine)]
        if traces:
            self._remove_rows(mine)
        return traces

    def abandon(self) -> None:
        """Drop all running and queued requests, whatever state a failure has left them in."""
        self._queue.clear()
        self._records = Records()  # a failure may have left lines that nobody will close
        self._clear_rows()

    def run(self, requests: Sequence[Request]) -> list[list[Trace]]:
        """Answers to all requests, in order of request and sample. The engine must be idle."""
        occupied = len(self._queue) + len(self._rows)
        assert not occupied, "finish or cancel its requests first"
        jobs = []
        try:
            for request in requests:
                self.add(request)
                jobs.append(self._queue[-1])
            while self.busy:
                self._advance(with_events=False)
        except BaseException:
            self.abandon()
            raise
        return [sorted(job.traces, key=lambda trace: trace.sample) for job in jobs]

    def next(self, prefixes: Sequence[Sequence[int]], top: int = -1) -> list[Distribution]:
        """The next-token distribution (temperature 1) after each prefix: its ``top`` tokens, or all (-1)."""
        self._check_prompts(prefixes)
        if not prefixes:
            return []
        read = self.runner.prefill([tuple(prefix) for prefix in prefixes])
        found = distributions(torch.stack([prompt.logits for prompt in read]).float().log_softmax(-1), top)
        self._check_numbers(q.logp for q in found)
        return found

    @torch.inference_mode()
    def score(self, prompts: Sequence[Sequence[int]], answers: Sequence[Sequence[int]], top: int = 0) -> list[Trace]:
        """Traces of given answers with the log-probability of each token ("forced"), and ``top`` alternatives.

        Equal prompts are read once; answers of similar length share a pass.
        """
        self._check_prompts(prompts)
        for prompt, answer in zip(prompts, answers, strict=True):
            check_answer(prompt, answer, self.runner.window, self.runner.vocab_size)
        read = self.runner.prefill([tuple(prompt) for prompt in prompts])
        steps: list[tuple[Step, ...]] = [()] * len(prompts)
        for rows in _batches([len(answer) for answer in answers]):
            rows = [rows[i] for i in self.runner.order([read[row] for row in rows])]
            fed = [answers[row] for row in rows]
            firsts = _forced_steps(torch.stack([read[row].logits for row in rows]), [answer[0] for answer in fed], top)
            targets = [token for answer in fed for token in answer[1:]]
            later: list[Step] = []
            for logits_MV in self.runner.fed_logits([read[row] for row in rows], [answer[:-1] for answer in fed]):
                later += _forced_steps(logits_MV, targets[len(later) : len(later) + len(logits_MV)], top)
            rest = iter(later)
            for row, first, answer in zip(rows, firsts, fed, strict=True):
                steps[row] = first, *islice(rest, len(answer) - 1)
        self._check_numbers(np.array([step.logp for step in own]) for own in steps)
        return [
            Trace(tuple(prompt), own, Sampling(), 0, 0, self.label, "length", 1, 0.0)
            for prompt, own in zip(prompts, steps, strict=True)
        ]

    def mean_states(self, texts: Sequence[Sequence[int]]) -> list[npt.NDArray[np.float32]]:
        """The mean over each text's tokens of the states after the last norm, [D]."""
        self._check_prompts(texts)
        found: dict[int, npt.NDArray[np.float32]] = {}
        for rows in _batches([len(text) for text in texts]):
            states = self.runner.states([tuple(texts[row]) for row in rows])
            found |= {row: own_TD.float().mean(0).cpu().numpy() for row, own_TD in zip(rows, states, strict=True)}
        self._check_numbers(found.values())
        return [found[row] for row in range(len(texts))]

    def refresh(self, version: int | str) -> None:
        """Call after changing the weights: drops all that was computed with the old ones. Raises KlypeError while
        answers are being generated."""
        if len(self._rows):
            raise KlypeError("The weights cannot change while answers are being written: finish or cancel them first.")
        self.version = version
        self._fingerprint = self.runner.weights.changes()
        self.runner.forget()
        for job in self._queue:
            job.read = None
        self._clear_rows()

    def not_numbers(self) -> KlypeError:
        """The error for logits that are NaN."""
        model = f"The model {self.label}" if self.label else "The model"
        return KlypeError(f"{model} returns values that are not numbers: it is damaged, or its training diverged.")

    def _check_prompts(self, prompts: Sequence[Sequence[int]]) -> None:
        for prompt in prompts:
            check_prompt(prompt, self.runner.window, self.runner.vocab_size)
        self._check_fresh()

    def _check_numbers(self, found: Iterable[npt.NDArray[Any]]) -> None:
        if any(np.isnan(values).any() for values in found):
            raise self.not_numbers()

    def _advance(self, with_events: bool) -> list[Event]:
        """One step. Events are made only ``with_events``: they take longer than a small model's step."""
        self._check_fresh()
        with torch.inference_mode():
            joining = self._schedule()
            if not joining and not len(self._rows):
                return []
            # a small model's step runs on one thread: to wake another takes longer than it saves
            with threads_for(self.runner.operations(len(self._rows))):
                return self._postprocess(self._run(joining), with_events)

    def _schedule(self) -> list[tuple[QueuedRequest, int]]:
        """Samples that join: (job, how many), first come first served, as far as there is room. Reads new prompts."""
        room, joining = self.max_batch - len(self._rows), []
        while room > 0 and self._queue:
            job = self._queue[0]
            # ``waiting`` falls when the rows are appended (Rows.append), after this loop
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
        """Logits [R, V] of the next token of every row: first the running rows, then those that join."""
        parts = [self.runner.decode(self._last_R)] if len(self._rows) else []
        if joining:
            # the runner's order, in which prompts of one store are neighbours; its rows and ours are numbered alike
            joining = [joining[i] for i in self.runner.order([job.read for job, _ in joining])]
            for job, count in joining:
                parts.append(job.read.logits.expand(count, -1))
                self._rows.append(job, self._records.open(count))
            self.runner.append([job.read for job, _ in joining], [count for _, count in joining])
        return torch.cat(parts)

    def _postprocess(self, logits_RV: Tensor, with_events: bool) -> list[Event]:
        """Sample a token for every row and record it; remove rows that end. Events only ``with_events``."""
        rows = self._rows
        # a row without an allowed token is sampled unmasked in the same calls and ends as "cancelled"; its last token
        # breaks the constraint, so readers discard the trace (serve/responses.py answers with error 400)
        stuck = self._constrain(logits_RV)
        noise_R = noise(rows["seed"], rows["sample"], rows["offset"] + rows["count"])
        tokens_R = torch.empty(len(rows), dtype=torch.int64)
        tokens, logp_2R, stopped = tokens_R.numpy(), np.empty((2, len(rows))), np.zeros(len(rows), bool)
        for kind, alike in rows.by_kind():
            # where all rows are of one kind none need be gathered
            logits_AV = logits_RV if len(alike) == len(rows) else logits_RV[torch.from_numpy(alike)]
            seen = self._token_counts(alike, logits_AV.shape[1]) if needs_counts(kind.sampling) else None
            drawn_A, logps_2A = sample(logits_AV, kind.sampling, noise_R[alike], seen)
            tokens[alike], logp_2R[:, alike] = drawn_A.numpy(), logps_2A.double().numpy()
            stopped[alike] = (tokens[alike, None] == kind.stop).any(1)
            if kind.top:
                listed = distributions(logits_AV.float().log_softmax(-1), kind.top)
                for line, q in zip(rows["line"][alike].tolist(), listed, strict=True):
                    self._records.distributions.setdefault(line, []).append(q)
            for row in alike.tolist() if kind.stop_texts else ():
                stopped[row] |= self._completes_stop_text(int(rows["line"][row]), int(tokens[row]), kind.stop_texts)
        self._check_numbers([logp_2R])
        self._records.write(rows["line"], rows["count"], tokens, logp_2R)
        rows["count"][:] += 1
        for row in np.flatnonzero(rows["constraint"]).tolist():
            stopped[row] |= rows["constraint"][row].accept(int(tokens[row]))
        ended = stopped | stuck | (rows["count"] >= rows["max_new_tokens"])
        self._last_R = tokens_R
        traces = {
            row: self._trace(row, "cancelled" if stuck[row] else "stop" if stopped[row] else "length")
            for row in np.flatnonzero(ended).tolist()
        }
        events = []
        columns = (
            column.tolist() for column in (rows["job"], rows["sample"], rows["line"], tokens, *logp_2R) if with_events
        )
        for row, (job, number, line, token, logp, sampling_logprob) in enumerate(zip(*columns, strict=True)):
            last = self._records.distributions.get(line, [None])[-1]
            step = Step(token, logp, sampling_logprob, "drawn", last)
            events.append(Event(job.id, number, step, traces.get(row)))
        if traces:
            self._remove_rows(ended)
        return events

    def _constrain(self, logits_RV: Tensor) -> npt.NDArray[np.bool_]:
        """Mask disallowed tokens in place; returns which rows allow none, and stay unmasked."""
        stuck = np.zeros(len(logits_RV), bool)
        for row in np.flatnonzero(self._rows["constraint"]).tolist():
            allowed = self._rows["constraint"][row].allowed()
            stuck[row] = allowed is None
            if allowed is not None:
                logits_RV[row].masked_fill_(torch.from_numpy(~allowed).to(logits_RV.device), -math.inf)
        return stuck

    def _token_counts(self, rows: Indices, vocabulary: int) -> TokenCounts:
        """Token counts of prompt and answer so far, for these rows."""
        tokens, table = self._records.steps["token"], self._rows.table[rows]
        said = [tokens[line, :count] for line, count in zip(table["line"], table["count"], strict=True)]
        return count_tokens([job.request.prompt for job in table["job"]], said, vocabulary)

    def _completes_stop_text(self, line: int, token: int, stop_texts: Sequence[str]) -> bool:
        """Whether this token completes one of the stop texts."""
        assert self.decode_bytes is not None
        text, added = self._records.texts.setdefault(line, bytearray()), self.decode_bytes(token)
        text += added
        # only the end is searched: an earlier stop text would have ended the answer
        return any(stop in text[-len(stop) - len(added) :] for stop in map(str.encode, stop_texts))

    def _trace(self, row: int, ended: Ended) -> Trace:
        job, number, line, count = (self._rows[name][row] for name in ("job", "sample", "line", "count"))
        asked, steps, seconds = job.request, self._records.read(line, count), self.clock() - job.started
        about = asked.prompt, steps, asked.sampling, asked.seed, int(number), self.label
        job.traces.append(Trace(*about, ended, int(count), seconds))
        trace: Trace = job.traces[-1]
        return trace

    def _remove_rows(self, ended: npt.NDArray[np.bool_]) -> None:
        for line in self._rows["line"][ended].tolist():
            self._records.close(line)
        if ended.all():
            self._clear_rows()
            return
        # rows from the end take the places of those that left
        order = self.runner.remove(ended)
        self._last_R = self._last_R[torch.from_numpy(order)]
        self._rows.table = self._rows.table[order]

    def _clear_rows(self) -> None:
        self.runner.clear()
        self._rows = Rows()
        self._last_R = torch.zeros(0, dtype=torch.int64)

    def _check_fresh(self) -> None:
        changes = self.runner.weights.changes()
        if changes != self._fingerprint:
            if len(self.runner.index) or len(self._rows):
                raise KlypeError(
                    "The model's weights have changed since this was computed: call refresh(version) first."
                )
            self._fingerprint = changes


def _batches(lengths: list[int]) -> list[list[int]]:
    """Indices of texts that share a pass: of similar length, at most ``PADDED`` tokens in all. Empty texts are left
    out."""
    found: list[list[int]] = []
    for row in sorted((r for r, length in enumerate(lengths) if length), key=lambda r: lengths[r]):
        shortest = lengths[found[-1][0]] if found else 0
        # a text is at most a quarter plus 8 tokens longer than the shortest, so that little is padding
        if found and lengths[row] <= shortest * 5 // 4 + 8 and (len(found[-1]) + 1) * lengths[row] <= PADDED:
            found[-1].append(row)
        else:
            found.append([row])
    return found


def _forced_steps(logits_MV: Tensor, targets: Sequence[int], top: int) -> list[Step]:
    """Steps of given tokens, one after each row of logits."""
    logp_MV = logits_MV.float().log_softmax(-1)
    targets_M1 = torch.tensor(targets, device=logp_MV.device)[:, None]
    logp = logp_MV.gather(1, targets_M1)[:, 0].cpu().double().tolist()
    listed = distributions(logp_MV, top) if top else [None] * len(logp)
    return [Step(token, p, p, "forced", q) for token, p, q in zip(targets, logp, listed, strict=True)]
