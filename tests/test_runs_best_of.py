"""Best of n: the reward model's favourite, unfinished answers at a loss; a model without one is told so."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from klype.engine.engine import Engine
from klype.errors import UsageError
from klype.sources.model_files import ModelFiles
from klype.train.preference import RankedAnswers
from klype.train.reward_model import UNFINISHED, RewardModel, RewardSettings, best_of_n, fit_reward, open_reward_model
from klype.values import Request
from tests.toys import toy


@pytest.fixture(scope="module")
def judge(tmp_path_factory: pytest.TempPathFactory) -> RewardModel:
    ranked = [RankedAnswers((1, 2), ((i, 3), (i + 1, 3, 4, 3)), (0, 1)) for i in range(4, 9)]
    folder = tmp_path_factory.mktemp("reward")
    return fit_reward(toy(vocab_size=32, window=64), ranked, RewardSettings(steps=20, questions=4), folder)


def test_the_highest_score_is_picked_and_an_unfinished_answer_pays(judge: RewardModel) -> None:
    request = Request((1, 2), n=12, limit=4, stop=(3, 4, 5, 6, 7, 8))
    (traces,) = Engine(judge.trunk).run([request])
    assert {t.ended for t in traces} == {"stop", "length"}
    best = best_of_n(judge, traces)
    plain = judge.score([t.prompt for t in traces], [t.tokens for t in traces])
    for score, raw, trace in zip(best.scores, plain, traces, strict=True):
        assert score == pytest.approx(raw + UNFINISHED * (trace.ended != "stop"))
    assert best.scores[best.chosen] == max(best.scores)
    assert best.kl_most == pytest.approx(math.log(12) - 11 / 12)
    alone = best_of_n(judge, traces[:1])
    assert (alone.chosen, alone.kl_most) == (0, 0.0)


def test_a_model_without_a_reward_model_says_what_to_do(tmp_path: Path) -> None:
    for found in (ModelFiles(tmp_path), ModelFiles(tmp_path / "align", tmp_path, "align")):
        with pytest.raises(UsageError, match="no run with a reward model"):
            open_reward_model(found)
