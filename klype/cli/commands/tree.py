"""``klype tree``: the most probable whole answers, each with a certain interval, and what is unexplored."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from klype.cli import options as o
from klype.cli.terminal import Terminal, write
from klype.errors import UsageError
from klype.option import Option

if TYPE_CHECKING:
    from rich.tree import Tree as RichTree

    from klype.answers.tree import Branch, Tree
    from klype.api.asking import Asking
    from klype.words import Words


def command(
    terminal: Terminal,
    sampling: o.Sampling,
    model: o.AskedModel,
    text: o.Text = None,
    until: Annotated[str, Option("mode: the likeliest answer is certain; mass: nearly all is explored.")] = "mass",
    eps: Annotated[float, Option("With mass: stop when less than this is unexplored.")] = 0.01,
    budget: o.Budget = None,
    limit: o.Limit = 32,
    shown: Annotated[int, Option("How many answers are drawn.", "--show", least=1)] = 12,
    sample: Annotated[int, Option("Also draw so many, none twice.", least=0)] = 0,
    raw: o.Raw = None,
    precision: o.Precision = "float32",
    device: o.Device = "auto",
    seed: o.Seed = 0,
    out: Annotated[Path | None, Option("Also write this file: .html a page, else JSON.")] = None,
) -> None:
    """Show the distribution of whole answers to TEXT: what the model would say, how likely, and what it means.

    The intervals are certain, not statistical: what was not explored is in them. --seed is for --sample only.
    """
    model, text = o.asked(model, text)
    from klype.answers.gumbel import without_replacement
    from klype.api.asking import asking
    from klype.api.model import load
    from klype.cli.remote import split_budget, tell_cost
    from klype.words import words

    if not 0 < eps < 1:
        raise UsageError(f"--eps should be between 0 and 1 (it is {eps}).")
    passes, asked = split_budget(budget)
    opened = load(model, precision, asked, device)
    ask = asking(opened.opened, text, raw)
    settings = opened.tree_settings(ask, sampling, limit, passes, until, eps)
    found = opened.grow(ask, settings)
    document = found.to_json()
    if sample:
        drawn = without_replacement(ask.source, ask.prompt, sample, settings, seed)
        document["sampled"] = {
            "answers": [{"text": ask.source.codec.decode(a.tokens), "p": a.p} for a in drawn.answers],
            "unseen": drawn.unseen,
        }
    if not terminal.as_json:
        chart(terminal, words(terminal.lang, "examination"), found.tree, ask, shown)
    if out is not None and out.suffix.lower() in (".html", ".htm"):
        from klype.examine.examination_report import tree_page

        write(out, tree_page(found.tree, ask.question.prompt, ask.source.codec.decode, terminal.lang))
        out = None
    tell_cost(opened.opened)
    terminal.document(document, out)


def chart(terminal: Terminal, w: Words, tree: Tree, ask: Asking, shown: int) -> None:
    """The branching tree, the meanings, and what is left."""
    from rich.text import Text
    from rich.tree import Tree as RichTree

    from klype.answers.tree import branches
    from klype.cli.commands.next_token import bar_of
    from klype.words import count, percent

    console, lang = terminal.console, terminal.lang
    console.print(Text(w("tree.title", question=ask.question.prompt), style="bold"))
    root = branches(tree, ask.source.codec.decode, shown)
    drawn = RichTree(_label(root, ask, lang, w), guide_style="dim")
    _hang(drawn, root, ask, lang, w)
    console.print(drawn)
    if len(tree.answers) > shown:
        console.print(w("tree.more", n=count(len(tree.answers) - shown, lang)), markup=False)
    clusters = tree.clusters[:8]
    if 0 < len(clusters) < len(tree.answers):
        console.print(Text(w("tree.meanings", judge=ask.judge), style="bold"))
        for cluster in clusters:
            line = Text(bar_of(cluster.low, 20), style="blue")
            line.append(f" {interval(cluster.low, cluster.high, lang)}  {cluster.text}", style="default")
            console.print(line)
    left = percent(tree.unexplored, lang, 2)
    console.print(w(f"tree.{tree.stopped}", left=left, passes=count(tree.expansions, lang)), markup=False)


def interval(low: float, high: float, lang: str) -> str:
    """A certain interval in percent; one number when both ends read alike."""
    from klype.words import percent

    ends = [percent(end, lang, 1) for end in (low, high)]
    return ends[0] if ends[0] == ends[1] else f"{ends[0].removesuffix('%').rstrip()}–{ends[1]}"


def _hang(drawn: RichTree, branch: Branch, ask: Asking, lang: str, w: Words) -> None:
    for child in branch.children:
        _hang(drawn.add(_label(child, ask, lang, w)), child, ask, lang, w)


def _label(branch: Branch, ask: Asking, lang: str, w: Words) -> Any:
    from rich.text import Text

    from klype.words import percent

    said = branch.text.strip() or (w("tree.end") if branch.answer else "·")
    if branch.answer is None:
        return Text.assemble((said, "dim"), (f"  {percent(branch.mass, lang, 1)}", "blue"))
    right = ask.right(branch.answer.text) if ask.right else None
    mark = {True: " ✓", False: " ✗", None: ""}[right]
    return Text.assemble(said, (f"  {interval(branch.answer.low, branch.answer.high, lang)}", "blue"), mark)
