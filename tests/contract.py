"""The JSON contract, as types: what `--json` prints has these keys at least, and figures no others."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Annotated, Any, Literal, NotRequired

from pydantic import AfterValidator, ConfigDict, Field, TypeAdapter, ValidationError
from typing_extensions import TypedDict


def contained(figure: Known) -> Known:
    """The interval contains the value, and so do the bounds that allow for the judge's errors."""
    low, high = figure["low"], figure["high"]
    assert (low is None) == (high is None)
    for end in (figure, figure.get("bounds", {})):
        assert end.get("low") is None or end["low"] <= figure["value"]  # type: ignore[typeddict-item]
        assert end.get("high") is None or figure["value"] <= end["high"]  # type: ignore[typeddict-item]
    assert math.isfinite(figure["value"])
    return figure


class Bounds(TypedDict):
    low: float | None
    high: float | None


class Known(TypedDict):
    __pydantic_config__ = ConfigDict(extra="forbid")  # type: ignore[misc]
    value: float
    low: float | None
    high: float | None
    n: int
    unit: str
    certain: NotRequired[Literal[True]]
    judge: NotRequired[str]
    error_rate: NotRequired[Known | Unknown]
    bounds: NotRequired[Bounds]
    why: NotRequired[str]
    t: NotRequired[int]
    distance: NotRequired[int]
    p: NotRequired[float]


class Unknown(TypedDict):
    __pydantic_config__ = ConfigDict(extra="ignore")  # type: ignore[misc]
    value: None
    why: str


Figure = Annotated[Known, AfterValidator(contained)] | Unknown
P = Annotated[float, Field(ge=0, le=1 + 1e-9)]


class Ask(TypedDict):
    answer: str
    tokens: int
    passes: int
    seconds: float
    flops: int | None
    joules: float | None


class Message(TypedDict):
    role: Literal["system", "user", "assistant"]
    content: str


class Chat(TypedDict):
    messages: list[Message]
    tokens: int
    passes: int
    seconds: float


class NextToken(TypedDict):
    token: str
    id: int
    p: P
    p_tempered: P
    truth: NotRequired[P]


class Next(TypedDict):
    tokens: list[NextToken]
    rest: P


class TreeAnswer(TypedDict):
    text: str
    low: P
    high: P
    meaning: str


class Tree(TypedDict):
    answers: list[TreeAnswer]
    unexplored: P
    expansions: int


class Position(TypedDict):
    token: str
    strength: Figure


class Forks(TypedDict):
    answer: str
    positions: list[Position]
    fork: int | None


class Examine(TypedDict):
    model: str
    questions: int
    figures: dict[str, dict[str, Figure]]
    survival: dict[str, list[Figure]]
    independent: dict[str, list[Figure]]
    feedback: dict[str, list[Figure]]
    report: str


class Doctor(TypedDict):
    versions: dict[str, str | None]
    machine: dict[str, Any]


class Gate(TypedDict):
    name: str
    value: float | None
    low: float | None
    high: float | None
    n: int
    threshold: float
    status: Literal["passed", "within", "missed"]
    passed: bool


class Reward(TypedDict):
    pair_accuracy: Figure
    ceiling: Figure


Stages = TypedDict("Stages", {name: dict[str, Figure] | None for name in ("base", "finetuned", "aligned")})  # type: ignore[misc]


class Run(TypedDict):
    run: str
    recipe: str
    planned_s: float
    seconds: dict[str, float]
    stages: Stages
    reward: Reward | None
    gates: list[Gate]
    report: str


class Trained(TypedDict):
    run: str
    stage: Literal["pretrain", "finetune", "rank", "reward", "align"]
    model: str
    seconds: dict[str, float]
    figures: dict[str, dict[str, Figure]]
    reward: dict[str, Any] | None
    rewards: dict[str, Any] | None


class Align(TypedDict):
    run: str
    method: str
    taste: str
    rounds: list[dict[str, Any]]
    verdict: dict[str, str]
    gain: dict[str, Figure]
    win_rate: Figure


class Annotator(TypedDict):
    name: str
    by: Literal["person", "simulated", "model", "imported"]
    rankings: int
    with_oneself: Figure


class Between(TypedDict):
    annotators: list[str]
    tau_b: Figure


class Rank(TypedDict):
    run: str
    store: str
    new: int
    entries: int
    annotators: list[Annotator]
    between: list[Between]
    alpha: dict[str, Figure]


class Target(TypedDict):
    bits_per_byte: NotRequired[Figure]
    kl: NotRequired[Figure]


class Bias(TypedDict):
    targets: dict[str, Target]
    plan: dict[str, Any]
    report: str


class Method(TypedDict):
    figures: dict[str, Figure]


class Mistakes(TypedDict):
    methods: dict[str, Method]
    plan: dict[str, Any]
    halved: list[str]
    report: str


class Claim(TypedDict):
    ruling: str
    tests: dict[str, Any]


class Article(TypedDict):
    claims: list[Claim]
    report: str


class Exported(TypedDict):
    model: str
    gguf: NotRequired[str]
    bytes: NotRequired[int]
    folder: NotRequired[str]
    files: NotRequired[list[str]]
    hub: NotRequired[str]


class Reason(TypedDict):
    message: str
    hint: str


class Error(TypedDict):
    error: Reason


def holds(contract: Any, document: object) -> None:
    """Raises ValidationError, which names the place, where a document does not keep its contract."""
    TypeAdapter(contract).validate_python(document, strict=True)
    for place, one in measured(document):
        try:
            TypeAdapter(Gate if "threshold" in one else Figure).validate_python(one, strict=True)
        except ValidationError as error:
            raise AssertionError(f"{place} is no figure: {one}") from error


def measured(document: object, place: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """Whatever in a document has a value, wherever it stands."""
    if isinstance(document, dict):
        if "value" in document:
            yield place, document
        for name, one in document.items():
            yield from measured(one, f"{place}.{name}")
    elif isinstance(document, list):
        for number, one in enumerate(document):
            yield from measured(one, f"{place}[{number}]")
