"""Training and held-out documents as shards of tokens: split by content, tokenized, written; memory stays flat.

Which side a text is on is a function of the text alone, so that nothing leaks and nothing moves when data grows.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import chain, count, islice
from pathlib import Path

from klype.data.readers import TextDocument
from klype.data.shards import Documents, ShardWriter, is_finished, tokenize
from klype.errors import KlypeError
from klype.text.tokenizer import Tokenizer

HELD_OUT = 0.05  # share of documents
BLOCK = 4000  # characters of a block of a long document, about
BOOK = 20_000  # characters: longer documents are held out by blocks, so that some of each is measured
_FEW = 40  # with fewer documents, the long ones are cut into blocks
_SENTENCE = 80  # characters of the smallest block


@dataclass(frozen=True, slots=True)
class Split:
    """Two disjoint lists of documents, neither empty; no text is in both."""

    train: list[TextDocument]
    held_out: list[TextDocument]


def split(documents: Iterable[TextDocument], share: float = HELD_OUT) -> Split:
    """Hold out about ``share`` of the documents, by the hash of their text; with few documents, of their blocks.

    A document stays on its side when others come, but for short texts (below ``BLOCK / share`` characters), whose
    blocks grow with them, and where no hash of few blocks falls below ``share``: there the smallest is held out.
    Raises KlypeError when there is less text than two blocks of a sentence can be made of.
    """
    rest = iter(documents)
    first = list(islice(rest, _FEW))
    few = len(first) < _FEW
    # Of 2,000 characters in blocks of 4,000, halved until there are two, 72 % were held out: a block is the share.
    length = max(_SENTENCE, min(BLOCK, int(share * sum(len(d.text) for d in first)))) if few else BLOCK
    begun = [b for d in first for b in blocks(d, length)] if few else first
    train: list[TextDocument] = []
    held: list[TextDocument] = []
    for document in unique(chain(begun, rest)):
        (held if is_held_out(document.text, share) else train).append(document)
    if not held or not train or length < BLOCK:
        train, held = _by_rank(train + held, share)
    return Split(train, held)


def is_held_out(text: str, share: float = HELD_OUT) -> bool:
    """Whether a document is held out: a function of its text alone (white space at its ends does not count)."""
    return (int.from_bytes(_digest(text)[:8], "big") / 2**64) < share


def is_sampled(text: str, share: float) -> bool:
    """Whether a document belongs to a sample of about ``share`` of all, whether it is held out or not."""
    return sampled_from(text) < share


def sampled_from(text: str) -> float:
    """The share from which on a document belongs to a sample, in [0, 1)."""
    return int.from_bytes(_digest(text)[8:], "big") / 2**64


def unique(documents: Iterable[TextDocument]) -> Iterator[TextDocument]:
    """Each text once."""
    seen: set[bytes] = set()
    for document in documents:
        digest = _digest(document.text)
        if digest not in seen:
            seen.add(digest)
            yield document


def units(document: TextDocument) -> Iterator[TextDocument]:
    """What is held out as a whole: the document, or the blocks of a book."""
    return blocks(document) if len(document.text) > BOOK else iter((document,))


def blocks(document: TextDocument, length: int = BLOCK) -> Iterator[TextDocument]:
    """Consecutive blocks of a document of about ``length`` characters, cut at paragraphs (or lines, sentences, words).

    Joined they are the document, but for white space at the cuts. A shorter document is one block.
    """
    text, start, row = document.text, 0, 0
    while start < len(text):
        stop = _cut(text, start, length)
        if text[start:stop].strip():
            row += 1
            yield TextDocument(text[start:stop].strip("\n"), document.source, row)
        start = stop


def _cut(text: str, start: int, length: int) -> int:
    """Where the block ends that begins at ``start``: the last best border in its second half."""
    if len(text) - start <= length * 1.5:
        return len(text)
    window = text[start + length // 2 : start + length]
    for border in (r"\n\s*\n", r"\n", r"[.!?]\s", r"\s"):
        ends = [match.end() for match in re.finditer(border, window)]
        if ends:
            return start + length // 2 + ends[-1]
    return start + length


def _by_rank(documents: list[TextDocument], share: float) -> tuple[list[TextDocument], list[TextDocument]]:
    """Neither side empty: the smallest hashes are held out; a single document is cut into smaller blocks."""
    length = BLOCK
    while len(documents) < 2 and length >= 40:
        length //= 2
        documents = list(unique(b for d in documents for b in blocks(d, length)))
    if len(documents) < 2:
        raise KlypeError("The text is too short to hold some of it out.", "Give at least a few sentences.")
    ranked = sorted(documents, key=lambda d: _digest(d.text))
    count = min(len(ranked) - 1, max(1, round(share * len(ranked))))
    held = {_digest(d.text) for d in ranked[:count]}
    return [d for d in documents if _digest(d.text) not in held], [d for d in documents if _digest(d.text) in held]


def _digest(text: str) -> bytes:
    return hashlib.blake2b(text.strip().encode("utf-8", "surrogatepass"), digest_size=16).digest()


def training_shards(documents: Iterable[TextDocument], tokenizer: Tokenizer, folder: Path) -> Documents:
    """Shards of what is not held out; those that are whole already are opened and not made anew.

    ``documents`` come from ``read_texts``, which leaves out empty ones and exact repetitions.
    """
    if is_finished(folder):
        return Documents.open(folder)
    writer = ShardWriter(folder, tokenizer.vocab_size)
    every = (unit.text for document in documents for unit in units(document))
    for ids in tokenize((text for text in every if not is_held_out(text)), tokenizer):
        writer.add(ids)
    return writer.finish()


PERMUTATIONS, SHINGLE = 64, 5  # of MinHash; words of a shingle


def near_duplicates(threshold: float) -> Callable[[str], bool]:
    """Whether a text is new: its five-word shingles' Jaccard similarity to none before it is above the threshold, by
    MinHash (datasketch). KlypeError when that package is missing.

    Some kilobytes for each text stay in memory: for corpora of some hundred thousand texts.
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
