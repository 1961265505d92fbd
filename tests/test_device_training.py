"""Trained elsewhere = trained on the processor, and what was begun on one is gone on with on the other."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_train_align import group_batch, lively
from torch import Tensor
from train_toys import pieces, random_batch, tiny_model

from klype.data.batches import WithRehearsal
from klype.engine.engine import Engine
from klype.errors import TrainingInterrupted
from klype.model import checkpoint
from klype.model.lora import AdaptedTransformer, LoraSettings
from klype.model.transformer import Transformer
from klype.text.tokenizer import Tokenizer
from klype.train.loop import TrainSession, TrainSettings, train
from klype.train.objectives import cross_entropy, score_answers, with_rehearsal
from klype.train.optimizer import OptimizerSettings
from klype.train.policy import METHODS, ActorCritic, AlignMethod, AlignSettings, align_objective
from klype.train.preference import RankedAnswers, RankingBatches, RankingSettings
from klype.train.reward_model import RewardModel, RewardSettings, answer_features, fit_reward
from klype.train.rewards import QuestionPrompt
from klype.train.rollout import RolloutBatches, RolloutSettings
from klype.values import Batches, Floats

pytestmark = pytest.mark.slow
STEPS = TrainSettings(steps=2, micro_batches=2, save_seconds=0)
NEAR = {"rtol": 1e-4, "atol": 1e-5}


def weights(model: torch.nn.Module) -> dict[str, Tensor]:
    return {name: tensor.detach().cpu() for name, tensor in model.state_dict().items()}


def alike(one: torch.nn.Module, other: torch.nn.Module) -> None:
    found = weights(one)
    for name, tensor in weights(other).items():
        torch.testing.assert_close(found[name], tensor, **NEAR)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("kind", ["muon", "adamw"])
def test_steps_are_the_same_steps(kind: str, precision: str, device: torch.device, tmp_path: Path) -> None:
    settings = STEPS.model_copy(update={"optimizer": OptimizerSettings(kind=kind), "precision": precision})
    models = [tiny_model(), tiny_model().to(device)]
    shown: list[list[dict[str, Any]]] = [[], []]
    for model, rows, place in zip(models, shown, ("here", "there"), strict=True):
        objective = with_rehearsal(cross_entropy, cross_entropy, 0.5)
        session = TrainSession(on_step=lambda step, metrics, rows=rows: rows.append(dict(metrics)))
        train(model, objective, pieces(4), settings, tmp_path / place, session)
        assert next(model.parameters()).device == (device if model is models[1] else torch.device("cpu"))
    for here, there in zip(*shown, strict=True):
        assert there["loss"] == pytest.approx(here["loss"], rel=1e-3 if precision == "bfloat16" else 1e-5)
    if precision == "float32":
        alike(models[1], models[0])


@pytest.mark.parametrize("first", ["here", "there"])
def test_what_one_began_the_other_ends(first: str, device: torch.device, tmp_path: Path) -> None:
    straight, batches = tiny_model(), pieces(4)
    settings = STEPS.model_copy(update={"steps": 3})
    train(straight, cross_entropy, batches, settings, tmp_path / "straight")
    begun, ended = tiny_model(), tiny_model(1)
    begun, ended = (begun.to(device), ended) if first == "there" else (begun, ended.to(device))
    seen: list[int] = []
    session = TrainSession(on_step=lambda step, metrics: seen.append(step), stop=lambda: len(seen) == 1)
    with pytest.raises(TrainingInterrupted):
        train(begun, cross_entropy, pieces(4), settings, tmp_path / "parted", session)
    train(ended, cross_entropy, pieces(4), settings, tmp_path / "parted", TrainSession(resume=True))
    alike(ended, straight)


def test_a_checkpoint_does_not_know_where_it_was_made(device: torch.device, tmp_path: Path) -> None:
    tokenizer = Tokenizer.train(["hei og hå"], 280)
    torch.manual_seed(0)
    here = tiny_model()
    here = Transformer(here.config.model_copy(update={"vocab_size": tokenizer.vocab_size}))
    checkpoint.save(tmp_path / "here", here, tokenizer, {})
    there = checkpoint.load(tmp_path / "here", device=device).model
    assert there.embed.weight.device == there.causal.device == there.head.weight.device == device
    checkpoint.save(tmp_path / "there", there, tokenizer, {})
    for file in ("model.safetensors", "config.json"):
        assert (tmp_path / "there" / file).read_bytes() == (tmp_path / "here" / file).read_bytes()


def test_adapters_begin_alike_and_are_merged(device: torch.device, tmp_path: Path) -> None:
    found = []
    for place in (torch.device("cpu"), device):
        whole = tiny_model().to(place).requires_grad_(False)
        torch.manual_seed(5)
        model = AdaptedTransformer(whole, LoraSettings(rank=2))
        train(model, cross_entropy, pieces(4), STEPS, tmp_path / place.type)
        found.append(model.merge(whole))
    alike(found[1], found[0])


def test_answers_are_scored_and_looked_at_alike(device: torch.device) -> None:
    batch = group_batch(3, longest=4)
    here, there = lively(), lively().to(device)
    found = [score_answers(here, batch), score_answers(there, batch.to(device))]
    torch.testing.assert_close(found[1].logp_BT.cpu(), found[0].logp_BT, **NEAR)
    found[1].logp_BT.sum().backward()
    assert there.embed.weight.grad is not None
    prompts = [[1, 2, 3, 4, 5, 6]] * 4 + [[7, 8]]
    answers = [[4, 5], [6], [], [7, 8, 9], [3]]
    ours, theirs = (answer_features(model, prompts, answers) for model in (there, here))
    assert ours.device.type == "cpu"
    torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4)


RANKED = [
    RankedAnswers((3, 4, 5), ((6, 2), (7, 2), (8, 9, 2)), (0, 1, 1)),
    RankedAnswers((5, 3), ((9, 2), (10, 2)), (1, 0)),
]


def test_a_reward_model_is_fitted_and_read_alike(device: torch.device, tmp_path: Path) -> None:
    settings = RewardSettings(steps=5, heads=2, questions=2)
    prompts, answers = [[3, 4], [5, 3]], [[6, 2], [9, 9, 2]]
    here = fit_reward(lively(), RANKED, settings, tmp_path / "here")
    there = fit_reward(lively().to(device), RANKED, settings, tmp_path / "there")
    assert there.score(prompts, answers) == pytest.approx(here.score(prompts, answers), abs=1e-3)
    there.save(tmp_path / "there")
    again = RewardModel.load(tmp_path / "there", lively())
    assert again.score(prompts, answers) == pytest.approx(there.score(prompts, answers), abs=1e-4)


def ask(step: int) -> list[QuestionPrompt]:
    return [QuestionPrompt((3, 4, 5, 6, 3 + step % 2)), QuestionPrompt((5,))]


def likes(asked: Sequence[QuestionPrompt], answers: Sequence[Sequence[int]]) -> Floats:
    return np.array([float(sum(token < 12 for token in answer)) for answer in answers])


@pytest.mark.parametrize("row", METHODS, ids=lambda row: row.name)
def test_every_way_to_align_runs(row: AlignMethod, device: torch.device, tmp_path: Path) -> None:
    found = []
    for place in (torch.device("cpu"), device):
        start, reference = lively(conv=0).to(place), lively(conv=0).to(place)
        model = ActorCritic.of(start) if row.critic else start
        batches: Batches
        if row.learns_from == "rankings":
            settings = RankingSettings(questions=2, marks=row.name == "kto")
            ranked = RankingBatches(RANKED, reference, settings)
            batches = WithRehearsal(ranked, lambda step: random_batch(step, rows=2))
        else:
            assert row.scaling is not None
            rollouts = RolloutSettings(answers=3, limit=3, stop=(2,), scaling=row.scaling, kl_in_reward=0.1)
            batches = RolloutBatches(rollouts, ask, Engine(model), likes, reference)
        how = AlignSettings(method=row.name)
        train(model, align_objective(how), batches, TrainSettings(steps=2, save_seconds=0), tmp_path / place.type)
        found.append(model.actor() if isinstance(model, ActorCritic) else model)
        assert found[-1].embed.weight.device == place
    alike(found[1], found[0])
