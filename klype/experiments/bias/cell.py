"""One size of documents and one seed: every target's model trained and measured, each kept as soon as it is finished.

A folder cells/DOCUMENTS-SEED holds a JSON file a model (what it is like, its curve, where it is now) and its weights.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save
from torch import nn

from klype.answers.traces import replace
from klype.data.order import mix
from klype.experiments.bias.corpus import Corpus, Test
from klype.experiments.bias.lab import Beside, Curve, LabSettings, Learnt, Lesson, learn, shape
from klype.experiments.bias.measure import bars, divergence, measure
from klype.experiments.bias.targets import Target, target
from klype.jsons import saved
from klype.model.fused import fused
from klype.model.transformer import Transformer

WATCHED = 24  # test documents whose KL is seen while a model trains


@dataclass(slots=True)
class Cell:
    """``taught`` trains what is asked for, once; what an earlier start has finished is read.

    ``compiled``: where compiled code is kept; None: torch computes.
    """

    corpus: Corpus
    test: Test
    settings: LabSettings
    documents: int
    seed: int
    folder: Path
    compiled: Path | None = None
    _known: dict[tuple[str, int], Learnt] = field(default_factory=dict)

    def taught(self, name: str, member: int = 0) -> Learnt:
        key = (name, member)
        if key not in self._known:
            self._known[key] = self._read(name, member) or self._train(target(name), member)
        return self._known[key]

    def _train(self, row: Target, member: int) -> Learnt:
        began = time.perf_counter()
        about: dict[str, Any] = {
            "target": row.name,
            "documents": self.documents,
            "seed": self.seed,
            "member": member,
            "epochs": row.how(self.settings).epochs,
        }
        self._write(about, [])
        made = row.make(self)
        if isinstance(made, Lesson):
            settings = row.how(self.settings)
            tell = lambda curve: self._write(about, curve)
            beside = Beside(self._watch, tell, fused(self.compiled) if self.compiled else None)
            made = learn(made, self.corpus, settings, mix(self.seed, member, 7), beside)
        values = measure(made.model, self.test)
        about |= {"turned": made.turned, "flops": made.flops, "reads": made.reads, "values": values}
        if self.test.shown is not None:
            about["bars"] = bars(made.model, self.test.shown[0], list(self.test.shown[1]))
        if isinstance(made.model, Transformer):
            replace(self._file(row.name, member, ".safetensors"), save(_weights(made.model)))
        self._write(about | {"seconds": time.perf_counter() - began}, made.curve)
        return made

    def _watch(self, model: nn.Module) -> float | None:
        if self.test.truth is None:
            return None
        documents = self.test.documents[:WATCHED]
        return divergence(model, documents, self.test.truth.first(sum(len(d) - 1 for d in documents)))

    def _read(self, name: str, member: int) -> Learnt | None:
        file, weights = self._file(name, member, ".json"), self._file(name, member, ".safetensors")
        if not file.is_file() or not weights.is_file():
            return None
        about = saved(file)
        if about is None or "values" not in about:
            return None
        model = Transformer(shape(self.corpus.size, target(name).how(self.settings)))
        model.load_state_dict(load_file(weights))
        curve = [(epoch, loss, kl) for epoch, loss, kl in about["curve"]]
        return Learnt(model.eval(), curve, about["turned"], about["flops"], about["reads"])

    def _write(self, about: dict[str, Any], curve: Curve) -> None:
        text = json.dumps({**about, "curve": curve}, allow_nan=False)
        replace(self._file(about["target"], about["member"], ".json"), text.encode())

    def _file(self, name: str, member: int, end: str) -> Path:
        return self.folder / f"{name}.{member}{end}"


class Written:
    """What cells have written under a folder; a file is read again only when it is another one than before."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._known: dict[Path, tuple[tuple[int, int, int], dict[str, Any]]] = {}

    def read(self) -> tuple[list[dict[str, Any]], bool]:
        """Every model's file, in the order of names, and whether anything is new."""
        found: dict[Path, tuple[tuple[int, int, int], dict[str, Any]]] = {}
        for file in sorted(self._folder.glob("*/*.json")):
            about = file.stat()
            stamp = (about.st_ino, about.st_mtime_ns, about.st_size)
            before = self._known.get(file)
            if before is not None and before[0] == stamp:
                found[file] = before
            else:
                found[file] = (stamp, saved(file) or {})
        new = [stamp for stamp, _ in found.values()] != [stamp for stamp, _ in self._known.values()]
        self._known = found
        return [about for _, about in found.values() if about], new


def finished(folder: Path, names: Sequence[str]) -> bool:
    """Whether all of these targets have been measured there."""
    files = [folder / f"{name}.0.json" for name in names]
    return all("values" in (saved(file) or {}) for file in files)


def _weights(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
