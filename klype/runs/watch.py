"""Over-optimisation, seen while it happens: the annotator's own score beside the reward, over KL and length.

The watch asks the model as it is some questions that alignment never trains on, a dozen times in all. Where the two
scores part (the reward rises while the annotator's falls beyond chance) it ends the alignment.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from klype.examine.intervals import paired
from klype.examine.repetition import repeated
from klype.model.transformer import Transformer
from klype.runs.answering import answer_all, said
from klype.runs.best import Best
from klype.runs.subject import Subject
from klype.train.reward_functions import Asked, WeightedRewards
from klype.train.rollout import answers_batch, kl_an_answer
from klype.train.scoring import reference_logp
from klype.values import Batch, Batches, Question, Sampling, end

TIMES, ASKED = 10, 64


@dataclass(frozen=True, slots=True)
class Seen:
    """What the watch saw after ``step`` steps. ``truth`` is the annotator's score of each question's answer; ``reward``
    the mean of what is learnt from; ``kl`` in nats an answer; ``length`` in tokens; ``repetition`` a share of 4-grams;
    ``rewards`` each reward of each answer, by name."""

    step: int
    truth: tuple[float, ...]
    reward: float
    kl: float
    length: float
    finished: float
    repetition: float
    rewards: Mapping[str, Sequence[float]] = field(default_factory=dict)

    def json(self) -> dict[str, Any]:
        means = {name: float(np.mean(each)) for name, each in self.rewards.items()}
        return {**asdict(self), "truth": float(np.mean(self.truth)), "rewards": means}


class Parted(Exception):  # noqa: N818 - an end that was asked for
    """The two scores went apart: nothing more is to be learnt from this reward."""


@dataclass(frozen=True, slots=True)
class Watch:
    """Who is asked what, and who judges. ``rewards`` is None where nothing rewards an answer."""

    subject: Subject
    questions: Sequence[Question]
    reference: Transformer
    rewards: WeightedRewards | None

    @torch.no_grad()
    def look(self, model: Transformer, step: int) -> Seen:
        groups = answer_all(model, self.subject, self.questions, Sampling(temperature=1.0))
        traces = [group[0] for group in groups]
        prompts, answers = [t.prompt for t in traces], [t.tokens for t in traces]
        batch = answers_batch(prompts, answers)
        own, reference = (reference_logp(m, batch) for m in (model, self.reference))
        texts = [said(self.subject, t) for t in traces]
        ended = [t.ended == "stop" for t in traces]
        judged = zip(self.questions, texts, ended, strict=True)
        worth = self.rewards or WeightedRewards({})
        each = worth.each([Asked(p, q) for p, q in zip(prompts, self.questions, strict=True)], answers)
        repeats = [r for text in texts if (r := repeated(tuple(text.split()))) is not None]
        return Seen(
            step,
            tuple(self.subject.judge(q, text, done).score for q, text, done in judged),
            float(worth.total(each).mean()) if each else 0.0,
            kl_an_answer(own.float(), reference.float()),
            float(np.mean([len(a) for a in answers])),
            float(np.mean(ended)),
            float(np.mean(repeats)) if repeats else 0.0,
            {name: found.tolist() for name, found in each.items()},
        )


class Watched:
    """A stage's batches, with a look at the model every ``every`` steps; its weights at the best look are kept."""

    def __init__(
        self, batches: Batches, watch: Watch, model: Transformer, every: int, folder: Path, stops: bool
    ) -> None:
        self._batches, self._watch, self._model = batches, watch, model
        self.every, self._stops = every, stops
        self.seen: list[Seen] = []
        self._index = 0
        self._best = Best(model, folder)

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        if self._index % self.every == 0:
            self.look()
            if self._stops and parted(self.seen):
                raise Parted
        batch = next(self._batches)
        self._index += 1
        if self.seen:
            last = self.seen[-1]
            shown = {"truth": float(np.mean(last.truth)), "watched_kl": last.kl, "watched_reward": last.reward}
            batch.extra["metrics"] = {**batch.extra.get("metrics", {}), **shown}
        return batch

    def look(self) -> None:
        """Looks at the model as it is; the best so far is kept."""
        if self.seen and self.seen[-1].step == self._index:
            return
        self._model.eval()
        self.seen.append(self._watch.look(self._model, self._index))
        self._model.train()
        if best(self.seen) is self.seen[-1]:
            self._best.keep()

    def back_to_the_best(self) -> None:
        """KlypeError when a resumed run's best weights are gone from the disk."""
        self._best.restore(best(self.seen).step, "Align again.")

    def forget(self) -> None:
        """Removes what was kept on the disk: nothing is left to resume."""
        self._best.forget()

    def state(self) -> dict[str, Any]:
        if self.seen:
            self._best.save(best(self.seen).step)
        return {"index": self._index, "seen": [asdict(s) for s in self.seen], "batches": self._batches.state()}

    def restore(self, state: dict[str, Any]) -> None:
        self._index = state["index"]
        self.seen = [Seen(**{**s, "truth": tuple(s["truth"])}) for s in state["seen"]]
        self._batches.restore(state["batches"])

    def close(self) -> None:
        end(self._batches)


def best(seen: Sequence[Seen]) -> Seen:
    """The look at which the annotator was happiest; the first of equals."""
    return max(seen, key=lambda s: float(np.mean(s.truth)))


def parted(seen: Sequence[Seen]) -> bool:
    """The annotator likes the newest answers less than the best ones, beyond chance; the reward is no less."""
    top, last = best(seen), seen[-1]
    if last is top or last.reward < top.reward:
        return False
    high = paired(top.truth, last.truth, range(len(top.truth))).high
    return high is not None and high < 0
