"""Rollouts as a source of batches: draw answers with the engine, reward them, and return what to learn from.

Everything random is a function of (seed, step), so that the step's number is the whole state: resumed = straight.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from pydantic import Field
from torch import nn

from klype.engine.engine import Engine
from klype.errors import KlypeError
from klype.train.loop import NumberedBatches
from klype.train.objectives import answers_batch, reference_logp
from klype.train.policy import AnswerUse, Scaling, advantages, k3
from klype.train.rewards import AnswerReward, QuestionPrompt
from klype.values import Batch, Request, Sampling

Ask = Callable[[int], Sequence[QuestionPrompt]]


class RolloutSettings(AnswerUse):
    """``answers`` to each question, of at most ``limit`` tokens, drawn at ``temperature``; ``stop`` ends an answer.

    ``unfinished`` is the reward added to an answer that did not end; ``beta``: see ``KLController``.
    """

    answers: int = Field(default=8, ge=2)
    limit: int = Field(default=32, ge=1)
    temperature: float = Field(default=1.0, gt=0)
    scaling: Scaling = "batch"
    unfinished: float = -1.0
    beta: float = Field(default=0.02, ge=0)
    seed: int = 0
    stop: tuple[int, ...] = ()


TIGHTEN, LOOSEN = 0.2, 0.02  # at most, a step


@dataclass
class KLController:
    """The KL coefficient ``beta``: fixed, or adapted so that the KL (nats per answer) stays near a target.

    Each step's measured KL moves ``beta``, in proportion to how far off it is (after Ziegler et al. 2019,
    arXiv:1909.08593): quickly when the answers are too far, slowly when they are near. Trained steps lag behind, so
    that one that gives way as quickly has lost its hold when it is needed.
    """

    beta: float
    target: float = 0.0

    @staticmethod
    def of(beta: float, target: float) -> KLController:
        """One with a target starts tight: the answers that are best at a price β of KL, π ∝ π_ref exp(A/β), are
        Var(A)/2β² away for small ones, and advantages have a variance of 1."""
        return KLController(max(beta, (2 * target) ** -0.5) if target else beta, target)

    def update(self, kl: float) -> None:
        if self.target:
            off = min(1.0, max(-1.0, kl / self.target - 1))
            self.beta *= 1 + (TIGHTEN if off > 0 else LOOSEN) * off
            # from 0 no factor would ever lead back
            self.beta = min(max(self.beta, 1e-4), 100.0)


class RolloutBatches(NumberedBatches):
    """Batch number i: answers to the questions of step i by the model as it then is (see policy.py for its fields).

    ``ask`` gives a step's questions, ``engine`` answers, ``reward`` says what answers are worth; ``reference``: the
    frozen model not to leave; ``rehearsal`` gives a step's batch of older material, put into ``extra["rehearsal"]``.
    """

    def __init__(
        self,
        settings: RolloutSettings,
        ask: Ask,
        engine: Engine,
        reward: AnswerReward,
        reference: nn.Module | None = None,
        rehearsal: Callable[[int], Batch] | None = None,
    ) -> None:
        self.settings = settings
        self._ask, self._engine, self._reward = ask, engine, reward
        self._reference, self._rehearsal = reference, rehearsal
        self.controller = KLController.of(settings.beta, settings.target_kl)
        self._kept: Batch | None = None

    def batch(self, index: int) -> Batch:
        round_, again = divmod(index, self.settings.updates)
        if not again or self._kept is None:
            self._kept = self._draw(round_)
        rehearsal = {} if self._rehearsal is None else {"rehearsal": self._rehearsal(index)}
        return replace(self._kept, extra={**self._kept.extra, **rehearsal})

    def _draw(self, step: int) -> Batch:
        """New answers to a step's questions, their rewards and advantages."""
        settings = self.settings
        asked = self._ask(step)
        # the engine remembers prompts read with older weights
        self._engine.refresh(self.index)
        # each request of each step has a seed of its own, up to 65,536 a step
        first, sampling = (settings.seed << 40) + (step << 16), Sampling(temperature=settings.temperature)
        groups = self._engine.run([
            Request(one.prompt, settings.answers, settings.limit, sampling, first + i, settings.stop)
            for i, one in enumerate(asked)
        ])  # fmt: skip
        traces = [trace for group in groups for trace in group]
        of_each = [a for a, group in zip(asked, groups, strict=True) for _ in group]
        batch = answers_batch([t.prompt for t in traces], [t.tokens for t in traces], settings.answers)
        # [B, T]: log-probabilities under the distribution that was drawn from, 0 outside answers
        flat = torch.tensor([step.sampling_logprob for trace in traces for step in trace.steps], dtype=torch.float32)
        extra = batch.extra
        extra["temperature"] = settings.temperature
        extra["old_logp_BT"] = torch.zeros_like(batch.weights_BT).masked_scatter(batch.weights_BT > 0, flat)
        if self._reference is not None:
            extra["reference_logp_BT"] = reference_logp(self._reference, batch)
            self.controller.update(kl_an_answer(extra["old_logp_BT"], extra["reference_logp_BT"]))
            extra["beta"] = self.controller.beta
        rewards_N = np.asarray(self._reward(of_each, [t.tokens for t in traces]), dtype=np.float64)
        assert rewards_N.shape == (len(traces),), "a reward gives one number an answer"
        if bad := int((~np.isfinite(rewards_N)).sum()):
            what = f"The reward of {bad} of {len(traces)} answers is not a finite number."
            raise KlypeError(what, "Look at the reward.")
        finished_N = np.array([trace.ended == "stop" for trace in traces])
        adjusted_N = rewards_N + settings.unfinished * ~finished_N
        if settings.kl_in_reward:
            assert "reference_logp_BT" in extra, "KL in the reward needs a reference"
            beyond_N = (extra["old_logp_BT"] - extra["reference_logp_BT"]).sum(1).double().numpy()
            adjusted_N = adjusted_N - settings.kl_in_reward * beyond_N
        adjusted_QG = adjusted_N.reshape(len(asked), settings.answers)
        advantages_QG = advantages(torch.from_numpy(adjusted_QG), settings.scaling).float()
        # rewards that are equal but for rounding give nothing to choose between
        different_Q = torch.from_numpy(np.ptp(adjusted_QG, axis=1) > 1e-9)
        extra["advantages_B"] = (advantages_QG * different_Q[:, None]).flatten()
        extra["rewards_B"] = torch.from_numpy(adjusted_QG).float().flatten()
        extra["metrics"] = {
            "reward": float(rewards_N.mean()),
            "reward_std": float(rewards_N.std()),
            "length": float(np.mean([len(trace.steps) for trace in traces])),
            "finished": float(finished_N.mean()),
            "groups_learnt": float(different_Q.double().mean()),
            "beta": self.controller.beta,
        }
        if not settings.drop_equal:
            return batch
        kept_B1 = different_Q.repeat_interleave(settings.answers)[:, None]
        return replace(batch, weights_BT=batch.weights_BT * kept_B1)

    def state(self) -> dict[str, Any]:
        """Position; between two updates on the same answers those too, since the weights that drew them are gone."""
        # else the next batch is drawn anew from the step's number alone
        kept, packed = self._kept if self.index % self.settings.updates else None, None
        if kept is not None:  # float32 and integers survive JSON exactly
            fields = {"tokens_BT": kept.tokens_BT, "targets_BT": kept.targets_BT, "weights_BT": kept.weights_BT}
            fields |= kept.extra
            packed = {k: v.tolist() if isinstance(v, torch.Tensor) else v for k, v in fields.items()}
        return {**super().state(), "beta": self.controller.beta, "kept": packed}

    def restore(self, state: dict[str, Any]) -> None:
        super().restore(state)
        self.controller.beta, self._kept = state.get("beta", self.controller.beta), None
        if packed := state.get("kept"):
            extra = {k: torch.tensor(v) if isinstance(v, list) else v for k, v in packed.items()}
            self._kept = Batch(extra.pop("tokens_BT"), extra.pop("targets_BT"), extra.pop("weights_BT"), extra)


def kl_an_answer(logp_BT: torch.Tensor, reference_BT: torch.Tensor) -> float:
    """KL to the reference in nats, estimated from drawn answers."""
    return float(k3(logp_BT, reference_BT).sum() / len(logp_BT))
