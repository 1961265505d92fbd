"""Generation with a backspace token, which takes the last word back (SequenceMatch: Cundy & Ermon 2023,
arXiv:2306.05426).

The backspace and the word before it are removed from the text, and that word is barred from its position. Where the
model has written nothing, backspace itself is barred, so that the prompt is never changed. A model that notices a
mistake late takes back word after word. Every generated token costs a pass, also those that are removed.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from klype.answers.decoder_requests import Decoding, Draw, PassBudget, run
from klype.data.seeds import mix
from klype.sources.source import Source
from klype.values import Request, Step, Tokens, Trace

# added to a logit: its probability is 0 in float32
BARRED = -1e4


@dataclass(slots=True)
class EditableText:
    """A generated text as it stands after backspaces. ``back``: the backspace token, None if there is none.

    ``taken``: whether the last token was a backspace. ``gone``: tokens that were taken back, by the text before them.
    """

    tokens: Tokens = ()
    back: int | None = None
    taken: bool = False
    gone: dict[Tokens, set[int]] = field(default_factory=dict)

    def bars(self) -> set[int]:
        """Tokens that must not come next."""
        own = {self.back} if self.back is not None and not self.tokens else set()
        return self.gone.get(self.tokens, set()) | own

    def push(self, token: int) -> None:
        """Appends a token; backspace removes the last one instead."""
        self.taken = token == self.back
        if not self.taken:
            self.tokens = (*self.tokens, token)
        elif self.tokens:
            self.tokens, last = self.tokens[:-1], self.tokens[-1]
            self.gone.setdefault(self.tokens, set()).add(last)


@dataclass(frozen=True, slots=True)
class BackspaceAnswer:
    """``steps``: the text that is left; ``passes``: every token that was generated; ``ended``: by a stop token."""

    steps: tuple[Step, ...]
    passes: tuple[Step, ...]
    ended: bool


def write_with_backspace(
    request: Request, back: int, budget: PassBudget, begun: Sequence[Step] = (), taken: bool = False
) -> Decoding[BackspaceAnswer]:
    """Continues the text ``begun`` until a stop token, until ``request.limit`` tokens are left, or to the budget's end.

    ``taken``: first, the last of the steps begun is taken back. After every backspace noise is drawn anew.
    """
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
        # otherwise a position would be drawn again with the noise of the token that was removed
        seed = mix(request.seed, turns) if turns else request.seed
        on = replace(request, prompt=prompt, n=1, limit=limit, seed=seed, stop=(*request.stop, back))
        if bars := draft.bars():
            # bars hold at one position: draw one token, then go on without them
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
    """``answers`` of a model with a backspace token. A trace's steps are all its passes, at most ``request.limit``.

    The last ``own[i]`` tokens of prompt i are the model's own: they may be taken back, but nothing before them.
    """
    budgets = [PassBudget(request.limit) for request in requests for _ in range(request.n)]
    left, writings = iter(budgets), list[Decoding[BackspaceAnswer]]()
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
