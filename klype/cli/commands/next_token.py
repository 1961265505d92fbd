"""``klype next``: what comes next, as a bar chart before and after temperature."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated, Any

from klype.cli import options as o
from klype.cli.terminal import Terminal
from klype.option import Option

EIGHTHS = " ▏▎▍▌▋▊▉█"


def command(
    terminal: Terminal,
    sampling: o.Sampling,
    model: o.AskedModel,
    text: o.Text = None,
    top: Annotated[int, Option("How many tokens are shown.", least=1)] = 12,
    raw: o.Raw = None,
    precision: o.Precision = "float32",
    device: o.Device = "auto",
    seed: o.Seed = 0,
    out: o.OutFile = None,
) -> None:
    """Show the distribution of the next token after TEXT; for models of the demo world, beside the truth.

    Nothing is drawn, so --seed changes nothing.
    """
    model, text = o.asked(model, text)
    from klype.api.model import Model
    from klype.sources.find import is_aligned
    from klype.sources.opening import open_model

    opened = open_model(model, precision, measured=True, device=device)
    document = Model(opened).next(text, top, raw=raw, **asdict(sampling)).to_json()
    if not terminal.as_json:
        chart(terminal, document, text, sampling.temperature)
        known = "truth" in document["tokens"][0]
        if known and not opened.as_raw(raw) and is_aligned(opened.found.folder):
            terminal.console.print(terminal.words("next.manners"), markup=False)
    terminal.document(document, out)


def visible(token: str) -> str:
    """A token's text for a table: without the space before it, and with a sign for what is only white space."""
    shown = "".join(c if c.isprintable() or c.isspace() else c.encode("unicode_escape").decode() for c in token)
    return shown.strip() or shown.replace("\n", "↵").replace("\t", "⇥").replace(" ", "␣") or "∅"


def chart(terminal: Terminal, document: dict[str, Any], text: str, temperature: float) -> None:
    """Bars of one scale: p, p after temperature and, where it is known, the truth."""
    from rich.text import Text

    from klype.words import number, percent

    console, w, lang = terminal.console, terminal.words, terminal.lang
    rows = document["tokens"]
    columns = [("p", w("next.p")), ("p_tempered", w("next.tempered", temperature=number(temperature, lang, 1)))]
    columns += [("truth", w("next.truth"))] if "truth" in rows[0] else []
    width = min(console.width, 100)
    label = min(16, max(len(visible(row["token"])) for row in rows) + 1)
    bar = (width - label) // len(columns) - 8
    full = max(row[name] for row in rows for name, _ in columns) or 1.0
    console.print(Text(w("next.title", text=text), style="bold"))
    console.print(Text(" " * label + "".join(title[: bar + 7].ljust(bar + 8) for _, title in columns).rstrip()))
    for row in rows:
        line = Text(visible(row["token"])[: label - 1].ljust(label))
        for name, _ in columns:
            line.append(bar_of(row[name] / full, bar), style="blue" if name != "truth" else "green")
            line.append(percent(row[name], lang, 1).rjust(7) + " ")
        line.rstrip()
        console.print(line)
    console.print(w("next.rest", share=percent(document["rest"], lang, 1)), markup=False)


def bar_of(share: float, width: int) -> str:
    """A bar of ``width`` cells, filled to the eighth."""
    eighths = round(max(0.0, min(1.0, share)) * width * 8)
    return ("█" * (eighths // 8) + (EIGHTHS[eighths % 8] if eighths % 8 else "")).ljust(width)
