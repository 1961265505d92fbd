"""From a folder, or a hub name, to a model of transformers. No remote code, no pickle, no network but for hub names."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch

from klype.errors import KlypeError, UsageError
from klype.model.checkpoint import DTYPES, read_config
from klype.sources.hf import HFSource
from klype.sources.native import NativeCodec
from klype.text.chat import Chat
from klype.text.special import read_object, read_special_tokens
from klype.text.tokenizer import Tokenizer

INSTALL = "Install it: pip install 'klype[hf]'."
WANTED = ("*.json", "*.safetensors", "*.jinja", "*.model", "*.txt")
"""Files of a hub repository that are fetched: no pickles, no code."""


def why_not_native(folder: Path) -> str:
    """Why klype cannot compute the model of this folder itself; "" when it can."""
    try:
        read_config(folder)
    except KlypeError as error:
        return error.message
    return ""


def fetch(name: str) -> Path:
    """The folder of ``owner/name`` (``owner/name@revision``) in the hub's local cache, fetched when it is not there."""
    repository, _, revision = name.partition("@")
    if not re.fullmatch(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?", repository):
        raise UsageError(f"hf:{name} is no name of a model on the hub.", "Write hf:owner/name.")
    try:
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import GatedRepoError, LocalEntryNotFoundError, RepositoryNotFoundError
    except ImportError:
        raise KlypeError("Models by hub name need the package huggingface_hub.", INSTALL) from None
    asked: dict[str, Any] = {"revision": revision or None, "allow_patterns": list(WANTED)}
    try:
        return Path(snapshot_download(repository, local_files_only=True, **asked))
    except (LocalEntryNotFoundError, OSError, ValueError):
        pass  # not here yet
    try:
        return Path(snapshot_download(repository, **asked))
    except GatedRepoError:
        raise KlypeError(f"hf:{name} is only for those who accepted its terms.", "Accept them, then log in.") from None
    except RepositoryNotFoundError:
        raise UsageError(f"There is no model {repository} on the hub, or it is private.", "Check its name.") from None
    except Exception as error:  # offline, refused, out of disk: the client raises many kinds
        raise KlypeError(
            f"hf:{name} is not on this machine, and the hub cannot be reached ({_short(error)}).",
            "Go online once, or give the folder of a model that is here.",
        ) from None


def open_hf(folder: Path, name: str = "", dtype: str = "float32") -> HFSource:
    """A source over transformers' model of this folder. Errors: no transformers, code that would have to be run,
    weights that are pickled, missing or damaged, an architecture that is no causal language model."""
    if dtype not in DTYPES:
        raise UsageError(f"There is no precision {dtype!r}.", f"Choose one of {', '.join(DTYPES)}.")
    kind = read_object(folder / "config.json").get("model_type")
    try:
        import transformers
    except ImportError:
        raise KlypeError(
            f"{name or folder} has the architecture {kind!r}, which klype reads through transformers.", INSTALL
        ) from None
    try:
        model = transformers.AutoModelForCausalLM.from_pretrained(
            folder, local_files_only=True, use_safetensors=True, trust_remote_code=False, dtype=DTYPES[dtype]
        )
    except MemoryError:
        raise
    except Exception as error:  # transformers raises many kinds for what is missing or unknown
        raise KlypeError(
            f"transformers cannot load {name or folder} (architecture {kind!r}): {_short(error)}.",
            "It must be a causal language model in safetensors, and need no code of its own.",
        ) from None
    tokenizer = tokenizer_of(folder)
    chat = Chat(tokenizer) if tokenizer.template else None
    if tokenizer.vocab_size > model.config.get_text_config().vocab_size:
        raise KlypeError(f"The tokenizer in {folder} has more tokens than the model.", "They do not belong together.")
    model.train(False)
    model.requires_grad_(False)
    with torch.inference_mode():
        return HFSource(model, NativeCodec(tokenizer, chat), name or str(folder))


def tokenizer_of(folder: Path) -> Tokenizer:
    """From tokenizer.json; older formats are converted by transformers."""
    if (folder / "tokenizer.json").is_file():
        return Tokenizer.load(folder)
    import json

    import transformers

    try:
        theirs = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        definition = json.loads(theirs.backend_tokenizer.to_str())
    except Exception as error:
        raise KlypeError(f"{folder} has no tokenizer that can be read: {_short(error)}.", "Fetch it again.") from None
    return Tokenizer.of_stranger(definition, read_special_tokens(folder, definition), str(folder))


def _short(error: Exception) -> str:
    text = str(error).strip().splitlines()
    return (text[0][:160].rstrip(" .:") if text else "") or type(error).__name__
