"""What a decoder requests and what it may spend.

A decoder is a generator: it yields requests and is sent the replies, so that many questions are answered side by side
and one call of the source serves them all. One *pass* is one row of one forward call: a token that is drawn, a
beginning that is read, an answer that is scored (all its tokens at once). ``positions`` counts the tokens that went
through the model, prompts included: the better measure of work where answers are scored rather than drawn.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Hashable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import repeat
from typing import Any, TypeVar

from klype.errors import UsageError
from klype.samplers import PLAIN
from klype.sources.source import Source, answers
from klype.values import Distribution, Request, Sampling, Step, Tokens, Trace

GREEDY = Sampling(temperature=0.0)
CHUNK = 64  # rows of one call of the source at most, where a row brings a prompt of its own


@dataclass(frozen=True, slots=True)
class Draw:
    """Answered with a list of traces; so many tokens of its prompt are ``known``, read before."""

    request: Request
    known: int = 0


@dataclass(frozen=True, slots=True)
class NextTokenRequest:
    """Answered with the next-token distribution after each prefix; ``known``: read before but for its last."""

    prefixes: tuple[Tokens, ...]
    top: int = -1
    known: bool = False


@dataclass(frozen=True, slots=True)
class Score:
    """Answered with one trace an answer: its log-probabilities behind a prompt of its own."""

    prompts: tuple[Tokens, ...]
    answers: tuple[Tokens, ...]


DecodeRequest = Draw | NextTokenRequest | Score


@dataclass(slots=True)
class PassBudget:
    """Passes that may still be spent, and what was."""

    left: int
    passes: int = 0
    positions: int = 0

    def charge(self, request: DecodeRequest, reply: Reply) -> None:
        """Spend what a request has cost. A prompt is read once, however many answers share it."""
        passes = most_passes(request)
        match request:
            case Draw(drawn, known):
                passes = sum(len(trace.steps) for trace in reply if isinstance(trace, Trace))
                positions = len(drawn.prompt) - known + max(0, passes - drawn.n)
            case NextTokenRequest(prefixes, _, known):
                positions = len(prefixes) if known else sum(map(len, prefixes))
            case Score(prompts, answered):
                positions = sum(map(len, set(prompts))) + sum(map(len, answered))
        self.spend(passes, positions)

    def spend(self, passes: int, positions: int) -> None:
        """Take them off what is left."""
        assert passes <= self.left, "a decoder asks for no more than it has"
        self.left -= passes
        self.passes += passes
        self.positions += positions


@dataclass(frozen=True, slots=True)
class DecodedAnswer:
    """One answer. ``logp``: its log-probability at temperature 1."""

    text: str
    tokens: Tokens
    logp: float
    meaning: Hashable
    ended: bool


@dataclass(frozen=True, slots=True)
class Share:
    """A meaning that was found, the answer that stands for it, and how much spoke for it (shares sum to one)."""

    meaning: Hashable
    text: str
    share: float


@dataclass(frozen=True, slots=True)
class Decision:
    """What a decoder decided; ``shares``: most first."""

    chosen: DecodedAnswer
    shares: tuple[Share, ...] = ()


@dataclass(frozen=True, slots=True)
class DecoderSettings:
    """The settings of all decoders, each used by those that name it. ``temperature`` of samples; ``weight`` of a check
    beside log P(answer); ``floor``: a step less probable than this is a fall of confidence; ``top``: tokens listed at
    each step that can be branched to."""

    temperature: float = 1.0
    weight: float = 1.0
    floor: float = 0.6
    top: int = 16
    back: int | None = None


@dataclass(frozen=True)
class DecodeQuestion:
    """One question put to a source; ``checks``: how candidates are judged, where a decoder needs it."""

    prompt: Tokens
    meaning: Callable[[str], Hashable]
    limit: int = 32
    stop: Tokens = ()
    seed: int = 0
    stop_texts: tuple[str, ...] = ()
    sampling: Sampling = PLAIN
    checks: dict[str, Check] = field(default_factory=dict)

    def request(
        self, sampling: Sampling, limit: int, after: Tokens = (), n: int = 1, top: int = 0, first_sample: int = 0
    ) -> Request:
        """To go on from some tokens of the answer, with at most ``limit`` more."""
        prompt = (*self.prompt, *after)
        return Request(prompt, n, limit, sampling, self.seed, self.stop, self.stop_texts, top, first_sample)


@dataclass(slots=True)
class DecodeContext:
    """What a decoder works with: the question, its budget, the plain answer, and how tokens are spelled."""

    question: DecodeQuestion
    decode: Callable[[Sequence[int]], str]
    tuning: DecoderSettings
    budget: PassBudget
    plain: Trace

    @property
    def unit(self) -> int:
        """Passes of the plain answer."""
        return max(1, len(self.plain.steps))

    def candidate(self, trace: Trace, before: Sequence[Step] = ()) -> DecodedAnswer:
        """The answer made of steps drawn earlier and a trace that goes on from them."""
        return self.answer((*before, *trace.steps), trace.ended == "stop")

    def answer(self, steps: Sequence[Step], ended: bool) -> DecodedAnswer:
        tokens = tuple(step.token for step in steps)
        text = self.spell(tokens)
        return DecodedAnswer(text, tokens, sum(step.logp for step in steps), self.question.meaning(text), ended)

    def go_on(self, before: Sequence[Step], limit: int) -> Draw:
        """Greedily, behind steps of which all but the last one have been read."""
        request = self.question.request(GREEDY, limit, tuple(step.token for step in before), top=self.tuning.top)
        return Draw(request, len(request.prompt) - 1)

    def spell(self, tokens: Sequence[int]) -> str:
        text = self.decode(tokens)
        for end in self.question.stop_texts:
            text = text.split(end, 1)[0]
        return text


Deciding = Generator[DecodeRequest, Any, Decision]
Checking = Generator[DecodeRequest, Any, list[float]]
Check = Callable[[DecodeContext, Sequence[DecodedAnswer]], Checking]  # a log-score of each candidate
Reply = list[Trace] | list[Distribution]
T = TypeVar("T")


def run(source: Source, decoding: Sequence[Generator[Any, Any, T]], budgets: Sequence[PassBudget]) -> list[T]:
    """What each generator returns. They run side by side: what they request at one time is served together."""
    done: dict[int, T] = {}
    replies: dict[int, Reply | None] = dict.fromkeys(range(len(decoding)))
    while replies:
        requests: dict[int, DecodeRequest] = {}
        for i, reply in replies.items():
            try:
                requests[i] = decoding[i].send(reply)
            except StopIteration as end:
                done[i] = end.value
        for i, request in requests.items():
            # before anything is asked: a budget is never exceeded
            assert most_passes(request) <= budgets[i].left, "a decoder asks for no more than it has"
        replies = dict(zip(requests, serve(source, list(requests.values())), strict=True))
        for i, request in requests.items():
            budgets[i].charge(request, replies[i] or [])
    return [done[i] for i in range(len(decoding))]


def serve(source: Source, requests: Sequence[DecodeRequest]) -> list[Reply]:
    """What each request is answered with, in as few calls of the source as their kinds allow."""
    replies: list[Any] = [[] for _ in requests]
    draws = [(i, request.request) for i, request in enumerate(requests) if isinstance(request, Draw)]
    for (i, _), traces in zip(draws, answers(source, [one for _, one in draws]) if draws else (), strict=True):
        replies[i] = traces
    reads: dict[int, list[tuple[int, Tokens]]] = {}  # one call lists equally many tokens for all its prefixes
    scores: list[tuple[int, Tokens, Tokens]] = []
    for i, request in enumerate(requests):
        match request:
            case NextTokenRequest(prefixes, top):
                reads.setdefault(top, []).extend((i, prefix) for prefix in prefixes)
            case Score(prompts, answered):
                scores += zip(repeat(i), prompts, answered, strict=False)
    for top in sorted(reads):
        for part in batched(reads[top]):
            for (i, _), q in zip(part, source.next([prefix for _, prefix in part], top), strict=True):
                replies[i].append(q)
    for rows in batched(scores):
        for (i, _, _), trace in zip(rows, source.score([p for _, p, _ in rows], [a for _, _, a in rows]), strict=True):
            replies[i].append(trace)
    return replies


def batched(rows: Sequence[T]) -> Iterator[Sequence[T]]:
    return (rows[at : at + CHUNK] for at in range(0, len(rows), CHUNK))


def most_passes(request: DecodeRequest) -> int:
    """What a request can cost at most; it is not placed unless there is so much."""
    match request:
        case Draw(drawn):
            return drawn.n * drawn.limit
        case NextTokenRequest(prefixes):
            return len(prefixes)
        case Score(_, answered):
            return len(answered)


def parse_budget(text: str) -> float:
    """ "8×", "8x" or "8": how many times the passes of a plain answer may be spent. UsageError otherwise."""
    try:
        value = float(text.strip().removesuffix("×").removesuffix("x").removesuffix("X").replace(",", "."))
    except ValueError:
        value = 0.0
    if not 1 <= value <= 10_000:
        raise UsageError(
            f"--budget {text}: it should be a number of plain answers from 1 up, such as 8× (or 8x).",
            "Limits for a server are written 500requests or 20000tokens.",
        )
    return value
