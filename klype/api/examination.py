"""``klype.examine``: how often a model is right and says the same, where answers diverge, what errors lead to."""

import hashlib
import math
import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from html import escape
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict, Unpack

from klype.api.judging import open_judge
from klype.api.model import Model, load
from klype.api.prompt_context import number, whole, world_of
from klype.api.results import Row, data_frame, figure_rows, figure_table
from klype.config import make
from klype.data.rows import questions_from, read_questions
from klype.device import EnergyMeter
from klype.durable import hash_file
from klype.errors import UsageError
from klype.examine.caching_source import Shape
from klype.examine.exam import ExamResult, Progress, probe
from klype.examine.exam import examine as run_examination
from klype.examine.examination_report import document, render, verdict
from klype.examine.examined_model import EvalTarget, ExamPlan, in_time, within
from klype.examine.interventions import Intervention
from klype.examine.repetition import Index
from klype.examine.say import Say
from klype.examine.settings import ExamSettings
from klype.examine.truth import Reader
from klype.judge.judge import Judge, Meaning
from klype.judge.meaning import WorldJudge
from klype.judge.rule_judge import RuleJudge
from klype.option import suite_files
from klype.runs.provenance import read_questions as kept_questions
from klype.sources.model_files import is_aligned
from klype.sources.opening import OpenModel
from klype.values import Figure, Question, Verdict
from klype.world import Spellings, TokenFilter, World

if TYPE_CHECKING:
    import pandas as pd

Questions = str | Path | Sequence[str | Mapping[str, Any]]
MIN_ANSWER = 8  # tokens: the shortest answers that the feedback experiment can use
# measures shown in a terminal and in notebooks, which have no room for all
MAIN = (
    "decided", "right", "word_for_word", "s", "survival", "same_meaning", "unseen", "feedback_rare", "recovery", "fork"
)  # fmt: skip


class ExamineOptions(TypedDict, total=False):
    """Further options of ``klype.examine``.

    temperatures: temperatures at which answers are drawn (0, 0.7, 1 and 1.3). limit: maximum number of tokens per
    answer (32). budget: maximum number of forward passes; fewer answers and questions where they would take more.
    most: maximum number of questions (200; 0: all). raw: as for ``Model.ask``. judge: what decides which answers mean
    the same and are right: rules, minilm, self, another MODEL, an encoder, or a ``klype.Judge``. training: texts in
    which answers are searched for, as copies. device: for models that are given by name, as for ``klype.load``.
    """

    temperatures: Sequence[float]
    limit: int
    budget: int | None
    most: int
    raw: bool | None
    judge: str | Judge | None
    training: Sequence[str]
    device: str


@dataclass(frozen=True, eq=False)
class Examination:
    """The result of ``klype.examine``: figures with 95 % intervals, by temperature.

    ``document`` has figures, curves, trees, forks, examples and cost, as ``to_json`` returns them. ``found`` holds
    every answer, and the model; it is None after unpickling.
    """

    document: Row
    found: ExamResult | None

    @staticmethod
    def of(found: ExamResult) -> "Examination":
        """The figures and the document of an examination."""
        return Examination(document(found) | {"report": None}, found)

    def __repr__(self) -> str:
        return f"<Examination of {self.document['model']}: {self.document['questions']} questions>"

    def __reduce__(self) -> tuple[Any, ...]:  # a model cannot be pickled
        return Examination, (self.document, None)

    @property
    def figures(self) -> dict[str, Figure]:
        """The figures by name at the main temperature: 0.7 if it was examined, else the middle one.

        A figure that could not be measured has the value None, and ``why``.
        """
        return self.at(float(self.document["main"]))

    def at(self, temperature: float) -> dict[str, Figure]:
        """The same at another temperature. Raises KlypeError for one that was not examined."""
        key = f"{number('temperature', temperature):g}"
        if key not in self.document["figures"]:
            raise UsageError(
                f"Temperature {key} was not examined.", f"There are {', '.join(self.document['figures'])}."
            )
        return {name: Figure.of(row) for name, row in self.document["figures"][key].items()}

    def to_json(self) -> Row:
        """The document that ``klype examine --json`` prints; ``report`` is None, as no file was written."""
        return self.document

    def to_pandas(self) -> "pd.DataFrame":
        """One row per temperature and measure: temperature, measure, value, low, high, n, unit."""
        figures = {float(t): found for t, found in self.document["figures"].items()}
        return data_frame(figure_rows("temperature", figures))

    def to_html(self, lang: str = "en") -> str:
        """The whole report as one self-contained page with charts, in all languages; ``lang`` is shown first."""
        return render(self.document, lang)

    def _repr_html_(self) -> str:
        figures = {f"τ = {t}": found for t, found in self.document["figures"].items()}
        names = [name for name in MAIN if any(name in found for found in figures.values())]
        paragraphs = "".join(f"<p>{escape(text)}</p>" for text in verdict(self.document, Say("en")))
        return paragraphs + figure_table(names, figures)


@dataclass(frozen=True, slots=True)
class Exam:
    """An examination that is planned and can be run; ``plan`` says what it will cost."""

    target: EvalTarget
    plan: ExamPlan

    def run(
        self,
        folder: Path | None = None,
        progress: Progress = lambda part, done, of: None,
        given: Mapping[float, list[Intervention]] | None = None,
    ) -> ExamResult:
        """Runs the examination. Traces are kept in ``folder``; those that are there already are not generated again.
        ``given``: the interventions of the model that this one is compared with."""
        return run_examination(self.target, self.plan.settings, folder, progress, given, EnergyMeter().joules)


def prepare(
    model: Model, questions: list[Question], settings: ExamSettings, minutes: float, **options: Unpack[ExamineOptions]
) -> Exam:
    """Plans an examination: measures the model's speed, and fits ``settings`` to the budget of passes or else to the
    minutes (0: no limit)."""
    judge = open_judge(options.get("judge"), model.opened, ("float32", options.get("device", "auto")))
    training, budget = options.get("training", ()), options.get("budget")
    listed = isinstance(training, Iterable) and not isinstance(training, str)
    if not listed or not all(isinstance(text, str) for text in training):
        raise UsageError("training must be a list of strings.")
    one = target_of(model.opened, questions, options.get("raw"), training, judge, settings.limit)
    minutes = number("minutes", minutes)
    if not one.can_continue:  # trees, forks and interventions continue the beginning of an answer
        settings = replace(settings, trees=0, forks=0, interventions=0)
    speed, known, asked = probe(one, settings), one.reader is not None and one.whole, len(one.questions)
    if budget is None:
        return Exam(one, in_time(60 * minutes or math.inf, asked, settings, speed, known))
    planned = within(budget, asked, settings, speed, known)
    asked = planned.questions
    return Exam(replace(one, questions=one.questions[:asked], prompts=one.prompts[:asked]), planned)


def examine(
    model: Model | str | PathLike[str],
    questions: Questions | None = None,
    minutes: float = 6.0,
    n: int = 16,
    seed: int = 0,
    **options: Unpack[ExamineOptions],
) -> Examination:
    """Asks a model ``questions`` and measures its answers: is it right, would it say the same again, which token
    decided the meaning, does one error cause the next?

    ``questions``: a file (JSONL rows with question, and where known context, answers, choices, id), a list of strings,
    or a list of such rows; by default those that the model's run held out. ``n``: answers per question and temperature.
    ``minutes``: trees and forks are made for fewer questions where all would take longer (0: for all). The same seed
    gives the same figures. How the measures are defined: docs/reference/examination.md.

    >>> model = klype.load(run)
    >>> found = klype.examine(model, [{"question": "Hvor er Kari?", "answers": ["Hjemme."]}], n=4, temperatures=[0.7])
    >>> found.figures["right"].n
    4

    Raises KlypeError when there are no questions, or none leaves room for an answer in the model's window.
    """
    if model is None:
        raise UsageError("model should be a MODEL's name, or what klype.load returned (it is None).")
    if unknown := options.keys() - ExamineOptions.__annotations__.keys():
        raise UsageError(f"klype.examine has no option {sorted(unknown)[0]}.")
    most, budget = options.get("most", 200), options.get("budget")
    given: dict[str, Any] = {"n": n, "limit": options.get("limit", 32), "seed": seed}
    whole(**given, most=most, budget=1 if budget is None else budget)
    number("most", most)
    if "temperatures" in options:
        given["temperatures"] = options["temperatures"]
    settings = make(ExamSettings, given)
    model = load(model, device=options.get("device", "auto"))
    if questions is None or isinstance(questions, str | Path):
        asked = questions_of(model.opened, None if questions is None else Path(questions), "", 0)
    elif isinstance(questions, Mapping) or not isinstance(questions, Iterable):
        raise UsageError("questions should be a file, or a list of strings or rows.")
    else:
        asked = questions_from(questions)
    return Examination.of(prepare(model, asked[: most or None], settings, minutes, **options).run())


def target_of(
    opened: OpenModel,
    questions: list[Question],
    raw: bool | None,
    training: Iterable[str],
    judge: Judge | None,
    limit: int,
) -> EvalTarget:
    """The model with the questions that fit, their prompts and their judge.

    ``judge``: by default the demo world's grammar for its own questions, and the rules for all others. Questions that
    leave no room in the window for an answer of ``limit`` tokens, and of ``MIN_ANSWER``, are skipped and counted.
    Raises UsageError if none is left.
    """
    # only the demo world's questions have these fields
    of_world = [q for q in questions if {"kind", "lang", "fixed"} <= q.extra.keys()]
    world = world_of(opened) if of_world else None
    # only klype's own server says how words are tokenized
    if world is None and of_world and opened.encode_bare is not None:
        world = World("small" if of_world[0].extra.get("world") == "small" else "full")
    if world is not None:
        questions = of_world
    known = None if opened.as_raw(raw) else world  # a continued text has no known truth
    fitting, least = [], max(limit, MIN_ANSWER)
    for question in questions:
        prompt = opened.user_prompt(question.prompt, raw, question.extra.get("before", ()))
        if len(prompt) + least <= opened.window:
            fitting.append((question, tuple(prompt)))
    if questions and not fitting:
        raise UsageError(f"No question leaves room for {least} tokens of answer: the model reads {opened.window}.")

    def another(number: int) -> tuple[Question, tuple[int, ...]]:
        """A further held-out question of the world, and its prompt."""
        assert world is not None
        question = world.question(random.Random(f"another {number}"), heldout=True)
        return question, tuple(opened.user_prompt(question.prompt, raw))

    deciding = judge or (WorldJudge(world) if world is not None else RuleJudge())
    return EvalTarget(
        source=opened.source, name=opened.name, identity=identity(opened), vocabulary=opened.vocabulary,
        questions=tuple(question for question, _ in fitting), prompts=tuple(prompt for _, prompt in fitting),
        judge=world.judge if world is not None and judge is None else verdict_of(deciding),
        judge_name=deciding.name, deciding=deciding, meaning=meanings(deciding),
        reader=None if known is None else reader_of(opened, known),
        edits=None if known is None else reader_of(opened, known, edits=True),
        another=None if known is None else another,
        token_bytes=opened.token_bytes if opened.exact else None, partial=opened.native is None and not opened.exact,
        shape=shape_of(opened), training=Index(list(training)) if training else None,
        skipped=len(questions) - len(fitting), can_continue=opened.can_continue,
        other_manners=world is not None and is_aligned(opened.found.folder),
        scores=None if world is None else world.scores,
    )  # fmt: skip


def meanings(judge: Judge) -> Callable[[Question], Meaning]:
    """The ``meaning`` function of each question's answers, cached by question: it caches answers itself."""
    known: dict[str, Meaning] = {}

    def meaning(question: Question) -> Meaning:
        if question.id not in known:
            known[question.id] = judge.meaning(question)
        return known[question.id]

    return meaning


def shape_of(opened: OpenModel) -> Shape | None:
    """The shape from which FLOP and memory traffic are computed; None for models that klype does not run itself."""
    if opened.native is None:
        return None
    from klype.model.prepacked import Int8Linear
    from klype.model.quantised import QuantisedLinear

    config, model = opened.native.config, opened.native.model
    matrices = config.flops_per_token // 2  # one multiplication and one addition per weight
    number = model.dtype.itemsize
    weight = 1 if any(isinstance(part, Int8Linear) for part in model.modules()) else number
    stored = [part for part in model.modules() if isinstance(part, QuantisedLinear)]
    spared = sum(math.prod(part.shape) * number - part.size for part in stored)
    # keys and values
    cached = 2 * config.layers * config.kv_heads * config.head_dim * number
    return Shape(matrices, config.layers, config.heads * config.head_dim, matrices * weight - spared, cached)


def questions_of(opened: OpenModel, file: Path | None, suite: str, most: int) -> list[Question]:
    """The questions of a file, else of a suite, else those that the model's run held out, without duplicates and
    without general facts, which its training text contains. ``most``: maximum number (0: all).

    A suite is "world" (the demo world's held-out questions), or the path of a JSONL file or of a folder of them.
    """
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


def spellings_of(opened: OpenModel, world: World) -> Spellings:
    """The world's words as the model's tokenizer spells them."""
    if opened.encode_bare is not None:
        return Spellings(world.words, opened.encode_bare, opened.stop[0])
    return Spellings(world.words, opened.loaded.tokenizer.encode, opened.loaded.tokenizer.end)


def reader_of(opened: OpenModel, world: World, edits: bool = False) -> Callable[[Question], Reader]:
    """Makes the ``Reader`` of the true distribution along a question's answers; with ``edits`` it counts mistakes by
    edit distance."""
    spellings = spellings_of(opened, world)
    start = world.edits if edits else world.filter
    return lambda question: Reader(lambda: TokenFilter(start(question), spellings))


def identity(opened: OpenModel) -> str:
    """A hash that identifies the weights: of the manifest, else of the files; for a server's model, of its name."""
    folder, manifest = opened.found.folder, opened.found.folder / "manifest.json"
    if not folder.exists():  # a server's model
        return hashlib.sha256(opened.source.name.encode()).hexdigest()
    files = [manifest] if manifest.is_file() else [folder] if folder.is_file() else sorted(folder.glob("*.safetensors"))
    return hashlib.sha256(b"".join(bytes.fromhex(hash_file(file)) for file in files)).hexdigest()


def verdict_of(judge: Judge) -> Callable[[Question, str, bool], Verdict]:
    """A judge's rulings as verdicts, cached; an answer that was cut off is judged by what it says."""
    known: dict[tuple[str, str], bool | None] = {}

    def verdict(question: Question, answer: str, finished: bool) -> Verdict:
        if (place := (question.id, answer)) not in known:
            known[place] = judge.right(question, answer)
        # NaN: a judge has no score
        return Verdict(known[place], None, None, len(answer.split()), float("nan"))

    return verdict
