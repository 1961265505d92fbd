"""What a decoder asks for and what it may spend.

A decoder is a generator: it yields orders and is sent what was found, so that many questions are answered side by side
and one call of the source serves them all. One *pass* is one row of one forward call: a token that is drawn, a
beginning that is read, an answer that is scored (all its tokens at once). ``positions`` counts the tokens that went
through the model, prompts included: the better measure of work where answers are scored rather than drawn.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Hashable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from klype.errors import UsageError
from klype.samplers import PLAIN
from klype.sources.source import Source, answers
from klype.values import Distribution, Request, Sampling, Trace

if TYPE_CHECKING:
    from klype.answers.checks import Check

Tokens = tuple[int, ...]
CHUNK = 64
"""Rows of one call of the source at most, where a row brings a prompt of its own."""


@dataclass(frozen=True, slots=True)
class Draw:
    """Answered with a list of traces; so many tokens of its prompt are ``known``, read before."""

    request: Request
    known: int = 0


@dataclass(frozen=True, slots=True)
class Read:
    """Answered with the next-token distribution after each prefix; ``known``: read before but for its last."""

    prefixes: tuple[Tokens, ...]
    top: int = -1
    known: bool = False


@dataclass(frozen=True, slots=True)
class Score:
    """Answered with one trace an answer: its log-probabilities behind a prompt of its own."""

    prompts: tuple[Tokens, ...]
    answers: tuple[Tokens, ...]


@dataclass(frozen=True, slots=True)
class Judge:
    """Work of another model than the source: answered with what ``work`` returns; a pass a row all the same."""

    work: Callable[[], list[float]]
    rows: int
    positions: int


Order = Draw | Read | Score | Judge


@dataclass(slots=True)
class Purse:
    """Passes that may still be spent, and what was."""

    left: int
    passes: int = 0
    positions: int = 0

    def pay(self, passes: int, positions: int) -> None:
        assert passes <= self.left, "a decoder asks for no more than it has"
        self.left -= passes
        self.passes += passes
        self.positions += positions


@dataclass(frozen=True, slots=True)
class Candidate:
    """One answer. ``logp``: its log-probability at temperature 1; ``weight``: what it counts for its meaning."""

    text: str
    tokens: Tokens
    logp: float
    meaning: Hashable
    ended: bool
    weight: float = 1.0


@dataclass(frozen=True, slots=True)
class Share:
    """A meaning that was found, the answer that stands for it, and how much spoke for it (shares sum to one)."""

    meaning: Hashable
    text: str
    share: float


@dataclass(frozen=True, slots=True)
class Choice:
    """What a decoder decided; ``shares``: most first."""

    chosen: Candidate
    shares: tuple[Share, ...] = ()


@dataclass(frozen=True, slots=True)
class Tuning:
    """The settings of all decoders, each used by those that name it. ``temperature`` of samples; ``weight`` of a check
    beside log P(answer); ``floor``: a step less probable than this is a fall of confidence; ``top``: tokens listed at
    each step that can be branched to."""

    temperature: float = 1.0
    weight: float = 1.0
    floor: float = 0.6
    top: int = 16
    back: int | None = None


@dataclass(frozen=True)
class Asked:
    """One question put to a source; ``checks``: how candidates are judged, where a decoder needs it."""

    prompt: Tokens
    meaning: Callable[[str], Hashable]
    limit: int = 32
    stop: Tokens = ()
    seed: int = 0
    stop_texts: tuple[str, ...] = ()
    sampling: Sampling = PLAIN
    checks: dict[str, Check] = field(default_factory=dict)


@dataclass(slots=True)
class Bench:
    """A decoder's workplace: the question, the source's words, the purse and the plain answer."""

    asked: Asked
    decode: Callable[[Sequence[int]], str]
    tuning: Tuning
    purse: Purse
    plain: Trace

    @property
    def unit(self) -> int:
        """Passes of the plain answer."""
        return max(1, len(self.plain.steps))

    def candidate(self, trace: Trace, before: Sequence[Any] = (), weight: float = 1.0) -> Candidate:
        """The answer made of steps drawn earlier and a trace that goes on from them."""
        steps = (*before, *trace.steps)
        tokens = tuple(step.token for step in steps)
        text = self.spell(tokens)
        logp = sum(step.logp for step in steps)
        return Candidate(text, tokens, logp, self.asked.meaning(text), trace.ended == "stop", weight)

    def spell(self, tokens: Sequence[int]) -> str:
        text = self.decode(tokens)
        for end in self.asked.stop_texts:
            text = text.split(end, 1)[0]
        return text


Deciding = Generator[Order, Any, Choice]
Found = list[Trace] | list[Distribution] | list[float]


def serve(source: Source, orders: Sequence[Order]) -> list[Found]:
    """What each order asks for, in as few calls of the source as their kinds allow."""
    found: list[Found] = [[] for _ in orders]
    draws = [(i, order) for i, order in enumerate(orders) if isinstance(order, Draw)]
    for (i, _), traces in zip(
        draws, answers(source, [order.request for _, order in draws]) if draws else (), strict=True
    ):
        found[i] = traces
    reads = [(i, p, order.top) for i, order in enumerate(orders) if isinstance(order, Read) for p in order.prefixes]
    for top in sorted({top for _, _, top in reads}):
        alike = [(i, prefix) for i, prefix, asked in reads if asked == top]
        for at in range(0, len(alike), CHUNK):
            part = alike[at : at + CHUNK]
            for (i, _), q in zip(part, source.next([prefix for _, prefix in part], top), strict=True):
                found[i].append(q)  # type: ignore[arg-type]
    scores = [
        (i, prompt, answer)
        for i, order in enumerate(orders)
        if isinstance(order, Score)
        for prompt, answer in zip(order.prompts, order.answers, strict=True)
    ]
    for at in range(0, len(scores), CHUNK):
        rows = scores[at : at + CHUNK]
        for (i, _, _), trace in zip(rows, source.score([p for _, p, _ in rows], [a for _, _, a in rows]), strict=True):
            found[i].append(trace)  # type: ignore[arg-type]
    for i, order in enumerate(orders):
        if isinstance(order, Judge):
            found[i] = order.work()
    return found


def most_passes(order: Order) -> int:
    """What an order can cost at most; it is not placed unless there is so much."""
    if isinstance(order, Draw):
        return order.request.n * order.request.limit
    if isinstance(order, Read):
        return len(order.prefixes)
    return len(order.answers) if isinstance(order, Score) else order.rows


def pay(purse: Purse, order: Order, found: Found) -> None:
    """What an order has cost. A prompt is read once, however many answers share it."""
    if isinstance(order, Draw):
        drawn = sum(len(trace.steps) for trace in found if isinstance(trace, Trace))
        read = len(order.request.prompt) - order.known
        purse.pay(drawn, read + max(0, drawn - order.request.n))
    elif isinstance(order, Read):
        purse.pay(len(order.prefixes), len(order.prefixes) if order.known else sum(map(len, order.prefixes)))
    elif isinstance(order, Score):
        purse.pay(len(order.answers), sum(map(len, set(order.prompts))) + sum(map(len, order.answers)))
    else:
        purse.pay(order.rows, order.positions)


def parse_budget(text: str) -> float:
    """ "8×", "8x" or "8": how many times the passes of a plain answer may be spent. UsageError otherwise."""
    try:
        value = float(text.strip().removesuffix("×").removesuffix("x").removesuffix("X").replace(",", "."))
    except ValueError:
        value = 0.0
    if not 1 <= value <= 10_000:
        raise UsageError(
            f"--budget {text}: it should be a number of plain answers from 1 up, such as 8× (or 8x).",
            "What a server may be asked for at most is written 500requests or 20000tokens.",
        )
    return value
