"""How fast the exact distribution of answers and an answer's forks are found: question by question, on one model."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from klype.answers.forks import ForkSettings, forks
from klype.answers.tree import TreeSettings, grow
from klype.examine.examinee import Examinee
from klype.examine.intervals import mean_by_question
from klype.sources.source import Around, Source, answers
from klype.values import Distribution, Request, Sampling


@dataclass(frozen=True, slots=True)
class TreeBench:
    """``budget``: beginnings that a tree may read; ``until_s`` and ``eps``: how soon how little should be unexplored.
    ``forked``: tokens of the answer whose forks are looked for, ``samples`` at each."""

    temperature: float = 0.7
    budget: int = 4000
    limit: int = 32
    eps: float = 0.01
    until_s: float = 2.0
    forked: int = 24
    samples: int = 32
    seed: int = 0


class Timed(Around):
    """Counts the seconds that a model takes for distributions."""

    def __init__(self, source: Source, clock: Callable[[], float]) -> None:
        super().__init__(source)
        self._clock = clock
        self.model_s = 0.0

    def next(self, prefixes: Sequence[Sequence[int]], top: int = -1) -> list[Distribution]:
        began = self._clock()
        found = self._source.next(prefixes, top)
        self.model_s += self._clock() - began
        return found


def trees(
    examinee: Examinee, settings: TreeBench, say: Callable[[str], None], clock: Callable[[], float] = time.perf_counter
) -> dict[str, Any]:
    """One row a question; the share of trees that were explored in time; one answer's forks."""
    sampling = Sampling(temperature=settings.temperature)
    grown = TreeSettings(
        sampling,
        settings.limit,
        settings.budget,
        eps=settings.eps,
        batch=16 if examinee.whole else 8,
        vocabulary=examinee.vocabulary,
    )
    source = Timed(examinee.source, clock)
    source.next([examinee.prompts[0]])  # the first call is slower
    rows: list[dict[str, Any]] = []
    for question, prompt in zip(examinee.questions, examinee.prompts, strict=True):
        began, model_s = clock(), source.model_s
        tree = grow(source, prompt, grown, examinee.spell, examinee.meaning(question))
        taken = clock() - began
        first = tree.answers[0].text if tree.answers else ""
        rows.append(
            {
                "question": question.question,
                "answer": first,
                "words": len(first.split()),
                "answers": len(tree.answers),
                "passes": tree.expansions,
                "seconds": taken,
                "model_seconds": source.model_s - model_s,
                "unexplored": tree.unexplored,
                "stopped": tree.stopped,
            }
        )
        say(f"{len(rows)} of {len(examinee.questions)}: {taken:.2f} s")
    in_time = [float(row["unexplored"] < settings.eps and row["seconds"] <= settings.until_s) for row in rows]
    every = list(range(len(rows)))
    return {
        "model": examinee.name,
        "temperature": settings.temperature,
        "rows": rows,
        "in_time": mean_by_question(in_time, every, "share of trees").json(),
        "seconds": mean_by_question([row["seconds"] for row in rows], every, "s").json(),
        "forks": forked(examinee, settings, clock),
    }


def forked(examinee: Examinee, settings: TreeBench, clock: Callable[[], float]) -> dict[str, Any]:
    """The forks of one answer of so many tokens: it goes on where it would have ended, so that it is that long."""
    source, sampling = examinee.source, Sampling(temperature=settings.temperature)
    prompt, stop = examinee.prompts[0], tuple(source.codec.stop)
    banned = Sampling(temperature=settings.temperature, logit_bias=tuple((token, -1e9) for token in stop))
    trace = answers(source, [Request(prompt, limit=settings.forked, sampling=banned, seed=settings.seed)])[0][0]
    chosen = ForkSettings(sampling, max(settings.limit, settings.forked), settings.samples, settings.seed)
    began = clock()
    found = forks(source, trace, chosen, examinee.meaning(examinee.questions[0]))
    return {"tokens": len(found.positions), "samples": settings.samples, "seconds": clock() - began}
