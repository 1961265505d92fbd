"""The reward model imitates who ranked, whatever the order of rows, and the audit sees its tastes."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
import torch
from train_toys import VOCAB, tiny_model

from klype.errors import KlypeError, TrainingInterrupted
from klype.train.loop import TrainSession
from klype.train.preference import RankedAnswers
from klype.train.reward_model import (
    ABOUT,
    RewardModel,
    RewardSettings,
    answer_features,
    bias_audit,
    fit_reward,
    pairs_by_ranking,
)

torch.set_num_threads(1)


def quick(**changes: int) -> RewardSettings:
    return RewardSettings(steps=150, **changes)


def taste(answer: tuple[int, ...]) -> int:
    """Likes token 3, and shortness."""
    return 4 * (3 in answer) - len(answer)


def rankings(number: int, seed: int) -> list[RankedAnswers]:
    draw = random.Random(seed)
    out = []
    for _ in range(number):
        answers = tuple(tuple(draw.choices(range(1, 9), k=draw.randint(1, 5))) for _ in range(draw.randint(2, 5)))
        values = sorted({taste(a) for a in answers}, reverse=True)
        prompt = tuple(draw.choices(range(VOCAB), k=draw.randint(1, 6)))
        out.append(RankedAnswers(prompt, answers, tuple(values.index(taste(a)) for a in answers)))
    return out


@pytest.fixture(scope="module")
def fitted(tmp_path_factory: pytest.TempPathFactory) -> RewardModel:
    return fit_reward(tiny_model(), rankings(150, 0), quick(heads=3), tmp_path_factory.mktemp("reward"))


def test_held_out_rankings_are_imitated(fitted: RewardModel) -> None:
    ranked = rankings(80, 1)
    found = pairs_by_ranking(fitted, ranked)
    assert sum(right for right, _ in found) > 0.9 * sum(pairs for _, pairs in found)
    assert [pairs for _, pairs in found] == [sum(a < b for a in r.ranks for b in r.ranks) for r in ranked]


def test_scores_are_centred_scaled_and_independent_of_company(fitted: RewardModel) -> None:
    rows = rankings(150, 0)
    prompts = [r.prompt for r in rows for _ in r.answers]
    answers = [a for r in rows for a in r.answers]
    scores = fitted.score(prompts, answers)
    assert scores.mean() == pytest.approx(0, abs=1e-5)
    assert scores.std(ddof=1) == pytest.approx(1, abs=1e-5)
    alone = [float(fitted.score([p], [a])[0]) for p, a in zip(prompts[:20], answers[:20], strict=True)]
    np.testing.assert_allclose(scores[:20], alone, atol=1e-4)
    turned = fitted.score(prompts[::-1], answers[::-1])
    np.testing.assert_allclose(scores, turned[::-1], atol=1e-4)
    assert (fitted.scores(prompts[:5], answers[:5]).std(1) > 0).all()


def test_features_equal_their_definition() -> None:
    model = tiny_model()
    prompts, answers = [(1, 2, 3), (4,), (5, 6)], [(7, 8, 9, 10), (9,), ()]
    rows = answer_features(model, prompts, answers)
    assert rows.shape == (3, 3 * 16 + 6)
    for row, prompt, answer in zip(rows, prompts, answers, strict=True):
        hidden = model.hidden(torch.tensor([[*prompt, *answer]]))[0].detach()
        own = hidden[len(prompt) :] if answer else hidden[-1:]
        torch.testing.assert_close(row[:16], hidden[-1])
        torch.testing.assert_close(row[16:32], own.mean(0))
        torch.testing.assert_close(row[32:48], own[:3].mean(0))
        if answer:
            before = model.unembed(hidden[len(prompt) - 1 : -1]).log_softmax(-1).detach()
            logp = before[torch.arange(len(answer)), torch.tensor(answer)]
            beyond = -logp + (before.exp() * before).sum(1)
            expected = [logp.sum(), logp.min(), logp.mean(), beyond.max().clamp(min=0), beyond.clamp(min=0).sum()]
            torch.testing.assert_close(row[48:], torch.stack([*expected, torch.tensor(float(len(answer)))]))
        else:
            assert row[48:].abs().max() == 0
    torch.testing.assert_close(answer_features(model, prompts, answers, at_once=4), rows)


def test_features_of_answers_to_one_prompt_are_those_of_each_alone() -> None:
    model, draw = tiny_model(), random.Random(3)
    prompts = [tuple(draw.choices(range(VOCAB), k=k)) for k in (1, 9, 12, 12) for _ in range(5)]
    prompts = [prompts[5 * (i // 5)] for i in range(20)] + [(1, 2, 3)] * 40  # more than are read together
    answers = [tuple(draw.choices(range(VOCAB), k=i % 4)) for i in range(60)]
    together = answer_features(model, prompts, answers)
    for row, prompt, answer in zip(together, prompts, answers, strict=True):
        torch.testing.assert_close(row, answer_features(model, [prompt], [answer])[0], atol=1e-4, rtol=1e-4)
    assert answer_features(model, [(1, 2), (1, 2)], [(), ()]).shape[0] == 2


def test_the_trunk_is_a_frozen_copy() -> None:
    trunk = tiny_model()
    model = RewardModel(trunk)
    before = model.score([(1, 2)], [(3,)])
    features_before = answer_features(model.trunk, [(1, 2)], [(3,)])
    with torch.no_grad():
        for parameter in trunk.parameters():
            parameter.add_(1.0)
    torch.testing.assert_close(answer_features(model.trunk, [(1, 2)], [(3,)]), features_before)
    assert model.score([(1, 2)], [(3,)]) == before
    assert all(p.requires_grad for p in trunk.parameters())


def test_saved_and_loaded_is_the_same(fitted: RewardModel, tmp_path: Path) -> None:
    fitted.save(tmp_path, {"annotator": "simulated"})
    again = RewardModel.load(tmp_path, tiny_model())
    np.testing.assert_array_equal(again.score([(1, 2)], [(3, 4)]), fitted.score([(1, 2)], [(3, 4)]))
    with pytest.raises(KlypeError, match="another language model"):
        RewardModel.load(tmp_path, tiny_model(seed=1))
    with pytest.raises(KlypeError, match="no readable reward model"):
        RewardModel.load(tmp_path / "nowhere", tiny_model())
    about = (tmp_path / ABOUT).read_bytes()
    with torch.no_grad():
        fitted.head.weight.add_(1.0)
    fitted.save(tmp_path)
    (tmp_path / ABOUT).write_bytes(about)  # as if it had been killed between the two files
    with torch.no_grad():
        fitted.head.weight.sub_(1.0)
    with pytest.raises(KlypeError, match="no readable reward model"):
        RewardModel.load(tmp_path, tiny_model())


def test_fitting_resumed_is_straight(tmp_path: Path) -> None:
    rows = rankings(40, 0)
    whole = fit_reward(tiny_model(), rows, quick(heads=2), tmp_path / "whole")
    count = iter(range(1000))
    with pytest.raises(TrainingInterrupted):
        fit_reward(tiny_model(), rows, quick(heads=2), tmp_path / "cut", TrainSession(stop=lambda: next(count) == 70))
    again = fit_reward(tiny_model(), rows, quick(heads=2), tmp_path / "cut", TrainSession(resume=True))
    assert torch.equal(whole.head.weight, again.head.weight)


def test_rankings_that_teach_nothing_are_refused(tmp_path: Path) -> None:
    single, tied = RankedAnswers((1,), ((2,),), (0,)), RankedAnswers((1,), ((2,), (3,)), (0, 0))
    for rows in ([], [single], [tied, single]):
        with pytest.raises(KlypeError, match="teach nothing"):
            fit_reward(tiny_model(), rows, quick(), tmp_path)


def test_contradictions_meet_in_the_middle(tmp_path: Path) -> None:
    a, b = RankedAnswers((1,), ((2,), (3,)), (0, 1)), RankedAnswers((1,), ((2,), (3,)), (1, 0))
    other = [RankedAnswers((4,), ((5,), (6,)), (0, 1))] * 2
    settings = quick(questions=400)
    model = fit_reward(tiny_model(), [a, b, *other], settings, tmp_path)
    clear = np.diff(model.score([(4,)] * 2, [(5,), (6,)]))
    unclear = np.diff(model.score([(1,)] * 2, [(2,), (3,)]))
    assert abs(unclear) < 0.5 * abs(clear)


def test_the_audit_finds_a_love_of_length_and_nothing_else() -> None:
    draw = np.random.default_rng(0)
    questions = np.repeat(np.arange(100), 5)
    quality, length, polite = draw.normal(size=500), draw.normal(size=500), draw.normal(size=500)
    offset = draw.normal(size=100)[questions] * 9  # some questions are liked more: no matter
    scores = 2 * quality + length + offset + draw.normal(size=500)
    found = bias_audit(scores, quality, {"length": length, "polite": polite, "none": np.ones(500)}, questions)
    assert found["length"].value == pytest.approx(2**-0.5, abs=0.08)
    assert found["length"].low < 2**-0.5 < found["length"].high
    assert found["polite"].low < 0 < found["polite"].high
    assert found["none"].value is None
    just = bias_audit(2 * length + offset, length, {"length": length + polite}, questions)["length"]
    assert just.value is None or abs(just.value) < 0.1
