"""Damaged files by the thousand: each is opened in a process of its own that has a limit of time and of memory.

A `Target` says how the whole file is made, how it is damaged and what opening it is; `attack` tells what became of
each damaged copy. Nobody else's test has to know how processes are forked and watched.
"""

from __future__ import annotations

import io
import json
import os
import random
import re
import resource
import select
import shutil
import signal
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from children import forked

from klype.device import set_threads
from klype.errors import KlypeError

SECONDS = 10  # of processor time: a busy machine is no fault of the file
WALL = 60.0  # for what waits without computing
MEMORY = 1 << 30  # bytes that one file may take, its children's among them
GOOD = ("refused", "repaired", "right")

ABSURD: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 2**31 - 1, 2**31, 2**32, 2**63, -(2**63), 3 * 10**8, 10**6, 10**30, 10**4000,
    0.5, -0.0, 1e-300, 1e308, float("nan"), float("inf"), float("-inf"), "", "0", "1", "x", "\x00", "\ud800", "æ" * 99,
    "../../etc/passwd", "a" * 100_000, [], {}, [[]], [{}], {"": {}}, [0] * 10_000, {"a": [1, {"b": None}]},
)  # fmt: skip


@dataclass(frozen=True)
class Target:
    """What is attacked. All three are functions of a module, which another process imports.

    ``make`` puts the whole file or folder at a path that does not exist yet. ``damage`` changes a copy of it. ``look``
    opens that, and uses it: it returns "right" (what came out is what the file says) or "repaired", and raises
    KlypeError for a file that is refused. Any other word, any other exception, and whatever is written to standard
    error by a library that fails, is a fault.
    """

    name: str
    make: Callable[[Path], object]
    damage: Callable[[Path, random.Random], object]
    look: Callable[[Path], str]


@dataclass
class Tally:
    """What became of the damaged copies; ``faults`` are those that were neither refused nor repaired nor right."""

    name: str
    verdicts: Counter[str] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)
    seconds: float = 0.0
    slowest: float = 0.0
    largest: int = 0

    def __str__(self) -> str:
        told = ", ".join(f"{n:,} {word}" for word, n in sorted(self.verdicts.items()))
        return (
            f"{self.name}: {sum(self.verdicts.values()):,} tried: {told}; longest {self.slowest:.1f} s, "
            f"most memory {self.largest / 2**20:.0f} MiB" + "".join(f"\n  {fault}" for fault in self.faults[:20])
        )


def attack(target: Target, folder: Path, seeds: Sequence[int]) -> Tally:
    """Damages a copy for each seed and opens it. ``folder`` is empty, and a faulty copy stays there under its seed."""
    target.make(folder / "whole")
    context = forked()
    here, there = context.Pipe(duplex=False)
    nursery = context.Process(target=_attack, args=(target, folder, list(seeds), there), daemon=False)
    nursery.start()
    there.close()
    try:
        tally: Tally = here.recv()
    finally:
        nursery.join()
    return tally


def _attack(target: Target, folder: Path, seeds: Sequence[int], out: Any) -> None:
    """In a process with one thread, which has imported all that the target needs."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # threads do not survive a fork
    set_threads(1)
    try:
        whole = target.look(folder / "whole")  # here, so that the forks have imported and prepared all that it needs
    except KlypeError as error:
        whole = f"refused: {error}"
    tally, begun = Tally(target.name), time.monotonic()
    if whole != "right":
        tally.faults.append(f"the whole one: {whole}")
    for seed in seeds:
        copy = folder / str(seed)
        _copy(folder / "whole", copy)
        target.damage(copy, random.Random(seed))
        found = _apart(target.look, copy)
        tally.verdicts[found.verdict] += 1
        tally.slowest, tally.largest = max(tally.slowest, found.seconds), max(tally.largest, found.memory)
        if found.verdict not in GOOD:
            tally.faults.append(f"seed {seed}: {found.verdict} {found.told}")
        else:
            shutil.rmtree(copy) if copy.is_dir() else copy.unlink()
    tally.seconds = time.monotonic() - begun
    out.send(tally)


@dataclass(frozen=True)
class _Found:
    verdict: str
    told: str
    seconds: float
    memory: int


def _apart(look: Callable[[Path], str], path: Path) -> _Found:
    """In a fork of this process."""
    begun = time.monotonic()
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(read)
        _look(look, path, write)
    os.close(write)
    answer = b""
    until = begun + WALL
    while select.select([read], [], [], max(0.0, until - time.monotonic()))[0]:
        piece = os.read(read, 1 << 16)
        if not piece:
            break
        answer += piece
    else:
        os.killpg(child, signal.SIGKILL)
        answer = b"0 hang"
    os.close(read)
    _, status = os.waitpid(child, 0)
    seconds = time.monotonic() - begun
    taken, _, said = answer.decode("utf-8", "replace").partition(" ")
    memory = int(taken) if taken.isdigit() else 0
    verdict, _, told = said.partition(" ")
    if os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGXCPU:
        verdict, told = "hang", f"{SECONDS} s of processor time"
    elif verdict != "hang" and status != 0:
        verdict, told = "died", f"by signal {os.WTERMSIG(status)}" if os.WIFSIGNALED(status) else f"({status})"
    if verdict in GOOD and memory > MEMORY:
        verdict, told = "memory", f"{memory >> 20} MiB"
    return _Found(verdict, told, seconds, memory)


def _look(look: Callable[[Path], str], path: Path, write: int) -> None:
    os.setpgid(0, 0)
    torch.set_num_threads(1)  # a fork has no others, and would wait for them
    Path("/proc/self/clear_refs").write_text("5")  # the most that was resident is what is resident now
    before, limit = _status("VmRSS"), _status("VmSize") + MEMORY + MEMORY // 2  # a fault does not take the machine
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS + 1))
    errors = os.memfd_create("errors")
    os.dup2(errors, 2)
    sys.stderr = io.TextIOWrapper(os.fdopen(os.dup(2), "wb", 0), "utf-8", "backslashreplace", write_through=True)
    try:
        told = look(path)
    except KlypeError as error:
        told = f"refused {error}"
    except MemoryError:
        told = f"memory {traceback.format_exc(limit=-3)}"
    except BaseException:
        told = f"traceback {traceback.format_exc(limit=-4)}"
    taken = max(_status("VmHWM") - before, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024)
    noise = os.pread(errors, 4096, 0).decode("utf-8", "replace")
    if re.search(r"panicked|Traceback|Error|terminate", noise):
        told = f"noise {noise}"
    os.write(write, f"{taken} {told}".encode("utf-8", "backslashreplace")[:4096])
    os._exit(0)


def _status(name: str) -> int:
    """Bytes of this process's memory."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:"))


def _copy(whole: Path, copy: Path) -> None:
    if whole.is_dir():
        shutil.copytree(whole, copy)
    else:
        shutil.copyfile(whole, copy)


# How files are damaged.


def damaged(raw: bytes, rng: random.Random) -> bytes:
    """Bits flipped, an end cut off, pieces moved, numbers made extreme: one to three such changes."""
    out = bytearray(raw)
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        size = len(out)
        if size < 2:
            break
        at, length = _where(rng, size), min(size, rng.choice((1, 2, 4, 8, 64, 1024)))
        match rng.randrange(8):
            case 0 | 1:
                out[at] ^= 1 << rng.randrange(8)
            case 2:
                del out[rng.choice((at, rng.randrange(size))) :]
            case 3:
                del out[at : at + length]
            case 4:
                out[at:at] = out[(start := _where(rng, size)) : start + length]
            case 5:
                out[at : at + length] = out[(start := _where(rng, size)) : start + length].ljust(length, b"\0")
            case 6:
                kind = rng.choice((1, 2, 4, 8))
                number = rng.choice((0, 1, (1 << 8 * kind) - 1, (1 << 8 * kind - 1) - 1, 1 << 8 * kind - 1, 3 * 10**8))
                out[at : at + kind] = (number % (1 << 8 * kind)).to_bytes(kind, "little")
            case 7:
                out[at : at + length] = rng.randbytes(length)
    return bytes(out)


def _where(rng: random.Random, size: int) -> int:
    """Near the beginning as often as anywhere: there stand the counts."""
    return rng.randrange(min(size, 256)) if rng.random() < 0.5 else rng.randrange(size)


def damaged_json(content: Any, rng: random.Random) -> Any:
    """A value somewhere inside replaced by an absurd one, left out, doubled, or put elsewhere."""
    content = json.loads(json.dumps(content))
    parents = [(content, key) for key in _keys(content)]
    for at, key in parents:
        if len(parents) > 4000:
            break
        parents += [(at[key], inner) for inner in _keys(at[key])]
    if not parents:
        return rng.choice(ABSURD)
    # As likely near the root as in the long tables.
    parent, key = parents[rng.randrange(min(len(parents), rng.choice((8, 64, len(parents)))))]
    other, its = rng.choice(parents)
    match rng.randrange(6):
        case 0 | 1 | 2:
            parent[key] = rng.choice(ABSURD)
        case 3:
            del parent[key]
        case 4:
            parent[key] = json.loads(json.dumps(other.get(its) if isinstance(other, dict) else 7))
        case 5 if isinstance(parent, dict):
            parent[rng.choice(("", "x", "type", str(key) + "2"))] = parent[key]
        case _:
            parent.insert(0, parent[key]) if isinstance(parent, list) else None
    return content


def _keys(value: Any) -> list[Any]:
    return list(value) if isinstance(value, dict) else list(range(len(value))) if isinstance(value, list) else []


def damaged_text(raw: bytes, rng: random.Random) -> bytes:
    """A JSON file, as a value, as a text, or replaced by what is nested too deeply."""
    choice = rng.random()
    if choice < 0.02:
        return b"[" * 100_000
    if choice < 0.04:
        return b'{"a":' * 100_000
    if choice < 0.35:
        return damaged(raw, rng)
    return json.dumps(damaged_json(json.loads(raw), rng)).encode()


def damaged_lines(raw: bytes, rng: random.Random) -> bytes:
    """One line of a .jsonl file as JSON, or any bytes."""
    lines = raw.split(b"\n")
    if rng.random() < 0.5 or not any(lines):
        return damaged(raw, rng)
    at = rng.choice([i for i, line in enumerate(lines) if line])
    lines[at] = damaged_text(lines[at], rng)
    return b"\n".join(lines)
