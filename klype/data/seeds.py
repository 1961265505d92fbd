"""Seeds and permutations computed on demand from what they are for, instead of kept in a list."""

import hashlib
from dataclasses import dataclass

_MASK = 2**64 - 1


@dataclass(frozen=True, slots=True)
class Permutation:
    """A seeded bijection of range(size): a Feistel network with cycle walking (Black and Rogaway 2002)."""

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


def draw_seed(seed: int, question: str, temperature: float) -> int:
    """The seed in [0, 2³¹) with which answers to a question are sampled; the engine adds the sample's number.

    With the same noise, answers at two temperatures are often equal (2 of 3 of the hot candidates were), and runs with
    neighbouring seeds would share noise if seeds were added up; so all three arguments are hashed.
    """
    key = f"{seed}\0{temperature!r}\0{question}".encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.blake2b(key, digest_size=4).digest(), "big") >> 1
