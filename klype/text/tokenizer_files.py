"""Tokenizer files of any origin: special tokens, tokenizers in GGUF files, and which tokenizer.json is safe to open.

An unknown tokenizer.json may need any amount of memory, take forever, or crash the process. Only one that consists of
the parts that klype writes itself, with consistent tables (``is_plain``), is opened directly; any other is first tried
in a process of its own (tokenizer.py).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from klype.errors import KlypeError
from klype.jsons import parse

HINT = "Fetch or save the model again."
HINT_GGUF = "Fetch the file again, or use the model's Hugging Face directory."
# the most bytes of a settings file; parsed, it may take thirty times as much memory
MAX_SETTINGS_BYTES = 16 * 2**20
NORMAL, UNKNOWN, CONTROL, USER_DEFINED = 1, 2, 3, 4  # token types
BYTES = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False}
PREFIX = "tokenizer.ggml."
# the most characters of a token, and of all tokens together, in SentencePiece's vocabularies; Llama 2's has 48 and
# 200,000
LONGEST, ALL = 256, 2**22


@dataclass(frozen=True, slots=True)
class SpecialTokens:
    """Spellings of the tokens that begin, end and pad a text; ids of all that end an answer; the chat template."""

    begin: str | None
    end: str | None
    pad: str | None
    ends: tuple[int, ...] = ()
    template: str | None = None


def read_special_tokens(folder: Path, definition: dict[str, Any]) -> SpecialTokens:
    """Reads tokenizer_config.json, special_tokens_map.json, config.json, generation_config.json and
    chat_template.jinja."""
    about = {**_beside(folder, "special_tokens_map.json"), **_beside(folder, "tokenizer_config.json")}
    config, generation = _beside(folder, "config.json"), _beside(folder, "generation_config.json")
    added = definition.get("added_tokens")
    sound = added if isinstance(added, list) else []
    spelling = {t["id"]: t.get("content") for t in sound if isinstance(t, dict) and type(t.get("id")) is int}
    ends = [*_ids(generation.get("eos_token_id")), *_ids(config.get("eos_token_id"))]

    def named(name: str) -> str | None:
        token = about.get(name)
        if isinstance(token, dict):
            token = token.get("content")
        if token is None:
            ids = [*_ids(generation.get(f"{name}_id")), *_ids(config.get(f"{name}_id"))]
            token = next((spelling[i] for i in ids if i in spelling), None)
        return str(token) if token is not None else None

    template, file = about.get("chat_template"), folder / "chat_template.jinja"
    if file.is_file():
        try:
            template = read_bounded(file).decode("utf-8")
        except UnicodeDecodeError as error:
            raise KlypeError(f"{file} is damaged: {error}.", HINT) from error
    elif isinstance(template, list):  # several named ones
        template = next(
            (t.get("template") for t in template if isinstance(t, dict) and t.get("name") == "default"), None
        )
    begin, end, pad = named("bos_token"), named("eos_token"), named("pad_token")
    template = template if isinstance(template, str) else None
    return SpecialTokens(begin, end, pad, tuple(dict.fromkeys(ends)), template)


def read_object(file: Path, most: int = MAX_SETTINGS_BYTES) -> dict[str, Any]:
    """The object in a JSON file. KlypeError when it is missing, damaged, or larger than ``most`` bytes."""
    try:
        content = parse(read_bounded(file, most).decode("utf-8"))
    except ValueError as error:
        raise KlypeError(f"{file} is damaged: {error}.", HINT) from error
    if not isinstance(content, dict):
        raise KlypeError(f"{file} is damaged: it holds no object.", HINT)
    return content


def read_bounded(file: Path, most: int = MAX_SETTINGS_BYTES) -> bytes:
    """Content of a regular file. KlypeError when it is missing or larger than ``most`` bytes."""
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
    """Whether a tokenizer.json has only parts that klype writes itself, ids without gaps, and merges of its tokens."""

    def is_simple(part: Any, *kinds: str) -> bool:
        """Whether a part is of one of these kinds, with only booleans as options."""
        return part["type"] in kinds and all(isinstance(value, bool) for name, value in part.items() if name != "type")

    def is_cut(part: Any) -> bool:
        """Whether a pre-tokenizer is one that klype writes."""
        if part["type"] != "Split":
            return is_simple(part, "ByteLevel", "Digits")
        known = part["pattern"] in [{"Regex": pattern} for pattern in (LLAMA3, QWEN2)]
        return known and part["behavior"] == "Isolated" and part["invert"] is False

    def joins(merge: Any) -> bool:
        """Whether both halves of a merge and its result are tokens."""
        left, right = merge.split(" ") if isinstance(merge, str) else merge
        return isinstance(merge, str | list) and {left, right, left + right} <= vocabulary.keys()

    def is_added(token: Any) -> bool:
        """Whether an added token has a spelling, an id within the vocabulary, and else only booleans."""
        number, content = token["id"], token["content"]
        switches = (value for name, value in token.items() if name not in ("id", "content"))
        fits = type(number) is int and 0 <= number < len(vocabulary) + len(added)
        return fits and isinstance(content, str) and content != "" and all(isinstance(one, bool) for one in switches)

    try:
        model, added = definition["model"], definition.get("added_tokens") or []
        vocabulary, merges, cut = model["vocab"], model["merges"], definition["pre_tokenizer"]
        cuts = cut["pretokenizers"] if cut["type"] == "Sequence" else [cut]
        rest = {name: value for name, value in model.items() if name not in ("type", "vocab", "merges")}
        return (
            model["type"] == "BPE"
            and all(value in _BPE.get(name, ()) for name, value in rest.items())
            and definition.get("normalizer") in (None, {"type": "NFC"})
            and definition.get("post_processor") is None
            and isinstance(cuts, list)
            and 0 < len(cuts) <= 3
            and all(map(is_cut, cuts))
            and is_simple(definition["decoder"], "ByteLevel")
            and all(type(i) is int for i in vocabulary.values())
            and set(vocabulary.values()) == set(range(len(vocabulary)))
            and isinstance(merges, list)
            and all(map(joins, merges))
            and isinstance(added, list)
            and all(map(is_added, added))
        )
    except (AttributeError, KeyError, TypeError, ValueError):  # it has another shape
        return False


def call_library(call: Callable[..., T], *given: Any, **named: Any) -> T:
    """Calls the tokenizers library; any failure becomes a KlypeError."""
    try:
        return call(*given, **named)
    except MemoryError:
        raise
    except BaseException as error:  # it raises bare Exception, and panics that are not even that
        if not isinstance(error, Exception) and type(error).__module__ != "pyo3_runtime":
            raise
        raise KlypeError(f"The model's tokenizer fails: {f'{error}':.200}.", HINT) from error


def read_gguf(metadata: dict[str, Any], file: Path) -> tuple[dict[str, Any], SpecialTokens]:
    """The tokenizer in a GGUF file's metadata as the content of a tokenizer.json and special tokens: byte-level BPE
    ("gpt2" there) or SentencePiece ("llama"). KlypeError for a kind or pattern that klype does not know, KeyError and
    the like for missing values or other types."""
    kind, pattern = metadata[f"{PREFIX}model"], metadata.get(f"{PREFIX}pre", "default")
    if kind not in ("gpt2", "llama"):
        raise KlypeError(f"{file} has a tokenizer of the kind {kind!r:.60}, which klype cannot rebuild.", HINT_GGUF)
    pieces = kind == "llama"
    tokens, types = metadata[f"{PREFIX}tokens"], metadata[f"{PREFIX}token_type"]
    added = [
        {"id": i, "content": t, "special": types[i] != USER_DEFINED, "normalized": False}
        | dict.fromkeys(("single_word", "lstrip", "rstrip"), False)
        for i, t in enumerate(tokens)
        if types[i] in (CONTROL, USER_DEFINED) or (pieces and types[i] == UNKNOWN)
    ]
    defaults = {"bos": 1, "eos": 2} if pieces else {}  # llama.cpp's, as is which tokenizers begin a text

    def id_of(name: str) -> int | None:
        found: int | None = metadata.get(f"{PREFIX}{name}_token_id", defaults.get(name))
        return found

    def token(name: str) -> str | None:
        i = id_of(name)
        return None if i is None else str(tokens[i % 2**32])

    begin = token("bos") if metadata.get(f"{PREFIX}add_bos_token", pieces or pattern == "llama-bpe") else None
    beginning = None
    if begin is not None:
        single = [{"SpecialToken": {"id": begin, "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}]
        special_tokens = {begin: {"id": begin, "ids": [id_of("bos")], "tokens": [begin]}}
        beginning = {"type": "TemplateProcessing", "single": single, "pair": single, "special_tokens": special_tokens}
    definition = {
        "version": "1.0",
        "added_tokens": added,
        "post_processor": beginning,
        **(_sentence_piece(metadata, tokens, types) if pieces else _byte_level(metadata, tokens, pattern, file)),
    }
    ends = tuple(i for i in (id_of("eos"), id_of("eot")) if i is not None)
    template = metadata.get("tokenizer.chat_template")
    if template is not None and not isinstance(template, str):
        raise TypeError("its chat template")
    return definition, SpecialTokens(token("bos"), token("eos"), token("padding"), ends, template)


def _byte_level(metadata: dict[str, Any], tokens: Sequence[str], pattern: str, file: Path) -> dict[str, Any]:
    """Parts of a byte-level BPE's tokenizer.json; patterns are those of llama.cpp's llama-vocab.cpp, by their names."""
    first = []
    if pattern in ("smollm", "starcoder", "refact", "command-r"):
        first = [{"type": "Digits", "individual_digits": True}]  # digits one by one
    elif pattern in ("llama-bpe", "qwen2"):
        regex = LLAMA3 if pattern == "llama-bpe" else QWEN2
        first = [{"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": False}]
    elif pattern not in ("gpt-2", "default"):
        raise KlypeError(f"{file} cuts text by the pattern {pattern!r:.60}, which klype does not know.", HINT_GGUF)
    last = {**BYTES, "use_regex": pattern not in ("llama-bpe", "qwen2")}
    return {
        "normalizer": {"type": "NFC"} if pattern == "qwen2" else None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [*first, last]} if first else last,
        "decoder": {**BYTES, "use_regex": True},
        "model": {
            "type": "BPE",
            "vocab": {t: i for i, t in enumerate(tokens)},
            "merges": [m.split(" ", 1) for m in metadata[f"{PREFIX}merges"]],
            "ignore_merges": pattern == "llama-bpe",
        },
    }


def _sentence_piece(metadata: dict[str, Any], tokens: Sequence[str], types: Sequence[int]) -> dict[str, Any]:
    """Parts of a SentencePiece tokenizer.json. Spaces are ▁, one is put before a text, and bytes spell what has no
    token. The pair that makes the token of the highest score is merged first. Only normal tokens have merges, so that
    no text becomes a control token."""
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
