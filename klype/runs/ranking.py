"""A run's rankings: draws answers into its store, ranks them, reads them back, and chooses what to rank next."""

import math
import random
import tempfile
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from klype.data.seeds import draw_seed, mix
from klype.errors import KlypeError
from klype.judge.meaning import text_meaning
from klype.model import checkpoint
from klype.model.transformer import Transformer
from klype.preferences.annotators import Scorer, merge_near_duplicates, most_informative, rank_simulated, ranks
from klype.preferences.records import SIMULATED, Candidate, Entry, Part, RankingItem, entry_of
from klype.preferences.store import Store
from klype.runs.annotator_session import AnnotatorSession, rank_by_hand
from klype.runs.rankers import now
from klype.runs.run_options import RunOptions
from klype.runs.stages import RunContext, seconds_for
from klype.runs.task import Task
from klype.sources.source import NativeSource, Source, answers
from klype.text.chat import Chat
from klype.train.preference import NoPreferencesError, RankedAnswers
from klype.train.reward_model import RewardSettings, fit_reward
from klype.values import Question, Ranking, Request, Sampling

STORE = "rankings.db"  # in a run's folder rank/
MIN_RANKED = 100  # questions that are ranked however short the time; their answers are timed
SLACK = 1.5  # fewer questions are ranked when that would take more than this many times their part of the time
BY_HAND = 40  # questions that a person is asked to rank


@dataclass(frozen=True, slots=True)
class RankedSets:
    """A run's train and held-out rankings as token ids; ``exact``: the held-out ones as text. ``noise``: the simulated
    annotator's error rate, None for people."""

    train: list[RankedAnswers]
    held_out: list[RankedAnswers]
    exact: list[Ranking]
    annotator: str
    noise: float | None


def rank(run: RunContext) -> None:
    """Ranks several answers to each question in the run's store: as given, by a person (who can stop and resume), or by
    the simulated annotator, as many questions as there is time for."""
    run.say.stage_start("rank", 0)
    task, options = run.task, run.options
    with open_store(run.folder / "rank") as store:
        if given := task.given_rankings:
            parts = _parts([r.question for r in given])
            store.put([entry_of(r, part, "imported") for r, part in zip(given, parts, strict=True)])
            made = f"{len(given)} rankings were given; {parts.count('held-out')} of them are held out"
        elif options.human:
            if not store.questions():
                questions = _distinct([task.questions(1)(i) for i in range(BY_HAND)], [])
                candidates = draw_for_task(run.model("finetune"), task, questions, options.seed)
                store.add(_items(questions, candidates, _parts(questions)))
            rank_by_hand(AnnotatorSession(store, "you", "sitting", again_every=0), run.say)
            if not (done := store.entries(annotators=("you",))):
                raise KlypeError(
                    "Nothing was ranked.", "Rank at least one question, or let the simulated annotator do it."
                )
            held_out = sum(e.asked.part == "held-out" for e in done)
            made = f"{len(done)} questions ranked by you; {held_out} of them are held out"
        else:
            seconds = seconds_for(run, "rank") if isinstance(options, RunOptions) else math.inf
            made = draw_and_rank(store, run.model("finetune"), task, options.seed, seconds)
    run.say.stage_end(made)


def has_store(folder: Path) -> bool:
    """Whether a run's folder ``rank`` has a store of answers, ranked or not."""
    return (folder / STORE).is_file()


def open_store(folder: Path) -> Store:
    """The store of a run's folder ``rank``, created when it is missing."""
    return Store.open(folder / STORE)


def draw_and_rank(store: Store, model: Transformer, task: Task, seed: int, seconds: float) -> str:
    """Draws and ranks answers to as many questions as fit into the time. Returns a sentence that says how many."""
    section = task.recipe.rank
    annotator = Scorer(task.annotator_name, lambda question, answer: task.judge(question, answer, True).score)
    held_out = _distinct(task.held_out[: section.held_out], [])
    questions = _distinct([task.questions(1)(i) for i in range(section.questions)], held_out)
    began = time.perf_counter()
    candidates = draw_for_task(model, task, questions[:MIN_RANKED], seed)
    a_question = (time.perf_counter() - began) / max(1, len(candidates))
    fitting = SLACK * seconds / max(a_question, 1e-9) - len(held_out)
    questions = questions[: max(MIN_RANKED, round(min(fitting, len(questions))))]
    candidates += draw_for_task(model, task, questions[MIN_RANKED:], seed, first=MIN_RANKED)
    items = _items(questions, candidates, ["train"] * len(questions))
    held_out_items = _items(held_out, draw_for_task(model, task, held_out, seed + 1), ["held-out"] * len(held_out))
    entries: list[Entry] = []
    for at, (asked, noise) in enumerate(((items, section.noise), (held_out_items, 0.0))):
        rng = random.Random(mix(seed, at, 9))
        for one in asked:
            ranking = rank_simulated(annotator, one.question, [c.text for c in one.candidates], noise, rng)
            entries.append(Entry(one, ranking.order, ranking.annotator, by="simulated", when=now()))
    store.put(entries)
    n = sum(len(one.candidates) for one in items)
    return f"{len(items)} questions, {n:,} answers, ranked by the simulated annotator"


def _distinct(questions: Sequence[Question], but: Sequence[Question]) -> list[Question]:
    """The questions without duplicates and those of ``but``: each is either trained on or held out."""
    taken = {question.prompt for question in but}
    found = {q.prompt: q for q in reversed(questions) if q.prompt not in taken}
    return list(reversed(found.values()))


def _items(
    questions: Sequence[Question], candidates: Sequence[Sequence[Candidate]], parts: Sequence[Part]
) -> list[RankingItem]:
    """The questions with at least two answers, as items to rank."""
    rows = zip(questions, candidates, parts, strict=True)
    return [RankingItem(question, tuple(answers), part) for question, answers, part in rows if len(answers) > 1]


@dataclass(frozen=True, slots=True)
class DrawSettings:
    """``n`` answers at each of ``temperatures``, of ``limit`` tokens at most, for ``most`` questions (0: all)."""

    temperatures: tuple[float, ...] = (1.0,)
    n: int = 4
    limit: int = 48
    most: int = 0
    seed: int = 0


def draw_candidates(
    source: Source, name: str, questions: Sequence[Question], settings: DrawSettings
) -> list[list[Candidate]]:
    """Each question's finished and non-empty answers by the model called ``name``."""
    codec, found = source.codec, [list[Candidate]() for _ in questions]
    for temperature in settings.temperatures:
        sampling, stop = Sampling(temperature=temperature), tuple(codec.stop)
        asked = [(codec.prompt(q.messages()), draw_seed(settings.seed, q.prompt, temperature)) for q in questions]
        requests = [Request(tuple(ids), settings.n, settings.limit, sampling, seed, stop) for ids, seed in asked]
        for group, traces in zip(found, answers(source, requests), strict=True):
            for trace in traces:
                if trace.ended == "stop" and (text := codec.decode(trace.tokens).strip()):
                    # the distributions are large and not read again
                    steps = tuple(replace(step, distribution=None) for step in trace.steps)
                    group.append(Candidate(text, name, temperature, trace=replace(trace, steps=steps, model=name)))
    return found


def draw_for_task(
    model: Transformer, task: Task, questions: Sequence[Question], seed: int, first: int = 0
) -> list[list[Candidate]]:
    """The fine-tuned model's distinct finished answers to each question, at temperature 1 and at a higher one, and
    wrong ones where the task can make them. ``first``: the number of the first question."""
    section, groups = task.recipe.rank, [list[Candidate]() for _ in questions]
    source = NativeSource.of(model, task.chat.tokenizer, task.chat)
    for n, temperature in ((section.drawn, 1.0), (section.hot, section.hot_temperature)):
        if n:
            settings = DrawSettings((temperature,), n, section.limit, seed=task.seed)
            for group, new in zip(groups, draw_candidates(source, "finetune", questions, settings), strict=True):
                group += new
    for i, (question, group) in enumerate(zip(questions, groups, strict=True), first):
        group += [Candidate(text, "made wrong") for text in task.wrong_answers(question, section.wrong, mix(seed, i))]
    return [distinct_answers(task, question, group) for question, group in zip(questions, groups, strict=True)]


def distinct_answers(task: Task, question: Question, answers: Sequence[Candidate]) -> list[Candidate]:
    """The answers, stripped, without empty ones and near-duplicates that are equally right."""
    kept = [replace(c, text=text) for c in answers if (text := c.text.strip())]
    merged = merge_near_duplicates([c.text for c in kept], meaning=lambda text: task.judge(question, text, True).right)
    return [kept[first] for first, *_ in merged]


def load(task: Task, folder: Path) -> RankedSets:
    """The rankings in a run's folder ``rank``, as token ids. Raises NoPreferencesError when none fits the window."""
    entries: list[Entry] = []
    if has_store(folder):
        with Store.open(folder / STORE, read_only=True) as store:
            entries = _by_people(store.entries())
    if entries and not any(e.asked.part == "held-out" for e in entries):
        parts = _parts([e.asked.question for e in entries])
        entries = [replace(e, asked=replace(e.asked, part=part)) for e, part in zip(entries, parts, strict=True)]
    train, held_out = (
        _fit_window(task.chat, task.recipe.model.window, [e.ranking() for e in entries if e.asked.part == part])
        for part in ("train", "held-out")
    )
    if not train:
        raise NoPreferencesError(
            f"There are no rankings in {folder} that fit the model's window.",
            "Rank some answers first: klype rank MODEL.",
        )
    annotator = train[0][0].annotator
    known = annotator.startswith(SIMULATED) and not task.given_rankings
    noise = task.recipe.rank.noise if known else None
    exact = [ranking for ranking, _ in held_out]
    return RankedSets([read for _, read in train], [read for _, read in held_out], exact, annotator, noise)


def _by_people(entries: Sequence[Entry]) -> list[Entry]:
    """The entries without skips, and without simulated annotators' where anybody else ranked too."""
    ranked = [e for e in entries if e.kind != "skip"]
    return [e for e in ranked if e.by != "simulated"] or ranked


def tied_answers(task: Task, folder: Path) -> list[tuple[Question, RankedAnswers]]:
    """The answers to the training questions, as token ids, all of a question tied."""
    with open_store(folder) as store:
        tied = [_all_tied(asked) for asked in store.questions("train")]
    return [(ranking.question, read) for ranking, read in _fit_window(task.chat, task.recipe.model.window, tied)]


def _all_tied(asked: RankingItem) -> Ranking:
    texts = tuple(c.text for c in asked.candidates)
    return Ranking(asked.question, texts, (tuple(range(len(texts))),), "")


def _fit_window(chat: Chat, window: int, rankings: Iterable[Ranking]) -> list[tuple[Ranking, RankedAnswers]]:
    """Rankings of those candidates that fit into the window behind their question, where at least two do; each with
    its token ids."""
    kept = []
    for ranking in rankings:
        prompt = tuple(chat.prompt(ranking.question.messages()))
        read = [(*chat.tokenizer.encode_answer(text), chat.tokenizer.end) for text in ranking.candidates]
        fits = [i for i, answer in enumerate(read) if len(prompt) + len(answer) <= window]
        if len(fits) > 1:
            order = tuple(group for g in ranking.order if (group := tuple(fits.index(i) for i in g if i in fits)))
            fitted = replace(ranking, candidates=tuple(ranking.candidates[i] for i in fits), order=order)
            kept.append((fitted, RankedAnswers(prompt, tuple(read[i] for i in fits), ranks(fitted))))
    return kept


def _parts(questions: Sequence[Question]) -> list[Part]:
    """The part of each question: a seventh is held out, at least one of several, independent of their order."""
    prompts = sorted({q.prompt for q in questions}, key=lambda p: (mix(len(p), *p.encode()[:64]), p))
    kept = set(prompts[: max(1, len(prompts) // 7)]) if len(prompts) > 1 else set()
    return ["held-out" if q.prompt in kept else "train" for q in questions]


# klype rank: further models' answers to a store's questions, and which questions to rank next

BATCH = 64  # questions per transaction
HEADS, STEPS = 8, 300  # of the ensemble of reward models whose disagreement orders the questions


def draw_into(store: Store, name: str, source: Source, settings: DrawSettings) -> int:
    """Adds the source's finished answers to the store, without near-duplicates and empty ones. Returns how many are
    new. What was drawn before an interruption stays."""
    asked, added = store.questions(), 0
    asked = asked[: settings.most] if settings.most else asked
    for start in range(0, len(asked), BATCH):
        part = asked[start : start + BATCH]
        news = []
        for one, new in zip(part, draw_candidates(source, name, [one.question for one in part], settings), strict=True):
            group = [*one.candidates, *new]
            merged = merge_near_duplicates([c.text for c in group], meaning=text_meaning(one.question))
            kept = tuple(group[first] for first, *_ in merged if first >= len(one.candidates))
            news += [replace(one, candidates=kept)] if kept else []
        store.add(news)
        added += sum(len(one.candidates) for one in news)
    return added


def prioritise(store: Store, run: Path, seed: int, device: torch.device | None = None) -> list[int]:
    """Orders the unranked questions by how much their rankings would teach. Returns their ids, most informative first.

    Raises KlypeError when there are no rankings yet to fit an ensemble of reward models to.
    """
    loaded = checkpoint.load(run / "finetune", device=device)
    if loaded.chat is None:
        raise KlypeError(f"The model in {run / 'finetune'} has no chat template.")
    window = loaded.model.config.window
    known = _by_people(store.entries())
    ranked = _fit_window(loaded.chat, window, [e.ranking() for e in known if e.asked.part == "train"])
    if not ranked:
        raise KlypeError("--active learns from rankings, and there are none yet.", "Rank some questions without it.")
    with tempfile.TemporaryDirectory() as folder:
        settings = RewardSettings(heads=HEADS, steps=STEPS, seed=seed)
        model = fit_reward(loaded.model, [read for _, read in ranked], settings, Path(folder))
    done = {e.asked.id for e in known}
    open_ = [asked for asked in store.questions("train") if asked.id not in done]
    read = [
        (asked.id, found[0][1]) for asked in open_ if (found := _fit_window(loaded.chat, window, [_all_tied(asked)]))
    ]
    groups = [model.scores([r.prompt] * len(r.answers), r.answers) for _, r in read]
    order = [read[i][0] for i in most_informative(groups)]
    store.prioritise({question: float(len(order) - place) for place, question in enumerate(order)})
    return order
