"""A seeded permutation of 0 … n-1 that is computed item by item, so that no list of it is ever in memory."""

from __future__ import annotations

from dataclasses import dataclass

_MASK = 2**64 - 1


@dataclass(frozen=True, slots=True)
class Permutation:
    """A bijection of range(size): a Feistel network, walked until it lands inside (Black and Rogaway 2002)."""

    size: int
    seed: int

    def __call__(self, index: int) -> int:
        assert 0 <= index < self.size
        half = max(1, ((self.size - 1).bit_length() + 1) // 2)
        while True:
            left, right = index >> half, index & ((1 << half) - 1)
            for turn in range(4):
                left, right = right, left ^ (mix(right, self.seed, turn) & ((1 << half) - 1))
            index = (left << half) | right
            if index < self.size:
                return index


def mix(*values: int) -> int:
    """64 well-mixed bits of some integers (SplitMix64's finaliser, chained)."""
    h = 0x9E3779B97F4A7C15
    for value in values:
        h = (h ^ (value & _MASK)) + 0x9E3779B97F4A7C15 & _MASK
        h = (h ^ (h >> 30)) * 0xBF58476D1CE4E5B9 & _MASK
        h = (h ^ (h >> 27)) * 0x94D049BB133111EB & _MASK
        h ^= h >> 31
    return h
