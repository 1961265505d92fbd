"""safetensors files from untrusted sources: header, offsets, shapes and values are checked."""

from __future__ import annotations

import json
import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from klype.errors import KlypeError
from klype.text.tokenizer_files import read_object

_BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1}
_TYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
_HINT = "Fetch or save the model again."
# no weight is larger: one flipped bit can make it so, and squared in the next norm it overflows, after which no
# probability is a number
MOST = 1e15
# most bytes of a header, enough for a hundred thousand weights; parsed, it may take thirty times as much memory
HEADER = 16 * 2**20


@dataclass(frozen=True)
class TensorEntry:
    """Where a weight lies in its file: its type as safetensors names it, its shape, and its first and last byte."""

    file: Path
    kind: str
    shape: tuple[int, ...]
    start: int
    stop: int


class TensorFiles:
    """The weights of one folder by name, from one file or several. Every header is checked when it is opened."""

    def __init__(self, files: list[Path]) -> None:
        self._entries: dict[str, TensorEntry] = {}
        for file in files:
            for name, entry in checked_header(file).items():
                if name in self._entries:
                    raise KlypeError(f"{file} holds {name}, which {self._entries[name].file.name} holds too.", _HINT)
                self._entries[name] = entry
        self.shapes = {name: entry.shape for name, entry in self._entries.items()}

    def get(self, name: str) -> Tensor:
        """A weight in memory of its own (a mapped file would count twice). KlypeError when it holds NaN or infinity."""
        entry = self._entries[name]
        tensor = torch.empty(entry.shape, dtype=_TYPES[entry.kind])
        try:
            with open(entry.file, "rb") as stream:
                stream.seek(entry.start)
                read = stream.readinto(tensor.view(-1).view(torch.uint8).numpy().data) if tensor.numel() else 0
        except OSError as error:
            raise KlypeError(f"{entry.file} cannot be read: {error.strerror}.", _HINT) from error
        if read != entry.stop - entry.start:
            raise KlypeError(f"{entry.file} was cut short while it was read.", _HINT)
        if not is_finite(tensor):
            raise KlypeError(f"{entry.file} holds numbers that are not finite, in {name}.", _HINT)
        return tensor


def checked_header(file: Path) -> dict[str, TensorEntry]:
    """Entries by name. Raises KlypeError for a file that is cut, overlapping, ambiguous or not of floats."""
    try:
        size = file.stat().st_size
        with open(file, "rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            if size < 8 or length > min(size - 8, HEADER):
                raise KlypeError(f"{file} is cut short or not a safetensors file.", _HINT)
            header = json.loads(stream.read(length), object_pairs_hook=_once)
    except OSError as error:
        raise KlypeError(f"{file} cannot be read: {error.strerror}.", _HINT) from error
    except (ValueError, RecursionError) as error:
        raise KlypeError(f"{file} has a damaged header: {error}.", _HINT) from error
    if not isinstance(header, dict):
        raise KlypeError(f"{file} has a damaged header.", _HINT)
    header.pop("__metadata__", None)
    spans = []
    for name, entry in header.items():
        try:
            dtype, shape, (start, stop) = entry["dtype"], entry["shape"], entry["data_offsets"]
            integers = len(shape) <= 8 and all(type(n) is int and 0 <= n <= size for n in (*shape, start, stop))
            sound = integers and set(entry) == {"dtype", "shape", "data_offsets"}
            sound = sound and stop - start == math.prod(shape) * _BYTES[dtype]
        except (KeyError, TypeError, ValueError):
            sound = False
        if not sound:
            raise KlypeError(f"{file} describes {name} wrongly.", _HINT)
        if dtype not in _TYPES:
            raise KlypeError(f"{file} holds {name} as {dtype}, not as floating-point numbers.", _HINT)
        spans.append((start, stop))
    end = 0
    for start, stop in sorted(spans):
        if start != end:
            raise KlypeError(f"{file} has gaps or overlaps between its weights.", _HINT)
        end = stop
    if end != size - 8 - length:
        raise KlypeError(f"{file} is {size:,} bytes long but should be {8 + length + end:,}.", _HINT)
    first = 8 + length
    return {
        name: TensorEntry(
            file,
            entry["dtype"],
            tuple(entry["shape"]),
            first + entry["data_offsets"][0],
            first + entry["data_offsets"][1],
        )
        for name, entry in header.items()
    }


def is_finite(weight: Tensor) -> bool:
    """No NaN, no infinity, nor what soon becomes one. (The extremes show all of them, several times faster than looking
    at each number.)"""
    return weight.numel() == 0 or bool((torch.stack(weight.aminmax()).abs() <= MOST).all())


def weight_files(folder: Path) -> list[Path]:
    """model.safetensors, or the files that model.safetensors.index.json names."""
    if (folder / "model.safetensors").is_file():
        return [folder / "model.safetensors"]
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        try:
            names = sorted(set(read_object(index)["weight_map"].values()))
            if any(os.path.basename(name) != name for name in names):
                raise ValueError("a name with a folder in it")
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise KlypeError(f"{index} is damaged: {error}.", _HINT) from error
        missing = next((n for n in names if not (folder / n).is_file()), None)
        if missing:
            raise KlypeError(f"{missing} is missing in {folder}.", _HINT)
        return [folder / name for name in names]
    pickled = next(iter([*folder.glob("*.bin"), *folder.glob("*.pt"), *folder.glob("*.pth")]), None)
    if pickled is not None:
        raise KlypeError(
            f"{pickled} is a pickle, which can run any program and is never read.", "Convert it to safetensors."
        )
    raise KlypeError(f"There are no weights (model.safetensors) in {folder}.", _HINT)


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    names = [name for name, _ in pairs]
    if len(set(names)) < len(names):
        raise ValueError("a name stands twice")
    return dict(pairs)
