"""The stores of rankings that the studio offers, a summary of each, and the names of annotators with their keys."""

import hashlib
import hmac
import os
import secrets
import threading
import time
import tomllib
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from klype.durable import private_folder
from klype.errors import KlypeError, UsageError
from klype.examine.say import visible
from klype.jsons import parse_finite
from klype.preferences.records import MODEL, SIMULATED, Entry
from klype.preferences.store import Store
from klype.runs.rankers import summary
from klype.runs.ranking import STORE, open_store
from klype.runs.run_json import write_json
from klype.words import Words

FILE = "annotators.json"
STORES = "stores.toml"  # in klype's home: ``[NAME]`` with ``url`` and ``run``, the run whose model the rankings are for
USUAL = f"{SIMULATED}likes right, polite and short answers"
MAX_NAME, MAX_KEY, MAX_PEOPLE = 60, 200, 10_000
RECOUNT_S = 5.0  # how old a summary may be while others rank


@dataclass(frozen=True, slots=True)
class RankingStore:
    """Where rankings are kept: at ``url``, or in the run's own folder if it is empty. ``run``: the run whose model the
    rankings are for; None if they are only collected. A browser names a store by its ``key`` only."""

    name: str
    run: Path | None
    url: str = ""

    @property
    def key(self) -> str:
        return hashlib.sha256(f"{self.name} {self.run} {self.url}".encode()).hexdigest()[:12]

    def open(self) -> Store:
        """Opens the store, or creates it; the caller closes it. KlypeError if it cannot be opened."""
        return Store.open(self.url) if self.url or self.run is None else open_store(self.run / "rank")

    def snapshot(self, folder: Path, annotators: Sequence[str]) -> list[Entry]:
        """Copies what these annotators have ranked so far into a store in ``folder``, and returns it."""
        with self.open() as store:
            entries = store.entries(annotators=annotators)
        folder.mkdir(parents=True, exist_ok=True)
        with Store.open(folder / STORE) as copied:
            copied.put(entries)
        return entries


def named_stores(home: Path) -> list[RankingStore]:
    """The stores that the file ``STORES`` in klype's home names. KlypeError if it cannot be read."""
    file = home / STORES
    try:
        found = tomllib.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
        return [RankingStore(name, Path(row["run"]).expanduser(), row["url"]) for name, row in found.items()]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise KlypeError(f"{file} cannot be read: {error}.", "It should hold [NAME] with url and run.") from error


def ranking_store(stores: Sequence[RankingStore], key: str) -> RankingStore:
    """Returns the store with this key, which a browser sent; the first store if there is none."""
    return next((store for store in stores if store.key == key), stores[0])


@dataclass(frozen=True)
class StoreSummary:
    """A store's entries, how well the annotators agree, and the number of questions that can be ranked. ``mark``: the
    store's change counter, and ``at``: the clock, when this was computed."""

    entries: Sequence[Entry]
    agreement: Mapping[str, Any]
    questions: int
    mark: tuple[int, int]
    at: float


@dataclass
class SummaryCache:
    """The summaries of stores, computed once for all visitors."""

    clock: Callable[[], float] = time.monotonic
    _known: dict[str, StoreSummary] = field(default_factory=dict)
    _counting: threading.Lock = field(default_factory=threading.Lock)

    def of(self, place: RankingStore) -> StoreSummary:
        """Returns the store's summary, at most ``RECOUNT_S`` old if it has changed since. It reads the store: call it
        in a thread."""
        with self._counting, place.open() as store:
            known, mark = self._known.get(place.key), store.mark()
            if known is None or (known.mark != mark and self.clock() - known.at >= RECOUNT_S):
                entries, questions = store.entries(), sum(len(asked.candidates) > 1 for asked in store.questions())
                known = StoreSummary(entries, summary(entries), questions, mark, self.clock())
            self._known[place.key] = known
            return known


def label_of(annotator: str, w: Words) -> str:
    """An annotator's name as it is shown; that of the simulated annotator in the page's language."""
    return w("simulated") if annotator == USUAL else visible(annotator)


def sign_in(home: Path, name: str, key: str) -> str:
    """Returns the name in its normal form. The first key given with a name locks it: UsageError for any other key, and
    for an invalid name.

    Keys are kept in klype's own folder ``home`` as salted hashes (scrypt), readable by their owner only."""
    clean = unicodedata.normalize("NFC", " ".join(name.split()))
    if not clean or len(clean) > MAX_NAME or not clean.isprintable():
        raise UsageError(f"A name has from 1 to {MAX_NAME} visible characters.")
    if clean.startswith((SIMULATED, MODEL)):
        raise UsageError(f"Names that begin with '{SIMULATED}' or '{MODEL}' are kept for machines.")
    if len(key) > MAX_KEY:
        raise UsageError(f"A key has at most {MAX_KEY} characters.")
    file, known = home / FILE, dict[str, str]()
    try:
        found = parse_finite(file.read_text(encoding="utf-8")) if file.exists() else {}
        known = {str(name): str(kept) for name, kept in found.items()} if isinstance(found, dict) else {}
    except (OSError, ValueError) as error:
        raise KlypeError(f"{file} cannot be read: {error}.", "Fix or remove it.") from error

    def hashed(salt: str) -> str:
        return hashlib.scrypt(key.encode(), salt=bytes.fromhex(salt), n=1 << 14, r=8, p=1).hex()

    if clean in known:
        salt, _, kept = known[clean].partition(":")
        if not hmac.compare_digest(hashed(salt), kept):
            raise UsageError(f"{clean} is locked with a key, and this is not it.")
    elif key:  # visitors write to this file: it has to stay small
        if len(known) >= MAX_PEOPLE:
            raise UsageError("There is no room for more names with keys.")
        salt = secrets.token_hex(16)
        private_folder(home)
        write_json(file, {**known, clean: f"{salt}:{hashed(salt)}"})
        os.chmod(file, 0o600)
    return clean
