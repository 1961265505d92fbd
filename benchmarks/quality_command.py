"""``python -m benchmarks quality``: bits per byte of held-out text after a fixed time."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from klype.cli import options as o
from klype.cli.terminal import Terminal
from klype.environment import cache_folder
from klype.option import Option

if TYPE_CHECKING:
    from rich.table import Table


def command(
    terminal: Terminal,
    data: Annotated[Path, Option("The folder of tinyshakespeare/input.txt and norske-lover/lover.jsonl.")] = Path(
        "data"
    ),
    seconds: Annotated[
        float | None,
        Option("How long each learns from a text.", shown="180 and 300"),
    ] = None,
    text: Annotated[list[str] | None, Option("shakespeare or laws. May be repeated.")] = None,
    only: Annotated[list[str] | None, Option("A trainer that takes part. May be repeated.")] = None,
    size: Annotated[
        str | None,
        Option("klype's shape (see klype run).", shown="what the time can teach"),
    ] = None,
    seed: o.Seed = 0,
    out: o.OutFile = None,
) -> None:
    """Quality for a time: klype, nanoGPT's recipe and Hugging Face's Trainer, in bits per byte of held-out text."""
    from benchmarks.load import BUSY
    from benchmarks.quality import Asked, quality

    asked = Asked(data, seconds, seed, tuple(only or ()), tuple(text or ()), size, cache_folder())
    document = quality(asked, terminal.aside)
    if not terminal.as_json:
        terminal.console.print(_table(document))
        for gate in document["gates"]:
            verdict, name = "passed" if gate["passed"] else "missed", gate["name"].replace("_", ", ")
            found = f"{gate['value']:.3f} ≤ {gate['threshold']:g} bits per byte, in {gate['seconds']:.0f} s"
            line = f"{verdict}  {name}: {found}"
            terminal.console.print(line, markup=False, highlight=False)
        if (elsewhere := document["machine"]["busy_elsewhere"]) > BUSY:
            terminal.console.print(f"Other programs had {elsewhere:.0%} of the processor: alone, all would learn more.")
        for name, why in document["missing"].items():
            terminal.console.print(f"{name}: {why}", markup=False)
    terminal.document(document, out)


def _table(document: dict[str, Any]) -> Table:
    from rich.table import Table

    table = Table(title="bits per byte of held-out text")
    for column in ("text", "trainer", "bits per byte", "seconds", "steps", "tokens", "how"):
        table.add_column(column, justify="left" if column in ("text", "trainer", "how") else "right")
    for text, yardsticks in document["yardsticks"].items():
        for row in (row for row in document["rows"] if row["text"] == text):
            counts = (f"{row['seconds']:.0f}", f"{row['steps']:,}", f"{row['tokens']:,}")
            table.add_row(text, row["trainer"], _figure(row["bits_per_byte"]), *counts, row["how"])
        for name, what in (("byte 5-gram", "ngram"), ("xz", "xz")):
            table.add_row(text, name, _figure(yardsticks[what]), "", "", "", "")
    return table


def _figure(figure: dict[str, Any]) -> str:
    if figure["low"] is None or figure["low"] == figure["high"]:
        return f"{figure['value']:.3f}"
    return f"{figure['value']:.3f} [{figure['low']:.3f}–{figure['high']:.3f}]"
