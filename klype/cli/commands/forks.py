"""``klype forks``: at which word was an answer decided?"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from klype.cli import options as o
from klype.cli.terminal import Terminal, harmless

if TYPE_CHECKING:
    from klype.answers.forks import Forks
    from klype.api.asking import Asking
    from klype.sources.opening import Opened
    from klype.words import Words


def command(
    model: o.Model,
    text: o.Text,
    temperature: o.Temperature = 0.7,
    top_p: o.TopP = 1.0,
    samples: Annotated[int, typer.Option("-n", "--samples", help="Continuations drawn at every word.")] = 32,
    limit: o.Limit = 32,
    answer: Annotated[
        str | None, typer.Option("--answer", help="Look at this answer.", show_default="one that is drawn")
    ] = None,
    raw: o.Raw = None,
    precision: o.Precision = "float32",
    budget: o.ServerBudget = "",
    seed: o.Seed = 0,
    out: o.OutFile = None,
    lang: o.Lang = None,
    as_json: o.Json = False,
) -> None:
    """Draw one answer to TEXT and find the word at which its meaning was decided."""
    terminal = Terminal(as_json, lang)
    from klype.answers.forks import ForkSettings, forks
    from klype.api.asking import asking
    from klype.cli.remote import tell_cost
    from klype.sources.opening import checked_sampling, open_model, room
    from klype.sources.source import answers
    from klype.values import Request
    from klype.words import words

    sampling = checked_sampling(temperature, top_p)
    opened = open_model(model, precision, budget=budget)
    ask = asking(opened, text, raw)
    limit = room(opened, ask.prompt, limit)
    stop = tuple(ask.source.codec.stop)
    if answer is None:
        request = Request(ask.prompt, limit=limit, sampling=sampling, seed=seed, stop=stop)
        trace = answers(ask.source, [request])[0][0]
    else:
        said = opened.say(answer)
        trace = ask.source.score([ask.prompt], [[*said, *stop[:1]][:limit]])[0]
    settings = ForkSettings(sampling, max(limit, len(trace.steps)), samples, seed)
    found = forks(ask.source, trace, settings, ask.meaning, ask.right)
    if not as_json:
        chart(terminal, words(terminal.lang, "examination"), found, ask, opened)
    tell_cost(opened)
    terminal.document(describe(found, opened), out)


def describe(found: Forks, opened: Opened) -> dict[str, Any]:
    """``fork`` is the index of the deciding token, null when chance could have shown as much (``p``)."""
    from klype.cli.commands.next_token import spelled
    from klype.judge.meaning import label

    return {
        "answer": found.text,
        "positions": [
            {
                "token": spelled(opened, p.token),
                "strength": p.strength.json(),
                "variation": p.variation,
                "own": p.own,
                "right": p.right,
            }
            for p in found.positions
        ],
        "fork": found.fork,
        "p": found.p,
        "before": {"own": found.before[0], "right": found.before[1]},
        "lost": found.lost,
        "others": [
            {
                "token": spelled(opened, other.token),
                "p": other.p,
                "meanings": [{"meaning": label(m), "share": share} for m, share in other.meanings[:5]],
            }
            for other in found.others
        ],
        "samples": found.samples,
    }


def chart(terminal: Terminal, w: Words, found: Forks, ask: Asking, opened: Opened) -> None:
    """The answer word by word with the share of its own meaning, the deciding word marked; then what else could be."""
    from rich.text import Text

    from klype.cli.commands.next_token import bar_of, spelled, visible
    from klype.judge.meaning import label
    from klype.words import figure, number, percent

    console, lang = terminal.console, terminal.lang
    console.print(Text(w("forks.title", answer=harmless(found.text)), style="bold"))
    rows = [("", found.before[0], None), *((spelled(opened, p.token), p.own, p.strength) for p in found.positions)]
    width = min(20, max(len(visible(token)) for token, *_ in rows) + 1)
    for i, (token, own, strength) in enumerate(rows, -1):
        name = visible(token)[: width - 1] if token or i >= 0 else "…"
        line = Text(f"{'▶' if i == found.fork else ' '} {name.ljust(width)}")
        line.append(bar_of(own, 20), style="blue")
        line.append(f" {percent(own, lang):>5}", style="blue")
        if strength is not None:
            line.append(f"   {figure(strength, lang)}")
        console.print(line)
    if found.fork is None:
        console.print(w("forks.none", p=number(found.p, lang, 3)), markup=False)
    else:
        word = harmless(visible(spelled(opened, found.positions[found.fork].token)))
        console.print(w("forks.found", word=word, n=found.fork + 1, p=number(found.p, lang, 3)), markup=False)
        for other in found.others:
            meant = ", ".join(f"{harmless(label(m))} {percent(share, lang)}" for m, share in other.meanings[:3])
            name = harmless(visible(spelled(opened, other.token)))
            console.print(w("forks.other", word=name, p=percent(other.p, lang), meant=meant), markup=False)
    console.print(w("forks.how", n=found.samples, judge=ask.judge), markup=False)
