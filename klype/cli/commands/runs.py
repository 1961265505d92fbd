"""``klype runs``: the runs there are, and two or more of them side by side."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from klype.cli import options as o
from klype.cli.terminal import Terminal
from klype.errors import UsageError
from klype.option import Option
from klype.words.sentences import Sentences

Folder = Annotated[Path, Option("Where the runs are.")]
STAGES = ("base", "finetuned", "aligned")


def app() -> typer.Typer:
    runs = typer.Typer(help="List runs, or compare them.", no_args_is_help=True, pretty_exceptions_enable=False)
    runs.command("list")(o.expanded(list_runs))
    runs.command("compare")(o.expanded(compare))
    runs.command("tensorboard")(o.expanded(tensorboard))
    return runs


def list_runs(terminal: Terminal, folder: Folder = Path("runs"), out: o.OutFile = None) -> None:
    """List the runs in a folder."""
    from klype.runs.overview import overview

    found = [overview(place.parent) for place in sorted(folder.glob("*/run.json"))]
    if not terminal.as_json:
        show_list(terminal, folder, found)
    terminal.document({"runs": found}, out)


def compare(
    terminal: Terminal,
    runs: Annotated[list[Path], Option("Two runs or more.", argument=True, metavar="RUN…")],
    out: o.OutFile = None,
) -> None:
    """Compare what runs reached, stage by stage, with intervals."""
    from klype.runs.folder import read_run
    from klype.runs.record import incomparable

    if len(runs) < 2:
        raise UsageError("A comparison needs two runs at least.")
    abouts = {str(run): read_run(run) for run in runs}
    document = {
        "runs": [
            {"run": run, "recipe": about.get("recipe"), "stages": stages_of(about), "incomparable": list(otherwise)}
            for (run, about), otherwise in zip(abouts.items(), incomparable(list(abouts.values())), strict=True)
        ]
    }
    if not terminal.as_json:
        show_comparison(terminal, document["runs"])
    terminal.document(document, out)


def tensorboard(
    terminal: Terminal,
    run: Annotated[Path, Option("A run, finished or in progress.", argument=True)],
) -> None:
    """Write a run's metrics as TensorBoard's event files, into its folder tensorboard."""
    from klype.runs.folder import read_run
    from klype.runs.record import TENSORBOARD, write_events

    read_run(run)
    steps = write_events(run)
    if not terminal.as_json:
        terminal.console.print(f"tensorboard --logdir {run / TENSORBOARD}", markup=False, highlight=False)
    terminal.document({"run": str(run), "folder": str(run / TENSORBOARD), "steps": steps})


def stages_of(about: dict[str, Any]) -> dict[str, Any]:
    """The figures of every stage that a run.json holds; None for a stage that was not reached."""
    stages = about.get("figures")
    return {stage: stages.get(stage) if isinstance(stages, dict) else None for stage in STAGES}


def show_list(terminal: Terminal, folder: Path, found: list[dict[str, Any]]) -> None:
    from klype.cli.progress import print_table

    w = terminal.words
    if not found:
        terminal.say("runs.none", folder=folder)
        return
    width = terminal.console.width
    keys = ["run", "state", "seconds", "figures"]
    keys += [*(["parameters", "megabytes"] if width >= 80 else []), *(["parent"] if width >= 100 else [])]
    keys += ["recipe"] if width >= 120 else []
    columns = [w(f"runs.{key}") for key in keys]
    rows = [[_cell(terminal, run, key) for key in keys] for run in found]
    print_table(terminal.console, w("runs.title", folder=folder), columns, rows)
    for run in found:
        if why := run.get("why") or run.get("failure"):
            terminal.say("runs.because", run=Path(run["run"]).name, why=Sentences(terminal.lang)(why))


def _cell(terminal: Terminal, run: dict[str, Any], key: str) -> str:
    from klype.words import count, number

    w, lang, none = terminal.words, terminal.lang, "\u2013"
    if key == "run":
        return Path(run["run"]).name
    if "why" in run:
        return w("runs.unreadable") if key == "state" else ""
    if key == "state":
        text = w(f"runs.{run['state']}")
        if run["state"] == "done" or not run["stage"]:
            return text
        of = f" {run['step'] or 0}/{run['steps']}" if run["steps"] else ""
        return f"{text}: {run['stage']}{of}"
    if key == "seconds":
        return number(run["trained_s"], lang, 0)
    if key == "megabytes":
        return number(run["bytes"] / 1e6, lang, 1)
    if key == "parameters":
        return count(run[key], lang) if run[key] else none
    if key == "figures":
        return ", ".join(f"{name} {number(f['value'], lang)}" for name, f in run[key].items()) or none
    return Path(run[key]).name if run[key] and key == "parent" else str(run[key] or none)


def show_comparison(terminal: Terminal, runs: list[dict[str, Any]]) -> None:
    """A table a stage: a row a measure, a column a run; what means something else in an older run is left out."""
    from klype.cli.progress import print_table

    names = [Path(run["run"]).name for run in runs]
    for stage in STAGES:
        reached = [
            {name: figure for name, figure in (run["stages"][stage] or {}).items() if name not in run["incomparable"]}
            for run in runs
        ]
        measures = list(dict.fromkeys(name for figures in reached for name in figures))
        rows = [[name, *(shown(figures.get(name), terminal.lang) for figures in reached)] for name in measures]
        if rows:
            print_table(terminal.console, stage, [terminal.words("runs.measure"), *names], rows)
    for run, name in zip(runs, names, strict=True):
        measured = {measure for figures in run["stages"].values() for measure in figures or ()}
        if otherwise := [measure for measure in run["incomparable"] if measure in measured]:
            terminal.say("runs.otherwise", run=name, measures=", ".join(otherwise))


def shown(figure: dict[str, Any] | None, lang: str) -> str:
    """A figure as it stands in run.json, written for a reader."""
    from klype.values import Figure
    from klype.words import figure as written

    if not isinstance(figure, dict) or figure.get("value") is None:
        return "\u2013"
    return written(Figure(figure["value"], figure.get("low"), figure.get("high")), lang)
