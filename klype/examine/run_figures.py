"""The facts of one run: everything its report shows, as plain JSON (``figures.json`` beside ``report.html``).

The pipeline fills a ``Facts`` dictionary, section by section; the report leaves out sections that are absent.
A probability is a number from 0 to 1, a duration is in seconds, a KL divergence in nats, unless a unit is given.

Texts that a person reads are ``Text``: one string for all languages, or ``{"en": ..., "nb": ...}``.
A *figure* is what ``klype.values.Figure.json()`` returns. A model is named after the stage that made it: ``base``,
``finetuned``, ``aligned``; the stages of training are ``pretrain``, ``finetune``, ``rank``, ``reward``, ``align``.

``check(facts)`` refuses unknown fields, wrong types, and numbers that are not finite.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, NotRequired

from pydantic import ConfigDict, TypeAdapter, ValidationError, with_config
from typing_extensions import TypedDict  # pydantic refuses typing's own before Python 3.12

from klype.errors import KlypeError
from klype.jsons import finite

Text = str | Mapping[str, str]
StageName = Literal["base", "finetuned", "aligned"]
STAGES: tuple[StageName, ...] = ("base", "finetuned", "aligned")


class BoundsFacts(TypedDict):
    """Where a figure lies when its judge's errors and what was left undecided are allowed for; None: without an end."""

    low: float | None
    high: float | None


class FigureFacts(TypedDict):
    """``klype.values.Figure.json()``: ``value`` None needs ``why``; ``t`` and ``distance`` place it on an axis."""

    value: float | None
    low: NotRequired[float | None]
    high: NotRequired[float | None]
    n: NotRequired[int]
    unit: NotRequired[str]
    certain: NotRequired[bool]
    judge: NotRequired[str]
    error_rate: NotRequired[FigureFacts]
    bounds: NotRequired[BoundsFacts]
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


class RewardFacts(TypedDict):
    """Pair accuracy against the annotator; ``ceiling``: how often two rankings of the annotator's own agree, which is
    no bound where held-out rankings are free of its noise; ``threshold``: what is aimed at."""

    pair_accuracy: FigureFacts
    ceiling: FigureFacts
    threshold: NotRequired[float]


class WeightedRewardFacts(TypedDict):
    """A reward that alignment learnt from: its mean over answers before and after, without its weight, and the gain
    question by question. ``sha256``: of the function's source file."""

    weight: float
    sha256: NotRequired[str]
    before: FigureFacts
    after: FigureFacts
    gain: FigureFacts


class GateFacts(TypedDict):
    """``name``: retrieval_hard, finetuned_right, reward_pairs, aligned_right, aligned_polite, aligned_score_up,
    retrieval_kept, seconds, kl, s, … (``label`` for one of your own). ``value`` None: it was not reached.

    ``status``: all of the interval is beyond the threshold, some of it, none; ``passed``: it is the first. Runs of
    earlier versions have values only."""

    name: str
    value: float | None
    low: NotRequired[float | None]
    high: NotRequired[float | None]
    n: NotRequired[int]
    threshold: float
    status: NotRequired[Literal["passed", "within", "missed"]]
    passed: bool
    label: NotRequired[Text]
    unit: NotRequired[str]
    below: NotRequired[bool]  # True: passed when value <= threshold (seconds, kl)


class FewFacts(TypedDict):
    """What had too few cases to be a gate."""

    name: str
    n: int


class EventFacts(TypedDict):
    """What changed at a step of a training, so that its curve jumps there."""

    step: int
    what: Text


class CurveFacts(TypedDict):
    """A stage's training: ``step`` and every series have one length. Series: ``loss`` (required in practice),
    ``held_out``, ``reward``, ``score``, ``kl``, ``right``, ``polite``; None where nothing was measured."""

    stage: Literal["pretrain", "finetune", "rank", "reward", "align"]
    step: list[int]
    series: dict[str, list[float | None]]
    units: NotRequired[dict[str, str]]
    tokens_per_second: NotRequired[float]
    events: NotRequired[list[EventFacts]]


class TokenFacts(TypedDict):
    """One token of an answer: its text (with its leading space), its probability under the model at temperature 1."""

    text: str
    p: float
    bytes: NotRequired[str]  # where several tokens are one character: theirs, in hexadecimal


def token_facts(pieces: Iterable[tuple[bytes, float]]) -> list[TokenFacts]:
    """An answer's tokens, of their bytes and probabilities. Those that are one character together stand at the first of
    them, with the probability of all; the others are empty, so that every token keeps its place."""
    found: list[TokenFacts] = []
    begun, first, likely = b"", 0, 1.0
    for data, p in pieces:
        if not begun:
            first, likely = len(found), 1.0
        begun, likely = begun + data, likely * p
        found.append({"text": "", "p": p})
        try:
            text = begun.decode("utf-8")
        except UnicodeDecodeError as error:
            text = begun.decode("utf-8", "replace")
            whole = error.end < len(begun) or error.reason != "unexpected end of data"
        else:
            whole = True
        found[first] = {"text": text, "p": likely}
        if len(found) > first + 1:
            found[first]["bytes"] = begun.hex(" ").upper()
        begun = b"" if whole else begun
    return found


class AnswerFacts(TypedDict):
    """One drawn answer. right, polite, concise: None when the judge cannot decide."""

    text: str
    tokens: NotRequired[list[TokenFacts]]
    right: NotRequired[bool | None]
    polite: NotRequired[bool | None]
    concise: NotRequired[bool | None]
    score: NotRequired[float | None]
    ended: NotRequired[Literal["stop", "length", "cancelled"]]


class QuestionFacts(TypedDict):
    """One question with the answer of each model (None or absent: no such model)."""

    question: str
    context: NotRequired[str]
    references: NotRequired[list[str]]
    answers: dict[StageName, AnswerFacts | None]


class NextTokenFacts(TypedDict):
    token: str
    p: float
    truth: NotRequired[float]
    id: NotRequired[int]
    p_tempered: NotRequired[float]


class NextFacts(TypedDict):
    """The next word after ``prompt``, most probable first; ``rest``: the mass not listed, ``truth_rest``: that of p."""

    prompt: str
    lang: NotRequired[str]  # of the prompt: a reader sees the one in their language first
    tokens: list[NextTokenFacts]
    rest: float
    truth_rest: NotRequired[float]
    s: NotRequired[float]
    kl: NotRequired[float]


class TemperatureFacts(TypedDict):
    """One temperature: figures (right, s, repetition, distinct, same_text, …) and some answers."""

    temperature: float
    figures: dict[str, FigureFacts]
    samples: list[AnswerFacts]


class TemperaturesFacts(TypedDict):
    stage: StageName
    prompt: NotRequired[str]  # what all samples answer or continue
    chosen_of: NotRequired[int]  # the questions of which this one's answers differ most
    rows: list[TemperatureFacts]


class SurvivalFacts(TypedDict):
    """By word ``t`` = 1, 2, …: R (no error yet), K (had the answers gone on), by_position (K if errors depended on the
    position only), difference (K less that), independent (mean S to the power t). Runs of earlier versions have no
    by_position, and K stands alone."""

    temperature: float
    stage: StageName
    s: FigureFacts
    r: list[FigureFacts]
    k: list[FigureFacts]
    by_position: NotRequired[list[FigureFacts]]
    difference: NotRequired[list[FigureFacts]]
    independent: list[FigureFacts]


class BinFacts(TypedDict):
    """Mean probability said, and how often it came true."""

    p: float
    observed: FigureFacts


class CalibrationFacts(TypedDict):
    stage: StageName
    bins: list[BinFacts]
    error: FigureFacts


class CostFacts(TypedDict):
    """One model's answers: figures per answer (passes, tokens, flops, seconds, joules, joules_per_right)."""

    parameters: int
    figures: dict[str, FigureFacts]
    joules_estimated: NotRequired[bool]
    watts: NotRequired[float]  # a core in use, where energy is estimated


class TextFacts(TypedDict):
    """Own text: bits per byte on held-out text beside what needs no language model."""

    held_out_bytes: int
    xz: float
    ngram: float
    ngram_order: NotRequired[int]


class DictionarySideFacts(TypedDict):
    """``well_formed``: by stated rules of form; ``right``: in the dictionary's own words."""

    well_formed: FigureFacts
    right: FigureFacts


class DictionaryAnswerFacts(TypedDict):
    question: str
    text: str
    reference: str
    trained: bool  # whether the word was learnt from
    right: bool
    well_formed: bool


class DictionaryFacts(TypedDict):
    """One kind of question about words: meaning, example, class, idiom, ending (of a saying)."""

    kind: Literal["meaning", "example", "class", "idiom", "ending"]
    held_out: NotRequired[DictionarySideFacts]
    trained: NotRequired[DictionarySideFacts]
    samples: list[DictionaryAnswerFacts]


class CopiedFacts(TypedDict):
    """What stands word for word in the training text: of what the model writes freely after held-out beginnings, of
    its answers, and of the held-out text itself (so much the language repeats anyway). ``longest``: words."""

    free: FigureFacts
    held_out: FigureFacts
    answers: NotRequired[FigureFacts]
    longest: int
    temperature: float


class DataFacts(TypedDict):
    name: str
    sha256: NotRequired[str]
    bytes: NotRequired[int]
    licence: NotRequired[str]
    attribution: NotRequired[Text]


class PlanFacts(TypedDict):
    stage: str
    steps: NotRequired[int]
    tokens: NotRequired[int]
    planned_s: NotRequired[float]


class ProvenanceFacts(TypedDict):
    data: list[DataFacts]
    seed: int
    versions: dict[str, str]
    machine: dict[str, str]  # e.g. {"cpu": "...", "cores": "2", "memory": "7.6 GB", "system": "Linux"}
    plan: NotRequired[list[PlanFacts]]
    when: NotRequired[str]  # ISO date and time
    model: NotRequired[dict[str, str | int | float]]  # parameters, width, layers, vocabulary, precision, ...


class CommandFacts(TypedDict):
    command: str
    what: Text


@with_config(ConfigDict(extra="forbid", allow_inf_nan=False))  # and so all that is in them
class Facts(TypedDict):
    """One run. ``run`` is the run's name (its folder), ``kind`` says whether the truth is known.

    ``address`` and ``program``: the folder and klype's command as they are typed where the run was made.
    """

    run: str
    address: NotRequired[str]
    program: NotRequired[str]
    recipe: str
    kind: Literal["world", "text"]
    planned_s: NotRequired[float]
    seconds: dict[str, float]  # "total", and one for each stage
    stages: dict[StageName, StageFacts | None]
    missing: NotRequired[dict[StageName, Text]]  # why a stage is None
    annotator: NotRequired[Text]  # who ranked: simulated (by which rule), or a person
    gains: NotRequired[StageFacts]  # aligned less fine-tuned, question by question: right, polite, annotator
    reward: NotRequired[RewardFacts | None]
    rewards: NotRequired[dict[str, WeightedRewardFacts]]  # by name: model, file.py:function, …
    gates: NotRequired[list[GateFacts]]
    too_few: NotRequired[list[FewFacts]]
    curves: NotRequired[list[CurveFacts]]
    questions: NotRequired[list[QuestionFacts]]
    next: NotRequired[list[NextFacts]]
    temperatures: NotRequired[TemperaturesFacts]
    survival: NotRequired[list[SurvivalFacts]]
    calibration: NotRequired[list[CalibrationFacts]]
    cost: NotRequired[dict[StageName, CostFacts]]
    text: NotRequired[TextFacts]
    dictionary: NotRequired[list[DictionaryFacts]]  # of the newest model
    copied: NotRequired[CopiedFacts]
    copied_example: NotRequired[str]  # the longest run found verbatim in the training text
    notes: NotRequired[list[Text]]  # honest remarks, e.g. that the questions were made from the text itself
    provenance: NotRequired[ProvenanceFacts]
    commands: NotRequired[list[CommandFacts]]  # how to go on; sensible ones are filled in when absent


def check(facts: Any) -> Facts:
    """The facts, when they have the shape above; else KlypeError that names the first field that is wrong."""
    try:
        return TypeAdapter(Facts).validate_python(facts)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "the top"
        raise KlypeError(f"The facts of this run are malformed at {where}: {first['msg'].lower()}.") from error


def read(path: Path) -> Facts:
    """Facts from a ``figures.json``."""
    try:
        return check(finite(path.read_text(encoding="utf-8")))
    except FileNotFoundError as error:
        raise KlypeError(f"There is no {path.name} in {path.parent}.", "Run the examination first.") from error
    except ValueError as error:
        raise KlypeError(f"{path} is not JSON: {error}.") from error


def by_stage(facts: Facts, name: str) -> list[tuple[StageName, FigureFacts]]:
    found = [(stage, (facts["stages"].get(stage) or {}).get(name)) for stage in STAGES]
    return [(stage, figure) for stage, figure in found if figure is not None and figure["value"] is not None]


def last_model(facts: Facts) -> str:
    """The newest stage there is a model of."""
    return next((s for s in ("aligned", "finetuned", "base") if facts["stages"].get(s)), "base")


def figures_of(facts: Facts, stage: str) -> StageFacts:
    """Those that have a value."""
    found: StageFacts = facts["stages"].get(stage) or {}  # type: ignore[call-overload]
    return {name: figure for name, figure in found.items() if figure["value"] is not None}


def clearly(before: FigureFacts, after: FigureFacts) -> int:
    """1 more, −1 less, 0 when the intervals overlap (or there are none)."""
    low, high = before.get("low"), before.get("high")
    return 0 if low is None or high is None else (beyond(after, high) > 0) - (beyond(after, low) < 0)


def beyond(figure: FigureFacts, threshold: float) -> int:
    """1 when all of the interval is above the threshold, −1 when all is below, 0 when it straddles (or is none)."""
    low, high = figure.get("low"), figure.get("high")
    return 0 if low is None or high is None else int(low > threshold) - int(high < threshold)


def changed(facts: Facts, name: str) -> int:
    """1 when alignment raised it, −1 when it lowered it, 0 when that cannot be told: by the paired difference where
    there is one, else by intervals that do not overlap."""
    gain = facts.get("gains", {}).get(name)
    if gain is not None:
        return beyond(gain, 0.0)
    before, after = (figures_of(facts, stage).get(name) for stage in ("finetuned", "aligned"))
    return 0 if before is None or after is None else clearly(before, after)
