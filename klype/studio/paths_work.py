"""One question, many answers: drawn ones, the exact most probable ones, their meanings, and where it was decided."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field

from klype.answers.forks import Forks, ForkSettings, forks
from klype.answers.tree import Tree, TreeSettings, grow
from klype.errors import UsageError
from klype.examine.intervals import proportion
from klype.judge.meaning import label
from klype.sources.source import Source
from klype.studio.models import Asking, CancelledError, Model, Remembered
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
class Meant:
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
class Paths:
    """``meant`` most frequent first; its place is the meaning's colour. ``common``: the commonest drawn answer."""

    model: str
    asking: Asking
    settings: PathSettings
    traces: tuple[Trace, ...]
    tree: Tree
    meant: tuple[Meant, ...]
    common: Trace | None

    def place_of(self, meaning: Hashable) -> int:
        """Of a meaning among all; −1 for one that is not listed."""
        return next((i for i, one in enumerate(self.meant) if one.meaning == meaning), -1)


@dataclass
class Search:
    """The work for one visitor's question: what was read is kept for other temperatures. ``cancelled`` ends it."""

    model: Model
    asking: Asking
    known: Known = field(default_factory=dict)
    cancelled: threading.Event = field(default_factory=threading.Event)
    done: float = 0.0

    def paths(self, source: Source, settings: PathSettings) -> Paths:
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
            Remembered(source, self.known), prompt, grown, self.model.spell, self.asking.meaning, self._grown(settings)
        )
        return Paths(
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

    def _meant(self, traces: Sequence[Trace], tree: Tree) -> tuple[Meant, ...]:
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
                Meant(meaning, label(meaning), text, drawn, proportion(drawn, len(traces)), low, min(1.0, high), right)
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
