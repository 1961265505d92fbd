"""Who ranks, where rankings are kept, and one annotator's session: the next question, and an answer that is on the
disk before it is told."""

from __future__ import annotations

import hashlib
import hmac
import os
import random
import secrets
import threading
import time
import tomllib
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

from klype.data.seeds import mix
from klype.durable import private_folder
from klype.errors import KlypeError, UsageError
from klype.examine.say import visible
from klype.jsons import finite
from klype.preferences.records import MODEL, SIMULATED, Candidate, Entry, Kind, RankingItem
from klype.preferences.schema import Annotator
from klype.preferences.store import Store
from klype.runs.rankers import HELD_OUT_EVERY, KEYS, differing, now, summary
from klype.runs.ranking import STORE, open_store
from klype.runs.run_json import write_json
from klype.words import Words

FILE = "annotators.json"
STORES = "stores.toml"  # in klype's home: ``[NAME]`` with ``url`` and ``run``, the run whose model the rankings are for
USUAL = f"{SIMULATED}likes right, polite and short answers"
NAME_MOST, KEY_MOST, PEOPLE_MOST = 60, 200, 10_000
RECOUNT_S = 5.0  # a summary may be so old while others rank
AGAIN_EVERY = 10  # every so-manieth question is one ranked before: how far does one agree with oneself?
SHARED_EVERY = 5  # every so-manieth is one that somebody else has ranked, or will: how far do people agree?
TEXT_MOST = 20_000  # characters of an answer that a person writes
EVERYBODY = 1 << 20


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
        return Store.open(self.url) if self.url or self.run is None else open_store(self.run / "rank")

    def snapshot(self, folder: Path, annotators: Sequence[str]) -> list[Entry]:
        """What these annotators have said so far, in a store of its own in ``folder``: people may go on meanwhile."""
        with self.open() as store:
            entries = store.entries(annotators=annotators)
        folder.mkdir(parents=True, exist_ok=True)
        with Store.open(folder / STORE) as copied:
            copied.put(entries)
        return entries


def named_stores(home: Path) -> list[RankingStore]:
    """Those that a file in klype's home names (PostgreSQL by url)."""
    file = home / STORES
    try:
        found = tomllib.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
        return [RankingStore(name, Path(row["run"]).expanduser(), row["url"]) for name, row in found.items()]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise KlypeError(f"{file} cannot be read: {error}.", "It should hold [NAME] with url and run.") from error


def ranking_store(stores: Sequence[RankingStore], key: str) -> RankingStore:
    """By a key that a browser sent; the first when there is no such one."""
    return next((store for store in stores if store.key == key), stores[0])


@dataclass(frozen=True)
class StoreSummary:
    """A store's entries, how well their makers agree, and how many questions there are; counted ``at`` a time when its
    counter of changes was ``mark``."""

    entries: Sequence[Entry]
    agreement: Mapping[str, Any]
    questions: int
    mark: tuple[int, int]
    at: float


@dataclass
class SummaryCache:
    """What stores hold in all, counted once for all who look. ``of`` waits for the store: call it in a thread."""

    clock: Callable[[], float] = time.monotonic
    _known: dict[str, StoreSummary] = field(default_factory=dict)
    _counting: threading.Lock = field(default_factory=threading.Lock)

    def of(self, place: RankingStore) -> StoreSummary:
        with self._counting, place.open() as store:
            known, mark = self._known.get(place.key), store.mark()
            if known is None or (known.mark != mark and self.clock() - known.at >= RECOUNT_S):
                entries, questions = store.entries(), sum(len(asked.candidates) > 1 for asked in store.questions())
                known = StoreSummary(entries, summary(entries), questions, mark, self.clock())
            self._known[place.key] = known
            return known


def named(annotator: str, w: Words) -> str:
    """An annotator's name; the demo world's own in the page's language."""
    return w("simulated") if annotator == USUAL else visible(annotator)


def sign_in(home: Path, name: str, key: str) -> str:
    """The name as it is kept. The first key given with a name locks it; UsageError when it is not the right one.

    ``home`` is klype's own folder; keys are kept there as salted hashes (scrypt), readable by their owner only."""
    clean = unicodedata.normalize("NFC", " ".join(name.split()))
    if not clean or len(clean) > NAME_MOST or not clean.isprintable():
        raise UsageError(f"A name has from 1 to {NAME_MOST} visible characters.")
    if clean.startswith((SIMULATED, MODEL)):
        raise UsageError(f"Names that begin with '{SIMULATED}' or '{MODEL}' are kept for machines.")
    if len(key) > KEY_MOST:
        raise UsageError(f"A key has at most {KEY_MOST} characters.")
    file, known = home / FILE, dict[str, str]()
    try:
        found = finite(file.read_text(encoding="utf-8")) if file.exists() else {}
        known = {str(name): str(kept) for name, kept in found.items()} if isinstance(found, dict) else {}
    except (OSError, ValueError) as error:
        raise KlypeError(f"{file} cannot be read: {error}.", "Fix or remove it.") from error

    def hashed(salt: str) -> str:
        return hashlib.scrypt(key.encode(), salt=bytes.fromhex(salt), n=1 << 14, r=8, p=1).hex()

    if clean in known:
        salt, _, kept = known[clean].partition(":")
        if not hmac.compare_digest(hashed(salt), kept):
            raise UsageError(f"{clean} is locked with a key, and this is not it.")
    elif key:  # a file that anybody may write to has an end
        if len(known) >= PEOPLE_MOST:
            raise UsageError("There is no room for more names with keys.")
        salt = secrets.token_hex(16)
        private_folder(home)
        write_json(file, {**known, clean: f"{salt}:{hashed(salt)}"})
        os.chmod(file, 0o600)
    return clean


@dataclass(frozen=True, slots=True)
class RankingTask:
    """What lies on the desk: a question, and its answers in the order shown. ``number`` tells turns apart; ``draft``
    names what is half done in the browser, where others may sit after this annotator."""

    number: int
    asked: RankingItem
    again: bool
    began: float
    draft: str


class AnnotatorSession:
    """``done``: how many this annotator has ranked or skipped in all. ``sitting`` is the browser tab's own mark.
    Questions in the language ``lang`` come first."""

    def __init__(self, store: Store, name: str, sitting: str, lang: str = "") -> None:
        self.store, self.name = store, name
        self.who = Annotator(name, "person", sitting, lang)
        self.turns = 0
        self.task: RankingTask | None = None
        self._recount()

    def next(self) -> RankingTask | None:
        """The next question; None when this annotator has ranked all there are."""
        self.task = None
        again = self.store.claim_again(self.who) if self.done % AGAIN_EVERY == AGAIN_EVERY - 1 else None
        asked = again or self._claimed()
        if asked is None:
            return None
        mixed = list(again.candidates) if again else differing(asked, self.name)
        seed = mix(asked.id, int(again is not None), *self.name.encode())
        random.Random(seed).shuffle(mixed)  # the same again after a reload, another one for others
        return self._lay(replace(asked, candidates=tuple(mixed)), again is not None)

    def say(self, number: object, kind: Kind, groups: object) -> bool:
        """Keeps an order (ids of answers, best first; those that are missing come last, tied), none, or a skip.

        Durable when it returns. False when this task has been answered already, here or in another window of the same
        annotator: nothing is kept twice. UsageError for an order that is none.
        """
        task = self.task
        if task is None or number != task.number:
            return False
        order = () if kind == "skip" else order_of(task.asked, groups, allow_none=kind == "none")
        with _one_at_a_time(f"{self.store.place}\n{self.name}"):
            self._recount()
            twice = not task.again and task.asked.id in self._ranked
            if not twice:
                seconds = round(max(0.0, time.monotonic() - task.began), 2)
                entry = Entry(task.asked, order, self.name, kind, when=now(), seconds=seconds, again=task.again)
                self.store.record(entry)
                self.done += 1
                self._ranked.add(task.asked.id)
        self.task = None
        return not twice

    def undo(self) -> RankingTask | None:
        """Takes back the last one, which lies on the desk again; None when there is nothing to take back."""
        with _one_at_a_time(f"{self.store.place}\n{self.name}"):
            back = self.store.undo(self.who)
            self._recount()
        return None if back is None else self._lay(back.asked, back.again)

    def write(self, number: object, text: str) -> RankingTask | None:
        """One more answer, by this annotator; UsageError when it is none, or there is no room on the desk."""
        task = self.task
        if task is None or number != task.number:
            return None
        text = text.strip()
        if not text or len(text) > TEXT_MOST:
            raise UsageError(f"An answer has from 1 to {TEXT_MOST:,} characters.")
        if len(task.asked.candidates) >= KEYS:
            raise UsageError(f"There are {KEYS} answers at most.")
        if any(text == candidate.text for candidate in task.asked.candidates):
            raise UsageError("This answer is there already.")
        made = self.store.add_candidate(task.asked.id, Candidate(text, author=self.name))
        self.task = replace(task, asked=replace(task.asked, candidates=(*task.asked.candidates, made)))
        return self.task

    def close(self) -> None:
        """Gives back what was not answered."""
        self.store.release(self.who)
        self.store.close()

    def _claimed(self) -> RankingItem | None:
        """Now and then one that is kept for measuring, or one that others rank as well; at last whatever is left."""
        part = "held-out" if self.done % HELD_OUT_EVERY == HELD_OUT_EVERY - 1 else "train"
        each = 2 if self.done % SHARED_EVERY == SHARED_EVERY - 2 else 1
        for wanted, times in ((part, each), ("", 1), ("", EVERYBODY)):
            while (found := self.store.claim(self.who, wanted, times)) is not None:
                if len(found.candidates) > 1:
                    return found
                self.store.record(Entry(found, (), self.name, "skip", when=now()))  # one answer cannot be ranked
        return None

    def _lay(self, asked: RankingItem, again: bool) -> RankingTask:
        self.turns += 1
        draft = f"{asked.id}{'+' if again else ''}-{hashlib.sha256(self.name.encode()).hexdigest()[:12]}"
        self.task = RankingTask(self.turns, asked, again, time.monotonic(), draft)
        return self.task

    def _recount(self) -> None:
        own = self.store.entries(annotators=(self.name,))
        self.done, self._ranked = len(own), {entry.asked.id for entry in own}


def order_of(asked: RankingItem, groups: object, allow_none: bool = False) -> tuple[tuple[int, ...], ...]:
    """Places in ``asked.candidates``, best first, from ids that a browser sent. UsageError for what is no order."""
    places = {candidate.id: i for i, candidate in enumerate(asked.candidates)}
    if not isinstance(groups, list) or not all(isinstance(group, list) and group for group in groups):
        raise UsageError("This is not an order of the answers.")
    named = [number for group in groups for number in group]
    if any(type(number) is not int or number not in places for number in named) or len(set(named)) < len(named):
        raise UsageError("This order names answers that are not there, or one twice.")
    if not named and not allow_none:
        raise UsageError("Put at least one answer in its place first.")
    rest = tuple(i for number, i in places.items() if number not in named)
    order = tuple(tuple(places[number] for number in group) for group in groups)
    return (*order, rest) if rest else order


@cache
def _one_at_a_time(whose: str) -> threading.Lock:
    """Two windows of one annotator take turns."""
    return threading.Lock()
