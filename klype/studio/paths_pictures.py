"""Answers as pictures: a flow of all that were drawn, and the branching tree of the exact ones."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any

from klype.answers.branches import Branch, branches
from klype.examine.charts import canvas
from klype.examine.say import Say, visible
from klype.studio.charts import Option, meaning_colour
from klype.studio.paths_work import Paths

Tokens = tuple[int, ...]
LONG = 28
LEAVES = 40
"""Leaves of a flow that are drawn one by one; the rarest of each branching flow together after that."""


@dataclass
class Node:
    """A part of answers that is common to all that pass: ``tokens`` from the branching before to the next."""

    tokens: Tokens
    count: int
    meaning: Hashable
    children: list[Node] = field(default_factory=list)
    begins: int = 0
    merged: int = 0


def merged(answers: Sequence[tuple[Tokens, Hashable]], begins: int = 0) -> Node:
    """Common beginnings once. ``meaning``: the one that all below share, or None."""
    kept: Tokens = ()
    first = answers[0][0]
    while len(kept) < len(first) and all(a[: len(kept) + 1] == first[: len(kept) + 1] for a, _ in answers):
        kept = first[: len(kept) + 1]
    meanings = {meaning for _, meaning in answers}
    node = Node(kept, len(answers), next(iter(meanings)) if len(meanings) == 1 else None, begins=begins)
    groups: dict[Tokens, list[tuple[Tokens, Hashable]]] = {}
    for tokens, meaning in answers:
        rest = tokens[len(kept) :]
        groups.setdefault(rest[:1], []).append((rest, meaning))
    if len(groups) > 1:
        node.children = [merged(group, begins + len(kept)) for group in groups.values()]
        node.children.sort(key=lambda child: -child.count)
    return node


def pruned(root: Node, most: int = LEAVES) -> Node:
    """The rarest leaves of each branching in one, until at most about ``most`` are left."""
    least = 1
    while leaves(root) > most and least <= root.count:
        root = _without(root, least)
        least += 1
    return root


def leaves(node: Node) -> int:
    return sum(map(leaves, node.children)) or 1


def flow(
    paths: Paths, spell: Callable[[Tokens], str], say: Say, fork: int | None, rest: Callable[[int], str]
) -> tuple[Option, int]:
    """All drawn answers from left to right: width is share, colour is meaning; the fork is marked. And a height.
    ``rest`` names so many rare answers together, 0: the end of an answer."""
    decode = paths.asking.meaning
    texts = [(trace.tokens, decode(spell(trace.tokens))) for trace in paths.traces]
    root = pruned(merged(texts))
    nodes: list[Option] = []
    links: list[Option] = []
    common = paths.common.tokens if paths.common is not None else ()
    _flow_node(root, 0, ((), common, fork), (nodes, links), (paths, spell, say, rest))
    if not links:  # one answer only: a flow needs a second place to have a width
        nodes.append({"name": "end", "depth": 1, "itemStyle": {"opacity": 0}, "label": {"show": False}})
        links.append({"source": nodes[0]["name"], "target": "end", "value": nodes[0]["value"]})
    option = canvas(
        series=[
            {
                "type": "sankey",
                "data": nodes,
                "links": links,
                "left": 4,
                "right": 150,
                "top": 8,
                "bottom": 8,
                "nodeWidth": 10,
                "nodeGap": 7,
                "draggable": False,
                "layoutIterations": 0,
                "emphasis": {"focus": "trajectory"},
                "lineStyle": {"color": "target", "opacity": 0.34, "curveness": 0.5},
                "label": {"color": "$ink", "fontSize": 12, "position": "right"},
                "labelLayout": {"hideOverlap": True},
            }
        ],
        tooltip={**canvas()["tooltip"], "valueFormatter": "fn:percent"},
    )
    return option, max(180, 40 + 27 * leaves(root))


def exact(paths: Paths, spell: Callable[[Tokens], str], say: Say, end: str) -> tuple[Option, int]:
    """The likeliest whole answers as a tree; a line is as thick as it is probable."""
    root = branches(paths.tree, spell, 16)
    drawn = canvas(
        series=[
            {
                "type": "tree",
                "data": [{**_tree_node(root, paths, say, end), "label": {"align": "left"}}],
                "left": 14,
                "right": 230,
                "top": 10,
                "bottom": 10,
                "symbolSize": 8,
                "initialTreeDepth": -1,
                "expandAndCollapse": False,
                "roam": False,
                "label": {"position": "top", "distance": 5, "color": "$ink", "fontSize": 12},
                "leaves": {"label": {"position": "right", "align": "left", "verticalAlign": "middle"}},
            }
        ],
        tooltip={"show": False},
    )
    return drawn, 60 + 30 * _branch_leaves(root)


def _flow_node(node: Node, depth: int, way: tuple[Tokens, Tokens, int | None], out: Any, about: Any) -> str:
    """Adds the node and all below it; returns its name, which is its path and so its own."""
    (before, common, fork), (nodes, links), (paths, spell, say, rest) = way, out, about
    path = (*before, *node.tokens)
    text = visible(spell(path).removeprefix(spell(before)) if before else spell(path)).strip()
    on_way = common[: len(path)] == path
    decided = fork is not None and on_way and len(before) <= fork < len(path)
    share = node.count / max(1, len(paths.traces))
    name = f"{len(nodes)}"
    shown = rest(node.merged) if node.merged else _short(text) or ("" if node.children else rest(0))
    label = f"{'▶ ' if decided else ''}{shown}  {say.share(share)}"
    place = paths.place_of(node.meaning) if node.meaning is not None else -1
    colour = meaning_colour(place) if node.meaning is not None and not node.merged else "$base"
    item: Option = {"name": name, "value": share, "depth": depth, "itemStyle": {"color": colour, "borderWidth": 0},
                    "label": {"formatter": _plain(label)}}  # fmt: skip
    if decided:
        item["itemStyle"] |= {"borderColor": "$ink", "borderWidth": 2}
        item["label"]["fontWeight"] = "bold"
    item["tooltip"] = {"formatter": _plain(f"{text or shown}  {say.share(share, 1)}")}
    nodes.append(item)
    for child in node.children:
        to = _flow_node(child, depth + 1, (path, common, fork), out, about)
        links.append({"source": name, "target": to, "value": child.count / max(1, len(paths.traces))})
    return name


def _tree_node(branch: Branch, paths: Paths, say: Say, end: str) -> Option:
    text = _short(visible(branch.text.strip())) or (end if not branch.children else "…")
    place = paths.place_of(branch.meaning) if branch.answer is not None else -1
    colour = meaning_colour(place) if branch.answer is not None else "$base"
    found: Option = {
        "name": f"{text}  {say.share(branch.mass, 1)}",
        "value": branch.mass,
        "itemStyle": {"color": colour, "borderColor": colour},
        "lineStyle": {"color": colour, "width": 1 + 13 * branch.mass, "opacity": 0.6, "curveness": 0.5},
    }
    if branch.children:
        found["children"] = [_tree_node(child, paths, say, end) for child in branch.children]
    return found


def _branch_leaves(branch: Branch) -> int:
    return sum(map(_branch_leaves, branch.children)) or 1


def _without(node: Node, least: int) -> Node:
    if not node.children:
        return node
    kept = [_without(child, least) for child in node.children if child.count > least]
    rare = [child for child in node.children if child.count <= least]
    if len(rare) > 1:
        count = sum(child.count for child in rare)
        kept.append(Node((), count, None, begins=node.begins + len(node.tokens), merged=count))
    else:
        kept += rare
    return Node(node.tokens, node.count, node.meaning, kept, node.begins)


def _short(text: str) -> str:
    return text if len(text) <= LONG else text[: LONG - 1].rstrip() + "…"


def _plain(text: str) -> str:
    """ECharts reads {a} and {name|…} in labels as its own: other brackets look nearly the same."""
    return text.replace("{", "❴").replace("}", "❵")
