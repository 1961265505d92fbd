"""``klype run``, ``klype train`` and ``klype align``: runs the stages in order, measures each, and resumes."""

import copy
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from klype.errors import KlypeError, UsageError
from klype.examine import run_report as report
from klype.examine.run_facts import MADE_BY, side_of
from klype.examine.say import Say as Words
from klype.model.config import ModelConfig
from klype.model.transformer import Transformer
from klype.preferences.annotators import Taste
from klype.preferences.annotators import taste as read_taste
from klype.runs import run_start
from klype.runs.align_stage import Evaluation
from klype.runs.examine_stage import measure_stage, report_facts
from klype.runs.folder import read_run
from klype.runs.gates import compare, reason_not_to_align, time_gate, verdict
from klype.runs.listener import RunListener
from klype.runs.machine_probe import all_cores_seconds, choose_shape, tokens_in_time
from klype.runs.reward import reward_figures
from klype.runs.run_json import MEANING, redefined_measures, write_json
from klype.runs.run_options import RunOptions, StageOptions
from klype.runs.stages import RunContext, enough_steps, late_batches, precision_of, seconds_for
from klype.runs.task import Task
from klype.sources.model_files import ModelFiles
from klype.sources.opening import find_model
from klype.train import parallel
from klype.train.objectives import cross_entropy
from klype.train.policy import method
from klype.train.preference import NoPreferencesError
from klype.train.reward_model import ABOUT
from klype.train.rewards import MODEL, as_settings
from klype.values import Question, Verdict
from klype.words import LANGUAGES, in_all_languages

MEASURED = {stage: name for name, stage in MADE_BY.items()}
SHORTEST = 1  # minutes; a shorter run takes longer than asked

StepTimer = Callable[..., float]  # seconds per step of a model: see klype.runs.machine_probe.all_cores_seconds


def run(options: RunOptions, say: RunListener) -> dict[str, Any]:
    """Runs the whole life-cycle in ``options.out`` (empty, or to be resumed). Returns the run's JSON document.

    With several processes, all take part in the shared stages; then the first continues alone, and the others return
    an empty document.
    """
    with parallel.main_process_first():
        run = run_start.open_life_cycle(options, say)
        stages = run_start.skipped_stages(find_model(run.options.from_), run.options) if run.start is not None else ()
        # a model from outside is measured as the result of the last stage it has been through
        if stages and MEASURED[stages[-1]] not in run.record.content["figures"]:
            say.note(f"The model has already been through: {', '.join(stages)}. It continues from there.")
            for name in stages:
                run.record.finish(name, 0.0, brought=str(run.start))
            _measure(run, stages[-1])
    with run.record.under_way():
        resolve_shape(run)
        if parallel.is_first():
            remeasure(run)
        for name, stage in run_start.STAGES.items():
            if run.record.done(name):
                continue
            if name == "align" and not run.recipe.align.replaces_model:
                if not run.record.done("reward"):
                    continue  # alignment by the reward model needs one
                if (why := reason_not_to_align(run)) is not None and not run.options.force:
                    _refuse(run, why)
                    continue
                if why is not None:
                    say.note(f"{why[run.options.lang]} (--force)")
            if not stage.shared and parallel.ranks() > 1:
                if not parallel.is_first():
                    return {}
                parallel.leave_group()
                run.options = replace(run.options, processes=1)
            try:
                with run.record.time_stage(name):
                    stage.do(run)
            except NoPreferencesError:
                if name == "align" or not run.recipe.align.replaces_model:
                    _refuse(run, in_all_languages("run", "nothing_to_imitate"))
                continue
            if name in MEASURED and parallel.is_first():
                _measure(run, name)
        return finish_run(run) if parallel.is_first() else {}


def train_stage(options: StageOptions, say: RunListener) -> dict[str, Any]:
    """Runs one stage in a run folder of its own; the checkpoint is ``out/STAGE``. Returns the JSON document of the
    command, empty on all processes but the first."""
    stage = run_start.STAGES[options.stage]
    if not stage.shared and parallel.ranks() > 1:
        raise UsageError(f"The stage {options.stage} is done by one process.", "Leave out the launcher (torchrun).")
    with parallel.main_process_first():
        run = run_start.open_stage(options, say)
    with run.record.under_way(), run.record.time_stage(options.stage):
        if options.stage == "pretrain":
            resolve_shape(run)
        stage.do(run)
    if not parallel.is_first():
        return {}
    if options.stage in MEASURED:
        _measure(run, options.stage)
    content = run.record.content
    content["state"] = "done"
    run.record.save()
    told = {key: content.get(key) for key in ("seconds", "figures", "reward", "rewards")}
    return {"run": str(run.folder), "stage": options.stage, "model": str(run.folder / options.stage), **told}


def _refuse(run: RunContext, why: dict[str, str]) -> None:
    """Records why the run is not aligned, for the report, and says so."""
    run.record.content["refused"] = why
    run.record.save()
    run.say.note(why.get(run.options.lang, why["en"]))


def _measure(run: RunContext, stage: str) -> None:
    """Measures the model that a stage left, records the figures and shows them."""
    name, content = MEASURED[stage], run.record.content
    began = time.perf_counter()
    content["figures"][name] = measure_stage(run, name)
    took = time.perf_counter() - began
    run.record.add_seconds("examine", took)
    # the models still to be measured and the report will each take about as long
    run.needs["examine"] = took * (1 + sum(not run.record.done(stage) for stage in MEASURED))
    run.record.save()
    words = Words(run.options.lang)
    rows = [(words.measure(m), words.figure(f, m)) for m, f in content["figures"][name].items()]
    run.say.table(words.stage(name), (words("column.measure"), words("column.value")), rows)


def remeasure(run: RunContext) -> None:
    """Measures again what an earlier klype measured by another definition."""
    content = run.record.content
    otherwise = redefined_measures(content)
    if "right" in otherwise:
        for stage, name in MEASURED.items():
            if content["figures"].get(name):
                _measure(run, stage)
    if otherwise and content.get("reward"):
        content["reward"] = reward_figures(run)
    content["meaning"] = MEANING


def finish_run(run: RunContext) -> dict[str, Any]:
    """Measures the run as a whole, writes the report, and returns what ``--json`` prints."""
    content = run.record.content
    began = time.perf_counter()
    facts = report_facts(run)
    run.record.add_seconds("examine", time.perf_counter() - began)
    run.record.stop_clock()
    content["gates"] = facts["gates"] = [*facts["gates"], time_gate(run)]
    facts["seconds"] = {**content["seconds"], "total": round(run.record.elapsed, 2)}
    path = report.write(run.folder, facts, run.options.lang)
    content["state"] = "done"
    run.record.save()
    words = Words(run.options.lang)
    rows = [report.gate_row(gate, words) for gate in content["gates"]]
    columns = [words(f"gates.{key}") for key in ("name", "value", "threshold", "result")]
    run.say.table(words("section.gates"), columns, [(*rest, result.text) for *rest, result in rows])
    if few := report.too_few(facts, words):
        run.say.note(few)
    run.say.note(f"The report: {path}\nTalk to the model: {run.options.program} chat {report.quote(str(run.folder))}")
    return {
        "run": str(run.folder),
        **{key: content[key] for key in ("recipe", "planned_s", "seconds")},
        "stages": facts["stages"],
        **{key: content.get(key) for key in ("reward", "rewards", "gates")},
        "too_few": facts["too_few"],
        "report": str(path),
        **({"why": content["refused"]["en"]} if content.get("refused") else {}),
        **({"yardsticks": facts["text"]} if "text" in facts else {}),
    }


# ``klype align``: a run's answers are aligned, once or in rounds (rank → reward → align), and compared with before

METHOD = "grpo"  # the default


def overrides(name: str, weights: Mapping[str, float], beta: float | None, target_kl: float | None) -> tuple[str, ...]:
    """The options of an alignment as overrides of its recipe. ``name``: the method's; "" for the default."""
    kind = "preference" if method(name or METHOD).learns_from == "rankings" else "policy"
    asked = {"align.how.method": name or None, f"align.how.{kind}.beta": beta, "align.how.target_kl": target_kl}
    return (*(f"{setting}={value}" for setting, value in asked.items() if value is not None), *as_settings(weights))


def align_rounds(options: StageOptions, rounds: int, taste: str, say: RunListener) -> dict[str, Any]:
    """Aligns the run named by ``options.from_`` and returns the JSON document of the command.

    With several rounds, a taste, or ``options.human``, the newest model's answers are first ranked again, by the
    simulated annotator or by hand. Raises KlypeError when the reward model is too weak and ``force`` is not set.
    """
    if parallel.ranks() > 1:
        raise UsageError(f"The stage {options.stage} is done by one process.", "Leave out the launcher (torchrun).")
    if not 1 <= rounds <= 50:
        raise UsageError(f"--rounds should be from 1 to 50 (it is {rounds}).")
    flaw = read_taste(taste) if taste else None
    out = options.out
    assert out is not None
    folders = [out] if rounds == 1 else [out / f"round-{number}" for number in range(1, rounds + 1)]
    options = replace(options, out=folders[0])
    if run_start.is_begun(options):
        options, recipe = run_start.saved_start(options)
        start = run_start.start_of(options)
    else:
        start = run_start.start_of(options)
        usual = replace(options, overrides=(f"align.how.method={METHOD}", *options.overrides))
        recipe, options = run_start.recipe_of(start, usual), run_start.with_inputs_of(start, options)
        if options.steps is None and options.minutes is None:
            options = replace(options, minutes=0.5)  # per round
    method(recipe.align.how.method)  # UsageError for an unknown one
    anew = rounds > 1 or flaw is not None or options.human
    done: list[dict[str, Any]] = []
    for folder in folders:
        asked = replace(options, out=folder)
        # a finished round is not repeated
        known = read_run(folder).get("aligned") if run_start.is_begun(asked) else None
        if not known:
            run = run_start.begin_or_resume(asked, recipe, say, start, "rank" if anew else "align")
            align_round(run, flaw, anew)
            known = record_comparison(run)
        done.append(known)
        start = ModelFiles(folder / "align", folder, "align")
    whole = {"run": str(out), "from": options.from_, "method": recipe.align.how.method, "taste": taste, "rounds": done}
    whole |= {key: done[-1][key] for key in ("verdict", "gain", "win_rate")}
    write_json(out / "align.json", whole)
    return whole


def align_round(run: RunContext, flaw: Taste | None, anew: bool) -> None:
    """Runs one round in a folder of its own. ``flaw``: the taste to rank by in place of the annotator's own; ``anew``:
    whether answers are ranked again."""
    content = run.record.content
    ranks = run if flaw is None else replace(run, task=with_taste(run.task, flaw))
    with run.record.under_way():
        for name in ("rank", "reward") if anew else ():
            if not run.record.done(name):
                with run.record.time_stage(name):
                    run_start.STAGES[name].do(ranks if name == "rank" else run)
        if flaw is not None:  # the annotator agrees with itself by the taste that it ranked by
            own = reward_figures(ranks)
            content.setdefault("reward", own).update({k: own[k] for k in ("ceiling", "tau_ceiling")})
        if content.get("reward") is None and (run.folder / "reward" / ABOUT).exists():
            content["reward"] = reward_figures(run)
            run.record.save()
        if content.get("reward") is not None:  # shown before anything is aligned
            found: dict[str, Any] = {k: f for k, f in content["reward"].items() if isinstance(f, dict) and "value" in f}
            words = Words(run.options.lang)
            shown = [(words.measure(name), words.figure(f, name)) for name, f in found.items()]
            run.say.table("the reward model, on held-out rankings", ("measure", "figure"), shown)
            why = reason_not_to_align(run) if MODEL in run.recipe.align.weights and not run.options.force else None
            if why is not None:
                raise KlypeError(why[run.options.lang])
        with run.record.time_stage("align"):
            run_start.STAGES["align"].do(run)


def with_taste(task: Task, taste: Taste) -> Task:
    """A copy of the task whose annotator has another taste, for ranking. Measures use the task itself."""

    def judge(question: Question, answer: str, finished: bool) -> Verdict:
        verdict = task.judge(question, answer, finished)
        return replace(verdict, score=taste.score(verdict, finished))

    other = copy.copy(task)
    other.annotator_name, other.judge = f"taste {taste}", judge  # type: ignore[method-assign]
    return other


def record_comparison(run: RunContext) -> dict[str, Any]:
    """Compares the model before and after alignment; shows the result and records it in run.json."""
    content, say, words = run.record.content, run.say, Words(run.options.lang)
    watched = content["watch"]
    document = compare(run, run.model("finetune"), run.model("align"))
    seen = [Evaluation(**{**s, "truth": (s["truth"],), "rewards": {}}) for s in watched["seen"]]
    fell = side_of(watched["change"], 0.0) < 0
    says = {lang: verdict(document, seen, watched["stopped"], fell, lang) for lang in LANGUAGES}

    before, after = document["before"], document["after"]
    rows = [(words.measure(k), words.figure(f, k), words.figure(after.get(k, f), k)) for k, f in before.items()]
    say.table("before and after", ("measure", "before", "after"), rows)
    rewards = [
        (name, words.plain(r["weight"]), *(words.figure(r[side], "reward") for side in ("before", "after")))
        for name, r in content["rewards"].items()
    ]
    say.table("rewards", ("reward", "weight", "before", "after"), rewards)
    wins = [("win rate", words.figure(document["win_rate"])), ("ties", words.figure(document["ties"]))]
    say.table("wins", ("", ""), wins)
    say.note(says[run.options.lang])
    kept = {key: content.get(key) for key in ("seconds", "reward", "rewards", "watch")}
    out = {"run": str(run.folder), "method": run.recipe.align.how.method, **kept, **document, "verdict": says}
    content["aligned"], content["state"] = out, "done"
    run.record.save()
    return out


# before training: the shape of a new model


def resolve_shape(run: RunContext, look: StepTimer = all_cores_seconds) -> None:
    """Chooses the model's shape where the recipe leaves it open, records it, and announces the run.

    ``look`` measures the seconds per step.
    """
    began, recipe, lesson, limit = time.perf_counter(), run.recipe, run.recipe.pretrain, ""
    if run.start is None and recipe.model.open:
        tokens_a_step, vocabulary = lesson.rows * recipe.model.window, run.task.chat.tokenizer.vocab_size
        if steps := getattr(run.options, "steps", None):
            limit = f"{steps:,} steps"
            recipe = choose_shape(recipe, vocabulary, lambda smaller, larger: tokens_a_step * steps)
        else:
            limit, seconds = "the time", parallel.broadcast(seconds_for(run, "pretrain"))
            precision, most = precision_of(run, "pretrain"), tokens_a_step * enough_steps(run, "pretrain")

            def step_seconds(config: ModelConfig) -> float:
                model = Transformer(config, run.backend).to(run.device)
                build = lambda twin: (cross_entropy, late_batches(run))
                return look(model, build, lesson.training, seconds, run.cores, precision)

            fits = tokens_in_time(seconds, tokens_a_step, step_seconds)

            def learns(smaller: ModelConfig, larger: ModelConfig) -> float:
                """The first process decides, so that all continue with one shape."""
                nonlocal limit
                tokens: float = parallel.broadcast(fits(smaller, larger))
                limit = "this text" if most < tokens else "the time"
                return min(tokens, most)

            recipe = choose_shape(recipe, vocabulary, learns)
        run.recipe = run.task.recipe = recipe
        run.settling_s = time.perf_counter() - began
        run.record.content["settings"] = recipe.model_dump(mode="json")
        run.record.save()
    if isinstance(run.options, StageOptions):
        if limit:
            m = recipe.model
            run.say.note(f"A model with {m.layers} layers, {m.width} wide: the largest that {limit} can teach.")
        return
    m, tokenizer, minutes = recipe.model, run.task.chat.tokenizer, run.options.minutes
    noun = "minute" if minutes == 1 else "minutes"
    if run.start is not None:
        how = f", by adapters of rank {recipe.lora.rank}" if recipe.lora.rank else ""
        run.say.note(f"{minutes:g} {noun} for all stages that are left{how}, in {run.folder}.")
    else:
        fewer = tokenizer.vocab_size < tokenizer.asked
        too_short = f" (the text supports no more of the {tokenizer.asked} asked for)" if fewer else ""
        largest = f" (the largest that {limit} can teach)" if limit else ""
        run.say.note(
            f"{minutes:g} {noun} for all stages: a model with {m.layers} layers, {m.width} wide{largest}, and a "
            f"vocabulary of {tokenizer.vocab_size} tokens{too_short}, in {run.folder}."
        )
    if minutes < SHORTEST:
        run.say.note(
            f"Reading, rankings and the examination take most of a minute: under {SHORTEST} it takes longer than asked."
        )
