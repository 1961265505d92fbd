"""Checkpoint folders, which are also Hugging Face directories. No pickle, no remote code.

A folder holds config.json, model.safetensors, tokenizer.json, tokenizer_config.json, chat_template.jinja,
generation_config.json, README.md (model card), run.json (how it was made) and manifest.json (SHA-256 of the others,
written last). Files of others are not trusted: header, offsets, shapes and values are checked.
"""

import json
import os
from collections.abc import Callable, Collection
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import chain
from pathlib import Path
from types import MappingProxyType
from typing import Any

import psutil
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.overrides import TorchFunctionMode

import klype
from klype.errors import KlypeError, UsageError
from klype.model import atomic_folder
from klype.model.config import ModelConfig
from klype.model.convert import (
    WeightEntry,
    config_from_hf,
    config_to_hf,
    hf_shapes,
    is_finite,
    model_type,
    weights_from_hf,
    weights_to_hf,
)
from klype.model.gguf import GGUFFile, StoredWeights, open_gguf, write_gguf
from klype.model.prepacked import Kernel
from klype.model.quantised import put_quantised, quantised_weights
from klype.model.transformer import Transformer
from klype.text.chat import Chat
from klype.text.tokenizer import Tokenizer
from klype.text.tokenizer_files import HINT, read_object

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16, "float64": torch.float64}

# memory should have room for a text of this many tokens, or for the window if that is shorter
LONG = 4096
_TYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
# most bytes of a header, enough for a hundred thousand weights; parsed, it may take thirty times as much memory
HEADER = 16 * 2**20


@dataclass(frozen=True)
class LoadedModel:
    """A model with everything that its folder holds. ``about`` is run.json ({} for other makers' models)."""

    model: Transformer
    tokenizer: Tokenizer
    config: ModelConfig
    about: dict[str, Any]
    folder: Path

    @cached_property
    def chat(self) -> Chat:
        """The model's chat template. Raises KlypeError when it has none (--raw needs none)."""
        return Chat(self.tokenizer)

    def to_gguf(self, file: Path) -> None:
        """Write the model as one file for llama.cpp (see ``gguf.write_gguf``)."""
        write_gguf(self.model, self.tokenizer, self.folder, file, str(self.about.get("name") or ""))


def save(folder: Path, model: Transformer, tokenizer: Tokenizer, about: dict[str, Any]) -> None:
    """Write a checkpoint, whole or not at all. Other files in ``folder`` stay.

    run.json is ``about`` and the versions of klype and torch. Raises KlypeError when the folder cannot be written or
    the weights are not finite.
    """
    weights = weights_to_hf(model)
    broken = next((name for name, w in weights.items() if not is_finite(w)), None)
    if broken is not None:
        raise KlypeError(f"The model is not saved: {broken} is not finite.", "Go on from an earlier checkpoint.")
    ids = {"bos_token_id": tokenizer.begin, "eos_token_id": tokenizer.end, "pad_token_id": tokenizer.pad}
    ids = {name: i for name, i in ids.items() if i >= 0}
    dtype = str(next(iter(weights.values())).dtype).removeprefix("torch.")
    config = {**config_to_hf(model.config), **ids, "torch_dtype": dtype}
    versions = {"klype": klype.__version__, "torch": str(torch.__version__)}
    generation: dict[str, Any] = {**ids, "do_sample": True, "temperature": 1.0, "top_k": 0, "top_p": 1.0}
    if len(tokenizer.ends) > 1:
        generation["eos_token_id"] = list(tokenizer.ends)

    def write(new: Path) -> None:
        _json(new / "config.json", config)
        _json(new / "generation_config.json", generation)
        _json(new / "run.json", {**about, "versions": versions})
        (new / "README.md").write_text(model_card(model.config, about), encoding="utf-8")
        tokenizer.save(new)
        try:
            save_file(weights, new / "model.safetensors", metadata={"format": "pt"})
        except SafetensorError as error:  # its text ends with the system's message
            raise OSError(str(error).rpartition("I/O error: ")[2]) from error

    atomic_folder.write_folder(folder, write)


def load(
    folder: Path,
    dtype: str = "float32",
    known: Path | None = None,
    device: torch.device | None = None,
    kernel: Kernel | None = None,
) -> LoadedModel:
    """Load klype's own checkpoint, a Hugging Face directory (with one file of weights or several) or a GGUF file.

    ``known``: see Tokenizer.load; ``device``: that the model computes on (None: the CPU); ``kernel``: computes with the
    quantised matrices of a GGUF file as they are stored there; the model cannot be trained then. Raises KlypeError, in
    one sentence, for what is missing, damaged, of another shape, or too large for the free memory.
    """
    folder = Path(folder)
    if dtype not in DTYPES:
        raise UsageError(f"There is no precision {dtype!r}.", f"Choose one of {', '.join(DTYPES)}.")
    # everything cheap is checked before a weight is read, so that a wrong folder is reported at once
    quantised: StoredWeights = {}
    files: GGUFFile | TensorFiles
    if folder.is_file() and folder.suffix.lower() == ".gguf":
        files, about = open_gguf(folder, known), {}
        config, tokenizer = files.config, files.tokenizer
    else:
        if not folder.is_dir():
            raise UsageError(f"There is no model folder {folder}.", "Give the folder of a checkpoint.")
        # the process that saved it may have ended before all files were in place
        atomic_folder.finish(folder)
        if whole := atomic_folder.is_whole(folder):
            atomic_folder.verify(folder)
        about = read_about(folder)
        if "versions" in about and not whole:
            raise KlypeError(f"The checkpoint {folder} is unfinished: its manifest is missing.", "Use an earlier one.")
        config, tokenizer = read_config(folder), Tokenizer.load(folder, known)
        files = TensorFiles(weight_files(folder))
    _check_fit(folder, config, files.shapes, tokenizer)
    if kernel is not None and isinstance(files, GGUFFile):
        quantised = quantised_weights(files)
    needed, free = memory_needed(config, DTYPES[dtype], quantised), int(psutil.virtual_memory().available)
    if needed > free:
        raise KlypeError(
            f"{folder} needs {needed / 2**30:.1f} GiB of memory and {free / 2**30:.1f} GiB is free.",
            "Use --precision bfloat16, or a smaller model.",
        )
    model = _build(config, files.get, DTYPES[dtype], quantised)
    if kernel is not None:
        put_quantised(model, quantised, kernel)
    return LoadedModel(model.to(device), tokenizer, config, about, folder)


def read_config(folder: Path) -> ModelConfig:
    """The configuration of a checkpoint folder or GGUF file."""
    if Path(folder).is_file():
        return open_gguf(Path(folder)).config
    return config_from_hf(read_object(Path(folder) / "config.json"), str(Path(folder) / "config.json"))


def read_tokenizer(folder: Path) -> Tokenizer:
    """The tokenizer of a checkpoint folder or GGUF file."""
    if Path(folder).is_file():
        return open_gguf(Path(folder)).tokenizer
    return Tokenizer.load(folder)


def read_about(folder: Path) -> dict[str, Any]:
    """run.json as ``save`` wrote it; {} for a GGUF file and for other makers' models."""
    file = folder / "run.json"
    return read_object(file) if file.is_file() else {}


def _check_fit(where: Path, config: ModelConfig, shapes: dict[str, tuple[int, ...]], tokenizer: Tokenizer) -> None:
    """Raise KlypeError unless weights, configuration and tokenizer belong together."""
    wanted = set()
    for name, shape in hf_shapes(config):
        wanted.add(name)
        if shapes.get(name) != shape:
            found = f"have {name} in the shape {list(shapes[name])}" if name in shapes else f"lack {name}"
            raise KlypeError(
                f"The weights in {where} {found}, where the configuration asks for {list(shape)}.",
                "They may belong to another model.",
            )
    # a tied head may be written out, and old Llamas hold their rotary tables
    harmless = {"lm_head.weight"} if config.tie else set()
    extra = next((n for n in shapes if n not in wanted and n not in harmless and "rotary_emb" not in n), None)
    if extra is not None:
        raise KlypeError(f"The weights in {where} have {extra}, which the configuration knows nothing of.")
    if tokenizer.vocab_size > config.vocab_size:
        raise KlypeError(
            f"The tokenizer in {where} has {tokenizer.vocab_size} tokens but the model only {config.vocab_size}.",
            "Use the tokenizer that the model was trained with.",
        )


def memory_needed(config: ModelConfig, dtype: torch.dtype, quantised: StoredWeights = MappingProxyType({})) -> int:
    """Bytes needed for the weights, a copy of the head while it is prepacked (kept if it is tied), the KV cache of one
    long text, and the rotary tables. ``quantised`` weights take their size in the file."""
    text = min(config.window, LONG) * 2 * config.layers * config.kv_heads * config.head_dim
    tables = 2 * config.window * config.head_dim if config.rope_theta else 0
    packed = ("embed.weight" if config.tie else "head.weight") not in quantised
    stored = list(chain(*quantised.values()))
    numbers = config.parameters + packed * config.vocab_size * config.width + text + tables
    numbers -= sum(len(weight.blocks) * weight.columns for weight in stored)
    return numbers * dtype.itemsize + sum(weight.blocks.numel() for weight in stored)


class _NoInitialisation(TorchFunctionMode):
    """Skips torch.nn.init, which loads torch's compiler on the meta device: the weights will be read from a file."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return None if getattr(func, "__module__", "") == "torch.nn.init" else func(*args, **(kwargs or {}))


def _build(
    config: ModelConfig, get: Callable[[str], Tensor], dtype: torch.dtype, without: Collection[str] = ()
) -> Transformer:
    """The model with weights from ``get``; those in ``without`` stay on the meta device."""
    # on the meta device no memory is taken for weights that are replaced at once
    with torch.device("meta"), _NoInitialisation():
        model = Transformer(config)
    state = {name: w.to(dtype) for name, w in weights_from_hf(config, get, without)}
    tied = config.tie and "embed.weight" in state
    if tied:
        state["head.weight"] = state["embed.weight"]
    model.load_state_dict(state, assign=True, strict=not without)
    if tied:
        model.head.weight = model.embed.weight
    return model.to(dtype).requires_grad_(True).eval()


def _json(file: Path, content: dict[str, Any]) -> None:
    file.write_text(json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8")


def model_card(config: ModelConfig, about: dict[str, Any], run: dict[str, Any] | None = None) -> str:
    """The model card: Markdown with a YAML header, with "name", "licence", "language" and "summary" of ``about``.

    ``run``: the run.json of its run; the card, for a repository on a hub, then also has intended use, data, measures
    and energy. What is missing is stated as unknown.
    """
    from jinja2 import Environment, PackageLoader

    page = Environment(loader=PackageLoader("klype.model", "."), trim_blocks=True, keep_trailing_newline=True)
    page.filters["json"] = partial(json.dumps, ensure_ascii=False, default=str)
    content = {"config": config, "kind": model_type(config), "about": about, "run": run}
    return page.get_template("card.md.jinja").render(content)


class TensorFiles:
    """The weights of one folder by name, in one safetensors file or several, whose headers are checked at once."""

    def __init__(self, files: list[Path]) -> None:
        self._entries: dict[str, WeightEntry] = {}
        for file in files:
            for name, entry in read_weight_header(file).items():
                if name in self._entries:
                    raise KlypeError(f"{file} holds {name}, which {self._entries[name].file.name} holds too.", HINT)
                if entry.kind not in _TYPES:
                    raise KlypeError(f"{file} holds {name} as {entry.kind}, not as floating-point numbers.", HINT)
                self._entries[name] = entry
        self.shapes = {name: entry.shape for name, entry in self._entries.items()}

    def get(self, name: str) -> Tensor:
        """A weight in the dtype of the file. KlypeError when it cannot be read or holds NaN or infinity."""
        entry = self._entries[name]
        tensor = entry.read().view(_TYPES[entry.kind]).view(entry.shape)
        if not is_finite(tensor):
            raise KlypeError(f"{entry.file} holds numbers that are not finite, in {name}.", HINT)
        return tensor


def read_weight_header(file: Path) -> dict[str, WeightEntry]:
    """The entries of a safetensors file by name. Raises KlypeError for a file that is cut, overlapping or ambiguous."""

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len({name for name, _ in pairs}) < len(pairs):
            raise ValueError("a name stands twice")
        return dict(pairs)

    try:
        with open(file, "rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            if length > HEADER:
                raise ValueError("it is cut short, or a length in it is wrong")
            with safe_open(file, "np"):  # the library checks types, shapes and offsets, but lets a name stand twice
                header = json.loads(stream.read(length), object_pairs_hook=once)
    except OSError as error:
        raise KlypeError(f"{file} cannot be read: {error.strerror or error}.", HINT) from error
    except (ValueError, RecursionError, SafetensorError) as error:
        raise KlypeError(f"{file} has a damaged header: {error}.", HINT) from error
    header.pop("__metadata__", None)
    entries = {}
    for name, entry in header.items():
        start, stop = (8 + length + offset for offset in entry["data_offsets"])
        entries[name] = WeightEntry(file, entry["dtype"], tuple(entry["shape"]), start, stop)
    return entries


def weight_files(folder: Path) -> list[Path]:
    """model.safetensors, or the files that model.safetensors.index.json names. KlypeError when any is missing."""
    if (folder / "model.safetensors").is_file():
        return [folder / "model.safetensors"]
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        try:
            names = sorted(set(read_object(index)["weight_map"].values()))
            if any(os.path.basename(name) != name for name in names):
                raise ValueError("a name with a folder in it")
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise KlypeError(f"{index} is damaged: {error}.", HINT) from error
        missing = next((n for n in names if not (folder / n).is_file()), None)
        if missing:
            raise KlypeError(f"{missing} is missing in {folder}.", HINT)
        return [folder / name for name in names]
    pickled = next(iter([*folder.glob("*.bin"), *folder.glob("*.pt"), *folder.glob("*.pth")]), None)
    if pickled is not None:
        raise KlypeError(
            f"{pickled} is a pickle, which can run any program and is never read.", "Convert it to safetensors."
        )
    raise KlypeError(f"There are no weights (model.safetensors) in {folder}.", HINT)
