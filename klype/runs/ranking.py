"""The rank stage's material: candidates from the model, their order, and what the reward model is fitted to."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from klype.data.order import mix
from klype.errors import KlypeError
from klype.examine.intervals import ratio_of_means
from klype.model.transformer import Transformer
from klype.preferences import store
from klype.preferences.agreement import ceiling
from klype.preferences.annotator import Annotator, rank_simulated, ranks
from klype.runs.answering import answer_all, said
from klype.runs.human import rank_by_hand
from klype.runs.lessons import messages
from klype.runs.options import RunOptions, StageOptions
from klype.runs.say import Say
from klype.runs.subject import Subject
from klype.train.audit import bias_audit
from klype.train.rewards import PairOutcomes, Ranked, RewardModel, pair_outcomes
from klype.values import Figure, Question, Ranking, Sampling

TRAIN, HELD_OUT = "rankings.jsonl", "held-out.jsonl"
BY_HAND = 40  # questions that a person is asked to rank


@dataclass(frozen=True, slots=True)
class Made:
    says: str


@dataclass(frozen=True, slots=True)
class RankedSets:
    """Rankings as token ids; ``exact`` are the held-out ones with their texts. ``noise``: the ranker's known chance
    to err, None for people."""

    train: list[Ranked]
    held_out: list[Ranked]
    exact: list[Ranking]
    annotator: str
    noise: float | None


def make(model: Transformer, subject: Subject, options: RunOptions | StageOptions, folder: Path, say: Say) -> Made:
    """Writes both files of rankings; what is there already stays (a person's work goes on where it stopped)."""
    given = subject.given_rankings()
    if given:
        train, held_out = _by_question(given)
        _write(folder, train, held_out)
        return Made(f"{len(given)} rankings were given; {len(held_out)} of them are held out")
    section = subject.recipe.rank
    if options.human:
        questions = [subject.questions(1)(i) for i in range(BY_HAND)]
        candidates = draw(model, subject, questions, options.seed)
        rank_by_hand(folder / TRAIN, questions, candidates, say)
        train, held_out = _by_question(store.read(folder / TRAIN, say.note))
        _write(folder, train, held_out, keep=True)
        return Made(f"{len(train) + len(held_out)} questions ranked by you; {len(held_out)} of them are held out")
    annotator = Annotator(subject.annotator_name, lambda question, answer: subject.judge(question, answer, True).score)
    questions = [subject.questions(1)(i) for i in range(section.questions)]
    kept = subject.held_out[: section.held_out]
    sets: list[list[Ranking]] = []
    for part, asked, noise in ((0, questions, section.noise), (1, kept, 0.0)):
        candidates = draw(model, subject, asked, options.seed + part)
        rng = random.Random(mix(options.seed, part, 9))
        sets.append(
            [
                rank_simulated(annotator, question, answers, noise, rng)
                for question, answers in zip(asked, candidates, strict=True)
                if len(answers) > 1
            ]
        )
    _write(folder, sets[0], sets[1])
    drawn = sum(len(r.candidates) for r in sets[0])
    return Made(f"{len(sets[0])} questions, {drawn:,} answers, ranked by the simulated annotator")


def draw(model: Transformer, subject: Subject, questions: Sequence[Question], seed: int) -> list[list[str]]:
    """Different finished answers to each question: drawn, drawn hot, and wrong ones where the subject can make them."""
    section = subject.recipe.rank
    groups: list[list[str]] = [[] for _ in questions]
    for n, temperature in ((section.drawn, 1.0), (section.hot, section.hot_temperature)):
        if n == 0:
            continue
        for texts, traces in zip(
            groups, answer_all(model, subject, questions, Sampling(temperature=temperature), n=n), strict=True
        ):
            texts += [said(subject, trace) for trace in traces if trace.ended == "stop"]
    for i, (question, texts) in enumerate(zip(questions, groups, strict=True)):
        texts += subject.wrong_answers(question, section.wrong, mix(seed, i))
    return [_different(texts) for texts in groups]


def _different(texts: Sequence[str]) -> list[str]:
    """Each answer once, white space at its ends not counting; blank ones are none."""
    return list(dict.fromkeys(stripped for text in texts if (stripped := text.strip())))


def load(subject: Subject, folder: Path) -> RankedSets:
    """The rankings that the rank stage left, as token ids."""
    train, held_out = (_fitting(subject, store.read(folder / name)) for name in (TRAIN, HELD_OUT))
    if not train:
        raise KlypeError(
            f"There are no rankings in {folder} that fit the model's window.",
            "Rank some answers first: klype rank MODEL.",
        )
    annotator = train[0].annotator
    noise = subject.recipe.rank.noise if annotator.startswith("simulated") and not subject.given_rankings() else None
    return RankedSets(
        [_tokens(subject, r) for r in train], [_tokens(subject, r) for r in held_out], held_out, annotator, noise
    )


def agreement(model: RewardModel, ranked: RankedSets, subject: Subject, seed: int) -> dict[str, Figure]:
    """Held-out pair accuracy, the annotator's own ceiling, and what the reward leans on beside the taste."""
    outcomes = pair_outcomes(model, ranked.held_out) if ranked.held_out else None
    figures = {"pair_accuracy": _accuracy(outcomes), "ceiling": _ceiling(ranked, subject, seed)}
    if outcomes is not None:
        figures |= _audit(model, ranked, subject)
    return figures


def _accuracy(outcomes: PairOutcomes | None) -> Figure:
    if outcomes is None or not len(outcomes.right):
        return Figure(None, why="no held-out pair is ordered")
    questions = np.unique(outcomes.question)
    right = [float(outcomes.right[outcomes.question == q].sum()) for q in questions]
    pairs = [float((outcomes.question == q).sum()) for q in questions]
    return ratio_of_means(right, pairs, "share of pairs")


def _ceiling(ranked: RankedSets, subject: Subject, seed: int) -> Figure:
    if ranked.noise is None:
        return Figure(None, why="a person's own noise is known only from repeats")
    noise = ranked.noise
    annotator = Annotator("ceiling", lambda question, answer: subject.judge(question, answer, True).score)
    exact = ranked.exact

    def again(index: int, rng: random.Random) -> Ranking:
        return rank_simulated(annotator, exact[index].question, exact[index].candidates, noise, rng)

    found = [(right, pairs) for right, pairs in ceiling(again, exact, seed, repeats=5) if pairs]
    if not found:
        return Figure(None, why="no held-out pair is ordered")
    return ratio_of_means([r for r, _ in found], [float(p) for _, p in found], "share of pairs")


def _audit(model: RewardModel, ranked: RankedSets, subject: Subject) -> dict[str, Figure]:
    """Partial correlations of the reward with length and politeness, given the annotator's score."""
    scores, quality, length, polite, groups = [], [], [], [], []
    for index, (tokens, ranking) in enumerate(zip(ranked.held_out, ranked.exact, strict=True)):
        scores += model.score([tokens.prompt] * len(tokens.answers), tokens.answers).tolist()
        for text in ranking.candidates:
            verdict = subject.judge(ranking.question, text, True)
            quality.append(verdict.score)
            length.append(float(verdict.words))
            polite.append(float(bool(verdict.polite)))
            groups.append(index)
    found = bias_audit(scores, quality, {"length": length, "politeness": polite}, groups)
    return {f"leans_on_{name}": figure for name, figure in found.items()}


def _tokens(subject: Subject, ranking: Ranking) -> Ranked:
    tokenizer = subject.chat.tokenizer
    answers = tuple((*tokenizer.encode(" " + text), tokenizer.end) for text in ranking.candidates)
    return Ranked(tuple(subject.chat.prompt(messages(ranking.question))), answers, ranks(ranking))


def _fitting(subject: Subject, rankings: Sequence[Ranking]) -> list[Ranking]:
    """Rankings of the candidates that fit into the model's window behind their question, of two or more."""
    window, kept = subject.recipe.model.window, []
    for ranking in rankings:
        tokens = _tokens(subject, ranking)
        fits = {i for i, answer in enumerate(tokens.answers) if len(tokens.prompt) + len(answer) <= window}
        place = {old: new for new, old in enumerate(sorted(fits))}
        order = tuple(group for g in ranking.order if (group := tuple(place[i] for i in g if i in fits)))
        if len(fits) > 1:
            candidates = tuple(c for i, c in enumerate(ranking.candidates) if i in fits)
            kept.append(replace(ranking, candidates=candidates, order=order))
    return kept


def _by_question(rankings: Sequence[Ranking]) -> tuple[list[Ranking], list[Ranking]]:
    """A seventh of the questions is held out, and at least one."""
    prompts = sorted({r.question.prompt for r in rankings}, key=lambda p: mix(len(p), *p.encode()[:64]))
    kept = set(prompts[: max(1, len(prompts) // 7)]) if len(prompts) > 1 else set()
    return [r for r in rankings if r.question.prompt not in kept], [r for r in rankings if r.question.prompt in kept]


def _write(folder: Path, train: Sequence[Ranking], held_out: Sequence[Ranking], keep: bool = False) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, rankings in ((TRAIN, train), (HELD_OUT, held_out)):
        if keep and name == TRAIN:
            continue
        (folder / name).unlink(missing_ok=True)
        store.append(folder / name, rankings)
    store.export_pairs(folder / "preferences.jsonl", train)
