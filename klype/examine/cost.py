"""What an answer costs. FLOPs are counted (a multiplication and an addition are two), not measured."""

from __future__ import annotations

import time
from dataclasses import dataclass

from klype.device import EnergyMeter

WATTS_PER_CORE = 10.0
"""Where energy cannot be read: about what a core at work takes, its share of the rest included."""


class Energy:
    """Joules since it was made: by the processor's counters, or else estimated from this process's processor time.

    Wall time times the threads that torch may use is no estimate: how many of them work changes with the batch, and
    energy rose where time fell.
    """

    def __init__(self) -> None:
        self._meter, self._cpu = EnergyMeter(), time.process_time()
        self.estimated = not self._meter.available
        self._meter.joules()

    def joules(self) -> float:
        """Used so far."""
        seconds = time.process_time() - self._cpu
        read = self._meter.joules()
        return seconds * WATTS_PER_CORE if read is None else read


@dataclass(frozen=True, slots=True)
class Shape:
    """``matrices``: parameters that are multiplied with (not looked-up embeddings); ``width``: of all query heads.
    ``weight_bytes`` are read in every pass, ``cache_bytes`` are kept for every token; 0: not known."""

    matrices: int
    layers: int
    width: int
    weight_bytes: int = 0
    cache_bytes: int = 0


def token_flops(shape: Shape, context: int) -> int:
    """One token behind a context of so many (itself included): matrices once, attention's scores and values."""
    return 2 * shape.matrices + 4 * shape.layers * shape.width * context


def answer_flops(shape: Shape, prompt: int, answer: int, cached: bool = True) -> int:
    """A prompt and an answer of so many tokens; the last token is drawn, not fed. Uncached: all again for each word."""
    if answer == 0:
        return 0
    if cached:
        return _text_flops(shape, prompt + answer - 1)
    return sum(_text_flops(shape, prompt + i) for i in range(answer))


def _text_flops(shape: Shape, length: int) -> int:
    return 2 * shape.matrices * length + 4 * shape.layers * shape.width * (length * (length + 1) // 2)


def answer_bytes(shape: Shape, prompt: int, answer: int) -> int:
    """What one answer alone moves between memory and processor: the weights once a pass, the cache of each token
    written once and read in every later pass. The prompt is one pass, and each token but the last is one more."""
    if answer == 0:
        return 0
    written = prompt + answer - 1
    read = sum(range(prompt, prompt + answer - 1))
    return answer * shape.weight_bytes + shape.cache_bytes * (written + read)
