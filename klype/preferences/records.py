"""The values in a preference store: questions with candidate answers, and annotators' rankings of them.

A candidate's trace is stored as a row with its tokens and their log-probabilities, without the distributions.
"""

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
    """An answer to be ranked. ``model`` and ``temperature``: how it was sampled; ``author``: the person who wrote it,
    if one did; ``trace``: without distributions. ``id`` is the store's, 0 before it is stored."""

    text: str
    model: str = ""
    temperature: float | None = None
    author: str = ""
    trace: Trace | None = None
    id: int = 0


@dataclass(frozen=True, slots=True)
class RankingItem:
    """A question with its candidate answers."""

    question: Question
    candidates: tuple[Candidate, ...]
    part: Part = "train"
    id: int = 0


@dataclass(frozen=True, slots=True)
class Entry:
    """One annotator's ranking of a question's candidates, or a skip. ``asked.candidates`` are in the order shown.

    ``order``: indices into ``asked.candidates``, best first, tied ones in one inner tuple. ``kind`` "none": no answer
    is good (the order still counts: all are tied unless something else was said); "skip": there is no order.
    ``seconds``: how long it took; ``again``: a question that the annotator had ranked before.
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
        """The entry as trainers read it."""
        assert self.kind != "skip", "what was skipped has no order"
        texts = tuple(candidate.text for candidate in self.asked.candidates)
        return Ranking(self.asked.question, texts, self.order, self.annotator, self.when)


def entry_of(ranking: Ranking, part: Part = "train", by: By | None = None) -> Entry:
    """A ranking as an entry; without ``by`` the kind of annotator is inferred from the name."""
    candidates = tuple(Candidate(text) for text in ranking.candidates)
    asked = RankingItem(ranking.question, candidates, part)
    return Entry(asked, ranking.order, ranking.annotator, by=by or by_name(ranking.annotator), when=ranking.when)


def by_name(annotator: str) -> By:
    """The kind of annotator that a name's prefix says; "imported" where it has none."""
    if annotator.startswith(SIMULATED):
        return "simulated"
    return "model" if annotator.startswith(MODEL) else "imported"


def with_repeats(values: Sequence[T]) -> list[tuple[T, int]]:
    """Each value with the number of equal ones before it, which makes duplicates distinct."""
    return [(value, values[:i].count(value)) for i, value in enumerate(values)]


def dumps(value: Any) -> str:
    """JSON without escapes, except where the text has lone surrogates, which UTF-8 cannot encode."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False)
    surrogates = not text.isascii() and any("\ud800" <= c <= "\udfff" for c in text)
    return json.dumps(value, allow_nan=False) if surrogates else text


def trace_row(trace: Trace) -> dict[str, Any]:
    """A trace as a JSON object, without distributions (the model can be asked for them again). Log-probabilities that
    are unknown (NaN), as with some servers, are None."""
    return {
        "prompt": list(trace.prompt),
        "tokens": [step.token for step in trace.steps],
        "logp": [None if math.isnan(step.logp) else step.logp for step in trace.steps],
        "drawn_logp": [None if math.isnan(step.sampling_logprob) else step.sampling_logprob for step in trace.steps],
        "how": [step.source for step in trace.steps],
        "sampling": {k: v for k, v in asdict(trace.sampling).items() if v != getattr(Sampling(), k)},
    } | {name: getattr(trace, name) for name in PLAIN}


def trace_from(row: Mapping[str, Any]) -> Trace:
    """The trace that ``trace_row`` wrote."""
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
