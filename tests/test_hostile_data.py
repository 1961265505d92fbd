"""Small files that stand for large ones: read in little memory, or refused with a word on how to allow them."""

from __future__ import annotations

import gzip
import json
import random
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pyarrow
import pyarrow.ipc
import pyarrow.parquet
import pytest
from hostile import Target, attack, damaged, damaged_lines

from klype.data.readers import BadRows, ReadOptions, read_rows, read_texts
from klype.errors import KlypeError


def members(piece: bytes, times: int, head: bytes = b"") -> bytes:
    """A .gz file that holds a piece so many times, made in no time."""
    return gzip.compress(head) + gzip.compress(piece, 1) * times


def table(column: pyarrow.Array) -> pyarrow.Table:
    return pyarrow.table({"text": column})


def one_row_of_nothing(length: int) -> pyarrow.Table:
    return table(pyarrow.ListArray.from_arrays([0, length], pyarrow.nulls(length)))


def parquet(made: pyarrow.Table, file: Path) -> None:
    pyarrow.parquet.write_table(made, file, compression="zstd")


def arrow(made: pyarrow.Table, file: Path) -> None:
    with pyarrow.ipc.new_file(file, made.schema, options=pyarrow.ipc.IpcWriteOptions(compression="zstd")) as out:
        out.write_table(made)


A, SPACED = b"a" * 2**24, b"a " * 2**23
BOMBS: dict[str, Callable[[Path], object]] = {
    "a.txt.gz": lambda file: file.write_bytes(members(A, 50)),
    "b.txt.gz": lambda file: file.write_bytes(members(SPACED, 50)),
    "a.txt.zst": lambda file: file.write_bytes(bytes(pyarrow.compress(A, "zstd", asbytes=True)) * 50),
    "a.jsonl.gz": lambda file: file.write_bytes(members(A, 50, b'{"text": "')),
    "a.csv.gz": lambda file: file.write_bytes(members(A, 50, b'text\n"')),
    "b.csv.gz": lambda file: file.write_bytes(members(b"a\n" * 2**18, 1, b'text\n"')),
    "a.json.gz": lambda file: file.write_bytes(members(b"[]," * 2**22, 40, b"[")),
    "a.csv": lambda file: file.write_bytes(b"text,b\n" + b'x","\n' * 100_000),
    "a.jsonl": lambda file: file.write_bytes(b'{"a":' * 2**20),
    "a.parquet": lambda file: parquet(one_row_of_nothing(5 * 10**7), file),
    "b.parquet": lambda file: parquet(table(pyarrow.array(["a" * 2**28])), file),
    "c.parquet": lambda file: parquet(table(pyarrow.nulls(10**8)), file),
    "a.arrow": lambda file: arrow(table(pyarrow.array(["a" * 2**28])), file),
    "a.parquet.gz": lambda file: file.write_bytes(members(A, 50, b"PAR1")),
}


def make(name: str, place: Path) -> None:
    """What is whole, with the bomb beside it."""
    place.mkdir()
    (place / "whole.txt").write_text("Hunden drakk vann.")
    BOMBS[name](place / name)


def look(name: str, place: Path) -> str:
    file = place / ("whole.txt" if place.name == "whole" else name)
    read = sum(1 for _ in read_texts([file], ReadOptions(bad=BadRows(skip=name != "c.parquet"))))
    return "right" if read else "nothing"


def leave(place: Path, rng: random.Random) -> None:
    """A bomb is not damaged."""


@pytest.mark.slow
@pytest.mark.parametrize("name", BOMBS)
def test_a_bomb_takes_little_memory_and_time(tmp_path: Path, name: str) -> None:
    tally = attack(Target(name, partial(make, name), leave, partial(look, name)), tmp_path, [0])
    assert not tally.faults, str(tally)


def test_how_much_a_packed_file_may_hold_is_said_and_can_be_raised(tmp_path: Path) -> None:
    file = tmp_path / "a.txt.gz"
    file.write_bytes(gzip.compress(b"en linje\n" * 100_000))
    with pytest.raises(KlypeError, match=r"a\.txt\.gz is packed and holds more than 0 MB.*data\.unpacked_megabytes"):
        list(read_texts([file], ReadOptions(unpacked=100_000)))
    assert sum(len(d.text) for d in read_texts([file], ReadOptions(unpacked=1_000_000))) == 900_000


def make_rows(place: Path) -> None:
    place.mkdir()
    rows = [{"text": f"Hunden drakk vann {i} ganger.", "n": i, "tags": ["a", None]} for i in range(300)]
    (place / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), place / "a.parquet")
    (place / "a.csv").write_text("text,n\n" + "".join(f'"Hunden, {i}",{i}\n' for i in range(300)))
    (place / "a.txt.gz").write_bytes(gzip.compress(b"Hunden drakk vann.\n" * 100))


FILES = ("a.jsonl", "a.parquet", "a.csv", "a.txt.gz")


def damage_rows(place: Path, rng: random.Random) -> None:
    file = place / rng.choice(FILES)
    file.write_bytes((damaged_lines if file.suffix == ".jsonl" else damaged)(file.read_bytes(), rng))


def look_rows(place: Path) -> str:
    """Every file by itself: a damaged one is refused whatever the others are."""
    refused = None
    for name in FILES:
        try:
            list(read_texts([place / name], ReadOptions(bad=BadRows(skip=True))))
        except KlypeError as error:
            refused = error
    if refused is not None:
        raise refused
    return "right"


DATA = Target("data", make_rows, damage_rows, look_rows)
TARGETS = {"data": DATA, **{name: Target(name, partial(make, name), leave, partial(look, name)) for name in BOMBS}}


@pytest.mark.slow
def test_damaged_data_is_refused_or_read(tmp_path: Path) -> None:
    tally = attack(DATA, tmp_path, range(20))
    assert not tally.faults, str(tally)


@pytest.mark.soak
def test_damaged_data_five_hundred_times(tmp_path: Path) -> None:
    tally = attack(DATA, tmp_path, range(1000, 1500))
    print(tally)
    assert not tally.faults, str(tally)


def test_rows_of_parquet_are_those_that_were_written(tmp_path: Path) -> None:
    rows = [{"text": f"æ {i}", "n": i, "x": i / 3, "in": {"a": [i, None]}} for i in range(300)]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "a.parquet")
    assert list(read_rows(tmp_path / "a.parquet")) == list(enumerate(rows, 1))
    first = next(iter(read_rows(tmp_path / "a.parquet")))  # who stops early leaves no process behind
    assert first == (1, rows[0])
