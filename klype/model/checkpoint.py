"""Self-contained checkpoint folders, which are also Hugging Face directories. No pickle, no remote code.

config.json, model.safetensors, tokenizer.json, tokenizer_config.json, chat_template.jinja, generation_config.json,
README.md (model card), run.json (what made it), manifest.json (SHA-256 of the others, written last).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from pathlib import Path
from types import MappingProxyType
from typing import Any

import psutil
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor
from torch.overrides import TorchFunctionMode

import klype
from klype.errors import KlypeError, UsageError
from klype.model import manifest
from klype.model.config import ModelConfig
from klype.model.convert import (
    OWN,
    config_from_hf,
    config_to_hf,
    hf_shapes,
    model_type,
    weights_from_hf,
    weights_to_hf,
)
from klype.model.gguf import StoredWeights, open_gguf
from klype.model.prepacked import Kernel
from klype.model.quantised import put_quantised, quantised_weights
from klype.model.tensors import TensorFiles, is_finite, weight_files
from klype.model.transformer import Transformer
from klype.text.chat import Chat
from klype.text.tokenizer import Tokenizer
from klype.text.tokenizer_files import read_object

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16, "float64": torch.float64}

# memory should have room for a text of this many tokens (the window, where that is shorter)
LONG = 4096


@dataclass(frozen=True)
class Loaded:
    """A model with everything that came in its folder. ``about`` is run.json ({} for other makers' models)."""

    model: Transformer
    tokenizer: Tokenizer
    config: ModelConfig
    about: dict[str, Any]
    folder: Path

    @cached_property
    def chat(self) -> Chat:
        """Raises KlypeError when the model has no chat template (--raw goes without)."""
        return Chat(self.tokenizer)


def save(folder: Path, model: Transformer, tokenizer: Tokenizer, about: dict[str, Any]) -> None:
    """Write a checkpoint: all of it or nothing. Files in ``folder`` that are not part of one stay.

    ``about`` goes to run.json as it is, with klype's and torch's versions. Raises KlypeError when it cannot be
    written, or when the weights are not finite.
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
        except SafetensorError as error:  # what the system said stands in its words
            raise OSError(str(error).rpartition("I/O error: ")[2]) from error

    manifest.put(folder, write)


def load(
    folder: Path,
    dtype: str = "float32",
    known: Path | None = None,
    device: torch.device | None = None,
    kernel: Kernel | None = None,
) -> Loaded:
    """Read klype's own checkpoint, a Hugging Face directory (of one weights file or several) or a GGUF file.

    ``known``: see Tokenizer.load; ``device``: where the model is to compute (None: the CPU); ``kernel``: computes with
    the quantised matrices of a GGUF file as they lie there, and the model cannot learn. Raises KlypeError, in one
    sentence, for whatever is missing, damaged, of another shape, or too large for the memory that is free.
    """
    folder = Path(folder)
    if dtype not in DTYPES:
        raise UsageError(f"There is no precision {dtype!r}.", f"Choose one of {', '.join(DTYPES)}.")
    if folder.is_file() and folder.suffix.lower() == ".gguf":
        opened = open_gguf(folder, known)
        _check_fit(folder, opened.config, opened.shapes, opened.tokenizer)
        quantised = {} if kernel is None else quantised_weights(opened)
        _check_memory(folder, opened.config, DTYPES[dtype], quantised)
        model = _build(opened.config, opened.get, DTYPES[dtype], quantised)
        if kernel is not None:
            put_quantised(model, quantised, kernel)
        model.to(device)
        return Loaded(model, opened.tokenizer, opened.config, {}, folder)
    if not folder.is_dir():
        raise UsageError(f"There is no model folder {folder}.", "Give the folder of a checkpoint.")
    manifest.finish(folder)
    if manifest.is_whole(folder):
        manifest.verify(folder)
    elif "versions" in read_about(folder):
        raise KlypeError(f"The checkpoint {folder} is unfinished: its manifest is missing.", "Use an earlier one.")
    config = config_from_hf(read_object(folder / "config.json"), str(folder / "config.json"))
    tokenizer = Tokenizer.load(folder, known)
    files = TensorFiles(weight_files(folder))
    _check_fit(folder, config, files.shapes, tokenizer)
    _check_memory(folder, config, DTYPES[dtype])
    about = read_about(folder)
    return Loaded(_build(config, files.get, DTYPES[dtype]).to(device), tokenizer, config, about, folder)


def read_config(folder: Path) -> ModelConfig:
    """The shape of a checkpoint (or GGUF file) without its weights."""
    if Path(folder).is_file():
        return open_gguf(Path(folder)).config
    return config_from_hf(read_object(Path(folder) / "config.json"), str(Path(folder) / "config.json"))


def read_tokenizer(folder: Path) -> Tokenizer:
    """The tokenizer of a checkpoint (or GGUF file)."""
    if Path(folder).is_file():
        return open_gguf(Path(folder)).tokenizer
    return Tokenizer.load(folder)


def read_about(folder: Path) -> dict[str, Any]:
    """run.json as ``save`` wrote it; {} for a GGUF file and for other makers' models."""
    file = folder / "run.json"
    return read_object(file) if file.is_file() else {}


def _check_fit(where: Path, config: ModelConfig, shapes: dict[str, tuple[int, ...]], tokenizer: Tokenizer) -> None:
    """Weights, configuration and tokenizer belong together."""
    wanted = set()
    for name, shape in hf_shapes(config):
        wanted.add(name)
        if shapes.get(name) != shape:
            found = f"have {name} in the shape {list(shapes[name])}" if name in shapes else f"lack {name}"
            raise KlypeError(
                f"The weights in {where} {found}, where the configuration asks for {list(shape)}.",
                "They may belong to another model.",
            )
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
    """Bytes of the weights, of the head's copy while it is packed (it stays where it is tied), of one long text's keys
    and values, and of the positions' tables. ``quantised`` weights stay as they are."""
    text = min(config.window, LONG) * 2 * config.layers * config.kv_heads * config.head_dim
    tables = 2 * config.window * config.head_dim if config.rope_theta else 0
    packed = ("embed.weight" if config.tie else "head.weight") not in quantised
    stored = list(chain(*quantised.values()))
    numbers = config.parameters + packed * config.vocab_size * config.width + text + tables
    numbers -= sum(len(weight.blocks) * weight.columns for weight in stored)
    return numbers * dtype.itemsize + sum(weight.blocks.numel() for weight in stored)


def _check_memory(
    folder: Path, config: ModelConfig, dtype: torch.dtype, quantised: StoredWeights = MappingProxyType({})
) -> None:
    needed, free = memory_needed(config, dtype, quantised), int(psutil.virtual_memory().available)
    if needed > free:
        raise KlypeError(
            f"{folder} needs {needed / 2**30:.1f} GiB of memory and {free / 2**30:.1f} GiB is free.",
            "Use --precision bfloat16, or a smaller model.",
        )


class _Undrawn(TorchFunctionMode):
    """Weights are not drawn: they will be read, and to draw them without memory torch would load its compiler."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return None if getattr(func, "__module__", "") == "torch.nn.init" else func(*args, **(kwargs or {}))


def _build(
    config: ModelConfig, get: Callable[[str], Tensor], dtype: torch.dtype, without: Collection[str] = ()
) -> Transformer:
    """``without``: weights that get a place of another kind later."""
    with torch.device("meta"), _Undrawn():
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


def model_card(config: ModelConfig, about: dict[str, Any]) -> str:
    """Markdown with a YAML header. ``about``'s "name", "licence", "language" and "summary" are used where present."""
    name = str(about.get("name") or "A klype model")
    languages = about.get("language") or ["nb", "en"]
    header = [
        f"language: [{', '.join(map(str, languages))}]",
        f"license: {json.dumps(str(about.get('licence') or 'other'))}",
        "library_name: transformers",
        "pipeline_tag: text-generation",
        f"tags: [klype, {model_type(config)}]",
    ]
    shape = {
        "parameters": f"{config.parameters:,}",
        "layers × width": f"{config.layers} × {config.width}",
        "heads (keys)": f"{config.heads} ({config.kv_heads})",
        "vocabulary": f"{config.vocab_size:,}",
        "window": f"{config.window:,} tokens",
        "convolution": str(config.conv or "none"),
    }
    use = "Load it with `klype chat FOLDER`, or with transformers"
    use += " after `import klype.hf`." if model_type(config) == OWN else " as it is."
    made = {k: v for k, v in about.items() if k not in ("name", "licence", "language", "summary")}
    lines = ["---", *header, "---", "", f"# {name}", ""]
    lines += [str(about["summary"]), ""] if about.get("summary") else []
    lines += [
        "A small language model trained with klype, which shows, measures and reduces the divergence of its answers.",
        "It is meant for study, not for advice: what it says is often wrong.",
        "",
        use,
        "",
        "| | |",
        "|---|---|",
        *(f"| {label} | {value} |" for label, value in shape.items()),
        "",
    ]
    if made:
        told = json.dumps(made, indent=2, ensure_ascii=False, default=str)
        lines += ["## What made it", "", "```json", told, "```", ""]
    return "\n".join(lines)


def hub_card(config: ModelConfig, about: dict[str, Any], name: str) -> str:
    """The card of a repository on a hub: as ``model_card``, with intended use, data, measures and energy of its run.

    ``about["run"]`` is the run's run.json. What it does not say is said to be unknown, never made up.
    """
    run = about.get("run") or {}
    plain = {key: value for key, value in about.items() if key != "run"}
    lines = [model_card(config, {"name": name.rpartition("/")[2], **plain}), "## Intended use", ""]
    lines += ["Study of how language models answer. Not for advice, decisions about people, or unattended use.", ""]
    data = run.get("data") or about.get("data") or []
    named = [json.dumps(d, ensure_ascii=False, default=str) if isinstance(d, dict) else str(d)
             for d in (data if isinstance(data, list) else [data])]  # fmt: skip
    told = [f"- {name}" for name in named] or ["The run does not say. Licence: see the header."]
    lines += ["## Data and licences", "", *told, ""]
    # A table of the run's figures with their intervals, by stage
    rows = [
        f"| {stage} | {name} | {figure['value']:.4g} | {figure['low']:.4g} to {figure['high']:.4g} | {figure['n']} |"
        for stage, figures in (run.get("stages") or {}).items()
        if isinstance(figures, dict)
        for name, figure in figures.items()
        if isinstance(figure, dict) and isinstance(figure.get("value"), int | float) and figure.get("low") is not None
    ]
    head = ["| stage | measure | value | 95 % interval | n |", "|---|---|---|---|---|"]
    lines += ["## Measures", "", *([*head, *rows] if rows else ["The run has none."]), ""]
    energy = run.get("joules") or about.get("joules")
    seconds = (run.get("seconds") or {}).get("total")
    lines += ["## Energy", ""]
    lines += [f"{energy:,.0f} J, measured by the processor's own counter." if energy else "Not measured."]
    lines += [f"Trained in {seconds:,.0f} seconds."] if isinstance(seconds, int | float) else []
    return "\n".join(lines) + "\n"
