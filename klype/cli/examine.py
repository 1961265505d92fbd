"""``klype examine``, ``article`` and ``judge``: how a model's answers diverge; the article's claims; answers judged."""

import os
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from klype.cli import options as o
from klype.cli.runs import figure_text
from klype.cli.terminal import Terminal, announce_start, part_progress, pass_budget, patiently, print_table, tell_cost
from klype.cli.terminal import write_json as write
from klype.durable import write_out
from klype.errors import KlypeError, UsageError
from klype.examine.settings import ArticleSettings, ExamSettings
from klype.option import Option, Options, a_file, suite_files
from klype.words import Words, count, number, percent, short, words
from klype.words.plain import harmless

if TYPE_CHECKING:
    from klype.examine.evidence import JudgedAnswer
    from klype.examine.exam import ExamResult
    from klype.examine.examined_model import ExamPlan
    from klype.experiments.article import FreeTextRequest
    from klype.sources.opening import OpenModel


LONG_S = 180.0  # a plan longer than this has to be confirmed, on a terminal
LONGEST = 120  # characters of an answer that are shown
SIGNS = {True: "=", False: "≠", None: "?"}


@dataclass(frozen=True, kw_only=True)
class QuestionOptions(Options):
    """How the model is opened and asked, and the folder for the results."""

    raw: o.Raw = None
    precision: o.Precision = "float32"
    device: o.Device = "auto"
    out: Annotated[Path | None, Option("Folder.", shown="examinations/MODEL")] = None


@dataclass(frozen=True, kw_only=True)
class ExaminationOptions(QuestionOptions):
    """``klype examine``, beside how many answers are drawn."""

    models: Annotated[tuple[str, ...], o.models("One MODEL; with --compare two.")] = ()
    questions: Annotated[Path | None, Option("JSONL: question, context, answers, choices.")] = None
    suite: Annotated[str, Option("world, or a JSONL file, or a folder of them.")] = ""
    most: Annotated[int, Option("Max questions (0: all).", least=0, shown="200")] = 200
    budget: o.Budget = None
    minutes: Annotated[
        float, Option("Time limit in minutes: trees and forks of as many questions as fit (0: of all).", least=0)
    ] = 6.0
    fail_if: Annotated[tuple[str, ...], Option('Exit with 1 if: "right<0.8", "kl@1>0.3". May be repeated.')] = ()
    compare: Annotated[bool, Option("Two MODELs on the same questions, paired.")] = False
    judge: o.JudgeName = ""
    training: Annotated[tuple[Path, ...], Option("Training text, to find what is copied from it.")] = ()
    yes: Annotated[bool, Option("Do not ask before a long examination.")] = False


def command(terminal: Terminal, settings: ExamSettings, asked: ExaminationOptions) -> None:
    """Examine MODEL: is it right, how often would it say the same, does one error bring the next, where was it decided?

    What was drawn is kept in the folder's traces: the same command resumes where it stopped.
    """
    a_file("--questions", asked.questions)
    for file in asked.training:
        if not file.exists():
            raise UsageError(f"--training: there is nothing at {file}.")
    if asked.suite not in ("", "world"):
        suite_files(asked.suite)
    passes, limits = pass_budget(asked.budget)
    models = [o.a_model(model) for model in asked.models] or [o.default_model(terminal)]
    if len(models) != 1 + asked.compare:
        raise UsageError("Give one MODEL, or two with --compare.")
    with announce_start(terminal):
        from klype.api.examination import prepare, questions_of
        from klype.api.judging import open_judge
        from klype.api.model import load
        from klype.data.readers import read_texts
        from klype.examine.compare import failure, parse

    conditions = [parse(text) for text in asked.fail_if]
    for condition in conditions:
        condition.check([f"{t:g}" for t in settings.temperatures])
    w = words(terminal.lang, "examination")
    texts = [document.text for document in read_texts(asked.training)] if asked.training else []
    # "self" is resolved by prepare, which has the model
    judge = asked.judge if asked.judge == "self" else open_judge(asked.judge, how=(asked.precision, asked.device))
    names = [Path(model).name or "model" for model in models]
    folder = asked.out or Path("examinations") / "-".join(names)
    check_place(folder)
    if len(set(names)) < len(names):  # two models of one name
        names = [f"{name}-{number}" for number, name in enumerate(names, 1)]
    found: list[ExamResult] = []
    documents: list[dict[str, Any]] = []
    for name, place in zip(models, names, strict=True):
        with patiently(w("examine.planning", model=Path(name).name or name)):
            model = load(name, asked.precision, limits, asked.device)
            questions = questions_of(model.opened, asked.questions, asked.suite, asked.most)
            exam = prepare(
                model, questions, settings, asked.minutes, budget=passes, raw=asked.raw, judge=judge, training=texts
            )
        tell_plan(terminal, w, exam.plan)
        if exam.plan.seconds > LONG_S and passes is None and not asked.yes and sys.stdin.isatty():
            agree(w)
        own = folder / place if asked.compare else folder
        with part_progress(terminal) as progress:
            # the interventions of the first model are applied to the second, too: differences are paired
            found.append(exam.run(own, progress, found[0].interventions if found else None))
        documents.append(write_examination(terminal, found[-1], own))
        tell_cost(model.opened)
    if asked.compare:
        shown = show_comparison(terminal, w, found, folder)
    else:
        shown = documents[0]
        show_verdict(terminal, w, shown)
    reasons = [
        f"{document['model']}: {why}" if asked.compare else why
        for condition in conditions
        for document in documents
        if (why := failure(condition, document))
    ]
    terminal.document({**shown, "failed": reasons} if conditions else shown)
    for why in reasons:
        terminal.console.print(why)
    if reasons:
        raise typer.Exit(1)


def agree(w: Words) -> None:
    """Asks whether to start a long examination; raises KlypeError if not. (typer.confirm asks in English only.)"""
    answer = typer.prompt(w("examine.ask"), default="", show_default=False, prompt_suffix=" ", err=True)
    if not answer.strip().casefold().startswith(("y", "j")):  # yes, ja
        raise KlypeError("Nothing was begun.")


def check_place(folder: Path) -> None:
    """Raises UsageError, before minutes are spent, if the folder cannot be created or written to."""
    there = next(place for place in (folder, *folder.absolute().parents) if place.exists())
    if not there.is_dir():
        raise UsageError(f"--out {folder}: {there} is a file, not a folder.")
    if not os.access(there, os.W_OK):
        raise UsageError(f"--out {folder}: nothing may be written in {there}.")


def tell_plan(terminal: Terminal, w: Words, found: "ExamPlan") -> None:
    asked, settings = found.questions, found.settings
    counts = {"questions": asked, "trees": min(settings.trees, asked), "forks": min(settings.forks, asked)}
    told = {name: count(value, terminal.lang) for name, value in {**counts, "passes": found.total}.items()}
    # the studio shows it as one line
    line = w("examine.plan", **told, seconds=number(found.seconds, terminal.lang, 0))
    terminal.console.print(line, soft_wrap=True)


def write_examination(terminal: Terminal, found: "ExamResult", folder: Path) -> dict[str, Any]:
    """Writes report.html and figures.json; returns the document."""
    from klype.api.examination import Examination
    from klype.examine.examination_report import render

    made = Examination.of(found).to_json()
    made["report"] = str(write_out(folder / "report.html", render(made, terminal.lang)))
    write(folder / "figures.json", made)
    return made


def show_comparison(terminal: Terminal, w: Words, found: "list[ExamResult]", folder: Path) -> dict[str, Any]:
    from klype.examine.compare import compare
    from klype.examine.say import Say

    say, lang, made = Say(terminal.lang), terminal.lang, compare(*found)
    write(folder / "compared.json", made)
    rows = [
        (f"{say.measure(name)}, τ = {say.plain(float(t))}", figure_text(figure, lang),
         short(float(f"{figure['p']:.3g}"), lang) if "p" in figure else "")
        for t, figures in made["differences"].items() for name, figure in figures.items()
    ]  # fmt: skip
    title = w("examine.compared", a=found[0].target.name, b=found[1].target.name)
    print_table(terminal.console, title, [w("examine.measure"), w("examine.difference"), "p"], rows)
    return made


def show_verdict(terminal: Terminal, w: Words, made: dict[str, Any]) -> None:
    """Prints the verdict, a table of the main figures, and the path of the report."""
    from klype.api.examination import MAIN
    from klype.examine.examination_report import verdict
    from klype.examine.say import Say

    say, lang, spent = Say(terminal.lang), terminal.lang, made["time"]
    for paragraph in verdict(made, say):
        terminal.console.print(paragraph)
    columns = list(made["figures"])
    rows: list[list[str]] = []
    for name in MAIN:
        found = [made["figures"][t].get(name) for t in columns]
        if any(found):
            rows.append([say.measure(name), *(figure_text(figure, lang) for figure in found)])
        if any(bounds := [say.bounds(figure, name) if figure else "" for figure in found]):
            rows.append([say("exam.allowing_row"), *bounds])
    print_table(terminal.console, "", [w("examine.measure"), *(f"τ = {say.plain(float(t))}" for t in columns)], rows)
    seconds = max(spent["seconds"], 1e-9)
    told = {"seconds": number(spent["seconds"], lang, 0), "passes": count(spent["passes"], lang)}
    told |= {"speed": count(round(spent["tokens"] / seconds), lang), "report": made["report"]}
    terminal.console.print(w("examine.done", **told, share=percent(1 - spent["model_seconds"] / seconds, lang)))


@dataclass(frozen=True, kw_only=True)
class ArticleOptions(QuestionOptions):
    """``klype article``, beside how many answers are drawn."""

    model: o.ModelName
    questions: Annotated[Path | None, Option("JSONL: question, answers, choices.")] = None
    most: Annotated[int, Option("Max questions (0: all).", least=0)] = 60
    documents: Annotated[int, Option("Long texts that the base model writes (demo world).", least=0)] = 1000
    budget: Annotated[int, Option("Max forward passes (0: as planned).", least=0)] = 0


def article_command(terminal: Terminal, settings: ArticleSettings, asked: ArticleOptions) -> None:
    """Each claim of the article “Hvordan svarer KIen?”: does this model support it? With figures and tests."""
    a_file("--questions", asked.questions)
    from klype.api.examination import prepare, questions_of
    from klype.api.model import load
    from klype.experiments.article import FreeTextRequest, article, sentences
    from klype.experiments.article import write as write_page

    model = load(asked.model, asked.precision, device=asked.device)
    questions = questions_of(model.opened, asked.questions, "", asked.most)
    writing = FreeTextRequest(asked.documents, temperature=settings.main, seed=settings.seed)
    if asked.budget:  # at most a quarter of the passes go to long texts
        writing = replace(writing, number=min(writing.number, asked.budget // (4 * writing.words)))
    budget = asked.budget - writing.number * writing.words if asked.budget else None
    exam = prepare(model, questions, settings, 0, raw=asked.raw, budget=budget)
    tell_plan(terminal, words(terminal.lang, "examination"), exam.plan)
    folder = asked.out or Path("examinations") / Path(asked.model).name
    with part_progress(terminal) as progress:
        found = exam.run(folder, progress)
    made = article(found, *long_texts(terminal, model.opened, writing, asked))
    made["report"] = str(write_page(folder, made, terminal.lang))
    if not terminal.as_json:
        for says, ruled, why, how in sentences(made, terminal.lang):
            terminal.console.print(says, style="bold")
            terminal.console.print(f"  {ruled}. {why}")
            if how:
                terminal.console.print(f"  {how}", style="dim")
        terminal.console.print(made["report"])
    terminal.document(made, folder / "article.json")


def long_texts(
    terminal: Terminal, opened: "OpenModel", writing: "FreeTextRequest", how: QuestionOptions
) -> "tuple[list[JudgedAnswer], str]":
    """Long texts by the base model of the demo world's run, judged word by word, and the model's name; ([], "") for
    other models."""
    from klype.api.examination import spellings_of
    from klype.api.prompt_context import world_of
    from klype.experiments.article import MIN_WORDS, write_texts
    from klype.model.atomic_folder import is_whole
    from klype.sources.opening import open_model

    run, world = opened.found.run, world_of(opened)
    if world is None or run is None or not is_whole(run / "pretrain") or not writing.number or not writing.temperature:
        return [], ""
    base = opened
    if opened.found.stage != "pretrain":
        base = open_model(str(run / "pretrain"), how.precision, device=how.device)
    if base.window < writing.words + MIN_WORDS:
        return [], ""
    with part_progress(terminal) as progress:
        spelled, begin, of = spellings_of(base, world), base.loaded.tokenizer.begin, writing.number
        progress("documents", 0, of)
        texts = write_texts(base.source, world, spelled, begin, writing, lambda done: progress("documents", done, of))
    return texts, base.name


def judge_command(
    terminal: Terminal,
    file: Annotated[Path, Option("JSONL: question, a, b; or question, answer, answers.", argument=True)],
    judge: o.JudgeName = "",
    precision: o.Precision = "float32",
    device: o.Device = "auto",
    out: o.OutFile = None,
) -> None:
    """Judge answers: do two say the same, is one right? By rules over what each claims, or by another judge."""
    from klype.api.judging import judge_rows, open_judge
    from klype.data.readers import read_rows

    if not file.is_file():
        raise UsageError(f"There is no file {file}.", "Give JSONL rows with question, a and b.")
    other = open_judge(judge, how=(precision, device))
    rows = [row for _, row in read_rows(file)]
    document = judge_rows(rows, other)
    if not terminal.as_json:
        w, lang = words(terminal.lang, "judge"), terminal.lang
        verdicts = [found.get("same", found.get("right")) for found in document["rows"]]
        for row, verdict in zip(rows, verdicts, strict=True):
            said = (row["a"], row["b"]) if "a" in row else (row["answer"], " | ".join(row["answers"]))
            first, other_one = (on_one_line(text) for text in said)
            terminal.console.print(f"{first}  {SIGNS[verdict]}  {other_one}")
        counts = {name: verdicts.count(value) for name, value in (("yes", True), ("no", False), ("unsure", None))}
        terminal.console.print(w("counts", n=len(verdicts), **counts))
        if (error := document["error_rate"]) is not None:
            terminal.console.print(w("error", **{key: percent(error[key], lang) for key in ("value", "low", "high")}))
    terminal.document(document, out)


def on_one_line(text: str) -> str:
    """Untrusted text on one line, cut to ``LONGEST`` characters."""
    line = " ".join(harmless(text).split())
    return line if len(line) <= LONGEST else f"{line[: LONGEST - 1]}…"
