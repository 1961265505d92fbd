"""Text to token ids and back: byte-level BPE over Hugging Face's `tokenizers`, tokenizer.json as its file format.

Text never becomes a control token: control tokens enter by id only (see chat.py). Any Unicode text round-trips exactly
through a tokenizer trained here; there is no normalisation and no unknown token.

A tokenizer trained here begins every text with ``<|begin|>`` and one space, and every answer with one space. Other
tokenizers begin a text as their files say, read in the way of transformers and llama.cpp.
"""

import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import suppress
from itertools import takewhile
from pathlib import Path
from typing import Any, ClassVar

from pydantic_core import to_json
from tokenizers import AddedToken, Encoding, decoders, models, pre_tokenizers, trainers
from tokenizers import Tokenizer as Backend

from klype import durable
from klype.errors import KlypeError, UsageError
from klype.text.sandbox import apart
from klype.text.tokenizer_files import HINT, SpecialTokens, call_library, is_plain, read_object, read_special_tokens

LONG_TEXT = 4_000  # characters; encoding a longer text takes milliseconds
LARGE_TEXT = 1_000_000  # characters; in a larger training text, words that occur once get no token of their own
LARGEST = 128 * 2**20  # bytes of a tokenizer.json; the largest one known has 35 million
GAPS = 2**20  # the most ids without a token, besides as many as there are tokens
# texts on which patterns with look-behind are slowest
HARD = ("a" * 3000, " " * 3000, "1" * 3000, "\n" * 3000, "'.,-_" * 600, "aB1 .\t" * 500, "æ😀\u0301日" * 750)
PART = 100_000  # characters of a text that are split into words at a time
TRAINING_TEXT = 64_000_000  # characters that a vocabulary is learnt from; more do not change it noticeably


class Tokenizer:
    """A vocabulary of bytes, merges or whole words, and control tokens. Immutable after construction.

    ``template`` is the chat template that came with it, or None. ``ends`` are the ids that end an answer (``end`` among
    them). ``begin``, ``end``, ``user``, ``assistant`` and ``system`` are -1 where there is no such token. ``lead`` are
    the ids that begin every text. ``knows_words``: words may have tokens that no merges produce; in a tokenizer trained
    here, every word of its text has one. ``asked`` is the vocabulary size asked for in training; ``vocab_size < asked``
    means that the text supports no more.
    """

    CONTROL: ClassVar[tuple[str, ...]] = ("<|pad|>", "<|begin|>", "<|end|>", "<|user|>", "<|assistant|>", "<|system|>")

    def __init__(self, definition: dict[str, Any], special: SpecialTokens, asked: int = 0) -> None:
        """``definition`` is the content of a tokenizer.json."""
        definition = {**definition, "truncation": None, "padding": None}
        self._definition = definition
        self._special = special
        self._backend = _backend(definition)
        # added tokens are left out, so that no text becomes one; inside a text, SentencePiece's scheme "first" adds no
        # space
        plain = {**definition, "added_tokens": [], "post_processor": None}
        cuts = json.dumps(plain.get("pre_tokenizer")).replace('"first"', '"never"')
        inner, behind = {**plain, "pre_tokenizer": json.loads(cuts)}, _prepending_nothing(plain)
        self._plain = _backend(plain, self._backend)
        self._inner = self._plain if inner == plain else _backend(inner, self._backend)
        self._behind = self._plain if behind == plain else _backend(behind, self._backend)
        self._byte_level = "ByteLevel" in json.dumps([definition.get("pre_tokenizer"), definition.get("decoder")])
        self._bytes = _token_bytes(self._backend, self._byte_level)
        self.vocab_size = len(self._bytes)
        twice = next((text for text, i in self.control_ids().items() if self._id(text) != i), None)
        if twice is not None:
            raise KlypeError(f"it gives {twice!r:.60} two ids.")
        self.asked = asked or self.vocab_size
        self.knows_words = bool(definition.get("model", {}).get("ignore_merges"))
        self.template = special.template
        self.begin, self.end, self.pad = (self._id(t) for t in (special.begin, special.end, special.pad))
        self.user, self.assistant, self.system = (self._id(t) for t in self.CONTROL[3:])
        self.pad = self.pad if self.pad >= 0 else max(self.end, 0)
        self.ends = tuple(sorted({i for i in (self.end, *special.ends) if 0 <= i < self.vocab_size}))
        self._own = {text: i for i, text in enumerate(self.CONTROL)}.items() <= self.control_ids().items()
        self.lead = [i for i in (self.begin,) if i >= 0]
        if not self._own:  # as in transformers since version 5: the post-processor decides, not the settings
            begun = call_library(self._backend.encode, "a")
            special_first = takewhile(lambda pair: pair[1], zip(begun.ids, begun.special_tokens_mask, strict=True))
            self.lead = [i for i, _ in special_first]
        beyond = next((i for i in self.lead if i >= self.vocab_size), None)
        if beyond is not None:
            raise KlypeError(f"it begins a text with the token {beyond:,}, and has {self.vocab_size:,}.")

    @staticmethod
    def train(texts: Iterable[str], size: int, template: str | None = None) -> "Tokenizer":
        """Learns a vocabulary of at most ``size`` tokens from ``texts``; the same texts give the same vocabulary.

        If all words (pieces of GPT-2's pattern) of the text fit, each gets a token of its own, and merges, which spell
        unknown words, fill the rest; otherwise there are only merges. A text that supports fewer tokens than asked for
        gives a smaller vocabulary (``vocab_size < asked``).
        """
        if size < len(Tokenizer.CONTROL) + 256:
            raise UsageError(
                f"A vocabulary of {size} tokens is too small: 256 bytes and {len(Tokenizer.CONTROL)} control tokens "
                f"need {len(Tokenizer.CONTROL) + 256}.",
                "Ask for a larger vocabulary.",
            )
        kept, characters = [], 0
        for text in texts:
            if text:
                kept.append(valid_unicode(_with_leading_space(text)))
                characters += len(text)
            if characters >= TRAINING_TEXT:
                break
        if not kept:
            raise KlypeError("There is no text to make a vocabulary from.", "Give a file that holds some text.")
        pad, begin, end = Tokenizer.CONTROL[:3]
        return Tokenizer(_learn(kept, size), SpecialTokens(begin, end, pad, (), template), size)

    @staticmethod
    def load(path: Path, known: Path | None = None) -> "Tokenizer":
        """Loads the tokenizer of a checkpoint folder (klype's own or a Hugging Face one), or a tokenizer.json.

        ``known``: see ``try_apart``.
        """
        folder, file = (path, path / "tokenizer.json") if path.is_dir() else (path.parent, path)
        if not file.is_file():
            raise KlypeError(f"There is no tokenizer.json in {folder}.", "Copy the model's tokenizer.json into it.")
        definition = read_object(file, LARGEST)
        return Tokenizer.of_stranger(definition, read_special_tokens(folder, definition), str(file), known)

    @staticmethod
    def of_stranger(
        definition: dict[str, Any], special: SpecialTokens, where: str, known: Path | None = None
    ) -> "Tokenizer":
        """A tokenizer from a definition that may be damaged or malicious. ``known``: see ``try_apart``."""
        try:
            if not is_plain(definition):
                try_apart(definition, known)
            return Tokenizer(definition, special)
        except MemoryError:
            raise
        except KlypeError as error:
            raise KlypeError(
                f"{where} is not a tokenizer that can be read: {error.message}", error.hint or HINT
            ) from error
        except Exception as error:  # anything may be wrong with the definition
            raise KlypeError(f"{where} is not a tokenizer that can be read: {error!r:.200}.", HINT) from error

    def save(self, folder: Path) -> None:
        """Writes tokenizer.json, tokenizer_config.json and, if there is a template, chat_template.jinja."""
        folder.mkdir(parents=True, exist_ok=True)
        names = {"bos_token": self._special.begin, "eos_token": self._special.end, "pad_token": self._special.pad}
        about = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            **{name: token for name, token in names.items() if token is not None},
            "unk_token": self._definition["model"].get("unk_token"),  # without it Qwen2's class adds one
            "clean_up_tokenization_spaces": False,
            "add_prefix_space": False,
        }
        durable.write(folder / "tokenizer.json", json.dumps(self._definition, ensure_ascii=False))
        durable.write(folder / "tokenizer_config.json", json.dumps(about, ensure_ascii=False, indent=2))
        if self.template is not None:
            durable.write(folder / "chat_template.jinja", self.template)

    def encode(self, text: str, first: bool = True) -> list[int]:
        """Token ids of a text. What looks like a control token is encoded as ordinary text. ``first``: the text is not
        the continuation of another."""
        return _encode(self._plain if first else self._inner, text).ids

    def encode_with_offsets(self, text: str, first: bool = True) -> tuple[list[int], list[tuple[int, int]]]:
        """Token ids as of ``encode``, and the [start, stop) characters of each."""
        encoding = _encode(self._plain if first else self._inner, text, offsets=True)
        return encoding.ids, encoding.offsets

    def encode_beginning(self, text: str) -> list[int]:
        """Token ids of a text to be continued. Tokenizers trained here put a space before it unless it starts with
        white space."""
        return [*self.lead, *self.encode(self._with_space(text))]

    def encode_answer(self, text: str) -> list[int]:
        """Token ids of an answer. Tokenizers trained here put exactly one space before it."""
        if self._own:
            return self.encode(f" {text.strip()}")
        return _encode(self._behind, text).ids

    def encode_document(self, text: str) -> list[int]:
        """Token ids of a whole document, between ``lead`` and ``end``."""
        return self.encode_documents([text])[0]

    def encode_documents(self, texts: Sequence[str]) -> list[list[int]]:
        """`encode_document` of many texts, on all cores."""
        spaced, end = [valid_unicode(self._with_space(t)) for t in texts], [i for i in (self.end,) if i >= 0]
        return [
            [*self.lead, *e.ids, *end]
            for e in call_library(self._plain.encode_batch_fast, spaced, add_special_tokens=False)
        ]

    def decode(self, ids: Sequence[int]) -> str:
        """The text of token ids, without control tokens; bytes that are not UTF-8 become U+FFFD."""
        if self._byte_level:
            return b"".join([self.token_bytes(i) for i in ids]).decode("utf-8", errors="replace")
        return str(call_library(self._backend.decode, list(ids), skip_special_tokens=True))

    def decode_answer(self, ids: Sequence[int]) -> str:
        """The text of an answer, without the one space before it."""
        return self.decode(ids).removeprefix(" ")

    def token_bytes(self, token: int) -> bytes:
        """The bytes that a token adds to a text: none for a control token or a padding row of the model's
        vocabulary."""
        return self._bytes[token] if token < len(self._bytes) else b""

    def agrees(self, other: "Tokenizer") -> bool:
        """Whether both have the same tokens, so that ids of one can be given to the other."""
        return self._bytes == other._bytes and self.control_ids() == other.control_ids()

    def control_ids(self) -> dict[str, int]:
        """Ids of the tokens that only a template may write, by their spelling."""
        return {t["content"]: t["id"] for t in self._definition.get("added_tokens", ()) if t["id"] < self.vocab_size}

    def strips_right(self) -> frozenset[int]:
        """Ids of the control tokens that strip the white space after them."""
        return frozenset(t["id"] for t in self._definition.get("added_tokens", ()) if t.get("rstrip"))

    def name(self, token: int) -> str | None:
        """A control token's spelling; None for any other token."""
        return next((text for text, i in self.control_ids().items() if i == token), None)

    def _with_space(self, text: str) -> str:
        return _with_leading_space(text) if self._own else text

    def _id(self, token: str | None) -> int:
        found = None if token is None else self._backend.token_to_id(token)
        return -1 if found is None else int(found)


def try_apart(definition: dict[str, Any], known: Path | None) -> None:
    """Opens a definition in a process of its own. KlypeError when that fails or takes too much time or memory.
    ``known``: a folder where those that passed are remembered."""
    text = json.dumps(definition)
    mark = known / "tokenizers" / hashlib.sha256(text.encode()).hexdigest() if known is not None else None
    if mark is not None and mark.is_file():
        return
    seconds, memory = 3 + len(text) // 2**19, 512 * 2**20 + 60 * len(text)
    try:
        apart(use, definition, seconds, memory)
    except MemoryError:
        raise KlypeError(
            f"needs more than {seconds} seconds or {memory >> 20} MiB of memory to be opened.", HINT
        ) from None
    if mark is not None:
        with suppress(OSError):  # in a folder that cannot be written it is tried again each time
            mark.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            mark.touch()


def use(definition: dict[str, Any]) -> None:
    """Opens a definition and encodes difficult texts; runs in the process of ``try_apart``."""
    tokenizer = Tokenizer(definition, SpecialTokens(None, None, None))
    for text in (*HARD, json.dumps(definition.get("normalizer"))[:3000]):
        for first in (True, False):
            ids, _ = tokenizer.encode_with_offsets(text, first)
            tokenizer.decode(ids)


def _encode(backend: Backend, text: str, offsets: bool = False) -> Encoding:
    """Encodes a text; a long one as a batch, because only then does the library release the GIL, and without offsets
    unless needed, because freeing them takes time as well."""
    if len(valid_unicode(text)) < LONG_TEXT:
        return call_library(backend.encode, text, add_special_tokens=False)
    encode = backend.encode_batch if offsets else backend.encode_batch_fast
    return call_library(encode, [text], add_special_tokens=False)[0]


def valid_unicode(text: str) -> str:
    """The text itself. KlypeError for a lone surrogate, which is half a character and not valid Unicode."""
    if not text.isascii():
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            raise KlypeError(
                f"The text holds a lone surrogate (U+{ord(text[error.start]):04X}) at character {error.start}, "
                "which is not valid Unicode.",
                "Remove it or read the text with the right encoding.",
            ) from error
    return text


def _with_leading_space(text: str) -> str:
    return text if not text or text[0].isspace() else " " + text


def _learn(texts: list[str], size: int) -> dict[str, Any]:
    """Content of a tokenizer.json learnt from texts: control tokens 0…5, the 256 bytes in order, then words (most
    frequent first) and merges."""
    control, letters = list(Tokenizer.CONTROL), _byte_characters()
    words = _words(texts, size - len(control) - len(letters))
    tokens = dict.fromkeys([*control, *letters, *(words or ())])
    learner = Backend(models.BPE())
    learner.pre_tokenizer = _pieces()
    options: dict[str, Any] = {"special_tokens": control, "initial_alphabet": letters, "show_progress": False}
    learner.train_from_iterator(texts, trainers.BpeTrainer(vocab_size=size, **options))
    merges = []
    for left, right in json.loads(learner.to_str())["model"]["merges"]:
        if left + right not in tokens and len(tokens) == size:
            break
        tokens[left + right] = None
        merges.append((left, right))
    vocabulary = {token: i for i, token in enumerate(tokens)}
    backend = Backend(models.BPE(vocab=vocabulary, merges=merges, ignore_merges=words is not None))
    backend.pre_tokenizer = _pieces()
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in control])
    return dict(json.loads(backend.to_str()))


def _words(texts: list[str], room: int) -> list[str] | None:
    """The distinct words of the text longer than a byte, most frequent first; None when there are more than
    ``room``."""
    least = 2 if sum(map(len, texts)) >= LARGE_TEXT else 1
    pieces, counts, enough = _pieces(), Counter[str](), 0
    border = re.compile(r"\S(?= \S)")  # before the space that begins a word, so that no word is cut
    for text in texts:
        start = 0
        while start < len(text):  # in parts, since all words of a book at once would fill the memory
            cut = border.search(text, start + PART) if len(text) - start > PART else None
            part = text[start : cut.end() if cut else None]
            start += len(part)
            for piece, _ in pieces.pre_tokenize_str(part):
                counts[piece] += 1
                enough += counts[piece] == least and len(piece) > 1
            if enough > room:
                return None
    return sorted((w for w, n in counts.items() if n >= least and len(w) > 1), key=lambda w: (-counts[w], w))


def _pieces() -> pre_tokenizers.ByteLevel:
    return pre_tokenizers.ByteLevel(add_prefix_space=False, trim_offsets=False, use_regex=True)


def _byte_characters() -> list[str]:
    """GPT-2's printable character for each of the 256 byte values, in their order."""
    shown = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = iter(range(256, 512))
    return [chr(b) if b in shown else chr(next(hidden)) for b in range(256)]


def _backend(definition: dict[str, Any], like: Backend | None = None) -> Backend:
    """The library's tokenizer of a definition. ``like``: one to share vocabulary and merges with, which take most of
    the memory."""
    if like is not None:
        definition = {**definition, "model": {"type": "BPE", "vocab": {}, "merges": []}}
    # pydantic's writer takes 5 ms for 49,000 tokens, json's 145
    backend: Backend = call_library(lambda: Backend.from_str(to_json(definition).decode()))
    if like is not None:
        backend.model = like.model
    backend.no_truncation()
    backend.no_padding()
    return backend


def _prepending_nothing(definition: dict[str, Any]) -> dict[str, Any]:
    """The definition without the parts that put a space before a text, for text that continues another."""

    def bare(part: dict[str, Any]) -> dict[str, Any] | None:
        if part.get("type") == "Prepend":
            return None
        never: dict[str, Any] = {"prepend_scheme": "never", "add_prefix_space": False}
        lists = {name: [one for one in part[name] if one] for name in ("normalizers", "pretokenizers") if name in part}
        return part | lists | {name: value for name, value in never.items() if name in part}

    parts = {name: definition.get(name) for name in ("normalizer", "pre_tokenizer")}
    return {**definition, **json.loads(json.dumps(parts), object_hook=bare)}


def _token_bytes(backend: Backend, byte_level: bool) -> list[bytes]:
    vocabulary = backend.get_vocab(with_added_tokens=True)
    last = max(vocabulary.values(), default=0)
    if last > 2 * len(vocabulary) + GAPS:
        raise KlypeError(f"it has {len(vocabulary):,} tokens and gives one of them the id {last:,}.")
    table = [b""] * (last + 1)
    # each printable character to its byte, as Latin-1; any other character to one that Latin-1 lacks
    byte_of = {**dict.fromkeys(range(256), 256), **{ord(c): b for b, c in enumerate(_byte_characters())}}
    for token, i in vocabulary.items():
        if not byte_level and len(token) == 6 and token.startswith("<0x"):
            table[i] = bytes([int(token[3:5], 16)])
            continue
        table[i] = token.replace("▁", " ").encode()
        if byte_level:
            with suppress(UnicodeEncodeError):  # it is spelt in other characters
                table[i] = token.translate(byte_of).encode("latin-1")
    for i, added in backend.get_added_tokens_decoder().items():
        table[i] = b"" if added.special else added.content.encode()
    return table
