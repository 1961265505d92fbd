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
from klype.errors import KlypeError
from klype.train.features import Ids
from klype.train.rewards import Ranked
from klype.train.rollout import answers_batch
from klype.train.scoring import score_answers
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
        self.rankings = [r for r in rankings if len(r.answers) > 1 and len(set(r.ranks)) > 1]
        if not self.rankings:
            raise KlypeError(
                "The rankings teach nothing: each has one candidate only, or all of its candidates are tied.",
                "Rank questions whose candidates differ.",
            )
        self.reference, self.settings, self.rehearsal, self.index = reference, settings, rehearsal, 0
        self._number = min(settings.questions, len(self.rankings))
        self._known: dict[int, torch.Tensor] = {}

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
        """K rows a question; a ranking of fewer has its first answer again, marked absent."""
        most = max(len(self.rankings[i].answers) for i in chosen)
        prompts: list[Ids] = []
        answers: list[Ids] = []
        reference: list[torch.Tensor] = []
        ranks_QK = torch.full((len(chosen), most), -1)
        for row, i in enumerate(chosen):
            ranked = self.rankings[i]
            number = len(ranked.answers)
            padded = [*ranked.answers, *[ranked.answers[0]] * (most - number)]
            prompts += [ranked.prompt] * most
            answers += padded
            known = self._reference(i)
            reference.append(torch.cat([known, known[:1].expand(most - number)]))
            ranks_QK[row, :number] = torch.tensor(ranked.ranks)
        batch = answers_batch(prompts, answers, most)
        batch.extra.update(ranks_QK=ranks_QK, reference_logp_B=torch.cat(reference))
        return batch

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
            with torch.no_grad():
                mismatched.extra["reference_logp_B"] = score_answers(self.reference, mismatched).logp_BT.sum(1)
            batch.extra["mismatched"] = mismatched
        return batch

    @torch.no_grad()
    def _reference(self, i: int) -> torch.Tensor:
        """[K]: log-probabilities of ranking i's answers under the reference, computed once."""
        if i not in self._known:
            ranked = self.rankings[i]
            number = len(ranked.answers)
            batch = answers_batch([ranked.prompt] * number, ranked.answers, number)
            self._known[i] = score_answers(self.reference, batch).logp_BT.sum(1)
        return self._known[i]


def marks(ranks: Sequence[int]) -> list[int]:
    """1 for an answer with more worse ones than better ones, -1 the other way round, 0 in the middle."""
    wins = [sum(own < other for other in ranks) - sum(own > other for other in ranks) for own in ranks]
    return [(w > 0) - (w < 0) for w in wins]
