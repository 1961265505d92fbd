"""A Llama-shaped decoder. Shapes: B batch, T time, D width, V vocabulary, H query heads, G key heads, K head width."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.functional import silu
from torch.utils.checkpoint import checkpoint

from klype.errors import KlypeError
from klype.model.attention import (
    MATERIALISED,
    attend,
    convolve,
    document_mask,
    document_positions,
    rope_table,
    rotate,
    written_up_to,
)
from klype.model.compiled import suits
from klype.model.config import ModelConfig
from klype.model.packed import Stems, Texts, grown, laid_out

if TYPE_CHECKING:
    from klype.model.cache import Cache
    from klype.model.cached_attention import Pass
    from klype.model.compiled import Fused, OneMore
    from klype.model.prepacked import Stepper


class Transformer(nn.Module):
    """Trunk (``hidden``) and head (``unembed``) are separable; losses are the objectives' business.

    Weights are drawn from torch's generator: seed it before. Matrices are N(0, matrix_gain / sqrt(fan in)), embeddings
    N(0, embed_std), the output projections of each layer and an untied head zero: every layer starts as the identity.
    """

    causal: Tensor
    cos: Tensor
    sin: Tensor

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.embed = nn.Embedding(config.vocab_size, config.width)
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.layers))
        self.norm = nn.RMSNorm(config.width, config.norm_eps)
        self.head = nn.Linear(config.width, config.vocab_size, bias=False)
        self._initialise()
        if config.tie:
            self.head.weight = self.embed.weight
        side = min(config.window, MATERIALISED)
        self.register_buffer("causal", torch.full((side, side), float("-inf")).triu_(1), persistent=False)
        cos, sin = rope_table(config) if config.rope_theta else (torch.empty(0), torch.empty(0))
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)
        self.stepper: Stepper | None = None  # what computes few tokens at a time, where something does
        self.fused: Fused | None = None  # what computes between the products, where something does
        self.recompute = False  # whether a layer's activations are computed again in backward instead of kept

    def hidden(self, tokens_BT: Tensor, cache: Cache | None = None, document_BT: Tensor | None = None) -> Tensor:
        """States after the last norm, [B, T, D].

        With a cache, the tokens continue each of its rows (which are T longer afterwards). ``document_BT`` are ids of
        packed documents: neither attention nor convolution crosses a border, and positions restart there.
        """
        x_BTD: Tensor = self.embed(tokens_BT)
        if cache is not None:
            assert document_BT is None, "packed documents and a cache exclude each other"
            return self._cached(x_BTD, cache)
        T = tokens_BT.shape[1]
        mask: Tensor | None
        if document_BT is None:
            self._check_length(T)
            written = min(self.causal.shape[0], written_up_to(x_BTD.dtype))
            positions, mask = None, self.causal[:T, :T] if written >= T else None
            rope = (self.cos[:T], self.sin[:T]) if self.config.rope_theta else None
        else:
            positions, mask = document_positions(document_BT), document_mask(document_BT, x_BTD.dtype)
            self._check_length(int(positions.max()) + 1)
            rope = (self.cos[positions], self.sin[positions]) if self.config.rope_theta else None
        for layer in self.layers:
            x_BTD = self._through(layer, x_BTD, rope, mask, positions)
        normed: Tensor = self.norm(x_BTD)
        return normed

    def states_at(
        self,
        tokens_BT: Tensor,
        wanted_BT: Tensor,
        document_BT: Tensor | None = None,
        *,
        stems: Stems | None = None,
        spare: int = 0,
    ) -> Tensor:
        """States after the last norm at the wanted positions, [N, D], in their order; then ``spare`` of no meaning.

        With ``fused``, nothing is computed for what follows a row's last wanted position, such as padding, and what
        rows begin with alike, as ``stems`` says, only once.
        """
        assert document_BT is None or stems is None, "packed documents and stems exclude each other"
        if self.fused is not None and self.fused.takes(self.embed.weight):
            laid = laid_out(wanted_BT, document_BT) if stems is None else grown(wanted_BT, stems)
            self._check_length(laid.texts.longest)
            if self.fused.suits(self.config, laid.texts.longest, self.embed.weight):
                hidden_ND = self._laid(self.fused, tokens_BT.flatten()[laid.rows], laid.texts)
                return hidden_ND if laid.wanted is None else _picked(hidden_ND, laid.wanted, spare)
        hidden_ND = self.hidden(tokens_BT, document_BT=document_BT).flatten(0, 1)
        wanted_N = wanted_BT.flatten().nonzero()[:, 0]
        return hidden_ND if len(wanted_N) == len(hidden_ND) else _picked(hidden_ND, wanted_N, spare)

    def unembed(self, hidden: Tensor) -> Tensor:
        """Logits [..., V] of states [..., D]."""
        logits: Tensor = self.head(hidden)
        return logits

    def forward(self, tokens_BT: Tensor, cache: Cache | None = None, document_BT: Tensor | None = None) -> Tensor:
        """Logits [B, T, V] of the token after each position."""
        return self.unembed(self.hidden(tokens_BT, cache, document_BT))

    def _laid(self, fused: Fused, tokens_N: Tensor, texts: Texts) -> Tensor:
        """States after the last norm, [N, D], of texts that lie end to end."""
        rope = (self.cos.float(), self.sin.float()) if self.config.rope_theta else None
        x_ND: Tensor = self.embed(tokens_N)
        added_ND: Tensor | None = None
        for layer in self.layers:
            assert isinstance(layer, Layer)
            x_ND, added_ND = self._through(layer.laid, x_ND, added_ND, fused, rope, texts)
        return fused.norm(x_ND, added_ND, self.norm, None, texts)[1]

    def _through(self, layer: Callable[..., Any], *inputs: Any) -> Any:
        if self.recompute and torch.is_grad_enabled():
            return checkpoint(layer, *inputs, use_reentrant=False, preserve_rng_state=False)  # nothing is drawn
        return layer(*inputs)

    def _cached(self, x_BTD: Tensor, cache: Cache) -> Tensor:
        if self.stepper is not None and self.stepper.takes(cache, x_BTD.shape[1]):
            return self.stepper.hidden(x_BTD, cache)
        if self.fused is not None and suits(self.fused, cache, x_BTD):
            return self._one_more(x_BTD[:, 0], cache, self.fused)[:, None]
        step = cache.begin(x_BTD.shape[1])
        rope = (self.cos[step.positions], self.sin[step.positions]) if self.config.rope_theta else None
        for index, layer in enumerate(self.layers):
            assert isinstance(layer, Layer)
            x_BTD = layer.cached(x_BTD, rope, step, index)
        step.end()
        normed: Tensor = self.norm(x_BTD)
        return normed

    def _one_more(self, x_RD: Tensor, cache: Cache, fused: Fused) -> Tensor:
        rows = cache.begin_one(fused, (self.cos, self.sin) if self.config.rope_theta else None)
        added_RD: Tensor | None = None
        for index, layer in enumerate(self.layers):
            assert isinstance(layer, Layer)
            x_RD, added_RD = layer.one_more(x_RD, added_RD, rows, index)
        rows.end()
        return fused.norm(x_RD, added_RD, self.norm, None, rows.texts)[1]

    def _check_length(self, length: int) -> None:
        if length > self.config.window:
            raise KlypeError(f"A text of {length} tokens is longer than the model's window of {self.config.window}.")

    @torch.no_grad()
    def _initialise(self) -> None:
        nn.init.normal_(self.embed.weight, std=self.config.embed_std)
        nn.init.zeros_(self.head.weight)
        for layer in self.layers:
            assert isinstance(layer, Layer)
            for matrix in (layer.qkv.weight, layer.gate_up.weight):
                nn.init.normal_(matrix, std=self.config.matrix_gain / math.sqrt(matrix.shape[1]))
            for matrix in (layer.out.weight, layer.down.weight):
                nn.init.zeros_(matrix)
            if layer.qkv.bias is not None:
                nn.init.zeros_(layer.qkv.bias)
            if layer.taps is not None:
                nn.init.normal_(layer.taps, std=self.config.conv_std)


def _picked(states_ND: Tensor, wanted_N: Tensor, spare: int) -> Tensor:
    return states_ND.index_select(0, torch.cat([wanted_N, wanted_N.new_zeros(spare)]) if spare else wanted_N)


class Layer(nn.Module):
    """Attention, then SwiGLU, each on a normed input and added to the stream.

    ``qkv`` holds the rows of q, k, v; ``gate_up`` those of gate, up: the order of Hugging Face's apart matrices.
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
        self, x_BTD: Tensor, rope: tuple[Tensor, Tensor] | None, mask: Tensor | None, positions: Tensor | None
    ) -> Tensor:
        u_BTD = self.attention_norm(x_BTD)
        if self.taps is not None:
            u_BTD = convolve(u_BTD, self.taps, positions)
        x_BTD = x_BTD + self.out(attend(*self.heads(u_BTD, rope), mask))
        return x_BTD + self.mlp(x_BTD)

    def laid(
        self,
        x_ND: Tensor,
        added_ND: Tensor | None,
        fused: Fused,
        rope: tuple[Tensor, Tensor] | None,
        texts: Texts,
    ) -> tuple[Tensor, Tensor]:
        """As ``forward``, of texts that lie end to end. What is to be added to the stream stays beside it."""
        x_ND, u_ND = fused.norm(x_ND, added_ND, self.attention_norm, self.taps, texts)
        added_ND = self.out(fused.attention(self.qkv(u_ND), self.config, rope, texts))
        x_ND, u_ND = fused.norm(x_ND, added_ND, self.mlp_norm, None, texts)
        return x_ND, self.down(fused.swiglu(self.gate_up(u_ND)))

    def cached(self, x_BTD: Tensor, rope: tuple[Tensor, Tensor] | None, step: Pass, index: int) -> Tensor:
        """As ``forward``, continuing what the cache holds for this layer."""
        u_BTD = self.attention_norm(x_BTD)
        if self.taps is not None:
            u_BTD = step.convolve(index, u_BTD, self.taps)
        B, T, _ = u_BTD.shape
        heads_NBTK = self.qkv(u_BTD).view(B, T, -1, self.config.head_dim).permute(2, 0, 1, 3)
        q, k, v = self._rotated(heads_NBTK, rope)
        x_BTD = x_BTD + self.out(step.attend(index, q, k, v))
        return x_BTD + self.mlp(x_BTD)

    def one_more(self, x_RD: Tensor, added_RD: Tensor | None, rows: OneMore, index: int) -> tuple[Tensor, Tensor]:
        """As ``laid``, of one token more of every row of a cache."""
        fused = rows.fused
        x_RD, u_RD = fused.norm(x_RD, added_RD, self.attention_norm, None, rows.texts)
        if self.taps is not None:
            u_RD = rows.convolve(index, u_RD, self.taps)
        added_RD = self.out(rows.attend(index, self.qkv(u_RD), self))
        x_RD, u_RD = fused.norm(x_RD, added_RD, self.mlp_norm, None, rows.texts)
        return x_RD, self.down(fused.swiglu(self.gate_up(u_RD)))

    def heads(self, u_BTD: Tensor, rope: tuple[Tensor, Tensor] | None) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values of normed inputs, heads first, rotated."""
        B, T, _ = u_BTD.shape
        heads_NBTK = self.qkv(u_BTD).view(B, T, -1, self.config.head_dim).permute(2, 0, 1, 3).contiguous()
        return self._rotated(heads_NBTK, rope)

    def _rotated(self, heads_NBTK: Tensor, rope: tuple[Tensor, Tensor] | None) -> tuple[Tensor, Tensor, Tensor]:
        H, G = self.config.heads, self.config.kv_heads
        if self.q_norm is not None and self.k_norm is not None:
            q, k = self.q_norm(heads_NBTK[:H]), self.k_norm(heads_NBTK[H : H + G])
            if rope is not None:
                q, k = rotate(q, *rope), rotate(k, *rope)
        elif rope is not None:
            rotated = rotate(heads_NBTK[: H + G], *rope)
            q, k = rotated[:H], rotated[H:]
        else:
            q, k = heads_NBTK[:H], heads_NBTK[H : H + G]
        return q, k, heads_NBTK[H + G :]

    def mlp(self, x_BTD: Tensor) -> Tensor:
        gate, up = self.gate_up(self.mlp_norm(x_BTD)).chunk(2, -1)
        out: Tensor = self.down(silu(gate) * up)
        return out
