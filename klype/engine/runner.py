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
from klype.engine.prefix_cache import CachedPrefix, CachedPrompt, PrefixCache, PrefixIndex, Tokens, numbered
from klype.model.cache import Cache, Indices, SharedKV
from klype.model.transformer import Transformer

# up to this many rows get a copy of their shared KV when that lets one call compute a step
FEW = 8
PRODUCTS = 4  # matrix products per layer: qkv, out, gate+up, down
FETCHED = 10  # operations in the time that a byte of a matrix takes to arrive from memory
COPIED = 4096  # tokens that such copies may hold in all
# most logits of forced answers held at a time
ENTRIES = 1 << 23


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

    def forced(self, prompts: Sequence[CachedPrompt[Any]], fed: Sequence[Sequence[int]]) -> Iterator[Tensor]:
        """Logits [m, V] after each of the tokens ``fed`` after the prompts, row by row, in parts."""

    def states(self, texts: Sequence[Tokens]) -> list[Tensor]:
        """States after the last norm, [T, D], of each text's tokens."""

    def operations(self, rows: int) -> float:
        """Operations of an average matrix product in a step of so many rows, by which threads are chosen."""

    def flops_per_token(self, context: int) -> int:
        """FLOP of one token's forward pass with ``context`` tokens before it."""

    def beside(self) -> Self:
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
        self.clear()
        self.forget()

    def prefill(self, prompts: Sequence[Tokens]) -> list[CachedPrompt[SharedKV]]:
        return self.prefixes.read(prompts)

    def order(self, prompts: Sequence[CachedPrompt[SharedKV]]) -> list[int]:
        number = numbered([prompt.prefix.store for prompt in prompts])
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
        self.prefixes = PrefixCache(self.model)
        self.index = self.prefixes.index

    @torch.inference_mode()
    def forced(self, prompts: Sequence[CachedPrompt[SharedKV]], fed: Sequence[Sequence[int]]) -> Iterator[Tensor]:
        T = max(map(len, fed))
        if not T:
            return
        cache = self.model.new_cache()
        append_rows(cache, [prompt.prefix for prompt in prompts])
        tokens_RT = torch.tensor([[*row, *(0,) * (T - len(row))] for row in fed], device=cache.device)
        hidden_RTD = self.model.hidden(tokens_RT, cache)
        self.prefixes.passes += 1
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

    def beside(self) -> "NativeRunner":
        return NativeRunner(self.model)

    def _settle(self) -> None:
        """Copy the shared KV of a lone row, or of few rows where the model has a fused decoder, into the rows."""
        rows, few = self._cache.rows, self.model.decoder is not None
        if self._cache.stores and (rows == 1 or (few and rows <= FEW and self._cache.lengths.sum() <= COPIED)):
            self._cache.unshare()


def append_rows(cache: Cache, prefixes: Sequence[CachedPrefix[SharedKV]]) -> None:
    """Add a row for each prefix, with one call for neighbours of one store."""
    for _, group in groupby(prefixes, key=lambda prefix: id(prefix.store)):
        stores, slots, lengths = zip(*group, strict=True)
        cache.append(stores[0], slots, lengths)
