"""``klype article``: the article, claim by claim, measured on a model."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from klype.cli import options as o
from klype.cli.terminal import Terminal, to_json, write
from klype.option import Option

if TYPE_CHECKING:
    from klype.examine.evidence import Answered
    from klype.experiments.documents import Writing
    from klype.sources.opening import Opened


def command(
    terminal: Terminal,
    model: o.Model,
    questions: Annotated[Path | None, Option("JSONL: question, answers, choices.")] = None,
    most: Annotated[int, Option("Questions at most (0: all).", least=0)] = 60,
    samples: Annotated[int, Option("Answers a question and temperature.", short="-n")] = 8,
    temperatures: Annotated[str, Option("A list: 0,0.7,1.3")] = "0,0.7,1.3",
    limit: o.Limit = 32,
    documents: Annotated[int, Option("Long texts that the base model writes (demo world).", least=0)] = 1000,
    budget: Annotated[int, Option("Forward passes at most (0: as planned).", least=0)] = 0,
    raw: o.Raw = None,
    precision: o.Precision = "float32",
    device: o.Device = "auto",
    seed: o.Seed = 0,
    out: Annotated[Path | None, Option("Folder.", shown="examinations/MODEL")] = None,
) -> None:
    """Each claim of the article “Hvordan svarer KIen?”: does this model support it? With figures and tests."""
    from klype.api.examination import planned
    from klype.api.examinee import examinee, questions_of
    from klype.cli.commands.examine import parse_temperatures, tell_plan, watched
    from klype.examine.target import ExamSettings
    from klype.experiments.article import article, sentences
    from klype.experiments.article import write as write_page
    from klype.experiments.documents import Writing
    from klype.sources.opening import open_model
    from klype.words import words

    settings = ExamSettings(parse_temperatures(temperatures), samples, limit, seed, trees=4, forks=0)
    settings.check()
    w = words(terminal.lang, "examination")
    opened = open_model(model, precision, device=device)
    one = examinee(opened, questions_of(opened, questions, "", most), raw, limit=limit)
    writing = Writing(documents, temperature=settings.main, seed=seed)
    if budget:  # a quarter of the passes at most are for long texts
        writing = replace(writing, number=min(documents, budget // (4 * writing.words)))
    exam = planned(one, settings, 0, budget - writing.passes if budget else None)
    tell_plan(terminal, w, exam.plan)
    folder = out or Path("examinations") / Path(model).name
    with watched(terminal) as progress:
        found = exam.measured(folder, progress)
    texts, writer = long_texts(terminal, opened, writing, (precision, device))
    made = article(found, texts, writer)
    made["report"] = str(write_page(folder, made, terminal.lang))
    write(folder / "article.json", to_json(made) + "\n")
    if not terminal.as_json:
        from rich.text import Text

        for says, ruled, why, how in sentences(made, terminal.lang):
            terminal.console.print(Text(says, style="bold"))
            terminal.console.print(f"  {ruled}. {why}", markup=False)
            if how:
                terminal.console.print(f"  {how}", style="dim", markup=False)
        terminal.console.print(str(made["report"]), markup=False)
    terminal.document(made)


def long_texts(
    terminal: Terminal, opened: Opened, writing: Writing, how: tuple[str, str]
) -> tuple[list[Answered], str]:
    """What the base model of a run of the demo world writes, judged word by word, and its name; else nothing.

    ``how``: its precision and its device.
    """
    from klype.api.asking import world_of
    from klype.api.examinee import spellings_of
    from klype.cli.progress import listener
    from klype.experiments.documents import LEAST, write
    from klype.model.manifest import is_whole
    from klype.sources.opening import open_model

    run, world = opened.found.run, world_of(opened)
    if world is None or run is None or not is_whole(run / "pretrain") or not writing.number or not writing.temperature:
        return [], ""
    base = opened if opened.found.stage == "pretrain" else open_model(str(run / "pretrain"), how[0], device=how[1])
    if base.window < writing.words + LEAST:
        return [], ""
    with listener(terminal) as say:
        say.stage_start("documents", writing.number)
        spelled, begin = spellings_of(base, world), base.loaded.tokenizer.begin
        texts = write(base.source, world, spelled, begin, writing, lambda done: say.step({"step": done}))
        say.stage_end()
    return texts, base.name
