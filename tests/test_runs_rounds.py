"""Rounds of alignment, killed and gone on with; the settings that show reward hacking."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from run_toys import Heard

from klype.config import make
from klype.errors import KlypeError, UsageError
from klype.model import checkpoint
from klype.model.transformer import Transformer
from klype.runs.machine_probe import model_config
from klype.runs.pipeline import align_rounds, overrides
from klype.runs.recipe import read
from klype.runs.run_options import StageOptions
from klype.runs.run_start import recipe_of, start_of
from klype.runs.world_task import WorldTask

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


class StopAt(Heard):
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
    task = WorldTask(recipe, 0)
    torch.manual_seed(0)
    model = Transformer(model_config(recipe.model, task.chat.tokenizer.vocab_size))
    checkpoint.save(folder / "finetune", model, task.chat.tokenizer, {"stage": "finetune"})
    (folder / "run.json").write_text(json.dumps({"settings": recipe.model_dump(mode="json")}))
    return folder


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is known of plain text has tests of its own, and takes a second a model."""
    monkeypatch.setattr(WorldTask, "knowledge", lambda self, model, few: {})


def options(run: Path, out: Path, **changes: object) -> StageOptions:
    values = {"stage": "align", "from_": str(run), "steps": STEPS, "out": out, "force": True, **changes}
    return make(StageOptions, values)


@pytest.mark.slow
def test_rounds_stopped_anywhere_and_gone_on_with_are_straight(run: Path, tmp_path: Path) -> None:
    def go(folder: Path, say: Heard, resume: bool = False) -> bytes:
        document = align_rounds(options(run, folder, resume=resume), 2, "", say)
        assert len(document["rounds"]) == 2
        assert document["gain"] == document["rounds"][1]["gain"]
        return (folder / "round-2" / "align" / "model.safetensors").read_bytes()

    straight = go(tmp_path / "straight", Heard())
    a_round = FITTED + STEPS
    for at in (FITTED + 2, a_round + 2):  # while it aligns; while it fits the next reward model
        with pytest.raises(KlypeError, match="Stopped after step"):
            go(tmp_path / f"stopped-{at}", StopAt(at))
        assert go(tmp_path / f"stopped-{at}", Heard(), resume=True) == straight


@pytest.mark.slow
def test_reward_hacking_is_a_matter_of_settings(run: Path, tmp_path: Path) -> None:
    """As docs/how-to/align.md says: one flawed taste, the same rankings and reward model, with and without penalty."""
    found = {}
    for name, asked in (("free", {"beta": 0.0, "target_kl": None}), ("held", {"beta": None, "target_kl": 0.15})):
        settings = (*overrides("", {}, asked["beta"], asked["target_kl"]), "align.stops=false")
        out = tmp_path / name
        found[name] = align_rounds(options(run, out, overrides=settings), 1, "word=-0.3,right=0.5", Heard())
    free, held = (found[name]["rounds"][0]["watch"] for name in ("free", "held"))
    assert free["seen"][0] == held["seen"][0]  # they start from one model
    assert not free["stopped"]
    weights = [(tmp_path / name / "reward" / "reward.safetensors").read_bytes() for name in found]
    assert weights[0] == weights[1]
    betas = [_last(tmp_path / name / "align" / "metrics.jsonl")["beta"] for name in found]
    assert betas[0] == 0
    assert betas[1] > 1  # tight from the first step


def _last(file: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(file.read_text().splitlines()[-1])
    return found


def test_overrides_are_read_as_those_of_any_recipe(run: Path, tmp_path: Path) -> None:
    asked = options(run, tmp_path, overrides=("examine.temperatures=[0.5]", "align.rows=3"))
    recipe = recipe_of(start_of(asked), asked)
    assert (recipe.examine.temperatures, recipe.align.rows, recipe.align.limit) == ((0.5,), 3, 8)
    for wrong in ("algin=3", "align.rowz=3", "align.rows"):
        asked = options(run, tmp_path, overrides=(wrong,))
        with pytest.raises(UsageError, match=wrong.removesuffix("=3")):
            recipe_of(start_of(asked), asked)
