"""A candidate's trace as a row: its tokens and their log-probabilities, without the distributions beside them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from klype.values import Sampling, Step, Trace


def trace_row(trace: Trace) -> dict[str, Any]:
    """Everything in a trace but distributions (they are the model's, and it can be asked again)."""
    return {
        "prompt": list(trace.prompt),
        "tokens": [step.token for step in trace.steps],
        "logp": [_number(step.logp) for step in trace.steps],
        "drawn_logp": [_number(step.drawn_logp) for step in trace.steps],
        "how": [step.how for step in trace.steps],
        "sampling": {k: v for k, v in asdict(trace.sampling).items() if v != getattr(Sampling(), k)},
        "seed": trace.seed,
        "sample": trace.sample,
        "model": trace.model,
        "ended": trace.ended,
        "passes": trace.passes,
        "seconds": trace.seconds,
        "joules": trace.joules,
    }


def trace_from(row: Mapping[str, Any]) -> Trace:
    """The trace of a row."""
    sampling = dict(row["sampling"])
    if "logit_bias" in sampling:
        sampling["logit_bias"] = tuple((int(token), float(bias)) for token, bias in sampling["logit_bias"])
    columns = zip(row["tokens"], row["logp"], row["drawn_logp"], row["how"], strict=True)
    return Trace(
        tuple(row["prompt"]),
        tuple(Step(token, _told(logp), _told(drawn), how) for token, logp, drawn, how in columns),
        Sampling(**sampling),
        row["seed"],
        row["sample"],
        row["model"],
        row["ended"],
        row["passes"],
        row["seconds"],
        row["joules"],
    )


def _number(logp: float) -> float | None:
    """None where it is not told, as servers do not always."""
    return None if math.isnan(logp) else logp


def _told(logp: float | None) -> float:
    return math.nan if logp is None else logp
