"""The rank stage's material: candidates from the model, their order, and what the reward model is fitted to."""

from __future__ import annotations

import math
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from klype.data.seeds import mix
from klype.errors import KlypeError
from klype.model.transformer import Transformer
from klype.preferences import formats
from klype.preferences.annotators import Scorer, rank_simulated, ranks
from klype.preferences.candidates import merge_near_duplicates
from klype.preferences.records import SIMULATED, Candidate, Entry, Part, RankingItem, entry_of
from klype.preferences.store import Store
from klype.runs.options import RunOptions, StageOptions
from klype.runs.rankers import Sitting, now, rank_by_hand
from klype.runs.say import RunListener
from klype.runs.task import AnswerSettings, Task, draw_answers
from klype.text.chat import Chat
from klype.train.preference import NoPreferencesError, RankedAnswers
from klype.values import Question, Ranking

STORE = "rankings.db"  # of a run, in its folder rank/
BEFORE_STORES: tuple[tuple[str, Part], ...] = (
    ("rankings.jsonl", "train"),
    ("held-out.jsonl", "held-out"),
)  # what older runs have in its place
FEWEST = 100  # questions that are ranked however short the time, and by which it is measured
SLACK = 1.5  # times their part of the time is what rankings may take before there are fewer
BY_HAND = 40  # questions that a person is asked to rank


@dataclass(frozen=True, slots=True)
class RankedSets:
    """Rankings as token ids; ``exact`` are the held-out ones with their texts. ``noise``: the annotator's known chance
    to err, None for people."""

    train: list[RankedAnswers]
    held_out: list[RankedAnswers]
    exact: list[Ranking]
    annotator: str
    noise: float | None


def make(
    model: Transformer,
    task: Task,
    options: RunOptions | StageOptions,
    folder: Path,
    say: RunListener,
    seconds: float = math.inf,
) -> str:
    """Fills the run's store; what is there already stays (a person's work goes on where it stopped).
    Simulated ones are as many as fit into ``seconds``."""
    with open_store(folder) as store:
        given = task.given_rankings()
        if given:
            parts = _parts([r.question for r in given])
            entries = [entry_of(r, part, "imported") for r, part in zip(given, parts, strict=True)]
            store.put(entries)
            return f"{len(given)} rankings were given; {parts.count('held-out')} of them are held out"
        if options.human:
            if not store.questions():
                questions = _each_once([task.questions(1)(i) for i in range(BY_HAND)], [])
                store.add(_asked(questions, draw(model, task, questions, options.seed), _parts(questions)))
            rank_by_hand(store, Sitting("you"), say)
            done = store.entries(annotators=("you",))
            held_out = sum(e.asked.part == "held-out" for e in done)
            if not done:
                raise KlypeError(
                    "Nothing was ranked.", "Rank at least one question, or let the simulated annotator do it."
                )
            return f"{len(done)} questions ranked by you; {held_out} of them are held out"
        return _simulated(store, model, task, options.seed, seconds)


def has_store(folder: Path) -> bool:
    """Whether answers lie in a run's folder ``rank``, to be ranked or ranked already."""
    return any((folder / name).is_file() for name in (STORE, *(name for name, _ in BEFORE_STORES)))


def open_store(folder: Path) -> Store:
    """The store of a run's folder ``rank``, made when it is missing; an older run's files of rankings go into it."""
    new = not (folder / STORE).exists()
    store = Store.open(folder / STORE)
    if new:
        store.put(_older(folder))
    return store


def _older(folder: Path) -> list[Entry]:
    found: list[Entry] = []
    for name, part in BEFORE_STORES:
        if (folder / name).is_file():
            found += [replace(e, asked=replace(e.asked, part=part)) for e in formats.read(folder / name)]
    return found


def _simulated(store: Store, model: Transformer, task: Task, seed: int, seconds: float) -> str:
    section = task.recipe.rank
    annotator = Scorer(task.annotator_name, lambda question, answer: task.judge(question, answer, True).score)
    entries: list[Entry] = []
    drawn = 0
    held_out = _each_once(task.held_out[: section.held_out], [])
    questions = _each_once([task.questions(1)(i) for i in range(section.questions)], held_out)
    began = time.perf_counter()
    drawn_first = draw(model, task, questions[:FEWEST], seed)
    a_question = (time.perf_counter() - began) / max(1, len(drawn_first))
    fitting = SLACK * seconds / max(a_question, 1e-9) - len(held_out)
    questions = questions[: max(FEWEST, round(min(fitting, len(questions))))]
    drawn_first += draw(model, task, questions[FEWEST:], seed, first=FEWEST)
    rounds: list[tuple[Part, Sequence[Question], float, list[list[Candidate]]]] = [
        ("train", questions, section.noise, drawn_first),
        ("held-out", held_out, 0.0, draw(model, task, held_out, seed + 1)),
    ]
    for at, (part, asked, noise, candidates) in enumerate(rounds):
        rng = random.Random(mix(seed, at, 9))
        for one in _asked(asked, candidates, [part] * len(asked)):
            ranking = rank_simulated(annotator, one.question, [c.text for c in one.candidates], noise, rng)
            entries.append(Entry(one, ranking.order, ranking.annotator, by="simulated", when=now()))
            drawn += len(one.candidates) if part == "train" else 0
    store.put(entries)
    ranked = sum(e.asked.part == "train" for e in entries)
    return f"{ranked} questions, {drawn:,} answers, ranked by the simulated annotator"


def _each_once(questions: Sequence[Question], but: Sequence[Question]) -> list[Question]:
    """Equal questions once, those of ``but`` never: a question has one ranking, which is learnt from or held out."""
    taken = {question.prompt for question in but}
    found = {q.prompt: q for q in reversed(questions) if q.prompt not in taken}
    return list(reversed(found.values()))


def _asked(
    questions: Sequence[Question], candidates: Sequence[Sequence[Candidate]], parts: Sequence[Part]
) -> list[RankingItem]:
    """Questions with two answers or more: one answer cannot be ranked."""
    rows = zip(questions, candidates, parts, strict=True)
    return [RankingItem(question, tuple(answers), part) for question, answers, part in rows if len(answers) > 1]


def draw(
    model: Transformer,
    task: Task,
    questions: Sequence[Question],
    seed: int,
    name: str = "finetune",
    first: int = 0,
) -> list[list[Candidate]]:
    """Different finished answers to each question: drawn, drawn hot, and wrong ones where the task can make them.

    ``name`` says which model answered; ``first``: the number of the first question.
    """
    section = task.recipe.rank
    groups: list[list[Candidate]] = [[] for _ in questions]
    for n, temperature in ((section.drawn, 1.0), (section.hot, section.hot_temperature)):
        if n == 0:
            continue
        for answers, traces in zip(
            groups, draw_answers(task, model, questions, AnswerSettings(temperature, n)), strict=True
        ):
            for trace in traces:
                if trace.ended == "stop":
                    bare = replace(trace, steps=tuple(replace(s, distribution=None) for s in trace.steps), model=name)
                    answers.append(
                        Candidate(task.chat.tokenizer.decode_answer(trace.tokens), name, temperature, trace=bare)
                    )
    for i, (question, answers) in enumerate(zip(questions, groups, strict=True), first):
        answers += [Candidate(text, "made wrong") for text in task.wrong_answers(question, section.wrong, mix(seed, i))]
    return [different(task, question, answers) for question, answers in zip(questions, groups, strict=True)]


def different(task: Task, question: Question, answers: Sequence[Candidate]) -> list[Candidate]:
    """Each answer once: near-duplicates that are as right are one; white space at the ends and blank answers go."""
    kept = [replace(c, text=text) for c in answers if (text := c.text.strip())]
    merged = merge_near_duplicates([c.text for c in kept], meaning=lambda text: task.judge(question, text, True).right)
    return [kept[first] for first, *_ in merged]


def load(task: Task, folder: Path, annotators: Sequence[str] = ()) -> RankedSets:
    """The rankings that the rank stage left, as token ids: those of ``annotators``, or of all.

    Simulated annotators are a stand-in: when none are named, and somebody else ranked too, theirs are left out. Raises
    NoPreferencesError.
    """
    if (folder / STORE).exists():
        with Store.open(folder / STORE, read_only=True) as store:
            found = store.entries(annotators=annotators)
    else:
        found = [e for e in _older(folder) if not annotators or e.annotator in annotators]
    entries = [e for e in found if e.kind != "skip"]
    if not annotators and any(e.by != "simulated" for e in entries):
        entries = [e for e in entries if e.by != "simulated"]
    if entries and not any(e.asked.part == "held-out" for e in entries):
        parts = _parts([e.asked.question for e in entries])
        entries = [replace(e, asked=replace(e.asked, part=part)) for e, part in zip(entries, parts, strict=True)]
    train, held_out = (
        _fitting(task, [e.ranking() for e in entries if e.asked.part == part]) for part in ("train", "held-out")
    )
    if not train:
        raise NoPreferencesError(
            f"There are no rankings in {folder} that fit the model's window.",
            "Rank some answers first: klype rank MODEL.",
        )
    annotator = train[0].annotator
    known = annotator.startswith(SIMULATED) and not task.given_rankings()
    noise = task.recipe.rank.noise if known else None
    return RankedSets(
        [tokens(task.chat, r) for r in train],
        [tokens(task.chat, r) for r in held_out],
        held_out,
        annotator,
        noise,
    )


def unranked(task: Task, folder: Path) -> list[tuple[Question, RankedAnswers]]:
    """The run's answers to the questions that are learnt from, as token ids, each question's all tied."""
    with open_store(folder) as store:
        asked = [one for one in store.questions("train") if len(one.candidates) > 1]
    tied = [
        Ranking(one.question, tuple(c.text for c in one.candidates), (tuple(range(len(one.candidates))),), "")
        for one in asked
    ]
    return [(ranking.question, tokens(task.chat, ranking)) for ranking in _fitting(task, tied)]


def tokens(chat: Chat, ranking: Ranking) -> RankedAnswers:
    """A ranking as a reward model reads it."""
    tokenizer = chat.tokenizer
    answers = tuple((*tokenizer.encode_answer(text), tokenizer.end) for text in ranking.candidates)
    return RankedAnswers(tuple(chat.prompt(ranking.question.messages())), answers, ranks(ranking))


def _fitting(task: Task, rankings: Sequence[Ranking]) -> list[Ranking]:
    """Rankings of the candidates that fit into the model's window behind their question, of two or more."""
    window, kept = task.recipe.model.window, []
    for ranking in rankings:
        read = tokens(task.chat, ranking)
        fits = {i for i, answer in enumerate(read.answers) if len(read.prompt) + len(answer) <= window}
        place = {old: new for new, old in enumerate(sorted(fits))}
        order = tuple(group for g in ranking.order if (group := tuple(place[i] for i in g if i in fits)))
        if len(fits) > 1:
            candidates = tuple(c for i, c in enumerate(ranking.candidates) if i in fits)
            kept.append(replace(ranking, candidates=candidates, order=order))
    return kept


def _parts(questions: Sequence[Question]) -> list[Part]:
    """A seventh of the questions is held out, and at least one; the same question always goes the same way."""
    prompts = sorted({q.prompt for q in questions}, key=lambda p: (mix(len(p), *p.encode()[:64]), p))
    kept = set(prompts[: max(1, len(prompts) // 7)]) if len(prompts) > 1 else set()
    return ["held-out" if q.prompt in kept else "train" for q in questions]
