"""``klype run`` and ``klype train``: the stages one after the other, each measured, all of it resumable."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from klype.errors import UsageError
from klype.examine import report
from klype.examine.say import Say as Words
from klype.model.config import ModelConfig
from klype.model.transformer import Transformer
from klype.runs.adapting import done_already
from klype.runs.aligning import examined
from klype.runs.examining import MODELS, gather, measure_stage
from klype.runs.gates import against_aligning, time_gate
from klype.runs.opening import STAGES, open_life_cycle, open_stage
from klype.runs.options import RunOptions, StageOptions
from klype.runs.probe import all_cores_seconds, fitting, in_time
from klype.runs.recipe import Recipe
from klype.runs.record import MEANING, meant_otherwise
from klype.runs.say import RunListener
from klype.runs.stages import Run, enough_steps, late_text, precision_of, seconds_for
from klype.sources.opening import find_model
from klype.train import parallel
from klype.train.objectives import cross_entropy
from klype.train.preference import NoPreferencesError

MEASURED = {stage: name for name, stage in MODELS.items()}
SHORTEST = 1  # minutes of a run that ends in time

Look = Callable[..., float]  # like klype.runs.probe.all_cores_seconds


def run(options: RunOptions, say: RunListener) -> dict[str, Any]:
    """The whole life-cycle in ``options.out`` (empty, or to be resumed). Returns the JSON contract of a run.

    Several processes do what can be shared together, then the first goes on alone, and the others return nothing.
    """
    with parallel.first_alone():
        run = open_life_cycle(options, say)
        if run.start is not None:
            assert isinstance(run.options, RunOptions)
            _leave_out(run, done_already(find_model(run.options.from_), run.options))
    with run.record.under_way():
        resolve_shape(run)
        if parallel.is_first():
            _measure_as_now(run)
        for name, stage in STAGES.items():
            if run.record.done(name) or not _may_start(run, name):
                continue
            if not stage.shared and parallel.ranks() > 1:
                if not parallel.is_first():
                    return {}
                parallel.leave()
                run.options = replace(run.options, processes=1)
            began = time.perf_counter()
            try:
                stage.do(run)
            except NoPreferencesError:
                if name == "align" or not run.recipe.align.replaces_model:
                    _nothing_to_imitate(run)
                continue
            run.record.finish(name, time.perf_counter() - began)
            if name in MEASURED and parallel.is_first():
                _measured(run, name)
        return _report(run) if parallel.is_first() else {}


def train_stage(options: StageOptions, say: RunListener) -> dict[str, Any]:
    """One stage in a run folder of its own: ``out/STAGE`` is its checkpoint. Of several processes, the first tells."""
    stage = STAGES[options.stage]
    if not stage.shared and parallel.ranks() > 1:
        raise UsageError(f"The stage {options.stage} is done by one process.", "Leave out the launcher (torchrun).")
    with parallel.first_alone():
        run = open_stage(options, say)
    began = time.perf_counter()
    with run.record.under_way():
        if options.stage == "pretrain":
            resolve_shape(run)
        stage.do(run)
    if not parallel.is_first():
        return {}
    run.record.finish(options.stage, time.perf_counter() - began)
    if options.stage in MEASURED:
        _measured(run, options.stage)
    run.record.content["state"] = "done"
    run.record.save()
    content = run.record.content
    return {
        "run": str(run.folder),
        "stage": options.stage,
        "model": str(run.folder / options.stage),
        "seconds": content["seconds"],
        "figures": content["figures"],
        "reward": content.get("reward"),
        "rewards": content.get("rewards"),
    }


def _leave_out(run: Run, stages: tuple[str, ...]) -> None:
    """Stages that the model from outside has behind it; it is measured as the last of them left it."""
    if MEASURED[stages[-1]] in run.record.content["figures"]:
        return
    run.say.note(f"The model has already been through: {', '.join(stages)}. It continues from there.")
    for stage in stages:
        run.record.finish(stage, 0.0, brought=str(run.start))
    _measured(run, stages[-1])


def _may_start(run: Run, stage: str) -> bool:
    """Nothing is aligned to a bad imitation of the annotator, or without one."""
    if stage != "align" or run.recipe.align.replaces_model:
        return True
    if not run.record.done("reward"):
        return False
    why = against_aligning(run)
    if why is not None and run.options.force:
        run.say.note(f"{why[run.options.lang]} (--force)")
    return why is None or run.options.force or _refused(run, why["en"], why["nb"])


def _nothing_to_imitate(run: Run) -> None:
    _refused(
        run,
        "No question has two different answers of which the annotator likes one better: there is nothing to imitate, "
        "and nothing to align to. More questions to rank help, or a longer run, whose answers differ.",
        "Ikke noe spørsmål har to ulike svar der den som rangerer, liker det ene bedre: Det er ingenting å "
        "etterligne og ingenting å rette modellen etter. Flere spørsmål å rangere hjelper, eller en lengre "
        "kjøring, der svarene blir forskjellige.",
    )


def _refused(run: Run, en: str, nb: str) -> bool:
    """Says why, now and in the report."""
    run.record.content["refused"] = {"en": en, "nb": nb}
    run.record.save()
    run.say.note({"en": en, "nb": nb}.get(run.options.lang, en))
    return False


def _measured(run: Run, stage: str) -> None:
    began = time.perf_counter()
    name = MEASURED[stage]
    run.record.content["figures"][name] = measure_stage(run, name)
    took = time.perf_counter() - began
    run.record.finish("examine", took)
    run.record.content["done"].pop("examine")
    # as long again for each model that is left, and for the report
    run.needs["examine"] = took * (1 + sum(not run.record.done(stage) for stage in MEASURED))
    run.record.save()
    words = Words(run.options.lang)
    rows = [(words.measure(m), words.figure(f, m)) for m, f in run.record.content["figures"][name].items()]
    run.say.table(words.stage(name), (words("column.measure"), words("column.value")), rows)


def _measure_as_now(run: Run) -> None:
    """What an earlier klype measured otherwise, as it is meant now."""
    content = run.record.content
    otherwise = meant_otherwise(content)
    if "right" in otherwise:
        for stage, name in MEASURED.items():
            if content["figures"].get(name):
                _measured(run, stage)
    if otherwise and content.get("reward"):
        content["reward"] = examined(run)
    content["meaning"] = MEANING


def _report(run: Run) -> dict[str, Any]:
    """Measures what only the whole run can tell, writes the report, and returns what ``--json`` prints."""
    began = time.perf_counter()
    facts = gather(run)
    run.record.content["seconds"]["examine"] = round(
        run.record.content["seconds"].get("examine", 0.0) + time.perf_counter() - began, 2
    )
    run.record.stop_clock()
    facts["gates"] = [*facts["gates"], time_gate(run)]
    facts["seconds"] = {**run.record.content["seconds"], "total": round(run.record.elapsed, 2)}
    path = report.write(run.folder, facts, run.options.lang)
    content = run.record.content
    content["state"], content["gates"] = "done", facts["gates"]
    run.record.save()
    words = Words(run.options.lang)
    rows = [report.gate_row(gate, words) for gate in content["gates"]]
    columns = [words(f"gates.{key}") for key in ("name", "value", "threshold", "result")]
    run.say.table(words("section.gates"), columns, [(*rest, result.text) for *rest, result in rows])
    if few := report.too_few(facts, words):
        run.say.note(few)
    run.say.note(f"The report: {path}\nTalk to the model: {run.options.program} chat {report.quoted(str(run.folder))}")
    document: dict[str, Any] = {
        "run": str(run.folder),
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


# what is going to be made, chosen and said before it is begun


def resolve_shape(run: Run, look: Look = all_cores_seconds) -> None:
    """Chooses the shape of a new model where the recipe leaves it open, for good, and says what is going to be made.

    ``look`` tells how long a step takes.
    """
    began = time.perf_counter()
    recipe, limit = _shaped(run, look)
    if limit:
        run.recipe = run.task.recipe = recipe
        run.settling_s = time.perf_counter() - began
        run.record.content["settings"] = recipe.model_dump(mode="json")
        run.record.save()
    if isinstance(run.options, StageOptions):
        if limit:
            m = recipe.model
            run.say.note(f"A model with {m.layers} layers, {m.width} wide: the largest that {limit} can teach.")
        return
    run.say.note(_promise(run, limit))
    if (run.options.minutes or 0.0) < SHORTEST:
        run.say.note(
            f"Reading, rankings and the examination take most of a minute: under {SHORTEST} it takes longer than asked."
        )


def _shaped(run: Run, look: Look) -> tuple[Recipe, str]:
    """The run's recipe with a shape for a new model, and what keeps it from being larger ("": it was not open)."""
    recipe, lesson = run.recipe, run.recipe.pretrain
    if run.start is not None or not recipe.model.open:
        return recipe, ""
    tokens_a_step, vocabulary = lesson.rows * recipe.model.window, run.task.chat.tokenizer.vocab_size
    steps: int | None = getattr(run.options, "steps", None)
    if steps:
        return fitting(recipe, vocabulary, lambda smaller, larger: tokens_a_step * steps), f"{steps:,} steps"
    seconds = parallel.from_first(seconds_for(run, "pretrain"))
    precision, most = precision_of(run, "pretrain"), tokens_a_step * enough_steps(run, "pretrain")

    def step_seconds(config: ModelConfig) -> float:
        model = Transformer(config, run.backend).to(run.device)
        return look(model, lambda twin: (cross_entropy, late_text(run)), lesson.training, seconds, run.cores, precision)

    fits, limit = in_time(seconds, tokens_a_step, step_seconds), ""

    def learns(smaller: ModelConfig, larger: ModelConfig) -> float:
        """All processes go on with one shape."""
        nonlocal limit
        tokens: float = parallel.from_first(fits(smaller, larger))
        limit = "this text" if most < tokens else "the time"
        return min(tokens, most)

    return fitting(recipe, vocabulary, learns), limit or "the time"


def _promise(run: Run, limit: str) -> str:
    vocabulary, asked = run.task.chat.tokenizer.vocab_size, run.task.chat.tokenizer.asked
    minutes = run.options.minutes or 0.0
    noun = "minute" if minutes == 1 else "minutes"
    if run.start is not None:
        rank = run.recipe.lora.rank
        how = f", by adapters of rank {rank}" if rank else ""
        return f"{minutes:g} {noun} for all stages that are left{how}, in {run.folder}."
    m = run.recipe.model
    fewer = f" (the text supports no more of the {asked} asked for)" if vocabulary < asked else ""
    largest = f" (the largest that {limit} can teach)" if limit else ""
    return (
        f"{minutes:g} {noun} for all stages: a model with {m.layers} layers, {m.width} wide{largest}, and a vocabulary "
        f"of {vocabulary} tokens{fewer}, in {run.folder}."
    )
