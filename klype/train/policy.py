"""Learning from rewards: policy gradients with a KL penalty to a reference.

A batch holds answers as rows; ``weights_BT`` is 1 on answer tokens (the end token with them). In ``extra``:
``advantages_B``, ``old_logp_BT`` (as drawn), ``reference_logp_BT``, ``temperature`` (what was drawn at), ``rewards_B``
(for PPO) and ``beta``, when the penalty adapts (see rollout.py).

KL with r = log π - log π_ref: k1 = r, k2 = r²/2, k3 = exp(-r) - 1 + r. As losses, k2 and the importance-weighted k3
have the gradient of KL(π‖π_ref); plain k3 (classic GRPO) has that of KL(π_ref‖π), and k1 has none (arXiv:2510.01555).
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal, cast

import torch
from pydantic import Field
from torch import nn

from klype import config
from klype.errors import UsageError
from klype.model.config import ModelConfig
from klype.model.transformer import Transformer
from klype.train.objectives import Objective, cross_entropy, score_answers, with_rehearsal
from klype.train.preference import PreferenceSettings, preference
from klype.values import Batch, Loss

Scaling = Literal["group", "batch", "none", "rloo", "best"]


class PolicySettings(config.Settings):
    """``clip_high`` above ``clip_low`` lets rare tokens grow (DAPO). ``beta`` is the KL penalty, in reward per nat;
    ``kl`` is its estimator, weighted by the importance ratio (rloo always takes k2).

    ``average``: over all tokens ("token", DAPO), over tokens of an answer and then answers ("answer", GRPO as first
    published: favours short correct answers), or sums of answers over their number ("sum", Dr. GRPO: no length bias).

    For ppo: ``discount`` is GAE's γ, ``trace`` its λ, ``value_weight`` the weight of the value head's squared error.
    """

    clip_low: float = Field(default=0.2, ge=0, lt=1)
    clip_high: float = Field(default=0.28, ge=0)
    beta: float = Field(default=0.02, ge=0)
    kl: Literal["k2", "k3"] = "k3"
    average: Literal["token", "answer", "sum"] = "token"
    discount: float = Field(default=1.0, gt=0, le=1)
    trace: float = Field(default=0.95, ge=0, le=1)
    value_weight: float = Field(default=0.5, ge=0)


def advantages(rewards_QG: torch.Tensor, scaling: Scaling) -> torch.Tensor:
    """Rewards relative to their group of G answers to one question.

    "group": (r - mean)/std in the group (GRPO); "batch": r - mean in the group, over the batch's standard deviation of
    these; "none": r - mean (Dr. GRPO); "rloo": r - mean of the *other* answers = G/(G-1) (r - mean). A group of equal
    rewards has advantage 0 in each. "best": G for the best answer (equally best ones share it), 0 for all others: the
    plain policy gradient is then cross-entropy on the best of G. Standard deviations are the population's; the
    1e-4 added to them keeps the advantages of nearly equal rewards small.
    """
    centred_QG = rewards_QG - rewards_QG.mean(1, keepdim=True)
    if scaling == "group":
        return centred_QG / (centred_QG.pow(2).mean(1, keepdim=True).sqrt() + 1e-4)
    if scaling == "batch":
        return centred_QG / (centred_QG.pow(2).mean().sqrt() + 1e-4)
    if scaling == "rloo":
        answers = rewards_QG.shape[1]
        assert answers > 1, "leave one out needs two answers a question"
        return centred_QG * (answers / (answers - 1))
    if scaling == "best":
        best_QG = (rewards_QG == rewards_QG.max(1, keepdim=True).values).to(rewards_QG.dtype)
        return best_QG * rewards_QG.shape[1] / best_QG.sum(1, keepdim=True)
    return centred_QG


def grpo(model: nn.Module, batch: Batch, settings: PolicySettings | None = None) -> Loss:
    """Clipped importance-weighted advantages per token with the KL penalty (Shao et al. 2024; Yu et al. 2025).

    Metrics: ``kl`` (k3, nats per answer), ``clipped`` (share of tokens), ``ratio`` (mean, 1 on fresh answers).
    """
    logp_BT = score_answers(model, batch).logp_BT
    advantage_BT = batch.extra["advantages_B"].to(logp_BT.dtype)[:, None].expand_as(logp_BT)
    return _clipped_loss(logp_BT, batch, advantage_BT, settings or PolicySettings())


def rloo(model: nn.Module, batch: Batch, settings: PolicySettings | None = None) -> Loss:
    """REINFORCE with the other answers' mean reward as baseline: -A Σ_t log π (Ahmadian et al. 2024).

    For fresh answers, with ``advantages_B`` of scaling "rloo"; the penalty is k2, which is right for fresh answers.
    With scaling "best" it is expert iteration: the best of each group is imitated.
    """
    # there is no ratio for k3 to be weighted with
    settings = (settings or PolicySettings()).model_copy(update={"kl": "k2"})
    logp_BT = score_answers(model, batch).logp_BT
    loss_BT = -batch.extra["advantages_B"].to(logp_BT.dtype)[:, None] * logp_BT
    return _with_kl_penalty(loss_BT, logp_BT, torch.ones_like(logp_BT), batch, settings)


def ppo(model: nn.Module, batch: Batch, settings: PolicySettings | None = None) -> Loss:
    """PPO: clipped steps on advantages per token, from a value head and GAE (Schulman et al. 2015, 2017).

    ``model`` is an ActorCritic. The reward comes with an answer's last token; advantages are normalised over all answer
    tokens. The value loss trains only the head. Metrics: those of ``grpo``, and ``value_loss``.
    """
    settings = settings or PolicySettings()
    scored = score_answers(model, batch)
    logp_BT = scored.logp_BT
    mask_BT = (batch.weights_BT != 0).to(logp_BT.dtype)
    # detached: the value loss does not train the model below the head
    value_N = cast(ActorCritic, model).value_head(scored.states_ND.detach())[:, 0].to(logp_BT.dtype)
    value_BT = torch.zeros_like(logp_BT).flatten().index_copy(0, scored.kept_N, value_N).view(logp_BT.shape) * mask_BT
    # an answer is judged as a whole: its tokens have no rewards of their own
    reward_BT = at_the_end(batch.extra["rewards_B"].to(logp_BT.dtype), mask_BT)
    raw_BT = gae(reward_BT, value_BT.detach(), mask_BT, settings.discount, settings.trace)
    count = mask_BT.sum().clamp(min=1)
    centred_BT = (raw_BT - (raw_BT * mask_BT).sum() / count) * mask_BT
    advantage_BT = centred_BT / ((centred_BT**2).sum() / count).sqrt().clamp(min=1e-4)
    miss_BT = 0.5 * (value_BT - (raw_BT + value_BT.detach())) ** 2
    loss = _clipped_loss(logp_BT, batch, advantage_BT, settings, settings.value_weight * miss_BT)
    value = {"value_loss": float((miss_BT.detach() * mask_BT).sum()), "value_loss_count": float(mask_BT.sum())}
    return replace(loss, metrics=loss.metrics | value)


class ActorCritic(Transformer):
    """A language model with a value head, which predicts the return."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        self.value_head = nn.Linear(config.width, 1)
        # a random head would move the policy before it has seen a reward
        nn.init.zeros_(self.value_head.weight)
        nn.init.zeros_(self.value_head.bias)

    @staticmethod
    def of(model: Transformer) -> "ActorCritic":
        """An actor-critic with the model's weights and a value head of zeros."""
        actor = ActorCritic(model.config)
        actor.load_state_dict(model.state_dict(), strict=False)
        return actor.to(model.embed.weight.device)

    def actor(self) -> Transformer:
        """The language model alone."""
        model = Transformer(self.config)
        model.load_state_dict({k: v for k, v in self.state_dict().items() if not k.startswith("value_head.")})
        return model.to(self.embed.weight.device)


def gae(
    reward_BT: torch.Tensor, value_BT: torch.Tensor, mask_BT: torch.Tensor, discount: float, trace: float
) -> torch.Tensor:
    """Generalised advantage estimates [B, T]: A_t = Σ_l (γλ)^l δ_{t+l} with δ_t = r_t + γ V_{t+1} - V_t.

    Answers are unbroken runs of 1 in ``mask_BT``. V is 0 after an answer's last token, and A is 0 outside answers.
    """
    advantage_BT = torch.zeros_like(reward_BT)
    ahead_B = next_B = torch.zeros_like(reward_BT[:, 0])
    # backwards, since each advantage depends on the next one
    for t in range(reward_BT.shape[1] - 1, -1, -1):
        inside_B = mask_BT[:, t]
        delta_B = reward_BT[:, t] + discount * next_B - value_BT[:, t]
        ahead_B = (delta_B + discount * trace * ahead_B) * inside_B
        next_B = value_BT[:, t] * inside_B
        advantage_BT[:, t] = ahead_B
    return advantage_BT


def at_the_end(reward_B: torch.Tensor, mask_BT: torch.Tensor) -> torch.Tensor:
    """Rewards per token [B, T]: each row's reward at its last answer token, 0 elsewhere."""
    columns_T = torch.arange(mask_BT.shape[1], device=mask_BT.device)
    last_B1 = torch.where(mask_BT != 0, columns_T, -1).max(1, keepdim=True).values
    return (columns_T == last_B1) * reward_B[:, None]


def _clipped_loss(
    logp_BT: torch.Tensor,
    batch: Batch,
    advantage_BT: torch.Tensor,
    settings: PolicySettings,
    extra_loss_BT: torch.Tensor | None = None,
) -> Loss:
    """-min(ρA, clip(ρ)A) with the KL penalty and ``extra_loss_BT``; ρ is the importance ratio to the policy that the
    answers were sampled from."""
    mask_BT = (batch.weights_BT != 0).to(logp_BT.dtype)
    # outside answers both are 0 and the ratio is 1
    ratio_BT = (logp_BT - batch.extra["old_logp_BT"].to(logp_BT.dtype) * mask_BT).exp()
    clipped_BT = ratio_BT.clamp(1 - settings.clip_low, 1 + settings.clip_high)
    # the pessimistic bound: it keeps the gradient that pulls the ratio back
    gain_BT = torch.minimum(ratio_BT * advantage_BT, clipped_BT * advantage_BT)
    fixed_BT = ratio_BT.detach()
    loss = _with_kl_penalty(-gain_BT, logp_BT, ratio_BT, batch, settings, extra_loss_BT)
    for name, value_BT in {"clipped": fixed_BT * advantage_BT > gain_BT.detach(), "ratio": fixed_BT}.items():
        loss.metrics.update({name: float((value_BT * mask_BT).sum()), f"{name}_count": float(mask_BT.sum())})
    return loss


def _with_kl_penalty(
    loss_BT: torch.Tensor,
    logp_BT: torch.Tensor,
    ratio_BT: torch.Tensor,
    batch: Batch,
    settings: PolicySettings,
    extra_loss_BT: torch.Tensor | None = None,
) -> Loss:
    """A loss per token plus the KL penalty, where there is a reference, plus ``extra_loss_BT``, averaged as the
    settings say."""
    mask_BT, metrics = (batch.weights_BT != 0).to(logp_BT.dtype), dict[str, float]()
    if "reference_logp_BT" in batch.extra:
        reference_BT = batch.extra["reference_logp_BT"].to(logp_BT.dtype) * mask_BT
        measured = (k3(logp_BT.detach(), reference_BT) * mask_BT).sum()
        metrics = {"kl": float(measured), "kl_count": float(len(mask_BT))}
        if beta := float(batch.extra.get("beta", settings.beta)):
            loss_BT = beta * kl_loss(logp_BT, reference_BT, ratio_BT, settings.kl) + loss_BT
    if extra_loss_BT is not None:
        loss_BT = loss_BT + extra_loss_BT
    if settings.average == "token":
        return Loss((loss_BT * mask_BT).sum(), mask_BT.sum(), metrics)
    weight_BT = mask_BT / mask_BT.sum(1, keepdim=True).clamp(min=1) if settings.average == "answer" else mask_BT
    return Loss((loss_BT * weight_BT).sum(), mask_BT.new_tensor(float(len(mask_BT))), metrics)


def kl_loss(
    logp: torch.Tensor, reference: torch.Tensor, ratio: torch.Tensor, kind: Literal["k2", "k3"]
) -> torch.Tensor:
    """A loss per token whose expected gradient is that of KL(π‖π_ref), for tokens sampled at ``logp - log ratio``."""
    if kind == "k2":
        return ratio.detach() * 0.5 * (logp - reference) ** 2
    return ratio * k3(logp, reference)


def k3(logp: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
    """The k3 estimate of KL(π‖π_ref) per token: unbiased for tokens sampled from π, and never negative."""
    r = logp - reference
    # expm1: near the reference exp(-r) - 1 would lose all its digits
    return torch.expm1(-r) + r


MethodName = Literal["grpo", "rloo", "ppo", "expert", "dpo", "ipo", "kto"]


class AnswerUse(config.Settings):
    """How fresh answers are used.

    ``target_kl``: beta is adapted to keep the KL near it (nats per answer); 0 keeps beta fixed (see ``KLController``).
    ``updates``: steps on the same answers; after the first they are off-policy, so only objectives with an importance
    ratio may take more than one. ``kl_in_reward``: reward subtracted per nat by which an answer's log-probability
    exceeds the reference's. ``drop_equal`` leaves out groups with all rewards equal (their advantage is 0 in any case,
    but the KL penalty would act on them).
    """

    target_kl: float = Field(default=0.0, ge=0)
    updates: int = Field(default=1, ge=1)
    kl_in_reward: float = Field(default=0.0, ge=0)
    drop_equal: bool = False


class AlignSettings(AnswerUse):
    """The alignment method and its settings; without ``target_kl`` beta stays at ``policy.beta``."""

    method: MethodName = "grpo"
    policy: PolicySettings = PolicySettings()
    preference: PreferenceSettings = PreferenceSettings()
    rehearsal_weight: float = Field(default=0.5, ge=0)


@dataclass(frozen=True, slots=True)
class AlignMethod:
    """An alignment method: a policy gradient on fresh rollouts, with its scaling of rewards, or (``policy`` None) the
    preference loss of its name on existing rankings.

    ``stale``: whether several updates may be made on the same answers; ``critic``: whether it needs a value head.
    """

    name: MethodName
    policy: Callable[[nn.Module, Batch, PolicySettings], Loss] | None = None
    scaling: Scaling | None = None
    stale: bool = False
    critic: bool = False

    @property
    def learns_from(self) -> Literal["rollouts", "rankings"]:
        return "rankings" if self.policy is None else "rollouts"


# The alignment methods: a new one is a new row.
METHODS = (
    AlignMethod("grpo", grpo, "batch", stale=True),
    AlignMethod("rloo", rloo, "rloo"),
    # ppo reads rewards_B and never advantages_B, so their scaling does not matter
    AlignMethod("ppo", ppo, "none", stale=True, critic=True),
    # the best answer of each group is imitated, again and again: best-of-n made a habit
    AlignMethod("expert", rloo, "best"),
    AlignMethod("dpo"),
    AlignMethod("ipo"),
    AlignMethod("kto"),
)


def method(name: str) -> AlignMethod:
    """The row of this name; UsageError if unknown."""
    rows = {row.name: row for row in METHODS}
    if name not in rows:
        raise UsageError(f"There is no way to align called {name}.", f"There are: {', '.join(rows)}.")
    return rows[name]


def align_objective(settings: AlignSettings) -> Objective:
    """The method's objective, plus rehearsal when the batches have some."""
    row = method(settings.method)
    objective: Objective = partial(preference, settings=settings.preference.model_copy(update={"kind": row.name}))
    if row.policy is not None:
        objective = partial(row.policy, settings=settings.policy)  # type: ignore[call-arg]
    return with_rehearsal(objective, cross_entropy, settings.rehearsal_weight)
