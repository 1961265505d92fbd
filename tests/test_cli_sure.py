"""``--sure``: probability of the text, agreement, and the deciding word, of a model whose truth is counted by hand."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

from klype.api.prompt_context import PromptContext
from klype.cli.ask_methods import share_of, sure_of
from klype.sources.source import answers
from klype.values import Question, Request, Sampling
from tests.toy_sources import table_source


def sure(temperature: float) -> tuple[dict[str, Any], Any]:
    source, codec = table_source(np.array([[0.2, 0.4, 0.4], [0.5, 0.3, 0.2], [0.1, 0.2, 0.7]]))
    prompt = tuple(codec.encode("a"))
    request = Request(prompt, limit=6, sampling=Sampling(temperature=temperature), stop=tuple(source.codec.stop))
    trace = answers(source, [request])[0][0]
    ask = PromptContext(source, prompt, Question("q", "a"), str, "text", None)
    opened = cast(Any, SimpleNamespace(can_continue=True, token_text=lambda token: codec.token_bytes(token).decode()))
    return sure_of(opened, ask, trace, 6), trace


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_p_is_that_of_the_tokens(temperature: float) -> None:
    found, trace = sure(temperature)
    assert found["p_learnt"] == pytest.approx(math.exp(trace.logp))
    assert found["p"] == pytest.approx(1.0 if temperature == 0 else math.exp(trace.logp))
    assert found["temperature"] == 1.0
    assert found["same"]["low"] <= found["same"]["value"] <= found["same"]["high"]
    assert found["same"]["n"] == 32
    assert found["decided"] is None or found["decided"]["after"] > found["decided"]["before"]


def test_small_probabilities_are_said_as_one_in_so_many() -> None:
    assert share_of(0.25, "en") == "25%"
    assert (share_of(0.0002, "en"), share_of(1 / 86_982_543, "en")) == ("1 in 5,000", "1 in 87.0 million")
    assert share_of(1e-12, "en") == "10^−12"
    assert share_of(None, "nb") == "–"
