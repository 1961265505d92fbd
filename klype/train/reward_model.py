"""The reward model, which predicts the annotator's rankings: linear heads on features of a frozen language model.

It is trained with Plackett-Luce on whole rankings, ties included. The disagreement of several heads, each fitted to a
bootstrap of the questions, tells how uncertain the model is.
"""

import copy
import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import Field
from safetensors.torch import load, save
from torch import nn

from klype import durable
from klype.errors import KlypeError, UsageError, writing_to
from klype.jsons import parse_finite
from klype.model import checkpoint
from klype.model.packed_texts import SharedPrefixes
from klype.model.transformer import Transformer
from klype.sources.model_files import ModelFiles
from klype.train.loop import TrainSession, TrainSettings, train
from klype.train.objectives import Ids, wide
from klype.train.optimizer import OptimizerSettings, Schedule
from klype.train.preference import RankedAnswers, informative_rankings, pairs_right, plackett_luce
from klype.values import Batch, Figure, Floats, Loss, NumberedBatches, Trace

WEIGHTS, ABOUT = "reward.safetensors", "reward.json"


class RewardSettings(TrainSettings):
    """Settings for fitting the heads. ``questions``: rankings per batch; ``heads``: number of bootstrapped heads."""

    steps: int = Field(default=1500, ge=0)
    optimizer: OptimizerSettings = OptimizerSettings(kind="adamw", rate=1e-2, decay=1e-2)
    schedule: Schedule = Schedule(warmup=0.05)
    clip: float = Field(default=0.0, ge=0)
    heads: int = Field(default=1, ge=1)
    questions: int = Field(default=64, ge=1)
    seed: int = 0


class RewardModel:
    """Scores answers (token ids). Over the answers it was fitted to, scores have mean 0 and standard deviation 1."""

    def __init__(self, trunk: Transformer, heads: int = 1) -> None:
        learns = any(parameter.requires_grad for parameter in trunk.parameters())
        self.trunk = (copy.deepcopy(trunk).requires_grad_(False) if learns else trunk).eval()
        size = 3 * trunk.config.width + SCALARS
        self.head = nn.Linear(size, heads, bias=False)
        nn.init.zeros_(self.head.weight)
        self.mean_F, self.scale_F = torch.zeros(size), torch.ones(size)
        self.centre, self.spread = 0.0, 1.0

    def score(self, prompts: Sequence[Ids], answers: Sequence[Ids]) -> Floats:
        """Scores [N]: the mean over the heads."""
        scores: Floats = self.scores(prompts, answers).mean(1)
        return scores

    @torch.no_grad()
    def scores(self, prompts: Sequence[Ids], answers: Sequence[Ids]) -> Floats:
        """Scores [N, H] of each head."""
        raw_NH = self.head(self.standardise(answer_features(self.trunk, prompts, answers)))
        scores: Floats = ((raw_NH - self.centre) / self.spread).double().numpy()
        return scores

    def standardise(self, features_NF: torch.Tensor) -> torch.Tensor:
        """Features scaled to mean 0 and standard deviation 1 over the answers that the heads were fitted to."""
        return (features_NF - self.mean_F) / self.scale_F

    def save(self, folder: Path, about: dict[str, Any] | None = None) -> None:
        """Writes the heads into ``folder``, beside the trunk's checkpoint, which ``model/checkpoint.py`` saves."""
        weights = save({"head.weight": self.head.weight.detach(), "mean": self.mean_F, "scale": self.scale_F})
        facts = {
            "weights": hashlib.sha256(weights).hexdigest(),  # ties the two files to each other
            "centre": self.centre,
            "spread": self.spread,
            "heads": self.head.out_features,
            "features": self.head.in_features,
            "trunk": fingerprint(self.trunk),
            "about": about or {},
        }
        with writing_to(folder):
            folder.mkdir(parents=True, exist_ok=True)
            durable.write(folder / WEIGHTS, weights)
            durable.write(folder / ABOUT, json.dumps(facts, indent=1).encode())

    @staticmethod
    def load(folder: Path, trunk: Transformer) -> "RewardModel":
        """Loads the heads in ``folder``. KlypeError when they are missing or were fitted on another trunk."""
        try:
            facts = parse_finite((folder / ABOUT).read_bytes())
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


# scalar features beside the states: sum, minimum and mean of log p, maximum and sum of surprise, length
SCALARS = 6
GROUP = 16  # the most answers that share a computed prompt
ROWS_TOKENS = 16_384  # padded tokens per forward pass: small enough to stay in a laptop's cache
OPENING = 3  # tokens
LOGP_FLOOR = -10.0  # one impossible word must not outweigh everything else
UNEXPECTED_CEILING = 6.0


@torch.no_grad()
def answer_features(
    trunk: Transformer, prompts: Sequence[Ids], answers: Sequence[Ids], at_once: int = ROWS_TOKENS
) -> torch.Tensor:
    """Features [N, 3 D + 6] of answers, float32, on the CPU: the state at the last token, the mean state over the
    answer's tokens, that over its first three (how it begins tells its manner, and a mean over all is diluted by its
    length); then the sum, minimum and mean of log p, the maximum (at least 0) and the sum of the positive parts of
    surprise - entropy, and the number of tokens.

    Rows are computed in order of length, at most ``at_once`` padded tokens per forward pass, and a prompt once for all
    of its answers; apart from rounding, a row does not depend on the others. Prompts must not be empty. An empty answer
    has the prompt's last state and zeros.
    """
    if not prompts:
        raise AssertionError("features of no answers were asked for")
    order, rows = list[int](), list[torch.Tensor]()
    for groups in _chunks(prompts, answers, at_once):
        chosen = [i for group in groups for i in group]
        order += chosen
        rows.append(_features(trunk, [prompts[i] for i in chosen], [answers[i] for i in chosen], len(groups[0])))
    return torch.cat(rows).cpu()[torch.tensor(order).argsort()]


def _chunks(prompts: Sequence[Ids], answers: Sequence[Ids], at_once: int) -> list[list[list[int]]]:
    """Indices of answers, grouped by prompt: chunks of equally large groups of similar length, with at most
    ``at_once`` padded positions."""
    of: dict[tuple[int, ...], list[int]] = {}
    for i, prompt in enumerate(prompts):
        of.setdefault(tuple(prompt), []).append(i)
    together = [group[at : at + GROUP] for group in of.values() for at in range(0, len(group), GROUP)]
    sized = [(len(group), len(prompts[group[0]]), max(len(answers[i]) for i in group) + 1, group) for group in together]
    chunks: list[list[list[int]]] = []
    size = longest_prompt = longest = 0
    for number, shared, own, group in sorted(sized, key=lambda row: (row[0], row[1] + row[2])):
        longest_prompt, longest = max(longest_prompt, shared), max(longest, own)
        if number != size or (len(chunks[-1]) + 1) * (longest_prompt + number * longest) > at_once:
            chunks.append([])
            size, longest_prompt, longest = number, shared, own
        chunks[-1].append(group)
    return chunks


def _features(trunk: Transformer, prompts: Sequence[Ids], answers: Sequence[Ids], group: int) -> torch.Tensor:
    """Features of answers, of which each ``group`` consecutive ones have the same prompt. A: tokens of the longest
    answer, at least 1."""
    device = trunk.device
    texts = [torch.tensor([*prompt, *answer]) for prompt, answer in zip(prompts, answers, strict=True)]
    tokens_BT = nn.utils.rnn.pad_sequence(texts, batch_first=True).to(device)
    prompt_B, length_B = (torch.tensor([len(ids) for ids in each], device=device) for each in (prompts, answers))
    # columns: the prompt's last token, then the answer's
    column_A1 = torch.arange(max(1, int(length_B.max())) + 1, device=device)
    at_BA1 = (prompt_B[:, None] - 1 + column_A1).clamp(max=tokens_BT.shape[1] - 1)
    wanted_BA1 = column_A1 <= length_B[:, None]
    wanted_BT = torch.zeros_like(tokens_BT, dtype=torch.bool)
    wanted_BT[torch.arange(len(texts), device=device)[:, None].expand_as(at_BA1)[wanted_BA1], at_BA1[wanted_BA1]] = True
    prefixes = SharedPrefixes(group, prompt_B[::group]) if group > 1 else None
    states_ND = wide(trunk.states_at(tokens_BT, wanted_BT, prefixes=prefixes))
    states_BAD = states_ND.new_zeros(*wanted_BA1.shape, states_ND.shape[1])
    states_BAD[wanted_BA1] = states_ND
    answer_BA = wanted_BA1[:, 1:]
    last_BD = states_BAD[torch.arange(len(texts), device=device), length_B]
    length_B1 = length_B[:, None].to(states_BAD.dtype)

    def mean(where_BA: torch.Tensor) -> torch.Tensor:
        mean_BD = (states_BAD[:, 1:] * where_BA[..., None]).sum(1) / where_BA.sum(1).clamp(min=1)[:, None]
        return torch.where(length_B1 > 0, mean_BD, last_BD)

    logp_NV = wide(trunk.unembed(states_BAD[:, :-1][answer_BA])).log_softmax(-1)
    token_N = tokens_BT.gather(1, at_BA1[:, 1:])[answer_BA]
    chosen_N = logp_NV.gather(1, token_N[:, None])[:, 0].clamp(min=LOGP_FLOOR)
    entropy_N = -(logp_NV.exp() * logp_NV.clamp(min=-1e4)).sum(1)
    logp_BA = torch.zeros_like(states_BAD[:, 1:, 0]).masked_scatter(answer_BA, chosen_N)
    unexpected_BA = torch.zeros_like(logp_BA).masked_scatter(answer_BA, -chosen_N - entropy_N)
    highest_B = unexpected_BA.max(1).values.clamp(min=0, max=UNEXPECTED_CEILING)
    logps = logp_BA.sum(1), logp_BA.min(1).values, logp_BA.sum(1) / answer_BA.sum(1).clamp(min=1)
    scalars = *logps, highest_B, unexpected_BA.clamp(min=0).sum(1)
    opening_BA = answer_BA & (column_A1[:-1] < OPENING)
    return torch.cat([last_BD, mean(answer_BA), mean(opening_BA), torch.stack(scalars, 1), length_B1], 1).float()


def fit_reward(
    trunk: Transformer,
    rankings: Sequence[RankedAnswers],
    settings: RewardSettings,
    folder: Path,
    session: TrainSession | None = None,
) -> RewardModel:
    """Fits heads on ``trunk`` (copied, frozen) to the rankings with ``train``; metrics and states go to ``folder``.

    Rankings of fewer than two candidates are left out. Raises NoPreferencesError; see ``informative_rankings``.
    """
    useful = informative_rankings(rankings)
    model = RewardModel(trunk, settings.heads)
    features_NF = answer_features(trunk, *_flat(useful))
    model.mean_F = features_NF.mean(0)
    model.scale_F = features_NF.std(0) + 1e-3
    features_NF = model.standardise(features_NF)
    batches = FeatureBatches(features_NF, useful, settings)
    train(model.head, reward_loss, batches, settings, folder, session)
    with torch.no_grad():
        raw_N = model.head(features_NF).mean(1)
    model.centre, model.spread = float(raw_N.mean()), max(float(raw_N.std()), 1e-6)
    return model


def reward_loss(head: nn.Module, batch: Batch) -> Loss:
    """The reward model's loss: -log p of the rankings (Plackett-Luce) under the scores of each head, summed over the
    heads. ``extra`` has ``features_QKF``, ``ranks_QK`` and ``weights_QH`` (the bootstrap).
    """
    scores_QKH, ranks_QK = head(batch.extra["features_QKF"]), batch.extra["ranks_QK"]
    by_head = zip(scores_QKH.unbind(-1), batch.extra["weights_QH"].unbind(1), strict=True)
    losses = [plackett_luce(scores_QK, ranks_QK, weights_Q) for scores_QK, weights_Q in by_head]
    total, count = (torch.stack(each).sum() for each in zip(*((one.total, one.count) for one in losses), strict=True))
    right, pairs = pairs_right(scores_QKH.detach().mean(-1), ranks_QK)
    return Loss(total, count, {"pair_accuracy": right, "pair_accuracy_count": pairs})


def pairs_by_ranking(model: RewardModel, rankings: Sequence[RankedAnswers]) -> list[tuple[float, float]]:
    """The result of ``pairs_right`` for each ranking."""
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


class FeatureBatches(NumberedBatches):
    """Random batches of rankings as features, padded to the longest; batch i is drawn with the seed (seed, i)."""

    def __init__(self, features_NF: torch.Tensor, rankings: Sequence[RankedAnswers], settings: RewardSettings) -> None:
        numbers = [len(ranking.answers) for ranking in rankings]
        pad = nn.utils.rnn.pad_sequence
        self.features_QKF = pad(list(torch.split(features_NF, numbers)), batch_first=True)
        self.ranks_QK = pad([torch.tensor(r.ranks) for r in rankings], batch_first=True, padding_value=-1)
        self.settings = settings
        generator = torch.Generator().manual_seed(settings.seed)
        shape = (len(rankings), settings.heads)
        drawn_QH = torch.empty(shape).exponential_(generator=generator)  # the Bayesian bootstrap
        self.weights_QH = drawn_QH if settings.heads > 1 else torch.ones(shape)

    def batch(self, index: int) -> Batch:
        generator = torch.Generator().manual_seed((self.settings.seed << 32) + index)
        chosen = torch.randint(0, len(self.ranks_QK), (self.settings.questions,), generator=generator)
        ranks_QK = self.ranks_QK[chosen]
        extra = {"features_QKF": self.features_QKF[chosen], "weights_QH": self.weights_QH[chosen]}
        return Batch(ranks_QK, ranks_QK, torch.ones_like(ranks_QK), {**extra, "ranks_QK": ranks_QK})


def _flat(rankings: Sequence[RankedAnswers]) -> tuple[list[Ids], list[Ids]]:
    """Prompts and answers, ranking by ranking."""
    return [r.prompt for r in rankings for _ in r.answers], [a for r in rankings for a in r.answers]


def bias_audit(
    scores: Sequence[float], quality: Sequence[float], traits: Mapping[str, Sequence[float]], questions: Sequence[int]
) -> dict[str, Figure]:
    """Partial correlation of the scores with each trait, given the annotator's ``quality``, within questions.

    All are centred within their question first, then ``quality`` is regressed out of scores and trait. 0: the model
    likes the trait only as much as the annotator does. 95 % intervals are by Fisher's z with the remaining degrees of
    freedom; where a trait or the scores do not vary there is no value.
    """
    groups = np.unique(np.asarray(questions), return_inverse=True)[1]
    sizes = np.bincount(groups)
    free = len(groups) - len(sizes) - 1

    def centred(values: Sequence[float]) -> Floats:
        return np.asarray(values - (np.bincount(groups, values) / sizes)[groups])

    liked = centred(quality)
    variance = float(liked @ liked)

    def beside_quality(values: Sequence[float]) -> Floats:
        """Residuals of the values after regression on the annotator's quality."""
        own = centred(values)
        return own if variance < 1e-12 else np.asarray(own - liked * float(liked @ own) / variance)

    own, found = beside_quality(scores), dict[str, Figure]()
    for name, trait in traits.items():
        other = beside_quality(trait)
        length = float(np.linalg.norm(own) * np.linalg.norm(other))
        if length < 1e-12 or free < 4:
            why = "nothing varies within a question" if length < 1e-12 else "too few answers"
            found[name] = Figure(None, n=len(own), why=why)
            continue
        value = float(np.clip(own @ other / length, -1.0, 1.0))
        middle, half = math.atanh(min(max(value, -1 + 1e-12), 1 - 1e-12)), 1.96 / math.sqrt(free - 2)
        low, high = min(value, math.tanh(middle - half)), max(value, math.tanh(middle + half))
        found[name] = Figure(value, low, high, len(own), "partial correlation")
    return found


UNFINISHED = -1.0  # added to the score of an answer that did not end, as alignment does


@dataclass(frozen=True, slots=True)
class BestOfN:
    """Index of the best of n answers, and all scores. ``kl_most``: an upper bound on the KL of best-of-n from the
    model, log n - (n - 1)/n nats per answer (Beirami et al. 2024, arXiv:2401.01879)."""

    chosen: int
    scores: tuple[float, ...]

    @property
    def kl_most(self) -> float:
        n = len(self.scores)
        return math.log(n) - (n - 1) / n


def open_reward_model(found: ModelFiles, device: torch.device | None = None) -> RewardModel:
    """Loads the reward model of the run that a model belongs to. UsageError when there is none."""
    if found.run is None or not (found.run / "reward" / ABOUT).exists():
        raise UsageError(
            f"{found.folder} belongs to no run with a reward model, which the best of several answers needs.",
            "Give a run's folder, after: klype train reward --from RUN.",
        )
    return RewardModel.load(found.run / "reward", checkpoint.load(found.run / "reward", device=device).model)


def best_of_n(judge: RewardModel, traces: Sequence[Trace]) -> BestOfN:
    """The answer with the highest score, the first of equal ones."""
    scores = judge.score([t.prompt for t in traces], [t.tokens for t in traces]).tolist()
    adjusted = [s + UNFINISHED * (t.ended != "stop") for s, t in zip(scores, traces, strict=True)]
    if not all(map(math.isfinite, adjusted)):
        raise KlypeError("The reward model's score of an answer is not a finite number.", "Train it again.")
    return BestOfN(max(range(len(adjusted)), key=lambda i: adjusted[i]), tuple(adjusted))
