"""The table of ways to align: every row is runnable from a recipe."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from train_toys import random_batch, tiny_model

from klype import config
from klype.errors import UsageError
from klype.train.loop import TrainSettings
from klype.train.policy import METHODS, ActorCritic, AlignSettings, Scaling, advantages, align_objective, method
from klype.values import Batch


def test_a_name_that_there_is_none_of_is_told_those_that_there_are() -> None:
    assert method("kto").name == "kto"
    with pytest.raises(UsageError, match="grpo, rloo, ppo, expert, dpo"):
        method("ppo2")


def everything(scaling: Scaling) -> Batch:
    """A batch with what every method needs."""
    batch = random_batch(0, rows=6)
    weights = (batch.weights_BT > 0).float()
    logp = torch.full_like(weights, -3.0) * weights
    rewards_QG = torch.randn(2, 3, generator=torch.Generator().manual_seed(1))
    extra = {
        "advantages_B": advantages(rewards_QG, scaling).flatten(),
        "rewards_B": rewards_QG.flatten(),
        "old_logp_BT": logp,
        "reference_logp_BT": logp,
        "reference_logp_B": logp.sum(1),
        "ranks_QK": torch.tensor([[0, 1, 2], [1, 0, -1]]),
        "good_B": torch.arange(6) % 2 == 0,
        "rehearsal": random_batch(9),
    }
    return Batch(batch.tokens_BT, batch.targets_BT, weights, extra)


def test_every_method_has_a_gradient_and_an_objective_of_its_own() -> None:
    values = set()
    for row in METHODS:
        model = ActorCritic.of(tiny_model()) if row.critic else tiny_model()
        loss = align_objective(AlignSettings(method=row.name))(model, everything(row.scaling or "none"))
        loss.total.backward()
        assert float(loss.beside.count) > 0
        assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
        values.add(round(loss.total.item() / loss.count.item(), 6))
        assert row.learns_from == ("rollouts" if row.scaling else "rankings")
    assert len(values) == len(METHODS)


class Recipe(config.Settings):
    pretrain: TrainSettings = TrainSettings(steps=0)
    align: AlignSettings = AlignSettings()


def test_settings_come_from_a_recipe_and_unknown_keys_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "recipe.toml"
    file.write_text(
        "[pretrain]\nsteps = 12\n[pretrain.optimizer]\nmatrix_rate = 0.03\n[pretrain.schedule]\nflat = 0.5\n"
        '[align]\nmethod = "ipo"\n[align.preference]\nbeta = 0.2\n'
    )
    recipe = config.load(Recipe, file, ["align.policy.beta=0.5"])
    assert recipe.pretrain.steps == 12
    assert recipe.pretrain.optimizer.matrix_rate == 0.03
    assert recipe.pretrain.schedule.flat == 0.5
    assert recipe.align.method == "ipo"
    assert recipe.align.preference.beta == 0.2
    assert recipe.align.policy.beta == 0.5
    for wrong in ("pretrain.optimizer.rat=1", "align.policy.clip_lo=1", "pretrain.clip=-1"):
        with pytest.raises(UsageError, match=wrong.split("=")[0].rsplit(".", 1)[0]):
            config.load(Recipe, file, [wrong])
