"""Pictures of a run's training and models, from its facts; their titles state the finding."""

from collections.abc import Mapping, Sequence
from typing import Any

from klype.examine import answer_pictures as answers
from klype.examine import charts
from klype.examine.charts import Cell, Group, Option, Panel, Picture, axis, whisker_panels
from klype.examine.run_facts import STAGES, Facts, FigureFacts, by_stage, figures_of, last_model, side_of, trend
from klype.examine.say import Say, is_share, visible

CURVE_COLOURS = {"loss": "accent", "held_out": "aligned", "reward": "finetuned", "score": "accent", "kl": "bad",
                 "right": "aligned", "polite": "truth"}  # fmt: skip
MAX_POINTS = 240
MIN_SHOWN = 0.0005  # smaller probabilities would be shown as 0.0 %


def pictures(facts: Facts, say: Say) -> dict[str, Picture]:
    """Every picture that the facts allow, by id. Survival curves are renamed as in an examination's document."""
    by_t: dict[float, Any] = {
        curve["temperature"]: {**curve, "survival": curve["r"], "would_survive": curve["k"]}
        for curve in facts.get("survival", [])
        if curve["r"]
    }
    swept = {row["temperature"]: row["figures"] for row in facts.get("temperatures", {}).get("rows", [])}
    told = [c for c in facts.get("calibration", []) if c["bins"]]
    manners = facts["stages"].get("aligned") and told and told[-1]["stage"] == "finetuned"
    made = [
        *(draw(facts, say) for draw in (curves, stages, reward, truth, next_words, text, dictionary, by_heart)),
        answers.temperatures(swept, say),
        answers.formula(say),
        answers.survival(by_t, say, next(iter(by_t), 0.0)),
        answers.calibration([(say.stage(c["stage"]), c["stage"], c["bins"], c["error"]) for c in told], say,
                            say("how.calibration_finetuned") if manners else ""),
    ]  # fmt: skip
    return {picture.id: picture for picture in made if picture is not None}


def curves(facts: Facts, say: Say) -> Picture | None:
    """The curves of each training stage: loss, or reward and KL."""
    panels, rows, told, title = [], list[list[Cell]](), [say("how.curves")], say("picture.curves_plain")
    for curve in facts.get("curves", []):
        stage = say(f"train.{curve['stage']}")
        shown = {name: values for name, values in curve["series"].items() if any(v is not None for v in values)}
        if not shown or not curve["step"]:
            continue
        series, change = [], dict[str, dict[str, str]]()
        for name, values in shown.items():
            known = [(x, y) for x, y in zip(curve["step"], values, strict=True) if y is not None]
            # during training, KL is to the model that alignment started from, not to the truth
            label, points = say.measure("kl_reference" if name == "kl" else name), charts.thin(known, MAX_POINTS)
            ends = {"first": say.number(known[0][1]), "last": say.number(known[-1][1])}
            change[name] = {"name": label.lower(), **ends}
            if (curve["stage"], name) == ("pretrain", "loss") and len(known) > 1:
                title = say("picture.curves", **ends)
            # symbols on curves that were measured only now and then
            more: Option = {"showSymbol": True, "symbolSize": 6} if len(known) < len(values) / 2 else {}
            if name == "kl":
                more["markPoint"] = charts.spikes(points, say)
            series.append(charts.line(label, points, CURVE_COLOURS.get(name, "muted"), **more))
            rows += [[stage, label, x, y] for x, y in points]
        happened = [(one["step"], say.text(one["what"])) for one in curve.get("events", [])]
        series[0]["markLine"] = charts.events(happened)
        told += [say("how.event", step=say.count(step), what=what) for step, what in happened]
        drawn = charts.lines(axis(say("axis.step")), axis(scale="loss" in shown and len(shown) == 1), series)
        main = next((name for name in ("loss", "score", "reward") if name in shown), next(iter(shown)))
        panels.append(Panel(f"{stage} – {say('panel.change', **change[main])}", drawn, 250))
    if not panels:
        return None
    columns = [say("column.stage"), say("column.series"), say("axis.step"), say("column.value")]
    told += [say("how.curves_kl")] if any("kl" in curve["series"] for curve in facts.get("curves", [])) else []
    return Picture("curves", title, " ".join(told), panels, columns, rows)


def stages(facts: Facts, say: Say) -> Picture | None:
    """Correctness, politeness, concision and score of the three models."""
    axes = {}
    for name in ("right", "right_fixed", "well_formed", "right_trained", "polite", "concise", "annotator"):
        shares = any(is_share(figure, name) for _, figure in by_stage(facts, name))
        axes[name] = _from_none_to_all("axis.share", say) if shares else axis(say("axis.points"))
    right, polite, title = dict(by_stage(facts, "right")), dict(by_stage(facts, "polite")), say("picture.stages")
    last = next((stage for stage in reversed(STAGES) if stage in right), None)
    if last == "aligned" and {"finetuned", "aligned"} <= set(polite) and trend(facts, "polite") > 0:
        shown = say.apart({"before": polite["finetuned"]["value"], "after": polite["aligned"]["value"]})
        title = say("picture.stages_aligned", right=say.value(right["aligned"], "right"), **shown)
    elif last is not None:
        title = say("picture.stages_last", model=say.stage(last), right=say.value(right[last], "right"))
    return _by_stage("stages", title, axes, facts, say)


def reward(facts: Facts, say: Say) -> Picture | None:
    """The reward model's pair accuracy, beside the annotator's agreement with itself."""
    found = facts.get("reward")
    if not found or found["pair_accuracy"]["value"] is None:
        return None
    known = found["ceiling"]["value"] is not None
    figures = [(say.measure("pair_accuracy"), found["pair_accuracy"], "accent")]
    how = [say("how.reward")]
    if known:
        figures.append((say.measure("ceiling"), found["ceiling"], "muted"))
        how.append(say("how.reward_self"))
    if "threshold" in found:
        how.append(say("how.reward_line" if known else "how.reward_line_people"))
    shown = say.apart({"accuracy": found["pair_accuracy"]["value"], "ceiling": found["ceiling"]["value"]})
    title = say("picture.reward" if known else "picture.reward_alone", **shown)
    group = say("axis.pairs"), "pair_accuracy", axis(say("axis.pairs"), percent=True, min=0.5, max=1), figures
    panels = whisker_panels([group], "column.model", say, found.get("threshold"))
    return Picture("reward", title, " ".join(how), *panels)


def truth(facts: Facts, say: Say) -> Picture | None:
    """S and KL to the truth by stage."""
    axes = {"s": axis(say("axis.s"), scale=True), "kl": axis(say("axis.kl"), min=0)}
    title, first = say.measure("s"), {name: found[0][1] for name in axes if (found := by_stage(facts, name))}
    if len(first) == 2:
        s, kl = (first[name]["value"] or 0.0 for name in axes)
        title = say("picture.truth", s=say.share(s, 1), kl=say.number(kl, 3))
    return _by_stage("truth", title, axes, facts, say)


def next_words(facts: Facts, say: Say) -> Picture | None:
    """The model's next-word probabilities after some prompts, beside the true ones."""
    prompts = sorted(
        (n for n in facts.get("next", []) if n["tokens"]), key=lambda n: n.get("lang", say.lang) != say.lang
    )
    if not prompts:
        return None
    panels, rows = [], list[list[Cell]]()
    for prompt in prompts:
        # the tokens that are drawn, and all others together, among them those that would be shown as 0.0 %
        told = [t for t in prompt["tokens"][:10] if max(t["p"], t.get("truth", 0.0)) >= MIN_SHOWN]
        names = [name for name in ("p", "truth") if any(name in t for t in told)] or ["p"]
        rest = {name: max(0.0, 1 - sum(t.get(name, 0.0) for t in told)) for name in names}
        told += [{"token": say("panel.rest"), **rest}] if max(rest.values()) >= MIN_SHOWN else []
        looks = {"p": ("column.model", "accent"), "truth": ("column.truth", "ink")}
        series = {say(looks[name][0]): (looks[name][1], [t.get(name, 0.0) for t in told]) for name in names}
        words = [visible(t["token"].strip()) or "␣" for t in told]
        drawn = charts.bars(words, series, axis(say("axis.probability"), percent=True, min=0))
        text = visible(prompt["prompt"])
        panels.append(Panel(say("panel.next", prompt=text), drawn, 70 + 34 * len(told)))
        rows += [[text, visible(t["token"]), t["p"], t.get("truth")] for t in told]
    first = prompts[0]["tokens"][0]
    word = visible(first["token"].strip())
    if "truth" in first:
        title = say("picture.next_truth", word=word, **say.apart({"p": first["p"], "truth": first["truth"]}))
    else:
        title = say("picture.next", word=word, p=say.share(first["p"]))
    how = say("how.next_truth" if any("truth" in t for t in prompts[0]["tokens"]) else "how.next")
    columns = [say("column.beginning"), say("column.word"), say("column.model"), say("column.truth")]
    return Picture("next", title, how, panels, columns, rows)


def text(facts: Facts, say: Say) -> Picture | None:
    """Bits per byte on the user's own text, beside baselines that need no language model."""
    found, models = facts.get("text"), by_stage(facts, "bits_per_byte")
    if not found or not models:
        return None
    peers = {say("text.ngram", n=found.get("ngram_order", 5)): found["ngram"], say("text.xz"): found["xz"]}
    rows: list[tuple[str, FigureFacts, str]] = [(say.stage(stage), figure, stage) for stage, figure in models]
    rows += [(name, FigureFacts(value=value), "muted") for name, value in peers.items()]
    newest = models[-1][1]  # the best of several would be partly luck
    key = {-1: "below", 0: "open", 1: "above"}[side_of(newest, min(peers.values()))]
    shown = {"bits": newest["value"] or 0.0, "ngram": found["ngram"], "xz": found["xz"]}
    title = say(f"picture.text_{key}", **{name: say.number(value) for name, value in shown.items()})
    group = say("axis.bits"), "", axis(say("axis.bits"), min=0), rows
    return Picture("text", title, say("how.text"), *whisker_panels([group], "column.model", say))


def dictionary(facts: Facts, say: Say) -> Picture | None:
    """By kind of question: well-formed answers about held-out words; correct ones about held-out and trained words."""
    across, groups = _from_none_to_all("axis.share", say), list[Group]()
    for side, what, colour in (("held_out", "well_formed", "accent"), ("held_out", "right", "bad"),
                               ("trained", "right", "aligned")):  # fmt: skip
        kinds = [row for row in facts.get("dictionary", []) if side in row]
        rows = [(say(f"words.{row['kind']}"), row[side][what], colour) for row in kinds]
        groups += [(say(f"words.{side}_{what}"), "right", across, rows)] if rows else []
    if not groups:
        return None
    last = figures_of(facts, last_model(facts))
    shown = {name: say.value(last[name], name) for name in ("well_formed", "right_trained") if name in last}
    title = say("picture.dictionary", **shown) if len(shown) == 2 else say("section.words")
    return Picture("dictionary", title, say("how.dictionary"), *whisker_panels(groups, "column.kind", say))


def by_heart(facts: Facts, say: Say) -> Picture | None:
    """How much of what the model writes is copied from the training text, beside how much of held-out text is."""
    found = facts.get("copied")
    if found is None:
        return None
    rows = [
        (say(f"heart.{name}"), found[name], colour)
        for name, colour in (("free", "accent"), ("answers", "aligned"), ("held_out", "muted"))
        if name in found
    ]
    title = say("picture.copied", **say.apart({"free": found["free"]["value"], "own": found["held_out"]["value"]}))
    group = say.measure("copied"), "copied", _from_none_to_all("axis.words_share", say), rows
    how = say("how.copied", t=say.plain(found["temperature"]))
    return Picture("copied", title, how, *whisker_panels([group], "column.what", say))


def _by_stage(name: str, title: str, axes: Mapping[str, Option], facts: Facts, say: Say) -> Picture | None:
    """A panel per measure that has figures, with a figure for each model."""
    groups: Sequence[Group] = [
        (say.measure(measure), measure, across, [(say.stage(stage), figure, stage) for stage, figure in found])
        for measure, across in axes.items()
        if (found := by_stage(facts, measure))
    ]
    if not groups:
        return None
    return Picture(name, title, say(f"how.{name}"), *whisker_panels(groups, "column.model", say))


def _from_none_to_all(name: str, say: Say) -> Option:
    return axis(say(name), percent=True, min=0, max=1)
