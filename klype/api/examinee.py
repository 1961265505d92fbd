"""From a MODEL and a file of questions to an examinee."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from klype.errors import UsageError

if TYPE_CHECKING:
    from klype.examine.recorder import Shape
    from klype.examine.target import EvalTarget
    from klype.examine.truth import Reader
    from klype.judge.judge import Judge, Meaning
    from klype.sources.opening import Opened
    from klype.values import Question, Verdict
    from klype.world import Spellings, World

LEAST_ROOM = 8
"""Tokens of an answer that the feedback experiment needs at least."""


def examinee(
    opened: Opened,
    questions: list[Question],
    raw: bool | None = None,
    training: Sequence[str] = (),
    judge: Judge | None = None,
    limit: int = 8,
) -> EvalTarget:
    """``judge``: another than the demo world's grammar for its own questions, and the rules for all others.

    Questions that leave no room for an answer of ``limit`` tokens in the model's window are skipped and counted; that
    none is left is an error.
    """
    from klype.api.asking import world_of
    from klype.examine.repetition import Index
    from klype.examine.target import EvalTarget
    from klype.judge.meaning import WorldJudge
    from klype.judge.same import Rules
    from klype.sources.find import is_aligned

    of_world = [q for q in questions if {"kind", "lang", "fixed"} <= q.extra.keys()]
    world = (world_of(opened) or served_world(opened, of_world)) if of_world else None
    if world is not None:
        questions = of_world
    plain = opened.as_raw(raw)
    fitting = []
    for question in questions:
        prompt = opened.put(question.prompt, raw, question.extra.get("before", ()))
        if len(prompt) + max(limit, LEAST_ROOM) <= opened.window:
            fitting.append((question, tuple(prompt)))
    if questions and not fitting:
        raise UsageError(f"No question leaves room for {limit} tokens of answer: the model reads {opened.window}.")
    deciding = judge or (WorldJudge(world) if world is not None else Rules())
    return EvalTarget(
        source=opened.source,
        name=opened.name,
        identity=identity(opened),
        vocabulary=opened.vocabulary,
        questions=tuple(question for question, _ in fitting),
        prompts=tuple(prompt for _, prompt in fitting),
        judge=world.judge if world is not None and judge is None else judged_by(deciding),
        judge_name=deciding.name,
        deciding=deciding,
        meaning=meanings(deciding),
        reader=reader_of(opened, world) if world is not None and not plain else None,
        edits=reader_of(opened, world, edits=True) if world is not None and not plain else None,
        another=partial(another, opened, world, raw) if world is not None and not plain else None,
        spell=opened.spell if opened.exact else None,
        partial=opened.native is None and not opened.exact,
        shape=shape_of(opened),
        training=Index(list(training)) if training else None,
        skipped=len(questions) - len(fitting),
        goes_on=opened.goes_on,
        other_manners=world is not None and is_aligned(opened.found.folder),
        scores=world.scores if world is not None else None,
    )


def served_world(opened: Opened, of_world: Sequence[Question]) -> World | None:
    """The demo world that questions to klype's own server are about; None for other servers: words are theirs."""
    from klype.world import World

    if opened.spelling is None:
        return None
    return World("small" if of_world[0].extra.get("world") == "small" else "full")


def meanings(judge: Judge) -> Callable[[Question], Meaning]:
    """Each question's meaning, made once: it remembers what it has read."""
    known: dict[str, Meaning] = {}

    def meaning(question: Question) -> Meaning:
        if question.id not in known:
            known[question.id] = judge.meaning(question)
        return known[question.id]

    return meaning


def shape_of(opened: Opened) -> Shape | None:
    """What its arithmetic costs; None where klype does not know the model's insides."""
    from klype.examine.recorder import Shape

    if opened.native is None:
        return None
    from klype.model.prepacked import Int8Linear
    from klype.model.quantised import QuantisedLinear

    config, model = opened.native.config, opened.native.model
    matrices = config.flops_per_token // 2
    number = model.dtype.itemsize
    weight = 1 if any(isinstance(part, Int8Linear) for part in model.modules()) else number
    stored = [part for part in model.modules() if isinstance(part, QuantisedLinear)]
    spared = sum(math.prod(part.shape) * number - part.size for part in stored)
    cached = 2 * config.layers * config.kv_heads * config.head_dim * number
    return Shape(matrices, config.layers, config.heads * config.head_dim, matrices * weight - spared, cached)


def questions_of(opened: Opened, file: Path | None, suite: str, most: int) -> list[Question]:
    """A file's questions; else the suite's; else those that the model's run kept back, each once, and none of what is
    always true, which its texts have told.

    Suites: world (the demo world's held-out questions); any other is a path, of a file or of a folder of JSONL files.
    """
    from klype.data.rows import read_questions
    from klype.runs.provenance import read_questions as kept_questions

    if file is not None:
        if not file.is_file():
            raise UsageError(f"--questions: there is no file {file}.")
        found = read_questions([file])
    elif suite not in ("", "world"):
        found = read_questions(suite_files(suite))
    elif opened.found.run is not None and (opened.found.run / "questions.jsonl").is_file():
        kept = kept_questions(opened.found.run / "questions.jsonl")
        found = list({q.prompt: q for q in reversed(kept) if not q.extra.get("fixed")}.values())[::-1]
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


def another(opened: Opened, world: World, raw: bool | None, number: int) -> tuple[Question, tuple[int, ...]]:
    """A held-out question of the world that was not given, and how it is put."""
    import random

    question = world.question(random.Random(f"another {number}"), heldout=True)
    return question, tuple(opened.put(question.prompt, raw))


def spellings_of(opened: Opened, world: World) -> Spellings:
    """How its tokenizer spells the world's words."""
    from klype.world import Spellings
    from klype.world.world import ATTACHED

    if opened.spelling is not None:
        encode, end = opened.spelling, opened.stop[0]
    else:
        encode, end = opened.loaded.tokenizer.encode, opened.loaded.tokenizer.end
    return Spellings(world.words, encode, end, "".join(sorted(ATTACHED)))


def reader_of(opened: Opened, world: World, edits: bool = False) -> Callable[[Question], Reader]:
    """The truth of answers; ``edits``: with mistakes counted by edit distance."""
    from klype.examine.truth import Reader
    from klype.world import TokenFilter

    spellings = spellings_of(opened, world)
    start = world.edits if edits else partial(world.filter, "chat")
    return lambda question: Reader(lambda: TokenFilter(start(question), spellings))


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


def judged_by(judge: Judge) -> Callable[[Question, str, bool], Verdict]:
    """A judge's ruling as an annotator's verdict, on what was said, whether or not a token limit cut it off."""
    from klype.values import Verdict

    known: dict[tuple[str, str], bool | None] = {}

    def verdict(question: Question, answer: str, finished: bool) -> Verdict:
        if (place := (question.id, answer)) not in known:
            known[place] = judge.right(question, answer)
        return Verdict(known[place], None, None, len(answer.split()), float("nan"))

    return verdict
