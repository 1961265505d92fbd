"""Alignment's laws: GAE by hand, shared prompts as separate ones, an adaptive leash, and a bandit for every method."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from train_toys import tiny_model

from klype.engine.engine import Engine
from klype.errors import KlypeError, TrainingInterrupted
from klype.model.attention import TORCH, Backend
from klype.model.compiled import compiled_backend
from klype.model.config import ModelConfig
from klype.model.transformer import Transformer
from klype.train.loop import TrainSession, TrainSettings, train
from klype.train.objectives import answers_batch, score_answers
from klype.train.optimizer import OptimizerSettings, Schedule
from klype.train.policy import (
    METHODS,
    ActorCritic,
    AlignMethod,
    AlignSettings,
    PolicySettings,
    advantages,
    align_objective,
    at_the_end,
    gae,
    grpo,
    ppo,
)
from klype.train.preference import PreferenceSettings, RankedAnswers, RankingBatches, RankingSettings, marks, preference
from klype.train.rewards import QuestionPrompt
from klype.train.rollout import KLController, RolloutBatches, RolloutSettings
from klype.values import Batch, Batches, Floats

torch.set_num_threads(1)
STOP, LIKED = 2, 7


# GAE and PPO


def test_gae_is_the_example_done_by_hand() -> None:
    reward = torch.tensor([[0.0, 0.0, 0.0, 1.0, 0.0]])
    value = torch.tensor([[9.0, 0.5, 0.4, 0.6, 9.0]])
    mask = torch.tensor([[0.0, 1.0, 1.0, 1.0, 0.0]])
    # γ = .9, λ = .5: δ₃ = 1 - .6 = .4; δ₂ = .9·.6 - .4 = .14; δ₁ = .9·.4 - .5 = -.14
    # A₃ = .4; A₂ = .14 + .45·.4 = .32; A₁ = -.14 + .45·.32 = .004
    expected = torch.tensor([[0.0, 0.004, 0.32, 0.4, 0.0]])
    torch.testing.assert_close(gae(reward, value, mask, 0.9, 0.5), expected)


def test_gae_of_all_the_future_is_return_less_value() -> None:
    draw = torch.Generator().manual_seed(0)
    reward, value = torch.randn(3, 6, generator=draw), torch.randn(3, 6, generator=draw)
    mask = torch.ones(3, 6)
    to_go = reward.flip(1).cumsum(1).flip(1)
    torch.testing.assert_close(gae(reward, value, mask, 1.0, 1.0), to_go - value)


def test_the_reward_comes_with_the_last_token() -> None:
    mask = torch.tensor([[0.0, 1.0, 1.0, 0.0], [1.0, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0]])
    expected = torch.tensor([[0.0, 0.0, 5.0, 0.0], [6.0, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0]])
    torch.testing.assert_close(at_the_end(torch.tensor([5.0, 6.0, 7.0]), mask), expected)


def test_an_actor_with_a_critic_speaks_as_before_and_the_head_moves_no_state() -> None:
    model = lively()
    actor = ActorCritic.of(model)
    tokens = torch.tensor([[1, 4, 5, 6]])
    assert torch.equal(actor(tokens), model(tokens))
    assert torch.equal(actor.actor()(tokens), model(tokens))
    batch = group_batch(seed=1)
    batch.extra.update(rewards_B=torch.zeros(len(batch.tokens_BT)), old_logp_BT=score_answers(model, batch).logp_BT)
    with torch.no_grad():
        actor.value_head.bias.fill_(1.0)
    loss = ppo(actor, batch, PolicySettings(beta=0.0, trace=1.0))
    (loss.total / loss.count).backward()
    assert actor.value_head.bias.grad.item() == pytest.approx(0.5)  # value_weight · (1 - 0)
    # What is left of the policy's gradient is nothing: the advantages are all equal, so normalised they are 0.
    assert actor.layers[0].qkv.weight.grad.abs().max() < 1e-6


# The prompt of a group computed once


def lively(seed: int = 0, conv: int = 2, rope: bool = True) -> Transformer:
    """A tiny model none of whose weights is zero."""
    torch.manual_seed(seed)
    shape = {"vocab_size": 24, "width": 16, "layers": 2, "heads": 2, "kv_heads": 1, "hidden": 32, "window": 48}
    model = Transformer(ModelConfig(**shape, conv=conv, rope_theta=10_000.0 if rope else 0.0))
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model


def group_batch(seed: int, questions: int = 3, group: int = 4, longest: int = 7) -> Batch:
    draw = np.random.default_rng(seed)
    prompts, answers = [], []
    for _ in range(questions):
        prompt = draw.integers(3, 24, draw.integers(1, 12)).tolist()
        prompts += [prompt] * group
        answers += [draw.integers(3, 24, draw.integers(1, longest + 1)).tolist() for _ in range(group)]
    return answers_batch(prompts, answers, group)


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Backend:
    found = compiled_backend(tmp_path_factory.mktemp("code"))
    if found is TORCH:
        pytest.skip("no C compiler")
    return found


@pytest.mark.slow
@given(st.integers(0, 999), st.integers(1, 4), st.integers(2, 5), st.sampled_from([0, 2, 5]), st.booleans())
@settings(max_examples=25, deadline=None)
def test_a_prompt_that_is_computed_once_is_as_if_each_answer_had_its_own(
    compiled: Backend, seed: int, questions: int, group: int, conv: int, rope: bool
) -> None:
    """By compiled code; torch alone, which computes it for each, says the same."""
    model, batch = lively(seed % 7, conv, rope or not conv), group_batch(seed, questions, group)
    apart = Batch(batch.tokens_BT, batch.targets_BT, batch.weights_BT)
    found = []
    for backend, own in ((TORCH, batch), (compiled, apart), (compiled, batch)):
        model.zero_grad()
        logp_BT = score_answers(model.with_backend(backend), own).logp_BT
        (logp_BT * torch.arange(1, len(logp_BT) + 1)[:, None]).sum().backward()
        gradient = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
        found.append((logp_BT.detach(), gradient / gradient.norm()))
    for other in found[1:]:
        for one, two in zip(found[0], other, strict=True):
            torch.testing.assert_close(two, one, rtol=1e-3, atol=1e-4)


def test_the_order_of_a_batchs_questions_does_not_matter() -> None:
    model = lively()
    batch = group_batch(3)
    batch.extra.update(
        advantages_B=advantages(torch.randn(3, 4, generator=torch.Generator().manual_seed(0)), "group").flatten(),
        old_logp_BT=score_answers(model, batch).logp_BT.detach(),
    )
    order = torch.tensor([2, 0, 1]).repeat_interleave(4) * 4 + torch.arange(4).repeat(3)
    moved = Batch(
        batch.tokens_BT[order],
        batch.targets_BT[order],
        batch.weights_BT[order],
        {k: v[order] if isinstance(v, torch.Tensor) else v for k, v in batch.extra.items()},
    )
    torch.testing.assert_close(grpo(model, batch).total, grpo(model, moved).total)


# The leash


def test_the_leash_is_led_to_its_target_and_a_fixed_one_stays() -> None:
    controller = KLController(0.1, target=2.0)
    controller.update(6.0)
    assert controller.beta == pytest.approx(0.12)  # farther than twice the target: a fifth, no more
    controller.update(2.0)
    assert controller.beta == pytest.approx(0.12)
    controller.update(1.0)
    assert controller.beta == pytest.approx(0.12 * 0.99)  # it gives way slowly
    fixed = KLController(0.1)
    fixed.update(50.0)
    assert fixed.beta == 0.1


def ask(step: int) -> list[QuestionPrompt]:
    return [QuestionPrompt((1, 3 + (step + i) % 4, 5)) for i in range(4)]


def likes(asked: Sequence[QuestionPrompt], answers: Sequence[Sequence[int]]) -> Floats:
    return np.array([float(LIKED in answer) for answer in answers])


@pytest.mark.slow
@pytest.mark.parametrize("updates", [1, 3])
def test_resumed_is_straight_between_updates_on_the_same_answers(updates: int, tmp_path: Path) -> None:
    rollouts = RolloutSettings(answers=4, limit=4, stop=(STOP,), updates=updates, target_kl=0.5)
    training = TrainSettings(steps=8, optimizer=OptimizerSettings(kind="adamw", rate=1e-2), save_seconds=0.0)

    def go(folder: Path, session: TrainSession) -> tuple[dict[str, torch.Tensor], float]:
        model = tiny_model()
        batches = RolloutBatches(rollouts, ask, Engine(model), likes, tiny_model())
        train(model, align_objective(AlignSettings()), batches, training, folder, session)
        return {n: p.detach().clone() for n, p in model.named_parameters()}, batches.controller.beta

    ratios: list[float] = []
    straight = go(tmp_path / "a", TrainSession(on_step=lambda s, m: ratios.append(m["ratio"])))
    count = iter(range(99))
    with pytest.raises(TrainingInterrupted):
        go(tmp_path / "b", TrainSession(stop=lambda: next(count) == 4))
    again = go(tmp_path / "b", TrainSession(resume=True))
    assert straight[1] == again[1] != RolloutSettings().beta
    assert all(torch.equal(straight[0][n], again[0][n]) for n in straight[0])
    assert ratios[0] == pytest.approx(1, abs=1e-5)
    stale = [abs(r - 1) > 1e-5 for r in ratios]
    assert stale == [i % updates > 0 for i in range(8)]


def test_a_leash_with_a_target_starts_where_the_best_answers_are_about_so_far_away() -> None:
    """Exactly, on a categorical with advantages of variance 1: KL(π*‖π_ref) for π* ∝ π_ref exp(A/β)."""
    advantages = torch.linspace(-1, 1, 64, dtype=torch.float64)
    advantages = advantages / advantages.std(correction=0)
    for target in (0.01, 0.05, 0.15):
        controller = KLController.of(0.02, target)
        best = (advantages / controller.beta).softmax(0)
        assert float((best * (best * 64).log()).sum()) == pytest.approx(target, rel=0.15)
    assert KLController.of(3.0, 0.15).beta == 3.0  # tighter still, when asked for
    assert KLController.of(0.02, 0.0).beta == 0.02


# Rankings as batches


def rankings() -> list[RankedAnswers]:
    return [
        RankedAnswers((1, 3 + i % 4, 5), ((LIKED, STOP), (8, STOP), (9, 10, STOP))[: 2 + i % 2], (0, 1, 1)[: 2 + i % 2])
        for i in range(9)
    ]


def test_preferences_at_the_reference_are_undecided() -> None:
    batches = RankingBatches([r for r in rankings() if len(r.answers) == 2], tiny_model(), RankingSettings())
    loss = preference(tiny_model(), next(batches), PreferenceSettings())
    assert loss.total.item() / loss.count.item() == pytest.approx(np.log(2), abs=1e-5)


def test_what_the_reference_thinks_does_not_depend_on_what_was_asked_before() -> None:
    """To the bit: a resumed run meets a ranking for the first time in another batch than the straight one did."""
    straight = RankingBatches(rankings(), tiny_model(), RankingSettings(questions=4))
    rows = [next(straight).extra["reference_logp_B"] for _ in range(7)]
    for begin in (3, 6):
        resumed = RankingBatches(rankings(), tiny_model(), RankingSettings(questions=4))
        resumed.restore({"index": begin})
        assert torch.equal(next(resumed).extra["reference_logp_B"], rows[begin])
    for ranked, row in zip((straight.rankings[i] for i in straight._draw_indices(0)), rows[0].view(4, -1), strict=True):
        for answer, known in zip(ranked.answers, row, strict=False):
            alone = score_answers(tiny_model(), answers_batch([ranked.prompt], [answer])).logp_BT.detach().sum()
            assert float(known) == pytest.approx(float(alone), abs=1e-5)


def test_absent_candidates_have_no_part_and_batches_are_a_function_of_their_number() -> None:
    batches = RankingBatches(rankings(), tiny_model(), RankingSettings(questions=4))
    model = lively()
    first, second = next(batches), next(batches)
    absent = torch.nonzero(first.extra["ranks_QK"].flatten() < 0)[:, 0]
    assert len(absent)
    weights = first.weights_BT.clone()
    weights[absent] = 0
    without = Batch(first.tokens_BT, first.targets_BT, weights, first.extra)
    torch.testing.assert_close(preference(model, first).total, preference(model, without).total)
    batches.restore({"index": 1})
    assert torch.equal(next(batches).tokens_BT, second.tokens_BT)


def test_marks_are_above_and_below_the_middle() -> None:
    assert marks((0, 1, 2)) == [1, 0, -1]
    assert marks((0, 1, 1)) == [1, -1, -1]
    assert marks((0, 0)) == [0, 0]


def test_rankings_all_tied_are_refused_in_one_sentence() -> None:
    with pytest.raises(KlypeError, match="teach nothing"):
        RankingBatches([RankedAnswers((1,), ((2,), (3,)), (0, 0))], tiny_model(), RankingSettings())


# Every method


def bandit_batches(row: AlignMethod, model: Transformer) -> Batches:
    """One token is an answer; LIKED is best, by reward or by ranking."""
    arms = (LIKED, 8, 9, 10)
    if row.learns_from == "rankings":
        ranked = [RankedAnswers((1, 3 + i, 5), tuple((arm,) for arm in arms), (0, 1, 1, 1)) for i in range(4)]
        return RankingBatches(ranked, tiny_model(), RankingSettings(questions=4, marks=row.name == "kto"))
    assert row.scaling is not None
    settings = RolloutSettings(answers=16, limit=1, scaling=row.scaling, unfinished=0.0, beta=0.0)
    return RolloutBatches(settings, ask, Engine(model), likes, tiny_model())


@pytest.mark.slow
@pytest.mark.parametrize("row", METHODS, ids=lambda row: row.name)
def test_a_bandit_with_a_known_optimum_is_found_by_every_method(row: AlignMethod, tmp_path: Path) -> None:
    model: Transformer = ActorCritic.of(tiny_model()) if row.critic else tiny_model()
    training = TrainSettings(
        steps=120,
        optimizer=OptimizerSettings(kind="adamw", rate=1e-2),
        schedule=Schedule(warmup=0.0, flat=1.0),
        save_seconds=0.0,
    )
    how = AlignSettings(method=row.name, policy=PolicySettings(beta=0.0), preference=PreferenceSettings(beta=0.05))

    def liked() -> float:
        with torch.no_grad():
            logp = model(torch.tensor([[1, 3 + i, 5] for i in range(4)]))[:, -1].log_softmax(-1)
        others = logp[:, [8, 9, 10]] if row.learns_from == "rankings" else logp
        best = logp[:, LIKED].exp()
        total = best + others.exp().sum(1) if row.learns_from == "rankings" else 1.0
        return float((best / total).min())

    before = liked()
    train(model, align_objective(how), bandit_batches(row, model), training, tmp_path)
    assert before < 0.5 < 0.9 < liked()
