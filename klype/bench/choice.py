"""Does it pay to choose what is ranked? Rankings that active and random choice need for the same reward model.

A pool of rankings is uncovered twenty at a time: those whose comparisons would tell the ensemble the most, or any.
After each step an ensemble is fitted to what is uncovered, and held-out pair accuracy is taken. Everything is seeded,
and both ways start from the same rankings.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from klype.errors import KlypeError
from klype.preferences.candidates import most_informative
from klype.runs.choosing import Reader, by_people
from klype.runs.ranking import open_store
from klype.runs.say import Say
from klype.train.features import answer_features
from klype.train.rewards import Ranked, RewardModel, RewardSettings, fit_heads
from klype.values import Figure, Floats

RESAMPLES = 2000


@dataclass(frozen=True, slots=True)
class ChoiceSettings:
    """``step`` rankings are uncovered at a time, up to ``most``; the question is how many active choice needs for what
    random choice reaches with half of ``most``."""

    step: int = 20
    most: int = 160
    seeds: int = 6
    heads: int = 8
    fit_steps: int = 150
    seed: int = 0

    @property
    def sizes(self) -> list[int]:
        return list(range(self.step, self.most + 1, self.step))


@dataclass(frozen=True, slots=True)
class _Seen:
    """Rankings with the features of their answers."""

    rankings: list[Ranked]
    features: list[torch.Tensor]

    def of(self, chosen: Sequence[int]) -> tuple[torch.Tensor, list[Ranked]]:
        return torch.cat([self.features[i] for i in chosen]), [self.rankings[i] for i in chosen]


def choice_of(run: Path, settings: ChoiceSettings, say: Say) -> dict[str, Any]:
    """``choice`` among a run's own rankings: those of people where there are any, else the simulated annotator's."""
    reader = Reader.of(run)
    with open_store(run / "rank") as store:
        known = by_people(store.entries())
    train, held_out = (
        reader.ranked([e.ranking() for e in known if e.kind != "skip" and e.asked.part == part])
        for part in ("train", "held-out")
    )
    return {"run": str(run), "train": len(train), "held_out": len(held_out)} | choice(
        reader.trunk, train, held_out, settings, say
    )


def choice(
    trunk: nn.Module, train: Sequence[Ranked], held_out: Sequence[Ranked], settings: ChoiceSettings, say: Say
) -> dict[str, Any]:
    """The curves of both ways over the seeds, and the ratio with its interval over seeds."""
    pool, judged = _seen(trunk, train), _seen(trunk, held_out)
    if len(pool.rankings) < 2 * settings.most:
        raise KlypeError(
            f"There are {len(pool.rankings)} rankings to choose from, and {2 * settings.most} are needed.",
            "Rank more (klype rank), or give a smaller --most.",
        )
    curves: dict[str, list[list[float]]] = {"active": [], "random": []}
    for number in range(settings.seeds):
        for how, rows in curves.items():
            rows.append(_curve(trunk, pool, judged, settings, (how == "active", settings.seed + number)))
        say.note(
            f"seed {number + 1} of {settings.seeds}: " + ", ".join(f"{h} {r[-1][-1]:.3f}" for h, r in curves.items())
        )
    active, random = np.array(curves["active"]), np.array(curves["random"])
    return {
        "sizes": settings.sizes,
        "accuracy": {how: np.mean(rows, 0).round(4).tolist() for how, rows in curves.items()},
        "seeds": settings.seeds,
        "reached": float(random.mean(0)[_half(settings)]),
        "with_random": settings.sizes[_half(settings)],
        "share_of_rankings": _share(active, random, settings).json(),
        "gain_at_most": _gain(active[:, -1] - random[:, -1], settings.seed).json(),
    }


def _seen(trunk: nn.Module, rankings: Sequence[Ranked]) -> _Seen:
    useful = [r for r in rankings if len(r.answers) > 1 and len(set(r.ranks)) > 1]
    if not useful:
        raise KlypeError("There are no rankings in which one answer is better than another.", "Rank some: klype rank.")
    prompts = [r.prompt for r in useful for _ in r.answers]
    features_NF = answer_features(trunk, prompts, [a for r in useful for a in r.answers])
    ends = np.cumsum([len(r.answers) for r in useful])[:-1].tolist()
    return _Seen(useful, list(features_NF.tensor_split(ends)))


def _curve(
    trunk: nn.Module, pool: _Seen, judged: _Seen, settings: ChoiceSettings, how: tuple[bool, int]
) -> list[float]:
    active, seed = how
    left = [int(i) for i in np.random.default_rng(seed).permutation(len(pool.rankings))]
    chosen: list[int] = []
    accuracies = []
    for _ in settings.sizes:
        chosen, left = [*chosen, *left[: settings.step]], left[settings.step :]
        model = _fitted(trunk, pool, chosen, settings, seed)
        accuracies.append(_accuracy(model, judged))
        if active:
            groups = [model.scores_of(pool.features[i]) for i in left]
            left = [left[i] for i in most_informative(groups)]
    return accuracies


def _fitted(trunk: nn.Module, pool: _Seen, chosen: list[int], settings: ChoiceSettings, seed: int) -> RewardModel:
    fit = RewardSettings(steps=settings.fit_steps, heads=settings.heads, seed=seed)
    with tempfile.TemporaryDirectory() as folder:
        return fit_heads(trunk, *pool.of(chosen), fit, Path(folder))


def _accuracy(model: RewardModel, judged: _Seen) -> float:
    right = pairs = 0.0
    for ranking, features_KF in zip(judged.rankings, judged.features, strict=True):
        score_K = model.scores_of(features_KF).mean(1)
        rank_K = np.array(ranking.ranks)
        better_KK = rank_K[:, None] < rank_K[None, :]
        above_KK = score_K[:, None] - score_K[None, :]
        right += float(((above_KK > 0) + 0.5 * (above_KK == 0))[better_KK].sum())
        pairs += float(better_KK.sum())
    return right / pairs


def _half(settings: ChoiceSettings) -> int:
    return max(0, len(settings.sizes) // 2 - 1)


def _share(active: Floats, random: Floats, settings: ChoiceSettings) -> Figure:
    """Rankings that active choice needs for random choice's accuracy at half of the most, as a share of those."""
    rng = np.random.default_rng(settings.seed)
    drawn = rng.integers(0, len(active), (RESAMPLES, len(active)))
    value = _needed(active.mean(0), random.mean(0), settings)
    shares = np.array([_needed(active[rows].mean(0), random[rows].mean(0), settings) for rows in drawn])
    low, high = (float(x) for x in np.quantile(shares, [0.025, 0.975]))
    return Figure(value, min(low, value), max(high, value), len(active), "share of rankings")


def _needed(active: Floats, random: Floats, settings: ChoiceSettings) -> float:
    """Where the curve of active choice first is as high, between two sizes on a line; the most when it never is."""
    sizes, half = settings.sizes, _half(settings)
    wanted = float(random[half])
    for i, size in enumerate(sizes):
        if active[i] < wanted:
            continue
        if i == 0:
            return size / sizes[half]
        part = (wanted - active[i - 1]) / (active[i] - active[i - 1])
        return float(sizes[i - 1] + part * (size - sizes[i - 1])) / sizes[half]
    return sizes[-1] / sizes[half]


def _gain(difference: Floats, seed: int) -> Figure:
    rng = np.random.default_rng(seed)
    means = difference[rng.integers(0, len(difference), (RESAMPLES, len(difference)))].mean(1)
    value = float(difference.mean())
    low, high = (float(x) for x in np.quantile(means, [0.025, 0.975]))
    return Figure(value, min(low, value), max(high, value), len(difference), "pair accuracy")
