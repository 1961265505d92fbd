"""The tokenizer that a GGUF file's metadata describes: byte-level BPE ("gpt2" there) or SentencePiece's ("llama").

The patterns that cut text into pieces are those of llama.cpp's llama-vocab.cpp, by their names there.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from klype.errors import KlypeError
from klype.text.tokenizer import Tokenizer
from klype.text.tokenizer_files import LLAMA3, QWEN2, SpecialTokens

HINT = "Fetch the file again, or use the model's Hugging Face directory."
NORMAL, UNKNOWN, CONTROL, USER_DEFINED = 1, 2, 3, 4  # token types
BYTES = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False}
PREFIX = "tokenizer.ggml."
# most characters of a token that others are merged to, and of all; Llama 2's 32,000 have 48 and 200,000
LONGEST, ALL = 256, 2**22


def tokenizer_of(metadata: dict[str, Any], file: Path, known: Path | None) -> Tokenizer:
    """Raises KlypeError for a kind or a pattern that klype does not know, KeyError and the like for what is missing or
    of another type. ``known``: see Tokenizer.load."""
    kind, pattern = metadata[f"{PREFIX}model"], metadata.get(f"{PREFIX}pre", "default")
    if kind not in ("gpt2", "llama"):
        raise KlypeError(f"{file} has a tokenizer of the kind {kind!r:.60}, which klype cannot rebuild.", HINT)
    pieces = kind == "llama"
    tokens, types = metadata[f"{PREFIX}tokens"], metadata[f"{PREFIX}token_type"]
    added = [
        {"id": i, "content": t, "special": types[i] != USER_DEFINED, "normalized": False}
        | dict.fromkeys(("single_word", "lstrip", "rstrip"), False)
        for i, t in enumerate(tokens)
        if types[i] in (CONTROL, USER_DEFINED) or (pieces and types[i] == UNKNOWN)
    ]
    defaults = {"bos": 1, "eos": 2} if pieces else {}  # these, and who begins a text, are llama.cpp's

    def id_of(name: str) -> int | None:
        found: int | None = metadata.get(f"{PREFIX}{name}_token_id", defaults.get(name))
        return found

    def token(name: str) -> str | None:
        i = id_of(name)
        return None if i is None else str(tokens[i % 2**32])

    begin = token("bos") if metadata.get(f"{PREFIX}add_bos_token", pieces or pattern == "llama-bpe") else None
    definition = {
        "version": "1.0",
        "added_tokens": added,
        "post_processor": None if begin is None else _beginning(begin, id_of("bos")),
        **(_sentence_piece(metadata, tokens, types) if pieces else _byte_level(metadata, tokens, pattern, file)),
    }
    ends = tuple(i for i in (id_of("eos"), id_of("eot")) if i is not None)
    template = metadata.get("tokenizer.chat_template")
    if template is not None and not isinstance(template, str):
        raise TypeError("its chat template")
    special = SpecialTokens(token("bos"), token("eos"), token("padding"), ends, template)
    return Tokenizer.of_stranger(definition, special, str(file), known)


def _beginning(name: str, token: int | None) -> dict[str, Any]:
    """The part that puts a token before every text."""
    pieces = [{"SpecialToken": {"id": name, "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}]
    special_tokens = {name: {"id": name, "ids": [token], "tokens": [name]}}
    return {"type": "TemplateProcessing", "single": pieces, "pair": pieces, "special_tokens": special_tokens}


def _byte_level(metadata: dict[str, Any], tokens: Sequence[str], pattern: str, file: Path) -> dict[str, Any]:
    return {
        "normalizer": {"type": "NFC"} if pattern == "qwen2" else None,
        "pre_tokenizer": _pieces(pattern, file),
        "decoder": {**BYTES, "use_regex": True},
        "model": {
            "type": "BPE",
            "vocab": {t: i for i, t in enumerate(tokens)},
            "merges": [m.split(" ", 1) for m in metadata[f"{PREFIX}merges"]],
            "ignore_merges": pattern == "llama-bpe",
        },
    }


def _sentence_piece(metadata: dict[str, Any], tokens: Sequence[str], types: Sequence[int]) -> dict[str, Any]:
    """Spaces are ▁, one stands before a text, and bytes spell what has no token. Of the pairs that make a token, the
    one of the highest score is merged first. Only plain tokens are made so: no text spells a control token."""
    if sum(map(len, tokens)) > ALL or max(map(len, tokens)) > LONGEST:
        raise ValueError("what its tokens are: they are longer than any vocabulary's")
    vocabulary, merges = {t: i for i, t in enumerate(tokens)}, []
    for text, score, kind in zip(tokens, metadata[f"{PREFIX}scores"], types, strict=True):
        halves = ((text[:cut], text[cut:]) for cut in range(1, len(text) if kind == NORMAL else 1))
        merges += [(-score, left, right) for left, right in halves if left in vocabulary and right in vocabulary]
    merges.sort(key=lambda merge: merge[0])
    spaced: bool = metadata.get(f"{PREFIX}add_space_prefix", True)
    scheme = "first" if spaced else "never"
    back = [{"type": "Replace", "pattern": {"String": "▁"}, "content": " "}, {"type": "ByteFallback"}, {"type": "Fuse"}]
    return {
        "normalizer": None,
        "pre_tokenizer": {"type": "Metaspace", "replacement": "▁", "prepend_scheme": scheme, "split": False},
        "decoder": {
            "type": "Sequence",
            "decoders": [*back, *[{"type": "Strip", "content": " ", "start": 1, "stop": 0}] * spaced],
        },
        "model": {
            "type": "BPE",
            "vocab": vocabulary,
            "merges": [pair for _, *pair in merges],
            "unk_token": tokens[metadata.get(f"{PREFIX}unknown_token_id", 0)],
            "fuse_unk": True,
            "byte_fallback": True,
        },
    }


def _pieces(pattern: str, file: Path) -> dict[str, Any]:
    """The pre-tokenizer that a pattern's name stands for."""
    if pattern in ("gpt-2", "default"):
        return {**BYTES, "use_regex": True}
    if pattern in ("smollm", "starcoder", "refact", "command-r"):  # digits one by one
        digits = {"type": "Digits", "individual_digits": True}
        return {"type": "Sequence", "pretokenizers": [digits, {**BYTES, "use_regex": True}]}
    if pattern in ("llama-bpe", "qwen2"):
        regex = LLAMA3 if pattern == "llama-bpe" else QWEN2
        split = {"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": False}
        return {"type": "Sequence", "pretokenizers": [split, {**BYTES, "use_regex": False}]}
    raise KlypeError(f"{file} cuts text by the pattern {pattern!r:.60}, which klype does not know.", HINT)
