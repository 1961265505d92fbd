"""One person's ranking session: the next question, and a ranking that is on disk before it is acknowledged.

The terminal and the ranking page of the studio share it; ``rank_by_hand`` is the terminal's loop.
"""

import hashlib
import random
import re
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache

from klype.data.seeds import mix
from klype.errors import UsageError
from klype.judge.meaning import text_meaning
from klype.preferences.annotators import spread
from klype.preferences.records import Candidate, Entry, Kind, RankingItem
from klype.preferences.schema import Annotator
from klype.preferences.store import Store
from klype.runs.listener import RunListener
from klype.runs.rankers import now
from klype.words import words

SHOWN = 6  # answers to a question, before the annotator writes more
KEYS = 9  # answers at most: each has a digit
HELD_OUT_EVERY = 7  # every 7th question is one that is kept for measuring
AGAIN_EVERY = 10  # every 10th question is one ranked before, which tells how well annotators agree with themselves
SHARED_EVERY = 5  # every 5th question is one that a second person ranks as well, to measure how well people agree
MAX_TEXT = 20_000  # characters of an answer that a person writes
EVERYBODY = 1 << 20


@dataclass(frozen=True, slots=True)
class RankingTask:
    """A question to be ranked, with its answers in the order shown. ``number`` counts the tasks of a session, so that
    a late reply to another task is recognised; ``draft`` is the key under which a browser keeps a half-made order, one
    per question and annotator. ``began``: when it was shown, on ``time.monotonic``'s clock."""

    number: int
    asked: RankingItem
    again: bool
    began: float
    draft: str


class AnnotatorSession:
    """The questions that one person ranks, one after the other. ``task`` is the one shown now, ``done`` how many this
    annotator has ranked or skipped in all sessions.

    ``sitting`` tells two sessions of the same person apart. Questions in the language ``lang`` come first. Every
    ``again_every``-th question is one ranked before (0: never).
    """

    def __init__(self, store: Store, name: str, sitting: str, lang: str = "", again_every: int = AGAIN_EVERY) -> None:
        self.store, self.name, self.again_every = store, name, again_every
        self.who = Annotator(name, "person", sitting, lang)
        self.turns = 0
        self.task: RankingTask | None = None
        self._recount()

    def next(self) -> RankingTask | None:
        """Returns the next question; None when this annotator has ranked all there are."""
        self.task = None
        repeats = self.again_every and self.done % self.again_every == self.again_every - 1
        again = self.store.claim_again(self.who) if repeats else None
        asked = again or self._claim()
        if asked is None:
            return None
        mixed = list(asked.candidates)
        if again is None:  # the answers that differ most in meaning; what other people wrote stays theirs
            own = [c for c in mixed if not c.author or c.author == self.name]
            meaning = text_meaning(asked.question)
            mixed = [own[i] for i in spread([meaning(c.text) for c in own], SHOWN)]
        seed = mix(asked.id, int(again is not None), *self.name.encode())
        random.Random(seed).shuffle(mixed)  # the same order after a reload, another one for others
        return self._show(replace(asked, candidates=tuple(mixed)), again is not None)

    def record(self, number: object, kind: Kind, groups: object) -> bool:
        """Stores an order (ids of answers, best first; those that are missing come last, tied), none, or a skip.

        Durable when it returns. Returns False when this task has been answered already, here or in another window of
        the same annotator: nothing is stored twice. UsageError if ``groups`` is no order.
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
        """Takes back the last ranking and shows its question again; None when there is nothing to take back."""
        with _one_at_a_time(f"{self.store.place}\n{self.name}"):
            back = self.store.undo(self.who)
            self._recount()
        return None if back is None else self._show(back.asked, back.again)

    def write(self, number: object, text: str) -> RankingTask | None:
        """Adds an answer by this annotator to the task. UsageError when it is empty, too long or there already, or
        there are as many answers as keys."""
        task = self.task
        if task is None or number != task.number:
            return None
        text = text.strip()
        if not text or len(text) > MAX_TEXT:
            raise UsageError(f"An answer has from 1 to {MAX_TEXT:,} characters.")
        if len(task.asked.candidates) >= KEYS:
            raise UsageError(f"There are {KEYS} answers at most.")
        if any(text == candidate.text for candidate in task.asked.candidates):
            raise UsageError("This answer is there already.")
        made = self.store.add_candidate(task.asked.id, Candidate(text, author=self.name))
        self.task = replace(task, asked=replace(task.asked, candidates=(*task.asked.candidates, made)))
        return self.task

    def close(self) -> None:
        """Gives back the questions that were not answered, and closes the store."""
        self.store.release(self.who)
        self.store.close()

    def _claim(self) -> RankingItem | None:
        """Usually a question that nobody has ranked; at times one that is held out or that others rank as well; in the
        end whatever is left."""
        part = "held-out" if self.done % HELD_OUT_EVERY == HELD_OUT_EVERY - 1 else "train"
        each = 2 if self.done % SHARED_EVERY == SHARED_EVERY - 2 else 1
        wishes = (part, each), ("", 1), ("", EVERYBODY)
        return next((found for wish in wishes if (found := self.store.claim(self.who, *wish)) is not None), None)

    def _show(self, asked: RankingItem, again: bool) -> RankingTask:
        self.turns += 1
        draft = f"{asked.id}{'+' if again else ''}-{hashlib.sha256(self.name.encode()).hexdigest()[:12]}"
        self.task = RankingTask(self.turns, asked, again, time.monotonic(), draft)
        return self.task

    def _recount(self) -> None:
        own = self.store.entries(annotators=(self.name,))
        self.done, self._ranked = len(own), {entry.asked.id for entry in own}


@cache
def _one_at_a_time(whose: str) -> threading.Lock:
    """The lock of one annotator in one store: two windows take turns."""
    return threading.Lock()


def order_of(asked: RankingItem, groups: object, allow_none: bool = False) -> tuple[tuple[int, ...], ...]:
    """Converts groups of candidate ids, best first, into indices of ``asked.candidates``; ids that are missing come
    last, tied. A browser may send anything as ``groups``: UsageError for what is no order."""
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


# the terminal


class MisreadError(ValueError):
    """What was typed is no order. ``args``: a message's key, and its values."""


def rank_by_hand(
    session: AnnotatorSession, say: RunListener, ask: Callable[[str], str] = input, most: int = 0, lang: str = "en"
) -> int:
    """Asks for an order of each question's answers until the annotator stops, ``most`` questions are ranked (0: no
    limit), or none is left. Returns how many were ranked.

    Answers are shown in random order, without where they come from. Ctrl-C ends it as q does, and is passed on.
    """
    told = words(lang, "ranking")

    def reply(prompt: str, at_the_end: str) -> str:
        try:
            return ask(told(prompt)).strip()
        except EOFError:
            return at_the_end

    say.note(told("help"))
    before, shown = session.done, None
    try:
        while not most or session.done - before < most:
            task = session.task or session.next()
            if task is None:
                say.note(told("nothing_left"))
                break
            answers = task.asked.candidates
            if task is not shown:
                shown, question = task, " ".join(task.asked.question.transcript.split())
                say.note("\n" + told("title", number=session.done + 1, question=question))
                rows = [(str(i), " ".join(c.text.split())) for i, c in enumerate(answers, 1)]
                say.table("", ("", told("answer")), rows)
            typed = reply("prompt", "q").lower()
            if typed == "q":
                break
            if typed == "u":
                back = session.undo()
                say.note(told("undone") if back else told("nothing_to_undo"))
            elif typed == "w":
                try:
                    session.write(task.number, reply("write", ""))
                except UsageError:
                    say.note(told("not_written", most=KEYS))
            else:
                kind: Kind = "skip" if typed == "s" else "none" if typed == "n" else "order"
                try:
                    order = parse_order(typed, len(answers)) if kind == "order" else ()
                except MisreadError as wrong:
                    key, values = wrong.args
                    say.note(told(key, **values))
                else:
                    session.record(task.number, kind, [[answers[i].id for i in group] for group in order])
    finally:  # with Ctrl-C too
        session.store.release(session.who)
        say.note("\n" + told("end", now=max(0, session.done - before), all=session.done))
    return session.done - before


def parse_order(reply: str, n: int) -> tuple[tuple[int, ...], ...]:
    """``3=1 2`` or ``3=12`` → ((2, 0), (1,)); the others come last, tied. Raises MisreadError."""
    plain = re.sub(r"[\s,>]", "", reply)
    if plain in ("", "?"):
        raise MisreadError("help", {})
    if not re.fullmatch(r"\d(=?\d)*", plain):
        raise MisreadError("no_order", {"typed": reply})
    groups: list[list[int]] = []
    rest = list(range(n))
    for tie, digit in re.findall(r"(=?)(\d)", plain):
        index = int(digit) - 1
        if not 0 <= index < n:
            raise MisreadError("no_such", {"number": digit, "n": n})
        if index not in rest:
            raise MisreadError("twice", {"number": digit})
        rest.remove(index)
        if not tie:
            groups.append([])
        groups[-1].append(index)
    return tuple(map(tuple, [*groups, rest] if rest else groups))
