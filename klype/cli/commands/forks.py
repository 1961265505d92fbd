"""``klype forks``: at which word was an answer decided?"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from klype.cli import options as o
from klype.cli.terminal import Terminal
from klype.option import Option

if TYPE_CHECKING:
    from klype.api.asking import Asking
    from klype.api.results import AnswerForks
    from klype.words import Words


def command(
    terminal: Terminal,
    sampling: o.Sampling,
    model: o.AskedModel,
    text: o.Text = None,
    samples: Annotated[int, Option("Continuations drawn at every word.", short="-n")] = 32,
    limit: o.Limit = 32,
    answer: Annotated[str | None, Option("Look at this answer.", shown="one that is drawn")] = None,
    raw: o.Raw = None,
    precision: o.Precision = "float32",
    device: o.Device = "auto",
    budget: o.ServerBudget = "",
    seed: o.Seed = 0,
    out: o.OutFile = None,
) -> None:
    """Draw one answer to TEXT and find the word at which its meaning was decided."""
    model, text = o.asked(model, text)
    from klype.api.asking import asking
    from klype.api.model import load
    from klype.cli.remote import tell_cost
    from klype.words import words

    asked = load(model, precision, budget, device)
    ask = asking(asked.opened, text, raw)
    found = asked.decided(ask, sampling, (limit, samples, seed), answer)
    if not terminal.as_json:
        chart(terminal, words(terminal.lang, "examination"), found, ask)
    tell_cost(asked.opened)
    terminal.document(found.to_json(), out)


def chart(terminal: Terminal, w: Words, forks: AnswerForks, ask: Asking) -> None:
    """The answer word by word with the share of its own meaning, the deciding word marked; then what else could be."""
    from rich.text import Text

    from klype.cli.commands.next_token import bar_of, visible
    from klype.judge.meaning import label
    from klype.words import figure, number, percent

    console, lang, found = terminal.console, terminal.lang, forks.found
    console.print(Text(w("forks.title", answer=found.text), style="bold"))
    rows = [
        ("", found.before[0], None),
        *((token, p.own, p.strength) for token, p in zip(forks.tokens, found.positions, strict=True)),
    ]
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
        word = visible(forks.tokens[found.fork])
        console.print(w("forks.found", word=word, n=found.fork + 1, p=number(found.p, lang, 3)), markup=False)
        for token, other in zip(forks.others, found.others, strict=True):
            meant = ", ".join(f"{label(m)} {percent(share, lang)}" for m, share in other.meanings[:3])
            name = visible(token)
            console.print(w("forks.other", word=name, p=percent(other.p, lang), meant=meant), markup=False)
    console.print(w("forks.how", n=found.samples, judge=ask.judge), markup=False)
