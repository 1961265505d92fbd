"""``benchmarks cures``: what each decoder gains over greedy, and what it costs, on questions with known answers.

Settings are chosen on dev questions at one budget. All figures are of test questions, paired with greedy decoding of
the same ones. Energy is measured where the machine reports it, else estimated from processor time and labelled so.
"""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from benchmarks.cures_tasks import Posed, Task
from klype.answers.decoder_requests import DecoderSettings, serve
from klype.answers.decoders import DECODERS, Decoder, DecoderResult, decide, first
from klype.device import usable_cores
from klype.errors import KlypeError, UsageError
from klype.examine.caching_source import Energy
from klype.examine.intervals import mcnemar, mean_by_question, mean_change
from klype.sources.source import Source
from klype.values import Trace

Say = Callable[[str], None]
CHUNK = 50
CHEAP = 4.0  # passes, relative to a plain answer, within which a decoder is recommended
# settings that are tried on the questions of dev; of a decoder that is not listed here, only the usual ones
WARM = (DecoderSettings(), DecoderSettings(temperature=0.7))
WEIGHTS = (DecoderSettings(weight=0.5), DecoderSettings(weight=1.0))
TUNES = {
    "sample": WARM,
    "consensus": WARM,
    "verify-likelihood": WEIGHTS,
    "verify-statement": WEIGHTS,
    "verify-yes": WEIGHTS,
    "verify-reward": (DecoderSettings(weight=1.0), DecoderSettings(weight=3.0)),
    "backtrack": (DecoderSettings(), DecoderSettings(floor=0.9)),
}


@dataclass(frozen=True, slots=True)
class Entrant:
    """A model that takes part. The first is the baseline; the others, trained cures, are compared with it."""

    name: str
    source: Source
    tasks: tuple[Task, ...]
    back: int | None = None


@dataclass(frozen=True, slots=True)
class CureSettings:
    """Settings of the benchmark. ``choose_at``: the budget at which decoder settings and the best decoder are
    chosen."""

    budgets: tuple[float, ...] = (2.0, 4.0, 8.0)
    only: tuple[str, ...] = ()
    choose_at: float = 4.0

    def check(self) -> None:
        unknown = next((name for name in self.only if name not in DECODERS), None)
        if unknown is not None:
            raise UsageError(f"There is no decoder {unknown}.", f"There are: {', '.join(DECODERS)}.")
        if not self.budgets or any(budget < 1 for budget in self.budgets):
            raise UsageError("--budgets should be numbers from 1 up, such as 2,4,8.")


@dataclass(frozen=True, slots=True)
class CureResult:
    """The result of one decoder at one budget on one set of questions."""

    decided: list[DecoderResult]
    rights: list[float]
    joules: float
    estimated: bool


def cures(entrants: Sequence[Entrant], settings: CureSettings, say: Say) -> dict[str, Any]:
    """Runs the benchmark. The document has a part for every task, with a row for each (model, decoder, budget)."""
    settings.check()
    started, parts, missing = time.monotonic(), list[dict[str, Any]](), dict[str, str]()
    for task in entrants[0].tasks:
        if task.missing or not task.test:
            missing[task.name] = task.missing or "it has no questions"
            continue
        parts.append(_part(task.name, entrants, settings, say))
    if not parts:
        raise KlypeError("There is no question to ask.", "; ".join(f"{k}: {v}" for k, v in missing.items()))
    return {
        "models": [entrant.name for entrant in entrants],
        "budgets": list(settings.budgets),
        "tasks": parts,
        "missing": missing,
        "passed": any(part["best"] is not None and part["best"]["beats"] for part in parts),
        "machine": {"processor": platform.processor() or platform.machine(), "cores": usable_cores()},
        "seconds": round(time.monotonic() - started, 1),
    }


def _part(name: str, entrants: Sequence[Entrant], settings: CureSettings, say: Say) -> dict[str, Any]:
    rows, skipped, base = list[dict[str, Any]](), dict[str, str](), list[float]()
    dev_best: tuple[float, str, str] | None = None
    for entrant in entrants:
        task = next((task for task in entrant.tasks if task.name == name), None)
        if task is None or task.missing:
            skipped[entrant.name] = "it has not these questions"
            continue
        plain_dev, plain = (_plain(entrant.source, part) for part in (task.dev, task.test))
        for decoder in DECODERS.values():
            if settings.only and decoder.name not in (*settings.only, "greedy"):
                continue
            why = _cannot(decoder, task, entrant)
            if why:
                skipped[decoder.name] = why
                continue
            tuning, dev = _chosen(entrant, decoder, task.dev, plain_dev, settings)
            budgets = settings.budgets if decoder.spends else (1.0,)
            for budget in budgets:
                found = measure(entrant.source, task.test, decoder.name, budget, tuning, plain)
                if not base:
                    base = found.rights
                row = _row(found, task.test, base) | {"settings": asdict(tuning), "dev": dev}
                row = {"model": entrant.name, "decoder": decoder.name, "budget": budget} | row
                rows.append(row)
                say(f"{name}, {entrant.name}: {decoder.name} {budget:g}×: {_told(row)}")
            if decoder.name != "greedy" and (dev_best is None or dev > dev_best[0]):
                dev_best = (dev, entrant.name, decoder.name)
    task = next(task for task in entrants[0].tasks if task.name == name)
    return {
        "task": name,
        "judge": task.judge,
        "dev": len(task.dev),
        "test": len(task.test),
        "rows": rows,
        "front": front(rows),
        "best": _best(rows, dev_best),
        "skipped": skipped,
    }


@dataclass(frozen=True, slots=True)
class Plain:
    """The greedy answers to a set of questions, with which all decoders but ``sample`` begin, and their energy."""

    traces: list[Trace]
    joules: float


def measure(
    source: Source, posed: Sequence[Posed], name: str, budget: float, tuning: DecoderSettings, plain: Plain | None
) -> CureResult:
    """Decides every question, starting from the plain answers where they are known."""
    energy = Energy()
    decided: list[DecoderResult] = []
    for at in range(0, len(posed), CHUNK):
        part = [one.asked for one in posed[at : at + CHUNK]]
        known = None if plain is None or name == "sample" else plain.traces[at : at + CHUNK]
        decided += decide(source, part, name, budget, tuning, known)
    joules = energy.joules()
    if plain is not None and name != "sample":
        joules += plain.joules
    rights = [float(one.right(d.choice.chosen.text)) for one, d in zip(posed, decided, strict=True)]
    return CureResult(decided, rights, joules, energy.estimated)


def front(rows: Sequence[dict[str, Any]]) -> list[int]:
    """Indices of the rows on the Pareto front, cheapest first: no other is correct as often with fewer passes."""
    order = sorted(range(len(rows)), key=lambda i: (rows[i]["passes"], -rows[i]["right"]["value"]))
    found: list[int] = []
    for i in order:
        if not found or rows[i]["right"]["value"] > rows[found[-1]]["right"]["value"]:
            found.append(i)
    return found


def _plain(source: Source, posed: Sequence[Posed]) -> Plain:
    energy, found = Energy(), list[Trace]()
    for at in range(0, len(posed), CHUNK):
        orders = [first(one.asked, DecoderSettings()) for one in posed[at : at + CHUNK]]
        found += [trace for (trace,) in serve(source, orders)]  # type: ignore[misc]
    return Plain(found, energy.joules())


def _cannot(decoder: Decoder, task: Task, entrant: Entrant) -> str:
    if decoder.name == "backspace" and entrant.back is None:
        return "no model here has learnt to take a word back"
    asked = [one.asked for one in task.test]
    if decoder.needs and any(decoder.needs not in one.checks for one in asked):
        return "there is nothing to check with"
    return ""


def _chosen(
    entrant: Entrant, decoder: Decoder, dev: Sequence[Posed], plain: Plain, settings: CureSettings
) -> tuple[DecoderSettings, float]:
    """The settings with the highest share of correct dev answers (of equals the first), and that share."""
    tried = []
    for tuning in TUNES.get(decoder.name, (DecoderSettings(),)):
        found = measure(entrant.source, dev, decoder.name, settings.choose_at, _with_back(tuning, entrant), plain)
        tried.append((sum(found.rights) / len(found.rights), tuning))
    best = max(tried, key=lambda row: row[0])
    return _with_back(best[1], entrant), best[0]


def _with_back(tuning: DecoderSettings, entrant: Entrant) -> DecoderSettings:
    return tuning if entrant.back is None else DecoderSettings(**{**asdict(tuning), "back": entrant.back})


def _row(found: CureResult, posed: Sequence[Posed], base: Sequence[float]) -> dict[str, Any]:
    ids = [one.question.id for one in posed]
    spent, plain = (sum(getattr(d, k) for d in found.decided) for k in ("passes", "plain_passes"))
    work, plain_work = (sum(getattr(d, k) for d in found.decided) for k in ("positions", "plain_positions"))
    changed = [d.choice.chosen.meaning != d.plain.chosen.meaning for d in found.decided]
    return {
        "right": mean_by_question(found.rights, ids, "share of questions").json(),
        "gain": mean_change(base, found.rights, ids, "share of questions").json(),
        "mcnemar": mcnemar(base, found.rights),
        "passes": spent / plain,
        "work": work / plain_work,
        "passes_each": spent / len(posed),
        "joules_each": found.joules / len(posed),
        "joules_estimated": found.estimated,
        "changed": sum(changed) / len(changed),
    }


def _best(rows: Sequence[dict[str, Any]], chosen: tuple[float, str, str] | None) -> dict[str, Any] | None:
    """The decoder that was best on dev, with its test figures within CHEAP passes; ``beats``: significantly better than
    greedy."""
    if chosen is None:
        return None
    mine = [r for r in rows if (r["model"], r["decoder"]) == chosen[1:] and r["passes"] <= CHEAP + 1e-9]
    if not mine:
        return None
    row = max(mine, key=lambda r: r["budget"])
    low = row["gain"].get("low")
    keys = ("model", "decoder", "budget", "right", "gain", "mcnemar", "passes", "work")
    return {**{key: row[key] for key in keys}, "beats": bool(low is not None and low > 0)}


def _told(row: dict[str, Any]) -> str:
    right, gain = row["right"], row["gain"]
    spread = "" if gain.get("low") is None else f" [{gain['low']:+.3f}, {gain['high']:+.3f}]"
    cost = f"{row['passes']:.2f} passes, {row['work']:.2f} work"
    return f"right {right['value']:.3f}, gain {gain['value']:+.3f}{spread}, {cost}"
