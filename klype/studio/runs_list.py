"""The runs there are, as the pages show them: where they lie, what they reached, and which came of which."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from klype.errors import KlypeError
from klype.runs.folder import RUNS, read_run
from klype.runs.options import STAGES
from klype.runs.overview import parameters, state_of
from klype.sources.find import NEWEST_FIRST
from klype.sources.opening import find_model
from klype.studio.studio import Studio
from klype.studio.work import Work, works

FIGURES = {"pretrain": "base", "finetune": "finetuned", "align": "aligned"}
"""What run.json calls a stage's figures."""
KEY_MOST = 20
"""Characters of a key that a browser sends are read."""
RunState = Literal["running", "done", "failed", "cancelled", "stopped", "unreadable"]


@dataclass(frozen=True)
class RunInfo:
    """A run as a page tells of it. ``key`` is what a browser calls it: nothing else that one sends names a folder.

    ``parent`` is the key of the run it went on from; ``work`` what began it here; ``parameters`` of its newest stage.
    """

    key: str
    folder: Path
    name: str
    state: RunState
    recipe: str = ""
    seconds: float | None = None
    planned_s: float | None = None
    changed: float = 0.0
    stages: tuple[str, ...] = ()
    parameters: int | None = None
    bytes: int = 0
    parent: str = ""
    why: str = ""
    work: Work | None = None
    about: Mapping[str, Any] = field(default_factory=dict)

    @property
    def gates(self) -> tuple[int, int]:
        """Passed ones, and all."""
        gates = self.about.get("gates") or []
        return sum(bool(gate.get("passed")) for gate in gates if isinstance(gate, dict)), len(gates)

    def figures(self, stage: str) -> Mapping[str, Any]:
        """What was measured of a stage's model; of one that was aligned here, what its comparison measured."""
        found = self.about.get("figures", {}).get(FIGURES[stage])
        if not found and stage in ("finetune", "align") and isinstance(self.about.get("aligned"), dict):
            found = self.about["aligned"].get("before" if stage == "finetune" else "after")
        return found if isinstance(found, dict) else {}


def key_of(folder: Path) -> str:
    return hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:12]


def run_folders(studio: Studio) -> list[Path]:
    """Those of the studio's models, those begun here, those in the folder ``runs`` or the one named; each once."""
    found: dict[Path, Path] = {}
    for model in studio.models:
        with suppress(KlypeError, OSError):
            run = find_model(model.address).run
            if run is not None:
                found.setdefault(run.resolve(), run)
    for base in (home_of_runs(studio), studio.home / "runs", studio.runs or RUNS):
        for file in sorted(base.glob("*/run.json"), key=_changed, reverse=True):
            found.setdefault(file.parent.resolve(), file.parent)
    return list(found.values())


def home_of_runs(studio: Studio) -> Path:
    """Where runs that are begun here lie."""
    return studio.runs or studio.home / "runs"


def all_runs(studio: Studio) -> list[RunInfo]:
    """Every run, newest first; work whose run has not written anything yet is told of, too."""
    begun: dict[Path, Work] = {}
    for work in works(studio.home):
        with suppress(KeyError, TypeError):
            if work.plan.kind in ("run", "align"):
                begun.setdefault(work.plan.run.resolve(), work)
    found = [run_info(folder, begun.pop(folder.resolve(), None)) for folder in run_folders(studio)]
    found += [run_info(work.plan.run, work) for work in begun.values()]
    return sorted(found, key=lambda run: run.changed, reverse=True)


def run_info(folder: Path, work: Work | None) -> RunInfo:
    """What is known of one run; a run.json that cannot be read says why."""
    known: dict[str, Any] = {"key": key_of(folder), "folder": folder, "name": folder.resolve().name, "work": work}
    planned = work.plan.about.get("planned_s") if work is not None else None
    try:
        about = read_run(folder)
    except KlypeError as error:
        if work is None:
            return RunInfo(**known, state="unreadable", why=error.message)
        known |= {"changed": _changed(work.folder), "seconds": work.seconds, "planned_s": planned}
        return RunInfo(**known, state=work.state, why=_why(work, {}))
    stages = tuple(stage for stage in STAGES if _reached(folder, stage))
    weights: dict[str, Path] = {stage: folder / stage / "model.safetensors" for stage in STAGES if stage != "rank"}
    last = next((stage for stage in NEWEST_FIRST if weights[stage].is_file()), "")
    found = state_of(folder, about)
    state = found if work is None or (found == "done" and work.state != "running") else work.state
    seconds, made = about.get("seconds"), about.get("asked")
    total = seconds.get("total") if isinstance(seconds, dict) else None
    origin = made.get("from_") if isinstance(made, dict) else None
    if work is not None and work.plan.about.get("source"):  # aligned here: its reward model's run is none of these
        origin = work.plan.about["source"]
    return RunInfo(
        **known,
        state=state,
        recipe=str(about.get("recipe") or ""),
        seconds=work.seconds if work is not None and state == "running" else total,
        planned_s=about.get("planned_s") or planned,
        changed=max((_changed(file) for file in (folder / "run.json", *folder.glob("*/metrics.jsonl"))), default=0.0),
        stages=stages,
        parameters=parameters(folder / last) if last else None,
        bytes=sum(weights[stage].stat().st_size for stage in stages if stage in weights and weights[stage].is_file()),
        parent=_parent(str(origin)) if origin else "",
        why=_why(work, about) if state == "failed" else "",
        about=about,
    )


def family(runs: Sequence[RunInfo]) -> list[tuple[int, RunInfo]]:
    """(depth, run): every run under the one it went on from; what came last stands first."""
    keys = {run.key for run in runs}
    children: dict[str, list[RunInfo]] = {}
    for run in runs:
        children.setdefault(run.parent if run.parent in keys and run.parent != run.key else "", []).append(run)
    out: list[tuple[int, RunInfo]] = []
    seen: set[str] = set()

    def walk(parent: str, depth: int) -> None:
        for run in children.get(parent, []):
            if run.key not in seen:
                seen.add(run.key)
                out.append((depth, run))
                walk(run.key, depth + 1)

    walk("", 0)
    out += [(0, run) for run in runs if run.key not in seen]  # two that name each other
    return out


def _reached(folder: Path, stage: str) -> bool:
    if stage == "rank":
        return (folder / stage).is_dir() and any((folder / stage).iterdir())
    return (folder / stage / "config.json").is_file()


def _why(work: Work | None, about: Mapping[str, Any]) -> str:
    """What went wrong: in the words of the command that was begun here, or of the run itself."""
    return work.why() if work is not None and work.state == "failed" else str(about.get("failure") or "")


def _parent(origin: str) -> str:
    """The run that a model belongs to, whether it is still there or not."""
    folder = Path(origin).expanduser()
    return key_of(folder.parent if folder.name in STAGES else folder)


def _changed(file: Path) -> float:
    try:
        return file.stat().st_mtime
    except OSError:
        return 0.0
