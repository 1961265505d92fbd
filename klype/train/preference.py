"""Learning from rankings: Plackett-Luce with ties, and the preference losses DPO, IPO and KTO.

``ranks_QK`` holds, for each of Q questions, the place of each of K candidates: 0 best, equal numbers tied, -1 absent.
"""

import math
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from pydantic import Field
from torch import nn

from klype import config
from klype.data.seeds import Permutation, mix
from klype.errors import KlypeError
from klype.train.objectives import answers_batch, reference_logp, score_answers
from klype.values import Batch, Loss, NumberedBatches


def plackett_luce(scores_QK: torch.Tensor, ranks_QK: torch.Tensor, weights_Q: torch.Tensor | None = None) -> Loss:
    """-log of the probability of the rankings when candidates are chosen one by one in proportion to exp(score).

    Ties in Efron's form (1977): the l-th of d tied candidates has l/d of the tied weight taken from its denominator,
    so that a tied pair pulls its scores together. total: Σ over questions; count: Σ (candidates - 1), both weighted.
    """
    present_QK = ranks_QK >= 0
    # each candidate is in its own denominators, so that an absent one's logarithm is finite; it is masked out below
    itself_KK = torch.eye(ranks_QK.shape[1], dtype=torch.bool, device=ranks_QK.device)
    pair_QKK = present_QK[:, :, None] & present_QK[:, None, :]
    left_QKK = (pair_QKK & (ranks_QK[:, None, :] >= ranks_QK[:, :, None])) | itself_KK
    tied_QKK = (pair_QKK & (ranks_QK[:, None, :] == ranks_QK[:, :, None])) | itself_KK
    scores_Q1K = scores_QK[:, None, :]
    log_left_QK, log_tied_QK = (
        scores_Q1K.masked_fill(~those_QKK, -math.inf).logsumexp(-1) for those_QKK in (left_QKK, tied_QKK)
    )
    earlier_QK = (tied_QKK & itself_KK.new_ones(itself_KK.shape).tril(-1)).sum(-1)
    share_QK = earlier_QK.to(scores_QK.dtype) / tied_QKK.sum(-1)
    # the tied weight is at most all of the rest, and the share below 1, so the logarithm's argument is positive
    log_rest_QK = log_left_QK + torch.log1p(-share_QK * (log_tied_QK - log_left_QK).exp())
    loss_Q = ((log_rest_QK - scores_QK) * present_QK).sum(1)
    return _weighted_loss(loss_Q, (present_QK.sum(1) - 1).clamp(min=0), weights_Q)


def _weighted_loss(loss_Q: torch.Tensor, count_Q: torch.Tensor, weights_Q: torch.Tensor | None) -> Loss:
    count_Q = count_Q.to(loss_Q.dtype)
    if weights_Q is None:
        return Loss(loss_Q.sum(), count_Q.sum())
    return Loss(loss_Q @ weights_Q, count_Q @ weights_Q)


class PreferenceSettings(config.Settings):
    """``beta``: strength of the KL penalty to the reference. The two weights are KTO's for good and bad answers."""

    kind: Literal["dpo", "ipo", "kto"] = "dpo"
    beta: float = Field(default=0.1, gt=0)
    good_weight: float = Field(default=1.0, ge=0)
    bad_weight: float = Field(default=1.0, ge=0)


def preference(model: nn.Module, batch: Batch, settings: PreferenceSettings | None = None) -> Loss:
    """Preference losses without a reward model, whose scores are log-ratios Δ = log π(answer) - log π_ref(answer).

    Rows are the K candidates of each question in turn; ``extra["reference_logp_B"]`` are log-probabilities of whole
    answers under the reference, ``extra["ranks_QK"]`` the rankings. DPO is Plackett-Luce on βΔ (Rafailov et al. 2023,
    appendix; pairs are K = 2), IPO is (Δ_w - Δ_l - 1/2β)² over all pairs (Azar et al. 2023). KTO uses
    ``extra["good_B"]`` (bool) instead of rankings and the baseline of ``extra["mismatched"]``, a batch of answers to
    other questions; without that it is 0 (Ethayarajh et al. 2024).
    """
    settings = settings or PreferenceSettings()
    ratio_B = _log_ratio(model, batch)
    if settings.kind == "kto":
        return _kto(ratio_B, batch, model, settings)
    ranks_QK = batch.extra["ranks_QK"]
    ratio_QK = ratio_B.view(ranks_QK.shape)
    if settings.kind == "dpo":
        loss = plackett_luce(settings.beta * ratio_QK, ranks_QK)
    else:
        difference_P = (ratio_QK[:, :, None] - ratio_QK[:, None, :])[_better(ranks_QK)]
        loss_P = (difference_P - 1 / (2 * settings.beta)) ** 2
        loss = Loss(loss_P.sum(), loss_P.new_tensor(float(loss_P.numel())))
    right, pairs = pairs_right(ratio_QK.detach(), ranks_QK)
    return Loss(loss.total, loss.count, {"pair_accuracy": right, "pair_accuracy_count": pairs})


def pairs_right(scores_QK: torch.Tensor, ranks_QK: torch.Tensor) -> tuple[float, float]:
    """(number of untied pairs that the scores order correctly, equal scores counting half; number of untied pairs)."""
    better_QKK = _better(ranks_QK)
    difference_QKK = scores_QK[:, :, None] - scores_QK[:, None, :]
    right = ((difference_QKK > 0) + 0.5 * (difference_QKK == 0))[better_QKK].sum()
    return float(right), float(better_QKK.sum())


def _better(ranks_QK: torch.Tensor) -> torch.Tensor:
    """[Q, K, K]: whether candidate i is ranked above candidate j, both present."""
    present_QK = ranks_QK >= 0
    return (ranks_QK[:, :, None] < ranks_QK[:, None, :]) & present_QK[:, :, None] & present_QK[:, None, :]


def _kto(ratio_B: torch.Tensor, batch: Batch, model: nn.Module, settings: PreferenceSettings) -> Loss:
    other: Batch | None = batch.extra.get("mismatched")
    with torch.no_grad():
        # KTO's reference point: KL is not negative, its estimate may be
        baseline = 0.0 if other is None else _log_ratio(model, other).mean().clamp(min=0)
    good_B = batch.extra["good_B"]
    sign_B = torch.where(good_B, 1.0, -1.0).to(ratio_B.dtype)
    weight_B = torch.where(good_B, settings.good_weight, settings.bad_weight).to(ratio_B.dtype)
    loss_B = weight_B * (1 - torch.sigmoid(sign_B * settings.beta * (ratio_B - baseline)))
    return Loss(loss_B.sum(), ratio_B.new_tensor(float(loss_B.numel())))


def _log_ratio(model: nn.Module, batch: Batch) -> torch.Tensor:
    logp_B = score_answers(model, batch).logp_BT.sum(1)
    reference_B: torch.Tensor = batch.extra["reference_logp_B"]
    return logp_B - reference_B.to(logp_B.dtype)


@dataclass(frozen=True, slots=True)
class RankedAnswers:
    """Answers to one prompt as token ids; ``ranks``: 0 best, equal numbers tied."""

    prompt: tuple[int, ...]
    answers: tuple[tuple[int, ...], ...]
    ranks: tuple[int, ...]


class NoPreferencesError(KlypeError):
    """All rankings have a single candidate or only ties."""


def informative_rankings(rankings: Iterable[RankedAnswers]) -> list[RankedAnswers]:
    """The rankings of two or more candidates. Raises NoPreferencesError when all candidates of each are tied."""
    found = [ranking for ranking in rankings if len(ranking.answers) > 1]
    if not any(len(set(ranking.ranks)) > 1 for ranking in found):
        raise NoPreferencesError(
            "The rankings teach nothing: each has one candidate only, or all of its candidates are tied.",
            "Rank questions whose candidates differ.",
        )
    return found


class RankingSettings(config.Settings):
    """``questions``: rankings per batch. ``marks``: answers are marked good or bad (KTO) instead of ordered."""

    questions: int = Field(default=16, ge=1)
    marks: bool = False
    seed: int = 0


class RankingBatches(NumberedBatches):
    """Endless batches of rankings, each once per epoch in a new order, with the reference's log-probabilities."""

    def __init__(self, rankings: Sequence[RankedAnswers], reference: nn.Module, settings: RankingSettings) -> None:
        self.rankings = [r for r in informative_rankings(rankings) if len(set(r.ranks)) > 1]
        self.reference, self.settings = reference, settings
        self._number = min(settings.questions, len(self.rankings))
        self._known: dict[int, torch.Tensor] = {}
        self._block: dict[int, int] = {}

    def batch(self, index: int) -> Batch:
        chosen = self._draw_indices(index)
        if self.settings.marks:
            return self._marked_batch(chosen)
        batch = self._rows(chosen)
        most = int(batch.extra["group"])
        known = ((known_K, most - len(known_K)) for known_K in map(self._reference, chosen))
        rows = [torch.cat([known_K, known_K[:1].expand(more)]) for known_K, more in known]
        ranks = [torch.tensor(self.rankings[i].ranks) for i in chosen]
        ranks_QK = nn.utils.rnn.pad_sequence(ranks, batch_first=True, padding_value=-1)
        batch.extra.update(ranks_QK=ranks_QK, reference_logp_B=torch.cat(rows))
        return batch

    def _draw_indices(self, number: int, last: int = sys.maxsize) -> list[int]:
        """Indices of the rankings of batch ``number``; it ends before place ``last``, counted over all batches."""
        places = range(number * self._number, min((number + 1) * self._number, last))
        epochs = (divmod(place, len(self.rankings)) for place in places)
        return [Permutation(len(self.rankings), mix(self.settings.seed, epoch, 13))(at) for epoch, at in epochs]

    def _rows(self, chosen: Sequence[int]) -> Batch:
        """K rows per question; shorter rankings repeat their first answer."""
        ranked = [self.rankings[i] for i in chosen]
        most = max(len(one.answers) for one in ranked)
        answers = [answer for one in ranked for answer in (*one.answers, *one.answers[:1] * (most - len(one.answers)))]
        return answers_batch([one.prompt for one in ranked for _ in range(most)], answers, most)

    def _marked_batch(self, chosen: Sequence[int]) -> Batch:
        """Answers marked good or bad (see ``marks``), and mismatched ones: each prompt with another's answer."""
        rows = [(i, k, mark) for i in chosen for k, mark in enumerate(marks(self.rankings[i].ranks)) if mark]
        prompts = [self.rankings[i].prompt for i, _, _ in rows]
        answers = [self.rankings[i].answers[k] for i, k, _ in rows]
        batch = answers_batch(prompts, answers)
        known = torch.stack([self._reference(i)[k] for i, k, _ in rows])
        batch.extra.update(reference_logp_B=known, good_B=torch.tensor([mark > 0 for *_, mark in rows]))
        if len(chosen) > 1:
            others = [self.rankings[j].answers[0] for j in (*chosen[1:], chosen[0])]
            mismatched = answers_batch([self.rankings[i].prompt for i in chosen], others)
            mismatched.extra["reference_logp_B"] = reference_logp(self.reference, mismatched).sum(1)
            batch.extra["mismatched"] = mismatched
        return batch

    def _reference(self, i: int) -> torch.Tensor:
        """[K]: log-probabilities of ranking i's answers under the reference, computed once."""
        if i not in self._known:
            # always computed together with the rest of its first batch, so that it rounds the same when resumed
            if not self._block:
                numbers = range(-(-len(self.rankings) // self._number))
                self._block = {one: n for n in numbers for one in self._draw_indices(n, len(self.rankings))}
            company = self._draw_indices(self._block[i], len(self.rankings))
            logp_QK = reference_logp(self.reference, self._rows(company)).sum(1).view(len(company), -1)
            for one, logp_K in zip(company, logp_QK, strict=True):
                self._known[one] = logp_K[: len(self.rankings[one].answers)]
        return self._known[i]


def marks(ranks: Sequence[int]) -> list[int]:
    """1 for an answer with more answers ranked below it than above it, -1 for the reverse, 0 for equally many."""
    wins = [sum(own < other for other in ranks) - sum(own > other for other in ranks) for own in ranks]
    return [(w > 0) - (w < 0) for w in wins]
