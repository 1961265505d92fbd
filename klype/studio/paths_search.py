"""One question, many answers: drawn ones, the exact most probable ones, where it was decided; and their pictures."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any

from klype.answers.forks import Forks, ForkSettings, forks
from klype.answers.tree import Branch, Tree, TreeSettings, branches, grow
from klype.errors import UsageError
from klype.examine.charts import canvas
from klype.examine.intervals import proportion
from klype.examine.say import Say, visible
from klype.judge.meaning import label
from klype.sources.source import Source
from klype.studio.charts import Option, meaning_colour
from klype.studio.studio import Asking, CachedSource, CancelledError, Model
from klype.values import Distribution, Figure, Request, Sampling, Trace

Known = dict[tuple[int, ...], Distribution]


@dataclass(frozen=True, slots=True)
class PathSettings:
    """``n`` answers are drawn; ``budget`` beginnings are read for the exact ones. ``key`` tells settings apart."""

    temperature: float = 0.7
    n: int = 64
    limit: int = 32
    budget: int = 400
    seed: int = 0

    @property
    def sampling(self) -> Sampling:
        return Sampling(temperature=self.temperature)


@dataclass(frozen=True, slots=True)
class MeaningShare:
    """Answers of one meaning: ``share`` of those drawn, the certain ``low`` and ``high`` of all that could be drawn.
    ``text`` is the commonest; ``right`` None: nobody knows."""

    meaning: Hashable
    name: str
    text: str
    drawn: int
    share: Figure
    low: float
    high: float
    right: bool | None


@dataclass(frozen=True, slots=True)
class FoundPaths:
    """``meant`` most frequent first; its place is the meaning's colour. ``common``: the commonest drawn answer."""

    model: str
    asking: Asking
    settings: PathSettings
    traces: tuple[Trace, ...]
    tree: Tree
    meant: tuple[MeaningShare, ...]
    common: Trace | None

    def place_of(self, meaning: Hashable) -> int:
        """Of a meaning among all; −1 for one that is not listed."""
        return next((i for i, one in enumerate(self.meant) if one.meaning == meaning), -1)


@dataclass
class PathSearch:
    """The work for one visitor's question: what was read is kept for other temperatures. ``cancelled`` ends it."""

    model: Model
    asking: Asking
    known: Known = field(default_factory=dict)
    cancelled: threading.Event = field(default_factory=threading.Event)
    done: float = 0.0

    def paths(self, source: Source, settings: PathSettings) -> FoundPaths:
        """Draws and grows. Raises CancelledError when it is not wanted any more."""
        self._look()
        prompt = self.asking.prompt
        room = min(settings.limit, self.model.window - len(prompt))
        if room < 1:
            raise UsageError(
                f"The text has {len(prompt)} tokens, and {self.model.name} reads {self.model.window} at most."
            )
        traces = self._drawn(source, settings, room)
        grown = TreeSettings(
            settings.sampling, room, settings.budget, "mass", 0.001, batch=16, vocabulary=self.model.vocabulary
        )
        tree = grow(
            CachedSource(source, self.known),
            prompt,
            grown,
            self.model.spell,
            self.asking.meaning,
            self._grown(settings),
        )
        return FoundPaths(
            self.model.name, self.asking, settings, traces, tree, self._meant(traces, tree), self._common(traces)
        )

    def fork(self, source: Source, trace: Trace, settings: PathSettings) -> Forks:
        """The word at which this answer was decided."""
        self._look()
        chosen = ForkSettings(settings.sampling, max(settings.limit, len(trace.steps)), 24, settings.seed)
        return forks(source, trace, chosen, self.asking.meaning, self.asking.right)

    def _drawn(self, source: Source, settings: PathSettings, room: int) -> tuple[Trace, ...]:
        stop = tuple(source.codec.stop)
        request = Request(
            self.asking.prompt, n=settings.n, limit=room, sampling=settings.sampling, seed=settings.seed, stop=stop
        )
        found: list[Trace] = []
        for event in source.generate([request]):
            if event.trace is not None:
                found.append(event.trace)
                self.done = 0.5 * len(found) / settings.n
            self._look()
        return tuple(sorted(found, key=lambda trace: trace.sample))

    def _grown(self, settings: PathSettings) -> Callable[[int, float], None]:
        def told(expansions: int, unexplored: float) -> None:
            self.done = 0.5 + 0.5 * max(1 - unexplored, expansions / settings.budget)
            self._look()

        return told

    def _look(self) -> None:
        if self.cancelled.is_set():
            raise CancelledError

    def _meant(self, traces: Sequence[Trace], tree: Tree) -> tuple[MeaningShare, ...]:
        decode = self.model.codec.decode
        texts = Counter(decode(trace.tokens) for trace in traces)
        by_meaning: dict[Hashable, Counter[str]] = {}
        for text, times in texts.items():
            by_meaning.setdefault(self.asking.meaning(text), Counter())[text] += times
        clusters = {cluster.meaning: cluster for cluster in tree.clusters}
        for cluster in tree.clusters[:20]:
            by_meaning.setdefault(cluster.meaning, Counter())
        out = []
        for meaning, counted in by_meaning.items():
            known = clusters.get(meaning)
            text = counted.most_common(1)[0][0] if counted else known.text if known else ""
            drawn = counted.total()
            low, high = (known.low, known.high) if known else (0.0, tree.unexplored)
            right = self.asking.right(text) if self.asking.right else None
            out.append(
                MeaningShare(
                    meaning, label(meaning), text, drawn, proportion(drawn, len(traces)), low, min(1.0, high), right
                )
            )
        return tuple(sorted(out, key=lambda one: (-one.drawn, -one.low, one.name)))

    def _common(self, traces: Sequence[Trace]) -> Trace | None:
        """The commonest answer of the commonest meaning."""
        decode = self.model.codec.decode
        if not traces:
            return None
        times = Counter(decode(trace.tokens) for trace in traces)
        meanings = Counter(self.asking.meaning(decode(trace.tokens)) for trace in traces)
        best = meanings.most_common(1)[0][0]
        mine = [trace for trace in traces if self.asking.meaning(decode(trace.tokens)) == best and trace.steps]
        return max(mine, key=lambda trace: times[decode(trace.tokens)], default=None)


Tokens = tuple[int, ...]
LONG = 28
LEAVES = 40
"""Leaves of a flow that are drawn one by one; the rarest of each branching flow together after that."""


@dataclass
class FlowNode:
    """A part of answers that is common to all that pass: ``tokens`` from the branching before to the next."""

    tokens: Tokens
    count: int
    meaning: Hashable
    children: list[FlowNode] = field(default_factory=list)
    begins: int = 0
    merged: int = 0


def merged(answers: Sequence[tuple[Tokens, Hashable]], begins: int = 0) -> FlowNode:
    """Common beginnings once. ``meaning``: the one that all below share, or None."""
    kept: Tokens = ()
    first = answers[0][0]
    while len(kept) < len(first) and all(a[: len(kept) + 1] == first[: len(kept) + 1] for a, _ in answers):
        kept = first[: len(kept) + 1]
    meanings = {meaning for _, meaning in answers}
    node = FlowNode(kept, len(answers), next(iter(meanings)) if len(meanings) == 1 else None, begins=begins)
    groups: dict[Tokens, list[tuple[Tokens, Hashable]]] = {}
    for tokens, meaning in answers:
        rest = tokens[len(kept) :]
        groups.setdefault(rest[:1], []).append((rest, meaning))
    if len(groups) > 1:
        node.children = [merged(group, begins + len(kept)) for group in groups.values()]
        node.children.sort(key=lambda child: -child.count)
    return node


def pruned(root: FlowNode, most: int = LEAVES) -> FlowNode:
    """The rarest leaves of each branching in one, until at most about ``most`` are left."""
    least = 1
    while leaves(root) > most and least <= root.count:
        root = _without(root, least)
        least += 1
    return root


def leaves(node: FlowNode) -> int:
    return sum(map(leaves, node.children)) or 1


def flow_option(
    paths: FoundPaths, spell: Callable[[Tokens], str], say: Say, fork: int | None, rest: Callable[[int], str]
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


def tree_option(paths: FoundPaths, spell: Callable[[Tokens], str], say: Say, end: str) -> tuple[Option, int]:
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


def _flow_node(node: FlowNode, depth: int, way: tuple[Tokens, Tokens, int | None], out: Any, about: Any) -> str:
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


def _tree_node(branch: Branch, paths: FoundPaths, say: Say, end: str) -> Option:
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


def _without(node: FlowNode, least: int) -> FlowNode:
    if not node.children:
        return node
    kept = [_without(child, least) for child in node.children if child.count > least]
    rare = [child for child in node.children if child.count <= least]
    if len(rare) > 1:
        count = sum(child.count for child in rare)
        kept.append(FlowNode((), count, None, begins=node.begins + len(node.tokens), merged=count))
    else:
        kept += rare
    return FlowNode(node.tokens, node.count, node.meaning, kept, node.begins)


def _short(text: str) -> str:
    return text if len(text) <= LONG else text[: LONG - 1].rstrip() + "…"


def _plain(text: str) -> str:
    """ECharts reads {a} and {name|…} in labels as its own: other brackets look nearly the same."""
    return text.replace("{", "❴").replace("}", "❵")
