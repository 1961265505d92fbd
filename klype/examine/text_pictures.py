"""Pictures of runs about text: bits per byte, words of a dictionary, and what was learnt by heart."""

from __future__ import annotations

from klype.examine.caution import beyond, figures_of, last_model
from klype.examine.charts import Panel, Picture, axis, whiskers
from klype.examine.facts import Facts, FigureFacts
from klype.examine.say import Say
from klype.examine.tables import by_stage, figure_columns, figure_row


def text(facts: Facts, say: Say) -> Picture | None:
    """Own text: bits per byte beside what needs no language model."""
    found, models = facts.get("text"), by_stage(facts, "bits_per_byte")
    if not found or not models:
        return None
    order = found.get("ngram_order", 5)
    peers = [(say("text.ngram", n=order), found["ngram"]), (say("text.xz"), found["xz"])]
    rows: list[tuple[str, FigureFacts, str, str]] = [(say.stage(s), f, say.figure(f), s) for s, f in models]
    rows += [(name, FigureFacts(value=value), say.number(value), "muted") for name, value in peers]
    newest = models[-1][1]  # the least of several would be partly luck
    key = {-1: "below", 0: "open", 1: "above"}[beyond(newest, min(found["ngram"], found["xz"]))]
    table = [figure_row(say, say.stage(s), "", f) for s, f in models]
    table += [[name, "", value, None, None, None, ""] for name, value in peers]
    bits, ngram, xz = say.number(newest["value"] or 0.0), say.number(found["ngram"]), say.number(found["xz"])
    title = say(f"picture.text_{key}", bits=bits, ngram=ngram, xz=xz)
    drawn = whiskers(rows, axis(say("axis.bits"), min=0))
    return Picture("text", title, say("how.text"), [Panel("", drawn, 60 + 48 * len(rows))], figure_columns(say), table)


def dictionary(facts: Facts, say: Say) -> Picture | None:
    """By kind of question: held-out words well-formed, and right in the dictionary's words of both sides."""
    panels, rows = [], []
    for side, what, colour in (("held_out", "well_formed", "accent"), ("held_out", "right", "bad"),
                               ("trained", "right", "aligned")):  # fmt: skip
        found = [(row["kind"], row[side][what]) for row in facts.get("dictionary", []) if side in row]  # type: ignore[literal-required]
        if not found:
            continue
        name = say(f"words.{side}_{what}")
        drawn = whiskers(
            [(say(f"words.{kind}"), f, say.figure(f, "right"), colour) for kind, f in found],
            axis(say("axis.share"), percent=True, min=0, max=1),
        )
        panels.append(Panel(name, drawn, 60 + 44 * len(found)))
        rows += [figure_row(say, name, say(f"words.{kind}"), figure) for kind, figure in found]
    if not panels:
        return None
    columns = [say("column.measure"), say("column.kind"), *figure_columns(say)[2:]]
    last = figures_of(facts, last_model(facts))
    shown = {name: say.value(last[name], name) for name in ("well_formed", "right_trained") if name in last}
    title = say("picture.dictionary", **shown) if len(shown) == 2 else say("section.words")
    return Picture("dictionary", title, say("how.dictionary"), panels, columns, rows)


def by_heart(facts: Facts, say: Say) -> Picture | None:
    """What stands word for word in the training text, beside how much of unread text does."""
    found = facts.get("copied")
    if found is None:
        return None
    named = [("free", "accent"), ("answers", "aligned"), ("held_out", "muted")]
    figures = [(say(f"heart.{n}"), found[n], colour) for n, colour in named if n in found]  # type: ignore[literal-required]
    drawn = whiskers(
        [(name, figure, say.figure(figure, "copied"), colour) for name, figure, colour in figures],
        axis(say("axis.words_share"), percent=True, min=0, max=1),
    )
    title = say("picture.copied", **say.apart({"free": found["free"]["value"], "own": found["held_out"]["value"]}))
    rows = [figure_row(say, say.measure("copied"), name, figure) for name, figure, _ in figures]
    how = say("how.copied", t=say.plain(found["temperature"]))
    columns = [say("column.measure"), say("column.what"), *figure_columns(say)[2:]]
    return Picture("copied", title, how, [Panel("", drawn, 60 + 48 * len(figures))], columns, rows)
