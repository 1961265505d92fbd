"""What a store holds in all, counted once for all who look at it, and not more often than it is worth."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from klype.preferences.records import Entry
from klype.runs.rankers import summary

if TYPE_CHECKING:
    from klype.studio.ranking_places import Place

EVERY_S = 5.0


@dataclass(frozen=True)
class Tally:
    """A store's entries, how well their makers agree, and how many questions there are."""

    entries: Sequence[Entry]
    summary: Mapping[str, Any]
    questions: int


@dataclass
class Tallies:
    """``of`` waits for the store: call it in a thread. What it tells may be ``EVERY_S`` old while others rank."""

    clock: Callable[[], float] = time.monotonic
    _known: dict[str, tuple[tuple[int, int], float, Tally]] = field(default_factory=dict)
    _counting: threading.Lock = field(default_factory=threading.Lock)

    def of(self, place: Place) -> Tally:
        with self._counting, place.open() as store:
            known, mark = self._known.get(place.key), store.mark()
            if known is not None and (known[0] == mark or self.clock() - known[1] < EVERY_S):
                return known[2]
            entries = store.entries()
            questions = sum(len(asked.candidates) > 1 for asked in store.questions())
            tally = Tally(entries, summary(entries), questions)
            self._known[place.key] = (mark, self.clock(), tally)
            return tally
