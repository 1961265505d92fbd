"""A GGUF file gives the weights, the tokenizer and the template that went into it."""

import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import toys

from klype.errors import KlypeError
from klype.model.checkpoint import load
from klype.model.convert import weights_to_hf
from klype.model.transformer import Transformer
from klype.text.chat import TEMPLATE
from klype.text.tokenizer import Tokenizer

gguf = pytest.importorskip("gguf")

MERGES = Tokenizer.train(["Hunden drakk vann. Katten drakk melk, og de andre katter drakk ikke."], 270, TEMPLATE)
TOKENS = torch.arange(24).reshape(2, 12) * 7 % MERGES.vocab_size
TENSORS = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


Vocabulary = Sequence[tuple[str, float, int]]
"""Tokens of SentencePiece with their scores and types."""


def model(kind: str, **shape: Any) -> Transformer:
    shape = {"vocab_size": MERGES.vocab_size, "width": 32, "hidden": 64, "heads": 4, "kv_heads": 2, **shape}
    return toys.toy("llama", **shape, **({"qkv_bias": True} if kind == "qwen2" else {}))


def tensor_name(name: str) -> str:
    parts = name.split(".")
    last = parts.pop()
    if parts[:2] == ["model", "layers"]:
        return f"blk.{parts[2]}.{TENSORS['.'.join(parts[3:])]}.{last}"
    return f"{TENSORS['.'.join(parts)]}.{last}"


def pair_by_pair(weight: np.ndarray[Any, Any], heads: int) -> np.ndarray[Any, Any]:
    """llama.cpp's order of the rows that are rotated together: first of the first half, first of the second, …"""
    per_head = weight.reshape(heads, 2, -1, *weight.shape[1:])
    return np.stack([per_head[:, 0], per_head[:, 1]], axis=2).reshape(weight.shape)


def written(file: Path, kind: str = "llama", ours: Transformer | None = None, **changes: Any) -> Path:
    """A GGUF file of the toy model; ``changes`` replace fields of its metadata. ``pack`` writes matrices, ``pieces``
    are SentencePiece's vocabulary."""
    ours = model(kind) if ours is None else ours
    config = ours.config
    writer = gguf.GGUFWriter(file, changes.get("architecture", kind))
    for field, value in (
        ("block_count", config.layers),
        ("context_length", config.window),
        ("embedding_length", config.width),
        ("feed_forward_length", config.hidden),
        ("attention.head_count", config.heads),
        ("attention.head_count_kv", config.kv_heads),
        *changes.get("fields", {}).items(),
    ):
        writer.add_uint32(f"{kind}.{field}", value)
    writer.add_float32(f"{kind}.attention.layer_norm_rms_epsilon", config.norm_eps)
    writer.add_float32(f"{kind}.rope.freq_base", config.rope_theta)
    if "scaling" in changes:
        writer.add_string(f"{kind}.rope.scaling.type", changes["scaling"])
    if "pieces" in changes:
        tokens, scores, types = zip(*changes["pieces"], strict=True)
        writer.add_tokenizer_model("llama")
        writer.add_token_scores(list(scores))
        writer.add_add_space_prefix(changes.get("spaced", True))
    else:
        vocabulary = MERGES._definition["model"]["vocab"]
        tokens, types = sorted(vocabulary, key=vocabulary.get), [3] * 6 + [1] * (len(vocabulary) - 6)
        writer.add_tokenizer_model(changes.get("tokenizer", "gpt2"))
        writer.add_tokenizer_pre(changes.get("pre", "gpt-2"))
        writer.add_token_merges([" ".join(m) for m in MERGES._definition["model"]["merges"]])
    writer.add_token_list(list(tokens))
    writer.add_token_types(list(types))
    for add, i in ((writer.add_bos_token_id, 1), (writer.add_eos_token_id, 2), (writer.add_pad_token_id, 0)):
        add(i)
    writer.add_chat_template(changes.get("template", TEMPLATE))
    for name, tensor in weights_to_hf(ours).items():
        weight = tensor.numpy()
        if kind == "llama" and ("q_proj" in name or "k_proj" in name):
            weight = pair_by_pair(weight, config.heads if "q_proj" in name else config.kv_heads)
        if "pack" in changes and weight.ndim == 2:
            raw, packed_as = changes["pack"](weight)
            writer.add_tensor(tensor_name(name), raw, raw_dtype=packed_as)
        else:
            writer.add_tensor(tensor_name(name), np.ascontiguousarray(weight))
    for extra, values in changes.get("extra", {}).items():
        writer.add_tensor(extra, np.array(values, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


def q8_0(weight: np.ndarray[Any, Any]) -> tuple[np.ndarray[Any, Any], gguf.GGMLQuantizationType]:
    return gguf.quantize(weight, gguf.GGMLQuantizationType.Q8_0), gguf.GGMLQuantizationType.Q8_0


@pytest.mark.parametrize("kind", ["llama", "qwen2"])
def test_logits_are_those_of_the_model(tmp_path: Path, kind: str) -> None:
    loaded = load(written(tmp_path / "m.gguf", kind))
    with torch.no_grad():
        torch.testing.assert_close(loaded.model(TOKENS), model(kind)(TOKENS), atol=1e-5, rtol=0)
        coarse = load(written(tmp_path / "q.gguf", kind, pack=q8_0)).model(TOKENS)
        assert 0 < (coarse - model(kind)(TOKENS)).abs().max() < 0.3


def test_the_tokenizer_is_rebuilt(tmp_path: Path) -> None:
    loaded = load(written(tmp_path / "m.gguf"))
    for text in ("Hunden drakk melk. æøå 😀\n  12", "<|end|>"):
        assert loaded.tokenizer.encode(text) == MERGES.encode(text)
        assert loaded.tokenizer.decode(MERGES.encode(text)) == text
    names = ("begin", "end", "pad", "user", "assistant", "ends", "template")
    assert [getattr(loaded.tokenizer, n) for n in names] == [getattr(MERGES, n) for n in names]
    assert loaded.chat.prompt([{"role": "user", "content": "Hunden"}])[:2] == [1, 3]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"architecture": "gpt2"}, "architecture 'gpt2'"),
        ({"scaling": "yarn"}, "'yarn'"),
        ({"tokenizer": "bert"}, "tokenizer of the kind 'bert'"),
        ({"tokenizer": "llama"}, "scores"),
        ({"pre": "klingon"}, "pattern 'klingon'"),
        ({"extra": {"rope_freqs.weight": [1, 8, 1, 1]}}, "by rope_freqs.weight, in a way"),
        ({"extra": {"rope_freqs.weight": [1, 1]}}, "by rope_freqs.weight, in a way"),
        ({"extra": {"rope_freqs.weight": [1, 0, 1, 1]}}, r"rope_freqs\.weight"),
        ({"extra": {"blk.7.attn_norm.weight": [1]}}, "knows nothing of"),
        ({"extra": {"blk.0.attn_rot_embd.weight": [1]}}, "holds blk.0.attn_rot_embd"),
        ({"fields": {"rope.dimension_count": 4}}, "rope.dimension_count is 4"),
        ({"fields": {"attention.causal": 0}}, "attention.causal is 0"),
    ],
)
def test_what_cannot_be_expressed_is_named(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(KlypeError, match=message):
        load(written(tmp_path / "m.gguf", **changes))


def test_a_damaged_file_is_refused(tmp_path: Path) -> None:
    file = written(tmp_path / "m.gguf")
    raw = file.read_bytes()
    for broken in (b"", b"GGUF", raw[: len(raw) // 2], raw[:3000], b"x" + raw[1:]):
        file.write_bytes(broken)
        with pytest.raises(KlypeError, match=r"m\.gguf"):
            load(file)


@pytest.mark.soak
def test_a_real_model_is_what_transformers_makes_of_it(smollm: Path) -> None:
    """SmolLM2-135M in Q4_1, as a package brings it: equal ids, equal logits."""
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("accelerate")
    file = smollm
    ours = load(file)
    tokenizer = transformers.AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    text = "Hei på deg! I have 1234 apples, don't you?\n\n  def f(x): return x\t😀 naïve"
    ids = ours.tokenizer.encode(text)
    assert ids == tokenizer(text, add_special_tokens=False)["input_ids"]
    theirs = transformers.AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32)
    prompt = torch.tensor([ours.chat.prompt([{"role": "user", "content": "What is the capital of France?"}])])
    with torch.no_grad():
        torch.testing.assert_close(ours.model(prompt), theirs(prompt).logits, atol=1e-4, rtol=1e-5)
        for _ in range(8):
            prompt = torch.cat([prompt, ours.model(prompt)[:, -1:].argmax(-1)], 1)
    assert ours.tokenizer.decode(prompt[0].tolist()).endswith("The capital of France is Paris.")


def test_lists_longer_than_any_vocabulary_are_refused_unread(tmp_path: Path) -> None:
    """Of nine million bytes Python would make hundreds of megabytes; a header may have 256 million."""
    name, count = b"general.long", 9 * 2**20
    head = b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, len(name)) + name + struct.pack("<IIQ", 9, 0, count)
    (tmp_path / "m.gguf").write_bytes(head + bytes(count))
    with pytest.raises(KlypeError, match="longer than any vocabulary"):
        load(tmp_path / "m.gguf")
