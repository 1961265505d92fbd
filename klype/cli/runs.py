"""``klype runs``: the runs there are, and two or more of them side by side."""

from pathlib import Path
from typing import Annotated, Any

from klype.cli import options as o
from klype.cli.terminal import Terminal, print_table
from klype.errors import UsageError
from klype.option import Option
from klype.words import count, number
from klype.words import figure as written
from klype.words.sentences import Sentences

Folder = Annotated[Path, Option("Where the runs are.")]
STAGES = ("base", "finetuned", "aligned")


def list_runs(terminal: Terminal, folder: Folder = Path("runs"), out: o.OutFile = None) -> None:
    """List the runs in a folder."""
    from klype.runs.run_json import overview

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
    from klype.runs.run_json import incomparable

    if len(runs) < 2:
        raise UsageError("A comparison needs two runs at least.")
    abouts, rows = {str(run): read_run(run) for run in runs}, []
    for (run, about), otherwise in zip(abouts.items(), incomparable(list(abouts.values())), strict=True):
        stages = {stage: about.get("figures", {}).get(stage) for stage in STAGES}
        rows.append({"run": run, "recipe": about.get("recipe"), "stages": stages, "incomparable": list(otherwise)})
    if not terminal.as_json:
        show_comparison(terminal, rows)
    terminal.document({"runs": rows}, out)


def tensorboard(
    terminal: Terminal, run: Annotated[Path, Option("A run, finished or in progress.", argument=True)]
) -> None:
    """Write a run's metrics as TensorBoard's event files, into its folder tensorboard."""
    from klype.runs.folder import read_run
    from klype.runs.run_json import TENSORBOARD, write_events

    read_run(run)
    steps = write_events(run)
    terminal.lines([f"tensorboard --logdir {run / TENSORBOARD}"])
    terminal.document({"run": str(run), "folder": str(run / TENSORBOARD), "steps": steps})


def show_list(terminal: Terminal, folder: Path, found: list[dict[str, Any]]) -> None:
    w, lang, width, none = terminal.words, terminal.lang, terminal.console.width, "\u2013"
    if not found:
        terminal.say("runs.none", folder=folder)
        return
    keys = ["run", "state", "seconds", "figures"]
    keys += [*(["parameters", "megabytes"] if width >= 80 else []), *(["parent"] if width >= 100 else [])]
    keys += ["recipe"] if width >= 120 else []
    rows = []
    for run in found:
        cells = {"run": Path(run["run"]).name, "state": w(f"runs.{run.get('state', 'unreadable')}")}
        if "why" not in run:
            if run["state"] != "done" and run["stage"]:
                of = f" {run['step'] or 0}/{run['steps']}" if run["steps"] else ""
                cells["state"] += f": {run['stage']}{of}"
            figures = [f"{name} {number(figure['value'], lang)}" for name, figure in run["figures"].items()]
            cells |= {
                "seconds": number(run["trained_s"], lang, 0),
                "figures": ", ".join(figures) or none,
                "parameters": count(run["parameters"], lang) if run["parameters"] else none,
                "megabytes": number(run["bytes"] / 1e6, lang, 1),
                "parent": Path(run["parent"]).name if run["parent"] else none,
                "recipe": run["recipe"] or none,
            }
        rows.append([cells.get(key, "") for key in keys])
    print_table(terminal.console, w("runs.title", folder=folder), [w(f"runs.{key}") for key in keys], rows)
    for run in found:
        if why := run.get("why") or run.get("failure"):
            terminal.say("runs.because", run=Path(run["run"]).name, why=Sentences(terminal.lang)(why))


def show_comparison(terminal: Terminal, runs: list[dict[str, Any]]) -> None:
    """Prints a table per stage with a row per measure and a column per run. Figures that an older klype defined
    otherwise are left out."""
    names = [Path(run["run"]).name for run in runs]
    for stage in STAGES:
        reached = [
            {name: figure for name, figure in (run["stages"][stage] or {}).items() if name not in run["incomparable"]}
            for run in runs
        ]
        measures = list(dict.fromkeys(name for figures in reached for name in figures))
        rows = [[name, *(figure_text(figures.get(name), terminal.lang) for figures in reached)] for name in measures]
        if rows:
            print_table(terminal.console, stage, [terminal.words("runs.measure"), *names], rows)
    for run, name in zip(runs, names, strict=True):
        measured = {measure for figures in run["stages"].values() for measure in figures or ()}
        if otherwise := [measure for measure in run["incomparable"] if measure in measured]:
            terminal.say("runs.otherwise", run=name, measures=", ".join(otherwise))


def figure_text(figure: dict[str, Any] | None, lang: str) -> str:
    """A figure of run.json as text."""
    from klype.values import Figure

    if not isinstance(figure, dict) or figure.get("value") is None:
        return "\u2013"
    return written(Figure(figure["value"], figure.get("low"), figure.get("high")), lang)
