"""Conditions under which an examination fails: ``right<0.8``, ``kl>0.3``, ``feedback_ratio>=2``."""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from klype.config import nearest
from klype.errors import KlypeError, UsageError
from klype.examine.measures import MEASURES

COMPARE: dict[str, Callable[[float, float], bool]] = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}
CONDITION = re.compile(r"\s*([a-z_]+)(?:@([0-9.]+))?\s*(<=|>=|<|>)\s*(-?[0-9.]+(?:e-?\d+)?)\s*")


@dataclass(frozen=True, slots=True)
class Condition:
    """Fails when the measure's value compares so; ``temperature`` "" is the main one."""

    measure: str
    temperature: str
    sign: str
    threshold: float

    def __str__(self) -> str:
        at = f"@{self.temperature}" if self.temperature else ""
        return f"{self.measure}{at}{self.sign}{self.threshold:g}"

    def check(self, temperatures: Sequence[str]) -> None:
        """Errors: it is about a temperature that is not among these."""
        if self.temperature and self.temperature not in temperatures:
            known = ", ".join(temperatures)
            raise UsageError(f"--fail-if {self}: temperature {self.temperature} is not examined ({known} are).")


def parse(text: str) -> Condition:
    """``right<0.8``, or ``right@1<0.8`` at temperature 1. Errors: a form or a measure that does not exist."""
    found = CONDITION.fullmatch(text)
    names = [row.name for row in MEASURES]
    if found is None:
        raise UsageError(f"--fail-if does not understand “{text}”.", "Write a measure, a sign and a number: right<0.8.")
    name, temperature, sign, threshold = found.groups()
    if name not in names:
        near = nearest(name, names)
        raise UsageError(
            f"There is no measure {name}.", f"Did you mean {near}?" if near else f"Known: {', '.join(names)}."
        )
    try:
        return Condition(name, f"{float(temperature):g}" if temperature else "", sign, float(threshold))
    except ValueError:
        raise UsageError(f"--fail-if does not understand the number in “{text}”.") from None


def failed(condition: Condition, document: Mapping[str, Any]) -> str:
    """Why it failed, "" when it did not. Errors: the measure was not made."""
    temperature = condition.temperature or document["main"]
    condition.check(list(document["figures"]))
    figure = document["figures"][temperature].get(condition.measure)
    if figure is None or figure["value"] is None:
        why = (figure or {}).get("why", "nothing to measure it from")
        raise KlypeError(f"--fail-if {condition}: {condition.measure} could not be measured ({why}).")
    if COMPARE[condition.sign](figure["value"], condition.threshold):
        return f"{condition.measure} is {figure['value']:.4g}: the condition {condition} holds."
    return ""
