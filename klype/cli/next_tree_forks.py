"""``klype next``, ``tree`` and ``forks``: what comes next, all whole answers, and where an answer was decided."""

from collections.abc import Collection
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from klype.cli import options as o
from klype.cli.terminal import Terminal, announce_start, pass_budget, patiently, tell_cost, tell_unread
from klype.durable import write_out
from klype.errors import UsageError
from klype.option import Option
from klype.words import Words, count, figure, number, percent, words

if TYPE_CHECKING:
    from klype.answers.tree import Branch
    from klype.api.prompt_context import PromptContext
    from klype.api.results import AnswerForks, AnswerTree


EIGHTHS = " ▏▎▍▌▋▊▉█"
MIN_SHOWN = 0.0005  # less would be printed as 0.0 %, and is counted among the others


@dataclass(frozen=True, kw_only=True)
class NextOptions(o.PromptOptions):
    """``klype next``, beside how tokens are drawn."""

    top: Annotated[int, Option("How many tokens are shown.", least=1)] = 12


def next_command(terminal: Terminal, sampling: o.Sampling, asked: NextOptions) -> None:
    """Show the distribution of the next token after TEXT; for models of the demo world, beside the truth.

    Nothing is drawn, so --seed changes nothing.
    """
    name, text = o.model_and_text(terminal, "next", asked, "pretrain")  # the base model continues a text
    with announce_start(terminal):
        from klype.api.model import Model
        from klype.api.prompt_context import is_single_turn
        from klype.sources.model_files import is_aligned
        from klype.sources.opening import open_model

        opened = open_model(name, asked.precision, measured=True, device=asked.device)
    document = Model(opened).next(text, asked.top, raw=asked.raw, **asdict(sampling)).to_json()
    if not terminal.as_json:
        next_chart(terminal, document, text, sampling.temperature)
        if "truth" in document["tokens"][0]:
            if not opened.as_raw(asked.raw) and is_aligned(opened.found.folder):
                terminal.say("next.manners")
        elif is_single_turn(opened):
            terminal.say("next.not_said")
    terminal.document(document, asked.out)


def visible(token: str) -> str:
    """A token's text for a table, without surrounding white space; a token of white space alone is shown by signs."""
    shown = "".join(c if c.isprintable() or c.isspace() else c.encode("unicode_escape").decode() for c in token)
    return shown.strip() or shown.replace("\n", "↵").replace("\t", "⇥").replace(" ", "␣") or "∅"


def next_chart(terminal: Terminal, document: dict[str, Any], text: str, temperature: float) -> None:
    """Prints bars on one scale: p, p after temperature and, where it is known, the truth."""
    from rich.text import Text

    console, w, lang = terminal.console, terminal.words, terminal.lang
    named = document["tokens"]
    rows = [row for i, row in enumerate(named) if not i or max(row["p"], row.get("truth", 0.0)) >= MIN_SHOWN]
    rest = document["rest"] + sum(row["p"] for row in named if row not in rows)
    columns = [("p", w("next.p")), ("p_tempered", w("next.tempered", temperature=number(temperature, lang, 1)))]
    columns += [("truth", w("next.truth"))] if "truth" in rows[0] else []
    width = min(console.width, 100)  # longer bars would not be easier to read
    label = min(16, max(len(visible(row["token"])) for row in rows) + 1)
    bar = (width - label) // len(columns) - 8  # a percentage follows each bar
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
    console.print(w("next.rest", share=percent(rest, lang, 1)))


def bar_of(share: float, width: int) -> str:
    """A bar of ``width`` cells, filled to the eighth."""
    eighths = round(max(0.0, min(1.0, share)) * width * 8)
    return ("█" * (eighths // 8) + (EIGHTHS[eighths % 8] if eighths % 8 else "")).ljust(width)


@dataclass(frozen=True, kw_only=True)
class TreeOptions(o.MeaningOptions):
    """``klype tree``, beside how tokens are drawn."""

    until: Annotated[
        str, Option("mode: until the most probable answer is certain; mass: until nearly everything is explored.")
    ] = "mass"
    eps: Annotated[float, Option("With mass: stop when less than this is unexplored.")] = 0.01
    budget: o.Budget = None
    show: Annotated[int, Option("How many answers are drawn.", least=1)] = 12
    out: Annotated[Path | None, Option("Also write this file: .html a page, else JSON.")] = None


def tree_command(terminal: Terminal, sampling: o.Sampling, asked: TreeOptions) -> None:
    """Show the distribution of whole answers to TEXT: what the model would say, how likely, and what it means.

    The intervals are certain, not statistical: what was not explored is in them.

    Nothing is drawn, so --seed changes nothing.
    """
    if not 0 < asked.eps < 1:
        raise UsageError(f"--eps should be between 0 and 1 (it is {asked.eps}).")
    passes, server = pass_budget(asked.budget)
    name, text = o.model_and_text(terminal, "tree", asked)
    with announce_start(terminal):
        model, ask = asked.open_prompt(name, text, server)
    tell_unread(terminal, ask)
    w, out = words(terminal.lang, "examination"), asked.out
    settings = model.tree_settings(ask, sampling, asked.limit, passes, asked.until, asked.eps)
    with patiently(w("tree.growing", passes=settings.budget)):
        found = model.grow(ask, settings)
    document = found.to_json()
    if not terminal.as_json:
        tree_chart(terminal, w, found, ask, asked.show)
    if out is not None and out.suffix.lower() in (".html", ".htm"):
        from klype.examine.examination_report import tree_page

        page = tree_page(found.tree, ask.question.prompt, ask.source.codec.decode, terminal.lang)
        write_out(out, page, UsageError)
        out = None
    tell_cost(model.opened)
    terminal.document(document, out)


def tree_chart(terminal: Terminal, w: Words, found: "AnswerTree", ask: "PromptContext", shown: int) -> None:
    """Prints the answers as a tree, their meanings, and the probability that is unexplored."""
    from rich.text import Text
    from rich.tree import Tree as RichTree

    from klype.answers.tree import branches
    from klype.examine.say import Say

    console, lang, tree = terminal.console, terminal.lang, found.tree

    def hung(branch: "Branch", at: RichTree) -> RichTree:
        said = branch.text.strip() or (w("tree.end") if branch.answer else "·")
        if branch.answer is None:
            at.label = Text.assemble((said, "dim"), (f"  {percent(branch.mass, lang, 1)}", "blue"))
        else:
            mark = {True: " ✓", False: " ✗", None: ""}[ask.right(branch.answer.text) if ask.right else None]
            likely = f"  {interval(branch.answer.low, branch.answer.high, lang)}"
            at.label = Text.assemble(said, (likely, "blue"), mark)
        for child in branch.children:
            hung(child, at.add(""))
        return at

    shown = min(shown, max(1, sum(answer.low >= MIN_SHOWN for answer in tree.answers)))
    console.print(Text(w("tree.title", question=ask.question.prompt), style="bold"))
    console.print(hung(branches(tree, ask.source.codec.decode, shown), RichTree("", guide_style="dim")))
    if len(tree.answers) > shown:
        console.print(w("tree.more", n=count(len(tree.answers) - shown, lang)))
    # the first is shown however improbable it is, as in next_chart and the tree
    clusters = [c for i, c in enumerate(tree.clusters[:8]) if not i or c.low >= MIN_SHOWN]
    if 0 < len(clusters) < len(tree.answers):
        console.print(Text(w("tree.meanings", judge=Say(lang).judge_note(found.to_json())), style="bold"))
        for cluster in clusters:
            said = f" {interval(cluster.low, cluster.high, lang)}  {cluster.text}"
            console.print(Text.assemble((bar_of(cluster.low, 20), "blue"), said))
    left = percent(tree.unexplored, lang, 2)
    console.print(w(f"tree.{tree.stopped}", left=left, passes=count(tree.expansions, lang)))


def interval(low: float, high: float, lang: str) -> str:
    """An interval in percent; one number if both ends are printed alike."""
    ends = [percent(end, lang, 1) for end in (low, high)]
    return ends[0] if ends[0] == ends[1] else f"{ends[0].removesuffix('%').rstrip()}–{ends[1]}"


@dataclass(frozen=True, kw_only=True)
class ForkOptions(o.MeaningOptions):
    """``klype forks``, beside how tokens are drawn."""

    samples: Annotated[int, Option("Continuations drawn at every word.", also="-n")] = 32
    answer: Annotated[str | None, Option("Look at this answer.", shown="one that is drawn")] = None
    budget: o.ServerBudget = ""


def forks_command(terminal: Terminal, sampling: o.Sampling, asked: ForkOptions) -> None:
    """Draw one answer to TEXT and find the word at which its meaning was decided."""
    name, text = o.model_and_text(terminal, "forks", asked)
    with announce_start(terminal):
        model, ask = asked.open_prompt(name, text, asked.budget)
    tell_unread(terminal, ask)
    w = words(terminal.lang, "examination")
    with patiently(w("forks.looking", n=asked.samples)):
        said = None if asked.answer is None else model.answer_tokens(text, asked.answer, asked.raw)
        found = model.find_forks(ask, sampling, (asked.limit, asked.samples, asked.seed), said)
    if not terminal.as_json:
        forks_chart(terminal, w, found, model.opened.stop)
    tell_cost(model.opened)
    terminal.document(found.to_json(), asked.out)


def forks_chart(terminal: Terminal, w: Words, forks: "AnswerForks", stop: Collection[int] = ()) -> None:
    """Prints the answer token by token with the share of its own meaning, the deciding token marked; then the
    alternatives to that token. ``stop``: the tokens that end an answer."""
    from rich.text import Text

    from klype.examine.say import Say
    from klype.judge.meaning import label

    console, lang, found = terminal.console, terminal.lang, forks.found

    def named(token: int, text: str) -> str:
        return w("tree.end") if token in stop else visible(text)

    console.print(Text(w("forks.title", answer=found.text), style="bold"))
    names = ["…", *(named(p.token, text) for text, p in zip(forks.tokens, found.positions, strict=True))]
    width = min(20, max(map(len, names)) + 1)
    for i, name in enumerate(names, -1):
        own = found.before[0] if i < 0 else found.positions[i].own
        word = f"{'▶' if i == found.fork else ' '} {name[: width - 1].ljust(width)}"
        strength = "" if i < 0 else f"   {figure(found.positions[i].strength, lang)}"
        console.print(Text.assemble(word, (f"{bar_of(own, 20)} {percent(own, lang):>5}", "blue"), strength))
    if found.fork is None:
        console.print(w("forks.none", p=number(found.p, lang, 3)))
    else:
        word = named(found.positions[found.fork].token, forks.tokens[found.fork])
        console.print(w("forks.found", word=word, n=found.fork + 1, p=number(found.p, lang, 3)))
        for text, other in zip(forks.others, found.others, strict=True):
            meant = ", ".join(f"{label(m)} {percent(share, lang)}" for m, share in other.meanings[:3])
            name = named(other.token, text)
            console.print(w("forks.other", word=name, p=percent(other.p, lang), meant=meant))
    console.print(w("forks.how", n=found.samples, judge=Say(lang).judge_note(forks.to_json())))
