"""Who ranks, and one annotator's session: the next question, and an answer that is on the disk before it is told."""

from __future__ import annotations

import hashlib
import hmac
import os
import random
import secrets
import threading
import time
import unicodedata
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path

from klype.data.seeds import mix
from klype.durable import private_folder
from klype.errors import KlypeError, UsageError
from klype.examine.say import visible
from klype.jsons import finite
from klype.preferences.records import MODEL, SIMULATED, Candidate, Entry, Kind, RankingItem
from klype.preferences.schema import Annotator
from klype.preferences.store import Store
from klype.runs.rankers import HELD_OUT_EVERY, KEYS, SHOWN, differing, now
from klype.runs.record import write_json
from klype.words import Words

FILE = "annotators.json"
USUAL = f"{SIMULATED}likes right, polite and short answers"
NAME_MOST, KEY_MOST, PEOPLE_MOST = 60, 200, 10_000


def named(annotator: str, w: Words) -> str:
    """An annotator's name; the demo world's own in the page's language."""
    return w("simulated") if annotator == USUAL else visible(annotator)


@dataclass(frozen=True, slots=True)
class Annotators:
    """``home`` is klype's own folder; keys are kept there as salted hashes (scrypt), readable by their owner only."""

    home: Path

    def enter(self, name: str, key: str) -> str:
        """The name as it is kept. The first key given with a name locks it; UsageError when it is not the right one."""
        clean = unicodedata.normalize("NFC", " ".join(name.split()))
        if not clean or len(clean) > NAME_MOST or not clean.isprintable():
            raise UsageError(f"A name has from 1 to {NAME_MOST} visible characters.")
        if clean.startswith((SIMULATED, MODEL)):
            raise UsageError(f"Names that begin with '{SIMULATED}' or '{MODEL}' are kept for machines.")
        if len(key) > KEY_MOST:
            raise UsageError(f"A key has at most {KEY_MOST} characters.")
        known = self._read()
        kept = known.get(clean)
        if kept is None and key:
            salt = secrets.token_hex(16)
            if len(known) >= PEOPLE_MOST:
                raise UsageError("There is no room for more names with keys.")
            self._write({**known, clean: f"{salt}:{_hash(key, salt)}"})
        elif kept is not None:
            salt, _, hashed = kept.partition(":")
            if not hmac.compare_digest(_hash(key, salt), hashed):
                raise UsageError(f"{clean} is locked with a key, and this is not it.")
        return clean

    def _read(self) -> dict[str, str]:
        file = self.home / FILE
        try:
            found = finite(file.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return {}
        except (OSError, ValueError) as error:
            raise KlypeError(f"{file} cannot be read: {error}.", "Fix or remove it.") from error
        return {str(name): str(kept) for name, kept in found.items()} if isinstance(found, dict) else {}

    def _write(self, known: dict[str, str]) -> None:
        private_folder(self.home)
        file = self.home / FILE
        write_json(file, known)
        os.chmod(file, 0o600)


def _hash(key: str, salt: str) -> str:
    return hashlib.scrypt(key.encode(), salt=bytes.fromhex(salt), n=1 << 14, r=8, p=1).hex()


AGAIN_EVERY = 10
"""Every so-manieth question is one ranked before: how far does one agree with oneself?"""
SHARED_EVERY = 5
"""Every so-manieth question is one that somebody else has ranked, or will: how far do people agree?"""
TEXT_MOST = 20_000
"""Characters of an answer that a person writes."""
EVERYBODY = 1 << 20


@dataclass(frozen=True, slots=True)
class RankingTask:
    """What lies on the desk: a question, and its answers in the order shown. ``number`` tells turns apart; ``draft``
    names what is half done in the browser, where others may sit after this annotator."""

    number: int
    asked: RankingItem
    again: bool
    began: float
    draft: str


@dataclass
class AnnotatorSession:
    """``done``: how many this annotator has ranked or skipped in all. ``sitting`` is the browser tab's own mark.
    Questions in the language ``lang`` come first."""

    store: Store
    name: str
    sitting: str
    lang: str = ""
    done: int = 0
    turns: int = 0
    task: RankingTask | None = None
    _ranked: set[int] = field(default_factory=set)

    @staticmethod
    def at(store: Store, name: str, sitting: str, lang: str = "") -> AnnotatorSession:
        desk = AnnotatorSession(store, name, sitting, lang)
        desk._recount()
        return desk

    @property
    def who(self) -> Annotator:
        return Annotator(self.name, "person", self.sitting, self.lang)

    def next(self) -> RankingTask | None:
        """The next question; None when this annotator has ranked all there are."""
        self.task = None
        again = self.store.claim_again(self.who) if self.done % AGAIN_EVERY == AGAIN_EVERY - 1 else None
        asked = again or self._claimed()
        if asked is None:
            return None
        mixed = list(again.candidates) if again else differing(asked, self.name, SHOWN)
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
        if back is None:
            return None
        return self._lay(back.asked, back.again)

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
