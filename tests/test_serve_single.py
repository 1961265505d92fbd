"""A model that was taught single questions reads the last one alone, however it is asked."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

import klype
from klype.cli.exits import exit_code
from klype.cli.main import call
from klype.serve.app import app
from klype.serve.guard import Rules
from klype.serve.served_model import open_served
from klype.text.chat import Message
from tests.serve_toys import post, served

QUESTION = "Kari er i hagen. Ola er på skolen. Hvor er Kari?"
BEFORE: list[Message] = [
    {"role": "system", "content": "You are brief."},
    {"role": "user", "content": "Eva har en ball. Hvem har en ball?"},
    {"role": "assistant", "content": "Eva har en ball."},
]
LAST: list[Message] = [{"role": "user", "content": QUESTION}]


def test_what_was_said_before_changes_nothing_for_the_demo_model(
    elsewhere: Path, capsys: pytest.CaptureFixture[str], typed: Callable[[str], None]
) -> None:
    """Python's chat, the server's, its tokens, and the terminal's: each as if the question came first."""
    model = klype.load("demo")
    alone = model.chat(LAST, seed=3)
    assert model.chat([*BEFORE, *LAST], seed=3).text == alone.text
    there = app([open_served("demo")], rules=Rules())
    found = []
    for messages in (LAST, [*BEFORE, *LAST]):
        asked = {"model": "demo", "messages": messages, "seed": 3, "temperature": 0.7, "logprobs": True}
        found.append(post(there, "/v1/chat/completions", json=asked).json())
        assert post(there, "/tokenize", json={"model": "demo", "messages": messages}).json()["tokens"] == list(
            alone.trace.prompt
        )
    assert found[0]["choices"] == found[1]["choices"]
    assert found[0]["usage"] == found[1]["usage"]
    typed(f"Eva har en ball. Hvem har en ball?\n/temperature 0\n{QUESTION}\n")
    assert exit_code(call, ["chat", "demo", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)["messages"][-1]["content"]
    assert said == model.chat(LAST, temperature=0).text


def test_other_models_read_the_whole_conversation() -> None:
    there = app([served()], rules=Rules())
    tokens = [
        post(there, "/tokenize", json={"model": "toy", "messages": m}).json()["tokens"]
        for m in (LAST, [*BEFORE, *LAST])
    ]
    assert len(tokens[1]) > len(tokens[0])
