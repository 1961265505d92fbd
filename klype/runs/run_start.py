"""Opens a run from its options, new or resumed: input files, recipe, starting model and record."""

import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from pydantic import ValidationError

from klype.config import make, with_overrides
from klype.data.files import files_of
from klype.data.find_data import is_hub
from klype.data.readers import KINDS, BadRows
from klype.durable import hash_file
from klype.errors import KlypeError, UsageError
from klype.model.checkpoint import load, read_about, read_config, read_tokenizer, save
from klype.runs.align_stage import align
from klype.runs.examine_stage import data_facts
from klype.runs.folder import MEND, read_run
from klype.runs.listener import RunListener
from klype.runs.machine_probe import candidate_models
from klype.runs.ranking import rank
from klype.runs.recipe import ModelShape, Recipe, current_settings, read
from klype.runs.reward import functions_of, reward
from klype.runs.run_json import AnyOptions, Record, resumed_options
from klype.runs.run_options import InputOptions, RunOptions, StageOptions, recipe_for
from klype.runs.stages import RunContext, finetune, pretrain
from klype.runs.task import Task
from klype.runs.text_task import TextTask
from klype.runs.world_task import WorldTask
from klype.sources.model_files import ModelFiles, holds_weights, shorten_path
from klype.sources.opening import find_model
from klype.train import parallel


@dataclass(frozen=True, slots=True)
class Stage:
    """A stage: its function and prerequisites. ``before``: the stage whose model it starts from; ``needs``: stages
    whose results must be in the run's folder, too. ``shared``: all processes take part; else only the first."""

    do: Callable[[RunContext], None]
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
INPUTS = ("text", "instructions", "preferences", "data", "encoding", "text_field", "skip_bad")
ANOTHER = "start another run with another --out"


def open_life_cycle(options: RunOptions, say: RunListener) -> RunContext:
    """A whole run in ``options.out``, new or to be resumed."""
    if is_begun(options):
        options, recipe = saved_start(options)
    else:
        recipe = read(options.recipe_name, options.overrides, options.size)
        if not options.recipe and options.recipe_name == "world" and options.preferences:
            raise UsageError(
                "Rankings alone (--preferences) are nothing to learn a language from: there is no --text.",
                "Give text as well: --text FILES, or --data FOLDER.",
            )
        if recipe.kind == "world" and (options.text or options.instructions or options.preferences):
            raise UsageError(
                f"The recipe {options.recipe_name} is about the demo world and takes no text of your own.",
                "Leave --recipe out, or use --recipe text.",
            )
    return begin_or_resume(options, recipe, say, find_model(options.from_) if options.from_ else None)


def open_stage(options: StageOptions, say: RunListener) -> RunContext:
    """One stage's run in ``options.out``, new or to be resumed."""
    start = start_of(options) if options.from_ else None
    if start is None and options.stage != "pretrain":
        raise UsageError(f"The stage {options.stage} needs a model to start from.", "Give --from MODEL.")
    if is_begun(options):
        options, recipe = saved_start(options)
    elif start is None or (own := with_inputs_of(start, options)) is options:
        recipe = read(recipe_for(options), options.overrides, options.size)
    else:  # as the run that it starts from was made, where nothing else is given
        options, recipe = own, recipe_of(start, options)
    return begin_or_resume(
        options, recipe, say, start, options.stage if STAGES[options.stage].before == "finetune" else ""
    )


def begin_or_resume(
    options: RunOptions | StageOptions,
    recipe: Recipe,
    say: RunListener,
    start: ModelFiles | None = None,
    goal: str = "",
) -> RunContext:
    """Creates or reads the run's record and loads what the stages need. UsageError where a resumed run's input files
    differ.

    ``goal``: the stage to be done; what it builds on is copied from the run of ``start``.
    """
    folder, resumed = options.out, is_begun(options)
    assert folder is not None
    if start is not None and goal:
        check_prerequisites(start, goal, recipe)
    folder.mkdir(parents=True, exist_ok=True)
    if resumed:
        record = Record(folder, read_run(folder), parallel.is_first())
        options = replace(options, resume=True)
        if "inputs" not in record.content:
            raise UsageError("This run was begun by an earlier klype.", "Start another one, with another --out.")
        hashes = check_inputs(options, record.content["inputs"])
    else:
        recipe = split_among_processes(adapt_recipe(recipe, options, start), parallel.ranks()).from_anywhere()
        name = options.recipe_name if isinstance(options, RunOptions) else recipe.kind
        hashes, planned = input_hashes(options), 60 * (options.minutes or 0.0)
        made_by = {"recipe": name, "settings": recipe.model_dump(mode="json"), "planned_s": planned, "inputs": hashes}
        record = Record.start(folder, options, made_by)
    functions = functions_of(recipe, options, record, say)
    known = start.folder if start is not None else folder
    tokenizer = read_tokenizer(known) if known.is_file() or (known / "tokenizer.json").exists() else None
    if tokenizer is not None and tokenizer.template is None:
        raise KlypeError(
            "The model to start from has no chat template, which says how questions and answers are written.",
            "Put one next to its weights, as chat_template.jinja (that of its maker's chat model, say).",
        )
    bad = BadRows(skip=options.skip_bad)
    if recipe.kind == "world":
        task: Task = WorldTask(recipe, options.seed, tokenizer)
    else:
        task = TextTask(recipe, options.seed, options, bad, tokenizer, hashes)
    run = RunContext(folder, options, recipe, task, record, say, start.folder if start else None, functions=functions)
    record.content["machine"]["device"] = str(parallel.device() if parallel.ranks() > 1 else run.device)
    if bad.count:
        record.content["skipped"] = {"rows": bad.count, "first": bad.shown}
        say.note(bad.summary())
    if not resumed:
        task.chat.tokenizer.save(folder)
        task.save_inputs(folder)
        record.content |= data_facts(run)  # for the model card of every stage
        record.save()
    if start is not None and goal:
        # the new folder is a run of its own, which the next can start from
        for needed in STAGES[goal].needs:
            if start.run is not None and (start.run / needed).is_dir():
                _copy(start.run / needed, folder / needed)
        _copy(start.folder, folder / "finetune")
    return run


def is_begun(options: InputOptions) -> bool:
    """Whether ``options.out`` holds a run, which can be resumed."""
    assert options.out is not None
    return (options.out / "run.json").exists()


def saved_start(options: AnyOptions) -> tuple[AnyOptions, Recipe]:
    """The options and the recipe that the run in ``options.out`` began with. UsageError where ``options`` ask for
    something else, KlypeError where run.json is damaged."""
    assert options.out is not None
    content = read_run(options.out)
    try:
        return resumed_options(options, content["asked"]), Recipe.model_validate(current_settings(content["settings"]))
    except (KeyError, ValidationError) as error:
        raise KlypeError(f"{options.out / 'run.json'} is damaged: it does not say what was asked for.", MEND) from error


def check_prerequisites(start: ModelFiles, stage: str, recipe: Recipe) -> None:
    """UsageError where the model's run lacks what the stage builds on."""
    for needed in STAGES[stage].needs:
        there = start.run is not None and (start.run / needed).is_dir()
        if there or (stage == "align" and needed not in recipe.align.needs):
            continue
        name = shorten_path(start.run or start.folder)
        hint = f"Do it first: klype train {needed} --from {name}."
        if stage == "align":
            hint = f"Have answers ranked first: klype align {name} --taste right=2,polite=0.7 (simulated), or --human."
        what = {"rank": "rankings", "reward": "reward model"}[needed]
        raise UsageError(f"{name} has no {what}, which the stage {stage} needs.", hint)


def _copy(source: Path, target: Path) -> None:
    if source.is_file():  # a GGUF file becomes a folder like others
        loaded = load(source)
        save(target, loaded.model, loaded.tokenizer, {"stage": target.name, "from": source.name})
        return
    if not target.exists() and source.resolve() != target.resolve():
        shutil.copytree(source, target, ignore=shutil.ignore_patterns("resume", "metrics.jsonl"))


# input files: a run can only be resumed with the same ones


def input_hashes(options: InputOptions) -> dict[str, str]:
    """{absolute path: SHA-256} of every input file. What was fetched from the Hub is in the run's own folder and not
    among them."""
    given = [*options.text, options.instructions, options.preferences, options.data]
    paths = [path for path in given if path is not None and not is_hub(path)]
    return {os.path.abspath(file): hash_file(file) for file in files_of(paths, KINDS)}


def check_inputs(options: InputOptions, began: Mapping[str, str]) -> dict[str, str]:
    """The hashes of the input files. UsageError unless they are those that the run began with: for a file that is
    missing, new or changed."""
    for name in began:
        if not Path(name).is_file():
            raise UsageError(f"{name} is missing, which this run began with.", f"Put the file back, or {ANOTHER}.")
    now = input_hashes(options)
    for name, digest in now.items():
        if name not in began:
            raise UsageError(f"{name} is new since this run began.", f"Take it away, or {ANOTHER}.")
        if began[name] != digest:
            raise UsageError(f"{name} has changed since this run began.", f"Put the old file back, or {ANOTHER}.")
    return now


# what a stage takes over from the run that it starts from


def start_of(options: StageOptions) -> ModelFiles:
    """The model that the stage starts from. For a run's folder: the one that the same stage of that run started
    from."""
    found = find_model(options.from_)
    if found.run is not None and Path(options.from_).resolve() == found.run.resolve():
        earlier = found.run / STAGES[options.stage].before
        return ModelFiles(earlier, found.run, earlier.name) if holds_weights(earlier) else found
    return found


def with_inputs_of(start: ModelFiles, options: StageOptions) -> StageOptions:
    """The options with the inputs of the run that ``start`` belongs to, where they name none; else unchanged."""
    given = options.text or options.data or options.instructions or options.preferences
    content = read_run(start.run) if start.run is not None and not given else {}
    if not {"settings", "asked"} <= content.keys():
        return options
    asked = {name: content["asked"][name] for name in INPUTS if name in content["asked"]}
    return make(StageOptions, {**vars(options), **asked})


def recipe_of(start: ModelFiles, options: StageOptions) -> Recipe:
    """The recipe of the run that ``start`` belongs to, with the overrides of ``options``. UsageError for a model
    without a run.

    Reward functions are not taken over: code runs only when the user names it, not because a run's folder does.
    """
    if start.run is None:
        raise UsageError(f"{options.from_} is not a run with a fine-tuned model.", "Give a run's folder.")
    settings = read_run(start.run).get("settings")
    if settings is None:
        raise KlypeError(f"The run {start.run} does not say what recipe made it.")
    return make(Recipe, with_overrides(current_settings(settings), ("align.rewards={}", *options.overrides)))


# the recipe, adapted to the model to start from


def adapt_recipe(recipe: Recipe, options: InputOptions, start: ModelFiles | None) -> Recipe:
    """The recipe adapted to the starting model: its shape, at most its window, and adapters of the rank asked for.
    UsageError for settings that fit no model.
    """
    if options.lora is not None:
        if start is None:
            raise UsageError("--lora trains adapters for an existing model.", "Give it: --from MODEL.")
        recipe = recipe.model_copy(update={"lora": recipe.lora.model_copy(update={"rank": options.lora})})
    if recipe.lora.rank and recipe.align.how.method == "ppo":
        raise UsageError("The way to align called ppo trains a value head, which goes with no adapters.", "Use grpo.")
    if start is None:
        candidate_models(recipe.model, 1)
        return recipe
    own = read_config(start.folder)
    shape = {name: getattr(own, name) for name in ModelShape._fields}
    window = min(recipe.model.window, own.window)
    return recipe.model_copy(update={"model": recipe.model.model_copy(update={**shape, "window": window})})


def split_among_processes(recipe: Recipe, processes: int) -> Recipe:
    """The recipe with as many micro-batches as divide evenly among the processes, where its rows allow that."""
    for name, lesson in (("pretrain", recipe.pretrain), ("finetune", recipe.finetune)):
        pieces = -(-lesson.training.micro_batches // processes) * processes
        if lesson.rows % pieces == 0:
            training = lesson.training.model_copy(update={"micro_batches": pieces})
            recipe = recipe.model_copy(update={name: lesson.model_copy(update={"training": training})})
    return recipe


def skipped_stages(start: ModelFiles, options: InputOptions) -> tuple[str, ...]:
    """The stages that a whole run skips: those that its starting model has been through.

    For a model not made by klype they are guessed: pre-training, and with a chat template fine-tuning too, unless
    instructions are given.
    """
    stage = start.stage or read_about(start.folder).get("stage", "")
    if stage:
        return ("pretrain",) if stage == "pretrain" else ("pretrain", "finetune")
    chats = read_tokenizer(start.folder).template is not None
    return ("pretrain", "finetune") if chats and not (options.instructions or options.data) else ("pretrain",)
