"""The reward model, which predicts the annotator's rankings: linear heads on features of a frozen language model.

It is trained with Plackett-Luce on whole rankings, ties included. Several heads, each on a bootstrap of the questions,
tell by their disagreement how sure the model is.
"""

from __future__ import annotations

import copy
import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
import torch
from pydantic import Field, model_validator
from safetensors.torch import load, save
from torch import nn

from klype import durable
from klype.errors import KlypeError, UsageError
from klype.jsons import finite
from klype.model import checkpoint
from klype.sources.find import Found
from klype.train.loop import TrainSession, TrainSettings, train
from klype.train.optimizer import OptimizerSettings, Schedule
from klype.train.preference import RankedAnswers, davidson, informative, pairs_right, plackett_luce
from klype.train.scoring import Ids, answer_features, feature_names
from klype.values import Batch, Figure, Floats, Loss, Trace

WEIGHTS, ABOUT = "reward.safetensors", "reward.json"


class RewardSettings(TrainSettings):
    """Settings for fitting the heads. ``questions`` rankings make a batch; ``heads`` disagree where the model is
    unsure.

    ``ties``: Plackett-Luce with ties in Efron's form, or Davidson's over all pairs, where a tie is an outcome of its
    own, of weight ``tie_weight``. ``margin``: how far (in raw score) a better answer must be above; not for Davidson.
    ``centre``: how dear it is that a question's mean score is not 0 (its square times this).
    """

    steps: int = Field(default=1500, ge=0)
    optimizer: OptimizerSettings = OptimizerSettings(kind="adamw", rate=1e-2, decay=1e-2)
    schedule: Schedule = Schedule(warmup=0.05)
    clip: float = Field(default=0.0, ge=0)
    heads: int = Field(default=1, ge=1)
    questions: int = Field(default=64, ge=1)
    seed: int = 0
    ties: Literal["efron", "davidson"] = "efron"
    tie_weight: float = Field(default=1.0, gt=0)
    margin: float = Field(default=0.0, ge=0)
    centre: float = Field(default=0.0, ge=0)

    @model_validator(mode="after")
    def _one_of_both(self) -> Self:
        if self.margin and self.ties == "davidson":
            raise ValueError("a margin goes with ties = efron only")
        return self


class RewardModel:
    """``score(prompts, answers)``: token ids in, scores out: mean 0, standard deviation 1 over what it learnt from."""

    def __init__(self, trunk: nn.Module, heads: int = 1) -> None:
        learns = any(parameter.requires_grad for parameter in trunk.parameters())
        self.trunk = (copy.deepcopy(trunk).requires_grad_(False) if learns else trunk).eval()
        with torch.no_grad():  # how wide its states are
            some = torch.zeros(1, 1, dtype=torch.long, device=next(trunk.parameters()).device)
            size = len(feature_names(self.trunk.hidden(some).shape[-1]))  # type: ignore[operator]
        self.head = nn.Linear(size, heads, bias=False)
        nn.init.zeros_(self.head.weight)
        self.mean_F, self.scale_F = torch.zeros(size), torch.ones(size)
        self.centre, self.spread = 0.0, 1.0

    def score(self, prompts: Sequence[Ids], answers: Sequence[Ids]) -> Floats:
        """[N]: the mean over the heads, centred and scaled."""
        scores: Floats = self.scores(prompts, answers).mean(1)
        return scores

    def scores(self, prompts: Sequence[Ids], answers: Sequence[Ids]) -> Floats:
        """[N, H]: every head's score."""
        return self.scores_of(answer_features(self.trunk, prompts, answers))

    @torch.no_grad()
    def scores_of(self, features_NF: torch.Tensor) -> Floats:
        """[N, H]: every head's score of answers whose features are known."""
        raw_NH = self.head(self._standardised(features_NF))
        scores: Floats = ((raw_NH - self.centre) / self.spread).double().numpy()
        return scores

    def save(self, folder: Path, about: dict[str, Any] | None = None) -> None:
        """Writes the heads beside the trunk's checkpoint (which ``model/checkpoint.py`` saves) in ``folder``."""
        weights = save({"head.weight": self.head.weight.detach(), "mean": self.mean_F, "scale": self.scale_F})
        facts = {
            "weights": hashlib.sha256(weights).hexdigest(),  # the two files belong together
            "centre": self.centre,
            "spread": self.spread,
            "heads": self.head.out_features,
            "features": self.head.in_features,
            "trunk": fingerprint(self.trunk),
            "about": about or {},
        }
        try:
            folder.mkdir(parents=True, exist_ok=True)
            durable.write(folder / WEIGHTS, weights)
            durable.write(folder / ABOUT, json.dumps(facts, indent=1).encode())
        except OSError as error:
            raise KlypeError(f"The reward model cannot be written to {folder}: {error.strerror or error}.") from error

    @staticmethod
    def load(folder: Path, trunk: nn.Module) -> RewardModel:
        """The heads in ``folder`` on ``trunk``. KlypeError when they are missing or were fitted on another trunk."""
        try:
            facts = finite((folder / ABOUT).read_bytes())
            weights = (folder / WEIGHTS).read_bytes()
            if facts["weights"] != hashlib.sha256(weights).hexdigest():
                raise ValueError("not the weights that are told of")
            tensors = load(weights)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise KlypeError(f"{folder} holds no readable reward model.", "Train one: klype train reward.") from error
        if facts["trunk"] != fingerprint(trunk):
            raise KlypeError(f"The reward model in {folder} was fitted on another language model than the one given.")
        model = RewardModel(trunk, facts["heads"])
        if tensors["mean"].shape != model.mean_F.shape:
            raise KlypeError(
                f"The reward model in {folder} was made by another version of klype: it looks at"
                f" {len(tensors['mean'])} features, and there are {len(model.mean_F)} now.",
                "Train it again: klype train reward.",
            )
        with torch.no_grad():
            model.head.weight.copy_(tensors["head.weight"])
        model.mean_F, model.scale_F = tensors["mean"], tensors["scale"]
        model.centre, model.spread = facts["centre"], facts["spread"]
        return model

    def _standardised(self, features_NF: torch.Tensor) -> torch.Tensor:
        return (features_NF.to(self.mean_F.device) - self.mean_F) / self.scale_F


def fit_reward(
    trunk: nn.Module,
    rankings: Sequence[RankedAnswers],
    settings: RewardSettings,
    folder: Path,
    session: TrainSession | None = None,
) -> RewardModel:
    """Fits heads on ``trunk`` (copied, frozen) to the rankings by the common loop; metrics and states in ``folder``.

    Rankings of fewer than two candidates are left out. Raises NoPreferencesError: see ``informative``.
    """
    useful = informative(rankings)
    return fit_heads(trunk, answer_features(trunk, *_flat(useful)), useful, settings, folder, session)


def fit_heads(
    trunk: nn.Module,
    features_NF: torch.Tensor,
    useful: Sequence[RankedAnswers],
    settings: RewardSettings,
    folder: Path,
    session: TrainSession | None = None,
) -> RewardModel:
    """``fit_reward`` when the features of all answers are known, ranking by ranking; each ranking has two answers or
    more."""
    model = RewardModel(trunk, settings.heads)
    model.mean_F = features_NF.mean(0)
    model.scale_F = features_NF.std(0) + 1e-3
    batches = _RankingBatches(model._standardised(features_NF), useful, settings)
    train(model.head, partial(reward_loss, settings=settings), batches, settings, folder, session)
    with torch.no_grad():
        raw_N = model.head(model._standardised(features_NF)).mean(1)
    model.centre, model.spread = float(raw_N.mean()), max(float(raw_N.std()), 1e-6)
    return model


def reward_loss(head: nn.Module, batch: Batch, settings: RewardSettings | None = None) -> Loss:
    """The reward model's loss: -log p of the rankings under the scores of each head, summed over the heads.

    Plackett-Luce or Davidson, as the settings say. ``extra`` has ``features_QKF``, ``ranks_QK`` and ``weights_QH`` (the
    bootstrap).
    """
    settings = settings or RewardSettings()
    scores_QKH = head(batch.extra["features_QKF"])
    ranks_QK, weights_QH = batch.extra["ranks_QK"], batch.extra["weights_QH"]
    totals, counts = [], []
    for scores_QK, weights_Q in zip(scores_QKH.unbind(-1), weights_QH.unbind(1), strict=True):
        if settings.ties == "davidson":
            loss = davidson(scores_QK, ranks_QK, weights_Q, settings.tie_weight)
        else:
            loss = plackett_luce(scores_QK, ranks_QK, weights_Q, settings.margin)
        total = loss.total
        if settings.centre:
            present_QK = ranks_QK >= 0
            mean_Q = (scores_QK * present_QK).sum(1) / present_QK.sum(1).clamp(min=1)
            share = loss.count / weights_Q.sum().clamp(min=1e-9)  # a mean over questions beside a mean over choices
            total = total + settings.centre * share * (mean_Q**2) @ weights_Q
        totals.append(total)
        counts.append(loss.count)
    right, pairs = pairs_right(scores_QKH.detach().mean(-1), ranks_QK)
    metrics = {"pair_accuracy": right, "pair_accuracy_count": pairs}
    return Loss(torch.stack(totals).sum(), torch.stack(counts).sum(), metrics)


def pairs_by_ranking(model: RewardModel, rankings: Sequence[RankedAnswers]) -> list[tuple[float, float]]:
    """For each ranking: (pairs that the scores order correctly, equal ones counting half; all ordered pairs)."""
    scores = iter(model.score(*_flat(rankings)).tolist() if rankings else [])
    own = [torch.tensor([[next(scores) for _ in ranking.answers]], dtype=torch.float64) for ranking in rankings]
    return [pairs_right(s_QK, torch.tensor([ranking.ranks])) for s_QK, ranking in zip(own, rankings, strict=True)]


def fingerprint(model: nn.Module) -> str:
    """SHA-256 over the names and values of all parameters."""
    digest = hashlib.sha256()
    for name, parameter in sorted(model.named_parameters()):
        digest.update(name.encode())
        digest.update(parameter.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


class _RankingBatches:
    """Rankings padded to the longest; batch number i is drawn by a generator seeded with (seed, i)."""

    def __init__(self, features_NF: torch.Tensor, rankings: Sequence[RankedAnswers], settings: RewardSettings) -> None:
        most = max(len(r.answers) for r in rankings)
        self.features_QKF = torch.zeros(len(rankings), most, features_NF.shape[1], device=features_NF.device)
        self.ranks_QK = torch.full((len(rankings), most), -1, device=features_NF.device)
        position = 0
        for index, ranking in enumerate(rankings):
            number = len(ranking.answers)
            self.features_QKF[index, :number] = features_NF[position : position + number]
            self.ranks_QK[index, :number] = torch.tensor(ranking.ranks)
            position += number
        self.settings, self.index = settings, 0
        generator = torch.Generator().manual_seed(settings.seed)
        shape = (len(rankings), settings.heads)
        drawn_QH = torch.empty(shape).exponential_(generator=generator)  # the Bayesian bootstrap
        self.weights_QH = drawn_QH if settings.heads > 1 else torch.ones(shape)

    def __iter__(self) -> _RankingBatches:
        return self

    def __next__(self) -> Batch:
        generator = torch.Generator().manual_seed((self.settings.seed << 32) + self.index)
        self.index += 1
        chosen = torch.randint(0, len(self.ranks_QK), (self.settings.questions,), generator=generator)
        ranks_QK = self.ranks_QK[chosen]
        extra = {
            "features_QKF": self.features_QKF[chosen],
            "ranks_QK": ranks_QK,
            "weights_QH": self.weights_QH[chosen],
        }
        return Batch(ranks_QK, ranks_QK, torch.ones_like(ranks_QK), extra)

    def state(self) -> dict[str, Any]:
        return {"index": self.index}

    def restore(self, state: dict[str, Any]) -> None:
        self.index = state["index"]


def _flat(rankings: Sequence[RankedAnswers]) -> tuple[list[Ids], list[Ids]]:
    prompts: list[Ids] = [r.prompt for r in rankings for _ in r.answers]
    answers: list[Ids] = [a for r in rankings for a in r.answers]
    return prompts, answers


def bias_audit(
    scores: Sequence[float],
    quality: Sequence[float],
    traits: Mapping[str, Sequence[float]],
    questions: Sequence[int],
) -> dict[str, Figure]:
    """Partial correlation of the scores with each trait, given the annotator's ``quality``, within questions.

    All are centred within their question first, then ``quality`` is regressed out of scores and trait. 0: the model
    likes the trait only as far as the annotator does. Intervals by Fisher's z with the degrees of freedom that are
    left; one that a trait or the scores do not vary in has no value.
    """
    groups = np.unique(np.asarray(questions), return_inverse=True)[1]
    score, liked = _centred(scores, groups), _centred(quality, groups)
    free = len(groups) - int(groups.max(initial=-1) + 1) - 1
    return {
        name: _partial_correlation(_residual(score, liked), _residual(_centred(trait, groups), liked), free)
        for name, trait in traits.items()
    }


def _partial_correlation(a: Floats, b: Floats, free: int) -> Figure:
    length = float(np.linalg.norm(a) * np.linalg.norm(b))
    if length < 1e-12 or free < 4:
        return Figure(None, n=len(a), why="nothing varies within a question" if length < 1e-12 else "too few answers")
    value = float(np.clip(a @ b / length, -1.0, 1.0))
    middle = math.atanh(min(max(value, -1 + 1e-12), 1 - 1e-12))
    half = 1.96 / math.sqrt(free - 2)
    low, high = math.tanh(middle - half), math.tanh(middle + half)
    return Figure(value, min(low, value), max(high, value), len(a), "partial correlation")


def _centred(values: Sequence[float], groups: np.ndarray[tuple[int], np.dtype[np.int64]]) -> Floats:
    array = np.asarray(values, dtype=np.float64)
    sums = np.bincount(groups, array)
    return np.asarray(array - (sums / np.bincount(groups))[groups])


def _residual(values: Floats, given: Floats) -> Floats:
    variance = float(given @ given)
    return values if variance < 1e-12 else np.asarray(values - given * float(given @ values) / variance)


UNFINISHED = -1.0  # added to the score of an answer that did not end, as alignment does


@dataclass(frozen=True, slots=True)
class BestOfN:
    """The best of n answers (its index), all scores, and the most that best-of-n can move the answers from what
    the model says: KL ≤ log n - (n - 1)/n nats an answer (Beirami et al. 2024, arXiv:2401.01879)."""

    chosen: int
    scores: tuple[float, ...]

    @property
    def kl_most(self) -> float:
        n = len(self.scores)
        return math.log(n) - (n - 1) / n


def open_reward_model(found: Found, device: torch.device | None = None) -> RewardModel:
    """The reward model of the run that a model belongs to, computed on ``device``. UsageError when there is none."""
    if found.run is None or not (found.run / "reward" / ABOUT).exists():
        raise UsageError(
            f"{found.folder} belongs to no run with a reward model, which the best of several answers needs.",
            "Give a run's folder, after: klype train reward --from RUN.",
        )
    return RewardModel.load(found.run / "reward", checkpoint.load(found.run / "reward", device=device).model)


def best_of_n(judge: RewardModel, traces: Sequence[Trace]) -> BestOfN:
    """The answer with the highest score; the first of equals."""
    scores = judge.score([t.prompt for t in traces], [t.tokens for t in traces]).tolist()
    adjusted = [s + UNFINISHED * (t.ended != "stop") for s, t in zip(scores, traces, strict=True)]
    if not all(map(math.isfinite, adjusted)):
        raise KlypeError("The reward model's score of an answer is not a finite number.", "Train it again.")
    return BestOfN(max(range(len(adjusted)), key=lambda i: adjusted[i]), tuple(adjusted))
