"""``klype next``: what comes next, as a bar chart before and after temperature."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from klype.cli import options as o
from klype.cli.terminal import Terminal
from klype.errors import UsageError

if TYPE_CHECKING:
    from klype.sources.opening import Opened
    from klype.values import Distribution, Sampling

EIGHTHS = " ▏▎▍▌▋▊▉█"


def command(
    model: o.Model,
    text: o.Text,
    temperature: o.Temperature = 0.7,
    top_p: o.TopP = 1.0,
    top: Annotated[int, typer.Option("--top", min=1, help="How many tokens are shown.")] = 12,
    raw: o.Raw = None,
    precision: o.Precision = "float32",
    seed: o.Seed = 0,
    out: o.OutFile = None,
    lang: o.Lang = None,
    as_json: o.Json = False,
) -> None:
    """Show the distribution of the next token after TEXT; for models of the demo world, beside the truth.

    Nothing is drawn, so --seed changes nothing.
    """
    terminal = Terminal(as_json, lang)
    from klype.sources.opening import checked_sampling, open_model, room

    sampling = checked_sampling(temperature, top_p)
    opened = open_model(model, precision, measured=True)
    from klype.runs.truth import next_truth
    from klype.sources.find import is_aligned

    plain = opened.as_raw(raw)
    prompt = opened.put(text, raw)
    room(opened, prompt, 1)
    distribution = opened.source.next([prompt], top=-1)[0]
    truth = next_truth(opened.found, opened.loaded.tokenizer, text, plain) if opened.native else None
    document = describe(opened, distribution, sampling, truth, top)
    if not as_json:
        chart(terminal, document, text, temperature)
        if truth is not None and not plain and is_aligned(opened.found.folder):
            terminal.console.print(terminal.words("next.manners"), markup=False)
    terminal.document(document, out)


def describe(
    opened: Opened, distribution: Distribution, sampling: Sampling, truth: dict[int, float] | None, top: int
) -> dict[str, Any]:
    """The ``top`` most probable tokens, the mass not listed, and with a truth its five most probable tokens too."""
    import numpy as np

    p = dict(zip(distribution.ids.tolist(), np.exp(distribution.logp).tolist(), strict=True))
    low, high = temper(distribution, sampling, opened.vocabulary)
    listed = distribution.ids[:top].tolist()
    truest = sorted(truth, key=lambda token: -truth[token])[:5] if truth else []
    listed += [token for token in truest if token not in listed]
    tokens = []
    for token in listed:
        row = {"token": spelled(opened, token), "id": token, "p": p.get(token, 0.0), "p_tempered": low[token]}
        if not distribution.whole:
            row["p_tempered_high"] = high[token]
        tokens.append({**row, "truth": truth.get(token, 0.0)} if truth is not None else row)
    return {"tokens": tokens, "rest": max(0.0, 1.0 - sum(p.get(token, 0.0) for token in listed))}


def temper(
    distribution: Distribution, sampling: Sampling, vocabulary: int
) -> tuple[dict[int, float], dict[int, float]]:
    """The probability of every listed token as it would be drawn, from the function that answers are drawn with: least
    and greatest, which are equal where the distribution is whole."""
    import torch

    from klype.answers import bounds
    from klype.engine.sampling import shape
    from klype.values import Sampling

    ids = distribution.ids.tolist()
    if not distribution.whole:
        if sampling != Sampling(temperature=sampling.temperature):
            raise UsageError("This model returns only its most probable tokens: use --temperature alone.")
        at = bounds.tempered(distribution, sampling.temperature, vocabulary)
        low, high = (dict(zip(ids, end.tolist(), strict=True)) for end in (at.low_K, at.high_K))
        return low, high
    logits = torch.full((1, vocabulary), float("-inf"))
    logits[0, torch.as_tensor(distribution.ids.copy())] = torch.as_tensor(distribution.logp.copy(), dtype=torch.float32)
    found = dict(enumerate(shape(logits, sampling, None)[0].exp().tolist()))
    return found, found


def spelled(opened: Opened, token: int) -> str:
    """A token's text; a control token's name; bytes that are no character stand as they are."""
    name = opened.control(token)
    return name if name is not None else opened.spell(token).decode("utf-8", "backslashreplace")


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
