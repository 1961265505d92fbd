"""Examining a model: how often it is right and says the same, where its answers divide, what one error brings."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from html import escape
from os import PathLike
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, TypedDict, Unpack

from klype.api.asking import number, whole
from klype.api.examinee import examinee, questions_of
from klype.api.judging import open_judge
from klype.api.model import Model, load
from klype.api.results import Row, data_frame, html_table
from klype.config import make
from klype.data.rows import questions_from
from klype.device import EnergyMeter
from klype.errors import UsageError
from klype.examine.examination import Examined, Meters, Progress, probe
from klype.examine.examination import examine as run_examination
from klype.examine.examination_report import document, render, verdict
from klype.examine.interventions import Intervention
from klype.examine.say import Say
from klype.examine.settings import ExamSettings
from klype.examine.target import EvalTarget, ExamPlan, in_time, plan, within
from klype.judge.judge import Judge
from klype.values import Figure, Question

if TYPE_CHECKING:
    import pandas as pd

Questions = str | Path | Sequence[str | Mapping[str, Any]]
MAIN = (
    "decided",
    "right",
    "word_for_word",
    "s",
    "survival",
    "same_meaning",
    "unseen",
    "feedback_rare",
    "recovery",
    "fork",
)
"""Measures that are shown where there is no room for all."""


class ExamineOptions(TypedDict, total=False):
    """What an examination may be told beside its questions and its size.

    temperatures: those at which answers are drawn; by default 0, 0.7, 1 and 1.3. limit: tokens of an answer at most
    (32). budget: forward passes at most; fewer answers and questions where they would be more. most: questions at
    most (200; 0: all). raw: as for ``Model.ask``. judge: who says which answers mean the same and are right: rules,
    minilm, self, another MODEL, an encoder, or a ``klype.Judge``. training: texts that answers may have been copied
    from. device: what opens models that are given by name, as for ``klype.load``.
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
    """What ``klype.examine`` found: figures with 95 % intervals, by temperature.

    ``document`` has figures, curves, trees, forks, examples and cost, as ``to_json`` gives them. ``found`` holds every
    answer, and the model that gave them: it is None in a copy that was pickled.
    """

    document: Row
    found: Examined | None

    @staticmethod
    def of(found: Examined) -> Examination:
        """What was measured, as figures and a document."""
        return Examination(document(found) | {"report": None}, found)

    def __repr__(self) -> str:
        return f"<Examination of {self.document['model']}: {self.document['questions']} questions>"

    def __reduce__(self) -> tuple[Any, ...]:
        return Examination, (self.document, None)

    @property
    def figures(self) -> dict[str, Figure]:
        """Name → value, low, high, n and unit, at the main temperature: 0.7 if it was asked for, else the middle one.

        A figure that could not be had has the value None, and ``why``.
        """
        return self._at(self.document["main"])

    def at(self, temperature: float) -> dict[str, Figure]:
        """The same at another of the temperatures. Raises KlypeError for one that was not asked for."""
        key = f"{number('temperature', temperature):g}"
        if key not in self.document["figures"]:
            raise UsageError(
                f"Temperature {key} was not examined.", f"There are {', '.join(self.document['figures'])}."
            )
        return self._at(key)

    def _at(self, key: str) -> dict[str, Figure]:
        return {name: Figure.of(row) for name, row in self.document["figures"][key].items()}

    def to_json(self) -> Row:
        """As ``klype examine --json`` prints; ``report`` is None: nothing was written."""
        return self.document

    def to_pandas(self) -> pd.DataFrame:
        """One row per temperature and measure: temperature, measure, value, low, high, n, unit."""
        columns = ("value", "low", "high", "n", "unit")
        return data_frame(
            [
                {"temperature": float(t), "measure": name, **{column: row.get(column) for column in columns}}
                for t, figures in self.document["figures"].items()
                for name, row in figures.items()
            ]
        )

    def to_html(self, lang: str = "en") -> str:
        """The whole report: one page with pictures, in both languages, that needs no network; ``lang`` is shown."""
        return render(self.document, lang)

    def _repr_html_(self) -> str:
        say, figures = Say("en"), self.document["figures"]
        names = [name for name in MAIN if any(name in row for row in figures.values())]
        rows = [
            {"": say.measure(name), **{f"τ = {t}": say.figure(row.get(name), name) for t, row in figures.items()}}
            for name in names
        ]
        paragraphs = "".join(f"<p>{escape(text)}</p>" for text in verdict(self.document, say))
        return paragraphs + html_table(rows, ["", *(f"τ = {t}" for t in figures)])


@dataclass(frozen=True, slots=True)
class Exam:
    """An examination that is planned and not yet begun; ``plan`` says what it costs."""

    target: EvalTarget
    settings: ExamSettings
    plan: ExamPlan

    def measured(
        self,
        folder: Path | None = None,
        progress: Progress = lambda part, done, of: None,
        given: Mapping[float, list[Intervention]] | None = None,
    ) -> Examined:
        """Asks the questions. In ``folder`` answers are kept as traces: those that are there already are not asked
        again. ``given``: the forced words of the model that this one is compared with."""
        with TemporaryDirectory(ignore_cleanup_errors=True) if folder is None else nullcontext(folder) as place:
            meters = Meters(joules=EnergyMeter().joules)
            return run_examination(self.target, self.settings, Path(place), progress, given, meters)


def planned(one: EvalTarget, settings: ExamSettings, minutes: float, budget: int | None) -> Exam:
    """After a look at the model's speed, made to fit the budget of passes, or else the minutes (0: as it is)."""
    if not one.goes_on:
        settings = replace(settings, trees=0, forks=0, interventions=0)
    speed = probe(one, settings)
    known = one.reader is not None and one.whole
    asked = len(one.questions)
    if budget is not None:
        settings, asked = within(budget, asked, settings, speed, known)
        one = replace(one, questions=one.questions[:asked], prompts=one.prompts[:asked])
    elif minutes:
        settings = in_time(60 * minutes, asked, settings, speed, known)
    return Exam(one, settings, plan(asked, settings, speed, known))


def prepare(
    model: Model, questions: list[Question], settings: ExamSettings, minutes: float, **options: Unpack[ExamineOptions]
) -> Exam:
    """What ``examine`` does before it asks: it puts the questions as the model reads them, and plans."""
    judge = open_judge(options.get("judge"), model.opened, ("float32", options.get("device", "auto")))
    training = options.get("training", ())
    if (
        isinstance(training, str)
        or not isinstance(training, Iterable)
        or not all(isinstance(text, str) for text in training)
    ):
        raise UsageError("training should be a list of texts.")
    one = examinee(model.opened, questions, options.get("raw"), training, judge, settings.limit)
    return planned(one, settings, number("minutes", minutes), options.get("budget"))


def examine(
    model: Model | str | PathLike[str],
    questions: Questions | None = None,
    minutes: float = 6.0,
    n: int = 16,
    seed: int = 0,
    **options: Unpack[ExamineOptions],
) -> Examination:
    """Asks a model ``questions`` and measures its answers: is it right, would it say the same again, where was it
    decided, does one error bring the next?

    ``questions``: a file (JSONL rows with question, and where known context, answers, choices, id), a list of texts,
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
        raise UsageError("questions should be a file, or a list of texts or rows.")
    else:
        asked = questions_from(questions)
    return Examination.of(prepare(model, asked[: most or None], settings, minutes, **options).measured())
