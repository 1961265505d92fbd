"""The public surface: what it lists, and that its answers are the engine's, whichever method tells them."""

from __future__ import annotations

import copy
import doctest
import json
import math
import pickle
import shutil
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch

import klype
from klype.api import examination as api_examination
from klype.api import model as api_model
from klype.cli import exits
from klype.cli.main import call
from klype.model import checkpoint
from klype.model.config import ModelConfig
from klype.model.transformer import Transformer
from klype.serve.served_model import open_served
from klype.text.chat import TEMPLATE
from klype.text.tokenizer import Tokenizer
from klype.values import Sampling
from tests.studio_toys import opened_models

SURFACE = [
    "Answer",
    "AnswerForks",
    "AnswerStream",
    "AnswerTree",
    "Examination",
    "Figure",
    "Judge",
    "KlypeError",
    "Metrics",
    "Model",
    "NextToken",
    "NextTokens",
    "Rankings",
    "Run",
    "RunReport",
    "Same",
    "Sampling",
    "Token",
    "__version__",
    "examine",
    "load",
    "same",
    "train",
]
"""What users may rely on: a name that is added or goes is a change of the public surface, and is said in CHANGELOG."""


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of the small world whose model babbles, but always the same."""
    folder = tmp_path_factory.mktemp("api") / "run"
    tokenizer = Tokenizer.train(["Hvem gikk? Kari gikk til skolen. Hvor er Ola? <b>æøå</b>"] * 3, 300, TEMPLATE)
    torch.manual_seed(2)
    config = ModelConfig(vocab_size=tokenizer.vocab_size, width=16, layers=1, heads=2, hidden=16, window=64)
    model = Transformer(config)
    torch.nn.init.normal_(model.head.weight, std=0.8)
    checkpoint.save(folder / "finetune", model, tokenizer, {"stage": "finetune"})
    (folder / "run.json").write_text(json.dumps({"settings": {"kind": "world", "world": "small"}}))
    return folder


@pytest.fixture(scope="module")
def model(run: Path) -> klype.Model:
    return klype.load(str(run))


def test_the_surface_is_what_is_listed() -> None:
    assert sorted(SURFACE) == sorted(klype.__all__) == sorted(dir(klype))
    assert all(getattr(klype, name).__doc__ for name in SURFACE if name != "__version__")
    with pytest.raises(AttributeError, match="no attribute 'lode'"):
        klype.lode  # noqa: B018


def test_importing_klype_waits_for_nothing() -> None:
    code = "import klype, sys; print(sorted({'torch', 'numpy', 'transformers', 'pydantic'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_every_sampler_is_an_option() -> None:
    options = api_model.SamplingOptions.__annotations__
    assert {"temperature", *options} == {field.name for field in fields(Sampling)}


def test_answers_are_the_same_alone_together_and_in_pieces(model: klype.Model) -> None:
    many = model.ask("Hvor er Kari?", n=3, temperature=0.9, limit=12, seed=5)
    (one,) = model.ask("Hvor er Kari?", temperature=0.9, limit=12, seed=5)
    assert one.trace.tokens == many[0].trace.tokens
    assert one.logprob == pytest.approx(many[0].logprob, abs=1e-4)
    pieces = model.stream("Hvor er Kari?", temperature=0.9, limit=12, seed=5)
    assert pieces.answer is None
    assert "".join(pieces) == one.text
    assert pieces.answer.trace.tokens == one.trace.tokens
    assert model.chat([{"role": "user", "content": "Hvor er Kari?"}], 0.9, 12, 5).text == one.text
    assert len({answer.text for answer in many}) > 1


def test_a_given_answer_has_the_probabilities_that_drawing_meets(model: klype.Model) -> None:
    scored = model.score("Hvem?", "Kari gikk")
    assert scored.text == "Kari gikk"
    assert scored.logprob == pytest.approx(sum(step.logp for step in scored.trace.steps))
    listed = {token.id: token.p for token in model.next("Hvem?", top=400).tokens}
    assert scored.tokens[0].p == pytest.approx(listed[scored.tokens[0].id], abs=1e-6)
    (drawn,) = model.ask("Hvem?", temperature=0, limit=5)
    steps = [step for step in drawn.trace.steps if step.token not in model.opened.stop]
    assert [token.p for token in drawn.tokens] == [pytest.approx(math.exp(step.logp)) for step in steps]


def test_next_tokens_sum_to_one_and_greedy_is_one_hot(model: klype.Model) -> None:
    found = model.next("Hvem gikk", top=7, temperature=0)
    assert sum(token.p for token in found.tokens) + found.rest == pytest.approx(1, abs=1e-5)
    assert [token.p_tempered for token in found.tokens] == [1.0, *[0.0] * 6]
    assert [token.p for token in found.tokens] == sorted((token.p for token in found.tokens), reverse=True)
    (first,) = model.ask("Hvem gikk", temperature=0, limit=1)
    assert first.trace.tokens[0] == found.tokens[0].id


def test_samplers_are_options_of_every_way_to_ask(model: klype.Model) -> None:
    greedy = model.ask("Hvem?", temperature=0, limit=6)[0].text
    assert model.ask("Hvem?", temperature=1.0, limit=6, top_k=1)[0].text == greedy
    assert model.ask("Hvem?", temperature=1.0, limit=6, min_p=1.0)[0].text == greedy
    assert sum(token.p_tempered > 0 for token in model.next("Hvem?", top=50, temperature=1.0, top_k=3).tokens) == 3
    with pytest.raises(klype.KlypeError, match="top_p"):
        model.ask("Hvem?", top_p=2.0)


def test_the_tree_holds_every_answer_within_its_interval(model: klype.Model) -> None:
    tree = model.tree("Hvem?", budget=60, limit=2, until="budget")
    assert sum(answer["low"] for answer in tree.answers) + tree.unexplored == pytest.approx(1, abs=1e-3)
    assert tree.answers[0]["low"] <= tree.answers[0]["high"] <= 1


def test_forks_look_at_the_given_answer(model: klype.Model) -> None:
    found = model.forks("Hvem?", answer="Kari gikk", samples=8, limit=4)
    assert len(found.tokens) == len(found.to_json()["positions"])
    assert found.fork == found.to_json()["fork"]


def test_text_goes_in_as_it_is_where_that_is_asked(model: klype.Model) -> None:
    plain = tuple(model.opened.encode_text("Hvem?"))
    for found in (model.ask("Hvem?", limit=3, raw=True)[0], model.score("Hvem?", "Kari", raw=True)):
        assert found.trace.prompt == plain
    raw, asked = (model.forks("Hvem?", samples=4, limit=3, raw=raw).found.text for raw in (True, False))
    assert raw == model.ask("Hvem?", limit=3, raw=True)[0].text
    assert asked == model.ask("Hvem?", limit=3, raw=False)[0].text


@pytest.mark.slow
def test_the_command_line_says_what_the_model_says(
    run: Path, model: klype.Model, capsys: pytest.CaptureFixture[str], typed: Callable[[str], None]
) -> None:
    def told_by(*argv: str) -> dict[str, Any]:
        assert exits.exit_code(call, [*argv, "--limit", "9", "--seed", "4", "--json"]) == 0
        return dict(json.loads(capsys.readouterr().out))

    (one,) = model.ask("Hvem?", 1, 0.9, 9, 4)
    told = told_by("ask", str(run), "Hvem?", "--temperature", "0.9")
    assert (told["answer"], told["tokens"]) == (one.text, len(one.trace.steps))
    (plain,) = model.ask("Hvem?", 1, 0.7, 9, 4, raw=True)
    assert told_by("ask", str(run), "Hvem?", "--raw")["answer"] == plain.text
    typed("Hvem?\nHvor?\n")
    said = told_by("chat", str(run))["messages"]
    assert said[1]["content"] == model.chat(said[:1], limit=9, seed=4).text
    assert told_by("forks", str(run), "Hvem?", "-n", "4") == model.forks("Hvem?", None, 4, limit=9, seed=4).to_json()
    found = model.tree("Hvem?", 20, limit=9).to_json()
    assert told_by("tree", str(run), "Hvem?", "--budget", "20") == json.loads(json.dumps(found))


def test_results_become_json_and_pages_and_frames(model: klype.Model) -> None:
    results: list[Any] = [
        model.ask("<b>Hvem?", temperature=1.0, limit=8)[0],
        model.next("Hvem?", top=400),
        model.tree("Hvem?", budget=20, limit=4),
        model.forks("Hvem?", samples=8, limit=4),
    ]
    for result in results:
        text = json.dumps(result.to_json(), allow_nan=False)
        assert json.loads(text) == result.to_json()
        page = result._repr_html_()
        assert "<" in page
        assert "<b>" not in page
        try:
            import pandas  # noqa: F401
        except ImportError:
            with pytest.raises(klype.KlypeError, match="pandas, which is not installed"):
                result.to_pandas()
        else:
            assert len(result.to_pandas().columns) >= 3


def test_what_cannot_be_is_one_sentence(model: klype.Model, tmp_path: Path) -> None:
    for doing, said in (
        (lambda: model.ask(" "), "no text"),
        (lambda: model.ask("Hvem? " * 90), "tokens"),
        (lambda: model.score("Hvem?", "Kari gikk " * 90), "more than the window"),
        (lambda: model.chat([]), "user's message"),
        (lambda: model.ask("Hvem?", temperature=math.nan), "temperature"),
        (lambda: klype.load(str(tmp_path / "none")), "no model"),
    ):
        with pytest.raises(klype.KlypeError, match=said):
            doing()


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (lambda model: model.ask(None), "should be a string"),
        (lambda model: model.ask("Hvem?", n=1.5), "n should be a whole number"),
        (lambda model: model.ask("Hvem?", n=10**9), "n should be at most 10000"),
        (lambda model: model.ask("Hvem?", limit="3"), "limit should be a whole number"),
        (lambda model: model.ask("Hvem?", seed=None), "seed should be a whole number"),
        (lambda model: model.ask("Hvem?", temperature="0.7"), "temperature is '0.7'"),
        (lambda model: model.ask("Hvem?", top_k=True), "top_k is True"),
        (lambda model: model.ask("Hvem?", logit_bias={5: 1.0}), "logit_bias holds pairs"),
        (lambda model: model.chat("Hei"), "list of messages"),
        (lambda model: model.chat({"role": "user", "content": "Hei"}), "list of messages"),
        (lambda model: model.next("Hvem?", top=-1), "top is -1"),
        (lambda model: model.score("Hvem?", None), "answer should be a string"),
        (lambda model: model.tree("Hvem?", budget=0), "budget of at least 1"),
        (lambda model: model.tree("Hvem?", budget=3.5), "budget should be a whole number"),
        (lambda model: model.forks("Hvem?", samples="many"), "samples should be a whole number"),
        (lambda model: model.forks("Hvem?", answer=3), "answer should be a string"),
        (lambda model: model.ask("Hvem?", topk=3), "Unknown option topk"),
        (lambda model: model.chat(5), "list of messages"),
        (lambda model: model.chat(iter(())), "list of messages"),
        (lambda model: klype.load(5), "name should be a string"),
        (lambda model: klype.load(b"run"), "name should be a string"),
        (lambda model: klype.load("a" * 5000), "no model aaa"),
        (lambda model: klype.load("a\0b"), "no model a"),
        (lambda model: klype.load(""), "no model"),
        (lambda model: klype.load("run", device=None), "device should be a string"),
        (lambda model: klype.load("run", budget=5), "budget should be a string"),
    ],
)
def test_arguments_of_a_wrong_kind_are_one_sentence(model: klype.Model, wrong: Any, said: str) -> None:
    with pytest.raises(klype.KlypeError, match=said):
        wrong(model)


def test_options_are_named_as_whoever_reads_of_them_gives_them(
    run: Path, model: klype.Model, capsys: pytest.CaptureFixture[str]
) -> None:
    """An argument of Python in a program, a flag on the command line."""
    for limit in (0, -3):
        with pytest.raises(klype.KlypeError, match=rf"^limit should be at least 1 \(it is {limit}\)\.$"):
            model.ask("Hvem?", limit=limit)
        assert exits.exit_code(call, ["ask", str(run), "Hvem?", "--limit", str(limit), "--json"]) == 2
        assert json.loads(capsys.readouterr().out)["error"]["message"].startswith("--limit should")
    for said, told in (
        ("Use --raw to go without it.", "Use raw=True to go without it."),
        ("It was --seed 5, not --seed=6.", "It was seed=5, not seed=6."),
        ("-n and --skip-bad of a-b--c, -1 to 1", "n and skip_bad of a-b--c, -1 to 1"),
        ("Give some: --questions FILE or --from.", "Give some: questions=FILE or from_."),
        ("Go on: klype run --out x.y --resume", "Go on: klype run --out x.y --resume"),
    ):
        assert str(klype.KlypeError(said, said)) == f"{told} {told}"


def test_a_model_is_pickled_by_how_it_was_opened(run: Path) -> None:
    opened = klype.load(run, precision="bfloat16", device="cpu")
    again = pickle.loads(pickle.dumps(opened))
    assert (again.name, again.opened.how) == (opened.name, opened.opened.how)
    assert again.ask("Hvem?", limit=4)[0].trace.tokens == opened.ask("Hvem?", limit=4)[0].trace.tokens
    assert copy.deepcopy([opened])[0] is copy.copy(opened) is opened


def test_a_model_is_asked_from_many_threads(model: klype.Model) -> None:
    def asked(seed: int) -> list[tuple[int, ...]]:
        return [answer.trace.tokens for answer in model.ask("Hvor er Kari?", 2, 0.9, 6, seed)]

    alone = [asked(seed) for seed in range(6)]
    with ThreadPoolExecutor(6) as pool:
        assert list(pool.map(asked, range(6))) == alone


def test_results_are_short_when_they_are_printed(model: klype.Model) -> None:
    tree, forks = model.tree("Hvem?", budget=20, limit=3), model.forks("Hvem?", answer="Kari gikk", samples=4)
    for found, begins in ((tree, f"<AnswerTree: {len(tree.answers)} answers, first '"), (forks, "<AnswerForks of '")):
        assert repr(found).startswith(begins)
        assert len(repr(found)) < 200


def test_a_reward_model_is_no_language_model(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(run / "finetune", tmp_path / "reward")
    (tmp_path / "reward" / "reward.json").write_text("{}")
    place = str(tmp_path / "reward")
    for doing in (lambda: klype.load(place), lambda: open_served(place), lambda: list(opened_models([place], "auto"))):
        with pytest.raises(klype.KlypeError, match=r"is a reward model, which weighs answers.* Name its run"):
            doing()
    for argv in (["ask", place, "Hvem?"], ["train", "finetune", "--from", place], ["export", place, "--gguf", "m"]):
        assert exits.exit_code(call, [*argv, "--json"]) == 2
        assert "is a reward model" in json.loads(capsys.readouterr().out)["error"]["message"]


def test_a_scored_answer_is_whole(model: klype.Model) -> None:
    scored = model.score("Hvor er Kari?", "Kari")
    assert scored.ended == "stop"
    assert "…" not in scored._repr_html_()


def test_the_examples_of_the_docs_run(run: Path) -> None:
    for module in (klype, api_model, api_examination):
        found = doctest.testmod(
            module, extraglobs={"klype": klype, "run": str(run)}, optionflags=doctest.ELLIPSIS, verbose=False
        )
        assert found.attempted > 0
        assert found.failed == 0
