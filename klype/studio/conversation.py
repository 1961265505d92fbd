"""What was said: turns, in each an answer by every model that was asked, and the branches of every answer.

A branch begins as another answer did, up to a token that was chosen instead; branches of branches make a tree.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from math import log
from secrets import token_urlsafe

from klype.errors import UsageError
from klype.sources.source import Message
from klype.values import Sampling, Step, Trace

KEPT = 40_000_000  # probabilities that are remembered for the bars of all conversations together (some 500 MB)


@dataclass
class AnswerBranch:
    """One way to answer, finished or not. ``steps`` include those it shares with its ``parent`` (the first ``at``) and
    the one that was forced there. ``trace`` is what the model wrote itself, once it has ended; ``joules`` are those of
    these ``seconds``, of all programs together."""

    number: int
    prompt: tuple[int, ...]
    sampling: Sampling
    seed: int
    parent: int | None = None
    at: int = 0
    steps: list[Step] = field(default_factory=list)
    trace: Trace | None = None
    accepted: int | None = None
    proposed: int | None = None
    seconds: float = 0.0
    joules: float | None = None
    failed: str = ""
    running: bool = True

    @property
    def tokens(self) -> tuple[int, ...]:
        return tuple(step.token for step in self.steps)


@dataclass
class Branches:
    """All ways that one model answered one message; ``shown`` is the one that the conversation goes on from."""

    model: str
    answers: list[AnswerBranch] = field(default_factory=list)
    shown: int = 0

    @property
    def current(self) -> AnswerBranch:
        return self.answers[self.shown]

    def begin(self, prompt: Sequence[int], sampling: Sampling, seed: int) -> AnswerBranch:
        return self._add(AnswerBranch(len(self.answers), tuple(prompt), sampling, seed))

    def fork(self, at: int, token: int, sampling: Sampling) -> AnswerBranch:
        """Another way from token ``at`` of the shown answer. Raises UsageError for what is no other way."""
        old = self.current
        if not 0 <= at < len(old.steps):
            raise UsageError(f"The answer has no token {at}.")
        if old.steps[at].token == token:
            raise UsageError("The answer went that way already.")
        was = old.steps[at].distribution
        p = None if was is None else was.p(token)
        logp = float("-inf") if not p else log(p)
        steps = [*old.steps[:at], Step(token, logp, logp, "forced", was)]
        return self._add(AnswerBranch(len(self.answers), old.prompt, sampling, old.seed, old.number, at, steps))

    def _add(self, answer: AnswerBranch) -> AnswerBranch:
        self.answers.append(answer)
        self.shown = answer.number
        return answer


@dataclass
class Turn:
    question: str
    branches: dict[str, Branches] = field(default_factory=dict)


@dataclass
class Conversation:
    """``key`` is in the page's address, so that a page that is loaded anew finds it again."""

    key: str
    turns: list[Turn] = field(default_factory=list)

    def messages(self, model: str, question: str, decode: Callable[[Sequence[int]], str]) -> list[Message]:
        """The conversation as this model knows it: its own answers, as they are shown."""
        out: list[Message] = []
        for turn in self.turns:
            if model in turn.branches:
                out.append({"role": "user", "content": turn.question})
                out.append({"role": "assistant", "content": decode(turn.branches[model].current.tokens)})
        return [*out, {"role": "user", "content": question}]

    @property
    def size(self) -> int:
        """Probabilities that are remembered for its bars."""
        branches = [b for turn in self.turns for b in turn.branches.values()]
        steps = [step for b in branches for answer in b.answers for step in answer.steps]
        return sum(len(step.distribution.ids) for step in steps if step.distribution is not None)


class Conversations:
    """Those of all visitors, the newest ``most`` of them, in memory: nothing is kept beyond the process."""

    def __init__(self, most: int = 64) -> None:
        self._most = most
        self._found: OrderedDict[str, Conversation] = OrderedDict()

    def get(self, key: str) -> Conversation:
        """The one of this key, or a new one under a key of its own."""
        if key in self._found:
            self._found.move_to_end(key)
            return self._found[key]
        made = Conversation(token_urlsafe(12))
        self._found[made.key] = made
        while len(self._found) > self._most or (
            len(self._found) > 2 and sum(one.size for one in self._found.values()) > KEPT
        ):
            self._found.popitem(last=False)
        return made
