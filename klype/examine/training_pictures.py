"""Pictures of what training made of a model, from the facts of a run; their titles say what was found."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from klype.examine import answer_pictures as answers
from klype.examine.charts import (
    Cell,
    Option,
    Panel,
    Picture,
    Row,
    axis,
    bars,
    figure_table,
    line,
    lines,
    thin,
    whiskers,
)
from klype.examine.facts import (
    STAGES,
    CurveFacts,
    Facts,
    FigureFacts,
    NextFacts,
    beyond,
    by_stage,
    changed,
    figures_of,
    last_model,
)
from klype.examine.say import Say, is_share, visible

CURVE_COLOURS = {"loss": "accent", "held_out": "aligned", "reward": "finetuned", "score": "accent", "kl": "bad",
                 "right": "aligned", "polite": "truth"}  # fmt: skip
MOST_POINTS = 240


def pictures(facts: Facts, say: Say) -> dict[str, Picture]:
    """Every picture that the facts allow, by its place in the page."""
    made = [
        curves(facts, say),
        stages(facts, say),
        reward(facts, say),
        truth(facts, say),
        next_words(facts, say),
        *of_answers(facts, say),
        text(facts, say),
        dictionary(facts, say),
        by_heart(facts, say),
    ]
    return {picture.id: picture for picture in made if picture is not None}


def of_answers(facts: Facts, say: Say) -> list[Picture | None]:
    """Those of answers, in the form in which an examination has its figures."""
    by_t: dict[float, Any] = {
        curve["temperature"]: {**curve, "survival": curve["r"], "would_survive": curve["k"]}
        for curve in facts.get("survival", [])
        if curve["r"]
    }
    swept = {row["temperature"]: row["figures"] for row in facts.get("temperatures", {}).get("rows", [])}
    told = [c for c in facts.get("calibration", []) if c["bins"]]
    manners = facts["stages"].get("aligned") and told and told[-1]["stage"] == "finetuned"
    return [
        answers.temperatures(swept, say),
        answers.formula(say),
        answers.survival(by_t, say, next(iter(by_t), 0.0)),
        answers.calibration([(say.stage(c["stage"]), c["stage"], c["bins"], c["error"]) for c in told], say,
                            say("how.calibration_finetuned") if manners else ""),
    ]  # fmt: skip


def curves(facts: Facts, say: Say) -> Picture | None:
    """One panel for each stage of training: its loss, or its reward and leash."""
    panels, rows = [], list[list[Cell]]()
    for curve in facts.get("curves", []):
        shown = {name: values for name, values in curve["series"].items() if any(v is not None for v in values)}
        if not shown or not curve["step"]:
            continue
        series = [
            line(
                _series_name(name, say),
                _thin(curve["step"], values),
                CURVE_COLOURS.get(name, "muted"),
                **_sparse(values),
            )
            for name, values in shown.items()
        ]
        drawn = lines(axis(say("axis.step")), axis(scale="loss" in shown and len(shown) == 1), series)
        panels.append(Panel(f"{say('train.' + curve['stage'])} – {_change(curve, say)}", drawn, 250))
        rows += [
            [say("train." + curve["stage"]), _series_name(n, say), x, y]
            for n, v in shown.items()
            for x, y in _thin(curve["step"], v)
        ]
    if not panels:
        return None
    columns = [say("column.stage"), say("column.series"), say("axis.step"), say("column.value")]
    return Picture("curves", _curves_title(facts, say), say("how.curves"), panels, columns, rows)


def stages(facts: Facts, say: Say) -> Picture | None:
    """Right, polite, concise and the annotator's score of the three models."""

    def across(name: str, figure: FigureFacts) -> Option:
        if is_share(figure, name):
            return axis(say("axis.share"), percent=True, min=0, max=1)
        return axis(say("axis.points"))

    names = ("right", "right_fixed", "well_formed", "right_trained", "polite", "concise", "annotator")
    panels, rows = _panels(facts, names, across, say)
    if not panels:
        return None
    table = figure_table(say, say("column.measure"), say("column.model"), rows)
    return Picture("stages", _stages_title(facts, say), say("how.stages"), panels, *table)


def reward(facts: Facts, say: Say) -> Picture | None:
    """How often the reward model prefers the answer that the ranker prefers."""
    found = facts.get("reward")
    if not found or found["pair_accuracy"]["value"] is None:
        return None
    known = found["ceiling"]["value"] is not None
    figures = [("pair_accuracy", found["pair_accuracy"], "accent")]
    figures += [("ceiling", found["ceiling"], "muted")] if known else []
    drawn = whiskers(
        [(say.measure(name), figure, say.figure(figure, name), colour) for name, figure, colour in figures],
        axis(say("axis.pairs"), percent=True, min=0.5, max=1),
        found.get("threshold"),
    )
    shown = say.apart({"accuracy": found["pair_accuracy"]["value"], "ceiling": found["ceiling"]["value"]})
    title = say("picture.reward" if known else "picture.reward_alone", **shown)
    table = figure_table(
        say, say("column.measure"), say("column.model"), [(say.measure(n), "", f) for n, f, _ in figures]
    )
    lines_ = [say("how.reward"), *([say("how.reward_self")] if known else [])]
    lines_ += [say("how.reward_line" if known else "how.reward_line_people")] if "threshold" in found else []
    return Picture("reward", title, " ".join(lines_), [Panel("", drawn, 170)], *table)


def truth(facts: Facts, say: Say) -> Picture | None:
    """S and KL to the truth by stage."""
    axes = {"s": axis(say("axis.s"), scale=True), "kl": axis(say("axis.kl"), min=0)}
    panels, rows = _panels(facts, tuple(axes), lambda name, _: axes[name], say)
    if not panels:
        return None
    first = {name: found[0][1] for name in ("s", "kl") if (found := by_stage(facts, name))}
    title = (
        say("picture.truth", s=say.share(first["s"]["value"] or 0.0, 1), kl=say.number(first["kl"]["value"] or 0.0, 3))
        if len(first) == 2
        else say.measure("s")
    )
    table = figure_table(say, say("column.measure"), say("column.model"), rows)
    return Picture("truth", title, say("how.truth"), panels, *table)


def next_words(facts: Facts, say: Say) -> Picture | None:
    """The next word after some beginnings: what the model says beside the truth."""
    prompts = [n for n in facts.get("next", []) if n["tokens"]]
    if not prompts:
        return None
    ordered = sorted(prompts, key=lambda n: n.get("lang", say.lang) != say.lang)
    rows: list[list[Cell]] = [
        [visible(n["prompt"]), visible(t["token"]), t["p"], t.get("truth")] for n in ordered for t in n["tokens"]
    ]
    columns = [say("column.beginning"), say("column.word"), say("column.model"), say("column.truth")]
    known = any("truth" in t for t in ordered[0]["tokens"])
    how = say("how.next_truth") if known else say("how.next")
    return Picture("next", _next_title(ordered[0], say), how, [_next_panel(n, say) for n in ordered], columns, rows)


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
    table = figure_table(
        say, say("column.model"), say("column.measure"), [(n, say("axis.bits"), f) for n, f, *_ in rows]
    )
    bits, ngram, xz = say.number(newest["value"] or 0.0), say.number(found["ngram"]), say.number(found["xz"])
    title = say(f"picture.text_{key}", bits=bits, ngram=ngram, xz=xz)
    drawn = whiskers(rows, axis(say("axis.bits"), min=0))
    return Picture("text", title, say("how.text"), [Panel("", drawn, 60 + 48 * len(rows))], *table)


def dictionary(facts: Facts, say: Say) -> Picture | None:
    """By kind of question: held-out words well-formed, and right in the dictionary's words of both sides."""
    panels, rows = [], list[Row]()
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
        rows += [(name, say(f"words.{kind}"), figure) for kind, figure in found]
    if not panels:
        return None
    table = figure_table(say, say("column.measure"), say("column.kind"), rows)
    last = figures_of(facts, last_model(facts))
    shown = {name: say.value(last[name], name) for name in ("well_formed", "right_trained") if name in last}
    title = say("picture.dictionary", **shown) if len(shown) == 2 else say("section.words")
    return Picture("dictionary", title, say("how.dictionary"), panels, *table)


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
    rows = [(say.measure("copied"), name, figure) for name, figure, _ in figures]
    table = figure_table(say, say("column.measure"), say("column.what"), rows)
    how = say("how.copied", t=say.plain(found["temperature"]))
    return Picture("copied", title, how, [Panel("", drawn, 60 + 48 * len(figures))], *table)


def _next_panel(prompt: NextFacts, say: Say) -> Panel:
    tokens = prompt["tokens"][:10]
    series: dict[str, tuple[str, Sequence[float]]] = {say("column.model"): ("accent", [t["p"] for t in tokens])}
    if any("truth" in t for t in tokens):
        series[say("column.truth")] = ("ink", [t.get("truth", 0.0) for t in tokens])
    drawn = bars(
        [visible(t["token"].strip()) or "␣" for t in tokens], series, axis(say("axis.probability"), percent=True, min=0)
    )
    return Panel(say("panel.next", prompt=visible(prompt["prompt"])), drawn, 70 + 34 * len(tokens))


def _next_title(prompt: NextFacts, say: Say) -> str:
    first = prompt["tokens"][0]
    word = visible(first["token"].strip())
    if "truth" in first:
        return say("picture.next_truth", word=word, **say.apart({"p": first["p"], "truth": first["truth"]}))
    return say("picture.next", word=word, p=say.share(first["p"]))


def _stages_title(facts: Facts, say: Say) -> str:
    right, polite = dict(by_stage(facts, "right")), dict(by_stage(facts, "polite"))
    last = next((s for s in reversed(STAGES) if s in right), None)
    if last == "aligned" and {"finetuned", "aligned"} <= set(polite) and changed(facts, "polite") > 0:
        shown = say.apart({"before": polite["finetuned"]["value"], "after": polite["aligned"]["value"]})
        return say("picture.stages_aligned", right=say.value(right["aligned"], "right"), **shown)
    if last is None:
        return say("picture.stages")
    return say("picture.stages_last", model=say.stage(last), right=say.value(right[last], "right"))


def _curves_title(facts: Facts, say: Say) -> str:
    losses = [c["series"].get("loss", []) for c in facts.get("curves", []) if c["stage"] == "pretrain"]
    known = [v for v in (losses[0] if losses else []) if v is not None]
    if len(known) < 2:
        return say("picture.curves_plain")
    return say("picture.curves", first=say.number(known[0]), last=say.number(known[-1]))


def _series_name(name: str, say: Say) -> str:
    """During training, KL is to where alignment began, not to the truth."""
    return say.measure("kl_reference" if name == "kl" else name)


def _sparse(values: Sequence[float | None]) -> Option:
    """Marks on a series that was measured now and then."""
    few = sum(v is not None for v in values) < len(values) / 2
    return {"showSymbol": True, "symbolSize": 6} if few else {}


def _change(curve: CurveFacts, say: Say) -> str:
    name = next((n for n in ("loss", "score", "reward") if n in curve["series"]), next(iter(curve["series"])))
    values = [v for v in curve["series"][name] if v is not None]
    return say(
        "panel.change", name=_series_name(name, say).lower(), first=say.number(values[0]), last=say.number(values[-1])
    )


def _panels(
    facts: Facts, names: Sequence[str], across: Callable[[str, FigureFacts], Option], say: Say
) -> tuple[list[Panel], list[Row]]:
    """A panel a measure, a whisker a stage; the rows of the table below. ``across``: the axis of a measure."""
    panels, rows = [], list[Row]()
    for name in names:
        if found := by_stage(facts, name):
            drawn = [(say.stage(stage), figure, say.figure(figure, name), stage) for stage, figure in found]
            panels.append(Panel(say.measure(name), whiskers(drawn, across(name, found[0][1])), 210))
            rows += [(say.measure(name), say.stage(stage), figure) for stage, figure in found]
    return panels, rows


def _thin(steps: Sequence[int], values: Sequence[float | None]) -> list[list[float]]:
    """At most MOST_POINTS means of neighbours: a curve to be looked at, not every step."""
    return thin([(x, y) for x, y in zip(steps, values, strict=True) if y is not None], MOST_POINTS)
