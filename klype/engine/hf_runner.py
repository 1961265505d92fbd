"""The runner of any causal language model of transformers, for architectures that klype does not compute itself.

What an architecture supports is found by trial. With a KV cache, prompts are kept and shared; where left padding
changes nothing, rows of different length are computed together; without a cache, whole texts are computed again for
every token. Shapes: R rows, T new tokens, W columns in the cache, V vocabulary, G heads and K width of keys and values.
"""

import copy
import inspect
import math
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn.functional import pad
from torch.nn.utils.rnn import pad_sequence

from klype.engine.prefix_cache import BLOCK, NOTHING, CachedPrefix, CachedPrompt, PrefixIndex, Tokens, shared_prefixes
from klype.engine.runner import REMEMBERED, Weights
from klype.model.cache import Indices, to_device

# most logits held at a time
ENTRIES = 1 << 25
# most texts per pass
ROWS = 64
# names of the window in configurations, and the window of architectures that state none
WINDOWS = ("max_position_embeddings", "n_positions", "max_seq_len", "max_sequence_length", "seq_length", "n_ctx")
ENDLESS = 1 << 20
# how far the logits of a trial may differ, relative to their range: in float32, and in 16-bit dtypes
TRIED = 2e-3, 5e-2


@dataclass(frozen=True, eq=False)
class KeyValues:
    """Keys and values of texts read together, [R, G, W, K] per layer. Text i begins in column ``starts[i]``."""

    layers: list[tuple[Tensor, Tensor]]
    starts: list[int]


# the store is None of an empty prefix, and where the model takes no cache
Past: TypeAlias = CachedPrefix[KeyValues | None]
Prompt: TypeAlias = CachedPrompt[KeyValues | None]


@dataclass(eq=False)
class RowGroup:
    """Running rows that are computed together: their numbers, lengths, and transformers' cache of their texts, padded
    on the left to the longest."""

    rows: Indices
    lengths: Indices
    cache: Any


class HFRunner:
    """Runs a model of transformers; window and vocabulary are those of its configuration.

    ``cache``: the name of the KV cache among the arguments of its forward pass ("": it takes none that works);
    ``pads``: whether rows may be padded on the left.
    """

    def __init__(self, model: Any) -> None:
        config = model.config.get_text_config()
        self.model = model
        self.vocab_size = int(config.vocab_size)
        fields = config.to_dict()
        self.window = next((int(fields[name]) for name in WINDOWS if isinstance(fields.get(name), int)), ENDLESS)
        self.weights = Weights(model, model.config.to_json_string())
        self._turn = threading.Lock()  # some architectures store state in the module (dynamic rotary tables)
        self.names = frozenset(inspect.signature(model.forward).parameters)
        self.cache, self.pads = "", False
        self.index: PrefixIndex[KeyValues] = PrefixIndex(REMEMBERED)
        self._groups: list[RowGroup] = []
        self._texts: list[Tokens] = []  # of the running rows, where there is no cache
        self._try()

    def flops_per_token(self, context: int) -> int:
        """Two per weight, without embeddings that are only looked up (Kaplan et al. 2020) and without attention."""
        embedding = self.model.get_input_embeddings().weight
        head = self.model.get_output_embeddings()
        tied = head is None or head.weight is embedding
        weights = sum(int(p.numel()) for p in self.model.parameters())
        return 2 * (weights - (0 if tied else int(embedding.numel())))

    @torch.inference_mode()
    def prefill(self, prompts: Sequence[Tokens]) -> list[Prompt]:
        distinct = sorted(set(prompts))
        for beginning in shared_prefixes(distinct) if self.cache else ():
            past = self._past(beginning)
            if past.length < len(beginning) - BLOCK:
                self._read([beginning], [past])
        pasts = [self._past(prompt) for prompt in distinct]
        found: dict[Tokens, Prompt] = {}
        for batch in self._batches(distinct, pasts):
            read = self._read([distinct[i] for i in batch], [pasts[i] for i in batch])
            found.update((text.tokens, text) for text in read)
        return [found[prompt] for prompt in prompts]

    def order(self, prompts: Sequence[Prompt]) -> list[int]:
        return sorted(range(len(prompts)), key=lambda i: len(prompts[i].tokens))

    def append(self, prompts: Sequence[Prompt], counts: Sequence[int]) -> None:
        new = [prompt for prompt, count in zip(prompts, counts, strict=True) for _ in range(count)]
        if not self.cache:
            self._texts += [prompt.tokens for prompt in new]
            return
        first = sum(len(group.rows) for group in self._groups)
        longest, joining = [int(group.lengths.max()) for group in self._groups], dict[int, list[int]]()
        for place, prompt in enumerate(new):
            length = len(prompt.tokens)
            alike = (
                i
                for i, other in enumerate(longest)
                if length == other or (self.pads and max(length, other) <= 2 * min(length, other) + 32)
            )
            number = next(alike, len(longest))
            longest[number : number + 1] = [max([length, *longest[number : number + 1]])]
            joining.setdefault(number, []).append(place)
        for number, places in sorted(joining.items()):
            rows, lengths = np.array(places) + first, np.array([len(new[place].tokens) for place in places])
            layers = gather_pasts([new[place].prefix for place in places])
            if number == len(self._groups):
                self._groups.append(RowGroup(rows, lengths, cache_of(layers)))
                continue
            group = self._groups[number]
            group.rows, group.lengths = np.append(group.rows, rows), np.append(group.lengths, lengths)
            for layer, (keys, values) in zip(group.cache.layers, layers, strict=True):
                layer.keys, layer.values = _stack_rows(layer.keys, keys), _stack_rows(layer.values, values)

    def decode(self, tokens_R: Tensor) -> Tensor:
        if not self.cache:
            self._texts = [(*text, token) for text, token in zip(self._texts, tokens_R.tolist(), strict=True)]
            return torch.stack([read.logits for read in self.prefill(self._texts)])
        parts = []
        for group in self._groups:
            tokens_R1 = tokens_R[torch.from_numpy(group.rows), None]
            logits_RTV, group.cache = self._forward(tokens_R1, group.cache, group.lengths)
            group.lengths = group.lengths + 1
            parts.append(logits_RTV[:, -1])
        order = np.argsort(np.concatenate([group.rows for group in self._groups]))
        return parts[0] if len(parts) == 1 else torch.cat(parts)[to_device(order, self.model.device)]

    def remove(self, ended_R: npt.NDArray[np.bool_]) -> Indices:
        order, numbers = np.flatnonzero(~ended_R), np.cumsum(~ended_R) - 1
        self._texts = [text for text, ended in zip(self._texts, ended_R, strict=False) if not ended]
        self._groups = [group for group in self._groups if not ended_R[group.rows].all()]
        for group in self._groups:
            stay = np.flatnonzero(~ended_R[group.rows])
            if len(stay) < len(group.rows):
                width, group.lengths = int(group.lengths.max()), group.lengths[stay]
                spare, index = width - int(group.lengths.max()), to_device(stay, self.model.device)
                for layer in group.cache.layers:
                    layer.keys, layer.values = layer.keys[index, :, spare:], layer.values[index, :, spare:]
            group.rows = numbers[group.rows[stay]]
        return order

    def clear(self) -> None:
        self._groups, self._texts = [], []

    def forget(self) -> None:
        self.index = PrefixIndex(REMEMBERED)

    @torch.inference_mode()
    def fed_logits(self, prompts: Sequence[Prompt], fed: Sequence[Sequence[int]]) -> Iterator[Tensor]:
        texts = [(*prompt.tokens, *row) for prompt, row in zip(prompts, fed, strict=True)]
        pasts = [prompt.prefix for prompt in prompts]
        for rows in self._batches(texts, pasts, neighbours=True):
            for read, logits_RTV, _ in self._pieces([texts[row] for row in rows], [pasts[row] for row in rows]):
                for row, logits_TV in zip(rows, logits_RTV, strict=True):
                    start = len(prompts[row].tokens) - pasts[row].length - read
                    yield logits_TV[max(start, 0) : max(start + len(fed[row]), 0)]

    @torch.inference_mode()
    def states(self, texts: Sequence[Tokens]) -> list[Tensor]:
        """Texts are padded on the right, which changes nothing before the padding."""
        longest, given = max(map(len, texts)), {"use_cache": False} if "use_cache" in self.names else {}
        tokens_RT = torch.tensor([[*text, *(0,) * (longest - len(text))] for text in texts])
        with self._turn:
            out = self.model.base_model(input_ids=tokens_RT.to(self.model.device), **given)
        return [states_TD[: len(text)] for states_TD, text in zip(out[0], texts, strict=True)]

    def operations(self, rows: int) -> float:
        return math.inf  # torch decides

    def twin(self) -> "HFRunner":
        other = copy.copy(self)
        other.forget()
        other.clear()
        return other

    def _past(self, prompt: Tokens) -> Past:
        """The known prefix of the prompt, without its last token, which is computed for its logits."""
        return self.index.find(prompt, len(prompt) - 1) if self.cache else NOTHING

    def _batches(
        self, texts: Sequence[Sequence[int]], pasts: Sequence[Past], neighbours: bool = False
    ) -> Iterator[list[int]]:
        """Indices of texts that share a pass: with similarly many new tokens, pasts of equal length unless they can be
        padded, and at most ``ENTRIES`` logits. ``neighbours``: in the given order."""
        rest = [len(text) - past.length for text, past in zip(texts, pasts, strict=True)]
        before = [0 if self.pads else past.length for past in pasts]
        order = range(len(texts)) if neighbours else sorted(range(len(texts)), key=lambda i: (before[i], rest[i]))
        batch: list[int] = []
        for i in order:
            if batch:
                widest, least = max(rest[i], *(rest[j] for j in batch)), min(rest[i], *(rest[j] for j in batch))
                full = len(batch) >= ROWS or (len(batch) + 1) * widest * self.vocab_size > ENTRIES
                if full or widest > least * 5 // 4 + 8 or before[i] != before[batch[0]]:
                    yield batch
                    batch = []
            batch.append(i)
        if batch:
            yield batch

    def _read(self, texts: Sequence[Tokens], pasts: Sequence[Past]) -> list[Prompt]:
        lengths = [past.length for past in pasts]
        last = [torch.empty(0)] * len(texts)
        cache: Any = None
        for read, logits_RTV, after in self._pieces(texts, pasts):
            cache = after
            for row, text in enumerate(texts):
                at = len(text) - lengths[row] - 1 - read
                if 0 <= at < logits_RTV.shape[1]:
                    last[row] = logits_RTV[row, at].clone()
        now: list[Past] = [NOTHING] * len(texts)
        if self.cache:
            layers = [(layer.keys, layer.values) for layer in cache.layers]
            store = KeyValues(layers, [max(lengths) - length for length in lengths])
            self.index.add(store, texts, sum(t.numel() * t.element_size() for pair in layers for t in pair))
            now = [CachedPrefix(store, slot, len(text)) for slot, text in enumerate(texts)]
        return list(map(CachedPrompt, texts, now, last))

    def _pieces(self, texts: Sequence[Sequence[int]], pasts: Sequence[Past]) -> Iterator[tuple[int, Tensor, Any]]:
        """Logits [R, T, V] of the texts' new tokens, padded on the right, and transformers' cache after them. A lone
        long text is computed in pieces, lest the logits of all its tokens be held at once; each comes with the number
        of new tokens before it."""
        rest = [text[past.length :] for text, past in zip(texts, pasts, strict=True)]
        T, lengths = max(map(len, rest)), np.array([past.length for past in pasts])
        tokens_RT = torch.tensor([[*row, *(0,) * (T - len(row))] for row in rest])
        cache = cache_of(gather_pasts(pasts)) if self.cache else None
        most = max(BLOCK, ENTRIES // self.vocab_size) if self.cache and len(texts) == 1 else max(T, 1)
        for read in range(0, T, most):
            logits_RTV, cache = self._forward(tokens_RT[:, read : read + most], cache, lengths + read)
            yield read, logits_RTV, cache

    def _forward(self, tokens_RT: Tensor, cache: Any, lengths: Indices) -> tuple[Tensor, Any]:
        """One forward pass over new tokens of rows whose pasts, of ``lengths``, are padded on the left."""
        T, W, device = tokens_RT.shape[1], int(lengths.max()), self.model.device
        given: dict[str, Any] = {self.cache: cache} if self.cache else {}
        given |= {"use_cache": bool(self.cache)} if "use_cache" in self.names else {}
        if (lengths != W).any():
            given["attention_mask"] = to_device(np.arange(W + T) >= W - lengths[:, None], device).long()
            if "position_ids" in self.names:  # positions past the window are padding
                positions = np.minimum(lengths[:, None] + np.arange(T), self.window - 1)
                given["position_ids"] = to_device(positions, device)
        with self._turn:
            out = self.model(input_ids=tokens_RT.to(device), **given)
        return out.logits, out[self.cache] if self.cache else None

    def _alike(self, found: Tensor, wanted: Tensor) -> bool:
        most = TRIED[self.model.dtype != torch.float32]
        return bool((found - wanted).abs().max() <= most * (wanted.max() - wanted.min()))

    @torch.inference_mode()
    def is_causal(self) -> bool:
        """Whether a token's logits do not depend on later tokens, as an encoder's do."""
        tokens_RT = torch.tensor([[1, 3, 2, last] for last in (0, 1, 4)]) % self.vocab_size
        logits_RTV, _ = self._forward(tokens_RT, None, np.zeros(3, np.int64))
        before = logits_RTV[:, :-1].float()
        return self._alike(before[:1], before)

    @torch.inference_mode()
    def _try(self) -> None:
        """Find what the model supports: cache and padding, if two texts' logits stay as when each is read whole."""
        texts = [tuple(token % self.vocab_size for token in text) for text in ((1, 3, 2), (2, 1, 3, 1, 2))]
        whole = [self.prefill([text])[0].logits.float() for text in texts]
        known = [name for name in ("cache", "past_key_values") if name in self.names]  # transformers 5 renamed it
        for self.cache, self.pads in product(known[:1], (True, False)):
            try:
                self.append(self.prefill([text[:-1] for text in texts]), [1, 1])
                found = self.decode(torch.tensor([text[-1] for text in texts])).float()
            except Exception:  # an architecture without this kind of cache raises anything
                continue
            finally:
                self.forget()
                self.clear()
            if all(map(self._alike, found, whole)):
                return
        self.cache, self.pads = "", False


def gather_pasts(pasts: Sequence[Past]) -> list[tuple[Tensor, Tensor]]:
    """Keys and values of the pasts per layer, [R, G, W, K], padded on the left; [] when all are empty."""
    number: dict[Past, int] = {}
    which = np.array([number.setdefault(past, len(number)) for past in pasts])
    like = next((past.store for past in pasts if past.store is not None), None)

    def of(layer: int, part: int) -> Tensor:
        texts = []
        for past in number:
            store = past.store or like
            assert store is not None
            start = store.starts[past.slot]
            texts.append(store.layers[layer][part][past.slot, :, start : start + past.length].transpose(0, 1))
        found = pad_sequence(texts, batch_first=True, padding_side="left").transpose(1, 2)
        return found if len(number) == len(pasts) else found[to_device(which, found.device)]

    return [(of(layer, 0), of(layer, 1)) for layer in range(len(like.layers) if like else 0)]


def cache_of(layers: Sequence[tuple[Tensor, Tensor]]) -> Any:
    """transformers' cache with these keys and values. Without a configuration it keeps all of them, even for layers
    with a sliding window."""
    from transformers.cache_utils import DynamicCache

    cache = DynamicCache()
    for index, (keys, values) in enumerate(layers):
        cache.update(keys, values, index)
    return cache


def _stack_rows(a_RGWK: Tensor, b_RGWK: Tensor) -> Tensor:
    """Both stacked by rows, padded on the left to the wider."""
    W = max(a_RGWK.shape[2], b_RGWK.shape[2])
    return torch.cat([pad(t, (0, 0, W - t.shape[2], 0)) for t in (a_RGWK, b_RGWK)])
