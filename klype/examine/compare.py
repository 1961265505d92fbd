"""Comparison of two examinations, paired by question and sample; and the conditions of ``--fail-if``."""

import operator
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from klype.config import nearest
from klype.errors import KlypeError, UsageError
from klype.examine.estimators import by_question
from klype.examine.evidence import Evidence
from klype.examine.exam import ExamResult
from klype.examine.intervals import ends, mcnemar, mean_change, with_bounds
from klype.examine.measures import MEASURES

SHARES = dict.fromkeys(("right", "word_for_word", "polite", "concise"), "difference of shares")
PAIRED = {**SHARES, "score": "points", "tokens": "tokens", "entropy": "nats"}


def compare(a: ExamResult, b: ExamResult) -> dict[str, Any]:
    """b − a on the same questions, by temperature and measure, with McNemar's exact p where there is one binary trial
    per question. Raises UsageError without a common question or temperature."""
    shared = [t for t in a.evidence if t in b.evidence]
    if not shared:
        raise UsageError("The two examinations have no temperature in common.")
    changes = {f"{t:g}": differences(a.evidence[t], b.evidence[t]) for t in shared}
    return {"a": a.target.name, "b": b.target.name, "differences": changes}


def differences(a: Evidence, b: Evidence) -> dict[str, Any]:
    """The differences at one temperature. Sample k of a question is paired with sample k; questions that only one of
    the two has are left out. ``feedback`` uses the interventions that both have."""
    left, right = by_question(a), by_question(b)
    rows = [(q, one, other) for q in left for one, other in zip(left[q], right.get(q, ()), strict=False)]
    if not rows:
        raise UsageError("The two examinations have no question in common.")
    out = {}
    for name, unit in PAIRED.items():
        known = [
            (q, float(x), float(y))
            for q, one, other in rows
            if (x := getattr(one, name)) is not None and (y := getattr(other, name)) is not None
        ]
        if not known:
            continue
        questions, before, after = zip(*known, strict=True)
        figure = mean_change(before, after, questions, unit, a.points if name == "score" else None)
        if name == "right" and a.errors is not None:
            figure = with_bounds(replace(figure, judge=a.judge), a.errors["right"], *ends(figure), 2, (-1.0, 1.0))
        out[name] = figure.json()
        # McNemar's test is for independent pairs: one answer per question
        if len(set(questions)) == len(questions) and set(before) | set(after) <= {0.0, 1.0}:
            out[name]["p"] = mcnemar(before, after)
    # the increase in error right after a forced error; only the same forced words can be compared
    mine, theirs = (
        {(one.intervention.question, one.intervention.tokens): one.errors["wrong"][0] - one.errors["right"][0]
         for one in side.outcomes if one.intervention.by_rule}
        for side in (a, b)
    )  # fmt: skip
    if both := [place for place in mine if place in theirs]:
        effects = [[side[place] for place in both] for side in (mine, theirs)]
        out["feedback"] = mean_change(effects[0], effects[1], [q for q, _ in both], "difference of shares").json()
    return out


COMPARE = {"<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge}
CONDITION = re.compile(r"\s*([a-z_]+)(?:@([0-9.]+))?\s*(<=|>=|<|>)\s*(-?[0-9.]+(?:e-?\d+)?)\s*")


@dataclass(frozen=True, slots=True)
class Condition:
    """A condition of ``--fail-if``, such as ``right@1<0.8``; ``temperature`` "": the main one."""

    measure: str
    temperature: str
    sign: str
    threshold: float

    def __str__(self) -> str:
        at = f"@{self.temperature}" if self.temperature else ""
        return f"{self.measure}{at}{self.sign}{self.threshold:g}"

    def check(self, temperatures: Sequence[str]) -> None:
        """Raises UsageError if the condition's temperature is not among these."""
        if self.temperature and self.temperature not in temperatures:
            known = ", ".join(temperatures)
            raise UsageError(f"--fail-if {self}: temperature {self.temperature} is not examined ({known} are).")


def parse(text: str) -> Condition:
    """Parses ``right<0.8``, or ``right@1<0.8`` at temperature 1. Raises UsageError for any other form, or an unknown
    measure."""
    found = CONDITION.fullmatch(text)
    names = [row.name for row in MEASURES]
    if found is None:
        raise UsageError(f"--fail-if does not understand “{text}”.", "Write a measure, a sign and a number: right<0.8.")
    name, temperature, sign, threshold = found.groups()
    if name not in names:
        near = nearest(name, names)
        hint = f"Did you mean {near}?" if near else f"Known: {', '.join(names)}."
        raise UsageError(f"There is no measure {name}.", hint)
    try:
        return Condition(name, f"{float(temperature):g}" if temperature else "", sign, float(threshold))
    except ValueError:
        raise UsageError(f"--fail-if does not understand the number in “{text}”.") from None


def failure(condition: Condition, document: Mapping[str, Any]) -> str:
    """A sentence if the condition holds for the document, else "". Raises KlypeError if the measure has no value."""
    temperature = condition.temperature or document["main"]
    condition.check(list(document["figures"]))
    figure = document["figures"][temperature].get(condition.measure)
    if figure is None or figure["value"] is None:
        why = (figure or {}).get("why", "nothing to measure it from")
        raise KlypeError(f"--fail-if {condition}: {condition.measure} could not be measured ({why}).")
    if COMPARE[condition.sign](figure["value"], condition.threshold):
        return f"{condition.measure} is {figure['value']:.4g}: the condition {condition} holds."
    return ""
