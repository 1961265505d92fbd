"""From a MODEL and a file of questions to an examinee."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from klype.errors import UsageError

if TYPE_CHECKING:
    from klype.cli.model import Opened
    from klype.examine.cost import Shape
    from klype.examine.examinee import Examinee
    from klype.examine.truth import Reader
    from klype.values import Question, Verdict
    from klype.world import World


def examinee(opened: Opened, questions: list[Question], raw: bool | None, training: list[str]) -> Examinee:
    """Questions that leave no room in the model's window are an error that names the first."""
    from klype.cli.asking import world_of
    from klype.examine.copied import Index
    from klype.examine.examinee import Examinee
    from klype.judge.meaning import Meaning, meaning_of

    world = world_of(opened) if any("kind" in q.extra for q in questions) else None
    if world is not None:
        questions = [q for q in questions if "kind" in q.extra]
    plain = opened.as_raw(raw)
    prompts = [
        opened.plain(q.prompt) if plain else opened.prompt([{"role": "user", "content": q.prompt}]) for q in questions
    ]
    for question, prompt in zip(questions, prompts, strict=True):
        if len(prompt) + 8 > opened.window:
            raise UsageError(
                f"Question {question.id} has {len(prompt)} tokens; the model reads {opened.window} at most."
            )
    known: World | None = world
    meaning: Callable[[Question], Meaning] = lambda question: meaning_of(question, known)[0]
    return Examinee(
        source=opened.source,
        name=opened.name,
        identity=identity(opened),
        vocabulary=opened.vocabulary,
        questions=tuple(questions),
        prompts=tuple(tuple(prompt) for prompt in prompts),
        judge=partial(world.judge) if world is not None else judge_text,
        judge_name="the world's grammar" if world is not None else judge_name(questions),
        meaning=meaning,
        reader=reader_of(opened, world) if world is not None and not plain else None,
        spell=opened.spell if opened.exact else None,
        partial=opened.native is None and not opened.exact,
        shape=shape_of(opened),
        training=Index(training) if training else None,
    )


def shape_of(opened: Opened) -> Shape | None:
    """What its arithmetic costs; None where klype does not know the model's insides."""
    from klype.examine.cost import Shape

    if opened.native is None:
        return None
    config = opened.native.loaded.config
    return Shape(config.flops_per_token // 2, config.layers, config.heads * config.head_dim)


def questions_of(opened: Opened, file: Path | None, suite: str, most: int) -> list[Question]:
    """A file's questions; else the suite's; else those that the model's run kept back.

    Suites: world (the demo world's held-out questions); any other is a path, of a file or of a folder of JSONL files.
    """
    from klype.data.rows import read_questions
    from klype.runs.truth import read_questions as kept_questions

    if file is not None:
        if not file.is_file():
            raise UsageError(f"--questions: there is no file {file}.")
        found = read_questions([file])
    elif suite not in ("", "world"):
        found = read_questions(suite_files(suite))
    elif opened.found.run is not None and (opened.found.run / "questions.jsonl").is_file():
        found = kept_questions(opened.found.run / "questions.jsonl")
        if suite == "world" and not any("kind" in q.extra for q in found):
            raise UsageError(f"{opened.name} was not made of the demo world: the suite world is not for it.")
    else:
        raise UsageError(f"{opened.name} has no questions of its own.", "Give some: --questions FILE (JSONL).")
    return found[:most] if most else found


def suite_files(suite: str) -> list[Path]:
    """The JSONL files of a suite that is a path. Errors: nothing there, or no such file in it."""
    place = Path(suite)
    files = [place] if place.is_file() else sorted(place.glob("*.jsonl"))
    if not files:
        raise UsageError(
            f"There is no suite {suite} here.", "Known: world; else the path of a JSONL file or of a folder of them."
        )
    return files


def reader_of(opened: Opened, world: World) -> Callable[[Question], Reader]:
    from klype.examine.truth import Reader
    from klype.world import Spellings, TokenFilter
    from klype.world.world import ATTACHED

    tokenizer = opened.loaded.tokenizer
    spellings = Spellings(world.words, tokenizer.encode, tokenizer.end, "".join(sorted(ATTACHED)))
    return lambda question: Reader(lambda: TokenFilter(world.filter("chat", question), spellings))


def identity(opened: Opened) -> str:
    """The weights' own hash: of the manifest where there is one, else of the files."""
    folder = opened.found.folder
    digest = hashlib.sha256()
    if not folder.exists():  # behind a server: nobody here can see the weights
        return hashlib.sha256(opened.source.name.encode()).hexdigest()
    manifest = folder / "manifest.json"
    files = [manifest] if manifest.is_file() else [folder] if folder.is_file() else sorted(folder.glob("*.safetensors"))
    for file in files:
        with open(file, "rb") as stream:
            digest.update(hashlib.file_digest(stream, "sha256").digest())
    return digest.hexdigest()


def judge_text(question: Question, answer: str, finished: bool) -> Verdict:
    """By choice, number, then normalised match: the first that can decide."""
    from klype.judge.text import choice_match, first_decided, normalised_match, number_match
    from klype.values import Verdict

    judges = [choice_match] if question.choices else []
    judgement = first_decided(*judges, normalised_match, number_match)(question, answer)
    right = judgement.right if finished or judgement.right is not True else None
    return Verdict(right, None, None, len(answer.split()), float("nan"))


def judge_name(questions: list[Question]) -> str:
    return "choice match" if all(q.choices for q in questions) else "normalised match"
