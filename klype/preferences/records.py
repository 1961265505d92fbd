"""What a store holds, as values: questions with their candidates, and what an annotator said about them.

A candidate's trace is kept as a row: its tokens and their log-probabilities, without the distributions.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, TypeVar, get_args

from klype.values import Question, Ranking, Sampling, Step, Trace

T = TypeVar("T")
Part = Literal["train", "held-out"]
Kind = Literal["order", "none", "skip"]
By = Literal["person", "simulated", "model", "imported"]
PARTS: tuple[Part, ...] = get_args(Part)
KINDS: tuple[Kind, ...] = get_args(Kind)
BYS: tuple[By, ...] = get_args(By)
# the fields of a trace that are kept as they are
PLAIN = ("seed", "sample", "model", "ended", "passes", "seconds", "joules")
SIMULATED, MODEL = "simulated: ", "model: "


@dataclass(frozen=True, slots=True)
class Candidate:
    """An answer. ``model`` and ``temperature`` say where it came from, ``author`` who rewrote it; ``trace`` without
    distributions. ``id`` is the store's, 0 before it is stored."""

    text: str
    model: str = ""
    temperature: float | None = None
    author: str = ""
    trace: Trace | None = None
    id: int = 0


@dataclass(frozen=True, slots=True)
class RankingItem:
    """A question and the candidates that answer it."""

    question: Question
    candidates: tuple[Candidate, ...]
    part: Part = "train"
    id: int = 0


@dataclass(frozen=True, slots=True)
class Entry:
    """One ranking in a store (or a skip): what an annotator said about a question's candidates, in the order shown.

    ``order`` holds indices into ``asked.candidates``, best first, tied ones in one inner tuple. ``kind`` "none": none
    is good (the order still counts: all tied when nothing else was said); "skip": no order. ``seconds``: how long it
    took.
    """

    asked: RankingItem
    order: tuple[tuple[int, ...], ...]
    annotator: str
    kind: Kind = "order"
    by: By = "person"
    when: str = ""
    seconds: float | None = None
    again: bool = False
    id: int = 0

    def ranking(self) -> Ranking:
        """The order as every trainer reads it."""
        assert self.kind != "skip", "what was skipped has no order"
        texts = tuple(candidate.text for candidate in self.asked.candidates)
        return Ranking(self.asked.question, texts, self.order, self.annotator, self.when)


def entry_of(ranking: Ranking, part: Part = "train", by: By | None = None) -> Entry:
    """A ranking as an entry; who made it is read from the name when ``by`` is not given."""
    candidates = tuple(Candidate(text) for text in ranking.candidates)
    asked = RankingItem(ranking.question, candidates, part)
    return Entry(asked, ranking.order, ranking.annotator, by=by or by_name(ranking.annotator), when=ranking.when)


def by_name(annotator: str) -> By:
    """Simulated annotators and judging models carry their kind in their name; anyone else is not known here."""
    if annotator.startswith(SIMULATED):
        return "simulated"
    return "model" if annotator.startswith(MODEL) else "imported"


def numbered(values: Sequence[T]) -> list[tuple[T, int]]:
    """Each value with how often it stood before: twins are told apart."""
    return [(value, values[:i].count(value)) for i, value in enumerate(values)]


def dumps(value: Any) -> str:
    """JSON with letters as they are where UTF-8 can write them: half of a surrogate pair it cannot."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False)
    surrogates = not text.isascii() and any("\ud800" <= c <= "\udfff" for c in text)
    return json.dumps(value, allow_nan=False) if surrogates else text


def trace_row(trace: Trace) -> dict[str, Any]:
    """Everything in a trace but distributions (they are the model's, and it can be asked again). A log-probability that
    is not told, as servers do not always, is None."""
    return {
        "prompt": list(trace.prompt),
        "tokens": [step.token for step in trace.steps],
        "logp": [None if math.isnan(step.logp) else step.logp for step in trace.steps],
        "drawn_logp": [None if math.isnan(step.sampling_logprob) else step.sampling_logprob for step in trace.steps],
        "how": [step.source for step in trace.steps],
        "sampling": {k: v for k, v in asdict(trace.sampling).items() if v != getattr(Sampling(), k)},
    } | {name: getattr(trace, name) for name in PLAIN}


def trace_from(row: Mapping[str, Any]) -> Trace:
    """The trace of a row."""
    sampling = dict(row["sampling"])
    if "logit_bias" in sampling:
        sampling["logit_bias"] = tuple((int(token), float(bias)) for token, bias in sampling["logit_bias"])
    logp, drawn_logp = ([math.nan if p is None else p for p in row[name]] for name in ("logp", "drawn_logp"))
    return Trace(
        tuple(row["prompt"]),
        tuple(Step(*columns) for columns in zip(row["tokens"], logp, drawn_logp, row["how"], strict=True)),
        Sampling(**sampling),
        **{name: row[name] for name in PLAIN},
    )
