"""Rounds of alignment, killed and gone on with; the two alignments that show what a leash is for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from klype.config import make
from klype.errors import KlypeError, UsageError
from klype.model import checkpoint
from klype.model.transformer import Transformer
from klype.runs.inherited import recipe_of
from klype.runs.leash import leash_demo, verdict
from klype.runs.options import StageOptions
from klype.runs.pipeline import start_of
from klype.runs.recipe import read
from klype.runs.rounds import align_rounds
from klype.runs.say import Silent
from klype.runs.shape import model_config
from klype.runs.world_subject import WorldSubject

TINY = (
    "world=small",
    "model.width=16",
    "model.layers=1",
    "model.heads=2",
    "model.hidden=16",
    "examine.questions=24",
    "examine.documents=4",
    "rank.questions=12",
    "rank.held_out=8",
    "rank.limit=10",
    "reward.fit.steps=5",
    "align.rows=2",
    "align.answers=4",
    "align.limit=8",
    "align.rehearsal_rows=2",
    "align.stops=false",
)
FITTED, STEPS = 5, 3


class StopAt(Silent):
    """Ctrl-C after a step."""

    def __init__(self, step: int) -> None:
        super().__init__()
        self.at = step

    def step(self, metrics: Any) -> None:
        super().step(metrics)
        if len(self.steps) == self.at:
            raise KeyboardInterrupt


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with a fine-tuned model that babbles."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    recipe = read("world", TINY)
    subject = WorldSubject(recipe, 0)
    torch.manual_seed(0)
    model = Transformer(model_config(recipe.model, subject.chat.tokenizer.vocab_size))
    checkpoint.save(folder / "finetune", model, subject.chat.tokenizer, {"stage": "finetune"})
    (folder / "run.json").write_text(json.dumps({"settings": recipe.model_dump(mode="json")}))
    return folder


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is known of plain text has tests of its own, and takes a second a model."""
    monkeypatch.setattr(WorldSubject, "knowledge", lambda self, model, few: {})


def options(run: Path, out: Path, **changes: object) -> StageOptions:
    values = {"stage": "align", "from_": str(run), "steps": STEPS, "out": out, "force": True, **changes}
    return make(StageOptions, values)


@pytest.mark.slow
def test_rounds_stopped_anywhere_and_gone_on_with_are_straight(run: Path, tmp_path: Path) -> None:
    def go(folder: Path, say: Silent, resume: bool = False) -> bytes:
        document = align_rounds(options(run, folder, resume=resume), 2, "", say)
        assert len(document["rounds"]) == 2
        assert document["gain"] == document["rounds"][1]["gain"]
        return (folder / "round-2" / "align" / "model.safetensors").read_bytes()

    straight = go(tmp_path / "straight", Silent())
    a_round = FITTED + STEPS
    for at in (FITTED + 2, a_round + 2):  # while it aligns; while it fits the next reward model
        with pytest.raises(KlypeError, match="Stopped after step"):
            go(tmp_path / f"stopped-{at}", StopAt(at))
        assert go(tmp_path / f"stopped-{at}", Silent(), resume=True) == straight


@pytest.mark.slow
def test_the_leash_is_shown_on_one_flawed_reward_and_nothing_is_done_twice(run: Path, tmp_path: Path) -> None:
    out = tmp_path / "demo"
    document = leash_demo(options(run, out), "", Silent())
    assert document["loose"]["watch"]["seen"][0]["truth"] == document["leashed"]["watch"]["seen"][0]["truth"]
    weights = [(out / name / "reward" / "reward.safetensors").read_bytes() for name in ("loose", "leashed")]
    assert weights[0] == weights[1]
    betas = [_last(out / name / "align" / "metrics.jsonl")["beta"] for name in ("loose", "leashed")]
    assert betas[0] == 0
    assert betas[1] > 1  # tight from the first step
    gains = [document[name]["gain"]["score"] for name in ("loose", "leashed", "leash")]
    told = all(gain["low"] is not None for gain in gains)  # of so few questions it may be too little to tell
    assert document["verdict"]["en"].startswith("Without a leash" if told else "Nobody can say")
    assert ("tøyle" in document["verdict"]["nb"].lower()) == told
    say = Silent()
    again = leash_demo(options(run, out, resume=True), "", say)
    assert again["leash"] == document["leash"]
    assert not say.steps
    with pytest.raises(UsageError, match="pleases no reward model"):
        leash_demo(options(run, tmp_path / "dpo", overrides=("align.how.method=dpo",)), "", Silent())


def _last(file: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(file.read_text().splitlines()[-1])
    return found


@pytest.mark.parametrize(
    ("loose", "between", "says"),
    [
        ((-0.5, -0.3), (0.2, 0.6), "worth +0.40"),
        ((0.1, 0.3), (-0.5, -0.1), "cost \u22120.30"),
        ((0.1, 0.3), (-1, 1), "cannot tell"),
    ],
)
def test_the_verdict_says_what_the_leash_did(
    loose: tuple[float, float], between: tuple[float, float], says: str
) -> None:
    def figure(low: float, high: float) -> dict[str, float]:
        return {"value": (low + high) / 2, "low": low, "high": high}

    seen = [{"reward": 0.0, "kl": 0.0}, {"reward": 1.25, "kl": 2.5}]
    whole = {
        "target_kl": 0.15,
        "loose": {"gain": {"score": figure(*loose)}, "watch": {"seen": seen}},
        "leashed": {"gain": {"score": figure(-0.1, 0.1)}, "watch": {"seen": seen}},
        "leash": {"gain": {"score": figure(*between)}},
    }
    told = verdict(whole, "en")
    assert says in told
    assert ("annotator's fell" in told) == (loose[1] < 0)
    assert "did not change beyond chance" in told
    assert "2,50 nat" in verdict(whole, "nb")


def test_overrides_are_read_as_those_of_any_recipe(run: Path, tmp_path: Path) -> None:
    asked = options(run, tmp_path, overrides=("examine.temperatures=[0.5]", "align.rows=3"))
    recipe = recipe_of(start_of(asked), asked)
    assert (recipe.examine.temperatures, recipe.align.rows, recipe.align.limit) == ((0.5,), 3, 8)
    for wrong in ("algin=3", "align.rowz=3", "align.rows"):
        asked = options(run, tmp_path, overrides=(wrong,))
        with pytest.raises(UsageError, match=wrong.removesuffix("=3")):
            recipe_of(start_of(asked), asked)
