"""The requests that a decoder makes of a model, and the budget that it spends on them.

A decoder is a generator that yields requests and is sent the replies, so that many questions are decoded side by side
and one call of the source serves them all. One *pass* is one row of one forward call: a token that is drawn, a prefix
that is read, or an answer that is scored (all its tokens at once). ``positions`` counts the tokens that went through
the model, prompts included; it is the better measure of work where answers are scored rather than drawn.
"""

from collections.abc import Callable, Generator, Hashable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from klype.errors import UsageError
from klype.samplers import PLAIN
from klype.sources.source import Source, answers
from klype.values import Distribution, Request, Sampling, Step, Tokens, Trace

GREEDY = Sampling(temperature=0.0)
CHUNK = 64  # maximum number of rows in one call of the source where every row has a prompt of its own


@dataclass(frozen=True, slots=True)
class Draw:
    """A request for answers; the reply is their traces. ``known``: tokens of the prompt that were read before."""

    request: Request
    known: int = 0


@dataclass(frozen=True, slots=True)
class NextTokenRequest:
    """A request for the next-token distribution after each prefix. ``top``: tokens listed (-1: all). ``known``: all but
    the last token of each prefix was read before."""

    prefixes: tuple[Tokens, ...]
    top: int = -1
    known: bool = False


@dataclass(frozen=True, slots=True)
class Score:
    """A request for the log-probabilities of given answers, the reply is their traces. ``rows``: (prompt, answer)."""

    rows: tuple[tuple[Tokens, Tokens], ...]


DecodeRequest = Draw | NextTokenRequest | Score


@dataclass(slots=True)
class PassBudget:
    """Passes that are left to spend; passes and positions spent so far."""

    left: int
    passes: int = 0
    positions: int = 0

    def charge(self, request: DecodeRequest, reply: "Reply") -> None:
        """Spend what a request has cost. A prompt is read once, however many answers share it."""
        passes = most_passes(request)
        match request:
            case Draw(drawn, known):
                passes = sum(len(trace.steps) for trace in reply if isinstance(trace, Trace))
                positions = len(drawn.prompt) - known + max(0, passes - drawn.n)
            case NextTokenRequest(prefixes, _, known):
                positions = len(prefixes) if known else sum(map(len, prefixes))
            case Score(rows):
                positions = sum(len(prompt) for prompt in {p for p, _ in rows}) + sum(len(answer) for _, answer in rows)
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
    """A meaning, the answer that represents it, and its share of the vote (shares sum to one)."""

    meaning: Hashable
    text: str
    share: float


@dataclass(frozen=True, slots=True)
class Decision:
    """The answer that a decoder chose, and the shares of all meanings, largest first."""

    chosen: DecodedAnswer
    shares: tuple[Share, ...] = ()


@dataclass(frozen=True, slots=True)
class DecoderSettings:
    """Settings of the decoders; each decoder uses some of them.

    ``temperature`` of samples. ``weight`` of a check relative to log P(answer). ``floor``: confidence has fallen where
    a token is less probable than this. ``top``: tokens listed at each step, which can be branched to. ``back``: the
    token with which a model takes its last word back, None if it has none.
    """

    temperature: float = 1.0
    weight: float = 1.0
    floor: float = 0.6
    top: int = 16
    back: int | None = None


@dataclass(frozen=True)
class DecodeQuestion:
    """A question as it is put to a source. ``checks``: functions that score candidates, by name, for the decoders that
    need one."""

    prompt: Tokens
    meaning: Callable[[str], Hashable]
    limit: int = 32
    stop: Tokens = ()
    seed: int = 0
    stop_texts: tuple[str, ...] = ()
    sampling: Sampling = PLAIN
    checks: "dict[str, Check]" = field(default_factory=dict)

    def request(
        self, sampling: Sampling, limit: int, after: Tokens = (), n: int = 1, top: int = 0, first_sample: int = 0
    ) -> Request:
        """A request to continue the answer that begins with the tokens ``after``, by at most ``limit`` tokens."""
        prompt = (*self.prompt, *after)
        return Request(prompt, n, limit, sampling, self.seed, self.stop, self.stop_texts, top, first_sample)


@dataclass(slots=True)
class DecodeContext:
    """What a decoder works with: the question, settings and budget, the plain answer, and how tokens are decoded."""

    question: DecodeQuestion
    decode: Callable[[Sequence[int]], str]
    tuning: DecoderSettings
    budget: PassBudget
    plain: Trace

    def candidate(self, trace: Trace, before: Sequence[Step] = ()) -> DecodedAnswer:
        """The answer that consists of earlier steps and a trace that continues them."""
        return self.answer((*before, *trace.steps), trace.ended == "stop")

    def answer(self, steps: Sequence[Step], ended: bool) -> DecodedAnswer:
        tokens = tuple(step.token for step in steps)
        text = self.text_of(tokens)
        return DecodedAnswer(text, tokens, sum(step.logp for step in steps), self.question.meaning(text), ended)

    def continue_greedily(self, before: Sequence[Step], limit: int) -> Draw:
        """A request to continue these steps greedily; all but the last of them have been read."""
        request = self.question.request(GREEDY, limit, tuple(step.token for step in before), top=self.tuning.top)
        return Draw(request, len(request.prompt) - 1)

    def text_of(self, tokens: Sequence[int]) -> str:
        text = self.decode(tokens)
        for end in self.question.stop_texts:
            text = text.split(end, 1)[0]
        return text


T = TypeVar("T")
Decoding = Generator[DecodeRequest, Any, T]  # yields requests, is sent the replies, and returns a T
Check = Callable[[DecodeContext, Sequence[DecodedAnswer]], Decoding[list[float]]]  # a log-score of each candidate
Reply = list[Trace] | list[Distribution]


def run(source: Source, decoding: Sequence[Decoding[T]], budgets: Sequence[PassBudget]) -> list[T]:
    """Runs the generators side by side, serving their requests together; returns what each of them returns."""
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
            # checked before the source is called: a budget is never exceeded
            assert most_passes(request) <= budgets[i].left, "a decoder asks for no more than it has"
        replies = dict(zip(requests, serve(source, list(requests.values())), strict=True))
        for i, request in requests.items():
            budgets[i].charge(request, replies[i] or [])
    return [done[i] for i in range(len(decoding))]


def serve(source: Source, requests: Sequence[DecodeRequest]) -> list[Reply]:
    """The replies to these requests, from as few calls of the source as their kinds allow."""
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
            case Score(rows):
                scores += [(i, *row) for row in rows]
    for top in sorted(reads):
        for part in chunks_of(reads[top]):
            for (i, _), q in zip(part, source.next([prefix for _, prefix in part], top), strict=True):
                replies[i].append(q)
    for some in chunks_of(scores):
        for (i, _, _), trace in zip(some, source.score([p for _, p, _ in some], [a for _, _, a in some]), strict=True):
            replies[i].append(trace)
    return replies


def chunks_of(rows: Sequence[T]) -> Iterator[Sequence[T]]:
    return (rows[at : at + CHUNK] for at in range(0, len(rows), CHUNK))


def most_passes(request: DecodeRequest) -> int:
    """The most passes that a request can cost; a decoder must have as many left."""
    match request:
        case Draw(drawn):
            return drawn.n * drawn.limit
        case NextTokenRequest(prefixes):
            return len(prefixes)
        case Score(rows):
            return len(rows)


def parse_budget(text: str) -> float:
    """A budget in plain answers, written "8×", "8x" or "8". Raises UsageError for anything else."""
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
