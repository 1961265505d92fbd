"""Going on from a model: what is left out, and adapters in place of its weights through every stage."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from run_toys import Heard

from klype.config import make
from klype.data.documents import Split
from klype.data.readers import TextDocument
from klype.errors import UsageError
from klype.model import checkpoint
from klype.model.config import ModelConfig
from klype.model.transformer import Transformer
from klype.runs import pipeline
from klype.runs.run_options import RunOptions, StageOptions
from klype.runs.run_start import skipped_stages
from klype.runs.text_measures import TextMeasures
from klype.sources.opening import find_model
from klype.text.tokenizer import Tokenizer
from klype.text.tokenizer_files import SpecialTokens
from tests.train_toys import FEW, NARROW

SMALL = (*FEW, "model.window=64", "examine.questions=12")
BASE = (*NARROW, "tokenizer.size=400", "pretrain.rows=2")


def train(folder: Path, **options: object) -> dict[str, Any]:
    folder.mkdir(parents=True, exist_ok=True)
    return pipeline.train_stage(make(StageOptions, {"steps": 4, "out": folder, **options}), Heard())


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Rows of instructions, a text, and a base model of it."""
    folder = tmp_path_factory.mktemp("adapting")
    rows = [{"question": f"Hva sa dyr nummer {i}?", "answer": f"God dag, god dag, sa dyr {i}."} for i in range(60)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    stories = [f"Reven gikk over isen {i} ganger. Han så en fisk i vannet. «God dag,» sa reven." for i in range(60)]
    (folder / "text.txt").write_text("\n\n".join(stories))
    train(folder / "base", stage="pretrain", text=(str(folder / "text.txt"),), overrides=(*SMALL, *BASE))
    return folder


def matrices(folder: Path) -> dict[str, torch.Tensor]:
    return checkpoint.load(folder).model.state_dict()


def test_a_text_is_measured_where_no_token_begins_or_ends_it() -> None:
    """As of a model from elsewhere whose files name no such tokens."""
    text = "Reven gikk over isen. Han så en fisk i vannet."
    tokenizer = Tokenizer(Tokenizer.train([text], 300)._definition, SpecialTokens(None, None, None))
    assert (tokenizer.lead, tokenizer.end) == ([], -1)
    model = Transformer(ModelConfig(vocab_size=tokenizer.vocab_size, width=8, heads=2, layers=1, hidden=16, window=32))
    documents = [TextDocument(text, "a.txt", 1), TextDocument(text[::-1], "b.txt", 1)]
    figure = TextMeasures(Split(documents, documents), tokenizer, 32).bits_per_byte(model, few=True)
    assert figure.value is not None
    assert figure.value > 0


@pytest.mark.slow
def test_a_run_goes_on_from_a_model_by_adapters(place: Path) -> None:
    folder, base = place / "run", place / "base" / "pretrain"
    folder.mkdir()
    asked: dict[str, object] = {"minutes": 0.05, "from_": str(base), "lora": 2, "instructions": place / "rows.jsonl"}
    options = make(RunOptions, {**asked, "out": folder, "overrides": SMALL, "force": True})
    document = pipeline.run(options, Heard())
    assert document["recipe"] == "lora"
    assert all(document["stages"][name] is not None for name in ("base", "finetuned", "aligned"))
    assert (folder / "report.html").is_file()
    assert not (folder / "pretrain" / "model.safetensors").exists()
    before, taught, aligned = (matrices(p) for p in (base, folder / "finetune", folder / "align"))
    assert before.keys() == taught.keys() == aligned.keys()
    for name in before:
        learnt = name.endswith(("qkv.weight", "out.weight", "gate_up.weight", "down.weight"))
        assert torch.equal(before[name], taught[name]) is not learnt
        assert torch.equal(taught[name], aligned[name]) is not learnt
    again = Heard()
    pipeline.run(replace(options, resume=True), again)
    assert not again.steps


def test_a_stage_by_adapters_is_reproduced_from_its_seed(place: Path) -> None:
    found = []
    for name in ("one", "two"):
        options = {"instructions": place / "rows.jsonl", "lora": 3, "from_": str(place / "base"), "overrides": SMALL}
        train(place / name, stage="finetune", **options)
        found.append(matrices(place / name / "finetune"))
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])


def test_the_stages_behind_a_model_are_left_out(place: Path, tmp_path: Path) -> None:
    base = place / "base" / "pretrain"
    stages = ("pretrain", "finetune", "align")
    for stage in stages:
        shutil.copytree(base, tmp_path / stage, ignore=shutil.ignore_patterns("resume"))
        about = json.loads((base / "run.json").read_text()) | {"stage": stage}
        (tmp_path / stage / "run.json").write_text(json.dumps(about))
    left_out = [skipped_stages(find_model(str(tmp_path / stage)), RunOptions()) for stage in stages]
    assert left_out == [("pretrain",), ("pretrain", "finetune"), ("pretrain", "finetune")]


def test_a_chat_model_from_elsewhere_is_taught_only_where_there_is_something_to_teach(
    place: Path, tmp_path: Path
) -> None:
    foreign = tmp_path / "foreign"
    shutil.copytree(place / "base" / "pretrain", foreign, ignore=shutil.ignore_patterns("resume", "run.json"))
    rows = RunOptions(instructions=place / "rows.jsonl")
    assert skipped_stages(find_model(str(foreign)), RunOptions(text=("x",))) == ("pretrain", "finetune")
    assert skipped_stages(find_model(str(foreign)), rows) == ("pretrain",)
    (foreign / "chat_template.jinja").unlink()
    assert skipped_stages(find_model(str(foreign)), RunOptions(text=("x",))) == ("pretrain",)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lora": 4}, "an existing model"),
        ({"lora": 4, "from_": "BASE", "overrides": ("align.how.method=ppo",)}, "ppo"),
    ],
)
def test_what_adapters_cannot_do_is_said(options: dict[str, Any], message: str, place: Path, tmp_path: Path) -> None:
    asked = {k: str(place / "base") if v == "BASE" else v for k, v in options.items()}
    with pytest.raises(UsageError, match=message):
        pipeline.run(make(RunOptions, {**asked, "instructions": place / "rows.jsonl", "out": tmp_path}), Heard())
