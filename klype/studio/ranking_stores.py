"""Where rankings are kept: each run's own store, one that the command names, and those that a file in klype's home
names (PostgreSQL by url)."""

from __future__ import annotations

import hashlib
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from klype.errors import KlypeError, UsageError
from klype.model.manifest import is_whole
from klype.preferences import database
from klype.preferences.records import Entry
from klype.preferences.store import Store
from klype.runs.ranking import BEFORE_STORES, STORE, open_store
from klype.studio.runs_list import run_folders
from klype.studio.studio import Studio

STORES = "stores.toml"
"""In klype's home: ``[NAME]`` with ``url`` and ``run``, the run whose model the rankings are for."""


@dataclass(frozen=True, slots=True)
class RankingStore:
    """``url`` "": the run's own store. ``key`` is what a browser calls it; nothing else it sends is a place.
    ``run``: whose model the rankings are for; None when they are only collected."""

    name: str
    run: Path | None
    url: str = ""

    @property
    def key(self) -> str:
        return hashlib.sha256(f"{self.name} {self.run} {self.url}".encode()).hexdigest()[:12]

    def open(self) -> Store:
        """Made when it is missing; close it. KlypeError when it cannot be opened."""
        if self.url or self.run is None:
            return Store.open(self.url)
        return open_store(self.run / "rank")

    @property
    def can_align(self) -> bool:
        """Whether a fine-tuned model lies there to be aligned."""
        return self.run is not None and is_whole(self.run / "finetune")


def ranking_stores(studio: Studio) -> list[RankingStore]:
    """All of them: the one that the command names, those of the studio's models, the rest."""
    known = [run for run in run_folders(studio) if _has_rankings(run)]
    stores = [*(RankingStore(run.name, run) for run in known), *_named(studio.home / STORES)]
    if studio.store:
        stores.insert(0, RankingStore(database.short(studio.store), known[0] if known else None, studio.store))
    return stores


def fill_store(studio: Studio) -> None:
    """Opens the store that the command names; what the first run has goes into an empty one: questions with their
    answers, and who ranked them. KlypeError when it cannot be opened, UsageError when there is nothing to rank."""
    if not studio.store:
        return
    place = ranking_stores(studio)[0]
    with place.open() as store:
        if store.questions():
            return
        if place.run is None:
            raise UsageError(
                f"There are no questions in {place.name}, and no run to take them from.",
                "Name a run whose answers are to be ranked.",
            )
        with RankingStore(place.run.name, place.run).open() as own:
            store.add(own.questions())
            store.put(own.entries())


def ranking_store(stores: Sequence[RankingStore], key: str) -> RankingStore | None:
    """By a key that a browser sent; the first when there is no such one."""
    return next((store for store in stores if store.key == key), stores[0] if stores else None)


def snapshot(place: RankingStore, folder: Path, annotators: tuple[str, ...]) -> list[Entry]:
    """What these annotators have said so far, in a store of its own in ``folder``: people may go on meanwhile."""
    with place.open() as store:
        entries = store.entries(annotators=annotators)
    folder.mkdir(parents=True, exist_ok=True)
    with Store.open(folder / STORE) as copied:
        copied.put(entries)
    return entries


def _has_rankings(run: Path) -> bool:
    return any((run / "rank" / name).is_file() for name in (STORE, *(name for name, _ in BEFORE_STORES)))


def _named(file: Path) -> list[RankingStore]:
    if not file.is_file():
        return []
    try:
        found = tomllib.loads(file.read_text(encoding="utf-8"))
        return [RankingStore(name, Path(row["run"]).expanduser(), row["url"]) for name, row in found.items()]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise KlypeError(f"{file} cannot be read: {error}.", "It should hold [NAME] with url and run.") from error
