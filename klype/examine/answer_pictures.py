"""Pictures of an examination: survival, feedback, temperature, calibration, selection, trees and cost.

Their titles state the finding. They are shown in the reports of runs, examinations and the article, and in the studio.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from klype.examine import charts
from klype.examine.charts import Cell, Option, Panel, Picture, Row, axis, canvas, curve_with_band, figure_table, shares
from klype.examine.run_facts import FigureFacts, side_of
from klype.examine.say import Say, visible

Document = Mapping[str, Any]
Curves = Mapping[str, Sequence[FigureFacts]]  # name (of CURVES) → a figure per position
# px left of a flow and of a tree, between two columns of a flow, of the share in a label, and of a letter
LEFT, COLUMN, SHARE, LETTER = 12, 200, 54, 7
CURVES = ("survival", "would_survive", "by_position", "difference", "independent")
Temperatures = Mapping[float, Mapping[str, FigureFacts]]  # temperature, from the lowest → figures by name
LINES = (("survival", "r", "aligned", "solid"), ("would_survive", "k", "truth", "dashed"),
         ("by_position", "by_position", "muted", "dotted"))  # fmt: skip
SWEEP = (("right", "aligned", "solid"), ("s", "truth", "dashed"), ("real_words", "aligned", "solid"),
         ("repetition", "bad", "dotted"), ("same_text", "finetuned", "solid"),
         ("same_meaning", "finetuned", "solid"))  # fmt: skip


def pictures(document: Document, say: Say) -> dict[str, Picture]:
    """Every picture that the document of an examination allows, by id."""
    main, figures = document["main"], document["figures"]
    by_t = {float(t): {name: document[name].get(t, []) for name in CURVES if name in document}
            for t in document["survival"] if t != "0"}  # fmt: skip
    bins, error = document["calibration"].get(main), figures[main].get("calibration")
    made = [
        survival(by_t, say, float(main), 10),
        survival({float(main): long} if (long := document.get("documents")) else {}, say, float(main), 50, "documents"),
        temperatures(dict(sorted((float(t), row) for t, row in figures.items())), say),
        calibration([(document["model"], "accent", bins, error)] if bins and error is not None else [], say),
        formula(say),
        *(draw(document, say) for draw in (feedback, selective, tree, flow, cost)),
    ]
    return {picture.id: picture for picture in made if picture is not None}


def survival(
    found: Mapping[float, Curves], say: Say, main: float, most: int = 1000, name: str = "survival"
) -> Picture | None:
    """R and K beside K for errors that depend on the position only, with a panel per temperature. The title is about
    temperature ``main`` and the last position up to ``most``. ``name`` "documents": of long texts."""
    if not found:
        return None
    panels, rows = [], list[Row]()
    for temperature, curves in found.items():
        series = list[Option]()
        for key, word, colour, dash in LINES:
            label, at = say(f"survival.{word}"), [(f.get("t", i), f) for i, f in enumerate(curves.get(key, []), 1)]
            series += curve_with_band(label, at, colour, dash) if at else []
            rows += [(label, f"{say.plain(temperature)}, {t}", f) for t, f in at]
        drawn = shares(axis(say("axis.words"), min=1), series)
        panels.append(Panel(say("panel.temperature", t=say.plain(temperature)), drawn, 300))
    title = _survival_title(found.get(main) or next(iter(found.values())), say, most)
    how = say("exam.how_documents" if name == "documents" else "how.survival")
    table = figure_table(say, rows, "column.measure", "axis.temperature", "axis.words")
    return Picture(name, title, how, panels, *table, wide=name != "survival")


def _survival_title(curves: Curves, say: Say, most: int) -> str:
    """K (``would_survive``) and its reference at the last position up to ``most`` where both have a value, and whether
    they differ; K alone where the reference is unknown."""
    k, reference, difference = (curves.get(name) or [] for name in ("would_survive", "by_position", "difference"))
    if all(f["value"] is None for f in reference):
        reference = []
    known = [f["value"] is not None and (not reference or reference[i]["value"] is not None) for i, f in enumerate(k)]
    n = sum(known[:most])
    if not n:
        return say("picture.few_survival")
    if not reference:
        return say("picture.survival_alone", k=say.value(k[n - 1], "survival"), n=n)
    kind = side_of(difference[n - 1], 0.0) if difference else 0
    values = {"k": k[n - 1]["value"], "reference": reference[n - 1]["value"]}
    shown = say.apart(values) if kind else {name: say.share(value or 0.0) for name, value in values.items()}
    return say(f"picture.survival_{ {1: 'more', 0: 'open', -1: 'less'}[kind] }", n=n, **shown)


def temperatures(found: Temperatures, say: Say) -> Picture | None:
    """Correctness, S, real words, repetition and agreement (by meaning, where judged) against the temperature."""
    series, rows = list[Option](), list[Row]()
    known = {name: [(t, f[name]) for t, f in found.items() if name in f and f[name]["value"] is not None]
             for name, _, _ in SWEEP}  # fmt: skip
    if any("same_meaning" in figures for figures in found.values()):
        known["same_text"] = []
    for name, colour, dash in SWEEP:
        if known[name]:
            series += curve_with_band(say.measure(name), known[name], colour, dash, showSymbol=True, symbolSize=7)
        rows += [(say.measure(name), say.plain(t), f) for t, f in known[name]]
    if len(found) < 2 or not series:
        return None
    drawn = shares(axis(say("axis.temperature"), min=0), series)

    def ends(name: str) -> dict[str, str]:
        """The figure at the lowest temperature and at the highest."""
        return say.apart({f"{name}{i}": known[name][-i][1]["value"] for i in (0, 1)})

    # about correct answers, or else about real words and repetition
    title, rights = say("picture.temperatures"), known["right"]
    if len(rights) > 1:
        ts = {"t0": say.plain(rights[0][0]), "t1": say.plain(rights[-1][0])}
        title = say("picture.temperatures_right", **ts, **ends("right"))
    elif all({min(found), max(found)} <= {t for t, _ in known[name]} for name in ("real_words", "repetition")):
        title = say("picture.temperatures_text", **ends("real_words"), **ends("repetition"))
    table = figure_table(say, rows, "column.measure", "axis.temperature")
    return Picture("temperatures", title, say("how.temperatures"), [Panel("", drawn, 340)], *table, wide=True)


def calibration(
    models: Sequence[tuple[str, str, Sequence[Mapping[str, Any]], FigureFacts]], say: Say, more: str = ""
) -> Picture | None:
    """Reliability diagrams, with a panel per model (name, colour, bins, error). The title is about the last one;
    ``more``: a further sentence on how to read it."""
    panels, rows = [], list[Row]()
    for name, colour, bins, _ in models:
        figures = [(b["p"], b["observed"]) for b in bins]
        series = [
            *curve_with_band(name, figures, colour, showSymbol=True, symbolSize=7),
            charts.rule(say("calibration.honest"), [(0, 0), (1, 1)]),
        ]
        x = axis(say("axis.said"), percent=True, min=0, max=1)
        panels.append(Panel(visible(name), shares(x, series), 300))
        rows += [(name, say.share(p), f) for p, f in figures]
    if not panels:
        return None
    title = say("picture.calibration", gap=say.number(models[-1][3]["value"] or 0, 3))
    how = f"{say('how.calibration')} {more}".strip()
    return Picture("calibration", title, how, panels, *figure_table(say, rows, "column.model", "axis.said"))


def formula(say: Say) -> Picture:
    """S^n beside (1 − S)^n; sliders of the page redraw both."""
    s, n = 0.99999, 100
    names = [say("formula.right"), say("formula.article")]
    curves = [(name, [(i, base**i) for i in range(1, n + 1)]) for name, base in zip(names, (s, 1 - s), strict=True)]
    panel = Panel("", charts.formula_curves(axis(say("axis.words"), min=1), curves), 320)
    rows: list[list[Cell]] = [[i, s**i, (1 - s) ** i] for i in (1, 10, 50, 100)]
    columns = [say("axis.words"), *names]
    return Picture("formula", say("picture.formula"), say("how.formula"), [panel], columns, rows, wide=True)


def feedback(document: Document, say: Say) -> Picture | None:
    """The effect of a forced error by distance, with a curve per temperature: compared with an equally rare correct
    word, or with any correct word where there are too few of those."""
    colours = ("aligned", "truth", "finetuned", "bad")
    found = document["after_error"]
    if not found:
        return None
    first = found.get(document["main"]) or next(iter(found.values()))
    beside = "cautious" if _has_value(first.get("cautious")) else "difference"
    series, rows = list[Option](), list[Row]()
    for (t, one), colour in zip(found.items(), colours, strict=False):
        name = say("panel.temperature", t=say.plain(float(t)))
        if _has_value(one.get(beside)):
            series += curve_with_band(name, [(f["distance"], f) for f in one[beside]], colour, showSymbol=True)
        for part in ("cautious", "beside_near", "difference", "ratio", "recovery", "moved"):
            rows += [(say(f"exam.row_{part}"), f"{say.plain(float(t))}, {f['distance']}", f) for f in one.get(part, [])]
    drawn = shares(axis(say("exam.distance"), min=1, minInterval=1), series, scale=False)
    title = say(f"exam.feedback_{beside}", up=say.figure(first[beside][0], "difference"))
    table = figure_table(say, rows, "column.measure", "axis.temperature", "exam.distance")
    return Picture("feedback", title, say("exam.how_feedback"), [Panel("", drawn, 320)], *table, wide=True)


def _has_value(figures: Sequence[FigureFacts] | None) -> bool:
    return bool(figures) and figures[0]["value"] is not None  # type: ignore[index]


def selective(document: Document, say: Say) -> Picture | None:
    """The share wrong among the most certain answers, at the main temperature."""
    curve = document["selective"].get(document["main"])
    ratio = document["figures"][document["main"]].get("selective")
    if not curve or ratio is None:
        return None
    whole = curve[-1]["wrong"]
    half = min(curve, key=lambda row: abs(row["kept"] - 0.5))
    series = [
        charts.line(document["model"], [(row["kept"], row["wrong"]) for row in curve], "accent"),
        charts.rule(say("exam.at_random"), [(0, whole), (1, whole)]),
    ]
    drawn = shares(axis(say("exam.kept"), percent=True, min=0, max=1), series, min=0)
    title = say("exam.selective", **say.apart({"all": whole, "half": half["wrong"]}))
    rows: list[Row] = [(say("exam.wrong"), say.share(row["kept"]), FigureFacts(value=row["wrong"])) for row in curve]
    rows.append((say.measure("selective"), "", ratio))
    table = figure_table(say, rows, "column.measure", "exam.kept")
    return Picture("selective", title, say("exam.how_selective"), [Panel("", drawn, 300)], *table)


def flow(document: Document, say: Say) -> Picture | None:
    """A Sankey diagram of the first tree: probability flows from the question through words into meanings."""
    one = next((tree for tree in document["trees"] if tree["answers"]), None)  # a tree may have none in the limit
    if one is None:
        return None
    meanings = dict[str, dict[str, Any]]()

    def drawn(branch: Document) -> Document:
        """The branch, in which every answer leads to its meaning."""
        if branch["children"]:
            return {**branch, "children": [drawn(child) for child in branch["children"]]}
        end = meanings.setdefault(branch["meaning"], _end(branch["meaning"], 0.0, "truth"))
        end["mass"] += branch["mass"]
        return {**branch, "children": [end]}

    root = drawn(one["branches"])
    ends, others = [*meanings.values()], 1.0 - root["mass"]
    if others > 0.0005:
        ends.append(_end(say("exam.others"), others, "muted"))
        root = {**root, "mass": 1.0, "children": [*root["children"], ends[-1]]}
    answers = sum(not branch["children"] for branch in _branches(one["branches"]))
    rows = [(visible(end["text"]), visible(one["question"]), FigureFacts(value=end["mass"])) for end in ends]
    table = figure_table(say, rows, "exam.answer", "exam.question")
    title, panel = say("exam.flow", n=len(meanings), answers=answers), flow_panel(_short(one["question"]), root, say)
    return Picture("flow", title, say("exam.how_flow"), [panel], *table, wide=True)


def _end(text: str, mass: float, colour: str) -> dict[str, Any]:
    """A branch for the last column of a flow, after which nothing follows."""
    style = {"itemStyle": {"color": f"${colour}"}, "depth": None}
    return {"text": text, "mass": mass, "children": [], "style": style}


def flow_panel(title: str, root: Document, say: Say, **look: Any) -> Panel:
    """A Sankey diagram of branches (as of ``tree_panel``) from left to right: width is mass. A branch that is a child
    of several others is one node. ``look``: of the series."""
    (room, levels, leaves), nodes, links = _sizes(root, say), dict[int, Option](), list[Option]()

    def add(branch: Document, level: int) -> str:
        """Adds the branch and all below it, unless it is there already; returns the name of its node."""
        if id(branch) in nodes:
            return str(nodes[id(branch)]["name"])
        name, style = f"{len(nodes)}", branch.get("style", {})
        node: Option = {"name": name, "value": branch["mass"], "depth": level, "itemStyle": {"color": "$accent"}}
        node |= {**style, "tooltip": {"formatter": _plain(_branch_label(branch, say))}}
        width = (room if node["depth"] in (None, levels) else COLUMN) - 12
        label = {"formatter": _plain(_branch_label(branch, say, width)), "width": width}
        nodes[id(branch)] = {**node, "label": {**style.get("label", {}), **label}}
        for child in branch["children"]:
            mass = min(branch["mass"], child["mass"])
            links.append({"source": name, "target": add(child, level + 1), "value": mass})
        return name

    add(root, 0)
    series = charts.look("sankey", data=[*nodes.values()], links=links, left=LEFT, right=room, **look)
    option = canvas(series=[series], tooltip={"valueFormatter": "fn:share"})
    return Panel(title, option, 60 + 30 * leaves, LEFT + COLUMN * levels + room)


def tree(document: Document, say: Say) -> Picture | None:
    """The most likely answers to some questions, as branching trees."""
    panels, rows = [], list[Row]()
    for one in document["trees"]:
        panels.append(tree_panel(_short(one["question"]), one["branches"], say))
        rows += [
            (visible(one["question"]), visible(a["text"]), FigureFacts(value=a["low"], low=a["low"], high=a["high"]))
            for a in one["answers"]
        ]
    if not panels:
        return None
    left = max(one["unexplored"] for one in document["trees"])
    table = figure_table(say, rows, "exam.question", "exam.answer")
    return Picture("tree", say("exam.tree", left=say.share(left, 1)), say("exam.how_tree"), panels, *table, wide=True)


def tree_panel(title: str, root: Document, say: Say, left: int = LEFT) -> Panel:
    """A tree of branches (``text``, ``mass``, ``children``, and perhaps the ``style`` of node and line) from left to
    right.

    No label meets another: inner ones are above their nodes and no wider than the distance between two nodes, and all
    leaves are in one column, a row each. ``left``: the root's distance from the edge, where its label begins.
    """
    room, levels, leaves = _sizes(root, say)
    inner = [len(_branch_label(branch, say)) for branch in _branches(root) if branch["children"]]
    step = min(220, max(64, *(16 + LETTER * length for length in (*inner, 0))))

    def node(branch: Document, deeper: int) -> Option:
        """The branch, with its leaves so many levels below it, behind hidden nodes."""
        looks = {"value": branch["mass"], **branch.get("style", {})}
        found: Option = {"name": _branch_label(branch, say, step - 8 if branch["children"] else room - 12), **looks}
        if branch["children"]:
            return {**found, "children": [node(child, deeper - 1) for child in branch["children"]]}
        for _ in range(deeper):
            found = {"name": "", **looks, "symbolSize": 0, "children": [found]}
        return found

    drawn = node(root, levels)
    label = {"align": "left", "offset": [LEFT - left, 0], "width": left - LEFT + step // 2 - 8}
    drawn["label"] = {"position": "top", "overflow": "truncate", **label}
    accent = {"color": "$accent", "borderColor": "$accent"}
    series = charts.look(
        "tree", data=[drawn], left=left, right=room, symbolSize=7, itemStyle=accent, lineStyle={"color": "$muted"}
    )
    series["label"] |= {"width": step - 8, "overflow": "truncate"}
    series["leaves"] = {"label": {**series["leaves"], "width": room - 12, "overflow": "truncate"}}
    option = canvas(series=[series], tooltip={"show": False})
    return Panel(title, option, 60 + 30 * leaves, left + step * levels + room)


def _branches(branch: Document) -> Iterator[Document]:
    """The branch and all branches below it."""
    yield branch
    for child in branch["children"]:
        yield from _branches(child)


def _branch_label(branch: Document, say: Say, width: int = 10**6) -> str:
    """The branch's text and mass; the text is cut so that they fit into about ``width`` px."""
    text = visible(branch["text"].strip()) or ("…" if branch["children"] else "∅")
    most = max(3, (width - SHARE) // LETTER)
    text = text if len(text) <= most else f"{text[: most - 1].rstrip()}…"
    return f"{text}  {say.share(branch['mass'], 1)}"


def _sizes(root: Document, say: Say) -> tuple[int, int, int]:
    """Pixels for the labels of the leaves, levels below the root, and leaves."""

    def levels(branch: Document) -> int:
        return max((1 + levels(child) for child in branch["children"]), default=0)

    ends = [len(_branch_label(branch, say)) for branch in _branches(root) if not branch["children"]]
    return min(340, max(90, 20 + LETTER * max(ends))), levels(root), len(ends)


def _plain(text: str) -> str:
    """Replaces braces by similar brackets: ECharts would read {a} and {name|…} in a label as markup."""
    return text.replace("{", "❴").replace("}", "❵")


def cost(document: Document, say: Say) -> Picture | None:
    """Floating-point operations per correct answer, by temperature."""
    rows = list[Row]()
    for t, figures in document["figures"].items():
        flops, right = (figures.get(name, {}).get("value") for name in ("flops", "right"))
        if flops is not None and right:
            rows.append((say("exam.flops_right"), say.plain(float(t)), FigureFacts(value=flops / right)))
    if not rows:
        return None
    places, values = [t for _, t, _ in rows], [(figure["value"] or 0.0) / 1e6 for *_, figure in rows]
    series = {say("exam.flops_right"): ("accent", values)}
    drawn = charts.bars(places, series, axis(say("exam.mflops"), min=0), values="value")
    main = say.plain(float(document["main"]))
    at = places.index(main) if main in places else 0
    title = say("exam.cost", t=places[at], flops=say.number(values[at], 1))
    table = figure_table(say, rows, "column.measure", "axis.temperature")
    return Picture("cost", title, say("exam.how_cost"), [Panel("", drawn, 70 + 34 * len(rows))], *table)


def _short(question: str, most: int = 160) -> str:
    """The end of a long question, from the start of a word; the whole text is in the table."""
    text = visible(" ".join(question.split()))
    return text if len(text) <= most else "… " + text[-most:].partition(" ")[2]
