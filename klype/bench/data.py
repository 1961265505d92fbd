"""``klype bench data``: how fast a corpus becomes shards of tokens, and how much memory that takes.

The corpus is made: paragraphs of real text (or of the demo world's documents) with some of their words exchanged, as
JSON lines, one in a hundred repeated word for word and one in ten thousand broken. It is made, and then prepared, in
processes of their own, so that the peak of memory is that of the work alone.
"""

from __future__ import annotations

import json
import os
import random
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from klype.bench.load import peak_bytes
from klype.children import end_with
from klype.data.batches import PackedBatches
from klype.data.prepare import near_duplicates, prepare
from klype.data.readers import BadRows, TextOptions, read_texts
from klype.data.shards import Documents
from klype.device import processor, usable_cores
from klype.errors import KlypeError
from klype.text.tokenizer import Tokenizer

FILE_BYTES = 64 * 2**20
DOCUMENT = 2_500  # characters, about
REPEATED, BROKEN, EXCHANGED = 0.01, 0.0001, 0.1
SEED_BYTES = 8 * 2**20  # of real text, at most, that all is made of; for a small corpus a tenth of its size
VOCABULARY = 8192
ROWS, WINDOW, BATCHES = 16, 256, 200


@dataclass(frozen=True, slots=True)
class Corpus:
    """What is made, and from what. ``near``: near repetitions are looked for."""

    gigabytes: float
    texts: tuple[str, ...] = ()
    near: bool = False
    seed: int = 0


def data(corpus: Corpus, say: Callable[[str], None]) -> dict[str, Any]:
    """The document of ``klype bench data``."""
    with (
        tempfile.TemporaryDirectory() as place,
        ProcessPoolExecutor(1, get_context("spawn"), end_with, (os.getpid(),)) as pool,
    ):
        folder = Path(place)
        say(f"Making {corpus.gigabytes:g} GB of text …")
        made = pool.submit(make, corpus, folder).result()
        say(f"{made['documents']:,} documents in {made['files']} files. To shards …")
        with ProcessPoolExecutor(1, get_context("spawn"), end_with, (os.getpid(),)) as alone:
            measured = alone.submit(measure, corpus, folder).result()
    return {"gigabytes": corpus.gigabytes, "made": made, **measured, "machine": _machine()}


def make(corpus: Corpus, folder: Path) -> dict[str, int]:
    """Files of JSON lines under ``folder``/text, and a tokenizer of the text that they are made of."""
    seeds = _paragraphs(corpus)
    Tokenizer.train(seeds, VOCABULARY).save(_made(folder / "tokenizer"))
    rng, words = random.Random(corpus.seed), " ".join(seeds).split()
    wanted, size, documents, files, last = int(corpus.gigabytes * 1e9), 0, 0, 0, ""
    place = _made(folder / "text")
    while size < wanted:
        written = 0
        with (place / f"part-{files:04d}.jsonl").open("wb") as out:
            while written < min(FILE_BYTES, wanted - size):
                text = last if last and rng.random() < REPEATED else _document(seeds, words, rng)
                line = json.dumps({"id": documents, "text": text}, ensure_ascii=False).encode()
                written += out.write((line[:-1] if rng.random() < BROKEN else line) + b"\n")
                documents, last = documents + 1, text
        size, files = size + written, files + 1
    return {"bytes": size, "documents": documents, "files": files}


def measure(corpus: Corpus, folder: Path) -> dict[str, Any]:
    """Reads, splits, tokenizes and writes what ``make`` left, then draws batches from it."""
    files, bad = sorted((folder / "text").iterdir()), BadRows(skip=True)
    tokenizer = Tokenizer.load(folder / "tokenizer")
    before, began = _peak(), time.perf_counter()
    is_new = near_duplicates() if corpus.near else lambda text: True
    prepared = prepare(read_texts(files, TextOptions(bad=bad)), tokenizer, folder / "shards", is_new)
    seconds, size = time.perf_counter() - began, sum(file.stat().st_size for file in files)
    peak = _peak()
    return {
        "bytes": size,
        "seconds": round(seconds, 2),
        "mb_per_s": round(size / 1e6 / seconds, 2),
        "tokens": int(prepared.train.lengths.sum() + prepared.held_out.lengths.sum()),
        "documents": {"train": len(prepared.train), "held_out": len(prepared.held_out)},
        "left_out": {"repeated": bad.repeated, "near": prepared.near, "broken": bad.count},
        "first_broken": bad.shown[:1],
        "peak_mb": peak,
        "before_mb": before,
        "batches": _batches(prepared.train),
    }


def _batches(documents: Documents) -> dict[str, float | None]:
    """How fast windows come out of the shards, in a permutation that is computed as it goes."""
    began = time.perf_counter()
    batches = PackedBatches(documents, ROWS, WINDOW)
    ready = time.perf_counter()
    for _ in range(BATCHES):
        next(batches)
    tokens = BATCHES * ROWS * WINDOW
    return {
        "start_s": round(ready - began, 3),
        "tokens_per_s": round(tokens / (time.perf_counter() - ready)),
        "peak_mb": _peak(),
    }


def _paragraphs(corpus: Corpus) -> list[str]:
    """What documents are made of: of the user's texts, or the demo world's."""
    found: list[str] = []
    size, enough = 0, min(SEED_BYTES, 1e8 * corpus.gigabytes)
    for text in _texts(corpus.texts) if corpus.texts else _world(corpus.seed):
        for paragraph in (p for p in text.split("\n\n") if len(p.split()) > 4):
            found.append(paragraph)
            size += len(paragraph)
        if size > enough:
            break
    if not found:
        raise KlypeError("The text has no paragraph of five words.", "Give more text.")
    return found


def _texts(paths: Sequence[str]) -> Iterator[str]:
    for document in read_texts(list(paths), TextOptions(bad=BadRows(skip=True))):
        yield document.text


def _world(seed: int) -> Iterator[str]:
    from klype.world import World

    world, rng = World("full"), random.Random(seed)
    while True:
        yield world.text(world.document(rng).words)


def _document(seeds: Sequence[str], words: Sequence[str], rng: random.Random) -> str:
    parts: list[str] = []
    length = 0
    while length < DOCUMENT:
        own = rng.choice(seeds).split()
        for _ in range(max(1, round(EXCHANGED * len(own)))):
            own[rng.randrange(len(own))] = words[rng.randrange(len(words))]
        parts.append(" ".join(own))
        length += len(parts[-1])
    return "\n\n".join(parts)


def _made(folder: Path) -> Path:
    folder.mkdir()
    return folder


def _peak() -> float | None:
    """The most memory that this process has had, MB."""
    peak = peak_bytes()
    return None if peak is None else round(peak / 1e6, 1)


def _machine() -> dict[str, str]:
    return {"processor": processor(), "cores": str(usable_cores())}
