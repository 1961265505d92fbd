"""Measures a run's models stage by stage, and collects the facts of its report."""

from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from klype.examine.caching_source import WATTS_PER_CORE, Energy
from klype.examine.evidence import Evidence
from klype.examine.examination_report import reliability
from klype.examine.measures import in_runs, measure
from klype.examine.run_facts import MADE_BY, Facts, FigureFacts, JsonObject, StageName, answer_tokens
from klype.examine.survival import survival_of
from klype.jsons import steps
from klype.model import checkpoint
from klype.model.transformer import Transformer
from klype.runs.dictionary import dictionary_rows
from klype.runs.gates import gains, gates, pair_threshold
from klype.runs.run_options import STAGES
from klype.runs.stages import RunContext
from klype.runs.task import Task, answer_settings, draw_answers, exam_questions, examine_model
from klype.runs.text_task import TextTask
from klype.values import Question, Trace, mean_of_known
from klype.words import in_all_languages

# measure → the field of each answer that is kept, for differences question by question
TRAITS = {"right": "right", "polite": "polite", "annotator": "score"}
SIDE_BY_SIDE = 8
CURVE_POINTS = 200
MIN_TOLD = 40  # questions with known truth; there is no calibration of fewer


def measure_stage(run: RunContext, name: StageName) -> dict[str, FigureFacts]:
    """The figures of one model: its chat answers at the recipe's temperature, and its knowledge of plain text. Records
    the answers' verdicts, cost and dictionary figures in run.json."""
    model, task, content = run.model(MADE_BY[name]), run.task, run.record.content
    t = run.recipe.examine.temperature
    asked = {"": exam_questions(task, run.options.minutes), **task.further_questions(name)}
    examined = {k: examine_model(task, model, of, answer_settings(task, t)) for k, of in asked.items() if of or not k}
    evidence = examined[""].evidence[t]
    figures = measure(evidence, in_runs("stages"))
    figures |= {k: measure(one.evidence[t], ("right",))["right"] for k, one in examined.items() if k}
    figures |= task.knowledge(model, few=(run.options.minutes or 5) < 3)
    if isinstance(task, TextTask) and name != "base":
        sides = {side: examined[k] for side, k in (("held_out", ""), ("trained", "right_trained")) if k in examined}
        texts = {side: [_text(task, trace) for (trace,) in one.traces[t]] for side, one in sides.items()}
        content["by_heart"] = task.measures.by_heart(model, texts["held_out"], run.options.seed, t)
        if task.exam is not None:
            learnt = {side: (one.target.questions, texts[side], one.evidence[t]) for side, one in sides.items()}
            content["dictionary"] = dictionary_rows(learnt)
    elif name == "base":
        figures.pop("well_formed", None)  # the base model cannot know how a dictionary answers
    if evidence.answers:
        content.setdefault("costs", {})[name] = cost(run, model, evidence)
    judged = {trait: [getattr(answer, kept) for answer in evidence.answers] for trait, kept in TRAITS.items()}
    rounded = {trait: [None if v is None else round(float(v), 3) for v in of] for trait, of in judged.items()}
    content.setdefault("judged", {})[name] = rounded
    return {k: f.json() for k, f in figures.items()}  # type: ignore[misc]


def data_facts(run: RunContext) -> dict[str, Any]:
    """What run.json and model cards say of the training data."""
    licences = list(dict.fromkeys(row["licence"] for row in run.task.data if row.get("licence")))
    return {"data": run.task.data, "licences": licences, "language": run.task.languages}


def report_facts(run: RunContext) -> Facts:
    """The facts of a run for its report, when its stages are done (alignment may have been refused)."""
    content = run.record.content
    newest: StageName = "aligned" if run.record.done("align") else "finetuned"
    model, yardsticks, reward = run.model(MADE_BY[newest]), run.task.yardsticks(), content.get("reward")
    found_gates, too_few = gates(run, yardsticks)
    maybe = {
        "gains": {name: figure.json() for name, figure in gains(run).items()},
        "dictionary": content.get("dictionary"),
        "missing": {"aligned": content["refused"]} if content.get("refused") else None,
        "reward": reward and {**{k: reward[k] for k in ("pair_accuracy", "ceiling")}, "threshold": pair_threshold(run)},
        "rewards": content.get("rewards"),
        "text": yardsticks,
    }
    facts: dict[str, Any] = {
        "run": run.folder.name,
        "address": str(run.folder),
        "program": run.options.program,
        "recipe": content["recipe"],
        "kind": run.recipe.kind,
        "planned_s": content["planned_s"],
        "stages": {name: content["figures"].get(name) for name in MADE_BY},
        "annotator": run.task.annotator,
        "curves": curves(run),
        "questions": side_by_side(run),
        "next": run.task.next_words(run.model("pretrain")),
        "cost": content["costs"],
        "notes": [*run.task.notes],
        "gates": found_gates,
        "too_few": too_few,
        **content.get("by_heart", {}),
        **{name: section for name, section in maybe.items() if section},
        **temperatures(run, model, newest),
        "provenance": provenance(run, model),
    }
    return facts  # type: ignore[return-value]


def curves(run: RunContext) -> list[JsonObject]:
    """The loss, reward and KL of every stage, averaged down to a few hundred points."""
    out: list[JsonObject] = []
    for stage in STAGES:
        file = run.folder / stage / "metrics.jsonl"
        lines = list(steps(file.read_bytes().splitlines())) if file.exists() else []
        if not lines:
            continue
        every = max(1, len(lines) // CURVE_POINTS)
        groups = [lines[i : i + every] for i in range(0, len(lines), every)]
        series = {
            name: [mean_of_known([line.get(name) for line in group]) for group in groups]
            for name in ("loss", "reward", "kl")
            if any(line.get(name) is not None for line in lines)
        }
        out.append({"stage": stage, "step": [group[-1]["step"] for group in groups], "series": series})
        plain = run.recipe.pretrain.plain
        if stage == "pretrain" and run.recipe.kind == "world" and 0 < plain < 1:
            changes = in_all_languages("run", "every_manner")
            out[-1]["events"] = [{"step": round(plain * lines[-1]["step"]), "what": changes}]
    return out


def side_by_side(run: RunContext) -> list[JsonObject]:
    """A few held-out questions with each model's answer, token by token with probabilities."""
    questions, t = run.task.held_out[:SIDE_BY_SIDE], run.recipe.examine.temperature
    answers: dict[StageName, list[JsonObject]] = {}
    for name, stage in MADE_BY.items():
        if run.record.content["figures"].get(name):
            groups = draw_answers(run.task, run.model(stage), questions, t)
            answers[name] = [_answer(run, q, trace) for q, (trace,) in zip(questions, groups, strict=True)]
    return [
        {
            "question": question.question,
            "context": " ".join([*(m["content"] for m in question.messages()[:-1]), question.context]).strip(),
            "references": list(question.answers),
            "answers": {name: answers[name][i] if name in answers else None for name in MADE_BY},
        }
        for i, question in enumerate(questions)
    ]


def _text(task: Task, trace: Trace) -> str:
    return task.chat.tokenizer.decode_answer(trace.tokens)


def _answer(run: RunContext, question: Question, trace: Trace) -> JsonObject:
    tokenizer = run.task.chat.tokenizer
    text = _text(run.task, trace)
    verdict = run.task.judge(question, text, trace.ended == "stop")
    return {
        "text": text,
        "tokens": answer_tokens(trace, tokenizer.ends, tokenizer.token_bytes),
        "right": verdict.right,
        "polite": verdict.polite,
        "concise": verdict.concise,
        "score": verdict.score,
        "ended": trace.ended,
    }


def temperatures(run: RunContext, model: Transformer, stage: StageName) -> dict[str, Any]:
    """The facts of answers to the same questions at several temperatures, with survival and calibration; for the
    user's own text, of free writing."""
    if isinstance(run.task, TextTask):
        written = run.task.temperatures(run.model("pretrain"))
        return {"temperatures": {"stage": "base", "prompt": run.task.measures.first_words(8).strip(), "rows": written}}
    questions = run.task.held_out[:200]
    found_at = {
        t: examine_model(run.task, model, questions, answer_settings(run.task, t, 2, "distributions"))
        for t in run.recipe.examine.temperatures
    }
    drawn = [found.traces[t] for t, found in found_at.items()]

    def lively(place: int) -> tuple[bool, int]:
        """Whether the answer at the lowest temperature is right, and the number of different answers in all."""
        cold = drawn[0][place][0]
        right = run.task.judge(questions[place], _text(run.task, cold), cold.ended == "stop").right
        return right is True, len({_text(run.task, trace) for groups in drawn for trace in groups[place]})

    # shown: the question with the most different answers; those to another may all be the same
    shown = questions[max(range(len(questions)), key=lively)]
    rows, survivals = [], []
    for temperature, examined in found_at.items():
        evidence = examined.evidence[temperature]
        (samples,) = draw_answers(run.task, model, [shown], temperature, 4)
        figures = {k: f.json() for k, f in measure(evidence, in_runs("temperatures")).items()}
        answers = [_answer(run, shown, trace) for trace in samples]
        rows.append({"temperature": temperature, "figures": figures, "samples": answers})
        if temperature in (0.7, 1.0):
            found = survival_of(evidence)
            curves_of = ("r", "k", "by_position", "difference", "independent")
            series = {k: [{**f.json(), "t": t} for t, f in enumerate(getattr(found, k), 1)] for k in curves_of}
            survivals.append({"temperature": temperature, "stage": stage, "s": found.s.json(), **series})
    chosen = {"prompt": shown.prompt, "chosen_of": len(questions)}
    out: dict[str, Any] = {"temperatures": {"stage": stage, **chosen, "rows": rows}}
    if survivals:
        out["survival"] = survivals
    # The probability of the most likely next token against the truth, on the model's own right prefixes. Of the
    # fine-tuned model: alignment teaches another style than the truth has.
    if run.record.done("finetune"):
        asking = answer_settings(run.task, 1.0, 2, "distributions")
        evidence = examine_model(run.task, run.model("finetune"), questions, asking).evidence[1.0]
        if len({told.question for told in evidence.told}) >= MIN_TOLD:
            error = measure(evidence, ("calibration",))["calibration"]
            out["calibration"] = [{"stage": "finetuned", "bins": reliability(evidence), "error": error.json()}]
    return out


ALONE = 12  # questions asked one by one, as a user does, to measure latency


def cost(run: RunContext, model: Transformer, evidence: Evidence) -> dict[str, Any]:
    """Cost per answer: passes, tokens and FLOPs over all answers, seconds and joules over some asked one by one.

    Joules are read from the processor's counters where possible, else estimated at a stated number of watts per core.
    """
    t, questions = run.recipe.examine.temperature, run.task.held_out[:ALONE]
    draw_answers(run.task, model, questions[:1], t)  # warm-up
    energy, asking = Energy(), replace(answer_settings(run.task, t), chunk=1)
    alone = examine_model(run.task, model, questions, asking, energy.joules).evidence[t]
    figures = measure(evidence, ("passes", "tokens", "flops")) | measure(alone, ("seconds", "joules"))
    guessed = {"joules_estimated": True, "watts": WATTS_PER_CORE} if energy.estimated else {}
    shown = {name: figure.json() for name, figure in figures.items()}
    return {"parameters": model.config.parameters, "figures": shown, **guessed}


def provenance(run: RunContext, model: Transformer) -> dict[str, Any]:
    """The run's data, seed, versions, machine, plans and model shape."""
    content, config, plans = run.record.content, model.config, []
    for stage, plan in content["plan"].items():
        # the steps its weights were trained for: plans are corrected, and an alignment may go back to its best weights
        taken = checkpoint.read_about(run.folder / stage).get("steps", plan["steps"])
        plans.append({"stage": stage, "steps": taken, "planned_s": plan["planned_s"]})
    shape = {name: getattr(config, name) for name in ("parameters", "width", "layers", "heads")}
    return {
        "data": run.task.data,
        "seed": run.options.seed,
        "versions": content["versions"],
        "machine": content["machine"],
        "plan": plans,
        "when": datetime.now(UTC).isoformat(timespec="seconds"),
        "model": {**shape, "vocabulary": config.vocab_size, "convolution": config.conv},
    }
