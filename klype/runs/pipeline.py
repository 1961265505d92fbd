"""``klype run`` and ``klype train``: the stages one after the other, each measured, all of it resumable."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from klype.data.readers import BadRows
from klype.errors import KlypeError, UsageError
from klype.examine import report
from klype.model.checkpoint import load, read_tokenizer, save
from klype.runs import inputs
from klype.runs.adapting import dealt_out, done_already, suited
from klype.runs.aligning import align, examined, functions_of, reward
from klype.runs.folder import MEND, read_run
from klype.runs.gates import against_aligning, figure_of, time_gate
from klype.runs.gather import MODELS, about, gather, measure_stage
from klype.runs.inherited import recipe_of, with_inputs_of
from klype.runs.options import InputOptions, RunOptions, StageOptions, recipe_for
from klype.runs.promise import settle
from klype.runs.recipe import Recipe, read, saved
from klype.runs.record import MEANING, Asked, Record, meant_otherwise, resumed_options
from klype.runs.say import Say
from klype.runs.stages import Run, finetune, pretrain, rank
from klype.runs.subject import Subject
from klype.sources.find import Found, find_model, holds_weights
from klype.text.tokenizer import Tokenizer
from klype.train import parallel
from klype.train.preference import NothingTaughtError
from klype.words import figure as number_figure


@dataclass(frozen=True, slots=True)
class Stage:
    """``before``: whose model it goes on from; ``needs``: whose findings lie in the run's folder, too. ``shared``:
    several processes do it together; the others are one process's."""

    do: Callable[[Run], None]
    before: str = ""
    needs: tuple[str, ...] = ()
    shared: bool = False


STAGES = {
    "pretrain": Stage(pretrain, shared=True),
    "finetune": Stage(finetune, "pretrain", shared=True),
    "rank": Stage(rank, "finetune"),
    "reward": Stage(reward, "finetune", ("rank",)),
    "align": Stage(align, "finetune", ("rank", "reward")),
}
MEASURED = {stage: name for name, stage in MODELS.items()}
SHOWN = {"passed": "passed", "within": "within the uncertainty", "missed": "missed"}
"""Of a gate."""


def run(options: RunOptions, say: Say) -> dict[str, Any]:
    """The whole life-cycle in ``options.out`` (empty, or to be resumed). Returns the JSON contract of a run.

    Several processes do what can be shared together, then the first goes on alone, and the others return nothing.
    """
    with parallel.first_alone():
        life = _life(options, say)
    with life.record.under_way():
        settle(life)
        if parallel.is_first():
            _measure_as_now(life)
        for name, stage in STAGES.items():
            if life.record.done(name) or not _may_start(life, name):
                continue
            if not stage.shared and parallel.ranks() > 1:
                if not parallel.is_first():
                    return {}
                _go_on_alone(life)
            began = time.perf_counter()
            try:
                stage.do(life)
            except NothingTaughtError:
                if name == "align" or not life.recipe.align.replaces_model:
                    _nothing_to_imitate(life)
                continue
            life.record.finish(name, time.perf_counter() - began)
            if name in MEASURED and parallel.is_first():
                _measured(life, name)
        return _report(life) if parallel.is_first() else {}


def _go_on_alone(life: Run) -> None:
    parallel.leave()
    life.options = replace(life.options, processes=1)


def _life(options: RunOptions, say: Say) -> Run:
    assert options.out is not None
    folder, resumed = options.out, (options.out / "run.json").exists()
    if resumed:
        options, recipe = as_begun(folder, options)
    else:
        recipe = read(options.recipe_name, options.overrides, options.size)
        _check(options, recipe)
    start = find_model(options.from_) if options.from_ else None
    if not resumed:
        recipe = dealt_out(suited(recipe, options, start), parallel.ranks())
    life = open_run(folder, options, recipe, say, resumed, start.folder if start else None)
    if start is not None:
        _leave_out(life, done_already(start, options))
    return life


def as_begun(folder: Path, options: Asked) -> tuple[Asked, Recipe]:
    """What was asked for when the run began, and the recipe that it goes by."""
    content = read_run(folder)
    try:
        return resumed_options(options, content["asked"]), Recipe.model_validate(saved(content["settings"]))
    except (KeyError, ValidationError) as error:
        raise KlypeError(f"{folder / 'run.json'} is damaged: it does not say what was asked for.", MEND) from error


def train_stage(options: StageOptions, say: Say) -> dict[str, Any]:
    """One stage in a run folder of its own: ``out/STAGE`` is its checkpoint. Of several processes, the first tells."""
    stage = STAGES[options.stage]
    if not stage.shared and parallel.ranks() > 1:
        raise UsageError(f"The stage {options.stage} is done by one process.", "Leave out the launcher (torchrun).")
    with parallel.first_alone():
        life = _stage_life(options, say)
    began = time.perf_counter()
    with life.record.under_way():
        if options.stage == "pretrain":
            settle(life)
        stage.do(life)
    if not parallel.is_first():
        return {}
    life.record.finish(options.stage, time.perf_counter() - began)
    if options.stage in MEASURED:
        _measured(life, options.stage)
    life.record.content["state"] = "done"
    life.record.save()
    content = life.record.content
    return {
        "run": str(life.folder),
        "stage": options.stage,
        "model": str(life.folder / options.stage),
        "seconds": content["seconds"],
        "figures": content["figures"],
        "reward": content.get("reward"),
        "rewards": content.get("rewards"),
    }


def _stage_life(options: StageOptions, say: Say) -> Run:
    assert options.out is not None
    folder, resumed = options.out, (options.out / "run.json").exists()
    start = start_of(options) if options.from_ else None
    options, recipe = as_begun(folder, options) if resumed else _as_of(start, options)
    if start is None and options.stage != "pretrain":
        raise UsageError(f"The stage {options.stage} needs a model to start from.", "Give --from MODEL.")
    if not resumed:
        recipe = dealt_out(suited(recipe, options, start), parallel.ranks())
    life = open_run(folder, options, recipe, say, resumed, start.folder if start else None)
    if start is not None and STAGES[options.stage].before == "finetune":
        bring(start, folder, options.stage, recipe)
    return life


def _as_of(start: Found | None, options: StageOptions) -> tuple[StageOptions, Recipe]:
    """Gone on with as the run was made that is gone on from, where nothing else is given."""
    own = with_inputs_of(start, options)
    if start is None or own is options:
        return options, read(recipe_for(options), options.overrides, options.size)
    return own, recipe_of(start, options)


def start_of(options: StageOptions) -> Found:
    """The model that the stage goes on from: of a whole run, the one that its own stage went on from."""
    found = find_model(options.from_)
    earlier = found.run / STAGES[options.stage].before if found.run else None
    named_run = found.run is not None and Path(options.from_).resolve() == found.run.resolve()
    if named_run and earlier is not None and holds_weights(earlier):
        return Found(earlier, found.run, earlier.name)
    return found


def open_run(
    folder: Path, options: RunOptions | StageOptions, recipe: Recipe, say: Say, resumed: bool, start: Path | None = None
) -> Run:
    """The record on disk, and everything the stages need in memory. UsageError where a resumed run has other files."""
    if resumed:
        record = Record(folder, read_run(folder), parallel.is_first())
        options = replace(options, resume=True)
        if "inputs" not in record.content:
            raise UsageError("This run was begun by an earlier klype.", "Start another one, with another --out.")
        hashes = inputs.unchanged(options, record.content["inputs"])
    else:
        recipe = recipe.from_anywhere()
        minutes = options.minutes or 0.0
        name = options.recipe_name if isinstance(options, RunOptions) else recipe.kind
        hashes = inputs.hashes(options)
        made_by = {"recipe": name, "settings": recipe.model_dump(mode="json"), "planned_s": minutes * 60}
        record = Record.start(folder, options, {**made_by, "inputs": hashes})
    functions = functions_of(recipe, options, record, say)
    known = start if start is not None else folder
    there = known.is_file() or (known / "tokenizer.json").exists()
    tokenizer = read_tokenizer(known) if there else None
    bad = BadRows(skip=options.skip_bad)
    subject = _subject(recipe, options, bad, tokenizer, hashes)
    run = Run(folder, options, recipe, subject, record, say, start, functions=functions)
    record.content["machine"]["device"] = str(parallel.device() if parallel.ranks() > 1 else run.device)
    if bad.count:
        record.content["skipped"] = {"rows": bad.count, "first": bad.shown}
        say.note(bad.said())
    if not resumed:
        subject.chat.tokenizer.save(folder)
        subject.save_inputs(folder)
        record.content |= about(run)  # also the card of the first stage says whose data it was
        record.save()
    return run


def _subject(
    recipe: Recipe, options: InputOptions, bad: BadRows, tokenizer: Tokenizer | None, hashes: Mapping[str, str]
) -> Subject:
    if tokenizer is not None and tokenizer.template is None:
        raise KlypeError(
            "The model to start from has no chat template, which says how questions and answers are written.",
            "Put one beside its weights, as chat_template.jinja (that of its maker's chat model, say).",
        )
    seed: int = getattr(options, "seed", 0)
    if recipe.kind == "world":
        from klype.runs.world_subject import WorldSubject

        return WorldSubject(recipe, seed, tokenizer)
    from klype.runs.text_subject import TextSubject

    return TextSubject(recipe, seed, options, bad, tokenizer, hashes)


def _leave_out(life: Run, stages: tuple[str, ...]) -> None:
    """Stages that the model from outside has behind it; it is measured as the last of them left it."""
    if MEASURED[stages[-1]] in life.record.content["figures"]:
        return
    life.say.note(f"The model has behind it: {', '.join(stages)}. It goes on from there.")
    for stage in stages:
        life.record.finish(stage, 0.0, brought=str(life.start))
    _measured(life, stages[-1])


def _check(options: RunOptions, recipe: Recipe) -> None:
    if not options.recipe and options.recipe_name == "world" and options.preferences:
        raise UsageError(
            "Rankings alone (--preferences) are nothing to learn a language from: there is no --text.",
            "Give text beside them: --text FILES, or --data FOLDER.",
        )
    if recipe.kind == "world" and (options.text or options.instructions or options.preferences):
        raise UsageError(
            f"The recipe {options.recipe_name} is about the demo world and takes no text of your own.",
            "Leave --recipe out, or use --recipe text.",
        )


def _may_start(life: Run, stage: str) -> bool:
    """Nothing is aligned to a bad imitation of the ranker, or without one."""
    if stage != "align" or life.recipe.align.replaces_model:
        return True
    if not life.record.done("reward"):
        return False
    why = against_aligning(life)
    if why is not None and life.options.force:
        life.say.note(f"{why['en']} It was given.")
    return why is None or life.options.force or _refused(life, why["en"], why["nb"])


def _nothing_to_imitate(life: Run) -> None:
    _refused(
        life,
        "No question has two different answers of which the ranker likes one better: there is nothing to imitate, "
        "and nothing to align to. More questions to rank help, or a longer run, whose answers differ.",
        "Ikke noe spørsmål har to ulike svar der den som rangerer, liker det ene bedre: Det er ingenting å "
        "etterligne og ingenting å rette modellen etter. Flere spørsmål å rangere hjelper, eller en lengre "
        "kjøring, der svarene blir forskjellige.",
    )


def _refused(life: Run, en: str, nb: str) -> bool:
    """Says why, now and in the report."""
    life.record.content["refused"] = {"en": en, "nb": nb}
    life.record.save()
    life.say.note(en)
    return False


def _measured(life: Run, stage: str) -> None:
    began = time.perf_counter()
    name = MEASURED[stage]
    life.record.content["figures"][name] = measure_stage(life, name)
    life.record.finish("examine", time.perf_counter() - began)
    life.record.content["done"].pop("examine")
    life.record.save()
    life.say.table(f"{name} model", ("measure", "figure"), _rows(life.record.content["figures"][name]))


def _measure_as_now(life: Run) -> None:
    """What an earlier klype measured otherwise, as it is meant now."""
    content = life.record.content
    otherwise = meant_otherwise(content)
    if "right" in otherwise:
        for stage, name in MEASURED.items():
            if content["figures"].get(name):
                _measured(life, stage)
    if otherwise and content.get("reward"):
        content["reward"] = examined(life)
    content["meaning"] = MEANING


def _rows(figures: dict[str, Any]) -> list[tuple[str, str]]:
    from klype.examine.say import Say as Words

    words = Words("en")
    return [(name, words.figure(figure, name)) for name, figure in figures.items()]


def _report(life: Run) -> dict[str, Any]:
    """Measures what only the whole run can tell, writes the report, and returns what ``--json`` prints."""
    began = time.perf_counter()
    facts = gather(life)
    life.record.content["seconds"]["examine"] = round(
        life.record.content["seconds"].get("examine", 0.0) + time.perf_counter() - began, 2
    )
    life.record.stop_clock()
    facts["gates"] = [*facts["gates"], time_gate(life)]
    facts["seconds"] = {**life.record.content["seconds"], "total": round(life.record.elapsed, 2)}
    path = report.write(life.folder, facts, life.options.lang)
    content = life.record.content
    content["state"], content["gates"] = "done", facts["gates"]
    life.record.save()
    life.say.table(
        "gates",
        ("", "gate", "value", "threshold"),
        [
            (
                SHOWN[g["status"]],
                g["name"],
                "–" if g["value"] is None else number_figure(figure_of({"gate": g}, "gate"), "en"),
                f"{'≤' if g.get('below') else '≥'} {g['threshold']:g}",
            )
            for g in content["gates"]
        ]
        + [("too few", few["name"], f"n = {few['n']}", "") for few in facts["too_few"]],
    )
    life.say.note(
        f"The report: {path}\nTalk to the model: {life.options.program} chat {report.quoted(str(life.folder))}"
    )
    document: dict[str, Any] = {
        "run": str(life.folder),
        "recipe": content["recipe"],
        "planned_s": content["planned_s"],
        "seconds": content["seconds"],
        "stages": {name: content["figures"].get(name) for name in MODELS},
        "reward": content.get("reward"),
        "rewards": content.get("rewards"),
        "gates": content["gates"],
        "too_few": facts["too_few"],
        "report": str(path),
    }
    if content.get("refused"):
        document["why"] = content["refused"]["en"]
    if "text" in facts:
        document["yardsticks"] = facts["text"]
    return document


def bring(start: Found, folder: Path, stage: str, recipe: Recipe) -> None:
    """Copy what the stage builds on: the fine-tuned model, rankings for a reward model, what alignment needs or finds.

    So the new folder is a run of its own, which the next stage can start from.
    """
    for needed in STAGES[stage].needs:
        if start.run is None or not (start.run / needed).is_dir():
            if stage == "align" and needed not in recipe.align.needs:
                continue
            raise UsageError(
                f"{start.run or start.folder} has no {needed}, which the stage {stage} needs.",
                f"Do it first: klype train {needed} --from {start.run or start.folder}.",
            )
        _copy(start.run / needed, folder / needed)
    _copy(start.folder, folder / "finetune")


def _copy(source: Path, target: Path) -> None:
    if source.is_file():  # a GGUF file becomes a folder like others
        loaded = load(source)
        save(target, loaded.model, loaded.tokenizer, {"stage": target.name, "from": source.name})
        return
    if not target.exists() and source.resolve() != target.resolve():
        shutil.copytree(source, target, ignore=shutil.ignore_patterns("resume", "metrics.jsonl"))
