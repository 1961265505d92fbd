"""The questions of ``python -m benchmarks cures``: the world's held-out ones for a run, real ones for any other model.

Each comes with the checks that decoders need. The questions on which settings are chosen (dev) are never those of the
figures (test).
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from klype.answers import decoders
from klype.answers.decoder_requests import Check, DecodeQuestion
from klype.errors import UsageError
from klype.judge.meaning import WorldJudge
from klype.judge.rule_judge import RuleJudge
from klype.judge.text import NEGATION, choices_named, normalise, numbers, words
from klype.runs.provenance import read_questions
from klype.sources.source import Codec, Source, tokens_of
from klype.train.reward_model import RewardModel
from klype.values import Question
from klype.world import World

LETTERS = "AB"


@dataclass(frozen=True, slots=True)
class Posed:
    """A question as it is put to a source, and a function that judges whether an answer is correct."""

    question: Question
    asked: DecodeQuestion
    right: Callable[[str], bool]


@dataclass(frozen=True, slots=True)
class Task:
    """One kind of question. ``judge``: what judges the answers; ``missing``: why there are no questions."""

    name: str
    judge: str
    dev: tuple[Posed, ...] = ()
    test: tuple[Posed, ...] = ()
    missing: str = ""


@dataclass(frozen=True, slots=True)
class Sizes:
    dev: int = 60
    test: int = 150
    seed: int = 0

    def check(self) -> None:
        if self.dev < 10 or self.test < 10:
            raise UsageError("The benchmark needs at least 10 questions to choose settings on and 10 to report.")


def world_task(source: Source, run: Path, world: World, sizes: Sizes, reward: RewardModel | None) -> Task:
    """Questions of the demo world. Test: the held-out questions about stories that the run keeps; dev: others, newly
    drawn."""
    kept = {q.prompt: q for q in read_questions(run / "questions.jsonl") if not q.extra.get("fixed")}
    test = list(kept.values())[: sizes.test]
    known, rng = {question.prompt for question in test}, random.Random(f"dev {sizes.seed}")
    dev: list[Question] = []
    while len(dev) < sizes.dev:
        question = world.question(rng, heldout=True, fixed=False)
        if question.prompt not in known:
            known.add(question.prompt)
            dev.append(question)
    while len(test) < sizes.test:  # a run keeps some hundreds; more are drawn, never one of dev's
        question = world.question(rng, heldout=True, fixed=False)
        if question.prompt not in known:
            known.add(question.prompt)
            test.append(question)
    dev_posed, test_posed = (
        tuple(_world_posed(source.codec, world, q, sizes.seed, reward) for q in part) for part in (dev, test)
    )
    return Task("world", "the world's grammar", dev_posed, test_posed)


def _world_posed(codec: Codec, world: World, question: Question, seed: int, reward: RewardModel | None) -> Posed:
    def prompt(text: str) -> tuple[int, ...]:
        return tuple(codec.prompt([{"role": "user", "content": text}]))

    known: dict[str, Check] = {"likelihood": decoders.likelihood_check}
    before = tuple(codec.encode(question.prompt))  # as the stories that it was pre-trained on ask and answer
    known["statement"] = decoders.statement_check(lambda answer: (before, _behind(codec, question.prompt, answer)))
    if reward is not None:
        known["reward"] = decoders.reward_check(lambda prompts, answers: reward.score(prompts, answers).tolist())
    asked = DecodeQuestion(
        prompt(question.prompt),
        WorldJudge(world).meaning(question),
        32,
        tuple(codec.stop),
        seed,
        checks=known,
    )
    return Posed(question, asked, lambda answer: bool(world.judge(question, answer).right))


def _behind(codec: Codec, before: str, text: str) -> tuple[int, ...]:
    """The tokens of ``text`` as it continues another; for an empty text the token of a full stop."""
    return tuple(codec.encode(f"{before} {text.strip() or '.'}")[len(codec.encode(before)) :])


def real_tasks(source: Source, data: Path | None, sizes: Sizes, only: Sequence[str] = ()) -> list[Task]:
    """Arithmetic, grammar (BLiMP) and Norwegian reading comprehension (NorQuAD). Without files in ``data`` a task is
    missing."""
    made: dict[str, Callable[[], Task]] = {
        "arithmetic": lambda: _few_shot(source, _arithmetic(sizes), sizes),
        "grammar": lambda: _from_file(source, data, "blimp-small/blimp.jsonl", _grammar, sizes, "grammar"),
        "reading": lambda: _from_file(source, data, "norquad-wiki/qa.jsonl", _reading, sizes, "reading"),
    }
    return [make() for name, make in made.items() if not only or name in only]


@dataclass(frozen=True, slots=True)
class Rows:
    """A kind of question: its words for question and answer, its few-shot examples (``shown`` at once), and its
    questions."""

    name: str
    judge: str
    words: tuple[str, str]
    right: Callable[[Question, str], bool]
    examples: tuple[Question, ...]
    questions: tuple[Question, ...]
    shown: int
    limit: int
    states: Callable[[Question, str], tuple[str, str]] | None = None


def _from_file(
    source: Source, data: Path | None, name: str, rows: Callable[[list[Any], Sizes], Rows], sizes: Sizes, task: str
) -> Task:
    file = data / name if data is not None else None
    if file is None or not file.is_file():
        return Task(task, "", missing=f"--data FOLDER with {name} was not given" if data is None else f"no {file}")
    read = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
    random.Random(f"{task} {sizes.seed}").shuffle(read)
    return _few_shot(source, rows(read, sizes), sizes)


def _arithmetic(sizes: Sizes) -> Rows:
    rng, found = random.Random(f"arithmetic {sizes.seed}"), dict[str, str]()
    while len(found) < sizes.dev + sizes.test + 12:
        a, b, plus = rng.randint(10, 99), rng.randint(10, 99), rng.random() < 0.5
        a, b = (a, b) if plus else (max(a, b), min(a, b))
        found[f"What is {a} {'+' if plus else '-'} {b}?"] = str(a + b if plus else a - b)
    questions = [Question(f"a{i}", text, answers=(value,)) for i, (text, value) in enumerate(found.items())]
    return Rows(
        "arithmetic", "number match", ("Question", "Answer"), number_match,
        tuple(questions[:12]), tuple(questions[12:]), 4, 8, _equation,
    )  # fmt: skip


def _grammar(read: list[Any], sizes: Sizes) -> Rows:
    """Which of two sentences is correct English? A and B are correct equally often."""
    questions = []
    for i, row in enumerate(read[: sizes.dev + sizes.test + 12]):
        pair = [row["sentence_good"], row["sentence_bad"]]
        if i % 2:
            pair.reverse()
        text = f"Which sentence is correct English?\nA: {pair[0]}\nB: {pair[1]}"
        questions.append(Question(f"g{i}", text, answers=(LETTERS[i % 2],), choices=tuple(pair)))
    return Rows(
        "grammar", "choice match", ("Question", "Answer"), choice_match,
        tuple(questions[:12]), tuple(questions[12:]), 4, 4, _sentence,
    )  # fmt: skip


def _equation(question: Question, answer: str) -> tuple[str, str]:
    return f"10 + 25 = 35\n62 - 41 = 21\n{question.question.removeprefix('What is ').removesuffix('?')} =", answer


def _sentence(question: Question, answer: str) -> tuple[str, str]:
    """The sentence that a letter stands for, as plain text; if it is no letter, the answer itself."""
    letter = answer.strip()[:1]
    return "Sentence:", question.choices[LETTERS.index(letter)] if letter in tuple(LETTERS) else answer


def _reading(read: list[Any], sizes: Sizes) -> Rows:
    """Questions whose answer is in the text. Only short texts, which a laptop can read in time."""
    short = sorted(read, key=lambda row: len(row["context"]))[: sizes.dev + sizes.test + 12]
    random.Random(f"reading {sizes.seed}").shuffle(short)
    questions = [Question(f"r{row['id']}", row["question"], row["context"], (row["answer"],)) for row in short]
    questions.sort(key=lambda q: len(q.context) > 500)  # examples come from the shortest
    return Rows(
        "reading", "holds the reference", ("Spørsmål", "Svar"), holds_reference,
        tuple(questions[:6]), tuple(sorted(questions[6:], key=lambda q: q.id)), 1, 24,
    )  # fmt: skip


def number_match(question: Question, answer: str) -> bool:
    """Whether the numbers in the answer are the reference's, in any reading of ambiguous ones ("1.000")."""
    wanted, said = ({n for one in numbers(text) for n in one} for text in (question.answers[0], answer))
    return bool(said) and said <= wanted


def choice_match(question: Question, answer: str) -> bool:
    """Whether the answer names only the reference's choice, by its text or its letter, without a negation."""
    named, wanted = (choices_named(question.choices, text) for text in (answer, question.answers[0]))
    return len(named) == 1 and named <= wanted and not NEGATION & {*words(answer)}


def holds_reference(question: Question, answer: str) -> bool:
    """Whether the reference's words are in the answer, in order, and the answer is at most ten words longer."""
    said, wanted = normalise(answer), normalise(question.answers[0])
    return f" {wanted} " in f" {said} " and len(said.split()) <= len(wanted.split()) + 10


def _few_shot(source: Source, rows: Rows, sizes: Sizes) -> Task:
    dev, test = rows.questions[: sizes.dev], rows.questions[sizes.dev : sizes.dev + sizes.test]
    posed = [tuple(_posed(source.codec, rows, q, sizes.seed) for q in part) for part in (dev, test)]
    return Task(rows.name, rows.judge, posed[0], posed[1])


def _posed(codec: Codec, rows: Rows, question: Question, seed: int) -> Posed:
    def encoded(text: str) -> tuple[int, ...]:
        return tuple(codec.encode(text))

    first = rows.examples[: rows.shown]
    prompt = "\n\n".join([*(_shot(rows, q, True) for q in first), _shot(rows, question, False)])

    def checked(answer: str) -> tuple[int, ...]:
        ask, say = rows.words
        wrong = [_mixed(rows)[0].answers[0], *(q.answers[0] for q in first)]
        shots = [
            f"{ask}: {q.prompt}\n{say}: {given}\nRight? {'Yes' if given == q.answers[0] else 'No'}"
            for i, q in enumerate(first)
            for given in [q.answers[0] if i % 2 == 0 else wrong[i]]
        ]
        return encoded("\n\n".join([*shots, f"{ask}: {question.prompt}\n{say}: {answer}\nRight?"]))

    known: dict[str, Check] = {
        "likelihood": decoders.likelihood_check,
        "yes": decoders.yes_no_check(checked, *(_whole(codec, word) for word in ("Yes", "No"))),
    }
    if rows.states is not None:
        states = rows.states

        def stated(answer: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
            before, text = states(question, answer)
            return encoded(before), _behind(codec, before, text)

        known["statement"] = decoders.statement_check(stated)
    asked = DecodeQuestion(
        encoded(prompt),
        RuleJudge().meaning(question),
        rows.limit,
        tuple(codec.stop),
        seed,
        ("\n",),
        checks=known,
    )
    return Posed(question, asked, lambda answer: rows.right(question, answer.strip()))


def _whole(codec: Codec, word: str) -> tuple[int, ...]:
    """The token that is the whole word after a text; none if the word has several tokens."""
    pieces = _behind(codec, "Right?", word)
    return pieces if len(pieces) == 1 else tuple(tokens_of(codec, word))


def _mixed(rows: Rows) -> list[Question]:
    """All examples, shuffled."""
    examples = list(rows.examples)
    random.Random(f"{rows.name} 1").shuffle(examples)
    return examples


def _shot(rows: Rows, question: Question, answered: bool) -> str:
    ask, say = rows.words
    return f"{ask}: {question.prompt}\n{say}:" + (f" {question.answers[0]}" if answered else "")
