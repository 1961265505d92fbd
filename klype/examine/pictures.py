"""The report's pictures: from the facts of a run to charts whose titles say what was found."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from klype.examine.caution import beyond, changed
from klype.examine.charts import (
    Cell,
    Option,
    Panel,
    Picture,
    axis,
    bars,
    curve_with_band,
    line,
    lines,
    whiskers,
)
from klype.examine.facts import CurveFacts, Facts, FigureFacts, NextFacts, StageName
from klype.examine.say import Say, is_share, visible
from klype.examine.tables import STAGES, by_stage, figure_columns, figure_row
from klype.examine.text_pictures import by_heart, dictionary, text

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
        temperatures(facts, say),
        formula(facts, say),
        survival(facts, say),
        calibration(facts, say),
        text(facts, say),
        dictionary(facts, say),
        by_heart(facts, say),
    ]
    return {picture.id: picture for picture in made if picture is not None}


def curves(facts: Facts, say: Say) -> Picture | None:
    """One panel for each stage of training: its loss, or its reward and leash."""
    panels, rows = [], []
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
    panels, rows = [], []
    for name in ("right", "right_fixed", "well_formed", "right_trained", "polite", "concise", "annotator"):
        found = by_stage(facts, name)
        if not found:
            continue
        shares = is_share(found[0][1], name)
        unit = say("axis.share") if shares else say("axis.points")
        x = axis(unit, percent=shares, min=0, max=1) if shares else axis(unit)
        panels.append(Panel(say.measure(name), _whiskers(found, name, x, say), 210))
        rows += [figure_row(say, say.measure(name), say.stage(stage), figure) for stage, figure in found]
    if not panels:
        return None
    return Picture("stages", _stages_title(facts, say), say("how.stages"), panels, figure_columns(say), rows)


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
    rows = [figure_row(say, say.measure(name), "", figure) for name, figure, _ in figures]
    lines_ = [say("how.reward"), *([say("how.reward_self")] if known else [])]
    lines_ += [say("how.reward_line" if known else "how.reward_line_people")] if "threshold" in found else []
    return Picture("reward", title, " ".join(lines_), [Panel("", drawn, 170)], figure_columns(say), rows)


def truth(facts: Facts, say: Say) -> Picture | None:
    """S and KL to the truth by stage."""
    panels, rows = [], []
    for name in ("s", "kl"):
        found = by_stage(facts, name)
        if not found:
            continue
        x = axis(say(f"axis.{name}"), scale=True) if name == "s" else axis(say("axis.kl"), min=0)
        panels.append(Panel(say.measure(name), _whiskers(found, name, x, say), 210))
        rows += [figure_row(say, say.measure(name), say.stage(stage), figure) for stage, figure in found]
    if not panels:
        return None
    first = {name: found[0][1] for name in ("s", "kl") if (found := by_stage(facts, name))}
    title = (
        say("picture.truth", s=say.share(first["s"]["value"] or 0.0, 1), kl=say.number(first["kl"]["value"] or 0.0, 3))
        if len(first) == 2
        else say("measure.s")
    )
    return Picture("truth", title, say("how.truth"), panels, figure_columns(say), rows)


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


def temperatures(facts: Facts, say: Say) -> Picture | None:
    """Right, S, repetition and diversity against the temperature."""
    found = facts.get("temperatures")
    if not found or len(found["rows"]) < 2:
        return None
    shown = [("right", "aligned", "solid"), ("s", "truth", "dashed"), ("real_words", "aligned", "solid"),
             ("repetition", "bad", "dotted"),
             ("same_text", "finetuned", "solid")]  # fmt: skip
    series: list[Option] = []
    rows: list[list[Cell]] = []
    for name, colour, style in shown:
        figures = [(row["temperature"], row["figures"][name]) for row in found["rows"] if name in row["figures"]]
        figures = [(t, f) for t, f in figures if f["value"] is not None]
        if not figures:
            continue
        drawn = curve_with_band(say.measure(name), figures, colour, showSymbol=True, symbolSize=7)
        drawn[-1]["lineStyle"] = {**drawn[-1]["lineStyle"], "type": style}
        series += drawn
        rows += [figure_row(say, say.measure(name), say.plain(t), f) for t, f in figures]
    if not series:
        return None
    drawn_lines = lines(axis(say("axis.temperature"), min=0), axis(percent=True, min=0, max=1), series)
    drawn_lines["tooltip"]["valueFormatter"] = "fn:percent"
    columns = [say("column.measure"), say("axis.temperature"), *figure_columns(say)[2:]]
    return Picture("temperatures", _temperature_title(facts, say), say("how.temperatures"),
                   [Panel("", drawn_lines, 340)], columns, rows, wide=True)  # fmt: skip


def formula(facts: Facts, say: Say) -> Picture:
    """S^n beside (1 − S)^n; the page's sliders redraw both."""
    s, n = 0.99999, 100
    lengths = range(1, n + 1)
    drawn = lines(
        axis(say("axis.words"), min=1),
        axis(percent=True, min=0, max=1),
        [
            line(say("formula.right"), [(i, s**i) for i in lengths], "truth"),
            line(
                say("formula.article"),
                [(i, (1 - s) ** i) for i in lengths],
                "bad",
                lineStyle={"color": "$bad", "type": "dashed", "width": 2},
            ),
        ],
    )
    drawn["tooltip"]["valueFormatter"] = "fn:percent"
    rows: list[list[Cell]] = [[i, s**i, (1 - s) ** i] for i in (1, 10, 50, 100)]
    columns = [say("axis.words"), say("formula.right"), say("formula.article")]
    return Picture(
        "formula", say("picture.formula"), say("how.formula"), [Panel("", drawn, 320)], columns, rows, wide=True
    )


def survival(facts: Facts, say: Say) -> Picture | None:
    """R_n and K_n beside what errors that depend on the position only would leave, one panel a temperature."""
    panels, rows = [], []
    found = [curve for curve in facts.get("survival", []) if curve["r"]]
    for curve in found:
        named = (("r", curve["r"], "aligned", "solid"), ("k", curve["k"], "truth", "dashed"),
                 ("by_position", curve.get("by_position", []), "muted", "dotted"))  # fmt: skip
        series: list[Option] = []
        for key, told, colour, style in named:
            figures = [(float(f.get("t", i)), f) for i, f in enumerate(told, 1)]
            if not figures:
                continue
            drawn = curve_with_band(say(f"survival.{key}"), figures, colour)
            drawn[-1]["lineStyle"] = {**drawn[-1]["lineStyle"], "type": style}
            series += drawn
            rows += [
                figure_row(say, say(f"survival.{key}"), f"{say.plain(curve['temperature'])}, {int(t)}", f)
                for t, f in figures
            ]
        drawn_lines = lines(axis(say("axis.words"), min=1), axis(percent=True, max=1), series)
        drawn_lines["tooltip"]["valueFormatter"] = "fn:percent"
        panels.append(Panel(say("panel.temperature", t=say.plain(curve["temperature"])), drawn_lines, 300))
    if not panels:
        return None
    title = survival_title(say, {**found[0], "would_survive": found[0]["k"]})
    columns = [say("column.measure"), f"{say('axis.temperature')}, {say('axis.words')}", *figure_columns(say)[2:]]
    return Picture("survival", title, say("how.survival"), panels, columns, rows)


def survival_title(say: Say, curves: Mapping[str, Any], most: int = 1000) -> str:
    """K (``would_survive``) beside what errors that depend on the position only would leave, at the last position
    (``most`` at most) where both are told, and whether they differ; K alone where the latter is not known."""
    k, reference, difference = (curves.get(name) or [] for name in ("would_survive", "by_position", "difference"))
    if all(f["value"] is None for f in reference):
        reference = []
    known = [f["value"] is not None and (not reference or reference[i]["value"] is not None) for i, f in enumerate(k)]
    n = sum(known[:most])
    if not n:
        return say("picture.few_survival")
    if not reference:
        return say("picture.survival_alone", k=say.value(k[n - 1], "survival"), n=n)
    kind = beyond(difference[n - 1], 0.0) if difference else 0
    values = {"k": k[n - 1]["value"], "reference": reference[n - 1]["value"]}
    shown = say.apart(values) if kind else {name: say.share(value) for name, value in values.items()}
    return say(f"picture.survival_{ {1: 'more', 0: 'open', -1: 'less'}[kind] }", n=n, **shown)


def calibration(facts: Facts, say: Say) -> Picture | None:
    """How often what was said to be likely came true."""
    panels, rows = [], []
    found = [c for c in facts.get("calibration", []) if c["bins"]]
    for curve in found:
        figures = [(b["p"], b["observed"]) for b in curve["bins"]]
        series = [
            *curve_with_band(say.stage(curve["stage"]), figures, curve["stage"], showSymbol=True, symbolSize=7),
            line(
                say("calibration.honest"),
                [(0, 0), (1, 1)],
                "muted",
                lineStyle={"color": "$muted", "type": "dashed", "width": 1},
            ),
        ]
        drawn = lines(axis(say("axis.said"), percent=True, min=0, max=1), axis(percent=True, min=0, max=1), series)
        drawn["tooltip"]["valueFormatter"] = "fn:percent"
        panels.append(Panel(say.stage(curve["stage"]), drawn, 300))
        rows += [figure_row(say, say.stage(curve["stage"]), say.share(p), f) for p, f in figures]
    if not panels:
        return None
    title = say("picture.calibration", gap=say.number(found[-1]["error"]["value"] or 0, 3))
    columns = [say("column.model"), say("axis.said"), *figure_columns(say)[2:]]
    how = [say("how.calibration")]
    if facts["stages"].get("aligned") and found[-1]["stage"] == "finetuned":
        how.append(say("how.calibration_finetuned"))
    return Picture("calibration", title, " ".join(how), panels, columns, rows)


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


def _temperature_title(facts: Facts, say: Say) -> str:
    rights = [(row["temperature"], row["figures"].get("right")) for row in facts["temperatures"]["rows"]]
    known = [(t, figure) for t, figure in rights if figure is not None and figure["value"] is not None]
    if len(known) < 2:
        return _written_title(facts, say)
    (t0, right0), (t1, right1) = known[0], known[-1]
    shown = say.apart({"right0": right0["value"], "right1": right1["value"]})
    return say("picture.temperatures_right", t0=say.plain(t0), t1=say.plain(t1), **shown)


def _written_title(facts: Facts, say: Say) -> str:
    """Of free writing: what becomes of its words and its repetition."""
    rows = facts["temperatures"]["rows"]
    ends = [row["figures"] for row in (rows[0], rows[-1])]
    for name in ("real_words", "repetition"):
        if any(name not in figures or figures[name]["value"] is None for figures in ends):
            return say("picture.temperatures")
    names = ("real_words", "repetition")
    shown = [say.apart({f"{name}{i}": f[name]["value"] for i, f in enumerate(ends)}) for name in names]
    return say("picture.temperatures_text", **shown[0], **shown[1])


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


def _whiskers(found: Sequence[tuple[StageName, FigureFacts]], name: str, x: Option, say: Say) -> Option:
    return whiskers([(say.stage(stage), figure, say.figure(figure, name), stage) for stage, figure in found], x)


def _thin(steps: Sequence[int], values: Sequence[float | None]) -> list[list[float | None]]:
    """At most MOST_POINTS means of neighbours: a curve to be looked at, not every step."""
    pairs = [(x, y) for x, y in zip(steps, values, strict=True) if y is not None]
    size = -(-len(pairs) // MOST_POINTS)
    groups = [pairs[i : i + size] for i in range(0, len(pairs), size or 1)]
    return [[group[-1][0], sum(y for _, y in group) / len(group)] for group in groups]
