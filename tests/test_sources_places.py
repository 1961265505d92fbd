"""Every kind of MODEL × every place that names one: it opens, or one sentence says why it cannot there."""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import pytest
import torch

import klype
from benchmarks.contenders import Klype
from benchmarks.task import Files
from klype.api.examination import prepare
from klype.api.judging import open_judge
from klype.cli import exits
from klype.cli.ask_methods import make_draft
from klype.cli.main import call
from klype.data.rows import questions_from
from klype.examine.settings import ExamSettings
from klype.model import checkpoint
from klype.model.attention import TORCH
from klype.model.config import ModelConfig
from klype.model.transformer import Transformer
from klype.serve.served_model import open_served
from klype.sources.opening import OpenModel, open_model
from klype.text.chat import TEMPLATE
from klype.text.tokenizer import Tokenizer
from tests.studio_toys import opened_models

pytestmark = pytest.mark.slow
transformers = pytest.importorskip("transformers")
pytest.importorskip("gguf")
SAID = ["Hvem gikk? Kari gikk til skolen. Hvor er Ola? Ola er hjemme."] * 3
KINDS = ("run", "stage", "checkpoint", "llama", "gpt2", "gguf", "server")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory, compiled_once: Path) -> Iterator[dict[str, str]]:
    """What a user would type for each kind; all but the other architecture have the same weights."""
    place = tmp_path_factory.mktemp("models")
    tokenizer = Tokenizer.train(SAID, 300, TEMPLATE)
    run = place / "run"
    torch.manual_seed(2)
    model = Transformer(ModelConfig(vocab_size=tokenizer.vocab_size, width=32, layers=1, heads=2, hidden=32, window=64))
    torch.nn.init.normal_(model.head.weight, std=0.8)
    for stage in ("pretrain", "finetune"):
        checkpoint.save(run / stage, model, tokenizer, {"stage": stage})
    (run / "run.json").write_text(json.dumps({"settings": {"kind": "text"}}))
    shutil.copytree(run / "finetune", place / "checkpoint")
    ours = shutil.ignore_patterns("run.json", "manifest.json", "README.md")
    shutil.copytree(run / "finetune", place / "llama", ignore=ours)
    checkpoint.load(run / "finetune").to_gguf(place / "m.gguf")
    config = transformers.GPT2Config(vocab_size=tokenizer.vocab_size, n_embd=16, n_layer=1, n_head=2, n_positions=64)
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(place / "gpt2")
    tokenizer.save(place / "gpt2")
    home = tmp_path_factory.mktemp("served")
    (home / "cache").symlink_to(compiled_once)
    command = [sys.executable, "-m", "klype", "serve", f"m={run}", "--port", "0", "--json", "--logprobs", "400"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=os.environ | {"KLYPE_HOME": str(home)})
    assert process.stdout is not None
    try:
        lines = iter(process.stdout)
        told = "".join([next(lines), *iter(lambda: next(lines), "}\n"), "}"])
        files = {"stage": "run/finetune", "gguf": "m.gguf", **{k: k for k in ("run", "checkpoint", "llama", "gpt2")}}
        yield {**{kind: str(place / file) for kind, file in files.items()}, "server": json.loads(told)["url"] + "#m"}
    finally:
        process.terminate()
        process.wait(30)


Way = Callable[[str, Path, str], str]
"""Of a model, a place to write and a run's model: what is said when it fails."""


def command(*line: str) -> Way:
    """A command with {m} and a place to write; what it says when it fails."""

    def run(model: str, out: Path, target: str) -> str:
        argv = [word.format(m=model, out=out) for word in line]
        said, errors = io.StringIO(), io.StringIO()
        with redirect_stdout(said), redirect_stderr(errors):
            code = exits.exit_code(call, [*argv, "--json"])
        told = json.loads(said.getvalue())
        assert "Traceback" not in errors.getvalue()
        assert code == 0 or code in (1, 2)
        return "" if code == 0 else str(told["error"]["message"])

    return run


def opening(way: Callable[..., Any]) -> Way:
    def run(model: str, out: Path, target: str) -> str:
        try:
            assert (way(model, target) if way is draft else way(model)) is not None
        except klype.KlypeError as error:
            return error.message
        return ""

    return run


def examined(model: str) -> Any:
    """All but the examination: the model is opened, its speed is looked at, and it is planned."""
    questions = questions_from([{"question": "Hvor er Ola?", "answers": ["Ola er hjemme."]}])
    return prepare(klype.load(model), questions, ExamSettings((1.0,), n=2, limit=2), 0.01)


def draft(model: str, target: str) -> Any:
    return make_draft(open_model(target), model)


THEIRS = {"server": "not computed by klype itself"}
NATIVE = {"gpt2": "not computed by klype itself", **THEIRS}
FILES = {"server": "is behind a server"}
FROM = {"gpt2": "gpt2", **FILES}
PLACES: dict[str, tuple[Way, dict[str, str]]] = {
    "ask": (command("ask", "{m}", "Hvem?", "--limit", "2"), {}),
    "next": (command("next", "{m}", "Hvem?"), {}),
    "tree": (command("tree", "{m}", "Hvem?", "--limit", "2", "--budget", "9"), {}),
    "forks": (command("forks", "{m}", "Hvem?", "--limit", "2", "-n", "4"), {}),
    "chat": (command("chat", "{m}", "--limit", "2"), {}),
    "examine": (opening(examined), {}),
    "judge": (opening(lambda model: open_judge(model)), {}),
    "load": (opening(lambda model: klype.load(model).ask("Hvem?", limit=2)), {}),
    "studio": (opening(lambda model: opened_models([model], "float32")), {}),
    "serve": (opening(open_served), THEIRS),
    "draft": (opening(draft), NATIVE),
    "from": (
        command("train", "pretrain", "--from", "{m}", "--text", "{out}/t.txt", "--steps", "1", "--out", "{out}/run",
                "--set", "pretrain.rows=2"), FROM,
    ),
    "export": (command("export", "{m}", "--gguf", "{out}/m.gguf"), FROM),
}  # fmt: skip
"""What is done there, and which kinds are refused with which words."""


@pytest.mark.parametrize("place", PLACES)
def test_every_kind_opens_or_is_refused_in_one_sentence(
    place: str, models: dict[str, str], tmp_path: Path, typed: Callable[[str], None]
) -> None:
    way, refused = PLACES[place]
    assert set(models) == set(KINDS)
    found = {}
    for kind, model in models.items():
        out = tmp_path / kind
        out.mkdir()
        (out / "t.txt").write_text("\n\n".join(f"{SAID[0]} {i}" for i in range(60)), encoding="utf-8")
        typed("Hvem?\n")
        found[kind] = way(model, out, models["run"])
    for kind, said in found.items():
        assert bool(said) == (kind in refused), (kind, said)
        assert refused.get(kind, "") in said


def kernels(model: Transformer) -> tuple[object, ...]:
    """What computes: of the weights' precision, few tokens, between the products, and the products."""
    layer = model.layers[0]
    return model.embed.weight.dtype, type(model.decoder), type(model.backend), type(layer.qkv), type(layer.down)  # type: ignore[union-attr]


@pytest.mark.parametrize("precision", ["float32", "bfloat16", "int8"])
def test_a_served_model_is_computed_as_one_that_is_asked(precision: str, models: dict[str, str]) -> None:
    for kind in ("run", "stage", "checkpoint", "llama", "gguf"):
        asked: OpenModel = open_model(models[kind], precision)
        (shown, *_) = opened_models([models[kind]], precision)
        assert shown.opened.native is not None
        served = open_served(f"m={models[kind]}", precision).source.engine.model
        assert kernels(served) == kernels(asked.engine.model) == kernels(shown.opened.engine.model)
        loaded = klype.load(models[kind], precision).opened.engine.model
        assert kernels(loaded) == kernels(served)
        guessing: Any = make_draft(asked, models[kind])
        compared = Klype(precision)  # type: ignore[arg-type]
        compared.load(Files(models[kind], {}, torch.get_num_threads(), ""))
        assert kernels(guessing.model) == kernels(compared.engine.model) == kernels(served)
    if klype.load(models["run"]).opened.engine.model.backend is not TORCH:  # there is a C compiler
        assert served.decoder is not None
