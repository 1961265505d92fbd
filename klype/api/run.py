"""Training from a program: ``klype.train`` makes a run, and a ``Run`` is its folder."""

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict, TypeVar, Unpack

from klype.api.model import Model, load
from klype.api.prompt_context import number, whole
from klype.api.results import Row, data_frame, figure_rows, figure_table, html_table
from klype.config import make
from klype.environment import cache_folder
from klype.errors import KlypeError, UsageError, short_error
from klype.examine.run_facts import read as read_facts
from klype.examine.run_report import render
from klype.jsons import steps
from klype.preferences import formats
from klype.runs import folder, pipeline, rankers, ranking
from klype.runs.listener import RunListener, SilentListener
from klype.runs.pipeline import align_rounds, overrides
from klype.runs.run_options import STAGES, RunOptions, StageOptions
from klype.sources.model_files import NEWEST_FIRST, holds_weights
from klype.train.rewards import as_settings, by_name, name_of
from klype.values import Reward

if TYPE_CHECKING:
    import pandas as pd

# Functions ``(questions, answers) -> list of floats``, or {function, "file.py:function" or "model": weight}.
Rewards = Iterable[Reward] | Mapping[Any, float]  # a mapping's keys are functions and texts: no type holds both
Work = TypeVar("Work", RunOptions, StageOptions)


class CommonOptions(TypedDict, total=False):
    """The options that training and alignment share; see ``TrainOptions``."""

    resume: bool
    force: bool
    device: str
    set: Mapping[str, object]
    progress: RunListener


class TrainOptions(CommonOptions, total=False):
    """Further options of ``klype.train``, named as those of ``klype run``.

    data: a folder of texts, questions and rankings, or ``hf:owner/name``. out: the run's folder (runs/RECIPE-DATE-N).
    instructions, preferences: JSONL files. from_: a MODEL to start from. size: tiny … large. lora: rank of adapters.
    resume: continue the run in ``out``. force: align even to a weak reward model. device: see ``klype.load``. lang:
    the report's language, "en" or "nb". set: settings of the recipe, {"pretrain.rows": 32}. progress: receives
    progress events (an object with the methods of ``klype.runs.listener.RunListener``); by default nothing does.
    """

    data: str | Path
    out: str | os.PathLike[str] | None
    instructions: str | Path
    preferences: str | Path
    from_: str | os.PathLike[str]
    size: str
    lora: int
    lang: str


class AlignOptions(CommonOptions, total=False):
    """Further options of ``Run.align``, named as those of ``klype align``.

    steps or minutes: the length of a round (half a minute). rounds: number of rounds of ranking and training, 1 to 50
    (1); of several, each has its folder in ``out``. taste: the simulated annotator first ranks again, by these values
    ("word=-0.1" likes long answers). target_kl: target KL divergence in nats per answer. beta: KL penalty per nat.
    seed: the same seed gives the same result (0). The rest: see ``TrainOptions``.
    """

    steps: int
    minutes: float
    rounds: int
    taste: str
    target_kl: float
    beta: float
    seed: int


@dataclass(frozen=True)
class Metrics:
    """The metrics of a stage's training: ``rows``, one per step (loss in nats per token, learning rate, reward …)."""

    rows: tuple[Row, ...]

    def __repr__(self) -> str:
        return f"<Metrics of {len(self.rows)} steps>"

    def to_json(self) -> list[Row]:
        return list(self.rows)

    def to_pandas(self) -> "pd.DataFrame":
        """One row per step; a column per measure."""
        return data_frame(self.rows)

    def _repr_html_(self) -> str:
        last = self.rows[-1:]
        return html_table(last, list(last[0])) if last else "<p>–</p>"


@dataclass(frozen=True)
class Rankings:
    """The annotators of a run's answers, and how well they agree. ``new``: number of rankings that were added."""

    new: int
    document: Row

    def __repr__(self) -> str:
        return f"<Rankings: {self.new} new of {self.document['entries']}>"

    def to_json(self) -> Row:
        """The document that ``klype rank --json`` prints."""
        return self.document

    def to_pandas(self) -> "pd.DataFrame":
        """One row per annotator: name, by (person, simulated, model, imported), rankings."""
        return data_frame(self._rows())

    def _rows(self) -> list[Row]:
        return [{key: one[key] for key in ("name", "by", "rankings")} for one in self.document["annotators"]]

    def _repr_html_(self) -> str:
        return html_table(self._rows(), ["name", "by", "rankings"])


@dataclass(frozen=True)
class RunReport:
    """What was measured of a run's models.

    ``figures``: {model: {measure: figure}}, where a model is base, finetuned or aligned, and a figure has value, low
    and high (a 95 % interval), n and unit, or the value None and why.
    """

    path: Path
    figures: Mapping[str, Mapping[str, Row]]
    document: Row

    def __repr__(self) -> str:
        return f"<RunReport of {self.path.parent}: {', '.join(self.figures)}>"

    def to_json(self) -> Row:
        """The contents of ``figures.json``; of an alignment, what ``klype align --json`` printed of its round."""
        return self.document

    def to_pandas(self) -> "pd.DataFrame":
        """One row per model and measure: model, measure, value, low, high, n, unit."""
        return data_frame(figure_rows("model", self.figures))

    def to_html(self, lang: str = "en") -> str:
        """The whole report as one self-contained page; of an alignment alone, which has no report, a table."""
        if not self.path.is_file():
            return self._repr_html_()
        try:
            return render(read_facts(self.path), lang)
        except (LookupError, TypeError, ValueError, AttributeError) as error:  # rendering validates the facts
            raise KlypeError(f"The facts of this run are malformed at {self.path}: {short_error(error)}.") from error

    def _repr_html_(self) -> str:
        return figure_table(list(dict.fromkeys(name for one in self.figures.values() for name in one)), self.figures)


class Stages(Mapping[str, Model]):
    """The models of a run's finished stages, in the order pretrain, finetune, align; each is opened on first access."""

    def __init__(self, run: Path) -> None:
        self._run = run
        self._opened: dict[str, Model] = {}

    def __getitem__(self, stage: str) -> Model:
        if stage not in list(self):  # Mapping's own ``in`` would call this method
            raise KeyError(stage)
        if stage not in self._opened:
            self._opened[stage] = load(self._run / stage)
        return self._opened[stage]

    def __iter__(self) -> Iterator[str]:
        return (stage for stage in reversed(NEWEST_FIRST) if holds_weights(self._run / stage))

    def __len__(self) -> int:
        return len(list(iter(self)))

    def __repr__(self) -> str:
        return f"<stages {', '.join(self)}>"


class Run:
    """A run's folder: ``klype.Run("runs/world-…")``, or what ``klype.train`` returns. ``klype.load(run)`` opens its
    newest model. Raises KlypeError for a folder that is no run.

    >>> klype.Run(run).stages["finetune"].ask("Hvor er Kari?", temperature=0)[0].text
    '...'
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = _path("path", path)
        self.stages = Stages(self.path)
        folder.read_run(self.path)

    def __fspath__(self) -> str:
        return str(self.path)

    def __repr__(self) -> str:
        return f"klype.Run({str(self.path)!r})"

    @property
    def about(self) -> Row:
        """The contents of run.json: the options, the recipe's settings, the state."""
        return folder.read_run(self.path)

    @property
    def metrics(self) -> dict[str, Metrics]:
        """The metrics of training so far, by stage: pretrain, finetune, reward, align."""
        files = {stage: self.path / stage / "metrics.jsonl" for stage in STAGES}
        there = {stage: file.read_bytes() for stage, file in files.items() if file.is_file()}
        return {stage: Metrics(tuple(steps(data.splitlines()))) for stage, data in there.items()}

    @property
    def report(self) -> RunReport:
        """What was measured of the models. Raises KlypeError if nothing has been yet."""
        about = self.about
        # of a finished run; of an alignment, which has no figures.json; of a run that is not finished
        page = self.path / "figures.json"
        if page.is_file():
            facts: Any = read_facts(page)
            return RunReport(page, {k: f for k, f in facts["stages"].items() if f}, facts)
        if aligned := about.get("aligned"):
            return RunReport(page, {"finetuned": aligned["before"], "aligned": aligned["after"]}, aligned)
        if figures := {k: f for k, f in about.get("figures", {}).items() if f}:
            return RunReport(page, figures, {"stages": figures})
        raise KlypeError(f"Nothing has been measured of {self.path} yet.", "Resume it: resume=True.")

    def rank(
        self, by: Reward | str | Path | None = None, n: int = 0, noise: float = 0.1, name: str = "", seed: int = 0
    ) -> Rankings:
        """Ranks the answers in the run's store, as ``klype rank`` does; of at most ``n`` questions (0: all).

        ``by``: None for the demo world's simulated annotator, who swaps neighbours with probability ``noise``; a reward
        function; or a JSONL file of rankings, which are added. Questions that ``by`` has ranked before are left out.
        In ``align``, methods that learn from rankings (dpo, ipo, kto) use them.
        """
        whole(n=n, seed=seed)
        number("n", n)
        rankers.check_noise(number("noise", noise))
        if by is not None and not isinstance(by, str | Path) and not callable(by):
            raise UsageError("by should be a function (questions, answers) -> list of floats, or a file of rankings.")
        with ranking.open_store(self.path / "rank") as store:
            if isinstance(by, str | Path):
                new = store.put(formats.read(Path(by)))
            else:
                rankers.check_store(store)
                if by is None:
                    rank = rankers.by_taste(rankers.world_of(self.path), "", noise, name)
                else:
                    rank = rankers.by_function(by, name or name_of(by))
                new = rankers.rank_all(store, rank, "simulated" if by is None else "model", n, seed)
            entries = store.entries()
            about = {"run": str(self.path), "store": store.place, "new": new, "entries": len(entries)}
        return Rankings(new, {**about, **rankers.summary(entries)})

    def align(
        self, method: str = "", rewards: Rewards = (), out: str | Path | None = None, **options: Unpack[AlignOptions]
    ) -> "Run":
        """Aligns the run's fine-tuned model, as ``klype align`` does. Returns the new Run in ``out``
        (runs/align-DATE-N), or that of the last round.

        ``method``: grpo (the default), rloo, ppo, expert, dpo, ipo or kto. ``rewards``: instead of the reward model, or
        together with it, by weight; see ``klype.train``. Raises KlypeError if the reward model is used and too weak.
        """
        asked: dict[str, Any] = {**options, "stage": "align", "from_": str(self.path), "out": out}
        rounds, flaw = asked.pop("rounds", 1), asked.pop("taste", "")
        weights, asked["functions"] = by_name(rewards)
        how = overrides(method, weights, asked.pop("beta", None), asked.pop("target_kl", None))
        place = _work(StageOptions, asked, how, lambda stage, say: align_rounds(stage, rounds, flaw, say))
        # each of several rounds is a run of its own
        return Run(place if rounds == 1 else place / f"round-{rounds}")

    def _repr_html_(self) -> str:
        about, title = self.about, f"<p>{escape(str(self.path))}: {', '.join(self.stages)}"
        title += f" ({escape(str(about.get('recipe', '')))}, {escape(str(about.get('state', '')))})</p>"
        try:
            return title + self.report._repr_html_()
        except KlypeError as nothing:
            return title + f"<p>{escape(nothing.message)}</p>"


def train(
    text: str | Path | Sequence[str | Path] = (),
    recipe: str = "",
    minutes: float = 5.0,
    rewards: Rewards = (),
    seed: int = 0,
    **options: Unpack[TrainOptions],
) -> Run:
    """Trains a language model through all stages, as ``klype run`` does: pre-training, fine-tuning, rankings, a reward
    model, alignment, each measured. It takes about ``minutes`` minutes.

    ``text``: files, folders or globs to learn from; ``data``: a folder of texts, questions and rankings, or
    ``hf:owner/name``; without either the demo world. ``recipe``: a recipe's name or TOML file. ``rewards``: functions
    ``(questions, answers) -> list of floats`` that alignment learns from in place of the reward model, or {function:
    weight}, where "model" is the reward model. ``out``: the run's folder (runs/RECIPE-DATE-N). The same seed and the
    same number of steps give the same weights. Raises KlypeError with a one-sentence explanation of what is
    wrong.

    >>> def short(questions, answers):
    ...     return [-len(answer.split()) for answer in answers]
    >>> run = klype.train(minutes=0.02, rewards=[short], out=out, set=small)
    >>> list(run.stages)
    ['pretrain', 'finetune', 'align']
    >>> list(run.about["rewards"])
    ['short']
    >>> run.metrics["align"].rows[0]["step"]
    1
    """
    texts = (text,) if isinstance(text, str | Path) else text
    if not isinstance(texts, Sequence) or not all(isinstance(one, str | Path) for one in texts):
        raise UsageError(f"text should be a file, or a list of files, folders or globs (it is {text!r}).")
    asked: dict[str, Any] = {**options, "recipe": recipe, "minutes": minutes, "seed": seed}
    asked["text"] = tuple(map(str, texts))
    weights, asked["functions"] = by_name(rewards)
    if "from_" in asked:
        asked["from_"] = str(asked["from_"] if isinstance(asked["from_"], str) else _path("from_", asked["from_"]))
    return Run(_work(RunOptions, asked, as_settings(weights), pipeline.run))


def _work(
    kind: type[Work], asked: dict[str, Any], how: tuple[str, ...], work: Callable[[Work, RunListener], object]
) -> Path:
    """Checks the arguments, calls ``work`` in a run folder, and returns the folder. torch's number of threads and
    random state are restored. ``how``: settings of the recipe, which ``asked["set"]`` may override."""
    import torch

    given, out, say = asked.pop("set", {}), asked.pop("out", None), asked.pop("progress", None)
    say = SilentListener() if say is None else say
    if not isinstance(given, Mapping):
        raise UsageError("set should be a mapping of settings.", 'For example {"pretrain.rows": 32}.')
    if not callable(getattr(say, "note", None)):
        raise UsageError("progress should be an object with the methods of klype.runs.listener.RunListener.")
    values: dict[str, object] = {
        name: str(value).lower() if isinstance(value, bool) else value for name, value in given.items()
    }
    asked["overrides"] = (*how, *(f"{name}={value}" for name, value in values.items()))
    out, options = None if out is None else _path("out", out), make(kind, {**asked, "cache": cache_folder()})
    options.check()
    name, threads = options.recipe_name if isinstance(options, RunOptions) else "align", torch.get_num_threads()
    try:
        with folder.claim(name, out, options.resume, date.today()) as place, torch.random.fork_rng(devices=[]):
            work(replace(options, out=place), say)
    finally:
        torch.set_num_threads(threads)
    return place


def _path(name: str, value: object) -> Path:
    if not isinstance(value, str | os.PathLike):
        raise UsageError(f"{name} should be a path (it is {value!r}).")
    return Path(value)
