"""Batches of rankings for the methods that learn from them directly: DPO, IPO and KTO.

Everything random is a function of (seed, step), so that the step's number is the whole state: resumed = straight.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from pydantic import Field
from torch import nn

from klype import config
from klype.data.order import Permutation, mix
from klype.train.features import Ids
from klype.train.rewards import Ranked, teaching
from klype.train.rollout import answers_batch
from klype.train.scoring import reference_logp
from klype.values import Batch


class RankingSettings(config.Settings):
    """``questions`` rankings make a batch. ``marks``: good or bad answers one by one (KTO), instead of orders."""

    questions: int = Field(default=16, ge=1)
    marks: bool = False
    seed: int = 0


class RankingBatches:
    """Batch number i: the next rankings (each once, then all anew in another order), with the reference's opinion of
    every answer."""

    def __init__(
        self,
        rankings: Sequence[Ranked],
        reference: nn.Module,
        settings: RankingSettings,
        rehearsal: Callable[[int], Batch] | None = None,
    ) -> None:
        self.rankings = [r for r in teaching(rankings) if len(set(r.ranks)) > 1]
        self.reference, self.settings, self.rehearsal, self.index = reference, settings, rehearsal, 0
        self._number = min(settings.questions, len(self.rankings))
        self._known: dict[int, torch.Tensor] = {}
        self._block: dict[int, int] = {}

    def __iter__(self) -> RankingBatches:
        return self

    def __next__(self) -> Batch:
        chosen = [self._drawn(self.index * self._number + i) for i in range(self._number)]
        batch = self._marked(chosen) if self.settings.marks else self._ordered(chosen)
        if self.rehearsal is not None:
            batch.extra["rehearsal"] = self.rehearsal(self.index)
        self.index += 1
        return batch

    def state(self) -> dict[str, Any]:
        return {"index": self.index}

    def restore(self, state: dict[str, Any]) -> None:
        self.index = state["index"]

    def _drawn(self, place: int) -> int:
        """The ranking at this place of an endless row: all of them, in a new order, again and again."""
        epoch, at = divmod(place, len(self.rankings))
        return Permutation(len(self.rankings), mix(self.settings.seed, epoch, 13))(at)

    def _ordered(self, chosen: Sequence[int]) -> Batch:
        batch = self._rows(chosen)
        most = int(batch.extra["group"])
        reference_QK = torch.zeros(len(chosen), most)
        ranks_QK = torch.full((len(chosen), most), -1)
        for row, i in enumerate(chosen):
            known_K, ranks = self._reference(i), self.rankings[i].ranks
            reference_QK[row] = known_K[0]
            reference_QK[row, : len(ranks)] = known_K
            ranks_QK[row, : len(ranks)] = torch.tensor(ranks)
        batch.extra.update(ranks_QK=ranks_QK, reference_logp_B=reference_QK.flatten())
        return batch

    def _rows(self, chosen: Sequence[int]) -> Batch:
        """K rows a question; a ranking of fewer has its first answer again."""
        most = max(len(self.rankings[i].answers) for i in chosen)
        prompts: list[Ids] = []
        answers: list[Ids] = []
        for ranked in (self.rankings[i] for i in chosen):
            prompts += [ranked.prompt] * most
            answers += [*ranked.answers, *[ranked.answers[0]] * (most - len(ranked.answers))]
        return answers_batch(prompts, answers, most)

    def _marked(self, chosen: Sequence[int]) -> Batch:
        """Answers in the upper half of their ranking are good, those in the lower bad; beside them others' answers."""
        rows = [(i, k, mark) for i in chosen for k, mark in enumerate(marks(self.rankings[i].ranks)) if mark]
        prompts = [self.rankings[i].prompt for i, _, _ in rows]
        answers = [self.rankings[i].answers[k] for i, k, _ in rows]
        batch = answers_batch(prompts, answers)
        known = torch.stack([self._reference(i)[k] for i, k, _ in rows])
        batch.extra.update(reference_logp_B=known, good_B=torch.tensor([mark > 0 for *_, mark in rows]))
        if len(chosen) > 1:
            others = [*chosen[1:], chosen[0]]
            mismatched = answers_batch(
                [self.rankings[i].prompt for i in chosen], [self.rankings[j].answers[0] for j in others]
            )
            mismatched.extra["reference_logp_B"] = reference_logp(self.reference, mismatched).sum(1)
            batch.extra["mismatched"] = mismatched
        return batch

    def _reference(self, i: int) -> torch.Tensor:
        """[K]: log-probabilities of ranking i's answers under the reference, computed once."""
        if i not in self._known:
            self._compute(self._company(i))
        return self._known[i]

    def _company(self, i: int) -> list[int]:
        """Whom ranking i is computed with: always its first batch, so that it rounds the same when resumed."""
        if not self._block:
            self._block = {self._drawn(place): place // self._number for place in range(len(self.rankings))}
        begin = self._block[i] * self._number
        return [self._drawn(place) for place in range(begin, min(begin + self._number, len(self.rankings)))]

    def _compute(self, company: Sequence[int]) -> None:
        batch = self._rows(company)
        logp_QK = reference_logp(self.reference, batch).sum(1).view(len(company), -1)
        for i, logp_K in zip(company, logp_QK, strict=True):
            self._known[i] = logp_K[: len(self.rankings[i].answers)]


def marks(ranks: Sequence[int]) -> list[int]:
    """1 for an answer with more worse ones than better ones, -1 the other way round, 0 in the middle."""
    wins = [sum(own < other for other in ranks) - sum(own > other for other in ranks) for own in ranks]
    return [(w > 0) - (w < 0) for w in wins]
