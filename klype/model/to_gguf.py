"""A checkpoint as one GGUF file in float32 or float16, as llama.cpp reads it; the counterpart of gguf.py.

Llama's and Qwen's shapes only: llama.cpp has no architecture with a convolution before attention, nor without rotation.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import torch

from klype.durable import clear, draft_folder
from klype.errors import KlypeError
from klype.model.attention import rope_frequencies
from klype.model.checkpoint import Loaded
from klype.model.convert import OWN, model_type, weights_to_hf
from klype.model.gguf import _NAMES, ROPE
from klype.text.tokenizer_files import CONTROL, NORMAL

THEIRS = {name: short for short, name in _NAMES.items()}


def write_gguf(loaded: Loaded, file: Path) -> None:
    """Written beside, then renamed; matrices of a model loaded in float16 stay so.

    Errors: a shape or a tokenizer that llama.cpp has no name for; a full disk."""
    try:
        import gguf
    except ImportError:
        raise KlypeError("GGUF files need the package gguf.", "Install it: pip install 'klype[hf]'.") from None
    config, kind = loaded.config, model_type(loaded.config)
    if kind == OWN:
        what = "a convolution before attention" if config.conv else "no rotation of positions, or both biases and norms"
        raise KlypeError(
            f"{loaded.folder} cannot be written as GGUF: it has {what}, which llama.cpp cannot compute.",
            "Serve it with klype serve, or train with --set model.conv=0.",
        )
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        clear(file.parent)
        with draft_folder(file.name, file.parent) as draft:
            writer = gguf.GGUFWriter(draft / file.name, kind)
            _describe(writer, loaded)
            _tokens(writer, loaded)
            for name, weight in weights_to_hf(loaded.model).items():
                # llama.cpp's Llama rotates neighbouring rows, Hugging Face's the halves
                half = weight.dtype == torch.float16 and weight.dim() == 2
                array = (weight if half else weight.float()).detach().cpu().numpy()
                if kind == "llama" and re.search(r"self_attn\.[qk]_proj\.", name):
                    heads = loaded.config.heads if "q_proj" in name else loaded.config.kv_heads
                    array = array.reshape(heads, 2, -1, *array.shape[1:]).swapaxes(1, 2).reshape(array.shape)
                *parts, last = name.removeprefix("model.layers.").split(".")
                layer = f"blk.{parts.pop(0)}." if name.startswith("model.layers.") else ""
                writer.add_tensor(f"{layer}{THEIRS['.'.join(parts)]}.{last}", np.ascontiguousarray(array))
            if config.rope_scaling is not None and config.rope_scaling.kind == "llama3":
                plain = config.model_copy(update={"rope_scaling": None})
                writer.add_tensor(ROPE, (rope_frequencies(plain) / rope_frequencies(config)).numpy())
            writer.write_header_to_file()
            writer.write_kv_data_to_file()
            writer.write_tensors_to_file()
            writer.close()
            (draft / file.name).replace(file)
    except OSError as error:
        raise KlypeError(f"{file} cannot be written: {error.strerror or error}.", "Choose another place.") from None


def _describe(writer: Any, loaded: Loaded) -> None:
    import gguf

    config = loaded.config
    writer.add_name(str(loaded.about.get("name") or loaded.folder.name))
    kinds, half = gguf.LlamaFileType, loaded.model.embed.weight.dtype == torch.float16
    writer.add_file_type(kinds.MOSTLY_F16 if half else kinds.ALL_F32)  # OpenVINO GenAI opens no file without
    writer.add_block_count(config.layers)
    writer.add_context_length(config.window)
    writer.add_embedding_length(config.width)
    writer.add_feed_forward_length(config.hidden)
    writer.add_head_count(config.heads)
    writer.add_head_count_kv(config.kv_heads)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_layer_norm_rms_eps(config.norm_eps)
    writer.add_rope_freq_base(config.rope_theta)
    writer.add_vocab_size(config.vocab_size)
    if config.rope_scaling is not None and config.rope_scaling.kind == "linear":
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(config.rope_scaling.factor)


def _tokens(writer: Any, loaded: Loaded) -> None:
    """Rows of the model that have no spelling get a name that no text can have."""
    tokenizer, size = loaded.tokenizer, loaded.config.vocab_size
    definition = tokenizer._definition
    merges = definition["model"].get("merges")
    if definition["model"].get("type") != "BPE" or merges is None:
        raise KlypeError(f"{loaded.folder} has a tokenizer that klype does not write to GGUF.", "It must be BPE.")
    names = {i: text for text, i in definition["model"]["vocab"].items()}
    control = {i: text for text, i in tokenizer.control_ids().items()}
    names |= control
    writer.add_tokenizer_model("gpt2")
    # llama.cpp's name for how text is cut into pieces
    cut = str(definition.get("pre_tokenizer"))
    if "Regex" not in cut and "ByteLevel" not in cut:
        raise KlypeError(f"{loaded.folder} has a tokenizer that llama.cpp has no name for.")
    by_regex = ("llama-bpe" if "{1,3}" in cut else "qwen2") if "Regex" in cut else "gpt-2"
    writer.add_tokenizer_pre("smollm" if "'Digits'" in cut and "ByteLevel" in cut else by_regex)
    writer.add_token_list([names.get(i, f"[unused {i}]") for i in range(size)])
    writer.add_token_types([CONTROL if i in control or i not in names else NORMAL for i in range(size)])
    writer.add_token_merges([merge if isinstance(merge, str) else " ".join(merge) for merge in merges])
    for name, token in (("bos", tokenizer.begin), ("eos", tokenizer.end), ("pad", tokenizer.pad)):
        if token >= 0:
            getattr(writer, f"add_{name}_token_id")(token)
    writer.add_add_bos_token(bool(tokenizer.lead))
    if tokenizer.template is not None:
        writer.add_chat_template(tokenizer.template)
