"""ask, next and chat on saved checkpoints: JSON contract, truth of the demo world, one sentence for what is wrong."""

from __future__ import annotations

import dataclasses
import itertools
import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from klype.cli import exits
from klype.cli.main import call
from klype.model import checkpoint
from klype.model.config import ModelConfig
from klype.model.transformer import Transformer
from klype.runs.provenance import find_question, is_beginning, next_tokens, read_questions
from klype.text.chat import TEMPLATE
from klype.text.tokenizer import Tokenizer
from klype.values import Question
from klype.words import words
from klype.world.world import World

Captured = pytest.CaptureFixture[str]
Typed = Callable[[str], None]
SENTENCE = "Jeg gikk en tur på"


def save(folder: Path, tokenizer: Tokenizer, window: int = 96) -> None:
    torch.manual_seed(5)
    config = ModelConfig(vocab_size=tokenizer.vocab_size, width=16, layers=1, heads=2, hidden=16, window=window)
    model = Transformer(config)
    torch.nn.init.normal_(model.head.weight, std=0.3)
    checkpoint.save(folder, model, tokenizer, {"stage": folder.name})


@pytest.fixture(scope="module")
def world() -> World:
    return World("small")


@pytest.fixture(scope="module")
def question(world: World) -> Question:
    return world.question(random.Random(1), heldout=True)


@pytest.fixture(scope="module")
def run(world: World, question: Question, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A demo-world run with two stages (of random weights) and its held-out question."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    rng = random.Random(0)
    texts = [world.text(world.document(rng).words) for _ in range(60)] + [
        world.text(world.words),
        question.prompt,
        *question.answers,
    ]
    tokenizer = Tokenizer.train(texts, 4000, TEMPLATE)  # whole words
    for stage in ("pretrain", "finetune"):
        save(folder / stage, tokenizer)
    (folder / "run.json").write_text(
        json.dumps({"recipe": "world", "settings": {"kind": "world", "world": "small"}}), encoding="utf-8"
    )
    row = {k: v for k, v in dataclasses.asdict(question).items() if v}
    (folder / "questions.jsonl").write_text(json.dumps(row) + "\n", encoding="utf-8")
    return folder


def document(capsys: Captured, *argv: str) -> dict[str, Any]:
    assert exits.exit_code(call, [*argv, "--json"]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


@pytest.mark.slow
def test_ask_answers_with_its_cost(run: Path, capsys: Captured, tmp_path: Path) -> None:
    out = tmp_path / "answer.json"
    first = document(capsys, "ask", str(run), "Hvem?", "--limit", "9", "--out", str(out))
    assert set(first) == {"answer", "tokens", "passes", "seconds", "flops", "joules"}
    assert json.loads(out.read_text(encoding="utf-8")) == first
    assert 1 <= first["tokens"] <= 9
    assert first["flops"] > 0
    again = document(capsys, "ask", str(run), "Hvem?", "--limit", "9")
    assert again["answer"] == first["answer"]
    assert exits.exit_code(call, ["ask", str(run), "Hvem?", "--limit", "9"]) == 0
    assert capsys.readouterr().out.removesuffix("\n").removesuffix(" …").strip() == first["answer"].strip()
    seeds = {document(capsys, "ask", str(run), "Hvem?", "--limit", "9", "--seed", str(s))["answer"] for s in range(4)}
    assert len(seeds) > 1
    greedy = {
        document(capsys, "ask", str(run), "Hvem?", "--limit", "9", "--temperature", "0", "--seed", s)["answer"]
        for s in ("0", "1")
    }
    assert len(greedy) == 1


@pytest.mark.slow
def test_a_stage_that_knows_no_template_gets_plain_text(run: Path, capsys: Captured) -> None:
    def first_tokens(*argv: str) -> list[int]:
        return [row["id"] for row in document(capsys, "next", *argv)["tokens"]]

    base, tuned = str(run / "pretrain"), str(run / "finetune")
    assert first_tokens(base, SENTENCE) == first_tokens(base, SENTENCE, "--raw")
    assert first_tokens(tuned, SENTENCE) == first_tokens(tuned, SENTENCE, "--chat-template")
    base_p = document(capsys, "next", base, SENTENCE)["tokens"][0]["p"]
    assert document(capsys, "next", base, SENTENCE, "--chat-template")["tokens"][0]["p"] != base_p


def test_next_stands_beside_the_truth(run: Path, world: World, capsys: Captured) -> None:
    found = document(capsys, "next", str(run / "pretrain"), SENTENCE, "--temperature", "0.5", "--top", "5")
    rows = found["tokens"]
    assert rows[:5] == sorted(rows[:5], key=lambda row: -row["p"])
    assert found["rest"] + sum(row["p"] for row in rows) == pytest.approx(1, abs=1e-4)
    words = world.filter()
    for word in SENTENCE.split():
        words.push(word)
    truth = words.next()
    shown = {row["token"].strip(): row["truth"] for row in rows if row["truth"]}
    best = sorted(truth, key=lambda word: -truth[word])[:5]
    assert shown == {word: pytest.approx(truth[word]) for word in best}


def test_next_knows_the_truth_of_a_held_out_question(run: Path, question: Question, capsys: Captured) -> None:
    rows = document(capsys, "next", str(run), question.prompt, "--top", "3")["tokens"]
    assert sum(row["truth"] for row in rows) > 0.2
    assert "truth" not in document(capsys, "next", str(run), "Hva er det?")["tokens"][0]


def test_the_truth_of_a_text_is_known_where_the_world_says_it(world: World) -> None:
    for text in ("", SENTENCE, "Jeg gikk en t", f"{SENTENCE} stien"):  # also within a word
        assert is_beginning(world.filter(), text), text
    for text in ("Xyz", f"{SENTENCE} xyz", f"{SENTENCE} xyz abc", "president", f"{SENTENCE} gikk"):
        assert not is_beginning(world.filter(), text), text


def test_a_model_without_a_run_has_no_truth(run: Path, tmp_path: Path, capsys: Captured) -> None:
    save(tmp_path / "model", Tokenizer.train(["a b c " * 9], 300, None))
    rows = document(capsys, "next", str(tmp_path / "model"), "a b")["tokens"]
    assert set(rows[0]) == {"token", "id", "p", "p_tempered"}
    assert exits.exit_code(call, ["chat", str(tmp_path / "model")]) == 1
    assert "has no chat template" in capsys.readouterr().err


def test_the_truth_sums_to_one_over_tokens(run: Path, world: World) -> None:
    whole = Tokenizer.load(run / "pretrain")
    merged = Tokenizer.train(["Jeg gikk en tur på stien. " * 9], 300)
    texts = ["", SENTENCE, f"{SENTENCE} stien", "Xyz", f"{SENTENCE} xyz abc", "Jeg gikk en t"]
    for text, tokenizer in itertools.product(texts, (whole, merged)):
        truth = next_tokens(world.filter(), tokenizer, text)
        assert sum(truth.values()) == pytest.approx(1)
        assert min(truth.values()) >= 0


def test_questions_are_found_by_their_text(run: Path, question: Question) -> None:
    asked = read_questions(run / "questions.jsonl")
    assert [q.prompt for q in asked] == [question.prompt]
    assert find_question(asked, f" {question.prompt}\n") is asked[0]
    assert find_question(asked, question.question) is None  # without its story it asks another thing
    assert find_question(asked, "Hva?") is None
    assert read_questions(run / "none.jsonl") == []


@pytest.mark.parametrize("lang", ["en", "nb"])
def test_the_chart_fits_and_says_what_it_shows(run: Path, lang: str, capsys: Captured) -> None:
    assert exits.exit_code(call, ["next", str(run / "pretrain"), SENTENCE, "--lang", lang]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert SENTENCE in lines[0]
    assert max(map(len, lines)) <= 80
    assert ("fasit" if lang == "nb" else "truth") in lines[1]
    assert any("█" in line for line in lines)
    assert "%" in lines[2]
    assert ("," in lines[2]) == (lang == "nb")


def test_chat_reads_lines_and_prints_one_document(run: Path, capsys: Captured, typed: Typed) -> None:
    typed("Hvem drakk?\n/again\n/temperature 0\nHvor?\n/quit\nnever read\n")
    assert exits.exit_code(call, ["chat", str(run), "--limit", "6", "--json"]) == 0
    said = capsys.readouterr()
    found = json.loads(said.out)
    assert [m["role"] for m in found["messages"]] == ["user", "assistant"] * 2
    assert found["messages"][2]["content"] == "Hvor?"
    assert found["tokens"] <= 18
    assert "Talk to" in said.err


@pytest.mark.parametrize(
    ("argv", "code", "sentence"),
    [
        (["ask", "RUN", "Hunden " * 200], 2, "The text has"),
        (["ask", "RUN", "Hvem?", "--limit", "0"], 2, "--limit should be at least 1"),
        (["next", "RUN", "Hunden " * 200], 2, "The text has"),
        (["ask", "RUN", "Hvem?", "--limit", "-3"], 2, "--limit should be at least 1"),
        (["chat", "RUN", "--limit", "0"], 2, "--limit should be at least 1"),
        (["ask", "RUN", "Hvem?", "--temperature", "nan"], 2, "--temperature should be a number from 0 up (it is nan)"),
        (["ask", "RUN", "Hvem?", "--temperature", "inf"], 2, "--temperature should be a number from 0 up (it is inf)"),
        (["chat", "RUN", "--temperature", "-1"], 2, "--temperature should be a number from 0 up (it is -1)"),
        (["next", "RUN", "Hvem?", "--temperature", "nan"], 2, "--temperature should be a number from 0 up (it is nan)"),
        (["ask", "RUN", "Hvem?", "--top-p", "0"], 2, "--top-p should be above 0 and at most 1 (it is 0)"),
        (["chat", "RUN", "--top-p", "1.5"], 2, "--top-p should be above 0 and at most 1 (it is 1.5)"),
        (["ask", "RUN", "Hvem?", "--top-p", "nan"], 2, "--top-p should be above 0 and at most 1 (it is nan)"),
        (["chat", "RUN", "--speculate", "RUN/none"], 2, "There is no model"),
        (["ask", "RUN", "Hvem?", "--precision", "int4"], 2, "There is no precision 'int4'"),
        (["ask", "RUN", "Hvem?", "--precision", "int3"], 2, "There is no precision 'int3'"),
        (["ask", "RUN/align", "Hvem?"], 2, "There is no model"),
        (["next", "RUN", "Hvem?", "--out", "RUN/none/x.json"], 2, "RUN/none/x.json cannot be written"),
    ],
)
def test_what_cannot_be_asked(run: Path, argv: list[str], code: int, sentence: str, capsys: Captured) -> None:
    argv = [word.replace("RUN", str(run)) for word in argv]
    assert exits.exit_code(call, argv) == code
    told = capsys.readouterr().err.splitlines()[-1]  # after what is told of compiling
    assert told.startswith(f"klype: {sentence.replace('RUN', str(run))}")


def told(err: str) -> str:
    """What was said of the end; on a busy machine it is said before that something begins."""
    return err.removeprefix(f"{words('en')('model.starting')}\n")


def test_a_damaged_checkpoint_is_one_sentence(run: Path, tmp_path: Path, capsys: Captured) -> None:
    save(tmp_path / "model", Tokenizer.load(run / "pretrain"))
    weights = tmp_path / "model" / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-3] ^= 1
    weights.write_bytes(data)
    assert exits.exit_code(call, ["ask", str(tmp_path / "model"), "Hvem?"]) == 1
    said = capsys.readouterr()
    assert said.out == ""
    assert told(said.err).count("\n") == 1
    assert "bug" not in said.err


@pytest.mark.parametrize("cut", ["model.safetensors", "tokenizer.json", "config.json"])
@pytest.mark.parametrize("manifest", [True, False])
def test_a_truncated_or_missing_file_is_one_sentence(
    run: Path, tmp_path: Path, cut: str, manifest: bool, capsys: Captured
) -> None:
    """Also of a folder without a manifest, as other makers' are."""
    for gone in (False, True):
        folder = tmp_path / f"model{gone}"
        save(folder, Tokenizer.load(run / "pretrain"))
        if not manifest:
            (folder / "manifest.json").unlink()
            (folder / "run.json").unlink()
        file = folder / cut
        file.unlink() if gone else file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
        assert exits.exit_code(call, ["ask", str(folder), "Hvem?"]) in (1, 2)
        said = capsys.readouterr()
        assert said.out == ""
        assert told(said.err).count("\n") == 1
        assert told(said.err).startswith("klype: ")
        assert "bug" not in said.err


@pytest.mark.parametrize("command", [["ask", "RUN", "Hvem?"], ["chat", "RUN"]])
def test_a_draft_with_another_vocabulary_is_refused(
    run: Path, tmp_path: Path, command: list[str], capsys: Captured
) -> None:
    save(tmp_path / "other", Tokenizer.train(["entirely other words than those of the run"], 280))
    swapped = tmp_path / "swapped"  # as many tokens, two of which have changed places
    shutil.copytree(run / "finetune", swapped)
    for name in ("manifest.json", "run.json"):
        (swapped / name).unlink()
    definition = json.loads((swapped / "tokenizer.json").read_text())
    vocab, (one, two) = definition["model"]["vocab"], list(definition["model"]["vocab"])[-2:]
    vocab[one], vocab[two] = vocab[two], vocab[one]
    (swapped / "tokenizer.json").write_text(json.dumps(definition))
    for draft in ("other", "swapped"):
        argv = [*(word.replace("RUN", str(run)) for word in command), "--speculate", str(tmp_path / draft)]
        assert exits.exit_code(call, argv) == 2
        said = capsys.readouterr()
        assert "do not share a tokenizer" in said.err
        assert said.out == ""  # nothing was answered first


@pytest.mark.slow
@pytest.mark.parametrize("draft", ["lookup", "RUN/pretrain"])
def test_a_conversation_with_guesses_is_the_one_without(run: Path, draft: str, capsys: Captured, typed: Typed) -> None:
    found = []
    for extra in ([], ["--speculate", draft.replace("RUN", str(run))]):
        typed("Hvem drakk?\n/again\nHva?\n")
        assert exits.exit_code(call, ["chat", str(run), "--temperature", "0", "--limit", "12", "--json", *extra]) == 0
        found.append(json.loads(capsys.readouterr().out))
    assert found[0]["messages"] == found[1]["messages"]
    assert found[0]["tokens"] == found[1]["tokens"]
    assert "speculation" not in found[0]
    assert len(found[1]["speculation"]) == 3
    assert all(one["alpha"] is None or 0 <= one["alpha"] <= 1 for one in found[1]["speculation"])


@pytest.mark.slow
@pytest.mark.parametrize("draft", ["lookup", "RUN/pretrain"])
def test_guessing_ahead_says_the_same_and_counts(run: Path, draft: str, capsys: Captured) -> None:
    argv = ["ask", str(run), SENTENCE, "--temperature", "0", "--limit", "20", "--json"]
    argv += ["--speculate", draft.replace("RUN", str(run))]
    assert exits.exit_code(call, argv) == 0
    found = json.loads(capsys.readouterr().out)["speculation"]
    assert found["same_tokens"] is True
    assert found["passes"] <= found["plain_passes"]
    assert found["alpha"] is None or 0 <= found["alpha"] <= 1
