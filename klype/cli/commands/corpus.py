"""``klype bench data``: a corpus to shards of tokens."""

from __future__ import annotations

from typing import Annotated

import typer

from klype.cli import options as o
from klype.cli.terminal import Terminal


def command(
    gigabytes: Annotated[float, typer.Option("--gigabytes", min=0.001, max=1000, help="How much text is made.")] = 0.1,
    text: o.TextFiles = None,
    near: Annotated[bool, typer.Option("--near", help="Also leave out texts that nearly repeat others.")] = False,
    seed: o.Seed = 0,
    out: o.OutFile = None,
    lang: o.Lang = None,
    as_json: o.Json = False,
) -> None:
    """Data: how fast text becomes shards of tokens, and the memory it takes.

    The text is made of --text's paragraphs (else the demo world's), with words exchanged, repetitions and broken lines.
    """
    terminal = Terminal(as_json, lang)
    from klype.bench.data import Corpus, data

    document = data(Corpus(gigabytes, tuple(text or ()), near, seed), terminal.aside)
    if not as_json:
        left, batches = document["left_out"], document["batches"]
        lines = (
            f"{document['mb_per_s']:.1f} MB/s: {document['bytes'] / 1e6:,.0f} MB in {document['seconds']:.1f} s, "
            f"{document['tokens']:,} tokens",
            f"left out: {left['repeated']} repeated, {left['near']} nearly so, {left['broken']} broken lines",
            f"peak of memory {_megabytes(document['peak_mb'])} ({_megabytes(document['before_mb'])} before it began)",
            f"batches: {batches['tokens_per_s']:,} tokens/s after {batches['start_s']} s",
        )
        for line in lines:
            terminal.console.print(line, markup=False, highlight=False)
    terminal.document(document, out)


def _megabytes(figure: float | None) -> str:
    return "unknown" if figure is None else f"{figure:.0f} MB"
