"""The table of decoders, and what runs them over many questions at once."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from klype.answers import strategies
from klype.answers.checks import CHECKS
from klype.answers.decoding import (
    GREEDY,
    Deciding,
    Decision,
    DecodeContext,
    DecodeQuestion,
    Draw,
    PassBudget,
    Tuning,
    run,
    serve,
)
from klype.errors import UsageError
from klype.sources.source import Source
from klype.values import Trace


@dataclass(frozen=True, slots=True)
class Decoder:
    """``about``: what it chooses, by language. ``spends``: more budget is of use. ``needs``: the check that a question
    must bring. ``tunes``: its settings, the values worth trying."""

    name: str
    strategy: Callable[[DecodeContext], Deciding]
    about: Mapping[str, str]
    spends: bool = True
    needs: str = ""
    tunes: tuple[Tuning, ...] = (Tuning(),)


WARM = (Tuning(), Tuning(temperature=0.7))
DECODERS = {
    decoder.name: decoder
    for decoder in (
        Decoder(
            "greedy",
            strategies.plain,
            {"en": "always the most probable word", "nb": "hele tiden det mest sannsynlige ordet"},
            spends=False,
        ),
        Decoder(
            "sample",
            strategies.plain,
            {
                "en": "each word drawn at random, as probable as the model makes it",
                "nb": "hvert ord trukket tilfeldig, så ofte som modellen mener det skal komme",
            },
            spends=False,
            tunes=WARM,
        ),
        Decoder(
            "consensus",
            strategies.consensus,
            {"en": "the meaning that most drawn answers share", "nb": "meningen som flest trukne svar er enige om"},
            tunes=WARM,
        ),
        Decoder(
            "search",
            strategies.search,
            {
                "en": "the meaning whose answers are the most probable together",
                "nb": "meningen som har de mest sannsynlige svarene til sammen",
            },
        ),
        *(
            Decoder(
                f"verify-{name}",
                strategies.verify(name),
                check.about,
                needs=name,
                tunes=tuple(Tuning(weight=weight) for weight in check.weights),
            )
            for name, check in CHECKS.items()
        ),
        Decoder(
            "backtrack",
            strategies.backtrack,
            {
                "en": "the surer of the ways from where confidence fell",
                "nb": "den sikreste av veiene fra stedet der modellen ble usikker",
            },
            tunes=(Tuning(), Tuning(floor=0.9)),
        ),
        Decoder(
            "backspace",
            strategies.backspace,
            {
                "en": "what was left when the model had taken back its own words",
                "nb": "det som sto igjen etter at modellen hadde visket ut sine egne ord",
            },
        ),
    )
}


@dataclass(frozen=True, slots=True)
class Decided:
    """``passes`` and ``positions`` in all, the plain answer included; ``plain_passes``: of that alone."""

    choice: Decision
    plain: Decision
    passes: int
    positions: int
    plain_passes: int
    plain_positions: int


def decoder(name: str) -> Decoder:
    if name not in DECODERS:
        raise UsageError(f"There is no decoder {name}.", f"There are: {', '.join(DECODERS)}.")
    return DECODERS[name]


def decide(
    source: Source,
    questions: Sequence[DecodeQuestion],
    name: str,
    budget: float = 4.0,
    tuning: Tuning | None = None,
    plain: Sequence[Trace] | None = None,
) -> list[Decided]:
    """Every question decided within ``budget`` times the passes of its plain answer.

    ``plain``: the plain answers, where they are known already with their distributions (they are paid all the same).
    Errors: an unknown decoder, a budget below 1, a question without what the decoder needs.
    """
    row = decoder(name)
    if budget < 1:
        raise UsageError(f"A budget of {budget:g} plain answers is too little: one at least.")
    settings = row.tunes[0] if tuning is None else tuning
    requests = [first(question, settings, name == "sample") for question in questions]
    if plain is None:
        plain = [trace for (trace,) in serve(source, requests)]  # type: ignore[misc]
    contexts = []
    for question, request, trace in zip(questions, requests, plain, strict=True):
        passes = PassBudget(int(budget * max(1, len(trace.steps))))
        passes.charge(request, [trace])
        contexts.append(DecodeContext(question, source.codec.decode, settings, passes, trace))
    costs = [(context.budget.passes, context.budget.positions) for context in contexts]
    choices = run(source, [row.strategy(context) for context in contexts], [context.budget for context in contexts])
    return [
        Decided(
            choice, Decision(context.candidate(context.plain)), context.budget.passes, context.budget.positions, *cost
        )
        for choice, context, cost in zip(choices, contexts, costs, strict=True)
    ]


def first(question: DecodeQuestion, tuning: Tuning, drawn: bool = False) -> Draw:
    """The request of the plain answer: greedy, with the likely tokens of every step; or one sample."""
    sampling = replace(question.sampling, temperature=tuning.temperature) if drawn else GREEDY
    return Draw(question.request(sampling, question.limit, top=0 if drawn else tuning.top))
