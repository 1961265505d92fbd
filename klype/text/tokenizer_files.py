"""A tokenizer's files, of any maker: its special tokens, and whether its tokenizer.json can be opened in this process.

A stranger's may ask for any memory, never end, or end us: only one that has only parts which klype writes itself, and
tables that agree (``is_plain``), is opened here. Any other is tried in a process of its own first (tokenizer.py).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from klype.errors import KlypeError
from klype.jsons import parsed

HINT = "Fetch or save the model again."
# most bytes of a settings file; parsed, it may take thirty times as much memory
MOST = 16 * 2**20


@dataclass(frozen=True, slots=True)
class SpecialTokens:
    """Spellings of the tokens that begin, end and pad a text; ids of all that end an answer; the chat template."""

    begin: str | None
    end: str | None
    pad: str | None
    ends: tuple[int, ...] = ()
    template: str | None = None


def read_special_tokens(folder: Path, definition: dict[str, Any]) -> SpecialTokens:
    """From tokenizer_config.json, special_tokens_map.json, config.json, generation_config.json, chat_template.jinja."""
    about = {**_beside(folder, "special_tokens_map.json"), **_beside(folder, "tokenizer_config.json")}
    config, generation = _beside(folder, "config.json"), _beside(folder, "generation_config.json")
    added = definition.get("added_tokens")
    sound = [t for t in added if isinstance(t, dict) and type(t.get("id")) is int] if isinstance(added, list) else []
    spelling = {t["id"]: t.get("content") for t in sound}
    ends = [*_ids(generation.get("eos_token_id")), *_ids(config.get("eos_token_id"))]

    def named(name: str) -> str | None:
        token = about.get(name)
        if isinstance(token, dict):
            token = token.get("content")
        if token is None:
            ids = [*_ids(generation.get(f"{name}_id")), *_ids(config.get(f"{name}_id"))]
            token = next((spelling[i] for i in ids if i in spelling), None)
        return str(token) if token is not None else None

    begin, end, pad = named("bos_token"), named("eos_token"), named("pad_token")
    return SpecialTokens(begin, end, pad, tuple(dict.fromkeys(ends)), _template(folder, about))


def _template(folder: Path, about: dict[str, Any]) -> str | None:
    file = folder / "chat_template.jinja"
    if file.is_file():
        try:
            return read_bounded(file).decode("utf-8")
        except UnicodeDecodeError as error:
            raise KlypeError(f"{file} is damaged: {error}.", HINT) from error
    template = about.get("chat_template")
    if isinstance(template, list):  # several named ones
        named = [t for t in template if isinstance(t, dict) and t.get("name") == "default"]
        template = named[0].get("template") if named else None
    return template if isinstance(template, str) else None


def read_object(file: Path, most: int = MOST) -> dict[str, Any]:
    """An object from a JSON file. Raises KlypeError when it is missing, damaged, or larger than such a file ever is."""
    try:
        content = parsed(read_bounded(file, most).decode("utf-8"))
    except ValueError as error:
        raise KlypeError(f"{file} is damaged: {error}.", HINT) from error
    if not isinstance(content, dict):
        raise KlypeError(f"{file} is damaged: it holds no object.", HINT)
    return content


def read_bounded(file: Path, most: int = MOST) -> bytes:
    """Content of a regular file. Raises KlypeError when there is none, or more than ``most`` bytes."""
    try:
        if not file.is_file():  # a pipe or a device would never end
            raise FileNotFoundError
        with open(file, "rb") as stream:
            content = stream.read(most + 1)
    except OSError as error:
        raise KlypeError(f"{file} is missing or cannot be read.", "Give the folder of a checkpoint.") from error
    if len(content) > most:
        raise KlypeError(f"{file} is larger than {most >> 20} MiB: too large for such a file.", HINT)
    return content


def _beside(folder: Path, name: str) -> dict[str, Any]:
    return read_object(folder / name) if (folder / name).is_file() else {}


def _ids(value: Any) -> list[int]:
    values = value if isinstance(value, list) else [value]
    return [i for i in values if type(i) is int]


LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
# patterns that split text in time linear in its length
QWEN2 = LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")

_BPE: dict[str, tuple[Any, ...]] = {
    **dict.fromkeys(("dropout", "unk_token"), (None,)),
    **dict.fromkeys(("continuing_subword_prefix", "end_of_word_suffix"), (None, "")),
    **dict.fromkeys(("fuse_unk", "byte_fallback"), (False,)),
    "ignore_merges": (False, True),
}

T = TypeVar("T")


def is_plain(definition: dict[str, Any]) -> bool:
    """Whether it has only parts that klype writes itself, ids without gaps, and merges of tokens that it has."""
    model, added = definition.get("model"), definition.get("added_tokens") or []
    if not isinstance(model, dict) or model.get("type") != "BPE" or not isinstance(added, list):
        return False
    vocabulary, merges = model.get("vocab"), model.get("merges")
    if not isinstance(vocabulary, dict) or not isinstance(merges, list):
        return False
    cut = definition.get("pre_tokenizer")
    cuts = cut.get("pretokenizers") if isinstance(cut, dict) and cut.get("type") == "Sequence" else [cut]
    if not isinstance(cuts, list):
        return False
    rest = {name: value for name, value in model.items() if name not in ("type", "vocab", "merges")}
    if not all(value in _BPE.get(name, ()) for name, value in rest.items()):
        return False
    return (
        definition.get("normalizer") in (None, {"type": "NFC"})
        and definition.get("post_processor") is None
        and 0 < len(cuts) <= 3
        and all(_is_cut(part) for part in cuts)
        and _is_simple(definition.get("decoder"), "ByteLevel")
        and all(type(i) is int for i in vocabulary.values())
        and set(vocabulary.values()) == set(range(len(vocabulary)))
        and all(_joins(merge, vocabulary) for merge in merges)
        and all(_is_added(token, len(vocabulary) + len(added)) for token in added)
    )


def call_library(call: Callable[..., T], *given: Any, **named: Any) -> T:
    """Call the tokenizers library; any failure becomes a KlypeError."""
    try:
        return call(*given, **named)
    except MemoryError:
        raise
    except BaseException as error:  # it raises bare Exception, and what panics in it is not even that
        if not isinstance(error, Exception) and type(error).__module__ != "pyo3_runtime":
            raise
        raise KlypeError(f"The model's tokenizer fails: {f'{error}':.200}.", HINT) from error


def _is_cut(part: Any) -> bool:
    """Whether a pre-tokenizer is one that klype knows."""
    if not isinstance(part, dict) or part.get("type") != "Split":
        return _is_simple(part, "ByteLevel") or _is_simple(part, "Digits")
    known = [{"Regex": pattern} for pattern in (LLAMA3, QWEN2)]
    return part.get("pattern") in known and part.get("behavior") == "Isolated" and part.get("invert") is False


def _is_simple(part: Any, kind: str) -> bool:
    """Of this kind, with nothing but switches."""
    if not isinstance(part, dict) or part.get("type") != kind:
        return False
    return all(isinstance(value, bool) for name, value in part.items() if name != "type")


def _joins(merge: Any, vocabulary: dict[str, int]) -> bool:
    pair = merge.split(" ") if isinstance(merge, str) else merge
    if not isinstance(pair, list) or len(pair) != 2 or not isinstance(pair[0], str) or not isinstance(pair[1], str):
        return False
    return pair[0] in vocabulary and pair[1] in vocabulary and pair[0] + pair[1] in vocabulary


def _is_added(token: Any, most: int) -> bool:
    if not isinstance(token, dict) or type(token.get("id")) is not int or not 0 <= token["id"] < most:
        return False
    content = token.get("content")
    switches = (value for name, value in token.items() if name not in ("id", "content"))
    return isinstance(content, str) and content != "" and all(isinstance(value, bool) for value in switches)
