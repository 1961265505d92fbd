"""``klype ask --decoder``: what was chosen, why, and what it cost, of a model whose meanings are counted by hand."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

from klype.answers.decoders import DECODERS
from klype.api.prompt_context import PromptContext
from klype.cli import ask, ask_methods
from klype.errors import UsageError
from klype.values import Question, Request, Sampling
from klype.words.sentences import Sentences
from tests.toy_sources import table_source

TABLE = np.array([[1, 0, 0, 0, 0], [0, 0, 0.4, 0.3, 0.3], *np.tile(np.eye(5)[0], (3, 1))])


def told(name: str, budget: float = 8.0) -> dict[str, Any]:
    source, codec = table_source(TABLE)
    merged = {"c": "x", "d": "x"}
    ask = PromptContext(source, (1,), Question("q", "a"), lambda text: merged.get(text, text), "text", None)
    opened = cast(Any, SimpleNamespace(source=source, stop=(0,), as_raw=lambda raw: True, encode_text=codec.encode))
    request = Request(ask.prompt, limit=4, sampling=Sampling(0.7), seed=1)
    found = ask_methods.decide(opened, ask, request, (name, budget), None)
    return ask_methods.decision(found, name, budget)


def test_what_was_chosen_why_and_at_what_cost() -> None:
    found = told("search")
    assert found["plain"] == "b"
    assert found["changed"]
    assert found["shares"][0] == {"text": "c", "meaning": "x", "share": pytest.approx(0.6)}
    assert found["plain_passes"] == 2
    assert found["plain_passes"] < found["passes"] <= 16
    assert told("greedy")["passes"] == 2


@pytest.mark.parametrize("lang", ["en", "nb"])
def test_every_decoder_has_words(lang: str) -> None:
    said = Sentences(lang)
    assert all((said(row.about) == row.about) == (lang == "en") for row in DECODERS.values())
    lines = "\n".join(ask_methods.decision_lines(told("search"), lang))
    assert "60" in lines
    assert "b" in lines


def test_budgets_for_decoders_and_for_servers() -> None:
    assert ask.decoder_budget("consensus", "8×") == (8.0, "")
    assert ask.decoder_budget("consensus", "8x,500requests") == (8.0, "500requests")
    assert ask.decoder_budget("search", "") == (ask.BUDGET, "")
    assert ask.decoder_budget("", "500requests,20000tokens")[1] == "500requests,20000tokens"
    with pytest.raises(UsageError, match="for a decoder"):
        ask.decoder_budget("", "8×")
    with pytest.raises(UsageError, match="no decoder"):
        ask.decoder_budget("guess", "8×")
    with pytest.raises(UsageError, match="plain answers"):
        ask.decoder_budget("search", "lots")
    with pytest.raises(UsageError, match="nothing to check with"):
        told("verify-yes")


def test_a_model_without_one_token_for_yes_cannot_verify_by_it() -> None:
    """Letter by letter "Yes" ends in "s", which says nothing of yes."""
    letters = tuple(".YesNo yn")
    _, codec = table_source(np.eye(len(letters)), letters=letters)
    opened = cast(
        Any, SimpleNamespace(source=SimpleNamespace(codec=codec), encode_answer=codec.encode, prompt=codec.prompt)
    )
    assert ask_methods.yes_check(opened, "q") == {}
