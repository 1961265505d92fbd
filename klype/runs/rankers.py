"""Who ranks what is in a store: a person with a few keys, simulated annotators, a judging model; their agreement."""

from __future__ import annotations

import random
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from itertools import combinations
from pathlib import Path
from typing import Any

from klype.data.seeds import mix
from klype.errors import KlypeError, UsageError
from klype.examine.intervals import mean_by_question
from klype.judge.meaning import text_meaning
from klype.preferences.agreement import alpha, kendall_tau_b
from klype.preferences.annotators import ModelJudge, Scorer, Taste, contradictions, first_shown, rank_simulated
from klype.preferences.candidates import spread
from klype.preferences.records import MODEL, SIMULATED, By, Candidate, Entry, Kind, RankingItem
from klype.preferences.schema import Annotator
from klype.preferences.store import Store
from klype.runs.folder import read_run
from klype.runs.say import RunListener
from klype.train.rewards import scores
from klype.values import Figure, Question, Ranking, Reward, Verdict
from klype.words import Words, words
from klype.world import World

SHOWN = 6
KEYS = 9  # one digit per answer
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
        return Annotator(self.name, "person", self.id)


class MisreadError(ValueError):
    """What was typed is no order. ``args``: a message's key, and its values."""


def rank_by_hand(store: Store, sitting: Sitting, say: RunListener, ask: Callable[[str], str] = input) -> int:
    """Asks for an order of the next question's answers until the annotator stops or nothing is left; how many.

    Answers come in an order of chance, blind to where they come from. Ctrl-C ends it as q does, and is passed on.
    """
    told, who = words(sitting.lang, "ranking"), sitting.annotator
    talk = _Conversation(store, sitting, say, told, ask)
    say.note(told("help"))
    before, done = len(store.entries(annotators=(sitting.name,))), 0
    try:
        while not sitting.most or done < sitting.most:
            # now and then one ranked before, to see how far one agrees with oneself
            repeats = sitting.again_every and done % sitting.again_every == sitting.again_every - 1
            again = store.claim_again(who) if repeats else None
            part = "held-out" if done % HELD_OUT_EVERY == HELD_OUT_EVERY - 1 else "train"
            asked = again or store.claim(who, part) or store.claim(who)
            if asked is None:
                say.note(told("nothing_left"))
                break
            more = talk.about(asked, again is not None)
            if more is None:
                break
            done = max(0, done + more)
    finally:  # with Ctrl-C too
        store.release(who)
        found = len(store.entries(annotators=(sitting.name,)))
        say.note("\n" + told("end", now=max(0, found - before), all=found))
    return found - before


@dataclass(frozen=True, slots=True)
class _Conversation:
    """One question in a terminal."""

    store: Store
    sitting: Sitting
    say: RunListener
    told: Words
    ask: Callable[[str], str]

    def about(self, asked: RankingItem, again: bool) -> int | None:
        """Asks until there is an answer. How many more are ranked now; None when the annotator stops."""
        store, name, told = self.store, self.sitting.name, self.told
        number = len(store.entries(annotators=(name,))) + 1
        # The answers that differ the most, in an order of chance; what is asked again is shown whole.
        shown = list(asked.candidates) if again else differing(asked, name, self.sitting.shown)
        random.Random(mix(number, *name.encode(), *asked.question.prompt.encode())).shuffle(shown)
        began = time.perf_counter()
        self._show(asked.question, shown, number)
        while True:
            reply = self._reply("prompt", "q").lower()
            if reply == "q":
                return None
            if reply == "u":
                back = store.undo(self.sitting.annotator)
                self.say.note(told("undone") if back else told("nothing_to_undo"))
                if back is not None:
                    return -1
            elif reply == "w":
                text = self._reply("write", "")
                if not text or text in (c.text for c in shown) or len(shown) >= KEYS:
                    self.say.note(told("not_written", most=KEYS))
                else:
                    shown.append(store.add_candidate(asked.id, Candidate(text, author=name)))
                    self._show(asked.question, shown, number)
            else:
                kind: Kind = "skip" if reply == "s" else "none" if reply == "n" else "order"
                tied = {"skip": (), "none": (tuple(range(len(shown))),)}
                try:
                    order = tied[kind] if kind in tied else parse_order(reply, len(shown))
                except MisreadError as wrong:
                    key, values = wrong.args
                    self.say.note(told(key, **values))
                    continue
                seconds = round(time.perf_counter() - began, 2)
                seen = replace(asked, candidates=tuple(shown))
                store.record(Entry(seen, order, name, kind, when=now(), seconds=seconds, again=again))
                return 1

    def _show(self, question: Question, shown: Sequence[Candidate], number: int) -> None:
        rows = [(str(i), _line(c.text)) for i, c in enumerate(shown, 1)]
        self.say.note("\n" + self.told("title", number=number, question=_line(question.transcript)))
        self.say.table("", ("", self.told("answer")), rows)

    def _reply(self, prompt: str, at_the_end: str) -> str:
        try:
            return self.ask(self.told(prompt)).strip()
        except EOFError:
            return at_the_end


def _line(text: str) -> str:
    """A model's text on one line."""
    return " ".join(text.split())


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


def differing(asked: RankingItem, name: str, most: int) -> list[Candidate]:
    """At most ``most`` answers that differ the most in meaning; what others wrote themselves is theirs alone."""
    own = [c for c in asked.candidates if not c.author or c.author == name]
    meaning = text_meaning(asked.question)
    return [own[i] for i in spread([meaning(c.text) for c in own], min(most, KEYS))]


Judge = Callable[[Question, str, bool], Verdict]
Rank = Callable[[Question, Sequence[str], random.Random], Ranking]


def check_noise(noise: float) -> None:
    """UsageError where an annotator would swap neighbours as often as not."""
    if not 0 <= noise < 0.5:
        raise UsageError(f"noise should be from 0 to below .5 (it is {noise}).")


def by_taste(taste: Taste, judge: Judge, noise: float, name: str) -> Rank:
    """Returns a Rank function that simulates an annotator: weighs what ``judge`` sees by ``taste``, and errs with
    probability ``noise``, below .5."""
    check_noise(noise)
    annotator = Scorer(name, lambda question, answer: taste.score(judge(question, answer, True)))
    return lambda question, answers, rng: rank_simulated(annotator, question, answers, noise, rng)


def by_model(judge: ModelJudge) -> Rank:
    """Returns a Rank function that orders by a judge model's scores; deterministic."""
    annotator = judge.annotator()
    return lambda question, answers, rng: rank_simulated(annotator, question, answers, 0.0, rng, MODEL)


def by_function(reward: Reward, name: str) -> Rank:
    """Returns a Rank function that orders by a reward function of questions and answers; equal numbers tied."""

    def rank(question: Question, answers: Sequence[str], rng: random.Random) -> Ranking:
        worth = dict(zip(answers, scores(reward, [question.transcript] * len(answers), answers, name), strict=True))
        return rank_simulated(Scorer(name, lambda _, answer: worth[answer]), question, answers, 0.0, rng, MODEL)

    return rank


def world_of(run: Path | None) -> World:
    """The demo world that a run is about, whose truth simulated annotators know. UsageError for other runs."""
    settings = read_run(run).get("settings", {}) if run is not None else {}
    if settings.get("kind") != "world":
        raise UsageError("Simulated annotators know the demo world only.", "Rank by hand, or with --judge MODEL.")
    return World(settings.get("world", "full"))


def rank_all(store: Store, rank: Rank, by: By, most: int, seed: int, first: Sequence[int] = ()) -> int:
    """Every question that this annotator has not ranked yet, at most ``most`` (0: all), and a tenth twice; how many.

    The questions with the ids ``first`` come first. Each batch is durable before the next is begun, and what was ranked
    is kept when a later question fails, so that interrupted work resumes where it was.
    """
    place = {number: i for i, number in enumerate(first)}
    wanted = sorted(store.questions(), key=lambda asked: place.get(asked.id, len(place)))
    ranked: list[Entry] = []
    done: set[int] | None = None
    written = 0
    for asked in wanted:
        if most and written + len(ranked) >= most:
            break
        if len(asked.candidates) < 2:
            continue
        rng = random.Random(mix(seed, asked.id, 11))
        order = list(range(len(asked.candidates)))
        rng.shuffle(order)
        shown = replace(asked, candidates=tuple(asked.candidates[i] for i in order))
        try:
            entry = _entry(shown, rank, by, rng)
        except KlypeError:
            store.record_all(ranked)
            raise
        if done is None:
            done = {e.asked.id for e in store.entries(annotators=(entry.annotator,))}
        if asked.id in done:
            continue
        ranked.append(entry)
        if asked.id % 10 == 0:
            ranked.append(replace(_entry(shown, rank, by, rng), again=True))
        if len(ranked) >= 100:
            written += len(store.record_all(ranked))
            ranked = []
    return written + len(store.record_all(ranked))


def _entry(asked: RankingItem, rank: Rank, by: By, rng: random.Random) -> Entry:
    ranking = rank(asked.question, [c.text for c in asked.candidates], rng)
    return Entry(asked, ranking.order, ranking.annotator, by=by, when=now())


def summary(entries: Sequence[Entry]) -> dict[str, Any]:
    """Who ranked how much, how well each agrees with oneself and with others, and what looks wrong."""
    names = list(dict.fromkeys(e.annotator for e in entries))
    own = {name: [e for e in entries if e.annotator == name] for name in names}
    ranked = [e for e in entries if e.kind != "skip"]
    found = contradictions([r for e in ranked if len({*(r := e.ranking()).candidates}) == len(r.candidates)])
    by_question: dict[int, dict[str, Ranking]] = {}
    for entry in ranked:
        by_question.setdefault(entry.asked.id, {}).setdefault(entry.annotator, entry.ranking())
    shared = [list(of.values()) for of in by_question.values() if len(of) > 1]
    between = []
    for a, b in combinations(names, 2):
        mine, theirs = ([e for e in own[name] if e.kind != "skip" and not e.again] for name in (a, b))
        of_b = {e.asked.id: e for e in theirs}
        both = [(e, of_b[e.asked.id]) for e in mine if e.asked.id in of_b and _same(e, of_b[e.asked.id])]
        between.append({"annotators": [a, b], "tau_b": _tau(both).json()})
    return {
        "annotators": [_annotator_summary(name, own[name]) for name in names],
        "between": between,
        "alpha": {level: alpha(shared, level).json() for level in ("ordinal", "nominal")},
        "contradictions": {
            "opposed_pairs": _share(found.opposed, found.pairs),
            "cyclic_triads": _share(found.cyclic, found.triads),
        },
    }


def _annotator_summary(name: str, entries: Sequence[Entry]) -> dict[str, Any]:
    habit = first_shown(entries)
    times = [e.seconds for e in entries if e.seconds is not None]
    ranked = [e for e in entries if e.kind != "skip"]
    first: dict[int, Entry] = {}
    pairs = []
    for entry in ranked:
        earlier = first.setdefault(entry.asked.id, entry)
        if earlier is not entry and _same(earlier, entry):
            pairs.append((earlier, entry))
    return {
        "name": name,
        "by": entries[0].by,
        "rankings": len(ranked),
        "none_good": sum(e.kind == "none" for e in entries),
        "skipped": len(entries) - len(ranked),
        "seconds": sum(times) if times else None,
        "with_oneself": _tau(pairs).json(),
        "always_first": habit.pop("always"),
        "first_shown": habit,
    }


def _tau(pairs: Sequence[tuple[Entry, Entry]]) -> Figure:
    """Mean Kendall τ-b; pairs in which one ties everything have none."""
    found = [kendall_tau_b(a.ranking(), b.ranking()) for a, b in pairs]
    known = [tau for tau in found if tau is not None]
    if not known:
        return Figure(None, unit="τ-b", why="no question was ranked twice with the same answers")
    return mean_by_question(known, range(len(known)), "τ-b", within=(-1.0, 1.0))


def _same(a: Entry, b: Entry) -> bool:
    texts = [c.text for c in a.asked.candidates]
    return len(set(texts)) == len(texts) and sorted(texts) == sorted(c.text for c in b.asked.candidates)


def _share(k: int, n: int) -> dict[str, Any]:
    """Without an interval: pairs of the same answers are not independent."""
    return Figure(k / n if n else None, n=n, unit="share", why="" if n else "nothing was ordered more than once").json()


def checked(store: Store) -> None:
    """KlypeError when there is nothing that could be ranked."""
    if not any(len(asked.candidates) > 1 for asked in store.questions()):
        raise KlypeError(
            f"The store {store.place} has no question with two answers.", "Make some: klype train rank --from MODEL."
        )


def label(name: str, taste: Taste) -> str:
    """The name of a simulated annotator, without what ``rank_simulated`` puts before it."""
    return name.removeprefix(SIMULATED) or (f"taste {taste}" if str(taste) else "usual taste")


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
