"""Opens a Hugging Face folder through transformers, without remote code, pickles or network access."""

import json
import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from klype.engine.engine import Engine
from klype.engine.hf_runner import HFRunner
from klype.errors import KlypeError, UsageError, short_error
from klype.model.checkpoint import DTYPES, read_config, read_weight_header, weight_files
from klype.sources.hub import INSTALL
from klype.sources.source import NativeCodec, NativeSource
from klype.text.chat import Chat
from klype.text.tokenizer import Tokenizer
from klype.text.tokenizer_files import read_object, read_special_tokens

BATCH = 64  # answers generated at the same time
# names of a configuration's numbers that determine the sizes of tensors
SIZE = re.compile(
    r"layers?$|^vocab_size$|(hidden|intermediate|expert)\w*_size$|^n_(embd|inner|head)$|^d_(model|ff)$|_dim$|_heads$|experts$"
)
SMALL = 1024  # sizes up to this one are always accepted: what is built of them costs next to nothing


def why_not_native(folder: Path) -> str:
    """Why klype cannot compute a folder's model itself; "" if it can."""
    try:
        read_config(folder)
    except KlypeError as error:
        return error.message
    return ""


def open_hf(folder: Path, name: str = "", dtype: str = "float32", device: torch.device | None = None) -> NativeSource:
    """The model of a folder, computed by transformers and scheduled by klype's engine.

    Raises KlypeError if transformers is not installed, if the model needs code of its own, if weights are pickled,
    missing or damaged, and for architectures that are no causal language models, such as encoders.
    """
    if dtype not in DTYPES:
        raise UsageError(f"There is no precision {dtype!r}.", f"Choose one of {', '.join(DTYPES)}.")
    about = read_object(folder / "config.json")
    kind = about.get("model_type")
    check_sizes(folder, about)
    try:
        import transformers
    except ImportError:
        raise KlypeError(
            f"{name or folder} has the architecture {kind!r}, which klype reads through transformers.", INSTALL
        ) from None
    # the library prints neither progress bars nor warnings: its errors become one sentence
    transformers.utils.logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    transformers.utils.logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        options = {"dtype": DTYPES[dtype], "output_loading_info": True}
        loaded: Any = transformers.AutoModelForCausalLM.from_pretrained(
            folder, local_files_only=True, use_safetensors=True, trust_remote_code=False, **options
        )
    except MemoryError:
        raise
    except Exception as error:  # transformers raises many kinds for what is missing or unknown
        raise KlypeError(
            f"transformers cannot load {name or folder} (architecture {kind!r}): {short_error(error)}.",
            "It must be a causal language model in safetensors, and need no code of its own.",
        ) from None
    model, told = loaded
    if told["missing_keys"]:  # transformers initialises them at random, and only warns
        some = ", ".join(sorted(told["missing_keys"])[:3])
        raise KlypeError(f"{name or folder} lacks weights of its architecture {kind!r}: {some}.", "Fetch it again.")
    tokenizer = tokenizer_of(folder)
    chat = Chat(tokenizer) if tokenizer.template else None
    if tokenizer.vocab_size > model.config.get_text_config().vocab_size:
        raise KlypeError(f"The tokenizer in {folder} has more tokens than the model.", "They do not belong together.")
    model.train(False)
    model.requires_grad_(False).to(device)
    runner, token_bytes = HFRunner(model), tokenizer.token_bytes
    if not runner.is_causal():
        raise KlypeError(
            f"{name or folder} (architecture {kind!r}) reads a word by what comes after it, too: it is an encoder, and"
            " writes no answers.",
            "Give a causal language model.",
        )
    engine = Engine(runner, decode_bytes=token_bytes, name=name or str(folder), max_batch=BATCH)
    return NativeSource(engine, NativeCodec(tokenizer, chat))


def check_sizes(folder: Path, about: Mapping[str, Any]) -> None:
    """Raises KlypeError if a configuration's sizes exceed what the weight files hold. Building a model of a million
    layers would take minutes before a missing weight is noticed."""
    shapes = [entry.shape for file in weight_files(folder) for entry in read_weight_header(file).values()]
    tensors, numbers = len(shapes), sum(map(math.prod, shapes))
    for name, value in _sizes(about):
        most = tensors if "layer" in name else numbers
        if not 0 <= value <= max(most, SMALL):
            raise KlypeError(
                f"config.json in {folder} says {name} is {value:,}, and its files hold {tensors:,} tensors of"
                f" {numbers:,} numbers in all.",
                "They do not belong together.",
            )


def _sizes(about: Mapping[str, Any]) -> Iterator[tuple[str, int]]:
    """Every number of a configuration that SIZE matches, nested ones (text_config …) too."""
    for name, value in about.items():
        if isinstance(value, Mapping):
            yield from _sizes(value)
        elif type(value) is int and SIZE.search(name):
            yield name, value


def tokenizer_of(folder: Path) -> Tokenizer:
    """The tokenizer of a folder, from tokenizer.json; transformers converts older formats."""
    if (folder / "tokenizer.json").is_file():
        return Tokenizer.load(folder)
    import transformers

    try:
        theirs = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        definition = json.loads(theirs.backend_tokenizer.to_str())
    except Exception as error:
        why = short_error(error)
        raise KlypeError(f"{folder} has no tokenizer that can be read: {why}.", "Fetch it again.") from None
    return Tokenizer.of_stranger(definition, read_special_tokens(folder, definition), str(folder))
