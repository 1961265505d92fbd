"""One seed: a model trained on documents, every method that goes on from it, each kept as soon as it is measured.

A folder cells/SEED holds a JSON file a method, and under ``models`` the first model and the teachers with theirs.
"""

from __future__ import annotations

import copy
import json
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from klype.answers.traces import replace as write
from klype.data.order import mix
from klype.examine.feedback import FeedbackSettings
from klype.examine.truth import Truth as KnownTruth
from klype.experiments.bias.cell import Cell
from klype.experiments.bias.corpus import Corpus, Test
from klype.experiments.bias.lab import Learnt
from klype.experiments.mistakes.codec import Pupil, WordCodec
from klype.experiments.mistakes.course import BACK, Course, CourseSettings, Training, reader
from klype.experiments.mistakes.measure import Exam, Values, exam, look, text_values
from klype.experiments.mistakes.methods import BEFORE, Method, method
from klype.model.fused import fused
from klype.model.transformer import Transformer
from klype.train.loop import Session, Settings, train
from klype.train.optimizer import OptimizerSettings, fused_parts
from klype.train.schedule import Schedule
from klype.values import Batch, Batches


@dataclass(frozen=True, slots=True)
class Seed:
    """What a seed is taught and asked. ``test.documents``: as many as the feedback experiment is to have questions."""

    corpus: Corpus
    test: Test
    beginning: Callable[[], KnownTruth | None]
    settings: CourseSettings
    feedback: FeedbackSettings
    seed: int
    folder: Path
    compiled: Path | None = None

    def run(self, names: Sequence[str]) -> None:
        """Teaches and measures what is not finished."""
        left = [name for name in (BEFORE, *names) if not finished(self.folder, (name,))]
        if not left:
            return
        corpus = replace(self.corpus, vocabulary=(*self.corpus.vocabulary, BACK))
        models = Cell(
            corpus,
            self.test,
            self.settings,
            len(corpus.train),
            self.seed,
            self.folder / "models",
            self.compiled,
        )
        models.folder.mkdir(parents=True, exist_ok=True)
        first = models.taught("one-hot").model
        assert isinstance(first, Transformer)
        codec = WordCodec(corpus.vocabulary, corpus.end, (corpus.train[0][0], corpus.size - 1))
        teachers = lambda: [models.taught("one-hot", k) for k in range(1, 1 + self.settings.teachers)]
        asked = self._exam(Pupil(first, codec), corpus)
        for name in left:
            began = time.perf_counter()
            pupil = Pupil(copy.deepcopy(first), codec)
            course = Course(corpus, self.settings, mix(self.seed, 21), pupil, self.beginning, teachers)
            row = None if name == BEFORE else method(name)
            flops = 0.0 if row is None else taught(course, row, self.compiled)
            pupil.refresh()
            values = self._values(pupil, asked, teachers, row is not None and row.back)
            about = {"method": name, "seed": self.seed, "flops": flops, "seconds": time.perf_counter() - began}
            write(self.folder / f"{name}.json", json.dumps(about | {"values": values}, allow_nan=False).encode())

    def _exam(self, pupil: Pupil, corpus: Corpus) -> Exam | None:
        if self.test.truth is None:
            return None
        settings = replace(self.feedback, seed=self.seed)
        return exam(self.test, lambda prompt: reader(self._truth, prompt), pupil, settings, corpus.size - 1)

    def _truth(self) -> KnownTruth:
        found = self.beginning()
        assert found is not None, "only the world knows its truth"
        return found

    def _values(
        self, pupil: Pupil, asked: Exam | None, teachers: Callable[[], list[Learnt]], takes_back: bool
    ) -> Values:
        if asked is None:
            back = pupil.model.config.vocab_size - 1
            return text_values(pupil, self.test, [one.model for one in teachers()], back)
        return look(pupil, asked, takes_back)


def taught(course: Course, row: Method, compiled: Path | None = None) -> float:
    """Goes on with the course's model by this method; FLOPs of it, what teachers and own texts took among them."""
    model, settings = course.pupil.model, course.settings
    model.fused = fused(compiled) if compiled else None
    torch.manual_seed(mix(course.seed, 22) % 2**63)
    made: Training = row.make(course)
    batches = Counted(made.batches)
    rate = settings.again * made.rate
    training = Settings(
        steps=row.times * settings.steps,
        optimizer=OptimizerSettings(
            matrix_rate=rate * settings.matrix_rate, rate=rate * settings.rate, decay=settings.decay
        ),
        schedule=Schedule(warmup=0.05, flat=0.1, floor=0.05),
        save_seconds=0.0,
    )
    with tempfile.TemporaryDirectory(prefix="klype-mistakes-") as folder:
        train(model, made.objective, batches, training, Path(folder), Session(parts=fused_parts(model.config)))
    model.fused = None
    model.eval()
    return model.config.flops_per_token * (3.0 * batches.tokens + course.spent.tokens) + course.spent.teachers


class Counted:
    """The same batches, and how many tokens they brought."""

    def __init__(self, batches: Batches) -> None:
        self._batches = batches
        self.tokens = 0

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        batch = next(self._batches)
        again = batch.extra.get("rehearsal")
        self.tokens += batch.tokens_BT.numel() + (0 if again is None else again.tokens_BT.numel())
        return batch

    def state(self) -> dict[str, Any]:
        return self._batches.state()

    def restore(self, state: dict[str, Any]) -> None:
        self._batches.restore(state)


def finished(folder: Path, names: Sequence[str]) -> bool:
    """Whether all of these have been measured there."""
    return all((folder / f"{name}.json").is_file() for name in names)
