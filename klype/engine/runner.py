"""ModelRunner, the engine's interface to a model, and the runner of klype's own Transformer. Shapes: R running rows, V
vocabulary, D width."""

import hashlib
from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import Any, Protocol, Self

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

import klype
from klype.engine.prefix_cache import BLOCK, CachedPrefix, CachedPrompt, PrefixIndex, Tokens, shared_prefixes
from klype.model.cache import Cache, Indices, SharedKV
from klype.model.transformer import Transformer

# up to this many rows get a copy of their shared KV when that lets one call compute a step
FEW = 8
PRODUCTS = 4  # matrix products per layer: qkv, out, gate+up, down
FETCHED = 10  # operations in the time that a byte of a matrix takes to arrive from memory
COPIED = 4096  # tokens that such copies may hold in all
# most logits of forced answers held at a time
ENTRIES = 1 << 23
# bytes of keys and values kept for later prompts
REMEMBERED = 256 << 20
CHUNK = 512  # most tokens of a prompt per pass
# most tokens per pass, padding included
PADDED = 8192
# at most one token of padding per this many tokens, in addition to SPARE
PADDING = 4
# multiply-adds per layer that padding may cost before another pass (and another store in all later steps) is cheaper
SPARE = 120_000_000


class ModelRunner(Protocol):
    """Computes a model's forward passes for one engine, which owns queue, sampling and records.

    ``window``: the most tokens that the model reads. Running rows are numbered in the order in which they were
    appended; ``remove`` renumbers those that stay.
    """

    weights: "Weights"
    window: int
    vocab_size: int
    index: PrefixIndex[Any]  # the prefixes kept for later prompts

    def prefill(self, prompts: Sequence[Tokens]) -> list[CachedPrompt[Any]]:
        """Read prompts. A prefix that they share with each other or with earlier ones is computed once."""

    def order(self, prompts: Sequence[CachedPrompt[Any]]) -> list[int]:
        """Indices that make neighbours of prompts whose rows are best computed together."""

    def append(self, prompts: Sequence[CachedPrompt[Any]], counts: Sequence[int]) -> None:
        """Add so many rows that continue each prompt."""

    def decode(self, tokens_R: Tensor) -> Tensor:
        """Logits [R, V] after one new token of every row."""

    def remove(self, ended_R: npt.NDArray[np.bool_]) -> Indices:
        """Drop rows; returns the old number of every row that stays, in its new order."""

    def clear(self) -> None:
        """Drop all rows."""

    def forget(self) -> None:
        """Drop what is kept of prompts, since the weights have changed."""

    def fed_logits(self, prompts: Sequence[CachedPrompt[Any]], fed: Sequence[Sequence[int]]) -> Iterator[Tensor]:
        """Logits [m, V] after each of the tokens ``fed`` after the prompts, row by row, in parts."""

    def states(self, texts: Sequence[Tokens]) -> list[Tensor]:
        """States after the last norm, [T, D], of each text's tokens."""

    def operations(self, rows: int) -> float:
        """Operations of an average matrix product in a step of so many rows, by which threads are chosen."""

    def flops_per_token(self, context: int) -> int:
        """FLOP of one token's forward pass with ``context`` tokens before it."""

    def twin(self) -> Self:
        """Another runner with the same weights, for an engine in another thread."""


class Weights:
    """Detects changes of a module's weights, and identifies them."""

    def __init__(self, model: nn.Module, config: str) -> None:
        """``config``: the model's configuration, as JSON."""
        self.model = model
        self.config = config
        # torch counts no writes to tensors made in inference mode
        self._counted = [p for p in model.parameters() if not p.is_inference()]

    def changes(self) -> int:
        """torch's count of writes to the weights, which grows with each in-place change."""
        return sum(p._version for p in self._counted)

    @torch.no_grad()
    def fingerprint(self) -> str:
        """OpenAI's ``system_fingerprint``: equal fingerprints give equal answers for a seed."""
        digest = hashlib.sha256(f"klype {klype.__version__} torch {torch.__version__}".encode())
        digest.update(self.config.encode())
        for name, weight in sorted(self.model.state_dict().items()):
            digest.update(f"{name} {weight.dtype} {tuple(weight.shape)}".encode())
            plain = weight.to_dense() if weight.is_mkldnn else weight  # packed in oneDNN's blocks
            digest.update(plain.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
        return f"fp_{digest.hexdigest()[:12]}"


class NativeRunner:
    """The runner of klype's own Transformer. All rows that continue a prompt share its KV."""

    def __init__(self, model: Transformer) -> None:
        self.model = model
        self.weights = Weights(model, model.config.model_dump_json())
        self.window, self.vocab_size = model.config.window, model.config.vocab_size
        # forward passes over prompts and given answers, and tokens computed of prompts, without padding
        self.passes = self.tokens = 0
        self.clear()
        self.forget()

    @torch.inference_mode()
    def prefill(self, prompts: Sequence[Tokens]) -> list[CachedPrompt[SharedKV]]:
        # a prompt that is a prefix of another is read with it: the longest prompts, with the lengths that are wanted
        wanted, host = dict[Tokens, list[int]](), Tokens()
        # in sorted order a text is right before those that begin with it
        for prompt in sorted(set(prompts), reverse=True):
            host = host if host[: len(prompt)] == prompt else prompt
            wanted.setdefault(host, []).append(len(prompt))
        hosts = sorted(wanted)
        for prefix in shared_prefixes(hosts):
            if self.index.find(prefix).length < len(prefix) - BLOCK:
                self._compute([prefix], {prefix: [len(prefix)]})
        found: dict[Tokens, CachedPrompt[SharedKV]] = {}
        for batch in self._batches(hosts, wanted):
            found.update((prompt.tokens, prompt) for prompt in self._compute(batch, wanted))
        return [found[prompt] for prompt in prompts]

    def order(self, prompts: Sequence[CachedPrompt[SharedKV]]) -> list[int]:
        number = store_order([prompt.prefix.store for prompt in prompts])
        return sorted(range(len(prompts)), key=lambda i: (number[i], prompts[i].prefix.slot))

    def append(self, prompts: Sequence[CachedPrompt[SharedKV]], counts: Sequence[int]) -> None:
        if self._cache.rows and not self._cache.stores:
            self._cache.share()
        new = [prompt.prefix for prompt, count in zip(prompts, counts, strict=True) for _ in range(count)]
        append_rows(self._cache, new)
        self._settle()

    def decode(self, tokens_R: Tensor) -> Tensor:
        tokens_R1 = tokens_R[:, None].to(self._cache.device)
        return self.model.unembed(self.model.hidden(tokens_R1, self._cache)[:, 0])

    def remove(self, ended_R: npt.NDArray[np.bool_]) -> Indices:
        order = self._cache.remove(ended_R)
        if self.model.decoder is not None:
            self._settle()
        return order

    def clear(self) -> None:
        self._cache = self.model.new_cache()

    def forget(self) -> None:
        self.index: PrefixIndex[SharedKV] = PrefixIndex(REMEMBERED)

    @torch.inference_mode()
    def fed_logits(self, prompts: Sequence[CachedPrompt[SharedKV]], fed: Sequence[Sequence[int]]) -> Iterator[Tensor]:
        T = max(map(len, fed))
        if not T:
            return
        cache = self.model.new_cache()
        append_rows(cache, [prompt.prefix for prompt in prompts])
        tokens_RT = torch.tensor([[*row, *(0,) * (T - len(row))] for row in fed], device=cache.device)
        hidden_RTD = self.model.hidden(tokens_RT, cache)
        self.passes += 1
        hidden_MD = torch.cat([hidden_RTD[row, : len(own)] for row, own in enumerate(fed)])
        for part_MD in torch.split(hidden_MD, max(1, ENTRIES // self.vocab_size)):
            yield self.model.unembed(part_MD)

    @torch.inference_mode()
    def states(self, texts: Sequence[Tokens]) -> list[Tensor]:
        lengths = [len(text) for text in texts]
        wanted_RT = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
        tokens_RT = torch.tensor([[*text, *(0,) * (max(lengths) - len(text))] for text in texts])
        device = self._cache.device
        return list(torch.split(self.model.states_at(tokens_RT.to(device), wanted_RT.to(device)), lengths))

    def operations(self, rows: int) -> float:
        """Counted in bytes of float32: 16-bit weights take half as long, and with few rows a product takes as long as
        its matrix takes to arrive from memory."""
        config = self.model.config
        numbers = config.flops_per_token / 2 / (PRODUCTS * config.layers + 1)
        return numbers * self.model.dtype.itemsize * max(rows / 2, FETCHED)

    def flops_per_token(self, context: int) -> int:
        return self.model.config.flops_at(context)

    def twin(self) -> "NativeRunner":
        return NativeRunner(self.model)

    def _settle(self) -> None:
        """Copy the shared KV of a lone row, or of few rows where the model has a fused decoder, into the rows."""
        rows, few = self._cache.rows, self.model.decoder is not None
        if self._cache.stores and (rows == 1 or (few and rows <= FEW and self._cache.lengths.sum() <= COPIED)):
            self._cache.unshare()

    def _batches(self, hosts: list[Tokens], wanted: dict[Tokens, list[int]]) -> list[list[Tokens]]:
        """Batches of prompts of similar length, so that little is padding; a small model's may differ more."""
        rest = {prompt: len(prompt) - self._start(prompt, wanted).length for prompt in hosts}
        spare = SPARE * self.model.config.layers // self.model.config.flops_per_token
        batches: list[list[Tokens]] = []
        padding = read = 0
        for prompt in sorted(hosts, key=lambda p: rest[p]):
            if batches:
                batch = batches[-1]
                padding += len(batch) * (rest[prompt] - rest[batch[-1]])
                alike = padding <= spare + read // PADDING
                if alike and (len(batch) + 1) * min(rest[prompt], CHUNK) <= PADDED:
                    batch.append(prompt)
                    read += rest[prompt]
                    continue
            batches.append([prompt])
            padding, read = 0, rest[prompt]
        return batches

    def _compute(self, batch: list[Tokens], wanted: dict[Tokens, list[int]]) -> list[CachedPrompt[SharedKV]]:
        starts = [self._start(prompt, wanted) for prompt in batch]
        if any(start.length for start in starts):
            cache = self.model.new_cache()
            order = sorted(range(len(batch)), key=store_order([start.store for start in starts]).__getitem__)
            batch, starts = [batch[i] for i in order], [starts[i] for i in order]
            for _, group in groupby(starts, key=lambda start: id(start.store)):
                (store, *_), slots, lengths = zip(*group, strict=True)
                if store is None:
                    store = self.model.new_cache(1).to_shared()
                elif len(used := np.unique(slots)) < len(store.lengths):
                    # attention reads all slots of a store: drop those that are not used
                    store, slots = store.take(used), tuple(np.searchsorted(used, slots).tolist())
                cache.append(store, slots, lengths)
        else:
            cache = self.model.new_cache(len(batch))
        begin = np.array([start.length for start in starts])
        whole = np.array([len(prompt) for prompt in batch])
        asks = [(row, length) for row, prompt in enumerate(batch) for length in sorted(set(wanted[prompt]))]
        states: dict[tuple[int, int], Tensor] = {}
        longest = int((whole - begin).max())
        for first in range(0, longest, CHUNK):
            done, T = np.minimum(begin + first, whole), min(CHUNK, longest - first)
            rows = [prompt[at : at + T] for prompt, at in zip(batch, done, strict=True)]
            tokens_BT = torch.tensor([[*row, *(0,) * (T - len(row))] for row in rows], device=cache.device)
            hidden_BTD = self.model.hidden(tokens_BT, cache)
            cache.truncate(np.minimum(done + T, whole))
            self.passes += 1
            self.tokens += sum(map(len, rows))
            for row, length in asks:
                if done[row] < length <= done[row] + T:
                    states[row, length] = hidden_BTD[row, length - 1 - done[row]]
        logits_AV = self.model.unembed(torch.stack([states[ask] for ask in asks]))
        store = cache.to_shared()
        self.index.add(store, batch, store.nbytes)
        return [
            CachedPrompt(batch[row][:length], CachedPrefix(store, row, length), logits_V)
            for (row, length), logits_V in zip(asks, logits_AV, strict=True)
        ]

    def _start(self, prompt: Tokens, wanted: dict[Tokens, list[int]]) -> CachedPrefix[SharedKV | None]:
        """The known prefix of the prompt, cut so that the last token of its shortest wanted prefix is computed."""
        return self.index.find(prompt, min(wanted[prompt]) - 1)


def append_rows(cache: Cache, prefixes: Sequence[CachedPrefix[SharedKV]]) -> None:
    """Add a row for each prefix, with one call for neighbours of one store."""
    for _, group in groupby(prefixes, key=lambda prefix: id(prefix.store)):
        stores, slots, lengths = zip(*group, strict=True)
        cache.append(stores[0], slots, lengths)


def store_order(stores: Sequence[SharedKV | None]) -> list[int]:
    """The number of each store in order of first appearance, to sort by: by address the order of rows, and with it
    rounding, would differ from run to run."""
    known: dict[int, int] = {}
    return [known.setdefault(id(store), len(known)) for store in stores]
