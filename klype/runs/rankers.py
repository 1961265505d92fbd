"""Rankings by simulated annotators, a judge model or a reward function, and how well annotators agree."""

import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from itertools import combinations
from pathlib import Path
from typing import Any

from klype.data.seeds import mix
from klype.errors import KlypeError, UsageError
from klype.examine.intervals import mean_by_question
from klype.preferences.agreement import alpha, kendall_tau_b
from klype.preferences.annotators import Scorer, contradictions, first_shown, rank_simulated, taste
from klype.preferences.records import MODEL, SIMULATED, By, Entry
from klype.preferences.store import Store
from klype.runs import provenance
from klype.train.rewards import scores
from klype.values import Figure, Question, Ranking, Reward
from klype.world import World

Rank = Callable[[Question, Sequence[str], random.Random], Ranking]


def check_noise(noise: float) -> None:
    """UsageError for a chance to swap neighbours that is not below a half."""
    if not 0 <= noise < 0.5:
        raise UsageError(f"noise should be from 0 to below .5 (it is {noise}).")


def by_taste(world: World, text: str, noise: float, name: str = "") -> Rank:
    """Returns a Rank function that simulates an annotator: weighs what the world's judge sees by the taste ``text``,
    and errs with probability ``noise``, below .5. ``name``: the annotator's, by default made from the taste."""
    own = taste(text)
    # rank_simulated adds the prefix again
    name = name.removeprefix(SIMULATED) or (f"taste {own}" if str(own) else "usual taste")
    annotator = Scorer(name, lambda question, answer: own.score(world.judge(question, answer, True)))
    return lambda question, answers, rng: rank_simulated(annotator, question, answers, noise, rng)


def by_model(annotator: Scorer) -> Rank:
    """Returns a Rank function that orders by a model's scores (see ``model_scorer``); deterministic."""
    return lambda question, answers, rng: rank_simulated(annotator, question, answers, 0.0, rng, MODEL)


def by_function(reward: Reward, name: str) -> Rank:
    """Returns a Rank function that orders by a reward function of questions and answers; equal numbers tied."""

    def rank(question: Question, answers: Sequence[str], rng: random.Random) -> Ranking:
        worth = dict(zip(answers, scores(reward, [question.transcript] * len(answers), answers, name), strict=True))
        return rank_simulated(Scorer(name, lambda _, answer: worth[answer]), question, answers, 0.0, rng, MODEL)

    return rank


def world_of(run: Path | None) -> World:
    """The demo world of a run, which simulated annotators judge by. UsageError for other runs."""
    if (world := provenance.world_of(run)) is None:
        raise UsageError("Simulated annotators know the demo world only.", "Rank by hand, or with --judge MODEL.")
    return world


def rank_all(store: Store, rank: Rank, by: By, most: int, seed: int, first: Sequence[int] = ()) -> int:
    """Ranks the questions that this annotator has not ranked yet, at most ``most`` (0: all), and a tenth of them twice.
    Returns the number of rankings.

    The questions with the ids ``first`` come first. Rankings are stored in batches, and also when a later question
    fails, so that an interrupted call can be repeated.
    """
    place = {number: i for i, number in enumerate(first)}
    ranked: list[Entry] = []
    done: set[int] | None = None
    written = 0
    try:
        for asked in sorted(store.questions(), key=lambda asked: place.get(asked.id, len(place))):
            if most and written + len(ranked) >= most:
                break
            if len(asked.candidates) < 2:
                continue
            rng, order = random.Random(mix(seed, asked.id, 11)), list(asked.candidates)
            rng.shuffle(order)
            for again in (False, True) if asked.id % 10 == 0 else (False,):
                found = rank(asked.question, [c.text for c in order], rng)
                if done is None:
                    done = {e.asked.id for e in store.entries(annotators=(found.annotator,))}
                if asked.id in done:
                    break
                shown = replace(asked, candidates=tuple(order))
                ranked.append(Entry(shown, found.order, found.annotator, by=by, when=now(), again=again))
            if len(ranked) >= 100:
                whole, ranked = ranked, []  # an interrupt during the writing must not write them twice
                written += len(store.record_all(whole))
    finally:
        written += len(store.record_all(ranked))
    return written


def summary(entries: Sequence[Entry]) -> dict[str, Any]:
    """How much everybody has ranked, how well annotators agree with themselves and each other, and contradictions, as
    ``klype rank --json`` prints it."""
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
    opposed, cyclic = _share(found.opposed, found.pairs), _share(found.cyclic, found.triads)
    return {
        "annotators": [habits(name, own[name]) for name in names],
        "between": between,
        "alpha": {level: alpha(shared, level).json() for level in ("ordinal", "nominal")},
        "contradictions": {"opposed_pairs": opposed, "cyclic_triads": cyclic},
    }


def habits(name: str, entries: Sequence[Entry]) -> dict[str, Any]:
    """How much one annotator has ranked, how consistently, and whether mostly what was shown first."""
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
    """The share k/n as a figure without an interval: pairs of the same answers are not independent."""
    return Figure(k / n if n else None, n=n, unit="share", why="" if n else "nothing was ordered more than once").json()


def check_store(store: Store) -> None:
    """Raises KlypeError if there is nothing to rank, and DamagedError before anyone ranks in a damaged store."""
    store.entries()
    if not any(len(asked.candidates) > 1 for asked in store.questions()):
        raise KlypeError(
            f"The store {store.place} has no question with two answers.", "Make some: klype train rank --from MODEL."
        )


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
