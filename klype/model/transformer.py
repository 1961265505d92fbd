"""A Llama-shaped decoder. Shapes: B batch, T time, N = B * T, D width, V vocabulary, H query heads, G key heads, K head
width."""

import copy
import math
from typing import Self

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from klype.errors import KlypeError
from klype.model.attention import (
    MATERIALISED,
    TORCH,
    AttentionPass,
    Backend,
    FusedDecoder,
    Rope,
    WholeTexts,
    document_mask,
    document_positions,
    longest_written,
    rope_table,
)
from klype.model.cache import Cache
from klype.model.config import ModelConfig
from klype.model.packed_texts import SharedPrefixes, pack, pack_branches


class Transformer(nn.Module):
    """A decoder-only language model: ``hidden`` computes the trunk, ``unembed`` the head. Losses are computed elsewhere
    (klype.train.objectives).

    Weights are initialised from torch's global generator: seed it first. Matrices are N(0, matrix_gain / sqrt(fan in)),
    embeddings N(0, embed_std), the output projections of each layer and an untied head zero, so that every layer starts
    as the identity.
    """

    causal: Tensor
    cos: Tensor
    sin: Tensor

    def __init__(self, config: ModelConfig, backend: Backend = TORCH) -> None:
        super().__init__()
        self.config = config
        self.backend = backend
        self.decoder: FusedDecoder | None = None
        self.embed = nn.Embedding(config.vocab_size, config.width)
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.layers))
        self.norm = nn.RMSNorm(config.width, config.norm_eps)
        self.head = nn.Linear(config.width, config.vocab_size, bias=False)
        self.reset_parameters()
        if config.tie:
            self.head.weight = self.embed.weight
        self.set_tables()
        self.recompute = False  # whether activations are recomputed in the backward pass instead of kept

    def with_backend(self, backend: Backend, decoder: FusedDecoder | None = None) -> Self:
        """A model that shares these weights and computes with another backend. ``decoder``: computes passes over few
        cached tokens, all layers in one call."""
        other = copy.copy(self)
        other.backend, other.decoder = backend, decoder
        return other

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the activations; matrices may be quantised."""
        return self.norm.weight.dtype

    @property
    def device(self) -> torch.device:
        """The device that the model computes on."""
        return self.norm.weight.device

    def new_cache(self, rows: int = 0) -> Cache:
        """A KV cache with so many empty rows, in this model's dtype and on its device."""
        return Cache(self.config, rows, dtype=self.dtype, device=self.device)

    def packs(self, longest: int) -> bool:
        """Whether ``states_at`` packs texts of at most ``longest`` tokens and computes shared prefixes once."""
        return self.backend.supports(self.config, longest, self.norm.weight)

    def hidden(self, tokens_BT: Tensor, cache: Cache | None = None, document_BT: Tensor | None = None) -> Tensor:
        """States after the last norm, [B, T, D].

        With a cache, the tokens continue each of its rows (which are T longer afterwards). ``document_BT`` are ids of
        packed documents: neither attention nor convolution crosses a border, and positions restart there.
        """
        B, T = tokens_BT.shape
        if cache is None:
            positions = None if document_BT is None else document_positions(document_BT)
            self._check_length(T if positions is None else int(positions.max()) + 1)
            written = min(len(self.causal), longest_written(self.dtype)) >= T
            mask = self.causal[:T, :T] if written else None
            if document_BT is not None:
                mask = document_mask(document_BT, self.dtype)
            at = slice(T) if positions is None else positions
            rope = (self.cos[at], self.sin[at]) if self.config.rope_theta else None
            whole = WholeTexts(self.config, rope, (B, T), mask, positions)
            return self._layers(tokens_BT.flatten(), whole).view(B, T, -1)
        assert document_BT is None, "packed documents and a cache exclude each other"
        cache.reserve(T)
        if self.decoder is not None and self.decoder.supports(cache, T):
            states_BTD = self.decoder.hidden(self.embed(tokens_BT), cache)
        else:
            attention = self.backend.decode(cache, T, self._rope())
            states_BTD = self._layers(tokens_BT.flatten(), attention).view(B, T, -1)
        cache.advance(T)
        return states_BTD

    def states_at(
        self,
        tokens_BT: Tensor,
        wanted_BT: Tensor,
        document_BT: Tensor | None = None,
        *,
        prefixes: SharedPrefixes | None = None,
        spare: int = 0,
    ) -> Tensor:
        """States after the last norm at the wanted positions, in order, and ``spare`` rows of padding unless all
        positions are wanted: [N + spare, D].

        Where the backend packs texts, nothing after a row's last wanted position (such as padding) is computed, and
        what rows share according to ``prefixes`` is computed once.
        """
        assert document_BT is None or prefixes is None, "packed documents and shared prefixes exclude each other"
        # checked twice: whether the backend supports them depends on the longest text, which packing finds
        if self.packs(1):
            packed = pack(wanted_BT, document_BT) if prefixes is None else pack_branches(wanted_BT, prefixes)
            self._check_length(packed.texts.max_seqlen)
            if self.packs(packed.texts.max_seqlen):
                attention = self.backend.packed_pass(self.config, packed.texts, self._rope())
                hidden_ND = self._layers(tokens_BT.flatten()[packed.rows], attention)
                return hidden_ND if packed.wanted is None else _select(hidden_ND, packed.wanted, spare)
        hidden_ND = self.hidden(tokens_BT, document_BT=document_BT).flatten(0, 1)
        wanted_N = wanted_BT.flatten().nonzero()[:, 0]
        return hidden_ND if len(wanted_N) == len(hidden_ND) else _select(hidden_ND, wanted_N, spare)

    def unembed(self, hidden: Tensor) -> Tensor:
        """Logits [..., V] of states [..., D]."""
        logits: Tensor = self.head(hidden)
        return logits

    def forward(self, tokens_BT: Tensor, cache: Cache | None = None, document_BT: Tensor | None = None) -> Tensor:
        """Logits [B, T, V] of the token after each position."""
        return self.unembed(self.hidden(tokens_BT, cache, document_BT))

    def _layers(self, tokens_N: Tensor, attention: AttentionPass) -> Tensor:
        """States after the last norm, [N, D]."""
        x_ND: Tensor = self.embed(tokens_N)
        added_ND: Tensor | None = None
        again = self.recompute and torch.is_grad_enabled()
        for index, layer in enumerate(self.layers):
            if again:  # layers draw no random numbers, so that no generator's state has to be kept
                inputs = x_ND, added_ND, attention, index
                x_ND, added_ND = checkpoint(layer, *inputs, use_reentrant=False, preserve_rng_state=False)
            else:
                x_ND, added_ND = layer(x_ND, added_ND, attention, index)
        return attention.norm(x_ND, added_ND, self.norm)[1]

    def _rope(self) -> Rope | None:
        return (self.cos, self.sin) if self.config.rope_theta else None

    def _check_length(self, length: int) -> None:
        if length > self.config.window:
            raise KlypeError(f"A text of {length} tokens is longer than the model's window of {self.config.window}.")

    def set_tables(self) -> None:
        """Create the causal mask and the rotary tables, which no checkpoint holds. They are real tensors even where the
        weights are on torch's meta device, for whose operations torch would load its compiler."""
        side = min(self.config.window, MATERIALISED)
        # the meta device would leave them without numbers
        with torch.device("cpu"):
            causal = torch.full((side, side), float("-inf")).triu_(1)
            cos, sin = rope_table(self.config) if self.config.rope_theta else (torch.empty(0), torch.empty(0))
        for name, table in (("causal", causal), ("cos", cos), ("sin", sin)):
            self.register_buffer(name, table, persistent=False)

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Initialise the weights."""
        nn.init.normal_(self.embed.weight, std=self.config.embed_std)
        nn.init.zeros_(self.head.weight)
        for layer in self.layers:
            assert isinstance(layer, Layer)
            for matrix in (layer.qkv.weight, layer.gate_up.weight):
                nn.init.normal_(matrix, std=self.config.matrix_gain / math.sqrt(matrix.shape[1]))
            # nothing is added to the stream at first: a layer is the identity, however deep the model
            for matrix in (layer.out.weight, layer.down.weight):
                nn.init.zeros_(matrix)
            if layer.qkv.bias is not None:
                nn.init.zeros_(layer.qkv.bias)
            if layer.taps is not None:
                nn.init.normal_(layer.taps, std=self.config.conv_std)


def _select(states_ND: Tensor, wanted_N: Tensor, spare: int) -> Tensor:
    return states_ND.index_select(0, torch.cat([wanted_N, wanted_N.new_zeros(spare)]) if spare else wanted_N)


# a layer's matrices
MATRICES = ("qkv", "out", "gate_up", "down")


class Layer(nn.Module):
    """A transformer block: attention and a SwiGLU MLP, each with a norm before it and a residual connection.

    ``qkv`` holds the rows of Hugging Face's q, k and v matrices, ``gate_up`` those of gate and up.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        d = config.width
        self.attention_norm = nn.RMSNorm(d, config.norm_eps)
        self.taps = nn.Parameter(torch.empty(config.conv, d)) if config.conv else None
        self.qkv = nn.Linear(d, config.qkv_width, bias=config.qkv_bias)
        self.q_norm = nn.RMSNorm(config.head_dim, config.norm_eps) if config.qk_norm else None
        self.k_norm = nn.RMSNorm(config.head_dim, config.norm_eps) if config.qk_norm else None
        self.out = nn.Linear(config.heads * config.head_dim, d, bias=False)
        self.mlp_norm = nn.RMSNorm(d, config.norm_eps)
        self.gate_up = nn.Linear(d, 2 * config.hidden, bias=False)
        self.down = nn.Linear(config.hidden, d, bias=False)

    def forward(
        self, x_ND: Tensor, added_ND: Tensor | None, attention: AttentionPass, index: int
    ) -> tuple[Tensor, Tensor | None]:
        """The residual stream after layer ``index`` of the model, and the term still to be added to it (None: none)."""
        x_ND, u_ND = attention.norm(x_ND, added_ND, self.attention_norm, self.taps, index)
        added_ND = self.out(attention.attend(self.qkv(u_ND), (self.q_norm, self.k_norm), index))
        x_ND, u_ND = attention.norm(x_ND, added_ND, self.mlp_norm)
        return attention.add(x_ND, self.down(attention.swiglu(self.gate_up(u_ND))))
