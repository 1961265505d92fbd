"""The feedback experiment: does a mistake make the next one likelier?

First errors cannot show it (they end survival), so one is forced. On the model's own right beginning, at a position
fixed by rule beforehand, a whole token is forced: *wrong* ~ q outside A; *right* ~ q inside A; *near*: the right one
whose q is nearest to the wrong one's, so that rarity is not taken for wrongness. Never the end of the text; forced at
temperature 1. Then the model goes on at its temperature, and at distance d the exact mass on tokens that cannot follow
is recorded. An arm that has ended counts as no error; its share is shown. All effects are paired by beginning.

Where the model has a token that takes the last word back, it is obeyed, the forced token included; distances are then
passes: to take back is no error, but it costs one. Beside it stands in what share of texts an error is left.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal
from zlib import crc32

import numpy as np

from klype.answers.decoders.taking_back import Sheet, obeyed
from klype.examine.intervals import ratio_of_means
from klype.examine.truth import Reader, Tokens, among, at_temperature, mass
from klype.sources.source import Source, answers
from klype.values import Distribution, Figure, Request, Sampling, Trace

Arm = Literal["wrong", "right", "near"]
ARMS: tuple[Arm, ...] = ("wrong", "right", "near")
LEAST = 1e-12
"""Words that are together less likely than this are none."""


@dataclass(frozen=True, slots=True)
class Asked:
    """A question with its truth."""

    question: str
    prompt: Tokens
    reader: Reader


@dataclass(frozen=True, slots=True)
class FeedbackSettings:
    """Question i is shocked at position i mod ``positions`` of its own answer, ``samples`` continuations an arm.

    ``back``: the token that takes the last word back, where the model has learnt one.
    """

    temperature: float = 1.0
    positions: int = 3
    distances: int = 6
    samples: int = 4
    seed: int = 0
    back: int | None = None


@dataclass(frozen=True, slots=True)
class Shock:
    """A beginning of the model's own and the three tokens forced there; ``s``: mass on right tokens before it.

    Models are compared on the same shocks.
    """

    question: str
    before: Tokens
    tokens: tuple[int, int, int]
    s: float


@dataclass(frozen=True, slots=True)
class Aftermath:
    """What followed one shock, by arm and distance (1, 2, …): mean error mass, share that had ended, share without an
    error so far; ``moved``: total variation between q after *wrong* and after *right* before the same next words;
    ``standing``: share in whose text an error stands, the forced one included (always, where nothing is taken back)."""

    shock: Shock
    errors: dict[Arm, tuple[float, ...]]
    ended: dict[Arm, tuple[float, ...]]
    clean: dict[Arm, tuple[float, ...]]
    moved: tuple[float | None, ...]
    standing: dict[Arm, tuple[float, ...]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Effect:
    """By distance: *wrong* less *right*, wrong ÷ right, *wrong* less *near*, recovery, prefix-blind change of q."""

    difference: tuple[Figure, ...]
    ratio: tuple[Figure, ...]
    beside_near: tuple[Figure, ...]
    recovery: tuple[Figure, ...]
    moved: tuple[Figure, ...]
    ended: dict[Arm, tuple[float, ...]]
    shocks: int


def shocks(
    source: Source, asked: Sequence[Asked], settings: FeedbackSettings, is_word: Callable[[int], bool]
) -> tuple[list[Shock], int]:
    """The shocks, and how many questions had none: their answer was not right or had ended before its position, or
    nothing wrong (or nothing right but the end) could follow."""
    stop = tuple(source.codec.stop)
    begun = _beginnings(source, asked, settings)
    places = [i for i, before in enumerate(begun) if before is not None]
    listed = source.next([(*asked[i].prompt, *(begun[i] or ())) for i in places], -1) if places else []
    last = max((int(q.ids.max()) for q in listed), default=-1)
    word_V = np.array([token not in stop and is_word(token) for token in range(last + 1)], bool)
    found = []
    for i, q in zip(places, listed, strict=True):
        one, before = asked[i], begun[i] or ()
        rng = np.random.default_rng([settings.seed, crc32(one.question.encode())])
        possible = one.reader.next(before)
        words = word_V[q.ids]
        possible_K = among(q.ids, possible)
        tokens = _forced(q, words & possible_K, words & ~possible_K, rng)
        if tokens is not None:
            found.append(Shock(one.question, before, tokens, mass(q, settings.temperature, possible)))
    return found, len(asked) - len(found)


def aftermaths(
    source: Source, asked: Sequence[Asked], forced: Sequence[Shock], settings: FeedbackSettings
) -> list[Aftermath]:
    """What follows each shock. ``forced`` may come from another model."""
    if not forced:
        return []
    by_name = {one.question: one for one in asked}
    requests = [
        Request(
            (*by_name[shock.question].prompt, *shock.before, token),
            n=settings.samples,
            limit=settings.distances,
            sampling=Sampling(temperature=settings.temperature),
            seed=crc32(f"{settings.seed} {shock.question} {arm}".encode()),
            stop=tuple(source.codec.stop),
            top=-1,
        )
        for shock in forced
        for arm, token in zip(ARMS, shock.tokens, strict=True)
    ]
    groups = iter(_gone_on(source, requests, forced, settings.back))
    drawn = [{arm: next(groups) for arm in ARMS} for _ in forced]
    nothing: list[tuple[float | None, ...]] = [(None,) * settings.distances] * len(forced)
    moved = nothing if settings.back is not None else _moved(source, by_name, forced, drawn, settings)
    out = []
    for shock, arms, change in zip(forced, drawn, moved, strict=True):
        reader = by_name[shock.question].reader
        rows = {
            arm: [_followed(reader, (*shock.before, token), trace, settings) for trace in arms[arm]]
            for arm, token in zip(ARMS, shock.tokens, strict=True)
        }
        parts = [{arm: tuple(np.mean([r[k] for r in rows[arm]], axis=0).tolist()) for arm in ARMS} for k in range(4)]
        out.append(Aftermath(shock, parts[0], parts[1], parts[2], change, parts[3]))
    return out


def effect(found: Sequence[Aftermath], weights: Literal["shock", "errors"] = "shock", seed: int = 0) -> Effect:
    """Figures by distance, over questions. ``weights``: every beginning alike (a shock), or ∝ 1 − S (errors where they
    occur by themselves)."""
    questions = list(dict.fromkeys(one.shock.question for one in found))
    place = {question: i for i, question in enumerate(questions)}
    weight_N = np.array([1.0 if weights == "shock" else 1.0 - one.shock.s for one in found])
    index_N = np.array([place[one.shock.question] for one in found], dtype=int)
    distances = len(found[0].moved) if found else 0

    def ratio(top: Sequence[float], under: Sequence[float], unit: str) -> Figure:
        above, below = (np.zeros(len(questions)) for _ in range(2))
        np.add.at(above, index_N, weight_N * np.asarray(top))
        np.add.at(below, index_N, weight_N * np.asarray(under))
        return ratio_of_means(above, below, unit, seed)

    def mean(values: Sequence[float], unit: str) -> Figure:
        return ratio(values, np.ones(len(found)).tolist(), unit)

    def at(arm: Arm, d: int) -> list[float]:
        return [one.errors[arm][d] for one in found]

    def less(a: Arm, b: Arm, d: int) -> list[float]:
        return [x - y for x, y in zip(at(a, d), at(b, d), strict=True)]

    every = range(distances)
    return Effect(
        difference=tuple(mean(less("wrong", "right", d), "difference of shares") for d in every),
        ratio=tuple(_within(ratio(at("wrong", d), at("right", d), "times as likely"), math.inf) for d in every),
        beside_near=tuple(mean(less("wrong", "near", d), "difference of shares") for d in every),
        recovery=tuple(_within(mean([one.clean["wrong"][d] for one in found], "share of answers")) for d in every),
        moved=tuple(_moved_figure(found, d, seed) for d in every),
        ended={arm: tuple(float(np.mean([one.ended[arm][d] for one in found])) for d in every) for arm in ARMS},
        shocks=len(found),
    )


def _beginnings(source: Source, asked: Sequence[Asked], settings: FeedbackSettings) -> list[Tokens | None]:
    """The first i mod ``positions`` tokens of an answer to each question; None: an error or the end is among them."""
    stop = tuple(source.codec.stop)
    lengths = [i % settings.positions for i in range(len(asked))]
    requests = [
        Request(
            one.prompt,
            limit=length,
            sampling=Sampling(temperature=settings.temperature),
            seed=crc32(f"{settings.seed} {one.question} begin".encode()),
            stop=stop,
        )
        for one, length in zip(asked, lengths, strict=True)
        if length
    ]
    drawn = iter(answers(source, requests))
    out: list[Tokens | None] = []
    for one, length in zip(asked, lengths, strict=True):
        tokens = next(drawn)[0].tokens if length else ()
        sound = not set(tokens) & set(stop) and one.reader.first_error(tokens) is None
        out.append(tokens if sound else None)
    return out


def _forced(q: Distribution, right_K: object, wrong_K: object, rng: np.random.Generator) -> tuple[int, int, int] | None:
    p_K = np.exp(q.logp.astype(np.float64))
    right, wrong = (np.where(np.asarray(mask), p_K, 0.0) for mask in (right_K, wrong_K))
    if right.sum() <= LEAST or wrong.sum() <= LEAST:
        return None
    w = int(rng.choice(len(p_K), p=wrong / wrong.sum()))
    r = int(rng.choice(len(p_K), p=right / right.sum()))
    gap_K = np.where(right > 0, np.abs(np.log(np.maximum(p_K, 1e-300)) - np.log(max(p_K[w], 1e-300))), np.inf)
    near = int(np.argmin(gap_K))
    return int(q.ids[w]), int(q.ids[r]), int(q.ids[near])


def _gone_on(
    source: Source, requests: Sequence[Request], forced: Sequence[Shock], back: int | None
) -> list[list[Trace]]:
    if back is None:
        return answers(source, requests)
    own = [len(shock.before) + 1 for shock in forced for _ in ARMS]
    return obeyed(source, requests, own, back)


def _followed(
    reader: Reader, before: Tokens, trace: Trace, settings: FeedbackSettings
) -> tuple[list[float], list[float], list[float], list[float]]:
    """At each distance: error mass; whether it had ended; whether there was no error so far; whether one stands."""
    errors, ended, clean, standing = [], [], [], []
    sheet, open_, fine = Sheet(before, settings.back), True, True
    for d in range(settings.distances):
        if open_ and d < len(trace.steps):
            step = trace.steps[d]
            assert step.distribution is not None
            errors.append(_error_mass(step.distribution, settings.temperature, reader.next(sheet.tokens), sheet))
            ended.append(0.0)
            sheet.push(step.token)
            fine = fine and (sheet.taken or reader.is_right(sheet.tokens))
            open_ = not (trace.ended == "stop" and d + 1 == len(trace.steps))
        else:
            errors.append(0.0)
            ended.append(1.0)
        clean.append(float(fine))
        standing.append(float(reader.first_error(sheet.tokens) is not None))
    return errors, ended, clean, standing


def _error_mass(q: Distribution, temperature: float, possible: Mapping[int, float], sheet: Sheet) -> float:
    """The probability of what cannot follow, of what is not barred; taking back is no error."""
    bars = sheet.bars()
    fine = {*possible, *(() if sheet.back is None else (sheet.back,))} - bars
    left = 1.0 - (mass(q, temperature, tuple(bars)) if bars else 0.0)
    return max(0.0, 1.0 - mass(q, temperature, tuple(fine)) / left) if left > LEAST else 0.0


def _moved(
    source: Source,
    by_name: dict[str, Asked],
    forced: Sequence[Shock],
    drawn: Sequence[dict[Arm, list[Trace]]],
    settings: FeedbackSettings,
) -> list[tuple[float | None, ...]]:
    """The words of the first *right* continuation, read again after the wrong token."""
    said = [arms["right"][0] for arms in drawn]
    prompts = [(*by_name[shock.question].prompt, *shock.before, shock.tokens[ARMS.index("wrong")]) for shock in forced]
    again = source.score(prompts, [trace.tokens for trace in said], -1)
    out: list[tuple[float | None, ...]] = []
    for right, wrong in zip(said, again, strict=True):
        row: list[float | None] = [
            None
            if a.distribution is None or b.distribution is None
            else variation(a.distribution, b.distribution, settings.temperature)
            for a, b in zip(right.steps, wrong.steps, strict=True)
        ]
        out.append(tuple([*row, *[None] * settings.distances][: settings.distances]))
    return out


def variation(a: Distribution, b: Distribution, temperature: float) -> float:
    """Total variation of two whole distributions at a temperature."""
    size = int(max(a.ids.max(), b.ids.max())) + 1
    p_2V = np.zeros((2, size))
    for row, q in zip(p_2V, (a, b), strict=True):
        row[q.ids] = at_temperature(q, temperature)
    return float(np.abs(p_2V[0] - p_2V[1]).sum() / 2)


def _moved_figure(found: Sequence[Aftermath], d: int, seed: int) -> Figure:
    known = [value for one in found if (value := one.moved[d]) is not None]
    return _within(ratio_of_means(known, [1.0] * len(known), "share", seed))


def _within(figure: Figure, most: float = 1.0) -> Figure:
    """A share lies between 0 and 1, and so does its interval; a ratio is not below 0."""
    if figure.value is None or figure.low is None or figure.high is None:
        return figure
    return Figure(figure.value, max(0.0, figure.low), min(most, figure.high), figure.n, figure.unit)
