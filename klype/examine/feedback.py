"""The feedback experiment: does a mistake make the next one likelier?

First errors cannot show it (they end survival), so one is forced. On the model's own right beginning, at a position
fixed by rule beforehand, a whole token is forced: *wrong* ~ q outside A; *right* ~ q inside A; *near*: the right one
whose q is nearest to the wrong one's. Never the end of the text; forced at temperature 1. Then the model goes on at its
temperature, and at distance d the exact mass on tokens that cannot follow is recorded, twice: where only a word said
for another is an error, and by edit distance (a shift by one word is then one error). An arm that has ended counts as
no error; its share is shown. All effects are paired by beginning.

*Near* is seldom as rare as *wrong*. Beginnings where it is, |Δ log q| ≤ ln 3, are *matched*; only they keep rarity from
being taken for wrongness, and ``matching.search`` looks for more of them than the rule gives.

Where the model has a token that takes the last word back, it is obeyed, the forced token included; distances are then
passes: to take back is no error, but it costs one. Beside it stands in what share of texts an error is left.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal
from zlib import crc32

import numpy as np
import numpy.typing as npt

from klype.answers.decoders.taking_back import Sheet, obeyed
from klype.examine.truth import Reader, Tokens, among, at_temperature, mass
from klype.sources.source import Source, answers
from klype.values import Distribution, Floats, Ints, Request, Sampling, Trace

Arm = Literal["wrong", "right", "near"]
ARMS: tuple[Arm, ...] = ("wrong", "right", "near")
LEAST = 1e-12
"""Words that are together less likely than this are none."""
AS_RARE = math.log(3)
"""|Δ log q| up to which a right word is as rare as a wrong one."""


@dataclass(frozen=True, slots=True)
class Asked:
    """A question with its truth. ``edits``: what can follow where errors are counted by edit distance, if known."""

    question: str
    prompt: Tokens
    reader: Reader
    edits: Reader | None = None


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
    """A beginning of the model's own and the three tokens forced there; ``s``: mass on right tokens before it;
    ``rarity``: log q of *near* less that of *wrong*; ``by_rule``: not one that was looked for to be matched.

    Models are compared on the same shocks.
    """

    question: str
    before: Tokens
    tokens: tuple[int, int, int]
    s: float
    rarity: float = 0.0
    by_rule: bool = True

    @property
    def matched(self) -> bool:
        return abs(self.rarity) <= AS_RARE


@dataclass(frozen=True, slots=True)
class Aftermath:
    """What followed one shock, by arm and distance (1, 2, …): mean error mass, share that had ended, share without an
    error so far; ``moved``: total variation between q after *wrong* and after *right* before the same next words;
    ``standing``: share in whose text an error stands, the forced one included (always, where nothing is taken back);
    ``edits``: the error mass by edit distance, where that is known; ``parted``: how much oftener the words at one place
    differ between *wrong* and *right* than between two that went on from the same word (0 in the mean if the forced
    word changed nothing; None with one sample)."""

    shock: Shock
    errors: dict[Arm, tuple[float, ...]]
    ended: dict[Arm, tuple[float, ...]]
    clean: dict[Arm, tuple[float, ...]]
    moved: tuple[float | None, ...]
    standing: dict[Arm, tuple[float, ...]] = field(default_factory=dict)
    edits: dict[Arm, tuple[float, ...]] = field(default_factory=dict)
    parted: float | None = None

    def cautious(self) -> dict[Arm, tuple[float, ...]]:
        """The error mass counted by edit distance where it can be."""
        return self.edits or self.errors


def shocks(
    source: Source, asked: Sequence[Asked], settings: FeedbackSettings, is_word: Callable[[int], bool]
) -> tuple[list[Shock], int]:
    """The shocks, and how many questions had none: their answer was not right or had ended before its position, or
    nothing wrong (or nothing right but the end) could follow."""
    stop = tuple(source.codec.stop)
    begun = _beginnings(source, asked, settings)
    places = [i for i, before in enumerate(begun) if before is not None]
    listed = source.next([(*asked[i].prompt, *(begun[i] or ())) for i in places], -1) if places else []
    word_V = words_among(listed, stop, is_word)
    found = []
    for i, q in zip(places, listed, strict=True):
        rng = np.random.default_rng([settings.seed, crc32(asked[i].question.encode())])
        shock = force(asked[i], begun[i] or (), q, word_V, rng)
        if shock is not None:
            found.append(replace(shock, s=mass(q, settings.temperature, asked[i].reader.next(shock.before))))
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
        one = by_name[shock.question]
        errors, ended, clean, standing = _means(one.reader, shock, arms, settings)
        edits = _means(one.edits, shock, arms, settings)[0] if one.edits is not None else {}
        words = [_words(arms[arm], settings.distances) for arm in ("wrong", "right")]
        out.append(Aftermath(shock, errors, ended, clean, change, standing, edits, parted(*words)))
    return out


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


def words_among(
    listed: Sequence[Distribution], stop: Sequence[int], is_word: Callable[[int], bool]
) -> npt.NDArray[np.bool_]:
    """Which tokens say something, over all that are listed."""
    last = max((int(q.ids.max()) for q in listed), default=-1)
    return np.array([token not in stop and is_word(token) for token in range(last + 1)], bool)


def force(
    one: Asked,
    before: Tokens,
    q: Distribution,
    word_V: npt.NDArray[np.bool_],
    rng: np.random.Generator,
    matched: bool = False,
) -> Shock | None:
    """The tokens that are forced after a beginning; None: nothing wrong, or nothing right but the end, can follow.

    ``matched``: the wrong one is among those that some right one is as rare as. ``s`` is that of temperature 1.
    """
    p_K = np.exp(q.logp.astype(np.float64))
    possible = one.reader.next(before)
    possible_K = among(q.ids, possible)
    right, wrong = (np.where(word_V[q.ids] & mask_K, p_K, 0.0) for mask_K in (possible_K, ~possible_K))
    if right.sum() <= LEAST or wrong.sum() <= LEAST:
        return None
    if matched:
        wrong = np.where(_paired(wrong, right), wrong, 0.0)
        if wrong.sum() <= LEAST:
            return None
    w = int(rng.choice(len(p_K), p=wrong / wrong.sum()))
    r = int(rng.choice(len(p_K), p=right / right.sum()))
    with np.errstate(divide="ignore"):
        rarity_K = np.where(right > 0, np.log(right) - math.log(wrong[w]), np.inf)
    near = int(np.argmin(np.abs(rarity_K)))
    tokens = int(q.ids[w]), int(q.ids[r]), int(q.ids[near])
    return Shock(one.question, before, tokens, mass(q, 1.0, possible), float(rarity_K[near]))


def _paired(wrong_K: Floats, right_K: Floats) -> npt.NDArray[np.bool_]:
    """Which wrong tokens have a right one as rare."""
    rights = np.sort(np.log(right_K[right_K > LEAST]))
    logs_K = np.log(np.maximum(wrong_K, LEAST))
    first_K, after_K = np.searchsorted(rights, logs_K - AS_RARE), np.searchsorted(rights, logs_K + AS_RARE, "right")
    found: npt.NDArray[np.bool_] = (wrong_K > LEAST) & (after_K > first_K)
    return found


def _gone_on(
    source: Source, requests: Sequence[Request], forced: Sequence[Shock], back: int | None
) -> list[list[Trace]]:
    if back is None:
        return answers(source, requests)
    own = [len(shock.before) + 1 for shock in forced for _ in ARMS]
    return obeyed(source, requests, own, back)


def _means(
    reader: Reader, shock: Shock, arms: Mapping[Arm, Sequence[Trace]], settings: FeedbackSettings
) -> list[dict[Arm, tuple[float, ...]]]:
    """``_followed``, each part by arm, mean over samples."""
    rows = {
        arm: [_followed(reader, (*shock.before, token), trace, settings) for trace in arms[arm]]
        for arm, token in zip(ARMS, shock.tokens, strict=True)
    }
    return [{arm: tuple(np.mean([r[k] for r in rows[arm]], axis=0).tolist()) for arm in ARMS} for k in range(4)]


def _words(arm: Sequence[Trace], distances: int) -> Ints:
    """What was said at each distance; after an answer's end, the end."""
    return np.array([[*trace.tokens, *[-1] * distances][:distances] for trace in arm], dtype=np.int64)


def parted(one_ND: Ints, other_ND: Ints) -> float | None:
    """P(two words at one place differ | after one word and after another), less the same after one of them: the null
    of two halves of one sample. None: one sample has no halves."""
    if min(len(one_ND), len(other_ND)) < 2:
        return None

    def differing(a_ND: Ints, b_ND: Ints) -> float:
        return float((a_ND[:, None] != b_ND[None]).mean(axis=-1).sum())

    within = [differing(a_ND, a_ND) / (len(a_ND) * (len(a_ND) - 1)) for a_ND in (one_ND, other_ND)]
    return differing(one_ND, other_ND) / (len(one_ND) * len(other_ND)) - sum(within) / 2


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
