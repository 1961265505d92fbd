"""``hf:owner/name``: rows of a data set on the Hugging Face Hub, streamed into a file of the run and read from there.

What was fetched stays with the run: it is hashed like any other file, and a resumed run does not ask the net again.
"""

from __future__ import annotations

import importlib
import json
import os
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from klype.errors import KlypeError, UsageError

PREFIX = "hf:"
_NAME = re.compile(r"hf:(?P<name>[\w.-]+/[\w.-]+)(?::(?P<config>[\w.-]+))?(?:@(?P<split>[\w.-]+))?")

Rows = Iterable[Mapping[str, Any]]


@dataclass(frozen=True, slots=True)
class Dataset:
    """``hf:owner/name``, ``hf:owner/name:config`` or ``hf:owner/name:config@split``."""

    name: str
    config: str | None = None
    split: str = "train"

    @staticmethod
    def parse(spec: str) -> Dataset:
        found = _NAME.fullmatch(spec)
        if found is None:
            raise UsageError(
                f"{spec} is no data set of the Hub.", "Write hf:owner/name, hf:owner/name:config or …@split."
            )
        return Dataset(found["name"], found["config"], found["split"] or "train")

    @property
    def folder(self) -> str:
        return "--".join([*self.name.split("/"), *([self.config] if self.config else [])])


Load = Callable[[Dataset], tuple[Rows, str]]
"""The rows of a data set, as they come, and its licence ("": its page names none)."""


def is_hub(path: str | Path) -> bool:
    return str(path).startswith(PREFIX)


def fetch(spec: str, folder: Path, megabytes: float, load: Load | None = None) -> Path:
    """The folder with the first ``megabytes`` of a data set's rows, fetched unless they are there already.

    Raises KlypeError in one sentence without the package, the net, the data set or its rows.
    """
    dataset = Dataset.parse(spec)
    place = folder / dataset.folder
    file = place / "rows.jsonl"
    if file.exists():
        return place
    rows, licence = (load or _load)(dataset)
    place.mkdir(parents=True, exist_ok=True)
    part, size, most = place / "rows.part", 0, megabytes * 1e6
    try:
        with part.open("w", encoding="utf-8") as out:
            for row in _reading(rows, dataset):
                line = json.dumps(dict(row), ensure_ascii=False, default=str) + "\n"
                size += len(line.encode("utf-8", "replace"))
                if size > most and out.tell():
                    break
                out.write(line)
            out.flush()
            os.fsync(out.fileno())
    except OSError as error:
        raise KlypeError(f"{place} cannot be written: {error.strerror}.", "Choose another --out.") from error
    if not part.stat().st_size:
        part.unlink()
        raise KlypeError(f"The data set {dataset.name} gave no rows.", "Choose another, or another @split.")
    named = f"Licence: {licence or 'not named on its page'}\n"
    named += f"Attribution: the data set {dataset.name} on the Hugging Face Hub\n"
    (place / "LICENCE.txt").write_text(named, encoding="utf-8")
    part.replace(file)
    return place


def _reading(rows: Rows, dataset: Dataset) -> Iterable[Mapping[str, Any]]:
    """The rows; whatever breaks on the way (the net, a broken shard) is one sentence."""
    try:
        yield from rows
    except KlypeError:
        raise
    except Exception as error:  # the client's exceptions have no common base, and change between its versions
        raise _failed(dataset, error) from error


def _load(dataset: Dataset) -> tuple[Rows, str]:
    try:
        datasets = importlib.import_module("datasets")
        hub = importlib.import_module("huggingface_hub")
    except ImportError:
        raise KlypeError(
            "Data sets of the Hugging Face Hub need the package datasets.", "Install it: pip install 'klype[data]'."
        ) from None
    try:
        card = hub.dataset_info(dataset.name).card_data
        rows = datasets.load_dataset(dataset.name, dataset.config, split=dataset.split, streaming=True)
    except Exception as error:  # as in _reading
        raise _failed(dataset, error) from error
    licence = (card or {}).get("license") or ""
    return rows, ", ".join(licence) if isinstance(licence, list) else str(licence)


def _failed(dataset: Dataset, error: Exception) -> KlypeError:
    first = (str(error).strip().splitlines() or [type(error).__name__])[0][:200].rstrip(". ")
    return KlypeError(
        f"The data set {dataset.name} cannot be read from the Hugging Face Hub: {first}.",
        "Check its name and the network, or fetch it elsewhere and give its folder with --data.",
    )
