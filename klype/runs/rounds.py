"""``klype align``: a run's answers are aligned, once or in rounds (rank → reward → align), and compared with before."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

from klype.errors import KlypeError, UsageError
from klype.examine.say import Say as Words
from klype.preferences.annotators import Taste
from klype.preferences.annotators import taste as read_taste
from klype.runs.aligning import Evaluation, align, examined, reward
from klype.runs.folder import read_run
from klype.runs.gates import against_aligning, compare, verdict
from klype.runs.opening import as_begun, bring, lacks_nothing, open_run, recipe_of, start_of, with_inputs_of
from klype.runs.options import StageOptions
from klype.runs.recipe import Recipe
from klype.runs.record import write_json
from klype.runs.say import RunListener
from klype.runs.stages import Run, rank
from klype.runs.task import Task
from klype.sources.find import Found
from klype.train.policy import method
from klype.train.reward_model import ABOUT
from klype.train.rewards import MODEL, as_settings
from klype.values import Question, Verdict
from klype.words import LANGUAGES

METHOD = "grpo"  # where none is asked for


def overrides(name: str, weights: Mapping[str, float], beta: float | None, target_kl: float | None) -> tuple[str, ...]:
    """What is asked of an alignment, as settings of its recipe; ``name``: of the method, "" for the usual one."""
    kind = "preference" if method(name or METHOD).learns_from == "rankings" else "policy"
    asked = {"align.how.method": name or None, f"align.how.{kind}.beta": beta, "align.how.target_kl": target_kl}
    return (*(f"{setting}={value}" for setting, value in asked.items() if value is not None), *as_settings(weights))


class Tasted:
    """A task whose annotator has another taste while it ranks; what is measured stays with the true one."""

    def __init__(self, task: Task, taste: Taste) -> None:
        self._task, self._taste = task, taste
        self.annotator_name = f"taste {taste}"

    def __getattr__(self, name: str) -> Any:
        return getattr(self._task, name)

    def judge(self, question: Question, answer: str, finished: bool) -> Verdict:
        verdict = self._task.judge(question, answer, finished)
        return replace(verdict, score=self._taste.score(verdict, finished))


def align_rounds(options: StageOptions, rounds: int, taste: str, say: RunListener) -> dict[str, Any]:
    """Aligns the run named by ``options.from_`` and returns the JSON document of the command.

    More than one round, a taste, or ``options.human``: the newest model's answers are ranked anew first, by the
    simulated annotator or by hand. Raises KlypeError when the reward model is too weak and ``force`` was not given.
    """
    if not 1 <= rounds <= 50:
        raise UsageError(f"--rounds should be from 1 to 50 (it is {rounds}).")
    flaw = read_taste(taste) if taste else None
    out = options.out
    assert out is not None
    begun = out if rounds == 1 else out / "round-1"
    if (begun / "run.json").exists():
        options, recipe = as_begun(begun, options)
        start = start_of(options)
    else:
        start = start_of(options)
        usual = replace(options, overrides=(f"align.how.method={METHOD}", *options.overrides))
        recipe, options = recipe_of(start, usual), timed(with_inputs_of(start, options))
    method(recipe.align.how.method)  # one there is
    done: list[dict[str, Any]] = []
    first, base = start, None
    for number in range(1, rounds + 1):
        folder = out if rounds == 1 else out / f"round-{number}"
        document = one_round(
            first, folder, (options, recipe), (flaw, rounds > 1 or flaw is not None or options.human), say
        )
        done.append(document)
        base = base or start.folder
        first = Found(folder / "align", folder, "align")
    whole = {
        "run": str(out),
        "from": options.from_,
        "method": recipe.align.how.method,
        "taste": taste,
        "rounds": done,
        **{key: done[-1][key] for key in ("verdict", "gain", "win_rate")},
    }
    write_json(out / "align.json", whole)
    return whole


def timed(options: StageOptions) -> StageOptions:
    """Half a minute a round, where nothing else is asked for."""
    unasked = options.steps is None and options.minutes is None
    return replace(options, minutes=0.5) if unasked else options


def one_round(
    start: Found, folder: Path, how: tuple[StageOptions, Recipe], ranking: tuple[Taste | None, bool], say: RunListener
) -> dict[str, Any]:
    """One round in a folder of its own; a finished one is not done again.

    ``ranking``: the annotator's taste, where it is another than the annotator's, and whether answers are ranked anew.
    """
    options, recipe = how
    flaw, anew = ranking
    resumed = (folder / "run.json").exists()
    if resumed and (known := read_run(folder)).get("aligned"):
        return cast(dict[str, Any], known["aligned"])
    goal = "rank" if anew else "align"
    lacks_nothing(start, goal, recipe)
    folder.mkdir(parents=True, exist_ok=True)
    life = open_run(folder, replace(options, out=folder), recipe, say, resumed, start.folder)
    bring(start, folder, goal)
    tasted = life if flaw is None else replace(life, task=cast(Task, Tasted(life.task, flaw)))
    with life.record.under_way():
        for name, stage, own_life in (("rank", rank, tasted), ("reward", reward, life)):
            if anew and not life.record.done(name):
                began = time.perf_counter()
                stage(own_life)
                life.record.finish(name, time.perf_counter() - began)
        if flaw is not None:  # the annotator's own ceiling is that of the taste it ranked by
            own = examined(tasted)
            life.record.content.setdefault("reward", own).update(
                {name: own[name] for name in ("ceiling", "tau_ceiling")}
            )
        _check(life)
        began = time.perf_counter()
        align(life)
        life.record.finish("align", time.perf_counter() - began)
    return _compared(life)


def _check(life: Run) -> None:
    """The reward model's audit, shown before anything is aligned; a weak one is refused."""
    found = life.record.content.get("reward")
    if found is None and not (life.folder / "reward" / ABOUT).exists():
        return
    if found is None:
        found = life.record.content["reward"] = examined(life)
        life.record.save()
    named: dict[str, Any] = {n: f for n, f in found.items() if isinstance(f, dict) and "value" in f}
    words = Words(life.options.lang)
    shown = [(words.measure(name), words.figure(figure, name)) for name, figure in named.items()]
    life.say.table("the reward model, on held-out rankings", ("measure", "figure"), shown)
    if MODEL in life.recipe.align.weights and not life.options.force and (why := against_aligning(life)) is not None:
        raise KlypeError(why[life.options.lang])


def _compared(life: Run) -> dict[str, Any]:
    watched, words = life.record.content["watch"], Words(life.options.lang)
    document = compare(life, life.model("finetune"), life.model("align"))
    seen = [Evaluation(**{**s, "truth": (s["truth"],), "rewards": {}}) for s in watched["seen"]]
    says = {lang: verdict(document, seen, watched["stopped"], lang) for lang in LANGUAGES}
    life.say.table(
        "before and after",
        ("measure", "before", "after"),
        [
            (words.measure(k), words.figure(f, k), words.figure(document["after"].get(k, f), k))
            for k, f in document["before"].items()
        ],
    )
    life.say.table(
        "rewards",
        ("reward", "weight", "before", "after"),
        [
            (name, words.plain(r["weight"]), words.figure(r["before"], "reward"), words.figure(r["after"], "reward"))
            for name, r in life.record.content["rewards"].items()
        ],
    )
    wins = [("win rate", words.figure(document["win_rate"])), ("ties", words.figure(document["ties"]))]
    life.say.table("wins", ("", ""), wins)
    life.say.note(says[life.options.lang])
    out = {
        "run": str(life.folder),
        "method": life.recipe.align.how.method,
        "seconds": life.record.content["seconds"],
        "reward": life.record.content.get("reward"),
        "rewards": life.record.content["rewards"],
        "watch": watched,
        **document,
        "verdict": says,
    }
    life.record.content["aligned"], life.record.content["state"] = out, "done"
    life.record.save()
    return out
