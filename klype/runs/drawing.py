"""More answers to the questions of a store, from any models and temperatures; near-duplicates are left out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from klype.data.order import draw_seed
from klype.judge.meaning import text_meaning
from klype.preferences.candidates import merge_near_duplicates
from klype.preferences.records import Asked, Candidate
from klype.preferences.store import Store
from klype.sources.source import Source, answers
from klype.values import Request, Sampling, Trace

BATCH = 64  # questions a transaction


@dataclass(frozen=True, slots=True)
class DrawSettings:
    """``n`` answers at each of ``temperatures``, of ``limit`` tokens at most, for ``most`` questions (0: all)."""

    temperatures: tuple[float, ...] = (1.0,)
    n: int = 4
    limit: int = 48
    most: int = 0
    seed: int = 0


def draw_into(store: Store, name: str, source: Source, settings: DrawSettings) -> int:
    """Adds ``source``'s finished answers under ``name``; how many were new. What was drawn stays when it is stopped."""
    asked = store.questions()
    asked = asked[: settings.most] if settings.most else asked
    added = 0
    for start in range(0, len(asked), BATCH):
        part = asked[start : start + BATCH]
        groups: list[list[Candidate]] = [[] for _ in part]
        for temperature in settings.temperatures:
            for group, traces in zip(
                groups, answers(source, _requests(source, part, temperature, settings)), strict=True
            ):
                group += [_candidate(source, name, trace, temperature) for trace in traces if trace.ended == "stop"]
        new = [replace(one, candidates=_new(one, group)) for one, group in zip(part, groups, strict=True)]
        store.add([one for one in new if one.candidates])
        added += sum(len(one.candidates) for one in new)
    return added


def _requests(source: Source, part: Sequence[Asked], temperature: float, settings: DrawSettings) -> list[Request]:
    return [
        Request(
            tuple(source.codec.prompt(one.question.messages())),
            n=settings.n,
            limit=settings.limit,
            sampling=Sampling(temperature=temperature),
            seed=draw_seed(settings.seed, one.question.prompt, temperature),
            stop=tuple(source.codec.stop),
        )
        for one in part
    ]


def _candidate(source: Source, name: str, trace: Trace, temperature: float) -> Candidate:
    bare = replace(trace, steps=tuple(replace(step, distribution=None) for step in trace.steps), model=name)
    return Candidate(source.codec.decode(trace.tokens).strip(), name, temperature, trace=bare)


def _new(asked: Asked, drawn: Sequence[Candidate]) -> tuple[Candidate, ...]:
    """Those that say something and are no near-duplicate of what is there or was drawn before them."""
    every = [*asked.candidates, *(c for c in drawn if c.text)]
    merged = merge_near_duplicates([c.text for c in every], meaning=text_meaning(asked.question))
    return tuple(every[one.members[0]] for one in merged if one.members[0] >= len(asked.candidates))
