"""``klype runs``: the runs there are, and two or more of them side by side."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from klype.cli import options as o
from klype.cli.terminal import Terminal
from klype.errors import KlypeError, UsageError

Folder = Annotated[Path, typer.Option("--folder", help="Where the runs are.")]
STAGES = ("base", "finetuned", "aligned")


def app() -> typer.Typer:
    runs = typer.Typer(help="List runs, or compare them.", no_args_is_help=True, pretty_exceptions_enable=False)
    runs.command("list")(list_runs)
    runs.command("compare")(compare)
    runs.command("tensorboard")(tensorboard)
    return runs


def list_runs(
    folder: Folder = Path("runs"), out: o.OutFile = None, lang: o.Lang = None, as_json: o.Json = False
) -> None:
    """List the runs in a folder."""
    terminal = Terminal(as_json, lang)
    found = [summary(place.parent) for place in sorted(folder.glob("*/run.json"))]
    if not as_json:
        show_list(terminal, folder, found)
    terminal.document({"runs": found}, out)


def compare(
    runs: Annotated[list[Path], typer.Argument(help="Two runs or more.")],
    out: o.OutFile = None,
    lang: o.Lang = None,
    as_json: o.Json = False,
) -> None:
    """Compare what runs reached, stage by stage, with intervals."""
    terminal = Terminal(as_json, lang)
    from klype.runs.folder import read_run

    if len(runs) < 2:
        raise UsageError("A comparison needs two runs at least.")
    abouts = {str(run): read_run(run) for run in runs}
    document = {"runs": [{"run": run, "recipe": a.get("recipe"), "stages": stages_of(a)} for run, a in abouts.items()]}
    if not as_json:
        show_comparison(terminal, document["runs"])
    terminal.document(document, out)


def tensorboard(
    run: Annotated[Path, typer.Argument(help="A run, finished or under way.")],
    lang: o.Lang = None,
    as_json: o.Json = False,
) -> None:
    """Write a run's metrics as TensorBoard's event files, into its folder tensorboard."""
    terminal = Terminal(as_json, lang)
    from klype.runs.events import FOLDER, write_events
    from klype.runs.folder import read_run

    read_run(run)
    steps = write_events(run)
    if not as_json:
        terminal.console.print(f"tensorboard --logdir {run / FOLDER}", markup=False, highlight=False)
    terminal.document({"run": str(run), "folder": str(run / FOLDER), "steps": steps})


def summary(run: Path) -> dict[str, Any]:
    """One line about a run; a run.json that cannot be read says why."""
    from klype.runs.folder import read_run

    try:
        about = read_run(run)
    except KlypeError as error:
        return {"run": str(run), "why": error.message}
    gates = about.get("gates") or []
    seconds = about.get("seconds")
    return {
        "run": str(run),
        "recipe": about.get("recipe"),
        "state": about.get("state"),
        "seconds": seconds.get("total") if isinstance(seconds, dict) else None,
        "stages": [
            stage for stage in ("pretrain", "finetune", "reward", "align") if (run / stage / "config.json").exists()
        ],
        "gates_passed": sum(bool(gate.get("passed")) for gate in gates),
        "gates": len(gates),
    }


def stages_of(about: dict[str, Any]) -> dict[str, Any]:
    """The figures of every stage that a run.json holds; None for a stage that was not reached."""
    stages = about.get("figures")
    return {stage: stages.get(stage) if isinstance(stages, dict) else None for stage in STAGES}


def show_list(terminal: Terminal, folder: Path, found: list[dict[str, Any]]) -> None:
    from klype.cli.progress import print_table
    from klype.words import number

    w = terminal.words
    if not found:
        terminal.say("runs.none", folder=folder)
        return
    rows = []
    for run in found:
        name = Path(run["run"]).name
        if "why" in run:
            rows.append([name, w("runs.unreadable", why=run["why"]), "", "", "", ""])
            continue
        seconds = number(run["seconds"], terminal.lang, 0) if run["seconds"] is not None else "\u2013"
        gates = f"{run['gates_passed']}/{run['gates']}" if run["gates"] else "\u2013"
        state = w(f"runs.{run['state']}") if run["state"] in ("done", "running") else "\u2013"
        rows.append([name, str(run["recipe"] or "\u2013"), state, seconds, " ".join(run["stages"]), gates])
    columns = [w(f"runs.{key}") for key in ("run", "recipe", "state", "seconds", "stages", "gates")]
    print_table(terminal.console, w("runs.title", folder=folder), columns, rows)


def show_comparison(terminal: Terminal, runs: list[dict[str, Any]]) -> None:
    """A table a stage: a row a measure, a column a run."""
    from klype.cli.progress import print_table

    names = [Path(run["run"]).name for run in runs]
    for stage in STAGES:
        reached = [run["stages"][stage] or {} for run in runs]
        measures = list(dict.fromkeys(name for figures in reached for name in figures))
        rows = [[name, *(shown(figures.get(name), terminal.lang) for figures in reached)] for name in measures]
        if rows:
            print_table(terminal.console, stage, [terminal.words("runs.measure"), *names], rows)


def shown(figure: dict[str, Any] | None, lang: str) -> str:
    """A figure as it stands in run.json, written for a reader."""
    from klype.values import Figure
    from klype.words import figure as written

    if not isinstance(figure, dict) or figure.get("value") is None:
        return "\u2013"
    return written(Figure(figure["value"], figure.get("low"), figure.get("high")), lang)
