"""The facts of a run: everything its report shows, as plain JSON (``figures.json`` beside ``report.html``).

The pipeline fills a ``Facts`` dictionary section by section; the report leaves out sections that are absent.
A probability is a number from 0 to 1, a duration is in seconds, a KL divergence in nats, unless a unit is given.

Texts for readers are ``LocalText``: one string for all languages, or ``{"en": ..., "nb": ...}``. A *figure* is what
``klype.values.Figure.json()`` returns. The models are ``base``, ``finetuned`` and ``aligned``; the stages of a run are
``pretrain``, ``finetune``, ``rank``, ``reward`` and ``align``.

``check(facts)`` raises for unknown sections, malformed figures, and numbers that are not finite.
"""

import math
from codecs import getincrementaldecoder
from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, NotRequired

from pydantic import ConfigDict, TypeAdapter, ValidationError, with_config
from typing_extensions import TypedDict  # pydantic refuses typing's own before Python 3.12

from klype.errors import KlypeError
from klype.jsons import parse_finite
from klype.values import Trace

LocalText = str | Mapping[str, str]
StageName = Literal["base", "finetuned", "aligned"]
# The models of a run, and the stage of training that makes each.
MADE_BY: Mapping[StageName, str] = {"base": "pretrain", "finetuned": "finetune", "aligned": "align"}
STAGES: tuple[StageName, ...] = tuple(MADE_BY)
JsonObject = dict[str, Any]  # a part of the facts, with the names that stand beside it in ``Facts``


class FigureFacts(TypedDict):
    """``klype.values.Figure.json()``. ``value`` None needs ``why``; ``t`` and ``distance``: its place on an axis.

    ``error_rate``: how often the judge errs; absent where it cannot err, without a value where that was not measured.
    ``bounds``: allow for the judge's errors and for undecided answers; None: no end.
    """

    value: float | None
    low: NotRequired[float | None]
    high: NotRequired[float | None]
    n: NotRequired[int]
    unit: NotRequired[str]
    certain: NotRequired[bool]
    judge: NotRequired[str]
    error_rate: "NotRequired[FigureFacts]"
    bounds: NotRequired[dict[Literal["low", "high"], float | None]]
    why: NotRequired[str]
    t: NotRequired[int]
    distance: NotRequired[int]


# What one model scored, by measure. World: right, right_fixed, word_for_word, polite, concise, annotator, s, kl,
# kl_reference, retrieval_hard, retrieval_text. Own text: bits_per_byte; with a dictionary well_formed (held-out words)
# and right_trained (words learnt from). Others may be added. right, polite (with a courtesy), concise, annotator: chat
# template, temperature .7, one answer a question; in the world about stories, no two alike, and right_fixed about what
# is always true. s and kl: the next word of documents drawn from the language whose stories no stage has read, at
# temperature 1; retrieval_hard: right on stories with four facts of one relation.
StageFacts = dict[str, FigureFacts]


@with_config(ConfigDict(extra="forbid", allow_inf_nan=False))
class Facts(TypedDict):
    """One run. ``run``: its name (that of its folder); ``kind``: "world" if the truth is known. ``address`` and
    ``program``: the folder and klype's command as they were typed."""

    run: str
    address: NotRequired[str]
    program: NotRequired[str]
    recipe: str
    kind: Literal["world", "text"]
    planned_s: NotRequired[float]
    seconds: dict[str, float]  # "total", and one for each stage
    stages: dict[StageName, StageFacts | None]
    missing: NotRequired[dict[StageName, LocalText]]  # why a stage is None
    annotator: NotRequired[LocalText]  # who ranked: simulated (by which rule), or a person
    gains: NotRequired[StageFacts]  # aligned minus fine-tuned, question by question: right, polite, annotator
    # pair_accuracy: against the annotator; ceiling: how often two rankings of the annotator's own agree, which is no
    # upper bound where held-out rankings are free of its noise; threshold: the target
    reward: NotRequired[JsonObject | None]
    # The rewards that alignment optimised, by name (model, file.py:function, …): weight; before and after (the mean
    # over answers, without the weight) and gain (question by question); sha256 of the function's source file.
    rewards: NotRequired[dict[str, JsonObject]]
    # name: retrieval_hard, finetuned_right, reward_pairs, aligned_right, aligned_polite, aligned_score_up,
    # retrieval_kept, seconds, kl, s, … (label for one of your own); value (None: it was not reached), low, high, n,
    # unit, threshold; below: passed if value <= threshold (seconds, kl). status: "passed" if the whole interval is
    # beyond the threshold, "within" if part of it is, else "missed"; passed: whether status is "passed". Runs of
    # earlier versions have no status.
    gates: NotRequired[list[JsonObject]]
    too_few: NotRequired[list[JsonObject]]  # what had too few cases to be a gate: name, n
    # A training stage: stage; step and series, lists of one length: loss (always there in practice), held_out, reward,
    # score, kl, right, polite; None where nothing was measured. events: what changed at a step, so that the curve jumps
    # there (step, what: LocalText).
    curves: NotRequired[list[JsonObject]]
    # question, context, references, answers: one per model (None: no such model). An answer: text, ended, score,
    # tokens as ``token_facts`` gives them; right, polite, concise: None when the judge cannot decide.
    questions: NotRequired[list[JsonObject]]
    # The next word after prompt, most probable first. tokens: token, p, truth, id, p_tempered; rest: the mass not
    # listed, truth_rest: the same of truth; s, kl; lang: of the prompt, for a reader's own language comes first.
    next: NotRequired[list[JsonObject]]
    # stage; prompt: what all samples answer or continue; chosen_of: the questions of which this one's answers differ
    # most; rows: temperature, figures (right, s, repetition, distinct, same_text, …), samples (some answers).
    temperatures: NotRequired[JsonObject]
    # temperature, stage, s; by word t = 1, 2, …: r (no error yet), k (as if no answer had ended), by_position (k if
    # errors depended on the position only), difference (k minus that), independent (mean s to the power t). Runs of
    # earlier versions have no by_position.
    survival: NotRequired[list[JsonObject]]
    # stage, error, bins: mean predicted probability (p) and observed frequency (observed)
    calibration: NotRequired[list[JsonObject]]
    # figures per answer (passes, tokens, flops, seconds, joules, joules_per_right), parameters, joules_estimated;
    # watts: of a busy core, where energy is estimated
    cost: NotRequired[dict[StageName, JsonObject]]
    # Own text: bits per byte of baselines on held_out_bytes: xz, ngram (of ngram_order).
    text: NotRequired[JsonObject]
    # Of the newest model, by kind of question: meaning, example, class, idiom, ending (of a saying). held_out, trained:
    # well_formed (by stated rules of form), right (in the dictionary's own words); samples: question, text, reference,
    # trained (whether the word was trained on), right, well_formed.
    dictionary: NotRequired[list[JsonObject]]
    # How much is copied word for word from the training text: of what the model writes after held-out prompts (free),
    # of its answers, and of the held-out text itself (held_out: how much any text repeats); longest: words;
    # temperature.
    copied: NotRequired[JsonObject]
    copied_example: NotRequired[str]  # the longest run found verbatim in the training text
    notes: NotRequired[list[LocalText]]  # remarks, e.g. that the questions were made from the text itself
    # data: name, sha256, bytes, licence, attribution: LocalText; seed; versions; machine, e.g. {"cpu": "...",
    # "cores": "2", "memory": "7.6 GB", "system": "Linux"}; plan: stage, steps, tokens, planned_s; when: ISO date and
    # time; model: parameters, width, layers, vocabulary, precision, ...
    provenance: NotRequired[JsonObject]


def answer_tokens(trace: Trace, ends: Collection[int], token_bytes: Callable[[int], bytes]) -> list[JsonObject]:
    """An answer's tokens with their text and probability, without those in ``ends``."""
    said = [step for step in trace.steps if step.token not in ends]
    return token_facts((token_bytes(step.token), min(1.0, math.exp(step.logp))) for step in said)


def token_facts(pieces: Iterable[tuple[bytes, float]]) -> list[JsonObject]:
    """An answer's tokens for the report, from their bytes and probabilities.

    Tokens that make up one character together are shown at the first of them, with the product of their probabilities;
    the others are empty, so that every token keeps its place.
    """
    found: list[JsonObject] = []
    begun, first, likely = b"", 0, 1.0
    decoder = getincrementaldecoder("utf-8")("replace")
    for data, p in pieces:
        if not begun:
            first, likely = len(found), 1.0
        begun, likely = begun + data, likely * p
        found.append({"text": "", "p": p})
        found[first] = {"text": begun.decode("utf-8", "replace"), "p": likely}
        if len(found) > first + 1:
            found[first]["bytes"] = begun.hex(" ").upper()
        decoder.decode(data)
        if not decoder.getstate()[0]:  # the character is complete
            begun = b""
    return found


def check(facts: Any) -> Facts:
    """Validates facts. Raises KlypeError that names the first malformed field."""
    try:
        return TypeAdapter(Facts).validate_python(facts)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "the top"
        raise KlypeError(f"The facts of this run are malformed at {where}: {first['msg'].lower()}.") from error


def read(path: Path) -> Facts:
    """Reads facts from a ``figures.json``. Raises KlypeError if there is none, or it is malformed."""
    try:
        return check(parse_finite(path.read_text(encoding="utf-8")))
    except FileNotFoundError as error:
        raise KlypeError(f"There is no {path.name} in {path.parent}.", "Run the examination first.") from error
    except ValueError as error:
        raise KlypeError(f"{path} is not JSON: {error}.") from error


def by_stage(facts: Facts, name: str) -> list[tuple[StageName, FigureFacts]]:
    """(model, figure) for each model that has a value of this measure."""
    return [(stage, found[name]) for stage in STAGES if name in (found := figures_of(facts, stage))]


def last_model(facts: Facts) -> StageName:
    """The newest model of the run."""
    return next((stage for stage in reversed(STAGES) if facts["stages"].get(stage)), "base")


def figures_of(facts: Facts, stage: StageName) -> StageFacts:
    """The figures of a model that have a value."""
    return {name: f for name, f in (facts["stages"].get(stage) or {}).items() if f["value"] is not None}


def clear_change(before: FigureFacts, after: FigureFacts) -> int:
    """1 if ``after`` is higher, −1 if lower, 0 if the intervals overlap or one is missing."""
    low, high = before.get("low"), before.get("high")
    return 0 if low is None or high is None else (side_of(after, high) > 0) - (side_of(after, low) < 0)


def side_of(figure: FigureFacts, threshold: float) -> int:
    """1 if the whole interval is above the threshold, −1 if below, 0 if it contains it or is missing."""
    low, high = figure.get("low"), figure.get("high")
    return 0 if low is None or high is None else int(low > threshold) - int(high < threshold)


def trend(facts: Facts, name: str) -> int:
    """1 if alignment raised a measure, −1 if it lowered it, 0 if that is undetermined: by the paired difference, or
    else by intervals that do not overlap."""
    gain = facts.get("gains", {}).get(name)
    if gain is not None:
        return side_of(gain, 0.0)
    found = dict(by_stage(facts, name))
    return clear_change(found["finetuned"], found["aligned"]) if {"finetuned", "aligned"} <= found.keys() else 0
