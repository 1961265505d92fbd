"""Best of n: several answers are drawn, and the run's reward model picks one. Nothing is trained."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from klype.errors import KlypeError, UsageError
from klype.model import checkpoint
from klype.sources.find import Found
from klype.train.rewards import ABOUT, RewardModel
from klype.values import Trace

UNFINISHED = -1.0  # added to the score of an answer that did not end, as alignment does


@dataclass(frozen=True, slots=True)
class Best:
    """Which of the answers (its index), every one's score, and the most that choosing can move the answers from what
    the model says: KL ≤ log n - (n - 1)/n nats an answer (Beirami et al. 2024, arXiv:2401.01879)."""

    chosen: int
    scores: tuple[float, ...]

    @property
    def kl_most(self) -> float:
        n = len(self.scores)
        return math.log(n) - (n - 1) / n


def judge_of(found: Found) -> RewardModel:
    """The reward model of the run that a model belongs to. UsageError when there is none."""
    if found.run is None or not (found.run / "reward" / ABOUT).exists():
        raise UsageError(
            f"{found.folder} belongs to no run with a reward model, which the best of several answers needs.",
            "Give a run's folder, after: klype train reward --from RUN.",
        )
    return RewardModel.load(found.run / "reward", checkpoint.load(_trunk(found.run)).model)


def pick(judge: RewardModel, traces: Sequence[Trace]) -> Best:
    """The answer with the highest score; the first of equals."""
    scores = judge.score([t.prompt for t in traces], [t.tokens for t in traces]).tolist()
    adjusted = [s + UNFINISHED * (t.ended != "stop") for s, t in zip(scores, traces, strict=True)]
    if not all(map(math.isfinite, adjusted)):
        raise KlypeError("The reward model's score of an answer is not a finite number.", "Train it again.")
    return Best(max(range(len(adjusted)), key=lambda i: adjusted[i]), tuple(adjusted))


def _trunk(run: Path) -> Path:
    """The checkpoint that the heads were fitted on, which lies beside them."""
    return run / "reward"
