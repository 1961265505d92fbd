"""Does an error make the next one more likely? What follows forced errors, by distance.

The model's own first errors cannot show it (survival ends with them), so an error is forced (``interventions``). The
model then continues at its temperature, and at distance d the exact probability mass on tokens that cannot follow is
recorded in two ways: word by word, and by edit distance, where a shift by one word is a single error. An answer that
has ended counts as no error; the share that has ended is reported. All effects are paired by prefix.

A model's backspace token, where it has one, is obeyed; it may also delete the forced token. Distances then count
forward passes: backspace is no error, but costs one pass. The share of texts in which an error remains is reported too.

Where it is unknown which words can follow, one word of a correct answer is swapped, and the meaning is judged. At a
position fixed beforehand, one arm keeps the answer's own word; the other gets a word that is as rare, drawn from q (but
never the end of the text). Where there is no such word, the next position is tried, and so on. The model then continues
at its temperature, and whole answers are judged.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from zlib import crc32

import numpy as np

from klype.answers import distribution_bounds
from klype.answers.backspace import EditableText, answers_with_backspace
from klype.examine.intervals import Values, index_of, ratio_of_means
from klype.examine.interventions import ARMS, AS_RARE, MIN_MASS, Arm, FeedbackSettings, Intervention, Query, going_on
from klype.examine.truth import Reader, mass
from klype.sources.source import Source, answers
from klype.values import Distribution, Figure, Ints, Tokens, Trace

FEW = 30  # with fewer matched pairs there is no figure
LOOKS = 8  # most positions of an answer that are tried for a word swap
DIFFERENCE = "difference of shares"
BY_DISTANCE = ("difference", "ratio", "beside_near", "cautious", "recovery", "moved")


@dataclass(frozen=True, slots=True)
class InterventionOutcome:
    """What followed one intervention, by arm and distance (1, 2, …), as means over samples.

    ``errors``: error mass; ``ended``: share of answers that had ended; ``clean``: share without an error so far.
    ``moved``: total variation between q after *wrong* and q after *right*, before the same next words. ``standing``:
    share of texts that contain an error, the forced one included (1 without a backspace token). ``edits``: error mass
    by edit distance, where known. ``parted``: how much more often the words at a position differ between *wrong* and
    *right* than between two continuations of the same word (0 on average if the forced word changed nothing; None with
    one sample).
    """

    intervention: Intervention
    errors: dict[Arm, tuple[float, ...]]
    ended: dict[Arm, tuple[float, ...]]
    clean: dict[Arm, tuple[float, ...]]
    moved: tuple[float | None, ...]
    standing: dict[Arm, tuple[float, ...]] = field(default_factory=dict)
    edits: dict[Arm, tuple[float, ...]] = field(default_factory=dict)
    parted: float | None = None

    def cautious(self) -> dict[Arm, tuple[float, ...]]:
        """The error mass by edit distance, or word by word where that is unknown."""
        return self.edits or self.errors


def outcomes(
    source: Source, asked: Sequence[Query], forced: Sequence[Intervention], settings: FeedbackSettings
) -> list[InterventionOutcome]:
    """What follows each intervention in ``forced``, which may come from another model. ``asked``: their questions."""
    if not forced:
        return []
    by_name, distances = {one.question: one for one in asked}, settings.distances

    def begun(one: Intervention, token: int) -> Tokens:
        return (*by_name[one.question].prompt, *one.before, token)

    requests = [
        going_on(source, begun(one, token), distances, settings, f"{one.question} {arm}", n=settings.samples, top=-1)
        for one in forced
        for arm, token in zip(ARMS, one.tokens, strict=True)
    ]
    if settings.back is None:
        groups = iter(answers(source, requests))
    else:
        own = [len(one.before) + 1 for one in forced for _ in ARMS]
        groups = iter(answers_with_backspace(source, requests, own, settings.back))
    drawn: list[dict[Arm, list[Trace]]] = [{arm: next(groups) for arm in ARMS} for _ in forced]
    moved: list[list[float | None]] = [[None] * distances for _ in forced]
    if settings.back is None:  # with backspace, prefixes of the two arms cannot be compared token by token
        # the first continuation of *right*, scored again after the wrong token
        said = [arms["right"][0] for arms in drawn]
        again = source.score([begun(one, one.tokens[0]) for one in forced], [trace.tokens for trace in said], -1)
        for row, right, wrong in zip(moved, said, again, strict=True):
            for d, (a, b) in enumerate(zip(right.steps, wrong.steps, strict=True)):
                if a.distribution is not None and b.distribution is not None:
                    row[d] = variation(a.distribution, b.distribution, settings.temperature)
    out = []
    for one, arms, change in zip(forced, drawn, moved, strict=True):
        about = by_name[one.question]
        errors, ended, clean, standing = _means(about.reader, one, arms, settings)
        edits = _means(about.edits, one, arms, settings)[0] if about.edits is not None else {}
        # the token at each distance; −1 after the end of an answer
        words = [np.array([[*trace.tokens, *[-1] * distances][:distances] for trace in arms[arm]], dtype=np.int64)
                 for arm in ("wrong", "right")]  # fmt: skip
        out.append(InterventionOutcome(one, errors, ended, clean, tuple(change), standing, edits, separation(*words)))
    return out


def _means(
    reader: Reader, intervention: Intervention, arms: Mapping[Arm, Sequence[Trace]], settings: FeedbackSettings
) -> list[dict[Arm, tuple[float, ...]]]:
    """The fields ``errors``, ``ended``, ``clean`` and ``standing`` of an outcome."""
    mean_AD4 = {
        arm: np.mean([_follow(reader, (*intervention.before, token), trace, settings) for trace in arms[arm]], axis=0)
        for arm, token in zip(ARMS, intervention.tokens, strict=True)
    }
    return [{arm: tuple(mean_AD4[arm][:, part].tolist()) for arm in ARMS} for part in range(4)]


def _follow(
    reader: Reader, before: Tokens, trace: Trace, settings: FeedbackSettings
) -> list[tuple[float, float, float, float]]:
    sheet, open_, fine, rows = EditableText(before, settings.back), True, True, []
    for d in range(settings.distances):
        error, over = 0.0, 1.0
        if open_ and d < len(trace.steps):
            step, over = trace.steps[d], 0.0
            assert step.distribution is not None
            error = _error_mass(step.distribution, settings.temperature, reader.next(sheet.tokens), sheet)
            sheet.push(step.token)
            fine = fine and (sheet.taken or reader.is_right(sheet.tokens))
            open_ = not (trace.ended == "stop" and d + 1 == len(trace.steps))
        rows.append((error, over, float(fine), float(reader.first_error(sheet.tokens) is not None)))
    return rows


def _error_mass(q: Distribution, temperature: float, possible: Mapping[int, float], sheet: EditableText) -> float:
    """The probability of tokens that cannot follow; backspace is no error."""
    bars = sheet.bars()
    fine = {*possible, *(() if sheet.back is None else (sheet.back,))} - bars
    left = 1.0 - (mass(q, temperature, tuple(bars)) if bars else 0.0)
    # a share of what may be drawn: barred tokens are on neither side
    return max(0.0, 1.0 - mass(q, temperature, tuple(fine)) / left) if left > MIN_MASS else 0.0


def separation(one_ND: Ints, other_ND: Ints) -> float | None:
    """How much more often words at the same distance differ between two arms than within an arm, summed over distances;
    None with fewer than two samples. ``one_ND``, ``other_ND``: tokens by sample and distance."""
    if min(len(one_ND), len(other_ND)) < 2:
        return None

    def differing(a_ND: Ints, b_ND: Ints) -> float:
        return float((a_ND[:, None] != b_ND[None]).mean(axis=-1).sum())

    # n (n − 1) ordered pairs of different samples: the diagonal adds nothing
    within = [differing(a_ND, a_ND) / (len(a_ND) * (len(a_ND) - 1)) for a_ND in (one_ND, other_ND)]
    return differing(one_ND, other_ND) / (len(one_ND) * len(other_ND)) - sum(within) / 2


def variation(a: Distribution, b: Distribution, temperature: float) -> float:
    """The total variation distance between two whole distributions at a temperature."""
    size = int(max(a.ids.max(), b.ids.max())) + 1
    p_2V = np.zeros((2, size))
    for row, q in zip(p_2V, (a, b), strict=True):
        row[q.ids] = distribution_bounds.temperature_bounds(q, temperature, 0).low_K
    return float(np.abs(p_2V[0] - p_2V[1]).sum() / 2)


@dataclass(frozen=True, slots=True)
class Effect:
    """The effect of a forced error, by distance.

    ``difference``: error mass after *wrong* minus after *right*; ``ratio``: the same as a quotient; ``beside_near``:
    after *wrong* minus after *near*, over matched pairs; ``cautious``: the same by edit distance; ``recovery``: share
    without a further error; ``moved``: change of q; ``ended``: share of answers that had ended. ``further``: errors
    within all distances after *wrong* and *near* of matched pairs. What is not about matched pairs is about
    interventions by rule.
    """

    difference: tuple[Figure, ...]
    ratio: tuple[Figure, ...]
    beside_near: tuple[Figure, ...]
    cautious: tuple[Figure, ...]
    recovery: tuple[Figure, ...]
    moved: tuple[Figure, ...]
    ended: dict[Arm, tuple[float, ...]]
    further: dict[str, Figure]


def effect(found: Sequence[InterventionOutcome]) -> Effect:
    """Figures by distance, with questions as clusters; every prefix counts alike."""
    ruled = [one for one in found if one.intervention.by_rule]
    matched = [one for one in found if one.intervention.is_matched]

    def ratio(rows: Sequence[InterventionOutcome], top: Values, under: Values, unit: str) -> Figure:
        # several prefixes of one question are one cluster
        index_N, questions = index_of([one.intervention.question for one in rows])
        above, below = (np.bincount(index_N, np.asarray(part, float), questions).astype(float) for part in (top, under))
        return replace(ratio_of_means(above, below, unit), n=len(rows))

    def mean(rows: Sequence[InterventionOutcome], values: Values, unit: str = DIFFERENCE) -> Figure:
        return ratio(rows, values, [1.0] * len(rows), unit)

    def of_matched(values: Values, unit: str = DIFFERENCE) -> Figure:
        if len(matched) < FEW:
            return Figure(None, n=len(matched), unit=unit, why=f"fewer than {FEW} matched pairs")
        return mean(matched, values, unit)

    def at(d: int) -> dict[str, Figure]:
        wrong, right = ([one.errors[arm][d] for one in ruled] for arm in ("wrong", "right"))
        moved = [value for one in ruled if (value := one.moved[d]) is not None]
        return {
            "difference": mean(ruled, np.subtract(wrong, right)),
            "ratio": _within(ratio(ruled, wrong, right, "times as likely"), math.inf),
            "beside_near": of_matched([one.errors["wrong"][d] - one.errors["near"][d] for one in matched]),
            "cautious": of_matched([one.cautious()["wrong"][d] - one.cautious()["near"][d] for one in matched]),
            "recovery": _within(mean(ruled, [one.clean["wrong"][d] for one in ruled], "share of answers")),
            "moved": _within(ratio_of_means(moved, [1.0] * len(moved), "share")),
        }

    every = range(len(found[0].moved) if found else 0)
    figures = [at(d) for d in every]
    return Effect(
        **{name: tuple(row[name] for row in figures) for name in BY_DISTANCE},
        ended={arm: tuple(float(np.mean([one.ended[arm][d] for one in ruled] or [0.0])) for d in every)
               for arm in ARMS},
        further={
            f"{arm}_{name}": _within(of_matched([sum(getattr(one, name)[arm]) for one in matched], "errors"), math.inf)
            for arm in ("wrong", "near")
            for name in ("errors", "edits")
            if all(getattr(one, name) for one in matched)
        },
    )  # fmt: skip


def _within(figure: Figure, most: float = 1.0) -> Figure:
    """The figure with its interval cut to the range from 0 to ``most``."""
    if figure.low is None or figure.high is None:
        return figure
    return replace(figure, low=max(0.0, figure.low), high=min(most, figure.high))


Right = Callable[[str, bool], bool | None]  # (text, finished) → whether it is correct; None: undecided
RightAnswer = tuple[str, Trace, Right]  # a question, a correct answer to it, and its judge


@dataclass(frozen=True, slots=True)
class WordSwap:
    """One question: the share of correct answers after its own word and after the other one; ``undecided``: the sum of
    both shares of answers that could not be decided."""

    question: str
    own: float
    other: float
    undecided: float = 0.0


def word_swaps(source: Source, right_answers: Sequence[RightAnswer], settings: FeedbackSettings) -> list[WordSwap]:
    """Swaps one word in each answer. Answers without a position where another word is as rare, and those whose
    continuations cannot be judged, are left out."""
    kept = _replacements(source, right_answers, settings)
    requests = [
        going_on(source, (*trace.prompt, *trace.tokens[:at], token), settings.limit - at - 1, settings,
                 f"{question} {arm} replaced", n=settings.samples)
        for (question, trace, _), at, other in kept
        for arm, token in (("own", trace.tokens[at]), ("other", other))
    ]  # fmt: skip
    groups = iter(answers(source, requests) if requests else [])
    out = []
    for (question, trace, judge), at, other in kept:
        shares, undecided = [], 0.0
        for token in (trace.tokens[at], other):
            said = [((*trace.tokens[:at], token, *one.tokens), one.ended == "stop") for one in next(groups)]
            known = [r for text, done in said if (r := judge(source.codec.decode(text), done)) is not None]
            shares.append(sum(known) / len(known) if known else None)
            undecided += 1 - len(known) / len(said)
        if shares[0] is not None and shares[1] is not None:
            out.append(WordSwap(question, shares[0], shares[1], undecided))
    return out


def _replacements(
    source: Source, right_answers: Sequence[RightAnswer], settings: FeedbackSettings
) -> list[tuple[RightAnswer, int, int]]:
    """(answer, position, other token) for each answer that has such a position among the first ``LOOKS`` tried."""
    stop = set(source.codec.stop)
    found: dict[str, tuple[RightAnswer, int, int]] = {}
    for look in range(LOOKS):
        here = [(i % settings.positions + look, row) for i, row in enumerate(right_answers) if row[0] not in found]
        here = [(at, row) for at, row in here
                if at < min(settings.limit - 1, len(row[1].tokens)) and row[1].tokens[at] not in stop]  # fmt: skip
        if not here:
            break
        listed = source.next([(*trace.prompt, *trace.tokens[:at]) for at, (_, trace, _) in here], -1)
        for (at, row), q in zip(here, listed, strict=True):
            question, trace, _ = row
            own = q.p(trace.tokens[at])
            p_K = np.exp(q.logp.astype(np.float64))
            p_K[np.isin(q.ids, [trace.tokens[at], *stop])] = 0.0
            with np.errstate(divide="ignore"):
                p_K[np.abs(np.log(p_K) - math.log(own or 1.0)) > AS_RARE] = 0.0
            if own and p_K.sum() > 0:
                rng = np.random.default_rng([settings.seed, crc32(question.encode())])
                found[question] = row, at, int(rng.choice(q.ids, p=p_K / p_K.sum()))
    return [found[row[0]] for row in right_answers if row[0] in found]
