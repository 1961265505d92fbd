"""Reads and writes GGUF files (llama.cpp's format) of Llama, Qwen2 and Qwen3 models.

Quantised weights are dequantised to float32 by the `gguf` package. The header is read here: files are not trusted, and
the package's reader makes several objects per token of the vocabulary and never ends at some lengths. The tokenizer is
rebuilt from the metadata (klype/text/tokenizer_files.py).
"""

import importlib.util
import math
import mmap
import re
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from klype.durable import draft_folder, remove_drafts
from klype.errors import KlypeError, writing_to
from klype.model.attention import rope_frequencies
from klype.model.config import ModelConfig
from klype.model.convert import NAMES, OWN, WeightEntry, is_finite, model_type, weights_to_hf
from klype.model.transformer import Transformer
from klype.text.tokenizer import Tokenizer
from klype.text.tokenizer_files import CONTROL, NORMAL, read_gguf
from klype.text.tokenizer_files import HINT_GGUF as HINT

# most bytes of metadata: a vocabulary of a million tokens has about forty million
MAX_METADATA = 256 * 2**20
# most entries in all lists together, at about sixty bytes each: a vocabulary of a million tokens has four million
VALUES = 2**23
_NUMBERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9
_CUT = "it is cut short, or a length in it is wrong"
ROPE = "rope_freqs.weight"
# types of blocks that few_tokens.c supports, by GGUF's numbers (Q4_0, Q4_1, Q8_0, Q4_K, Q6_K), and the byte offsets of
# the float16 in a block
SCALES = {2: (0,), 3: (0, 2), 8: (0,), 12: (0, 2), 14: (208,)}
_INFINITE = 0x7C00  # exponent bits of a float16, all set in an infinity or NaN
_KINDS = ("llama", "qwen2", "qwen3")
_TO_GGUF = {theirs: short for names in NAMES.values() for theirs, short in names.items()}
_FROM_GGUF = {short: theirs for theirs, short in _TO_GGUF.items()}
# GGUF's keys of the configuration to our fields, in the order in which they are written
_FIELDS = {
    "block_count": "layers",
    "context_length": "window",
    "embedding_length": "width",
    "feed_forward_length": "hidden",
    "attention.head_count": "heads",
    "attention.head_count_kv": "kv_heads",
    "attention.key_length": "head_dim",
    "attention.value_length": "head_dim",
    "rope.dimension_count": "head_dim",
    "attention.layer_norm_rms_epsilon": "norm_eps",
    "rope.freq_base": "rope_theta",
}


def read_header(file: Path) -> tuple[dict[str, Any], dict[str, WeightEntry]]:
    """Metadata, and entries of weights by name. Raises KlypeError for a file that is damaged or not GGUF."""
    try:
        if not file.is_file() or file.stat().st_size < 24:
            raise ValueError("it is cut short")
        with open(file, "rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as content:
            return _Reader(content).header(file)
    except OSError as error:
        raise KlypeError(f"{file} cannot be read: {error}.", "Check its name.") from error
    except (ValueError, struct.error) as error:
        raise KlypeError(f"{file} is damaged or not a GGUF file: {error}.", HINT) from error


class _Reader:
    """Reads a header from the file's start, at most ``MAX_METADATA`` bytes of it. ValueError for what is malformed."""

    def __init__(self, content: mmap.mmap) -> None:
        self._content, self._most = content, min(len(content), MAX_METADATA)
        self.at = self._listed = 0

    def take(self, size: int) -> bytes:
        if size > self._most - self.at:
            raise ValueError(_CUT)
        self.at += size
        return self._content[self.at - size : self.at]

    def numbers(self, kind: str, count: int = 1) -> tuple[Any, ...]:
        return struct.unpack(f"<{count}{kind}", self.take(struct.calcsize(f"<{kind}") * count))

    def number(self, kind: str) -> int:
        return int(self.numbers(kind)[0])

    def texts(self, count: int) -> list[str]:
        content, at, found = self._content, self.at, []
        for _ in range(count):  # inlined: a vocabulary and its merges are hundreds of thousands
            start = at + 8
            at = start + int.from_bytes(content[at:start], "little")
            if at > self._most:
                raise ValueError(_CUT)
            found.append(content[start:at].decode("utf-8"))
        self.at = at
        return found

    def values(self, kind: int, count: int = 1) -> list[Any]:
        if kind == _STRING:
            return self.texts(count)
        if kind in _NUMBERS:
            return list(self.numbers(_NUMBERS[kind], count))
        raise ValueError("it has values of a kind that is unknown")

    def value(self, kind: int) -> Any:
        if kind != _ARRAY:
            return self.values(kind)[0]
        inner, count = self.number("I"), self.number("Q")
        self._listed += count
        if self._listed > VALUES:
            raise ValueError("its lists are longer than any vocabulary's")
        return self.values(inner, count)

    def header(self, file: Path) -> tuple[dict[str, Any], dict[str, WeightEntry]]:
        """Metadata, and entries of weights by name."""
        from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

        size = len(self._content)
        if self.take(4) != b"GGUF" or self.number("I") not in (2, 3):
            raise ValueError("it does not begin as one")
        weights, fields = self.number("Q"), self.number("Q")
        metadata: dict[str, Any] = {}
        for _ in range(fields):
            (name,) = self.texts(1)
            if name in metadata:
                raise ValueError(f"{name:.60} stands twice")
            metadata[name] = self.value(self.number("I"))
        entries = {}
        for _ in range(weights):
            (name,), dimensions = self.texts(1), self.number("I")
            if name in entries or not 0 < dimensions <= 4:
                raise ValueError(f"{name:.60} stands twice, or has {dimensions} dimensions")
            entries[name] = self.numbers("Q", dimensions), self.number("I"), self.number("Q")
        alignment = metadata.get("general.alignment", 32)
        if type(alignment) is not int or not 0 < alignment <= 2**16:
            raise ValueError("its alignment is wrong")
        first, placed = math.ceil(self.at / alignment) * alignment, dict[str, WeightEntry]()
        for name, (shape, kind, offset) in entries.items():
            numbers, taken = GGML_QUANT_SIZES[GGMLQuantizationType(kind)]
            if not all(0 < side <= size * numbers for side in shape) or shape[0] % numbers:
                raise ValueError(f"{name:.60} has a shape that it cannot have")
            start = first + offset
            placed[name] = WeightEntry(file, kind, shape[::-1], start, start + math.prod(shape) // numbers * taken)
        end = first
        for name, entry in sorted(placed.items(), key=lambda pair: pair[1].start):
            if entry.start < end or entry.stop > size:
                raise ValueError(f"{name:.60} overlaps with another weight, or reaches beyond the file")
            end = entry.stop
        return metadata, placed


def _dequantise(name: str, entry: WeightEntry) -> Tensor:
    """The weight in float32. KlypeError when it is damaged, not finite, or of a type that `gguf` cannot dequantise."""
    import gguf

    raw = entry.read().view(*entry.shape[:-1], -1).numpy()
    try:
        expanded = gguf.dequantize(raw, gguf.GGMLQuantizationType(entry.kind))
        weight = torch.from_numpy(expanded).float().reshape(entry.shape)
    except (ValueError, KeyError, TypeError, RuntimeError) as error:
        raise KlypeError(f"{entry.file} holds {name} in a form that cannot be read: {error}.", HINT) from error
    if not is_finite(weight):
        raise KlypeError(f"{entry.file} holds numbers that are not finite, in {name}.", HINT)
    return weight


def _paired_heads(config: ModelConfig, name: str) -> int:
    """Heads in a weight whose rows llama.cpp stores pair by pair, as they are rotated; Hugging Face has the first half
    of every pair, then the second. 0 for weights that both store alike."""
    if model_type(config) != "llama" or not re.search(r"self_attn\.[qk]_proj\.", name):
        return 0
    return config.heads if "q_proj" in name else config.kv_heads


@dataclass(frozen=True)
class StoredMatrix:
    """A matrix as the file stores it: its type by GGUF's number, its columns, and the memory-mapped bytes of its rows.
    ``paired``: rows per head, where rows that are rotated together are neighbours; 0: rows are in Hugging Face's
    order."""

    kind: int
    columns: int
    blocks: Tensor
    paired: int


# by our name of a weight: the matrices in the file whose rows it has, in this order
StoredWeights = Mapping[str, Sequence[StoredMatrix]]


@dataclass(frozen=True)
class GGUFFile:
    """An opened GGUF file. ``shapes`` of the weights are by Hugging Face's names."""

    file: Path
    config: ModelConfig
    tokenizer: Tokenizer
    shapes: dict[str, tuple[int, ...]]
    _placed: dict[str, WeightEntry]

    def get(self, name: str) -> Tensor:
        """A weight in float32, its rows in Hugging Face's order. KlypeError when it is damaged or not finite."""
        weight = _dequantise(name, self._placed[name])
        if heads := _paired_heads(self.config, name):
            weight = weight.reshape(heads, -1, 2, *weight.shape[1:]).transpose(1, 2).reshape(weight.shape)
        return weight

    def kind(self, name: str) -> int:
        """A matrix's type by GGUF's number; -1 for other weights."""
        entry = self._placed[name]
        return entry.kind if len(entry.shape) == 2 else -1

    def stored_matrix(self, name: str) -> StoredMatrix:
        """A matrix of one of the types in ``SCALES``, as the file stores it. KlypeError when it is not finite."""
        import gguf

        entry = self._placed[name]
        raw = self.memory_map[entry.start : entry.stop]
        _, size = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType(entry.kind)]
        scales = (raw.reshape(-1, size)[:, at : at + 2].view(np.uint16) for at in SCALES[entry.kind])
        if any((scale & _INFINITE == _INFINITE).any() for scale in scales):
            raise KlypeError(f"{self.file} holds numbers that are not finite, in {name}.", HINT)
        blocks = torch.from_numpy(raw).view(entry.shape[0], -1)
        paired = self.config.head_dim if _paired_heads(self.config, name) else 0
        return StoredMatrix(entry.kind, entry.shape[1], blocks, paired)

    @cached_property
    def memory_map(self) -> npt.NDArray[np.uint8]:
        """The file's bytes, memory-mapped (copy on write)."""
        return np.memmap(self.file, np.uint8, "c")


def open_gguf(file: Path, known: Path | None = None) -> GGUFFile:
    """Open a file; its weights are read later. KlypeError for one that is damaged or whose architecture or tokenizer
    klype does not have. ``known``: see Tokenizer.load."""
    _check_package()
    metadata, weights = read_header(file)
    divisors = weights.pop(ROPE, None)
    placed = {}  # by Hugging Face's names
    for name, entry in weights.items():
        match = re.fullmatch(r"(?:blk\.(\d+)\.)?(\w+)\.(weight|bias)", name)
        if match is None or match.group(2) not in _FROM_GGUF:
            raise KlypeError(f"{file} holds {name:.60}, which klype cannot use.", HINT)
        layer, part, last = match.groups()
        placed[f"{'' if layer is None else f'model.layers.{layer}.'}{_FROM_GGUF[part]}.{last}"] = entry
    shapes = {name: entry.shape for name, entry in placed.items()}
    try:
        config = _config(metadata, shapes, file)
        if divisors is not None:
            config = _llama3_scaled(config, _dequantise(ROPE, divisors), file)
        tokenizer = Tokenizer.of_stranger(*read_gguf(metadata, file), str(file), known)
    except (KeyError, TypeError, IndexError, AttributeError, ValueError, ArithmeticError) as error:
        raise KlypeError(f"{file} lacks or misspells {error}.", HINT) from error
    return GGUFFile(file, config, tokenizer, shapes, placed)


def _check_package() -> None:
    if importlib.util.find_spec("gguf") is None:
        raise KlypeError("GGUF files need the package gguf.", "Install it: pip install 'klype[hf]'.")


def _config(metadata: dict[str, Any], shapes: dict[str, tuple[int, ...]], file: Path) -> ModelConfig:
    kind = metadata["general.architecture"]
    if kind not in _KINDS:
        raise KlypeError(
            f"{file} is of the architecture {kind!r:.60}, which klype cannot load.", "It loads llama, qwen2, qwen3."
        )

    scaling = metadata.get(f"{kind}.rope.scaling.type", "none")
    if scaling not in ("none", "linear"):
        raise KlypeError(f"{file} stretches its positions by {scaling!r:.60}, which klype cannot read from GGUF.", HINT)
    factor = metadata.get(f"{kind}.rope.scaling.factor")
    heads, width = metadata[f"{kind}.attention.head_count"], metadata[f"{kind}.embedding_length"]
    head_dim = metadata.get(f"{kind}.attention.key_length") or width // heads
    alone = {"rope.dimension_count": head_dim, "attention.value_length": head_dim, "attention.causal": True}
    usual = {**alone, "attention.head_count_kv": heads, "attention.key_length": head_dim, "rope.freq_base": 10_000.0}
    given = {f"{kind}.{name}": value for name, value in usual.items()} | metadata
    for name, value in alone.items():
        if (found := given[f"{kind}.{name}"]) != value:
            raise KlypeError(f"{file} says {name} is {found!r:.60}, which klype cannot compute.", HINT)
    fields = {
        **{ours: given[f"{kind}.{name}"] for name, ours in _FIELDS.items()},
        "vocab_size": shapes["model.embed_tokens.weight"][0],
        "tie": "lm_head.weight" not in shapes,
        "rope_scaling": {"kind": "linear", "factor": factor} if scaling == "linear" else None,
        "qkv_bias": kind == "qwen2",
        "qk_norm": kind == "qwen3",
    }
    return ModelConfig.parse(fields, str(file))


def _llama3_scaled(config: ModelConfig, divisor_F: Tensor, file: Path) -> ModelConfig:
    """The configuration with Llama 3's rope scaling, of which llama.cpp's converter stores the divisors of frequencies:
    ``factor`` below one turn in the original window, 1 above four turns; in between its inverse is linear in the turns,
    from which that window is found. KlypeError for other divisors."""
    turns_F, factor, first = rope_frequencies(config) / (2 * math.pi), float(divisor_F.max()), 8192
    if divisor_F.shape == turns_F.shape:
        between_F = (divisor_F > 1) & (divisor_F < factor)
        share = (1 / divisor_F - 1 / factor)[between_F] / (1 - 1 / factor)
        first = round(float(((1 + 3 * share) / turns_F[between_F]).mean())) if len(share) else first
        found = {"kind": "llama3", "factor": factor, "original_window": first}
        scaled = ModelConfig.parse({**config.model_dump(), "rope_scaling": found}, str(file))
        off_F = rope_frequencies(config) / rope_frequencies(scaled) / divisor_F - 1
        if config.rope_scaling is None and bool((off_F.abs() < 1e-3).all()):
            return scaled
    raise KlypeError(f"{file} stretches its positions by {ROPE}, in a way that klype does not know.", HINT)


def write_gguf(model: Transformer, tokenizer: Tokenizer, where: Path, file: Path, name: str = "") -> None:
    """Write a model as one file for llama.cpp: under another name first, then renamed. ``where`` it came from is for
    messages. Matrices of a model in float16 stay float16; everything else is written as float32.

    KlypeError: a shape or tokenizer that llama.cpp has no name for (a convolution, no rotation); a full disk.
    """
    _check_package()
    import gguf

    config, kind = model.config, model_type(model.config)
    if kind == OWN:
        what = "a convolution before attention" if config.conv else "no rotation of positions, or both biases and norms"
        raise KlypeError(
            f"{where} cannot be written as GGUF: it has {what}, which llama.cpp cannot compute.",
            "Serve it with klype serve, or train with --set model.conv=0.",
        )
    with writing_to(file, "Choose another place."):
        file.parent.mkdir(parents=True, exist_ok=True)
        remove_drafts(file.parent)
        with draft_folder(file.name, file.parent) as draft:
            writer = gguf.GGUFWriter(draft / file.name, kind)
            writer.add_name(name or where.name)
            kinds, coarse = gguf.LlamaFileType, model.embed.weight.dtype == torch.float16
            writer.add_file_type(kinds.MOSTLY_F16 if coarse else kinds.ALL_F32)  # OpenVINO GenAI opens no file without
            for key, ours in {**_FIELDS, "vocab_size": "vocab_size"}.items():
                value = getattr(config, ours)
                (writer.add_uint32 if isinstance(value, int) else writer.add_float32)(f"{kind}.{key}", value)
            if config.rope_scaling is not None and config.rope_scaling.kind == "linear":
                writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
                writer.add_rope_scaling_factor(config.rope_scaling.factor)
            _write_tokens(writer, tokenizer, config.vocab_size, where)
            for title, weight in weights_to_hf(model).items():
                half = weight.dtype == torch.float16 and weight.dim() == 2
                array = (weight if half else weight.float()).detach().cpu().numpy()
                if heads := _paired_heads(config, title):
                    array = array.reshape(heads, 2, -1, *array.shape[1:]).swapaxes(1, 2).reshape(array.shape)
                *parts, last = title.removeprefix("model.layers.").split(".")
                layer = f"blk.{parts.pop(0)}." if title.startswith("model.layers.") else ""
                writer.add_tensor(f"{layer}{_TO_GGUF['.'.join(parts)]}.{last}", np.ascontiguousarray(array))
            if config.rope_scaling is not None and config.rope_scaling.kind == "llama3":
                plain = config.model_copy(update={"rope_scaling": None})
                writer.add_tensor(ROPE, (rope_frequencies(plain) / rope_frequencies(config)).numpy())
            writer.write_header_to_file()
            writer.write_kv_data_to_file()
            writer.write_tensors_to_file()
            writer.close()
            (draft / file.name).replace(file)


def _write_tokens(writer: Any, tokenizer: Tokenizer, size: int, where: Path) -> None:
    """Write the vocabulary. Rows of the model without a token are named "[unused i]", as control tokens, so that no
    text is encoded to them."""
    definition = tokenizer._definition
    merges = definition["model"].get("merges")
    if definition["model"].get("type") != "BPE" or merges is None:
        raise KlypeError(f"{where} has a tokenizer that klype does not write to GGUF.", "It must be BPE.")
    names = {i: text for text, i in definition["model"]["vocab"].items()}
    control = {i: text for text, i in tokenizer.control_ids().items()}
    names |= control
    writer.add_tokenizer_model("gpt2")
    # llama.cpp's name of the pre-tokenizer
    cut = str(definition.get("pre_tokenizer"))
    if "Regex" not in cut and "ByteLevel" not in cut:
        raise KlypeError(f"{where} has a tokenizer that llama.cpp has no name for.")
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
