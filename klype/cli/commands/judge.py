"""``klype judge``: whether pairs of answers say the same, and whether answers are right."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from klype.cli import options as o
from klype.cli.terminal import Terminal
from klype.errors import UsageError
from klype.option import Option
from klype.words.plain import harmless

LONGEST = 120
SIGNS = {True: "=", False: "≠", None: "?"}


def command(
    terminal: Terminal,
    file: Annotated[Path, Option("JSONL: question, a, b; or question, answer, answers.", argument=True)],
    judge: o.JudgeName = "",
    precision: o.Precision = "float32",
    device: o.Device = "auto",
    out: o.OutFile = None,
) -> None:
    """Judge answers: do two say the same, is one right? By rules over what each claims, or by another judge."""
    from klype.api.judging import judged, open_judge
    from klype.data.readers import read_rows
    from klype.words import percent, words

    if not file.is_file():
        raise UsageError(f"There is no file {file}.", "Give JSONL rows with question, a and b.")
    other = open_judge(judge, how=(precision, device))
    rows = [row for _, row in read_rows(file)]
    document = judged(rows, other)
    if not terminal.as_json:
        w, lang = words(terminal.lang, "judge"), terminal.lang
        verdicts = [found.get("same", found.get("right")) for found in document["rows"]]
        for row, verdict in zip(rows, verdicts, strict=True):
            said = (row["a"], row["b"]) if "a" in row else (row["answer"], " | ".join(row["answers"]))
            line = f"{short(said[0])}  {SIGNS[verdict]}  {short(said[1])}"
            terminal.console.print(line, markup=False, highlight=False)
        counts = {name: verdicts.count(value) for name, value in (("yes", True), ("no", False), ("unsure", None))}
        terminal.console.print(w("counts", n=len(verdicts), **counts), markup=False, highlight=False)
        if (error := document["error_rate"]) is not None:
            ends = {key: percent(error[key], lang) for key in ("value", "low", "high")}
            terminal.console.print(w("error", **ends), markup=False, highlight=False)
    terminal.document(document, out)


def short(text: str) -> str:
    """A stranger's text on one line."""
    line = " ".join(harmless(text).split())
    return line if len(line) <= LONGEST else f"{line[: LONGEST - 1]}…"
