"""Many answers to one question: sampled ones, the most probable ones with exact bounds, their meanings, and
pictures."""

import threading
import time
from collections import Counter
from collections.abc import Callable, Generator, Hashable, Sequence
from dataclasses import dataclass, field, replace
from itertools import takewhile
from math import fsum
from typing import Any

from klype.answers.forks import Forks
from klype.answers.tree import Branch, Tree, branches
from klype.api.prompt_context import PromptContext
from klype.engine.engine import Event
from klype.examine.answer_pictures import flow_panel, tree_panel
from klype.examine.charts import Option, Panel
from klype.examine.intervals import proportion
from klype.examine.say import Say
from klype.judge.meaning import label
from klype.sources.source import Source, SourceWrapper
from klype.studio.elements import meaning_colour
from klype.studio.studio import SharedModel
from klype.values import Distribution, Figure, Request, Sampling, Tokens, Trace
from klype.words import Words

SAMPLES = 24  # continuations that are drawn at every token to find the one that decided
ROOT = 120  # pixels left of the tree's root, whose label begins there
# how many of the most probable answers are shown, and the least probability (below it would be shown as 0.0 %)
SHOWN_ANSWERS, SEEN = 16, 0.0005
KNOWN = 4000  # distributions that are cached for one question
LEAVES = 40  # leaves of a flow; beyond that the rarest of each node are merged


class CancelledError(Exception):
    """Raised inside long work that was cancelled."""


class PathSource(SourceWrapper):
    """A source for long work that can be cancelled: it calls ``look``, which may raise, before each call and at each
    token. Distributions are cached in ``known``: at another temperature most of a tree is there already."""

    def __init__(self, source: Source, look: Callable[[], None], known: dict[Tokens, Distribution]) -> None:
        super().__init__(source)
        self._look, self._known = look, known

    def next(self, prefixes: Sequence[Sequence[int]], top: int = -1) -> list[Distribution]:
        self._look()
        wanted = [tuple(prefix) for prefix in prefixes]
        new = [prefix for prefix in dict.fromkeys(wanted) if prefix not in self._known]
        fresh = dict(zip(new, self._source.next(new, top), strict=True)) if new else {}
        found = [fresh.get(prefix) or self._known[prefix] for prefix in wanted]
        # a full cache keeps what it has: every temperature starts with the prefixes that were read first
        if len(self._known) + len(fresh) <= KNOWN:
            self._known.update(fresh)
        return found

    def score(self, prompts: Sequence[Sequence[int]], answers: Sequence[Sequence[int]], top: int = 0) -> list[Trace]:
        self._look()
        return self._source.score(prompts, answers, top)

    def generate(self, requests: Sequence[Request]) -> Generator[Event, None, None]:
        for event in self._source.generate(requests):
            self._look()
            yield event


@dataclass(frozen=True, slots=True)
class MeaningShare:
    """The answers of one meaning: their ``share`` of those drawn, and the bounds ``low`` and ``high`` of their
    probability. ``text``: the most frequent one; ``right``: None if that is not known."""

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
    """What a search has found. ``traces``: the drawn answers; ``meant``: meanings, the most frequent first, each with
    the colour of its place; ``common``: the most frequent answer; ``decode``: tokens → text."""

    asking: PromptContext
    traces: tuple[Trace, ...]
    tree: Tree
    meant: tuple[MeaningShare, ...]
    common: Trace | None
    decode: Callable[[Sequence[int]], str]

    def place_of(self, meaning: Hashable) -> int:
        """The place of a meaning in ``meant``; −1 for one that is not there."""
        return next((i for i, one in enumerate(self.meant) if one.meaning == meaning), -1)

    def colour_of(self, meaning: Hashable) -> str:
        return meaning_colour(self.place_of(meaning))


@dataclass
class PathSearch:
    """The search for one visitor's question. ``n``: answers to draw, ``limit``: tokens per answer; ``budget``: tree
    expansions for the exact bounds; ``known``: distributions from searches at other temperatures; ``done``: the share
    that is done. Setting ``cancelled`` ends it."""

    model: SharedModel
    asking: PromptContext
    temperature: float = 0.7
    n: int = 64
    limit: int = 32
    known: dict[Tokens, Distribution] = field(default_factory=dict)
    budget: int = 400
    cancelled: threading.Event = field(default_factory=threading.Event)
    began: float = field(default_factory=time.monotonic)
    done: float = 0.0

    def paths(self, source: Source) -> FoundPaths:
        """Draws answers and grows the tree. Raises CancelledError."""
        source, sampling = PathSource(source, self._look, self.known), Sampling(temperature=self.temperature)
        request = replace(self.model.request(self.asking.prompt, sampling, self.limit, 0), n=self.n)
        drawn: list[Trace] = []
        for event in source.generate([request]):
            if event.trace is not None:
                drawn.append(event.trace)
                # drawing is the first half of the progress, growing the tree the second
                self.done = 0.5 * len(drawn) / self.n
        traces = tuple(sorted(drawn, key=lambda trace: trace.sample))
        ask = replace(self.asking, source=source)
        how = self.model.tree_settings(ask, sampling, self.limit, self.budget, "mass", eps=0.001)

        def told(expansions: int, unexplored: float) -> None:
            self.done = 0.5 + 0.49 * max(1 - unexplored, expansions / self.budget)

        tree = self.model.grow(ask, how, told).tree
        self.done = 1.0
        decode, meaning = self.model.opened.source.codec.decode, self.asking.meaning
        texts = [decode(trace.tokens) for trace in traces]
        times, meanings = Counter(texts), [meaning(text) for text in texts]
        # the most frequent answer of the most frequent meaning
        best = Counter(meanings).most_common(1)[0][0]
        mine = [trace for trace, said in zip(traces, meanings, strict=True) if said == best and trace.steps]
        common = max(mine, key=lambda trace: times[decode(trace.tokens)], default=None)
        return FoundPaths(self.asking, traces, tree, self._meant(times, tree), common, decode)

    def fork(self, source: Source, trace: Trace) -> Forks:
        """Finds the token at which the meaning of this answer was decided. Raises CancelledError."""
        ask = replace(self.asking, source=PathSource(source, self._look, {}))
        size = self.limit, SAMPLES, 0
        return self.model.find_forks(ask, Sampling(temperature=self.temperature), size, trace).found

    def _look(self) -> None:
        if self.cancelled.is_set() or self.model.stopped.is_set():
            raise CancelledError

    def _meant(self, times: Counter[str], tree: Tree) -> tuple[MeaningShare, ...]:
        by_meaning: dict[Hashable, Counter[str]] = {}
        for text, n in times.items():
            by_meaning.setdefault(self.asking.meaning(text), Counter())[text] += n
        clusters = {cluster.meaning: cluster for cluster in tree.clusters}
        for cluster in tree.clusters[:20]:
            by_meaning.setdefault(cluster.meaning, Counter())
        out = []
        for meaning, counted in by_meaning.items():
            known, drawn = clusters.get(meaning), counted.total()
            text = counted.most_common(1)[0][0] if counted else known.text if known else ""
            low, high = (known.low, known.high) if known else (0.0, tree.unexplored)
            right = self.asking.right(text) if self.asking.right else None
            share = proportion(drawn, times.total())
            out.append(MeaningShare(meaning, label(meaning), text, drawn, share, low, min(1.0, high), right))
        return tuple(sorted(out, key=lambda one: (-one.drawn, -one.low, one.name)))


@dataclass(frozen=True, slots=True)
class FlowNode:
    """A node of the flow: the ``tokens`` that ``count`` answers share between two branchings. ``meaning``: that of all
    answers below, None if they differ; ``merged``: how many rare answers it stands for."""

    tokens: Tokens
    count: int
    meaning: Hashable = None
    children: "Sequence[FlowNode]" = ()
    merged: int = 0


def merge_answers(answers: Sequence[tuple[Tokens, Hashable]]) -> FlowNode:
    """The tree of (tokens, meaning) answers, in which common prefixes are merged."""
    alike = takewhile(lambda one: len(set(one)) == 1, zip(*(tokens for tokens, _ in answers), strict=False))
    kept = tuple(tokens[0] for tokens in alike)
    meanings, groups = {meaning for _, meaning in answers}, dict[Tokens, list[tuple[Tokens, Hashable]]]()
    for tokens, meaning in answers:
        rest = tokens[len(kept) :]
        groups.setdefault(rest[:1], []).append((rest, meaning))
    children = [merge_answers(group) for group in groups.values()] if len(groups) > 1 else []
    children.sort(key=lambda child: -child.count)
    return FlowNode(kept, len(answers), meanings.pop() if len(meanings) == 1 else None, children)


def prune(root: FlowNode, most: int = LEAVES) -> FlowNode:
    """Merges the rarest leaves of each node into one, until about ``most`` leaves are left."""

    def without(node: FlowNode, least: int) -> FlowNode:
        kept = [without(child, least) for child in node.children if child.count > least]
        rare = [child for child in node.children if child.count <= least]
        if len(rare) > 1:
            count = sum(child.count for child in rare)
            rare = [FlowNode((), count, merged=count)]
        return replace(node, children=[*kept, *rare])

    least = 1
    while leaves(root) > most and least <= root.count:
        root = without(root, least)
        least += 1
    return root


def leaves(node: FlowNode) -> int:
    return sum(map(leaves, node.children)) or 1


def flow(paths: FoundPaths, say: Say, fork: int | None, rest: Callable[[int], str]) -> Panel:
    """A Sankey diagram of the drawn answers: width is share, colour is meaning. ``fork``: the place of the token to
    mark in the most frequent answer; ``rest(n)``: the label of ``n`` rare answers, of 0: the end of an answer."""
    meaning, decode, total = paths.asking.meaning, paths.decode, max(1, len(paths.traces))
    common = paths.common.tokens if paths.common is not None else ()

    def drawn(node: FlowNode, before: Tokens) -> dict[str, Any]:
        path = (*before, *node.tokens)
        text = (decode(path).removeprefix(decode(before)) if before else decode(path)).strip()
        decided = fork is not None and common[: len(path)] == path and len(before) <= fork < len(path)
        shown = rest(node.merged) if node.merged else text or ("" if node.children else rest(0))
        colour = "$base" if node.meaning is None or node.merged else paths.colour_of(node.meaning)
        style: Option = {"itemStyle": {"color": colour, "borderColor": "$ink", "borderWidth": 2 * decided}}
        if decided:
            shown, style["label"] = f"▶ {shown}", {"fontWeight": "bold"}
        below = [drawn(child, path) for child in node.children]
        return {"text": shown, "mass": node.count / total, "children": below, "style": style}

    root = drawn(prune(merge_answers([(trace.tokens, meaning(decode(trace.tokens))) for trace in paths.traces])), ())
    if not root["children"]:  # one answer only: without a second node ECharts draws no width
        hidden = {"itemStyle": {"opacity": 0}, "label": {"show": False}}
        root["children"] = [{"text": "", "mass": root["mass"], "children": [], "style": hidden}]
    return flow_panel("", root, say, layoutIterations=0)


def exact(paths: FoundPaths, say: Say, w: Words) -> Panel:
    """The most probable whole answers as a tree, with lines as thick as their probability, coloured by meaning."""

    def drawn(branch: Branch) -> dict[str, Any]:
        colour = paths.colour_of(branch.meaning) if branch.answer is not None else "$base"
        line = {"color": colour, "width": 1 + 13 * branch.mass, "opacity": 0.6, "curveness": 0.5}
        style = {"itemStyle": {"color": colour, "borderColor": colour}, "lineStyle": line}
        text = branch.text.strip() or ("" if branch.children else w("end"))
        below = [drawn(child) for child in branch.children]
        return {"text": text, "mass": branch.mass, "children": below, "style": style}

    root = drawn(most_probable(paths.tree, paths.decode, w("together"), w("everything")))
    return tree_panel("", root, say, ROOT)


def most_probable(tree: Tree, decode: Callable[[Sequence[int]], str], rest: str, everything: str) -> Branch:
    """The tree of the most probable answers. The mass of a prefix is that of all answers found that begin so; answers
    that begin otherwise are one branch together, ``rest``, below the root ``everything``, if it can be seen."""
    seen = sum(answer.low >= SEEN for answer in tree.answers[:SHOWN_ANSWERS]) or 1
    root, total = branches(tree, decode, seen), fsum(a.low for a in tree.answers)
    ways = root.children if root.children and not root.text else (root,)
    left = total - fsum(way.mass for way in ways)
    return root if left < SEEN else Branch(everything, total, (*ways, Branch(rest, left, ())))
