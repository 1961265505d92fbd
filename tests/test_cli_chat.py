"""Talking to a model: streamed = decoded, a full window slides, commands do what they say."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from klype.api.model import Model
from klype.api.prompt_context import fit, suggestions
from klype.cli.chat import ChatSession
from klype.cli.next_tree_forks import bar_of, visible
from klype.cli.terminal import Terminal
from klype.engine.engine import Engine
from klype.errors import UsageError
from klype.model.checkpoint import LoadedModel
from klype.model.config import ModelConfig
from klype.model.transformer import Transformer
from klype.sources.model_files import ModelFiles
from klype.sources.opening import OpenModel, decode_stream, fit_limit, native, stream
from klype.text.chat import TEMPLATE, Message
from klype.text.tokenizer import Tokenizer
from klype.values import Request, Sampling
from klype.words import LANGUAGES
from klype.words.plain import harmless
from klype.world import World

Captured = pytest.CaptureFixture[str]
TEXTS = [
    "Hunden drakk vann på stien.",
    "Kari gikk en tur på veien, og katten så ærfuglen.",
    "Who drank? The dog 🐕 did!",
]
WINDOW = 48


@pytest.fixture(scope="module")
def opened() -> OpenModel:
    """A random model over bytes and a few words; it babbles, which is all that these laws need."""
    torch.manual_seed(3)
    tokenizer = Tokenizer.train(TEXTS, 400, TEMPLATE)
    config = ModelConfig(vocab_size=tokenizer.vocab_size, width=16, layers=1, heads=2, hidden=16, window=WINDOW)
    model = Transformer(config).eval()
    torch.nn.init.normal_(model.head.weight, std=0.5)
    loaded = LoadedModel(model, tokenizer, config, {}, Path("toy"))
    return native("toy", ModelFiles(Path("toy")), loaded, Engine(model, decode_bytes=tokenizer.token_bytes, name="toy"))


def talk_to(opened: OpenModel, limit: int = 8, seed: int = 0) -> ChatSession:
    return ChatSession(Terminal(lang="en"), opened, Sampling(temperature=1.0), limit, seed)


def said(talk: ChatSession) -> list[str]:
    return [message["content"] for message in talk.messages if message["role"] == "assistant"]


@pytest.mark.slow
@given(st.text(max_size=20), st.integers(1, 4))
def test_pieces_are_whole_characters(text: str, size: int) -> None:
    data = text.encode("utf-8", "ignore")
    chunks = [data[i : i + size] for i in range(0, len(data), size)]
    last: Any = "the last"
    told = decode_stream((chunk, last if i == len(chunks) - 1 else None) for i, chunk in enumerate(chunks))
    parts = [piece for piece, _ in told]
    assert "".join(parts) == data.decode().removeprefix(" ")
    assert "\ufffd" not in "".join(parts) or "\ufffd" in text


@pytest.mark.parametrize("seed", range(5))
def test_streamed_is_decoded(opened: OpenModel, seed: int) -> None:
    prompt = opened.prompt([{"role": "user", "content": "Hunden drakk?"}])
    request = Request(tuple(prompt), limit=20, seed=seed, stop=opened.loaded.tokenizer.ends)
    parts = list(stream(opened, request))
    trace = parts[-1][1]
    assert trace is not None
    assert all(t is None for _, t in parts[:-1])
    assert "".join(piece for piece, _ in parts) == opened.loaded.tokenizer.decode_answer(trace.tokens)
    assert opened.flops(trace) > 0


def test_leaving_a_stream_early_cancels_it(opened: OpenModel) -> None:
    prompt = tuple(opened.prompt([{"role": "user", "content": "Hunden?"}]))
    for _ in stream(opened, Request(prompt, limit=30, seed=1)):
        break
    assert not opened.engine.busy


@given(st.lists(st.integers(1, 12), min_size=1, max_size=9), st.integers(4, 40), st.integers(1, 10), st.booleans())
def test_what_fits_is_the_newest_and_no_more_than_needed_leaves(
    lengths: list[int], window: int, reserve: int, system: bool
) -> None:
    head = [{"role": "system", "content": "s"}] if system else []
    messages: list[Message] = [
        *head,
        *({"role": "user" if i % 2 == 0 else "assistant", "content": "x" * n} for i, n in enumerate(lengths)),
    ]

    def prompt(some: Sequence[Message]) -> list[int]:
        return [0] * sum(len(m["content"]) for m in some)

    fitting = fit(messages, prompt, window, reserve)
    if fitting is None:
        last_user = max(i for i, m in enumerate(messages) if m["role"] == "user")
        assert len(prompt([*head, *messages[last_user:]])) + reserve > window
        return
    kept, ids = fitting
    assert len(ids) + reserve <= window
    assert kept[: len(head)] == head
    tail = kept[len(head) :]
    assert tail == messages[len(messages) - len(tail) :]
    assert tail[0]["role"] == "user"
    dropped = messages[len(head) : len(messages) - len(tail)]
    if dropped:  # the exchange that left last would not have fitted
        start = max(i for i, m in enumerate(dropped) if m["role"] == "user")
        assert len(prompt([*head, *dropped[start:], *tail])) + reserve > window


def test_the_same_seed_gives_the_same_conversation(opened: OpenModel, capsys: Captured) -> None:
    first, again, other = talk_to(opened), talk_to(opened), talk_to(opened, seed=1)
    for talk in (first, again, other):
        for line in ("Hunden drakk?", "  ", "Kari?"):
            assert talk.take(line)
    assert first.document()["messages"] == again.document()["messages"]
    assert [m["role"] for m in first.messages] == ["user", "assistant"] * 2
    assert said(first) != said(other)
    assert harmless(said(first)[0]) in capsys.readouterr().out


def test_where_single_questions_were_taught_each_is_answered_as_if_it_came_first(
    opened: OpenModel, tmp_path: Path, capsys: Captured
) -> None:
    (tmp_path / "run.json").write_text(json.dumps({"settings": {"kind": "world"}}))
    of_world = replace(opened, found=ModelFiles(tmp_path / "align", tmp_path, "align"))
    cold = Sampling(temperature=0)
    alone = ChatSession(Terminal(lang="en"), of_world, cold, 8, 0)
    alone.take("Kari?")
    talk, other = (
        ChatSession(Terminal(lang="en"), of_world, cold, 8, 0),
        ChatSession(Terminal(lang="en"), opened, cold, 8, 0),
    )
    for each in (talk, other):
        for line in ("Hunden drakk?", "Kari?", "Kari?"):
            each.take(line)
        told = capsys.readouterr()
        assert ("oldest messages" in told.out + told.err) == (each is other)  # only its window can be full
    assert said(talk)[1:] == said(alone) * 2
    assert [trace.prompt for trace in talk.traces[1:]] == [alone.traces[0].prompt] * 2
    assert len(other.traces[1].prompt) > len(alone.traces[0].prompt)  # who was taught conversations sees them


def test_questions_to_try_are_drawn_new_and_can_be_asked(opened: OpenModel, tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text(json.dumps({"settings": {"kind": "world"}}))
    of_world, world = replace(opened, found=ModelFiles(tmp_path / "align", tmp_path, "align")), World()
    for lang in LANGUAGES:
        first, again, other = (suggestions(of_world, lang, seed=seed) for seed in (0, 0, 1))
        assert first == again != other
        asked = [world.parse(text) for text in first]
        assert [question.extra["lang"] for question in asked] == [lang] * 3
        assert len({question.extra["kind"] for question in asked}) == 3
    assert suggestions(opened, "en") == []


def test_again_answers_the_same_message_anew(opened: OpenModel) -> None:
    talk = talk_to(opened)
    talk.take("/again")
    assert talk.messages == []
    talk.take("Hunden drakk?")
    answers = set(said(talk))
    for _ in range(5):
        talk.take("/again")
        assert [m["role"] for m in talk.messages] == ["user", "assistant"]
        answers |= set(said(talk))
    assert len(answers) > 1


def test_a_full_window_slides_with_one_notice_a_step(opened: OpenModel, capsys: Captured) -> None:
    talk = talk_to(opened, limit=8)
    for _ in range(8):
        assert talk.take("Hunden drakk vann på stien.")
    shown = capsys.readouterr().out
    assert f"The model's window of {WINDOW} tokens is full" in shown
    assert len(said(talk)) == 8
    assert all(len(t.prompt) + len(t.steps) <= WINDOW for t in talk.traces)
    # sliding = recomputing on what was kept
    last = talk.traces[-1]
    fresh = Engine(opened.loaded.model).run(
        [Request(last.prompt, 1, len(last.steps), last.sampling, last.seed, first_sample=last.sample)]
    )
    assert fresh[0][0].tokens == last.tokens


def test_a_message_that_cannot_fit_is_refused_and_forgotten(opened: OpenModel, capsys: Captured) -> None:
    talk = talk_to(opened)
    talk.take("Hunden?")
    talk.take("qzx " * 60)
    assert f"does not fit into the model's window of {WINDOW} tokens" in capsys.readouterr().out
    assert len(talk.messages) == 2
    assert talk.take("Hunden?")
    assert len(said(talk)) == 2


def test_commands(opened: OpenModel, capsys: Captured) -> None:
    talk = talk_to(opened)
    assert talk.take("/probs")
    assert "There is no answer yet." in capsys.readouterr().out
    talk.take("/temperature 0")
    assert talk.sampling.temperature == 0
    talk.take("/temperature 0,5")
    talk.take("/top_p 0.9")
    assert (talk.sampling.temperature, talk.sampling.top_p) == (0.5, 0.9)
    for line in ("/temperature", "/temperature warm", "/temperature -1", "/temperature nan", "/top_p 2"):
        assert talk.take(line)
        assert (talk.sampling.temperature, talk.sampling.top_p) == (0.5, 0.9)
    shown = capsys.readouterr().out
    assert "/temperature needs a number" in shown
    assert "Not possible: --top-p should be above 0" in shown
    talk.take("/help")
    assert "Now 0.5." in capsys.readouterr().out
    talk.take("/dance")
    assert "There is no command /dance." in capsys.readouterr().out
    talk.take("Hunden drakk?")
    talk.take("/probs")
    shown = capsys.readouterr().out
    assert "instead" in shown
    assert shown.count("%") >= len(talk.traces[-1].steps)
    talk.take("/reset")
    assert talk.messages == []
    assert talk.take("/quit") is False


def test_tokens_within_a_character_stand_together(opened: OpenModel, capsys: Captured) -> None:
    talk = talk_to(opened)
    talk.take("Hunden?")
    last = talk.traces[-1]
    tokens = opened.encode_answer("\u0176 \u16a0")  # no text had them: a token a byte, of two and of three
    steps = (*(replace(last.steps[0], token=token, logp=-0.1, distribution=None) for token in tokens),)
    talk.traces[-1] = replace(last, steps=(*steps, replace(steps[0], token=opened.stop[0])))
    capsys.readouterr()
    talk.take("/probs")
    shares = [line.split() for line in capsys.readouterr().out.splitlines()[1:] if line.strip()]
    assert ["\u0176", "82%"] in [row[:2] for row in shares]  # e^-0.2
    assert shares[-2][:2] == ["\u16a0", "74%"]
    assert shares[-1][:2] == ["(end)", "90%"]
    talk.take("/probs bytes")
    listed = capsys.readouterr().out
    assert "\\xc5" in listed
    assert listed.count("90%") == len(tokens) + 1


def test_no_escape_code_reaches_the_terminal() -> None:
    assert harmless("a\x1b[31mb\x07\x9b\tc\næ🐕") == "a\ufffd[31mb\ufffd\ufffd\tc\næ🐕"
    assert [visible(t) for t in (" hund", " ", "\n", "\x1b[2J", "")] == ["hund", "␣", "↵", "\\x1b[2J", "∅"]


def test_norwegian_words(opened: OpenModel, capsys: Captured) -> None:
    talk = ChatSession(Terminal(lang="nb"), opened, Sampling(), 4, 0)
    talk.take("/reset")
    assert "Samtalen er glemt." in capsys.readouterr().out


def test_what_cannot_be_asked_is_one_sentence(opened: OpenModel) -> None:
    prompt = [1] * WINDOW
    with pytest.raises(UsageError, match=f"has {WINDOW} tokens, and toy reads {WINDOW} at most"):
        fit_limit(opened, prompt, 5)
    assert fit_limit(opened, prompt[:-3], 5) == 3
    with pytest.raises(UsageError, match="limit should be at least 1"):
        fit_limit(opened, prompt[:3], 0)
    with pytest.raises(UsageError, match="no text"):
        fit_limit(opened, [], 5)


@pytest.mark.parametrize("temperature", [0.0, 0.7, 1.0, 1.3])
def test_next_is_a_distribution_before_and_after_temperature(opened: OpenModel, temperature: float) -> None:
    distribution = opened.engine.next([opened.encode_text("Hunden drakk")])[0]
    sampling = Sampling(temperature=temperature)
    size = opened.loaded.config.vocab_size
    table = Model(opened).table(distribution, sampling, (), None, size)
    tempered = torch.zeros(size, dtype=torch.float64)
    tempered[[row.id for row in table.tokens]] = torch.tensor([row.p_tempered for row in table.tokens]).double()
    logp = torch.full((size,), float("-inf"), dtype=torch.float64)
    logp[torch.as_tensor(distribution.ids.copy())] = torch.as_tensor(distribution.logp.copy(), dtype=torch.float64)
    if temperature == 0:
        assert int(tempered.argmax()) == int(logp.argmax())
        assert float(tempered.max()) == 1.0
    else:
        torch.testing.assert_close(tempered, torch.softmax(logp / temperature, -1), atol=1e-6, rtol=1e-4)
    truth = {9: 0.75, 11: 0.25}
    document = Model(opened).table(distribution, sampling, (), truth, 4).to_json()
    assert json.loads(json.dumps(document, allow_nan=False)) == document
    assert {row["id"]: row["truth"] for row in document["tokens"] if row["truth"]} == truth
    assert document["rest"] + sum(row["p"] for row in document["tokens"]) == pytest.approx(1, abs=1e-5)
    assert "truth" not in Model(opened).table(distribution, sampling, (), None, 4).to_json()["tokens"][0]


@given(st.floats(-0.5, 1.5), st.integers(1, 40))
def test_a_bar_keeps_its_width(share: float, width: int) -> None:
    bar = bar_of(share, width)
    assert len(bar) == width
    assert (bar.strip() == "") == (round(max(0.0, min(1.0, share)) * width * 8) == 0)
