"""``klype article``: the article, claim by claim, measured on a model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from klype.cli import options as o
from klype.cli.terminal import Terminal, to_json, write


def command(
    model: o.Model,
    questions: Annotated[Path | None, typer.Option("--questions", help="JSONL: question, answers, choices.")] = None,
    most: Annotated[int, typer.Option("--most", min=0, help="Questions at most (0: all).")] = 60,
    samples: Annotated[int, typer.Option("-n", "--samples", help="Answers a question and temperature.")] = 8,
    temperatures: Annotated[str, typer.Option("--temperatures", help="A list: 0,0.7,1.3")] = "0,0.7,1.3",
    limit: o.Limit = 32,
    budget: Annotated[int, typer.Option("--budget", min=0, help="Forward passes at most (0: as planned).")] = 0,
    raw: o.Raw = None,
    precision: o.Precision = "float32",
    seed: o.Seed = 0,
    out: Annotated[Path | None, typer.Option("--out", help="Folder.", show_default="examinations/MODEL")] = None,
    lang: o.Lang = None,
    as_json: o.Json = False,
) -> None:
    """Each claim of the article “Hvordan svarer KIen?”: does this model support, bend or refute it? With figures."""
    terminal = Terminal(as_json, lang)
    from klype.cli.commands.examine import examined, parse_temperatures, planned
    from klype.cli.examining import examinee, questions_of
    from klype.examine.examinee import ExamSettings
    from klype.experiments.article import article, sentences
    from klype.experiments.article import write as write_page
    from klype.sources.opening import open_model
    from klype.words import words

    settings = ExamSettings(parse_temperatures(temperatures), samples, limit, seed, trees=4, forks=0)
    settings.check()
    w = words(terminal.lang, "examination")
    opened = open_model(model, precision)
    one = examinee(opened, questions_of(opened, questions, "", most), raw, limit=limit)
    one, settings = planned(terminal, w, one, settings, budget or None, 0, True)
    folder = out or Path("examinations") / Path(model).name
    made = article(examined(terminal, w, one, settings, folder))
    made["report"] = str(write_page(folder, made, terminal.lang))
    write(folder / "article.json", to_json(made) + "\n")
    if not as_json:
        from rich.text import Text

        for says, ruled, found in sentences(made, terminal.lang):
            terminal.console.print(Text(says, style="bold"))
            terminal.console.print(f"  {ruled}. {found}", markup=False)
        terminal.console.print(str(made["report"]), markup=False)
    terminal.document(made)
