"""The table of decoders, and what runs them over many questions at once."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from klype.answers import strategies
from klype.answers.checks import CHECKS
from klype.answers.decoding import (
    Asked,
    Bench,
    Choice,
    Deciding,
    Draw,
    Order,
    Purse,
    Tuning,
    most_passes,
    pay,
    serve,
)
from klype.errors import UsageError
from klype.sources.source import Source
from klype.values import Request, Trace


@dataclass(frozen=True, slots=True)
class Decoder:
    """``about``: what it chooses, by language. ``spends``: more budget is of use. ``needs``: the check that a question
    must bring. ``tunes``: its settings, the values worth trying."""

    name: str
    way: Callable[[Bench], Deciding]
    about: Mapping[str, str]
    spends: bool = True
    needs: str = ""
    tunes: tuple[Tuning, ...] = (Tuning(),)


def weighed(weight: float) -> Tuning:
    return Tuning(weight=weight)


WARM = (Tuning(), Tuning(temperature=0.7))
DECODERS = {
    decoder.name: decoder
    for decoder in (
        Decoder(
            "greedy",
            strategies.plain,
            {
                "en": "always the most probable word",
                "nb": "hele tiden det mest sannsynlige ordet",
            },
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
            {
                "en": "the meaning that most drawn answers share",
                "nb": "meningen som flest trukne svar er enige om",
            },
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
                tunes=tuple(map(weighed, check.weights)),
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

    choice: Choice
    plain: Choice
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
    questions: Sequence[Asked],
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
    orders = [first(asked, settings, name == "sample") for asked in questions]
    if plain is None:
        plain = [trace for (trace,) in serve(source, orders)]  # type: ignore[misc]
    benches = []
    for asked, order, trace in zip(questions, orders, plain, strict=True):
        purse = Purse(int(budget * max(1, len(trace.steps))))
        pay(purse, order, [trace])
        benches.append(Bench(asked, source.codec.decode, settings, purse, trace))
    costs = [(bench.purse.passes, bench.purse.positions) for bench in benches]
    choices = _run(source, benches, row)
    return [
        Decided(choice, Choice(bench.candidate(bench.plain)), bench.purse.passes, bench.purse.positions, *cost)
        for choice, bench, cost in zip(choices, benches, costs, strict=True)
    ]


def first(asked: Asked, tuning: Tuning, drawn: bool = False) -> Draw:
    """The order of the plain answer: greedy, with the likely tokens of every step; or one sample."""
    sampling = replace(asked.sampling, temperature=tuning.temperature) if drawn else strategies.GREEDY
    top = 0 if drawn else tuning.top
    return Draw(Request(asked.prompt, 1, asked.limit, sampling, asked.seed, asked.stop, asked.stop_texts, top))


def _run(source: Source, benches: Sequence[Bench], row: Decoder) -> list[Choice]:
    """All generators side by side: what they order at one time is served together."""
    choices: dict[int, Choice] = {}
    going: dict[int, tuple[Deciding, Order]] = {}
    for i, bench in enumerate(benches):
        way = row.way(bench)
        try:
            going[i] = way, next(way)
        except StopIteration as end:
            choices[i] = end.value
    while going:
        placed = list(going.items())
        for i, (_, order) in placed:
            assert most_passes(order) <= benches[i].purse.left, "a decoder asks for no more than it has"
        served = serve(source, [order for _, (_, order) in placed])
        going = {}
        for (i, (way, order)), found in zip(placed, served, strict=True):
            pay(benches[i].purse, order, found)
            try:
                going[i] = way, way.send(found)
            except StopIteration as end:
                choices[i] = end.value
    return [choices[i] for i in range(len(benches))]
