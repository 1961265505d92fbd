"""Rollouts as batches: answers are sampled with the engine, rewarded, and returned with their advantages.

Everything random is a function of (seed, step), so that the step's number is all there is to resume from.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from pydantic import Field
from torch import nn

from klype.engine.engine import Engine
from klype.errors import KlypeError
from klype.train.objectives import answers_batch, reference_logp
from klype.train.policy import AnswerUse, Scaling, advantages, k3
from klype.train.rewards import AnswerReward, QuestionPrompt
from klype.values import Batch, NumberedBatches, Request, Sampling

Ask = Callable[[int], Sequence[QuestionPrompt]]


class RolloutSettings(AnswerUse):
    """``answers`` per question, of at most ``limit`` tokens, sampled at ``temperature``; ``stop``: ids that end one.

    ``unfinished`` is added to the reward of an answer that did not end; ``beta``: see ``KLController``.
    """

    answers: int = Field(default=8, ge=2)
    limit: int = Field(default=32, ge=1)
    temperature: float = Field(default=1.0, gt=0)
    scaling: Scaling = "batch"
    unfinished: float = -1.0
    beta: float = Field(default=0.02, ge=0)
    seed: int = 0
    stop: tuple[int, ...] = ()


TIGHTEN, LOOSEN = 0.2, 0.02  # largest relative change of beta per step, up and down


@dataclass
class KLController:
    """The KL coefficient ``beta``: fixed, or adapted so that the KL (nats per answer) stays near a target.

    Each step's measured KL changes ``beta`` in proportion to the relative error (after Ziegler et al. 2019,
    arXiv:1909.08593): up quickly when the KL is too large, down slowly when it is small. The policy reacts with a
    delay, so a controller that loosened as quickly would be too loose when it is needed.
    """

    beta: float
    target: float = 0.0

    @staticmethod
    def of(beta: float, target: float) -> "KLController":
        """With a target it starts tight: the optimal policy at penalty β, π ∝ π_ref exp(A/β), has a KL of about
        Var(A)/2β², and advantages have a variance of 1."""
        return KLController(max(beta, (2 * target) ** -0.5) if target else beta, target)

    def update(self, kl: float) -> None:
        if self.target:
            off = min(1.0, max(-1.0, kl / self.target - 1))
            self.beta *= 1 + (TIGHTEN if off > 0 else LOOSEN) * off
            # from 0 no factor could raise it again
            self.beta = min(max(self.beta, 1e-4), 100.0)


class RolloutBatches(NumberedBatches):
    """Batch number i holds answers to the questions of step i by the model as it then is (policy.py lists the fields).

    ``ask`` returns a step's questions, ``engine`` samples answers, ``reward`` scores them; ``reference``: the frozen
    model of the KL penalty.
    """

    def __init__(
        self,
        settings: RolloutSettings,
        ask: Ask,
        engine: Engine,
        reward: AnswerReward,
        reference: nn.Module | None = None,
    ) -> None:
        self.settings = settings
        self._ask, self._engine, self._reward = ask, engine, reward
        self._reference = reference
        self.controller = KLController.of(settings.beta, settings.target_kl)
        self._kept: Batch | None = None

    def batch(self, index: int) -> Batch:
        round_, again = divmod(index, self.settings.updates)
        if not again or self._kept is None:
            self._kept = self._draw(round_)
        return replace(self._kept, extra={**self._kept.extra})  # a copy, to which others may add

    def _draw(self, step: int) -> Batch:
        """New answers to a step's questions, their rewards and advantages."""
        settings = self.settings
        asked = self._ask(step)
        # the engine's prefix cache was computed with older weights
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
        # [B, T]: log-probabilities under the distribution that was sampled from, 0 outside answers
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
        # rewards that differ by rounding alone are equal
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
        """Position and beta; between two updates on the same answers also the answers, since the weights that they
        were sampled with are gone."""
        # otherwise the next batch depends on the step's number alone
        kept, packed = self._kept if self.index % self.settings.updates else None, None
        if kept is not None:  # float32 and integers survive JSON exactly
            fields = {"tokens": kept.tokens_BT, "targets": kept.targets_BT, "weights": kept.weights_BT, **kept.extra}
            packed = {k: v.tolist() if isinstance(v, torch.Tensor) else v for k, v in fields.items()}
        return {**super().state(), "beta": self.controller.beta, "kept": packed}

    def restore(self, state: dict[str, Any]) -> None:
        super().restore(state)
        self.controller.beta, self._kept = state.get("beta", self.controller.beta), None
        if packed := state.get("kept"):
            if "rest" in packed:  # an earlier klype's
                packed = {k.removeprefix("extra."): v for k, v in packed["tensors"].items()} | packed["rest"]
            extra = {k: torch.tensor(v) if isinstance(v, list) else v for k, v in packed.items()}
            self._kept = Batch(extra.pop("tokens"), extra.pop("targets"), extra.pop("weights"), extra)


def kl_an_answer(logp_BT: torch.Tensor, reference_BT: torch.Tensor) -> float:
    """The k3 estimate of the KL to the reference in nats per answer."""
    return float(k3(logp_BT, reference_BT).sum() / len(logp_BT))
