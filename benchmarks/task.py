"""The task of every engine, and the text of its prompt."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

PROMPT = 64
SINGLE = 64
MANY = 32
SIZES = (64, 256)
# Out of copyright: A. Conan Doyle, "A Scandal in Bohemia" (1891); C. Darwin, "On the Origin of Species" (1859).
TEXT = """
To Sherlock Holmes she is always the woman. I have seldom heard him mention her under any other name. In his eyes she
eclipses and predominates the whole of her sex. It was not that he felt any emotion akin to love for Irene Adler. All
emotions, and that one particularly, were abhorrent to his cold, precise but admirably balanced mind. He was, I take
it, the most perfect reasoning and observing machine that the world has seen, but as a lover he would have placed
himself in a false position. He never spoke of the softer passions, save with a gibe and a sneer. They were admirable
things for the observer, excellent for drawing the veil from men's motives and actions. But for the trained reasoner
to admit such intrusions into his own delicate and finely adjusted temperament was to introduce a distracting factor
which might throw a doubt upon all his mental results. Grit in a sensitive instrument, or a crack in one of his own
high-power lenses, would not be more disturbing than a strong emotion in a nature such as his. And yet there was but
one woman to him, and that woman was the late Irene Adler, of dubious and questionable memory.

When on board H.M.S. Beagle, as naturalist, I was much struck with certain facts in the distribution of the
inhabitants of South America, and in the geological relations of the present to the past inhabitants of that
continent. These facts seemed to me to throw some light on the origin of species, that mystery of mysteries, as it has
been called by one of our greatest philosophers. On my return home, it occurred to me, in 1837, that something might
perhaps be made out on this question by patiently accumulating and reflecting on all sorts of facts which could
possibly have any bearing on it. After five years' work I allowed myself to speculate on the subject, and drew up some
short notes; these I enlarged in 1844 into a sketch of the conclusions, which then seemed to me probable: from that
period to the present day I have steadily pursued the same object.
"""


def plain_text() -> str:
    """The text without its line breaks."""
    return " ".join(TEXT.split())


@dataclass(frozen=True)
class Files:
    """One model in the formats that the engines read: a Hugging Face folder, and GGUF files by type of weight.
    ``home``: a folder for what engines compile."""

    folder: str
    ggufs: dict[str, str]
    threads: int
    home: str


class Contender(Protocol):
    """An engine that is measured, in a process of its own."""

    def load(self, files: Files) -> None: ...

    def run(self, prompt: list[int], n: int, limit: int) -> list[int]:
        """Generates ``n`` answers of exactly ``limit`` tokens: greedily if n is 1 (its tokens are returned where they
        are known), else at temperature 1 over the whole vocabulary."""
        ...

    def extra(self, what: str, prompt: list[int]) -> dict[str, Any]:
        """Measurements that only some engines have."""
        ...
