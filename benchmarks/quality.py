"""``python -m benchmarks quality``: the quality of models after a fixed training time, in bits per byte of held-out
text.

One trainer after another has the whole machine, each in a process of its own. Bits per byte do not depend on the
vocabulary. Intervals are over blocks of the held-out text, not over training runs: another seed gives another model.
"""

from __future__ import annotations

import platform
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from importlib.util import find_spec
from pathlib import Path
from typing import IO, Any

import numpy as np
import psutil

from benchmarks.load import busy_cores, elsewhere
from benchmarks.process import Say, Team, Worker
from benchmarks.quality_task import BLOCK, HELD_OUT, TEXTS, Given, in_blocks, put
from benchmarks.quality_trainers import TRAINERS
from klype.data.ngram import ngram_bits, xz_bits_per_byte
from klype.data.readers import read_texts
from klype.device import processor, usable_cores
from klype.errors import UsageError
from klype.examine.intervals import ratio_of_means
from klype.runs.recipe import SHAPES
from klype.values import Figure

ORDER = 5  # of the byte n-gram
UNIT = "bits per byte"
# seconds that a model which passes may have taken, relative to those given: plans on a shared machine are inexact
LATE = 1.15
# seconds after which a trainer is ended, relative to those given, without reading and scoring
PATIENCE = 2.0


@dataclass(frozen=True, slots=True)
class Asked:
    """Options of the benchmark. ``data``: folder of the texts. ``seconds``: for every text, instead of its own.
    ``only``: trainers (empty: all that are installed). ``texts``: likewise. ``size``: klype's shape (see recipe.SHAPES)
    instead of its own choice. ``cache``: folder of klype's compiled code."""

    data: Path
    seconds: float | None = None
    seed: int = 0
    only: tuple[str, ...] = ()
    texts: tuple[str, ...] = ()
    size: str | None = None
    cache: Path | None = None


@dataclass
class Results:
    """Results by (text, trainer or n-gram): bits and bytes of each block of held-out text, whose sizes differ by about
    a token; and how each trainer was trained."""

    bits: dict[tuple[str, str], list[float]] = field(default_factory=dict)
    sizes: dict[tuple[str, str], list[float]] = field(default_factory=dict)
    about: dict[tuple[str, str], dict[str, Any]] = field(default_factory=dict)
    xz: dict[str, Figure] = field(default_factory=dict)
    why: dict[str, str] = field(default_factory=dict)
    core_seconds: float = 0.0
    elsewhere: float = 0.0


def quality(asked: Asked, say: Say) -> dict[str, Any]:
    """Runs the comparison and returns the command's JSON document: machine, rows, yardsticks, ratios, gates,
    missing."""
    if asked.seconds is not None and not 1 <= asked.seconds <= 86_400:
        raise UsageError(f"--seconds should be from 1 to 86400 (it is {asked.seconds:g}).")
    sizes = (asked.size,) if asked.size else ()
    for what, chosen, known in (
        ("trainer", asked.only, TRAINERS),
        ("text", asked.texts, TEXTS),
        ("size", sizes, SHAPES),
    ):
        unknown = next((name for name in chosen if name not in known), None)
        if unknown is not None:
            raise UsageError(f"There is no {what} '{unknown}' to compare.", f"There are: {'; '.join(known)}.")
    results = Results()
    texts = _texts(asked, results)
    before = busy_cores()
    with tempfile.TemporaryDirectory(prefix="klype-bench-") as place, (Path(place) / "log").open("w") as log:
        for name, text in texts.items():
            folder = Path(place) / name
            _yardsticks(name, put(folder, text), results)
            seconds = asked.seconds or TEXTS[name].seconds
            cache, shape = str(asked.cache or Path(place) / "cache"), list(SHAPES[asked.size]) if asked.size else []
            given = Given(str(folder), seconds, asked.seed, usable_cores(), cache, shape)
            _measure(name, given, asked, results, say, log)
    results.elsewhere = elsewhere(before, results.core_seconds + time.process_time())
    return _document(asked, results, tuple(texts))


def _texts(asked: Asked, results: Results) -> dict[str, str]:
    """The texts that exist, each as one string; records why others are not measured."""
    found = {}
    for name in asked.texts or TEXTS:
        file = asked.data / TEXTS[name].file
        if file.is_file():
            found[name] = "\n\n".join(document.text for document in read_texts(file))
        else:
            results.why[name] = f"there is no file {file}"
    if not found:
        wanted = " or ".join(TEXTS[name].file for name in asked.texts or TEXTS)
        raise UsageError(f"The folder {asked.data} holds no {wanted}.", "Name the folder of the texts with --data.")
    return found


def _yardsticks(name: str, parts: tuple[str, str], results: Results) -> None:
    """Baselines without a model: a byte n-gram of the training part, and the held-out part compressed by itself."""
    train, held_out = (part.encode() for part in parts)
    bits_N = ngram_bits(train, held_out, ORDER)
    results.bits[name, "5-gram"], results.sizes[name, "5-gram"] = in_blocks(bits_N, np.ones(len(bits_N)))
    packed = xz_bits_per_byte(held_out)
    results.xz[name] = Figure(packed, packed, packed, len(held_out), UNIT, certain=True)


def _measure(text: str, given: Given, asked: Asked, results: Results, say: Say, log: IO[str]) -> None:
    """Runs all trainers on one text, one after another, each in a process that ends before the next begins."""
    for name, (_, packages) in TRAINERS.items():
        missing = [package for package in packages if find_spec(package) is None]
        if asked.only and name not in asked.only:
            results.why[name] = "it was not asked for"
        elif missing:
            results.why[name] = f"{' and '.join(missing)} not installed (extra bench)"
        else:
            say(f"{text}: {name} learns for {given.seconds:g} s")
            worker = Worker.start(name, log, "benchmarks.quality_worker", as_built=name != "klype")
            team = Team({name: worker}, results.why, say, time.monotonic() + PATIENCE * given.seconds)
            orders = {do: team.order(name, text, do=do, given=asdict(given)) for do in ("load", "learn", "score")}
            team.end()
            results.core_seconds += team.core_seconds
            learnt, scored = orders["learn"], orders["score"]
            shape = learnt.pop("shape") if learnt is not None else []
            given = replace(given, shape=list(shape) or given.shape)
            if learnt is not None and scored is not None:
                results.about[text, name], results.bits[text, name] = learnt, scored["bits"]
                results.sizes[text, name] = scored["bytes"]
                assert sum(scored["bytes"]) == sum(results.sizes[text, "5-gram"]), "all count the same bytes"
                say(f"{text}: {name}: {bits_per_byte(results, text, name).value:.3f} {UNIT}")


def bits_per_byte(results: Results, text: str, name: str) -> Figure:
    """Bits per byte of a model or n-gram, with an interval over blocks of the held-out text."""
    if (text, name) not in results.bits:
        return Figure(None, unit=UNIT, why=results.why.get(name, results.why.get(text, "not measured")))
    return ratio_of_means(results.bits[text, name], results.sizes[text, name], UNIT)


def ratio(results: Results, text: str, ours: str, theirs: str) -> Figure:
    """klype's bits divided by the peer's on the same blocks: below 1 is better."""
    absent = next((name for name in (theirs, ours) if (text, name) not in results.bits), None)
    if absent is not None:
        return Figure(None, why=results.why.get(absent, results.why.get(text, "not measured")))
    return ratio_of_means(results.bits[text, ours], results.bits[text, theirs], "times")


def gates(results: Results, text: str, seconds: float | None) -> list[dict[str, Any]]:
    """Floor and goal of klype's bits per byte; a model that took too long has missed them."""
    aims, found = TEXTS[text], bits_per_byte(results, text, "klype").value
    if found is None or (seconds is not None and seconds > aims.seconds):
        return []
    took = results.about[text, "klype"]["seconds"]
    in_time = took <= LATE * aims.seconds
    rows = (("floor", aims.floor), ("goal", aims.goal))
    return [
        {
            "name": f"{text}_{kind}",
            "value": found,
            "threshold": aim,
            "below": True,
            "seconds": took,
            "passed": found <= aim and in_time,
        }
        for kind, aim in rows
    ]


def _document(asked: Asked, results: Results, texts: Sequence[str]) -> dict[str, Any]:
    peers = [name for name in (*TRAINERS, "5-gram") if name != "klype"]
    named = {
        name: name.lower().replace(", ", "_").replace("'", "").replace(" ", "_").replace("-", "") for name in peers
    }
    ratios = {f"{text}_vs_{named[peer]}": ratio(results, text, "klype", peer) for text in texts for peer in peers}
    return {
        "bench": "quality",
        "machine": {
            "processor": processor(),
            "system": platform.platform(),
            "threads": usable_cores(),
            "load": [round(x, 2) for x in psutil.getloadavg()],
            "busy_elsewhere": results.elsewhere,
        },
        "task": {"held_out": HELD_OUT, "block_bytes": BLOCK, **_asked(asked, texts)},
        "rows": [_row(results, text, name, about) for (text, name), about in results.about.items()],
        "yardsticks": {
            text: {
                "held_out_bytes": int(sum(results.sizes[text, "5-gram"])),
                "ngram": bits_per_byte(results, text, "5-gram").json(),
                "xz": results.xz[text].json(),
            }
            for text in texts
        },
        "ratios": {name: figure.json() for name, figure in ratios.items()},
        "gates": [gate for text in texts for gate in gates(results, text, asked.seconds)],
        "missing": results.why,
    }


def _asked(asked: Asked, texts: Sequence[str]) -> Mapping[str, Any]:
    asked_s = {text: asked.seconds or TEXTS[text].seconds for text in texts}
    return {"seconds": asked_s, "seed": asked.seed, "size": asked.size}


def _row(results: Results, text: str, name: str, about: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "text": text,
        "trainer": name,
        "bits_per_byte": bits_per_byte(results, text, name).json(),
        **about,
    }
