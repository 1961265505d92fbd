"""Documents to train on and to hold out: split by their content, tokenized, in memory or as shards on the disk.

Whether a text is held out is a function of the text alone, so that nothing leaks and nothing moves when data grows. A
folder of shards has shard-00000.bin (token ids, little-endian), shard-00000.idx (uint64 end of each document in its
shard) and shards.json (dtype, counts, SHA-256 of every file), written last: a folder without it is unfinished.
"""

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, count, islice
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from klype import durable
from klype.data.readers import TextDocument, digest
from klype.errors import KlypeError, writing_to
from klype.jsons import parse
from klype.text.tokenizer import Tokenizer

HELD_OUT = 0.05  # share of documents
BLOCK = 4000  # characters of a block of a long document, roughly
BOOK = 20_000  # characters: longer documents are held out by blocks, so that some of each is measured
_FEW = 40  # with fewer documents, the long ones are cut into blocks
_SENTENCE = 80  # characters of the smallest block
PERMUTATIONS, SHINGLE = 64, 5  # of MinHash; words of a shingle
SHARD_TOKENS = 2**24  # 32 MB of two-byte ids
ABOUT = "shards.json"
_BATCH_CHARACTERS, _BATCH_TEXTS = 2_000_000, 10_000  # the most tokenized at a time, on all cores


@dataclass(frozen=True, slots=True)
class Split:
    """Training and held-out documents; neither list is empty, and no text is in both."""

    train: list[TextDocument]
    held_out: list[TextDocument]


def split(documents: Iterable[TextDocument], share: float = HELD_OUT) -> Split:
    """Holds out about ``share`` of the documents, by the hash of their text; of few documents, of their blocks.

    A document stays on its side when others are added, except in short texts (below ``BLOCK / share`` characters),
    whose blocks grow with them, and when none of few blocks has a hash below ``share``: then the smallest hash is held
    out. Raises KlypeError when the text is too short for two blocks.
    """
    rest = iter(documents)
    first = list(islice(rest, _FEW))
    few = len(first) < _FEW
    # a block has ``share`` of the text: with blocks of 4,000 characters, halved until there are two, 72 % of a text of
    # 2,000 characters were held out
    length = max(_SENTENCE, min(BLOCK, int(share * sum(len(d.text) for d in first)))) if few else BLOCK
    begun = [b for d in first for b in blocks(d, length)] if few else first
    train: list[TextDocument] = []
    held: list[TextDocument] = []
    for document in unique(chain(begun, rest)):
        (held if is_held_out(document.text, share) else train).append(document)
    if held and train and length == BLOCK:
        return Split(train, held)
    # the smallest hashes are held out, so that neither side is empty; a single document is cut into smaller blocks
    every, length = train + held, BLOCK
    while len(every) < 2 and length >= 40:
        length //= 2
        every = list(unique(b for d in every for b in blocks(d, length)))
    if len(every) < 2:
        raise KlypeError("The text is too short to hold some of it out.", "Give at least a few sentences.")
    ranked = sorted(every, key=lambda d: digest(d.text))
    last = digest(ranked[min(len(ranked) - 1, max(1, round(share * len(ranked)))) - 1].text)
    return Split([d for d in every if digest(d.text) > last], [d for d in every if digest(d.text) <= last])


def is_held_out(text: str, share: float = HELD_OUT) -> bool:
    """Whether a document is held out: a function of its text alone, without white space at its ends."""
    return (int.from_bytes(digest(text)[:8], "big") / 2**64) < share


def sample_hash(text: str) -> float:
    """A hash of the text in [0, 1), independent of ``is_held_out``: a sample of a share s has those below s."""
    return int.from_bytes(digest(text)[8:], "big") / 2**64


def unique(documents: Iterable[TextDocument]) -> Iterator[TextDocument]:
    """The documents without repetitions of a text."""
    seen: set[bytes] = set()
    for document in documents:
        own = digest(document.text)
        if own not in seen:
            seen.add(own)
            yield document


def units(document: TextDocument) -> Iterator[TextDocument]:
    """The units that are held out as a whole: the document, or the blocks of a long one."""
    return blocks(document) if len(document.text) > BOOK else iter((document,))


def blocks(document: TextDocument, length: int = BLOCK) -> Iterator[TextDocument]:
    """Consecutive blocks of about ``length`` characters, cut at paragraphs (or lines, sentences, words).

    Joined they are the document, except for white space at the cuts. A short document is one block.
    """
    text, start, row = document.text, 0, 0
    while start < len(text):
        stop = _cut(text, start, length)
        if text[start:stop].strip():
            row += 1
            yield TextDocument(text[start:stop].strip("\n"), document.source, row)
        start = stop


def _cut(text: str, start: int, length: int) -> int:
    """The end of the block that begins at ``start``: the last border of the best kind in its second half."""
    if len(text) - start <= length * 1.5:
        return len(text)
    window = text[start + length // 2 : start + length]
    for border in (r"\n\s*\n", r"\n", r"[.!?]\s", r"\s"):
        ends = [match.end() for match in re.finditer(border, window)]
        if ends:
            return start + length // 2 + ends[-1]
    return start + length


def near_duplicates(threshold: float) -> Callable[[str], bool]:
    """A function that tells whether a text is no near duplicate of one that it was called with before: whether the
    Jaccard similarity of their five-word shingles is at most ``threshold``, by MinHash (datasketch). KlypeError when
    that package is missing.

    Takes some kilobytes of memory per text, which is enough for a few hundred thousand texts.
    """
    try:
        from datasketch import MinHash, MinHashLSH
    except ImportError:
        raise KlypeError(
            "Texts that nearly repeat others are found by the package datasketch, which is not installed.",
            "pip install 'klype[data]', or leave them in (data.near = 0).",
        ) from None
    index, numbers = MinHashLSH(threshold=threshold, num_perm=PERMUTATIONS), count()

    def is_new(text: str) -> bool:
        words = re.findall(r"\w+", text.lower())
        shingles = {" ".join(words[i : i + SHINGLE]) for i in range(max(1, len(words) - SHINGLE + 1))}
        signature = MinHash(num_perm=PERMUTATIONS)
        signature.update_batch([shingle.encode() for shingle in shingles])
        if index.query(signature):
            return False
        index.insert(next(numbers), signature)
        return True

    return is_new


class Documents:
    """A sequence of documents, each an array of token ids."""

    def __init__(self, parts: Sequence[npt.NDArray[np.integer[Any]]], ends: Sequence[npt.NDArray[np.uint64]]) -> None:
        """``parts`` are flat arrays of token ids; ``ends`` says where each document of a part ends in it."""
        self.parts, self.ends = parts, ends
        # the number of the first document of each part; at last that of all documents
        self.firsts = np.cumsum([0, *map(len, ends)])

    def __len__(self) -> int:
        return int(self.firsts[-1])

    def __getitem__(self, index: int) -> npt.NDArray[np.integer[Any]]:
        if not 0 <= index < len(self):
            raise IndexError(index)
        part = int(np.searchsorted(self.firsts, index, side="right")) - 1
        at = index - int(self.firsts[part])
        start = int(self.ends[part][at - 1]) if at else 0
        return self.parts[part][start : int(self.ends[part][at])]

    @property
    def lengths(self) -> npt.NDArray[np.int64]:
        """The number of tokens of each document."""
        return np.concatenate(
            [np.zeros(0, np.int64), *(np.diff(ends.astype(np.int64), prepend=0) for ends in self.ends)]
        )

    def concat(self, others: "Documents") -> "Documents":
        """These documents followed by the others; nothing is copied."""
        return Documents((*self.parts, *others.parts), (*self.ends, *others.ends))

    @staticmethod
    def of(documents: Iterable[Sequence[int]]) -> "Documents":
        """Documents in memory."""
        lists = [np.asarray(d, dtype=np.uint32) for d in documents]
        ends = np.cumsum([len(d) for d in lists], dtype=np.uint64)
        return Documents([np.concatenate([np.zeros(0, np.uint32), *lists])], [ends])

    @staticmethod
    def open(folder: Path, verify: bool = True) -> "Documents":
        """Memory-maps a folder of shards. ``verify`` reads every file and compares its hash. KlypeError for damage."""
        try:
            about = parse((folder / ABOUT).read_text(encoding="utf-8"))
        except FileNotFoundError as error:
            raise KlypeError(f"{folder} holds no finished shards.", "Delete the folder and make it again.") from error
        except ValueError as error:
            raise KlypeError(f"{folder / ABOUT} is damaged.", "Delete the folder and make it again.") from error
        parts, ends = [], []
        for shard in about["shards"]:
            for name, known in shard["sha256"].items():
                if not (folder / name).is_file() or (verify and durable.hash_file(folder / name) != known):
                    raise KlypeError(f"{folder / name} is missing or damaged.", "Delete the folder and make it again.")
            stem = folder / shard["name"]
            parts.append(_memory_map(stem.with_suffix(".bin"), about["dtype"]))
            ends.append(_memory_map(stem.with_suffix(".idx"), "<u8"))
        return Documents(parts, ends)


def write_shards(
    documents: Iterable[Sequence[int]], folder: Path, vocab_size: int, size: int = SHARD_TOKENS
) -> Documents:
    """Writes token ids as shards of ``size`` tokens, one of which is in memory at a time, and memory-maps them. Until
    the last is written the folder is unfinished. KlypeError when it cannot be written."""
    dtype, shards = "<u2" if vocab_size <= 2**16 else "<u4", list[dict[str, object]]()
    part, tokens = list[npt.NDArray[np.integer[Any]]](), 0

    def write(file: str, content: bytes) -> None:
        # only here, so that an error of reading the documents is not taken for one of writing
        with writing_to(folder, "Make room or choose another folder."):
            folder.mkdir(parents=True, exist_ok=True)
            durable.write(folder / file, content)

    for document in chain(documents, [None]):
        if document is not None:
            part.append(np.asarray(document, dtype))
            tokens += len(document)
        if tokens >= size or (document is None and (part or not shards)):
            name, ends = f"shard-{len(shards):05d}", np.cumsum([len(ids) for ids in part], dtype="<u8")
            files = {f"{name}.bin": b"".join(ids.tobytes() for ids in part), f"{name}.idx": ends.tobytes()}
            for file, content in files.items():
                write(file, content)
            digests = {file: hashlib.sha256(content).hexdigest() for file, content in files.items()}
            shards.append({"name": name, "documents": len(ends), "tokens": tokens, "sha256": digests})
            part, tokens = [], 0
    about = {"dtype": dtype, "vocab_size": vocab_size, "shards": shards}
    write(ABOUT, json.dumps(about, indent=1).encode())
    return Documents.open(folder, verify=False)


def tokenize(texts: Iterable[str], tokenizer: Tokenizer) -> Iterator[list[int]]:
    """Token ids of each text, with begin and end tokens; in batches on all cores, so that memory stays flat."""
    batch, characters = list[str](), 0
    for text in texts:
        batch.append(text)
        characters += len(text)
        if characters >= _BATCH_CHARACTERS or len(batch) == _BATCH_TEXTS:
            yield from tokenizer.encode_documents(batch)
            batch, characters = [], 0
    if batch:
        yield from tokenizer.encode_documents(batch)


def training_shards(documents: Iterable[TextDocument], tokenizer: Tokenizer, folder: Path) -> Documents:
    """Shards of the documents that are not held out; finished ones in ``folder`` are opened, not written again.

    ``documents`` come from ``read_texts``, which leaves out empty ones and exact repetitions.
    """
    if (folder / ABOUT).is_file():
        return Documents.open(folder)
    every = (unit.text for document in documents for unit in units(document))
    kept = (text for text in every if not is_held_out(text))
    return write_shards(tokenize(kept, tokenizer), folder, tokenizer.vocab_size)


def _memory_map(file: Path, dtype: str) -> npt.NDArray[Any]:
    if file.stat().st_size == 0:  # an empty file cannot be mapped
        return np.zeros(0, dtype)
    return np.memmap(file, dtype=dtype, mode="r")
