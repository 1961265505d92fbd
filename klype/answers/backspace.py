"""Writing with a token that takes the last word back (SequenceMatch: Cundy & Ermon 2023, arXiv:2306.05426).

The token and the word before it leave the text, and that word is barred from its place; where nothing of one's own
stands, the token itself is barred: nothing that others wrote is ever taken back. A model that notices late takes back
word after word. Every token that the model said is a pass, those that are gone among them.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass, field, replace

from klype.answers.decoding import Draw, PassBudget, run
from klype.data.seeds import mix
from klype.sources.source import Source
from klype.values import Request, Step, Tokens, Trace

# added to a logit: no probability is left in float32
BARRED = -1e4


@dataclass(slots=True)
class EditableText:
    """One's own text as it stands. ``back``: the token that takes back; None: nothing ever does.

    ``taken``: the last token took one back.
    """

    tokens: Tokens = ()
    back: int | None = None
    taken: bool = False
    gone: dict[Tokens, set[int]] = field(default_factory=dict)

    def bars(self) -> set[int]:
        """What may not come next."""
        own = {self.back} if self.back is not None and not self.tokens else set()
        return self.gone.get(self.tokens, set()) | own

    def push(self, token: int) -> None:
        """Reads what was said: a word, or the token that takes the last one back."""
        self.taken = token == self.back
        if not self.taken:
            self.tokens = (*self.tokens, token)
        elif self.tokens:
            self.tokens, last = self.tokens[:-1], self.tokens[-1]
            self.gone.setdefault(self.tokens, set()).add(last)


@dataclass(frozen=True, slots=True)
class BackspaceAnswer:
    """``steps``: the text as it stands; ``passes``: all that was said for it; ``ended``: by a stop."""

    steps: tuple[Step, ...]
    passes: tuple[Step, ...]
    ended: bool


FreeTextRequest = Generator[Draw, list[Trace], BackspaceAnswer]


def write_with_backspace(
    request: Request, back: int, budget: PassBudget, begun: Sequence[Step] = (), taken: bool = False
) -> FreeTextRequest:
    """Goes on from what was ``begun`` (and has just been ``taken`` back) to a stop, to ``request.limit`` tokens that
    stand, or until the budget is empty. After something was taken back, noise is drawn anew."""
    steps, passes, turns = list(begun), list[Step](), 0
    draft = EditableText(tuple(step.token for step in begun), back)

    def read(said: Sequence[Step]) -> None:
        for step in said:
            draft.push(step.token)
            if not draft.taken:
                steps.append(step)
            elif steps:
                steps.pop()

    if taken:
        read([Step(back, 0.0, 0.0, "forced")])
        turns = 1
    while (limit := min(budget.left, request.limit - len(steps))) > 0:
        prompt = (*request.prompt, *draft.tokens)
        # else what is written anew at a place would have the noise of what stood there
        seed = mix(request.seed, turns) if turns else request.seed
        on = replace(request, prompt=prompt, n=1, limit=limit, seed=seed, stop=(*request.stop, back))
        if bars := draft.bars():
            # bars hold for one place: one token, then without them
            biases = (*request.sampling.logit_bias, *((token, BARRED) for token in sorted(bars)))
            on = replace(on, limit=1, stop=request.stop, sampling=replace(request.sampling, logit_bias=biases))
        (trace,) = yield Draw(on, len(prompt) if bars else len(prompt) - 1)
        passes += trace.steps
        read(trace.steps)
        turns += draft.taken
        if trace.ended == "stop" and not draft.taken:
            return BackspaceAnswer(tuple(steps), tuple(passes), True)
    return BackspaceAnswer(tuple(steps), tuple(passes), False)


def answers_with_backspace(
    source: Source, requests: Sequence[Request], own: Sequence[int], back: int
) -> list[list[Trace]]:
    """``answers`` of a model that takes words back; a trace's steps are its passes, ``request.limit`` at most.

    The last ``own[i]`` tokens of prompt i are the model's own: they may be taken back, and nothing before them.
    """
    budgets = [PassBudget(request.limit) for request in requests for _ in range(request.n)]
    left, writings = iter(budgets), list[FreeTextRequest]()
    for request, count in zip(requests, own, strict=True):
        cut = len(request.prompt) - count
        begun = [Step(token, 0.0, 0.0, "forced") for token in request.prompt[cut:]]
        alone = replace(request, prompt=request.prompt[:cut], limit=request.limit + count)
        for sample in range(request.first_sample, request.first_sample + request.n):
            writings.append(write_with_backspace(replace(alone, first_sample=sample), back, next(left), begun))
    done = iter(run(source, writings, budgets))
    return [
        [
            Trace(request.prompt, w.passes, request.sampling, request.seed, sample, source.name,
                  "stop" if w.ended else "length", len(w.passes), 0.0)
            for sample, w in zip(range(request.first_sample, request.first_sample + request.n), done, strict=False)
        ]
        for request in requests
    ]  # fmt: skip
