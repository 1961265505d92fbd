"""Pictures of answers: how long they stay right, what an error brings, what the temperature changes, how probability
divides. Their titles say what was found. A run's report, an examination's, the article's and the studio show them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from klype.examine.charts import (
    Cell,
    Option,
    Panel,
    Picture,
    Row,
    axis,
    branching,
    canvas,
    curve_with_band,
    figure_table,
    formula_curves,
    line,
    rule,
    sankey,
    shares,
)
from klype.examine.facts import FigureFacts, beyond
from klype.examine.say import Say, visible

Document = Mapping[str, Any]
Curves = Mapping[str, Sequence[FigureFacts]]  # by name (CURVES): a figure a position
BETWEEN = 200  # the width of a word or an answer between two columns of the flow
CURVES = ("survival", "would_survive", "by_position", "difference", "independent")
Temperatures = Mapping[float, Mapping[str, FigureFacts]]  # figures by their names, from the lowest temperature
LINES = (("survival", "r", "aligned", "solid"), ("would_survive", "k", "truth", "dashed"),
         ("by_position", "by_position", "muted", "dotted"))  # fmt: skip
SWEEP = (("right", "aligned", "solid"), ("s", "truth", "dashed"), ("real_words", "aligned", "solid"),
         ("repetition", "bad", "dotted"), ("same_text", "finetuned", "solid"),
         ("same_meaning", "finetuned", "solid"))  # fmt: skip


def pictures(document: Document, say: Say) -> dict[str, Picture]:
    """All that an examination's document allows, by place."""
    main, figures = document["main"], document["figures"]
    by_t = {float(t): {name: document[name].get(t, []) for name in CURVES if name in document}
            for t in document["survival"] if t != "0"}  # fmt: skip
    bins, error = document["calibration"].get(main), figures[main].get("calibration")
    made = [
        survival(by_t, say, float(main), 10),
        survival({float(main): document["documents"]}, say, float(main), 50, "documents")
        if document.get("documents")
        else None,
        feedback(document, say),
        temperatures(dict(sorted((float(t), row) for t, row in figures.items())), say),
        calibration([(document["model"], "accent", bins, error)] if bins and error is not None else [], say),
        selective(document, say),
        tree(document, say),
        flow(document, say),
        cost(document, say),
        formula(say),
    ]
    return {picture.id: picture for picture in made if picture is not None}


def survival(
    found: Mapping[float, Curves], say: Say, main: float, most: int = 1000, name: str = "survival"
) -> Picture | None:
    """R and K beside what errors that depend on the position only would leave, a panel a temperature. The title is of
    the temperature ``main``, at position ``most`` at most; ``documents``: the same of long texts."""
    if not found:
        return None
    panels, rows = [], list[Row]()
    for temperature, curves in found.items():
        series: list[Option] = []
        for key, word, colour, dash in LINES:
            at = [(f.get("t", i), f) for i, f in enumerate(curves.get(key, []), 1)]
            if at:
                series += curve_with_band(say(f"survival.{word}"), at, colour, dash)
            rows += [(say(f"survival.{word}"), f"{say.plain(temperature)}, {t}", f) for t, f in at]
        drawn = shares(axis(say("axis.words"), min=1), series)
        panels.append(Panel(say("panel.temperature", t=say.plain(temperature)), drawn, 300))
    title = _survival_title(found.get(main) or next(iter(found.values())), say, most)
    place = f"{say('axis.temperature')}, {say('axis.words')}"
    how = say("exam.how_documents" if name == "documents" else "how.survival")
    return Picture(name, title, how, panels, *figure_table(say, say("column.measure"), place, rows), name != "survival")


def _survival_title(curves: Curves, say: Say, most: int) -> str:
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
    shown = say.apart(values) if kind else {name: say.share(value or 0.0) for name, value in values.items()}
    return say(f"picture.survival_{ {1: 'more', 0: 'open', -1: 'less'}[kind] }", n=n, **shown)


def temperatures(found: Temperatures, say: Say) -> Picture | None:
    """Right, S, real words, repetition and agreement (by meaning, where it was judged) against the temperature."""
    series: list[Option] = []
    rows: list[Row] = []
    agreement = "same_meaning" if any("same_meaning" in figures for figures in found.values()) else "same_text"
    for name, colour, dash in SWEEP:
        known = [(t, f[name]) for t, f in found.items() if name in f and f[name]["value"] is not None]
        if not known or (name.startswith("same_") and name != agreement):
            continue
        series += curve_with_band(say.measure(name), known, colour, dash, showSymbol=True, symbolSize=7)
        rows += [(say.measure(name), say.plain(t), f) for t, f in known]
    if len(found) < 2 or not series:
        return None
    drawn = shares(axis(say("axis.temperature"), min=0), series)
    table = figure_table(say, say("column.measure"), say("axis.temperature"), rows)
    return Picture("temperatures", _temperatures_title(found, say), say("how.temperatures"), [Panel("", drawn, 340)],
                   *table, wide=True)  # fmt: skip


def _temperatures_title(found: Temperatures, say: Say) -> str:
    """From the lowest to the highest: right answers, else what becomes of words and of repetition."""
    known = [(t, f["right"]["value"]) for t, f in found.items() if "right" in f and f["right"]["value"] is not None]
    if len(known) > 1:
        (t0, right0), (t1, right1) = known[0], known[-1]
        shown = say.apart({"right0": right0, "right1": right1})
        return say("picture.temperatures_right", t0=say.plain(t0), t1=say.plain(t1), **shown)
    ends, written = [*found.values()], ("real_words", "repetition")
    values = {
        name: {f"{name}{i}": f[name]["value"] for i, f in enumerate((ends[0], ends[-1])) if name in f}
        for name in written
    }
    if any(len(pair) < 2 or None in pair.values() for pair in values.values()):
        return say("picture.temperatures")
    shown = {place: text for pair in values.values() for place, text in say.apart(pair).items()}
    return say("picture.temperatures_text", **shown)


def calibration(
    models: Sequence[tuple[str, str, Sequence[Mapping[str, Any]], FigureFacts]], say: Say, more: str = ""
) -> Picture | None:
    """How often what was said to be likely came true, a panel a model: (name, colour, bins, error). The title is of the
    last; ``more``: what is to be known beside."""
    panels, rows = [], list[Row]()
    for name, colour, bins, _ in models:
        figures = [(b["p"], b["observed"]) for b in bins]
        series = [
            *curve_with_band(name, figures, colour, showSymbol=True, symbolSize=7),
            rule(say("calibration.honest"), [(0, 0), (1, 1)]),
        ]
        x = axis(say("axis.said"), percent=True, min=0, max=1)
        panels.append(Panel(visible(name), shares(x, series), 300))
        rows += [(name, say.share(p), f) for p, f in figures]
    if not panels:
        return None
    title = say("picture.calibration", gap=say.number(models[-1][3]["value"] or 0, 3))
    how = f"{say('how.calibration')} {more}".strip()
    return Picture("calibration", title, how, panels, *figure_table(say, say("column.model"), say("axis.said"), rows))


def formula(say: Say) -> Picture:
    """S^n beside (1 − S)^n; the page's sliders redraw both."""
    s, n = 0.99999, 100
    right, printed = ([(i, base**i) for i in range(1, n + 1)] for base in (s, 1 - s))
    curves = [(say("formula.right"), right), (say("formula.article"), printed)]
    drawn = formula_curves(axis(say("axis.words"), min=1), curves)
    rows: list[list[Cell]] = [[i, s**i, (1 - s) ** i] for i in (1, 10, 50, 100)]
    columns = [say("axis.words"), say("formula.right"), say("formula.article")]
    return Picture(
        "formula", say("picture.formula"), say("how.formula"), [Panel("", drawn, 320)], columns, rows, wide=True
    )


def feedback(document: Document, say: Say) -> Picture | None:
    """The difference that a forced error makes, by distance, a curve a temperature: beside a right word as rare, or
    where there are too few of those, beside any."""
    colours = ("aligned", "truth", "finetuned", "bad")
    found = document["after_error"]
    if not found:
        return None
    first = found.get(document["main"]) or next(iter(found.values()))
    beside = "cautious" if _known(first.get("cautious")) else "difference"
    series: list[Option] = []
    rows: list[Row] = []
    for (t, one), colour in zip(found.items(), colours, strict=False):
        name = say("panel.temperature", t=say.plain(float(t)))
        if _known(one.get(beside)):
            series += curve_with_band(name, [(f["distance"], f) for f in one[beside]], colour, showSymbol=True)
        for part in ("cautious", "beside_near", "difference", "ratio", "recovery", "moved"):
            rows += [(say(f"exam.row_{part}"), f"{say.plain(float(t))}, {f['distance']}", f) for f in one.get(part, [])]
    drawn = shares(axis(say("exam.distance"), min=1, minInterval=1), series, scale=False)
    title = say(f"exam.feedback_{beside}", up=say.figure(first[beside][0], "difference"))
    place = f"{say('axis.temperature')}, {say('exam.distance')}"
    table = figure_table(say, say("column.measure"), place, rows)
    return Picture("feedback", title, say("exam.how_feedback"), [Panel("", drawn, 320)], *table, wide=True)


def _known(figures: Sequence[FigureFacts] | None) -> bool:
    return bool(figures) and figures[0]["value"] is not None  # type: ignore[index]


def selective(document: Document, say: Say) -> Picture | None:
    """Of the answers that the model is surest of, how many are wrong? At the main temperature."""
    curve = document["selective"].get(document["main"])
    ratio = document["figures"][document["main"]].get("selective")
    if not curve or ratio is None:
        return None
    whole = curve[-1]["wrong"]
    half = min(curve, key=lambda row: abs(row["kept"] - 0.5))
    series = [
        line(document["model"], [(row["kept"], row["wrong"]) for row in curve], "accent"),
        rule(say("exam.at_random"), [(0, whole), (1, whole)]),
    ]
    drawn = shares(axis(say("exam.kept"), percent=True, min=0, max=1), series, min=0)
    title = say("exam.selective", **say.apart({"all": whole, "half": half["wrong"]}))
    rows: list[Row] = [(say("exam.wrong"), say.share(row["kept"]), FigureFacts(value=row["wrong"])) for row in curve]
    rows.append((say.measure("selective"), "", ratio))
    table = figure_table(say, say("column.measure"), say("exam.kept"), rows)
    return Picture("selective", title, say("exam.how_selective"), [Panel("", drawn, 300)], *table)


def flow(document: Document, say: Say) -> Picture | None:
    """How the probability of the first tree flows from the question through words and answers into meanings."""
    one = next((tree for tree in document["trees"] if tree["answers"]), None)  # within the limit there may be none
    if one is None:
        return None
    nodes: list[Option] = []
    links: list[Option] = []
    rows: list[Row] = []
    _flow(one["branches"], "q", say, (nodes, links))
    meanings: dict[str, float] = {}
    for leaf in _ends(one["branches"]):
        meanings[leaf["meaning"]] = meanings.get(leaf["meaning"], 0.0) + leaf["mass"]
    for text, mass in meanings.items():
        nodes.append(_flow_node(f"m {text}", f"{visible(text)}  {say.share(mass, 1)}", "truth"))
        rows.append((visible(text), visible(one["question"]), FigureFacts(value=mass)))
    others = 1.0 - one["branches"]["mass"]
    if others > 0.0005:
        nodes.append(_flow_node("others", f"{say('exam.others')}  {say.share(others, 1)}", "muted"))
        links.append({"source": "q", "target": "others", "value": others})
        rows.append((say("exam.others"), visible(one["question"]), FigureFacts(value=others)))
    ends = [node["label"] for node in nodes if node["itemStyle"]["color"] != "$accent"]
    room = _room([label["formatter"] for label in ends])
    for label in ends:
        label["width"] = room - 8
    series = sankey(
        nodes, links, left=12, right=room, nodeGap=12, emphasis={"disabled": True},
        lineStyle={"color": "source", "opacity": 0.25}, label={"width": BETWEEN, "overflow": "truncate"},
    )  # fmt: skip
    drawn = canvas(series=[series], tooltip={"show": False})
    height = 60 + 34 * max(len(_ends(one["branches"])) + 1, len(meanings) + 1)
    title = say("exam.flow", n=len(meanings), answers=len(_ends(one["branches"])))
    panel = Panel(_short(one["question"]), drawn, height)
    table = figure_table(say, say("exam.answer"), say("exam.question"), rows)
    return Picture("flow", title, say("exam.how_flow"), [panel], *table, wide=True)


def _flow(branch: Document, name: str, say: Say, found: tuple[list[Option], list[Option]]) -> None:
    """This branch's node, and the links that leave it."""
    nodes, links = found
    text = visible(branch["text"].strip()) or ("∅" if not branch["children"] else "…")
    nodes.append(_flow_node(name, text, "accent"))
    for place, child in enumerate(branch["children"]):
        links.append({"source": name, "target": f"{name} {place}", "value": child["mass"]})
        _flow(child, f"{name} {place}", say, found)
    if not branch["children"]:
        links.append({"source": name, "target": f"m {branch['meaning']}", "value": branch["mass"]})


def _flow_node(name: str, text: str, colour: str) -> Option:
    return {"name": name, "label": {"formatter": text}, "itemStyle": {"color": f"${colour}"}}


def _ends(branch: Document) -> list[Document]:
    """The leaves of a branch, which is one itself where it has no children."""
    return [end for child in branch.get("children") or () for end in _ends(child)] or [branch]


def tree(document: Document, say: Say) -> Picture | None:
    """The likeliest whole answers to some questions, as branching trees."""
    panels = []
    rows: list[Row] = []
    for one in document["trees"]:
        root = one["branches"]
        panels.append(_tree(_short(one["question"]), root, say))
        rows += [
            (visible(one["question"]), visible(a["text"]), FigureFacts(value=a["low"], low=a["low"], high=a["high"]))
            for a in one["answers"]
        ]
    if not panels:
        return None
    left = max(one["unexplored"] for one in document["trees"])
    title = say("exam.tree", left=say.share(left, 1))
    table = figure_table(say, say("exam.question"), say("exam.answer"), rows)
    return Picture("tree", title, say("exam.how_tree"), panels, *table, wide=True)


def cost(document: Document, say: Say) -> Picture | None:
    """Operations for one right answer, by temperature."""
    rows: list[Row] = []
    points = []
    for t, figures in document["figures"].items():
        flops, right = figures.get("flops", {}).get("value"), figures.get("right", {}).get("value")
        if flops is None or not right:
            continue
        points.append((say.plain(float(t)), flops / right / 1e6))
        rows.append((say("exam.flops_right"), say.plain(float(t)), FigureFacts(value=flops / right)))
    if not points:
        return None
    y = axis(kind="category", data=[t for t, _ in points], inverse=True)
    bars: Option = {"type": "bar", "data": [v for _, v in points], "barMaxWidth": 16, "itemStyle": {"color": "$accent"}}
    drawn = canvas(xAxis=axis(say("exam.mflops"), min=0), yAxis=y, series=[bars])
    main = say.plain(float(document["main"]))
    t, flops = next((row for row in points if row[0] == main), points[0])
    title = say("exam.cost", t=t, flops=say.number(flops, 1))
    table = figure_table(say, say("column.measure"), say("axis.temperature"), rows)
    return Picture("cost", title, say("exam.how_cost"), [Panel("", drawn, 70 + 34 * len(points))], *table)


def _tree(title: str, root: Document, say: Say) -> Panel:
    """No label meets another: those on the way stand above their node and are no wider than from one node to the next
    (the root's, which begins at its node, half of that), and all ends stand in one column, a row each."""
    drawn = _level(_node(root, say))
    ends = [end["name"] for end in _ends(drawn)]
    room, step = _room(ends), min(220, max(64, *(16 + 7 * len(name) for name in (*_names(drawn), ""))))
    drawn["label"] = {"position": "top", "align": "left", "width": step // 2 - 8, "overflow": "truncate"}
    accent = {"color": "$accent", "borderColor": "$accent"}
    series = branching(
        drawn, left=12, right=room, symbolSize=7, itemStyle=accent, lineStyle={"color": "$muted"},
        leaves={"width": room - 12, "overflow": "truncate"},
    )  # fmt: skip
    series["label"] |= {"width": step - 8, "overflow": "truncate"}
    option = canvas(series=[series], tooltip={"show": False})
    return Panel(title, option, 60 + 30 * len(ends), 12 + step * _depth(drawn) + room)


def _level(node: Option, depth: int | None = None) -> Option:
    """With its ends equally deep, by nodes that nothing is seen of."""
    depth = _depth(node) if depth is None else depth
    if not depth:
        return node
    below = node["children"] if node.get("children") else [{key: node[key] for key in ("name", "value")}]
    unseen = {} if node.get("children") else {"name": "", "symbolSize": 0}
    return {**node, **unseen, "children": [_level(child, depth - 1) for child in below]}


def _names(node: Option) -> Iterator[str]:
    """Of the nodes on the way."""
    if node.get("children"):
        yield node["name"]
        for child in node["children"]:
            yield from _names(child)


def _depth(node: Option) -> int:
    return max((1 + _depth(child) for child in node.get("children", ())), default=0)


def _node(branch: Document, say: Say) -> Option:
    share = say.share(branch["mass"], 1)
    text = visible(branch["text"].strip()) or ("∅" if not branch["children"] else "…")
    found: Option = {"name": f"{text}  {share}", "value": branch["mass"]}
    if branch["children"]:
        found["children"] = [_node(child, say) for child in branch["children"]]
    return found


def _room(texts: Sequence[str]) -> int:
    """Pixels beside the last nodes that their texts need, within reason."""
    return min(340, max(90, 20 + 7 * max(map(len, texts), default=0)))


def _short(question: str, most: int = 160) -> str:
    """A question's end, from a word on; the story before it stands in the table."""
    text = visible(" ".join(question.split()))
    return text if len(text) <= most else "… " + text[-most:].partition(" ")[2]
