"""Any causal language model of transformers as a source: for architectures that klype does not compute itself.

Sampling is klype's own (``shape``, ``draw`` and counted noise), so the same seed gives the same answer as everywhere
else. What texts have in common is read once and kept as past keys and values, where the architecture has such.
Shapes: R rows, U different prompts, T tokens, V vocabulary.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from klype.engine.checks import check_answer, check_prompt, check_request
from klype.engine.engine import Event
from klype.engine.records import distributions
from klype.errors import KlypeError
from klype.sources.hf_rows import Row, draw, finished, rows_of, seen_last
from klype.sources.native import NativeCodec
from klype.values import Distribution, Request, Sampling, Step, Trace

ENTRIES = 1 << 25
"""Logits held at a time."""
WORTH_SHARING = 8
"""Tokens in common from which on a text is read once."""
ENDLESS = 1 << 20
"""The window of an architecture that names none."""

Tokens = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Ability:
    """What a forward pass of the architecture takes and gives."""

    cache: str  # the name of past keys and values that can be given again; "": none
    positions: bool  # places of tokens can be given, so that prompts of unequal length share a pass


class HFSource:
    """``model`` is transformers' own; ``window`` and ``vocabulary`` are read from its configuration."""

    def __init__(
        self,
        model: Any,
        codec: NativeCodec,
        name: str = "",
        max_batch: int = 64,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.model, self.codec, self.max_batch, self.clock = model, codec, max_batch, clock
        self._name = name
        config = model.config.get_text_config()
        self.vocabulary = int(config.vocab_size)
        self.window = window_of(config)
        self.device = model.device
        self.able = ability(model)
        self.passes = 0
        self._kept: tuple[Tokens, Any] | None = None

    @property
    def name(self) -> str:
        return self._name

    @property
    def flops_per_token(self) -> int:
        """Two per weight but those of embeddings that are only looked up (Kaplan et al. 2020); attention left out."""
        embedding = self.model.get_input_embeddings().weight
        head = self.model.get_output_embeddings()
        tied = head is None or head.weight is embedding
        weights = sum(int(p.numel()) for p in self.model.parameters())
        return 2 * (weights - (0 if tied else int(embedding.numel())))

    @torch.inference_mode()
    def next(self, prefixes: Sequence[Sequence[int]], top: int = -1) -> list[Distribution]:
        for prefix in prefixes:
            check_prompt(prefix, self.window, self.vocabulary)
        asked = list(dict.fromkeys(tuple(prefix) for prefix in prefixes))
        found = dict(zip(asked, self._last_logits(asked), strict=True))
        logits_RV = torch.stack([found[tuple(prefix)] for prefix in prefixes])
        return distributions(logits_RV.float().log_softmax(-1), top)

    @torch.inference_mode()
    def score(self, prompts: Sequence[Sequence[int]], answers: Sequence[Sequence[int]], top: int = 0) -> list[Trace]:
        """Whole texts in one pass each batch, padded on the right: what comes later changes nothing before it."""
        for prompt, answer in zip(prompts, answers, strict=True):
            check_prompt(prompt, self.window, self.vocabulary)
            check_answer(prompt, answer, self.window, self.vocabulary)
        texts = [
            (*prompt, *answer)[:-1] if answer else (*prompt,) for prompt, answer in zip(prompts, answers, strict=True)
        ]
        steps: list[tuple[Step, ...]] = [()] * len(texts)
        for places in self._batches([len(text) for text in texts]):
            logits_RTV = self._forward([texts[place] for place in places])
            for row, place in enumerate(places):
                start, answer = len(prompts[place]) - 1, answers[place]
                logp_TV = logits_RTV[row, start : start + len(answer)].float().log_softmax(-1)
                steps[place] = tuple(self._forced(logp_TV[t], token, top) for t, token in enumerate(answer))
        return [
            Trace(tuple(prompt), said, Sampling(), 0, 0, self.name, "length", 1, 0.0)
            for prompt, said in zip(prompts, steps, strict=True)
        ]

    def generate(self, requests: Sequence[Request]) -> Iterator[Event]:
        """Every request is looked at before any is begun."""
        for request in requests:
            check_request(request, self.window, self.vocabulary, True)
        return self._events(requests)

    def _events(self, requests: Sequence[Request]) -> Iterator[Event]:
        waiting = rows_of(requests, self.window)
        waiting.sort(key=lambda row: len(row.request.prompt))
        while waiting:
            count = self._together(waiting)
            chunk, waiting = waiting[:count], waiting[count:]
            yield from self._write(chunk)

    def _together(self, waiting: Sequence[Row]) -> int:
        """How many of the waiting rows, shortest prompt first, are written side by side."""
        most, shortest = min(self.max_batch, len(waiting)), len(waiting[0].request.prompt)
        longest = shortest * 5 // 4 + 8 if self.able.positions else shortest
        return next((i for i in range(most) if len(waiting[i].request.prompt) > longest), most)

    def _write(self, rows: list[Row]) -> Iterator[Event]:
        began = self.clock()
        prompts = list(dict.fromkeys(row.request.prompt for row in rows))
        which = torch.tensor([prompts.index(row.request.prompt) for row in rows], device=self.device)
        with torch.inference_mode():
            reading = Reading(self, prompts)
            logits_RV = reading.begin()[which]
            reading.choose(which)
        while rows:
            with torch.inference_mode():
                tokens_R = draw(logits_RV, rows)
            if any(np.isnan(row.steps[-1].logp) for row in rows):
                raise KlypeError(f"The model {self.name} returns values that are not numbers: it is damaged.")
            for row in rows:
                ended = finished(row, self.codec.tokenizer.token_bytes)
                trace = row.trace(self.name, ended, self.clock() - began) if ended else None
                yield Event(row.place, row.sample, row.steps[-1], trace)
                row.done = trace is not None
            going = [i for i, row in enumerate(rows) if not row.done]
            rows = [rows[i] for i in going]
            if rows:
                with torch.inference_mode():
                    reading.choose(torch.tensor(going, device=self.device))
                    logits_RV = reading.go_on(tokens_R[going].to(self.device))

    def _last_logits(self, texts: Sequence[Tokens]) -> list[Tensor]:
        """After each text [V]. Their common beginning is read once and remembered for the next call."""
        kept, past = self._shared(texts)
        found: list[Tensor] = [torch.empty(0)] * len(texts)
        for places in self._batches([len(text) - kept for text in texts]):
            logits_RTV = self._forward([texts[place][kept:] for place in places], past)
            for row, place in enumerate(places):
                found[place] = logits_RTV[row, len(texts[place]) - kept - 1].clone()
        return found

    def _shared(self, texts: Sequence[Tokens]) -> tuple[int, Any]:
        """How many tokens all texts begin with and have been read, and what was kept of them."""
        if not self.able.cache or not texts:
            return 0, None
        if self._kept is not None and all(
            len(text) > len(self._kept[0]) and text[: len(self._kept[0])] == self._kept[0] for text in texts
        ):
            return len(self._kept[0]), self._kept[1]
        shared = in_common([text[:-1] for text in texts])
        if len(shared) < WORTH_SHARING:
            return 0, None
        self.passes += 1
        past = self.model(input_ids=torch.tensor([shared], device=self.device), use_cache=True)[self.able.cache]
        self._kept = (shared, past)
        return len(shared), past

    def _forward(self, texts: Sequence[Tokens], past: Any = None) -> Tensor:
        """Logits [R, T, V], padded on the right, behind what was kept."""
        longest = max(map(len, texts))
        tokens_RT = torch.tensor([[*text, *(0,) * (longest - len(text))] for text in texts], device=self.device)
        given: dict[str, Any] = {}
        if past is not None:
            past = copy.deepcopy(past)
            past.batch_repeat_interleave(len(texts))
            given = {self.able.cache: past, "use_cache": True}
        self.passes += 1
        logits: Tensor = self.model(input_ids=tokens_RT, **given).logits
        return logits

    def _batches(self, lengths: Sequence[int]) -> Iterator[list[int]]:
        """Places of alike length, as many as there is room for their logits."""
        order = sorted(range(len(lengths)), key=lambda place: lengths[place])
        batch: list[int] = []
        for place in order:
            full = len(batch) >= self.max_batch or (len(batch) + 1) * lengths[place] * self.vocabulary > ENTRIES
            if batch and (full or lengths[place] > lengths[batch[0]] * 5 // 4 + 8):
                yield batch
                batch = []
            batch.append(place)
        if batch:
            yield batch

    @staticmethod
    def _forced(logp_V: Tensor, token: int, top: int) -> Step:
        logp = float(logp_V[token])
        return Step(token, logp, logp, "forced", distributions(logp_V[None], top)[0] if top else None)


class Reading:
    """Rows that are being written: what they have read, padded on the left."""

    def __init__(self, source: HFSource, prompts: Sequence[Tokens]) -> None:
        self.source = source
        longest = max(map(len, prompts))
        self.tokens_RT = torch.tensor([[*(0,) * (longest - len(p)), *p] for p in prompts], device=source.device)
        self.mask_RT = seen_last(torch.tensor([len(p) for p in prompts]), longest).to(source.device)
        self.past: Any = None

    def begin(self) -> Tensor:
        """Logits [U, V] after each prompt."""
        return self._run(self.tokens_RT, None)

    def choose(self, index: Tensor) -> None:
        """Only these rows go on; a row may be chosen several times."""
        self.tokens_RT, self.mask_RT = self.tokens_RT[index], self.mask_RT[index]
        if self.past is not None:
            self.past.batch_select_indices(index)

    def go_on(self, tokens_R: Tensor) -> Tensor:
        """Logits [R, V] after one more token a row."""
        self.tokens_RT = torch.cat([self.tokens_RT, tokens_R[:, None]], 1)
        self.mask_RT = torch.cat([self.mask_RT, self.mask_RT.new_ones(len(tokens_R), 1)], 1)
        return self._run(self.tokens_RT if self.past is None else tokens_R[:, None], self.past)

    def _run(self, tokens_RT: Tensor, past: Any) -> Tensor:
        able = self.source.able
        given: dict[str, Any] = {}
        padded = not bool(self.mask_RT.all())
        if padded:
            given["attention_mask"] = self.mask_RT
        if able.positions:
            places_RT = (self.mask_RT.cumsum(-1) - 1).clamp_min(0)
            given["position_ids"] = places_RT[:, -tokens_RT.shape[1] :]
        if able.cache:
            given |= {able.cache: past, "use_cache": True}
        self.source.passes += 1
        out = self.source.model(input_ids=tokens_RT, **given)
        self.past = out[able.cache] if able.cache else None
        logits: Tensor = out.logits[:, -1]
        return logits


def in_common(texts: Sequence[Tokens]) -> Tokens:
    """What all begin with: the first and the last in order differ as early as any two."""
    first, last = min(texts), max(texts)
    same = next((i for i, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), min(len(first), len(last)))
    return first[:same]


def window_of(config: Any) -> int:
    """Tokens that the model reads at most, under the names that architectures give it."""
    fields = config.to_dict()
    names = ("max_position_embeddings", "n_positions", "max_seq_len", "max_sequence_length", "seq_length", "n_ctx")
    return next((int(fields[name]) for name in names if isinstance(fields.get(name), int)), ENDLESS)


@torch.inference_mode()
def ability(model: Any) -> Ability:
    """Found out by trying: whether what was read can be kept, copied and gone on from."""
    import inspect

    from transformers.cache_utils import DynamicCache, DynamicLayer

    names = inspect.signature(model.forward).parameters
    positions = "position_ids" in names and "attention_mask" in names
    name = next((name for name in ("cache", "past_key_values") if name in names), "")  # transformers 5 renamed it
    if not name:
        return Ability("", positions)
    past = model(input_ids=torch.tensor([[0, 0]], device=model.device), use_cache=True).get(name)
    kept = type(past) is DynamicCache and all(isinstance(layer, DynamicLayer) for layer in past.layers)
    return Ability(name if kept else "", positions)
