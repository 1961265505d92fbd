"""Configuration and weights to and from Hugging Face's names: Llama, Mistral, Qwen2, Qwen3, and klype's own model type.

A shape that one of those architectures computes is saved as that one, so that the folder is an ordinary Hugging Face
directory. A model with the convolution, without rotary positions, or with both qkv biases and q/k norms has model_type
"klype" (see klype/hf.py).
"""

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from klype.errors import KlypeError
from klype.model.config import ModelConfig
from klype.model.transformer import Transformer
from klype.text.tokenizer_files import HINT

OWN = "klype"
ARCHITECTURES = {
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    OWN: "KlypeForCausalLM",
}
# a larger weight is damaged (one flipped bit can do that): squared in the next norm it would overflow, and all
# probabilities would be NaN
MAX_WEIGHT = 1e15
PREFIX = "transformer."  # of klype's own names in a file of model_type "klype"
# names of weights: ours, then Hugging Face's (one or several, in the order of rows) with llama.cpp's
NAMES = {
    "embed": {"model.embed_tokens": "token_embd"},
    "norm": {"model.norm": "output_norm"},
    "head": {"lm_head": "output"},
    "attention_norm": {"input_layernorm": "attn_norm"},
    "qkv": {"self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v"},
    "q_norm": {"self_attn.q_norm": "attn_q_norm"},
    "k_norm": {"self_attn.k_norm": "attn_k_norm"},
    "out": {"self_attn.o_proj": "attn_output"},
    "mlp_norm": {"post_attention_layernorm": "ffn_norm"},
    "gate_up": {"mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up"},
    "down": {"mlp.down_proj": "ffn_down"},
}
_SCALING: dict[str, dict[str, str]] = {  # fields of RopeScaling by its kind: ours to theirs
    "default": {},
    "linear": {"factor": "factor"},
    "llama3": {
        **{name: name for name in ("factor", "low_freq_factor", "high_freq_factor")},
        "original_window": "original_max_position_embeddings",
    },
}
_INITIAL = ("embed_std", "matrix_gain", "conv_std")
_OWN_FIELDS = ("conv", "qkv_bias", "qk_norm")
_FALSE = {  # switches of an architecture that are off
    "llama": ("attention_bias", "mlp_bias"),
    "qwen2": ("use_sliding_window",),
    "qwen3": ("attention_bias", "use_sliding_window"),
}
_FIELDS = {  # of the configuration: ours to Hugging Face's
    "vocab_size": "vocab_size",
    "width": "hidden_size",
    "layers": "num_hidden_layers",
    "heads": "num_attention_heads",
    "kv_heads": "num_key_value_heads",
    "head_dim": "head_dim",
    "hidden": "intermediate_size",
    "window": "max_position_embeddings",
    "rope_theta": "rope_theta",
    "norm_eps": "rms_norm_eps",
    "tie": "tie_word_embeddings",
}


def model_type(config: ModelConfig) -> str:
    """The Hugging Face architecture that computes the same as this shape."""
    if config.conv or not config.rope_theta or (config.qkv_bias and config.qk_norm):
        return OWN
    # Qwen2's configuration has no head_dim: it is width / heads
    if config.qkv_bias:
        return "qwen2" if config.head_dim * config.heads == config.width else OWN
    return "qwen3" if config.qk_norm else "llama"


def config_to_hf(config: ModelConfig) -> dict[str, Any]:
    """The content of config.json."""
    kind = model_type(config)
    out: dict[str, Any] = {"architectures": [ARCHITECTURES[kind]], "model_type": kind}
    out |= {theirs: getattr(config, ours) for ours, theirs in _FIELDS.items()}
    out |= {"hidden_act": "silu", "klype_initial": {name: getattr(config, name) for name in _INITIAL}}
    if (scaling := config.rope_scaling) is not None:
        names = _SCALING[scaling.kind].items()
        out["rope_scaling"] = {"rope_type": scaling.kind, **{theirs: getattr(scaling, ours) for ours, theirs in names}}
    out |= {name: False for name in _FALSE.get(kind, ())}
    return out | {name: getattr(config, name) for name in _OWN_FIELDS if kind == OWN}


def config_from_hf(data: dict[str, Any], where: str) -> ModelConfig:
    """From the content of config.json. Raises KlypeError that names what klype's architecture does not have."""
    kind = data.get("model_type")
    if not isinstance(kind, str) or kind not in ARCHITECTURES:
        raise KlypeError(
            f"{where} is of the architecture {kind!r:.60}, which klype cannot load.",
            f"It loads {', '.join(ARCHITECTURES)}; serve others elsewhere and give their address.",
        )
    if data.get("hidden_act", "silu") not in ("silu", "swish"):
        raise KlypeError(f"{where} has the activation {data['hidden_act']!r:.60}; klype has silu only.")
    for name in ("attention_bias", "mlp_bias"):
        if kind != OWN and data.get(name):
            raise KlypeError(f"{where} has {name}, which klype cannot load.")
    try:
        window = data.get("max_position_embeddings") or 2048
        # Qwen's files name a sliding window that they do not use
        slides = data.get("sliding_window") if kind == "mistral" or data.get("use_sliding_window") else None
        # transformers 5 writes both in one, under another name
        rope = data.get("rope_parameters") or data.get("rope_scaling") or {}
        stretch = rope.get("rope_type", rope.get("type", "default"))
        if stretch not in _SCALING:
            raise KlypeError(f"{where} stretches its positions by {stretch!r:.60}; klype has linear and llama3.")
        scaling = {ours: rope[theirs] for ours, theirs in _SCALING[stretch].items()}
        fields = {
            **{ours: data[_FIELDS[ours]] for ours in ("vocab_size", "width", "layers", "heads", "hidden")},
            "kv_heads": data.get("num_key_value_heads") or 0,
            "head_dim": data.get("head_dim") or 0,
            "window": min(window, slides) if slides else window,
            "rope_theta": rope.get("rope_theta", data.get("rope_theta", 10_000.0)),
            "rope_scaling": None if stretch == "default" else {"kind": stretch, **scaling},
            "norm_eps": data.get("rms_norm_eps", 1e-6),
            "tie": data.get("tie_word_embeddings", False),
            "conv": 0,
            "qkv_bias": kind == "qwen2",
            "qk_norm": kind == "qwen3",
            **{name: data[name] for name in _OWN_FIELDS if kind == OWN and name in data},
            **{k: v for k, v in (data.get("klype_initial") or {}).items() if k in _INITIAL},
        }
    except (KeyError, TypeError, AttributeError) as error:
        raise KlypeError(f"{where} lacks or misspells {error}.", "Fetch the model again.") from error
    return ModelConfig.parse(fields, where)


def weights_to_hf(model: Transformer) -> dict[str, Tensor]:
    """The weights of model.safetensors by name: contiguous, without a tied head."""
    config = model.config
    own = {n: p.detach().cpu() for n, p in model.state_dict().items() if not (config.tie and n == "head.weight")}
    if model_type(config) == OWN:
        return {PREFIX + name: p.contiguous() for name, p in own.items()}
    out: dict[str, Tensor] = {}
    for name, theirs, rows in pieces(config):
        if len(theirs) == 1:
            out[theirs[0]] = own[name].contiguous()
        else:  # copies, since safetensors refuses tensors that share memory
            out |= {their: part.clone() for their, part in zip(theirs, own[name].split(rows), strict=True)}
    return out


def weights_from_hf(
    config: ModelConfig, get: Callable[[str], Tensor], without: Collection[str] = ()
) -> Iterator[tuple[str, Tensor]]:
    """Our names with their weights, one at a time, from a function that returns Hugging Face's by name; ``without``:
    our names that are skipped."""
    for name, theirs, _ in pieces(config):
        if name not in without:
            yield name, get(theirs[0]) if len(theirs) == 1 else torch.cat([get(t) for t in theirs])


def hf_shapes(config: ModelConfig) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Name and shape of each weight in a checkpoint of this configuration. Nothing is built for it: an untrusted
    configuration may ask for more than any memory holds."""
    D, Q, K, H = config.width, config.qkv_width, config.head_dim, config.hidden
    part = {"embed": (config.vocab_size, D), "head": (config.vocab_size, D), "norm": (D,)}
    part |= {"attention_norm": (D,), "mlp_norm": (D,), "q_norm": (K,), "k_norm": (K,), "taps": (config.conv, D)}
    part |= {"qkv": (Q, D), "out": (D, config.heads * K), "gate_up": (2 * H, D), "down": (D, H)}
    for name, theirs, rows in pieces(config):
        own = name.removesuffix(".weight").removesuffix(".bias").rpartition(".")[2]
        shape = part[own][:1] if name.endswith(".bias") else part[own]
        for their, count in zip(theirs, rows, strict=True):
            yield their, shape if len(theirs) == 1 else (count, *shape[1:])


def pieces(config: ModelConfig) -> Iterator[tuple[str, list[str], list[int]]]:
    """For each weight its name, the names in a file whose rows it has, in order, and how many rows each of several has
    (one: [0])."""
    layer = ["attention_norm.weight", "qkv.weight", "out.weight", "mlp_norm.weight", "gate_up.weight", "down.weight"]
    layer += ["qkv.bias"] * config.qkv_bias + ["q_norm.weight", "k_norm.weight"] * config.qk_norm
    layer += ["taps"] * bool(config.conv)
    numbered = (f"layers.{number}.{name}" for number in range(config.layers) for name in layer)
    query, key = config.heads * config.head_dim, config.kv_heads * config.head_dim
    rows = {"qkv": [query, key, key], "gate_up": [config.hidden] * 2}
    own = model_type(config) == OWN
    for name in chain(["embed.weight"], numbered, ["norm.weight"], [] if config.tie else ["head.weight"]):
        if own:
            yield name, [PREFIX + name], [0]
        else:
            *at, part, last = name.split(".")
            before = f"model.layers.{at[1]}." if at else ""
            yield name, [f"{before}{their}.{last}" for their in NAMES[part]], rows.get(part, [0])


@dataclass(frozen=True, slots=True)
class WeightEntry:
    """A weight in a file: its type as the file format names it, its shape (rows first), and its bytes [start, stop)."""

    file: Path
    kind: Any
    shape: tuple[int, ...]
    start: int
    stop: int

    def read(self) -> Tensor:
        """Its bytes, read and not mapped: pages of the file would count as memory beside the weights made of them.
        KlypeError when they cannot be read."""
        raw = torch.empty(self.stop - self.start, dtype=torch.uint8)
        try:
            with open(self.file, "rb") as stream:
                stream.seek(self.start)
                size = stream.readinto(raw.numpy().data)
        except OSError as error:
            raise KlypeError(f"{self.file} cannot be read: {error.strerror}.", HINT) from error
        if size != len(raw):
            raise KlypeError(f"{self.file} was cut short while it was read.", HINT)
        return raw


def is_finite(weight: Tensor) -> bool:
    """Whether the weight has no NaN, infinity or value above ``MAX_WEIGHT``. (Its extremes show all of these, several
    times faster than an elementwise test.)"""
    return weight.numel() == 0 or bool((torch.stack(weight.aminmax()).abs() <= MAX_WEIGHT).all())
