"""The models of one cell: every target's is trained and measured once, and kept as soon as it is finished.

Each has a JSON file (what it is like, its curve, where it is now) and its weights, until the cell is done.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save
from torch import nn

from klype.answers.traces import replace
from klype.data.order import mix
from klype.experiments.bias.measure import bars, divergence, measure
from klype.experiments.bias.targets import Target, target
from klype.experiments.framework import Cell
from klype.experiments.training import Curve, TrainedModel, TrainingHooks, TrainingSet, shape, train_model
from klype.jsons import saved
from klype.model.attention import TORCH
from klype.model.compiled import compiled_backend
from klype.model.transformer import Transformer

WATCHED = 24  # test documents whose KL is seen while a model trains


@dataclass(slots=True)
class Lab(Cell):
    """``trained`` trains what is asked for, once; what an earlier start has finished is read."""

    known: dict[tuple[str, int], TrainedModel] = field(default_factory=dict)

    def run(self, names: Sequence[str]) -> None:
        for name in names:
            self.trained(name)

    def trained(self, name: str, member: int = 0) -> TrainedModel:
        """The model trained on this target; members differ in initial weights and order."""
        key = (name, member)
        if key not in self.known:
            self.known[key] = self._read(name, member) or self._train(target(name), member)
        return self.known[key]

    def _train(self, row: Target, member: int) -> TrainedModel:
        began = time.perf_counter()
        settings = row.how(self.settings)
        about: dict[str, Any] = {
            "target": row.name,
            "documents": self.documents,
            "seed": self.seed,
            "member": member,
            "epochs": settings.epochs,
        }
        self._write(about, [])
        made = row.make(self)
        if isinstance(made, TrainingSet):
            tell = lambda curve: self._write(about, curve)
            backend = compiled_backend(self.compiled) if self.compiled else TORCH
            hooks = TrainingHooks(self._watch, tell, backend)
            made = train_model(made, self.corpus, settings, mix(self.seed, member, 7), hooks)
        values = measure(made.model, self.test)
        about |= {"turned": made.turned, "flops": made.flops, "reads": made.reads, "values": values}
        if self.test.shown is not None:
            about["bars"] = bars(made.model, self.test.shown[0], list(self.test.shown[1]))
        if isinstance(made.model, Transformer):
            weights = {name: tensor.contiguous() for name, tensor in made.model.state_dict().items()}
            replace(self._file(row.name, member, ".safetensors"), save(weights))
        self._write(about | {"seconds": time.perf_counter() - began}, made.curve)
        return made

    def _watch(self, model: nn.Module) -> float | None:
        if self.test.truth is None:
            return None
        documents = self.test.documents[:WATCHED]
        return divergence(model, documents, self.test.truth.first(sum(len(d) - 1 for d in documents)))

    def _read(self, name: str, member: int) -> TrainedModel | None:
        about, weights = saved(self._file(name, member, ".json")), self._file(name, member, ".safetensors")
        if about is None or "values" not in about or not weights.is_file():
            return None
        model = Transformer(shape(self.corpus.size, target(name).how(self.settings)))
        model.load_state_dict(load_file(weights))
        curve = [(epoch, loss, kl) for epoch, loss, kl in about["curve"]]
        return TrainedModel(model.eval(), curve, about["turned"], about["flops"], about["reads"])

    def _write(self, about: dict[str, Any], curve: Curve) -> None:
        text = json.dumps({**about, "curve": curve}, allow_nan=False)
        replace(self._file(about["target"], about["member"], ".json"), text.encode())

    def _file(self, name: str, member: int, end: str) -> Path:
        return self.folder / f"{name}.{member}{end}"
