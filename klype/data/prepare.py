"""A corpus of any size to shards of tokens: read, repeated texts left out, split by hash, tokenized, written.

Memory stays flat: some batches of texts, one shard a side, and sixteen bytes or so for each text that was seen. Which
side a text is on is a function of the text alone, so that nothing leaks when data grows.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from klype.data.readers import TextDocument
from klype.data.shards import ABOUT, Documents, ShardWriter, is_finished, tokenize
from klype.data.split import HELD_OUT, is_held_out, units
from klype.errors import KlypeError
from klype.text.tokenizer import Tokenizer

SIDES = ("train", "held-out")
PERMUTATIONS, SHINGLE = 64, 5  # of MinHash; words of a shingle


@dataclass(frozen=True, slots=True)
class Prepared:
    """Both sides as shards, and how many texts were left out because they were near one that was there."""

    train: Documents
    held_out: Documents
    near: int = 0


IsNew = Callable[[str], bool]


def prepare(
    documents: Iterable[TextDocument], tokenizer: Tokenizer, folder: Path, is_new: IsNew = lambda text: True
) -> Prepared:
    """Shards under ``folder``/train and ``folder``/held-out; those that are whole already are opened and not made anew.

    ``documents`` come from ``read_texts``, which leaves out empty ones and exact repetitions; ``is_new`` (see
    ``near_duplicates``) leaves out more.
    """
    if all(is_finished(folder / side) for side in SIDES):
        train, held_out = (Documents.open(folder / side) for side in SIDES)
        return Prepared(train, held_out)
    near = 0
    sides: deque[bool] = deque()  # of texts that are being tokenized

    def kept() -> Iterator[str]:
        nonlocal near
        for document in documents:
            for unit in units(document):
                if is_new(unit.text):
                    sides.append(is_held_out(unit.text, HELD_OUT))
                    yield unit.text
                else:
                    near += 1

    for side in SIDES:  # a side that was finished before the other one failed
        (folder / side / ABOUT).unlink(missing_ok=True)
    writers = [ShardWriter(folder / side, tokenizer.vocab_size) for side in SIDES]
    for ids in tokenize(kept(), tokenizer):
        writers[sides.popleft()].add(ids)
    train, held_out = (writer.finish() for writer in writers)
    return Prepared(train, held_out, near)


def near_duplicates(threshold: float = 0.8) -> IsNew:
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
    index = MinHashLSH(threshold=threshold, num_perm=PERMUTATIONS)
    number = 0

    def is_new(text: str) -> bool:
        nonlocal number
        words = re.findall(r"\w+", text.lower())
        shingles = {" ".join(words[i : i + SHINGLE]) for i in range(max(1, len(words) - SHINGLE + 1))}
        signature = MinHash(num_perm=PERMUTATIONS)
        signature.update_batch([shingle.encode() for shingle in shingles])
        if index.query(signature):
            return False
        number += 1
        index.insert(number, signature)
        return True

    return is_new
