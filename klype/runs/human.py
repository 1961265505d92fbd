"""Ranking by hand in the terminal: a few keys a question, everything on the disk before the next one is shown."""

from __future__ import annotations

import random
import re
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime

from klype.data.order import mix
from klype.judge.meaning import text_meaning
from klype.preferences.candidates import spread
from klype.preferences.records import Asked, By, Candidate, Entry
from klype.preferences.rows import Annotator
from klype.preferences.store import Store
from klype.runs.say import Say
from klype.words import Words, words

SHOWN = 6
KEYS = 9  # a digit an answer
HELD_OUT_EVERY = 7


@dataclass(frozen=True, slots=True)
class Sitting:
    """Who ranks, and how: at most ``most`` questions (0: all there are), ``shown`` answers of each, every
    ``again_every``-th one a question ranked before (0: never), told in ``lang``. ``id`` tells two sittings apart."""

    name: str
    most: int = 0
    shown: int = SHOWN
    again_every: int = 0
    lang: str = "en"
    id: str = "sitting"

    @property
    def annotator(self) -> Annotator:
        by: By = "person"
        return Annotator(self.name, by, self.id)


@dataclass(frozen=True, slots=True)
class Wrong:
    """What is wrong with what was typed: a message's key, and its values."""

    key: str
    values: dict[str, object]


def rank_by_hand(store: Store, sitting: Sitting, say: Say, ask: Callable[[str], str] = input) -> int:
    """Asks for an order of the next question's answers until the annotator stops or nothing is left; how many.

    Answers come in an order of chance, blind to where they come from. Ctrl-C ends it as q does, and is passed on.
    """
    told = words(sitting.lang, "ranking")
    say.note(told("help"))
    before = len(store.entries(annotators=(sitting.name,)))
    done, go_on = 0, True
    try:
        while go_on and (not sitting.most or done < sitting.most):
            asked, again = _next(store, sitting, done)
            if asked is None:
                say.note(told("nothing_left"))
                break
            step, go_on = _one(store, sitting, (asked, again), (say, told, ask))
            done = max(0, done + step)
    finally:  # with Ctrl-C too
        store.release(sitting.annotator)
        found = len(store.entries(annotators=(sitting.name,)))
        say.note("\n" + told("end", now=max(0, found - before), all=found))
    return found - before


def _next(store: Store, sitting: Sitting, done: int) -> tuple[Asked | None, bool]:
    """The next question, and whether it is one ranked before: now and then, to see how far one agrees with oneself."""
    who = sitting.annotator
    if sitting.again_every and done % sitting.again_every == sitting.again_every - 1:
        again = store.claim_again(who)
        if again is not None:
            return again, True
    part = "held-out" if done % HELD_OUT_EVERY == HELD_OUT_EVERY - 1 else "train"
    return store.claim(who, part) or store.claim(who), False


def _one(
    store: Store, sitting: Sitting, what: tuple[Asked, bool], talk: tuple[Say, Words, Callable[[str], str]]
) -> tuple[int, bool]:
    """One question, asked until it has an answer. How many more are ranked now, and whether to go on."""
    asked, again = what
    say, told, ask = talk
    number = len(store.entries(annotators=(sitting.name,))) + 1
    shown = _shown(asked, sitting, again, number)
    began = time.perf_counter()
    _show(say, told, replace(asked, candidates=tuple(shown)), number)
    while True:
        reply = _ask(ask, told("prompt"))
        if reply == "q":
            return 0, False
        if reply == "u":
            back = store.undo(sitting.annotator)
            say.note(told("undone") if back else told("nothing_to_undo"))
            if back is None:
                continue
            return -1, True
        if reply == "w":
            text = _ask(ask, told("write"), lower=False)
            if not text or text in (c.text for c in shown) or len(shown) >= KEYS:
                say.note(told("not_written", most=KEYS))
                continue
            shown.append(store.add_candidate(asked.id, Candidate(text, author=sitting.name)))
            _show(say, told, replace(asked, candidates=tuple(shown)), number)
            continue
        entry = _entry(replace(asked, candidates=tuple(shown)), reply, sitting.name)
        if isinstance(entry, Wrong):
            say.note(told(entry.key, **entry.values))
            continue
        seconds = round(time.perf_counter() - began, 2)
        stamp = datetime.now(UTC).isoformat(timespec="seconds")
        store.record(replace(entry, when=stamp, seconds=seconds, again=again))
        return 1, True


def _entry(asked: Asked, reply: str, name: str) -> Entry | Wrong:
    n = len(asked.candidates)
    if reply == "s":
        return Entry(asked, (), name, "skip")
    if reply == "n":
        return Entry(asked, (tuple(range(n)),), name, "none")
    order = parse_order(reply, n)
    return order if isinstance(order, Wrong) else Entry(asked, order, name)


def parse_order(reply: str, n: int) -> tuple[tuple[int, ...], ...] | Wrong:
    """``3=1 2`` or ``3=12`` → ((2, 0), (1,)); the others come last, tied."""
    plain = re.sub(r"[\s,>]", "", reply)
    if plain in ("", "?"):
        return Wrong("help", {})
    if not re.fullmatch(r"\d(=?\d)*", plain):
        return Wrong("no_order", {"typed": reply})
    groups: list[list[int]] = []
    for tie, digit in re.findall(r"(=?)(\d)", plain):
        index = int(digit) - 1
        if not 0 <= index < n:
            return Wrong("no_such", {"number": digit, "n": n})
        if any(index in group for group in groups):
            return Wrong("twice", {"number": digit})
        if tie:
            groups[-1].append(index)
        else:
            groups.append([index])
    rest = [i for i in range(n) if not any(i in group for group in groups)]
    return tuple(map(tuple, [*groups, rest] if rest else groups))


def differing(asked: Asked, name: str, most: int) -> list[Candidate]:
    """At most ``most`` answers that differ the most in meaning; what others wrote themselves is theirs alone."""
    own = [c for c in asked.candidates if not c.author or c.author == name]
    meaning = text_meaning(asked.question)
    return [own[i] for i in spread([meaning(c.text) for c in own], min(most, KEYS))]


def _shown(asked: Asked, sitting: Sitting, again: bool, number: int) -> list[Candidate]:
    """The answers that differ the most, in an order of chance; what is asked again is shown whole."""
    out = list(asked.candidates) if again else differing(asked, sitting.name, sitting.shown)
    random.Random(mix(number, *sitting.name.encode(), *asked.question.prompt.encode())).shuffle(out)
    return out


def _show(say: Say, told: Words, asked: Asked, number: int) -> None:
    rows = [(str(i), _line(c.text)) for i, c in enumerate(asked.candidates, 1)]
    say.note("\n" + told("title", number=number, question=_line(asked.question.transcript)))
    say.table("", ("", told("answer")), rows)


def _line(text: str) -> str:
    """A model's text on one line."""
    return " ".join(text.split())


def _ask(ask: Callable[[str], str], prompt: str, lower: bool = True) -> str:
    try:
        reply = ask(prompt).strip()
    except EOFError:
        return "q" if lower else ""
    return reply.lower() if lower else reply
