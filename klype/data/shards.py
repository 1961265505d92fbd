"""Token ids of many documents: in memory, or in memory-mapped files with an index and a hash of their content.

A folder of shards: shard-00000.bin (token ids, little-endian), shard-00000.idx (uint64 end of each document in its
shard) and shards.json (dtype, counts, SHA-256 of every file), written last: a folder without it is unfinished.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from klype import durable
from klype.errors import KlypeError
from klype.jsons import parsed
from klype.text.tokenizer import Tokenizer

SHARD_TOKENS = 2**24  # 32 MB of two-byte ids
ABOUT = "shards.json"
_BATCH_CHARACTERS, _BATCH_TEXTS = 2_000_000, 10_000  # tokenized at a time at most, on all cores


@dataclass(frozen=True, slots=True)
class Documents:
    """Documents of token ids. ``parts`` are flat arrays, ``ends`` where each document ends in its part."""

    parts: tuple[npt.NDArray[np.integer[Any]], ...]
    ends: tuple[npt.NDArray[np.uint64], ...]
    firsts: tuple[int, ...]  # number of the first document of each part, and at last of all documents

    def __len__(self) -> int:
        return self.firsts[-1]

    def __getitem__(self, index: int) -> npt.NDArray[np.integer[Any]]:
        if not 0 <= index < len(self):
            raise IndexError(index)
        part = int(np.searchsorted(self.firsts, index, side="right")) - 1
        at = index - self.firsts[part]
        start = int(self.ends[part][at - 1]) if at else 0
        return self.parts[part][start : int(self.ends[part][at])]

    @property
    def lengths(self) -> npt.NDArray[np.int64]:
        """Tokens of each document."""
        found = [np.diff(ends.astype(np.int64), prepend=0) for ends in self.ends]
        return np.concatenate(found) if found else np.zeros(0, np.int64)

    def followed_by(self, others: Documents) -> Documents:
        """These and then the others, none of them copied."""
        firsts = (*self.firsts, *(len(self) + first for first in others.firsts[1:]))
        return Documents((*self.parts, *others.parts), (*self.ends, *others.ends), firsts)

    @staticmethod
    def of(documents: Iterable[Sequence[int]]) -> Documents:
        """In memory."""
        lists = [np.asarray(d, dtype=np.uint32) for d in documents]
        flat = np.concatenate(lists) if lists else np.zeros(0, np.uint32)
        ends = np.cumsum([len(d) for d in lists], dtype=np.uint64) if lists else np.zeros(0, np.uint64)
        return Documents((flat,), (ends,), (0, len(lists)))

    @staticmethod
    def open(folder: Path, verify: bool = True) -> Documents:
        """Memory-mapped. ``verify`` reads every file once and compares its hash. KlypeError for a damaged one."""
        try:
            about = parsed((folder / ABOUT).read_text(encoding="utf-8"))
        except FileNotFoundError as error:
            raise KlypeError(f"{folder} holds no finished shards.", "Delete the folder and make it again.") from error
        except ValueError as error:
            raise KlypeError(f"{folder / ABOUT} is damaged.", "Delete the folder and make it again.") from error
        parts, ends, firsts = [], [], [0]
        for shard in about["shards"]:
            for name, digest in shard["sha256"].items():
                if not (folder / name).is_file() or (verify and durable.hash_file(folder / name) != digest):
                    raise KlypeError(f"{folder / name} is missing or damaged.", "Delete the folder and make it again.")
            stem = folder / shard["name"]
            parts.append(_mapped(stem.with_suffix(".bin"), about["dtype"]))
            ends.append(_mapped(stem.with_suffix(".idx"), "<u8"))
            firsts.append(firsts[-1] + len(ends[-1]))
        return Documents(tuple(parts), tuple(ends), tuple(firsts))


class ShardWriter:
    """Documents come one by one; until ``finish`` the folder counts as unfinished. At most one shard is in memory.

    KlypeError when the folder holds shards already or cannot be written.
    """

    def __init__(self, folder: Path, vocab_size: int, size: int = SHARD_TOKENS) -> None:
        if (folder / ABOUT).exists():
            raise KlypeError(f"{folder} holds shards already.", "Choose another folder, or open it.")
        self.folder, self._size = folder, size
        self._dtype, self._vocab_size = "<u2" if vocab_size <= 2**16 else "<u4", vocab_size
        self._shards: list[dict[str, object]] = []
        self._pending: list[npt.NDArray[np.integer[Any]]] = []
        self._tokens = 0
        with self._writing():
            folder.mkdir(parents=True, exist_ok=True)

    def add(self, document: Sequence[int]) -> None:
        self._pending.append(np.asarray(document, dtype=self._dtype))
        self._tokens += len(document)
        if self._tokens >= self._size:
            self._flush()

    def finish(self) -> Documents:
        """The shards, memory-mapped."""
        if self._pending or not self._shards:
            self._flush()
        about = {"dtype": self._dtype, "vocab_size": self._vocab_size, "shards": self._shards}
        with self._writing():
            durable.write(self.folder / ABOUT, json.dumps(about, indent=1).encode())
        return Documents.open(self.folder, verify=False)

    def _flush(self) -> None:
        name = f"shard-{len(self._shards):05d}"
        ends = np.cumsum([len(d) for d in self._pending], dtype="<u8")
        flat = np.concatenate(self._pending) if self._pending else np.zeros(0, "<u2")
        files: dict[str, bytes | memoryview] = {f"{name}.bin": flat.view(np.uint8).data, f"{name}.idx": ends.tobytes()}
        with self._writing():
            for file, content in files.items():
                durable.write(self.folder / file, content)
        digests = {file: hashlib.sha256(content).hexdigest() for file, content in files.items()}
        self._shards.append({"name": name, "documents": len(ends), "tokens": len(flat), "sha256": digests})
        self._pending, self._tokens = [], 0

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise KlypeError(
                f"{self.folder} cannot be written: {error.strerror}.", "Make room or choose another folder."
            ) from error


def is_finished(folder: Path) -> bool:
    """Whether whole shards lie there."""
    return (folder / ABOUT).is_file()


def tokenize(texts: Iterable[str], tokenizer: Tokenizer) -> Iterator[list[int]]:
    """Documents' token ids, begin and end included, in order; memory stays flat, all cores work."""
    batch, characters = list[str](), 0
    for text in texts:
        batch.append(text)
        characters += len(text)
        if characters >= _BATCH_CHARACTERS or len(batch) == _BATCH_TEXTS:
            yield from tokenizer.encode_documents(batch)
            batch, characters = [], 0
    if batch:
        yield from tokenizer.encode_documents(batch)


def _mapped(file: Path, dtype: str) -> npt.NDArray[Any]:
    if file.stat().st_size == 0:  # nothing cannot be mapped
        return np.zeros(0, dtype)
    return np.memmap(file, dtype=dtype, mode="r")
