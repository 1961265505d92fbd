"""Experiments on targets: begun here as processes of their own, or found where ``klype bias`` left them."""

from __future__ import annotations

import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from klype.errors import KlypeError, UsageError
from klype.experiments.bias.experiment import Board
from klype.runs.folder import RUNS
from klype.runs.overview import QUIET_S
from klype.studio.runs_list import key_of
from klype.studio.studio import Studio
from klype.studio.work import Plan, State, Work, begin, new_name, works


@dataclass(frozen=True, slots=True)
class Order:
    minutes: float
    seed: int = 0
    lang: str = "en"


@dataclass(frozen=True, slots=True)
class Experiment:
    """``key`` is what a browser calls it; ``work`` None: it was begun on the command line. ``changed``: when its file
    was last written, in seconds."""

    folder: Path
    work: Work | None = None
    changed: float = 0.0

    @property
    def key(self) -> str:
        return key_of(self.folder)

    @property
    def name(self) -> str:
        return self.folder.resolve().name

    @property
    def state(self) -> State:
        """Of one that was begun on the command line, by its file: ``stopped`` when nothing was written for long."""
        if self.work is not None:
            return self.work.state
        try:
            board = self.board()
        except KlypeError:
            return "failed"
        if board is not None and board.done:
            return "done"
        return "running" if time.time() - self.changed < QUIET_S else "stopped"

    @property
    def seconds(self) -> float:
        return self.work.seconds if self.work is not None else 0.0

    @property
    def why(self) -> str:
        return self.work.why() if self.work is not None else ""

    def board(self) -> Board | None:
        """As it stands; None when nothing has been written yet. KlypeError when the file is damaged."""
        return Board.read(self.folder) if (self.folder / Board.FILE).is_file() else None


def experiments(studio: Studio) -> list[Experiment]:
    """All of them, what was begun or written last first; one that runs stands before all others."""
    begun: dict[Path, Work] = {}
    for work in works(studio.home):
        plan = work.plan
        if plan.kind == "bias":
            begun.setdefault(plan.run.resolve(), work)
    places = dict.fromkeys(begun)
    for base in (home_of_experiments(studio), studio.runs or RUNS):
        places.update(dict.fromkeys(file.parent.resolve() for file in base.glob(f"*/{Board.FILE}")))
    found = [Experiment(folder, begun.get(folder), _changed(folder, begun.get(folder))) for folder in places]
    return sorted(found, key=lambda e: (e.work is not None and e.work.state == "running", e.changed), reverse=True)


def home_of_experiments(studio: Studio) -> Path:
    return studio.home / "targets"


def start(studio: Studio, order: Order) -> Experiment:
    """Begins ``klype bias``. UsageError when one runs already: two would slow each other down."""
    if any(e.work is not None and e.work.state == "running" for e in experiments(studio)):
        raise UsageError("An experiment runs already.", "Wait for it, or cancel it.")
    name = new_name("targets")
    folder = home_of_experiments(studio) / name
    command = [
        *studio.command, "bias", "--minutes", f"{order.minutes:g}", "--seed", str(order.seed), "--lang", order.lang,
        "--out", str(folder), "--resume", "--json",
    ]  # fmt: skip
    about = {"planned_s": 60 * order.minutes}
    return Experiment(folder, begin(studio.home, Plan("bias", folder, [command], about), name))


def _changed(folder: Path, work: Work | None) -> float:
    for file in (folder / Board.FILE, work.folder / "work.json" if work is not None else folder):
        with suppress(OSError):
            return file.stat().st_mtime
    return 0.0
