"""Rollouts: fresh answers have ratio 1, noise is a function of (seed, step), and the reward is climbed."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from train_toys import Bigram, random_batch, tiny_model

from klype.data.batches import WithRehearsal
from klype.engine.engine import Engine
from klype.errors import KlypeError, TrainingInterrupted
from klype.train.loop import TrainSession, TrainSettings, train
from klype.train.objectives import answers_batch, cross_entropy, score_answers, with_rehearsal
from klype.train.optimizer import OptimizerSettings
from klype.train.policy import PolicySettings, grpo, rloo
from klype.train.reward_model import RewardModel
from klype.train.rewards import QuestionPrompt, by_model, by_text
from klype.train.rollout import RolloutBatches, RolloutSettings
from klype.values import Batch, Floats, Question

torch.set_num_threads(1)
STOP, LIKED = 2, 7
SETTINGS = RolloutSettings(answers=8, limit=6, stop=(STOP,))


def ask(step: int) -> list[QuestionPrompt]:
    return [QuestionPrompt((1, 3 + (step + i) % 4, 5)) for i in range(4)]


def likes(asked: Sequence[QuestionPrompt], answers: Sequence[Sequence[int]]) -> Floats:
    return np.array([float(LIKED in answer) for answer in answers])


def rollouts(model: torch.nn.Module, settings: RolloutSettings = SETTINGS, reward: object = likes) -> RolloutBatches:
    return RolloutBatches(settings, ask, Engine(model), reward, tiny_model())


@pytest.mark.parametrize("temperature", [1.0, 0.7, 1.4])
def test_fresh_answers_have_ratio_one_at_any_temperature(temperature: float) -> None:
    model = tiny_model()
    batch = next(rollouts(model, SETTINGS.model_copy(update={"temperature": temperature})))
    recomputed = score_answers(model, batch).logp_BT.detach()
    torch.testing.assert_close(recomputed, batch.extra["old_logp_BT"], rtol=0, atol=2e-5)
    torch.testing.assert_close(batch.extra["reference_logp_BT"], recomputed, rtol=0, atol=2e-5)
    metrics = grpo(model, batch).metrics
    assert metrics["ratio"] / metrics["ratio_count"] == pytest.approx(1, abs=1e-5)
    assert metrics["kl"] / metrics["kl_count"] == pytest.approx(0, abs=1e-5)


def test_the_mask_holds_the_end_token_and_nothing_after_it() -> None:
    batch = answers_batch([(1, 3), (1, 4, 5)], [(7, STOP), (8, 9, 6, STOP)])
    assert batch.tokens_BT.tolist() == [[1, 3, 7, STOP, 0, 0], [1, 4, 5, 8, 9, 6]]
    assert batch.targets_BT.tolist() == [[3, 7, STOP, 0, 0, 0], [4, 5, 8, 9, 6, STOP]]
    assert batch.weights_BT.tolist() == [[0, 1, 1, 0, 0, 0], [0, 0, 1, 1, 1, 1]]


def test_same_step_same_batch_and_another_step_another_batch() -> None:
    model = tiny_model()
    first = rollouts(model)
    one, two = next(first), next(first)
    again = rollouts(model)
    again.restore({"index": 1})
    other = next(again)
    assert torch.equal(two.tokens_BT, other.tokens_BT)
    assert torch.equal(two.extra["advantages_B"], other.extra["advantages_B"])
    assert one.tokens_BT.shape != two.tokens_BT.shape or not torch.equal(one.tokens_BT, two.tokens_BT)
    assert again.state() == first.state() == {"index": 2, "beta": 0.02, "kept": None}


@pytest.mark.parametrize("updates", [1, 2])
def test_a_position_that_an_earlier_klype_saved_is_gone_on_from(updates: int) -> None:
    def batches() -> tuple[RolloutBatches, WithRehearsal]:
        main = rollouts(tiny_model(), SETTINGS.model_copy(update={"updates": updates}))
        return main, WithRehearsal(main, random_batch)

    main, first = batches()
    for _ in range(3):
        next(first)
    saved = json.loads(json.dumps(main.state()))  # the rehearsal's was the same
    if kept := saved["kept"]:
        names = "tokens", "targets", "weights"
        tensors = {k if k in names else f"extra.{k}": v for k, v in kept.items() if isinstance(v, list)}
        saved["kept"] = {"tensors": tensors, "rest": {k: v for k, v in kept.items() if not isinstance(v, list)}}
    _, second = batches()
    second.restore(saved)
    one, other = next(first), next(second)
    assert torch.equal(one.tokens_BT, other.tokens_BT)
    assert one.extra.keys() == other.extra.keys()
    assert torch.equal(one.extra["advantages_B"], other.extra["advantages_B"])
    assert torch.equal(one.extra["rehearsal"].tokens_BT, other.extra["rehearsal"].tokens_BT)
    main, second = batches()
    second.restore({"main": {"position": 2}, "rehearsal": {"position": 2}})  # of fine-tuning
    assert second.state() == {"main": {**main.state(), "index": 2}, "index": 2}


def test_unfinished_answers_are_punished() -> None:
    model = tiny_model()
    settings = SETTINGS.model_copy(update={"scaling": "none", "unfinished": -3.0})
    batch = next(rollouts(model, settings, lambda asked, answers: np.zeros(len(answers))))
    ended = torch.tensor([STOP in row for row in (batch.targets_BT * (batch.weights_BT > 0)).tolist()]).view(4, 8)
    expected = -3.0 * (~ended).float()
    expected = expected - expected.mean(1, keepdim=True)
    torch.testing.assert_close(batch.extra["advantages_B"].view(4, 8), expected)
    assert batch.extra["metrics"]["reward"] == 0
    assert batch.extra["metrics"]["finished"] == pytest.approx(ended.float().mean().item())


def test_groups_with_equal_rewards_teach_nothing_or_are_dropped() -> None:
    def uneven(asked: Sequence[QuestionPrompt], answers: Sequence[Sequence[int]]) -> Floats:
        return np.arange(len(answers)) * (np.arange(len(answers)) >= 8)  # the first group all equal

    settings = SETTINGS.model_copy(update={"unfinished": 0.0})
    zeroed = next(rollouts(tiny_model(), settings, uneven))
    dropped = next(rollouts(tiny_model(), settings.model_copy(update={"drop_equal": True}), uneven))
    assert zeroed.extra["metrics"]["groups_learnt"] == 0.75
    assert (zeroed.extra["advantages_B"][:8] == 0).all()
    assert zeroed.weights_BT[:8].sum() > 0
    assert dropped.weights_BT[:8].sum() == 0
    assert torch.equal(dropped.weights_BT[8:], zeroed.weights_BT[8:])


def test_kl_in_the_reward_takes_what_the_answers_cost() -> None:
    model = tiny_model(seed=3)  # not the reference
    settings = SETTINGS.model_copy(update={"scaling": "none", "unfinished": 0.0, "kl_in_reward": 0.5})
    batch = next(rollouts(model, settings, lambda asked, answers: np.zeros(len(answers))))
    cost = (batch.extra["old_logp_BT"] - batch.extra["reference_logp_BT"]).sum(1).view(4, 8)
    assert cost.abs().max() > 0.1
    expected = -0.5 * (cost - cost.mean(1, keepdim=True))
    torch.testing.assert_close(batch.extra["advantages_B"].view(4, 8), expected, rtol=1e-4, atol=1e-5)


def test_a_reward_that_is_no_number_is_said_clearly() -> None:
    def broken(asked: Sequence[QuestionPrompt], answers: Sequence[Sequence[int]]) -> Floats:
        return np.array([np.nan, *[0.0] * (len(answers) - 1)])

    with pytest.raises(KlypeError, match="1 of 32 answers"):
        next(rollouts(tiny_model(), reward=broken))


def test_models_and_plain_functions_are_rewards() -> None:
    asked = [QuestionPrompt((1, 2), Question("a", "Hva?")), QuestionPrompt((3,), Question("b", "Hvem?"))]
    model = RewardModel(tiny_model())
    torch.nn.init.ones_(model.head.weight)
    answers = [(4, 5), (6,)]
    np.testing.assert_array_equal(by_model(model)(asked, answers), model.score([(1, 2), (3,)], answers))
    plain = by_text(lambda qs, texts: np.array([len(q + t) for q, t in zip(qs, texts, strict=True)]), str)
    assert plain(asked, answers).tolist() == [4 + len("(4, 5)"), 5 + len("(6,)")]


@pytest.mark.slow
@pytest.mark.parametrize("objective", [grpo, rloo])
def test_the_reward_is_climbed_and_resumed_is_straight(objective: object, tmp_path: Path) -> None:
    settings = TrainSettings(steps=25, optimizer=OptimizerSettings(kind="adamw", rate=3e-2), save_seconds=0.0)
    scaling = "rloo" if objective is rloo else "batch"
    rewards: list[float] = []

    def go(folder: Path, session: TrainSession) -> dict[str, torch.Tensor]:
        model = tiny_model()
        learnt = with_rehearsal(partial(objective, settings=PolicySettings(beta=0.01)), cross_entropy, 0.1)
        rehearsal = partial(random_batch, rows=2)
        scaled = SETTINGS.model_copy(update={"scaling": scaling})
        batches = RolloutBatches(scaled, ask, Engine(model), likes, tiny_model())
        train(model, learnt, WithRehearsal(batches, rehearsal), settings, folder, session)
        return {name: p.detach().clone() for name, p in model.named_parameters()}

    straight = go(tmp_path / "straight", TrainSession(on_step=lambda s, m: rewards.append(m["reward"])))
    assert np.mean(rewards[-3:]) > np.mean(rewards[:3]) + 0.3
    asked = iter([False] * 9 + [True])
    with pytest.raises(TrainingInterrupted):
        go(tmp_path / "cut", TrainSession(stop=lambda: next(asked)))
    resumed = go(tmp_path / "cut", TrainSession(resume=True))
    assert all(torch.equal(straight[name], resumed[name]) for name in straight)


def test_order_of_answers_does_not_matter() -> None:
    model = Bigram(24)
    batch = next(rollouts(tiny_model()))
    order = torch.randperm(32, generator=torch.Generator().manual_seed(0))
    rows = {k: v[order] for k, v in batch.extra.items() if isinstance(v, torch.Tensor)}
    moved = Batch(batch.tokens_BT[order], batch.targets_BT[order], batch.weights_BT[order], batch.extra | rows)
    torch.testing.assert_close(grpo(model, batch).total, grpo(model, moved).total)
