"""The pictures of an examination: from its document to charts whose titles say what was found."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from klype.examine.charts import Cell, Option, Panel, Picture, axis, canvas, curve_with_band, line, lines
from klype.examine.document import CURVES
from klype.examine.facts import FigureFacts
from klype.examine.pictures import formula, survival_title
from klype.examine.say import Say, visible

Document = Mapping[str, Any]
Row = tuple[str, str, FigureFacts]
LINES = (("survival", "r", "aligned", "solid"), ("would_survive", "k", "truth", "dashed"),
         ("by_position", "by_position", "muted", "dotted"))  # fmt: skip
WIDE = frozenset(["feedback", "documents", "temperatures", "tree", "flow"])
SWEEP = (("right", "aligned", "solid"), ("s", "truth", "dashed"), ("repetition", "bad", "dotted"),
         ("same_meaning", "finetuned", "solid"))  # fmt: skip


def pictures(document: Document, say: Say) -> dict[str, Picture]:
    """All that the document allows, by place."""
    made = [
        survival(document, say),
        documents(document, say),
        feedback(document, say),
        temperatures(document, say),
        calibration(document, say),
        selective(document, say),
        tree(document, say),
        flow(document, say),
        cost(document, say),
    ]
    found = {picture.id: picture for picture in made if picture is not None}
    return {**found, "formula": formula({}, say)}  # type: ignore[typeddict-item]


def survival(document: Document, say: Say) -> Picture | None:
    """R and K beside what independence would leave, a panel a temperature."""
    panels, rows, title = [], [], ""
    for t in document["survival"]:
        if t == "0":
            continue
        curves = {name: document[name].get(t, []) for name in CURVES if name in document}
        drawn, shown = _curves(curves, say, say.plain(float(t)))
        panels.append(Panel(say("panel.temperature", t=say.plain(float(t))), drawn, 300))
        rows += shown
        if t == document["main"] or not title:
            title = survival_title(say, curves, 10)
    columns = [say("column.measure"), f"{say('axis.temperature')}, {say('axis.words')}"]
    return _picture("survival", title, say, panels, columns, rows)


def documents(document: Document, say: Say) -> Picture | None:
    """The same of long texts that the base model wrote."""
    found = document.get("documents")
    if not found:
        return None
    drawn, rows = _curves(found, say, say.plain(float(document["main"])))
    columns = [say("column.measure"), f"{say('axis.temperature')}, {say('axis.words')}"]
    return _picture("documents", survival_title(say, found, 50), say, [Panel("", drawn, 300)], columns, rows)


def _curves(curves: Document, say: Say, t: str) -> tuple[Option, list[Row]]:
    series: list[Option] = []
    rows: list[Row] = []
    for name, word, colour, style in LINES:
        figures = curves.get(name, [])
        rows += [(say(f"survival.{word}"), f"{t}, {f['t']}", f) for f in figures]
        if figures:
            drawn = curve_with_band(say(f"survival.{word}"), [(f["t"], f) for f in figures], colour)
            drawn[-1]["lineStyle"] = {**drawn[-1]["lineStyle"], "type": style}
            series += drawn
    return _shares(lines(axis(say("axis.words"), min=1), axis(percent=True, min=0, max=1), series)), rows


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
    drawn = _shares(lines(axis(say("exam.distance"), min=1, minInterval=1), axis(percent=True), series))
    title = say(f"exam.feedback_{beside}", up=say.figure(first[beside][0], "difference"))
    columns = [say("column.measure"), f"{say('axis.temperature')}, {say('exam.distance')}"]
    return _picture("feedback", title, say, [Panel("", drawn, 320)], columns, rows)


def _known(figures: Sequence[FigureFacts] | None) -> bool:
    return bool(figures) and figures[0]["value"] is not None  # type: ignore[index]


def temperatures(document: Document, say: Say) -> Picture | None:
    """Right, S, repetition and agreement against the temperature."""
    if len(document["figures"]) < 2:
        return None
    series: list[Option] = []
    rows: list[Row] = []
    for name, colour, style in SWEEP:
        known = [
            (float(t), f[name]) for t, f in document["figures"].items() if f.get(name, {}).get("value") is not None
        ]
        if not known:
            continue
        drawn = curve_with_band(say.measure(name), sorted(known, key=lambda row: row[0]), colour, showSymbol=True)
        drawn[-1]["lineStyle"] = {**drawn[-1]["lineStyle"], "type": style}
        series += drawn
        rows += [(say.measure(name), say.plain(t), f) for t, f in known]
    drawn_lines = _shares(lines(axis(say("axis.temperature"), min=0), axis(percent=True, min=0, max=1), series))
    rights = [
        (float(t), f["right"]) for t, f in document["figures"].items() if f.get("right", {}).get("value") is not None
    ]
    rights.sort(key=lambda row: row[0])
    title = say("picture.temperatures")
    if len(rights) > 1:
        (t0, right0), (t1, right1) = rights[0], rights[-1]
        shown = say.apart({"right0": right0["value"], "right1": right1["value"]})
        title = say("picture.temperatures_right", t0=say.plain(t0), t1=say.plain(t1), **shown)
    columns = [say("column.measure"), say("axis.temperature")]
    return _picture("temperatures", title, say, [Panel("", drawn_lines, 340)], columns, rows)


def calibration(document: Document, say: Say) -> Picture | None:
    """What it says beside what comes true, at the main temperature."""
    bins = document["calibration"].get(document["main"])
    error = document["figures"][document["main"]].get("calibration")
    if not bins or error is None:
        return None
    figures = [(b["p"], b["observed"]) for b in bins]
    honest = line(say("calibration.honest"), [(0, 0), (1, 1)], "muted",
                  lineStyle={"color": "$muted", "type": "dashed", "width": 1})  # fmt: skip
    series = [*curve_with_band(document["model"], figures, "accent", showSymbol=True, symbolSize=7), honest]
    drawn = _shares(lines(axis(say("axis.said"), percent=True, min=0, max=1), axis(percent=True, min=0, max=1), series))
    title = say("picture.calibration", gap=say.number(error["value"] or 0, 3))
    rows: list[Row] = [(document["model"], say.share(p), f) for p, f in figures]
    return _picture("calibration", title, say, [Panel("", drawn, 300)], [say("column.model"), say("axis.said")], rows)


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
        line(say("exam.at_random"), [(0, whole), (1, whole)], "muted",
             lineStyle={"color": "$muted", "type": "dashed", "width": 1}),
    ]  # fmt: skip
    x = axis(say("exam.kept"), percent=True, min=0, max=1)
    drawn = _shares(lines(x, axis(percent=True, min=0), series))
    title = say("exam.selective", **say.apart({"all": whole, "half": half["wrong"]}))
    rows: list[Row] = [(say("exam.wrong"), say.share(row["kept"]), FigureFacts(value=row["wrong"])) for row in curve]
    rows.append((say.measure("selective"), "", ratio))
    columns = [say("column.measure"), say("exam.kept")]
    return _picture("selective", title, say, [Panel("", drawn, 300)], columns, rows)


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
    room = _room([node["label"]["formatter"] for node in nodes if node["itemStyle"]["color"] != "$accent"])
    sankey: Option = {
        "type": "sankey", "data": nodes, "links": links, "left": 12, "right": room, "top": 8, "bottom": 8,
        "nodeWidth": 10, "nodeGap": 12, "draggable": False, "emphasis": {"disabled": True},
        "lineStyle": {"color": "source", "opacity": 0.25},
        "label": {"color": "$ink", "fontSize": 12, "width": room - 8, "overflow": "truncate"},
    }  # fmt: skip
    drawn = canvas(series=[sankey], tooltip={"show": False})
    height = 60 + 34 * max(_leaves(one["branches"]) + 1, len(meanings) + 1)
    title = say("exam.flow", n=len(meanings), answers=_leaves(one["branches"]))
    panel = Panel(_short(one["question"]), drawn, height)
    return _picture("flow", title, say, [panel], [say("exam.answer"), say("exam.question")], rows)


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
    if not branch["children"]:
        return [dict(branch)]
    return [end for child in branch["children"] for end in _ends(child)]


def tree(document: Document, say: Say) -> Picture | None:
    """The likeliest whole answers to some questions, as branching trees."""
    panels = []
    rows: list[Row] = []
    for one in document["trees"]:
        panels.append(Panel(_short(one["question"]), _tree(one["branches"], say), 60 + 30 * _leaves(one["branches"])))
        rows += [
            (visible(one["question"]), visible(a["text"]), FigureFacts(value=a["low"], low=a["low"], high=a["high"]))
            for a in one["answers"]
        ]
    if not panels:
        return None
    left = max(one["unexplored"] for one in document["trees"])
    title = say("exam.tree", left=say.share(left, 1))
    return _picture("tree", title, say, panels, [say("exam.question"), say("exam.answer")], rows)


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
    columns = [say("column.measure"), say("axis.temperature")]
    return _picture("cost", title, say, [Panel("", drawn, 70 + 34 * len(points))], columns, rows)


def _tree(root: Document, say: Say) -> Option:
    drawn = _node(root, say)
    drawn["label"] = {"position": "top", "align": "left"}
    room = _room(_names(drawn))
    return canvas(
        series=[
            {
                "type": "tree",
                "data": [drawn],
                "left": 12,
                "right": room,
                "top": 8,
                "bottom": 8,
                "symbolSize": 7,
                "initialTreeDepth": -1,
                "expandAndCollapse": False,
                "roam": False,
                "itemStyle": {"color": "$accent", "borderColor": "$accent"},
                "lineStyle": {"color": "$muted"},
                "label": {"position": "top", "distance": 4, "color": "$ink", "fontSize": 12},
                "leaves": {
                    "label": {
                        "position": "right",
                        "align": "left",
                        "verticalAlign": "middle",
                        "width": room - 12,
                        "overflow": "truncate",
                    }
                },
            }
        ],
        tooltip={"show": False},
    )


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


def _names(node: Option) -> list[str]:
    """What stands at the leaves."""
    if "children" not in node:
        return [node["name"]]
    return [name for child in node["children"] for name in _names(child)]


def _short(question: str, most: int = 160) -> str:
    """A question's end, from a word on; the story before it stands in the table."""
    text = visible(" ".join(question.split()))
    return text if len(text) <= most else "… " + text[-most:].partition(" ")[2]


def _leaves(branch: Document) -> int:
    return sum(map(_leaves, branch["children"])) or 1


def _shares(option: Option) -> Option:
    option["tooltip"]["valueFormatter"] = "fn:percent"
    return option


def _picture(
    name: str, title: str, say: Say, panels: Sequence[Panel], heads: Sequence[str], rows: Sequence[Row]
) -> Picture | None:
    if not panels:
        return None
    table: list[list[Cell]] = [
        [first, place, f["value"], f.get("low"), f.get("high"), f.get("n")] for first, place, f in rows
    ]
    more = [say(f"column.{key}") for key in ("value", "low", "high", "n")]
    how = say(f"exam.how_{name}") if say.has(f"exam.how_{name}") else say(f"how.{name}")
    return Picture(name, title, how, list(panels), [*heads, *more], table, name in WIDE)
