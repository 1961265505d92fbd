"""What stands in a GGUF file before its weights: metadata, and where each weight lies. Every count and every place is
compared with the file's size first; the package gguf, which reads on and on, only expands the weights."""

from __future__ import annotations

import math
import mmap
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from klype.errors import KlypeError

MOST = 256 * 2**20
"""Bytes of metadata: vocabularies of a million tokens have some forty million."""
VALUES = 2**23
"""Numbers and texts in lists, each of which may take sixty bytes of memory: vocabularies of a million tokens have four
million."""
_NUMBERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9
_HINT = "Fetch the file again, or use the model's Hugging Face directory."


@dataclass(frozen=True, slots=True)
class Placed:
    """A weight in the file: its type by GGUF's number, its shape (rows first), and its bytes."""

    kind: int
    shape: tuple[int, ...]
    start: int
    stop: int


def read_header(file: Path) -> tuple[dict[str, Any], dict[str, Placed]]:
    """Metadata and weights by their names. Raises KlypeError for a file that is damaged, or none of this kind."""
    try:
        if not file.is_file() or file.stat().st_size < 24:
            raise ValueError("it is cut short")
        with open(file, "rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as content:
            return _header(_Reader(content), len(content))
    except OSError as error:
        raise KlypeError(f"{file} cannot be read: {error}.", "Check its name.") from error
    except (ValueError, struct.error) as error:
        raise KlypeError(f"{file} is damaged or no GGUF file: {error}.", _HINT) from error


class _Reader:
    """Goes through the metadata; nothing is taken that is not there."""

    def __init__(self, content: mmap.mmap) -> None:
        self._content, self._most = content, min(len(content), MOST)
        self.at = self._listed = 0

    def take(self, size: int) -> bytes:
        if size > self._most - self.at:
            raise ValueError("it is cut short, or a length in it is wrong")
        self.at += size
        return self._content[self.at - size : self.at]

    def numbers(self, kind: str, count: int = 1) -> tuple[Any, ...]:
        return struct.unpack(f"<{count}{kind}", self.take(struct.calcsize(f"<{kind}") * count))

    def number(self, kind: str) -> int:
        return int(self.numbers(kind)[0])

    def text(self) -> str:
        return self.take(self.number("Q")).decode("utf-8")

    def value(self, kind: int) -> Any:
        if kind == _STRING:
            return self.text()
        if kind == _ARRAY:
            inner, count = self.number("I"), self.number("Q")
            self._listed += count
            if self._listed > VALUES:
                raise ValueError("its lists are longer than any vocabulary's")
            if inner in _NUMBERS:
                return list(self.numbers(_NUMBERS[inner], count))
            if inner == _STRING:
                return [self.text() for _ in range(count)]
            raise ValueError("it has lists of a kind that is unknown")
        if kind not in _NUMBERS:
            raise ValueError("it has values of a kind that is unknown")
        return self.numbers(_NUMBERS[kind])[0]


def _header(reader: _Reader, size: int) -> tuple[dict[str, Any], dict[str, Placed]]:
    if reader.take(4) != b"GGUF" or reader.number("I") not in (2, 3):
        raise ValueError("it does not begin as one")
    weights, fields = reader.number("Q"), reader.number("Q")
    metadata: dict[str, Any] = {}
    for _ in range(fields):
        name = reader.text()
        if name in metadata:
            raise ValueError(f"{name:.60} stands twice")
        metadata[name] = reader.value(reader.number("I"))
    entries = {}
    for _ in range(weights):
        name, dimensions = reader.text(), reader.number("I")
        if name in entries or not 0 < dimensions <= 4:
            raise ValueError(f"{name:.60} stands twice, or has {dimensions} dimensions")
        entries[name] = reader.numbers("Q", dimensions), reader.number("I"), reader.number("Q")
    alignment = metadata.get("general.alignment", 32)
    if type(alignment) is not int or not 0 < alignment <= 2**16:
        raise ValueError("its alignment is wrong")
    first = math.ceil(reader.at / alignment) * alignment
    return metadata, _placed(entries, first, size)


def _placed(entries: dict[str, tuple[tuple[int, ...], int, int]], first: int, size: int) -> dict[str, Placed]:
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

    placed = {}
    for name, (shape, kind, offset) in entries.items():
        numbers, taken = GGML_QUANT_SIZES[GGMLQuantizationType(kind)]
        if not all(0 < side <= size * numbers for side in shape) or shape[0] % numbers:
            raise ValueError(f"{name:.60} has a shape that it cannot have")
        start = first + offset
        placed[name] = Placed(kind, shape[::-1], start, start + math.prod(shape) // numbers * taken)
    end = first
    for name, entry in sorted(placed.items(), key=lambda pair: pair[1].start):
        if entry.start < end or entry.stop > size:
            raise ValueError(f"{name:.60} overlaps with another weight, or reaches beyond the file")
        end = entry.stop
    return placed
