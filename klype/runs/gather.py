"""From a finished run to its facts: every figure of the report, measured once and put where the report reads it."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from klype.examine.calibration import bins, calibration_error
from klype.examine.evidence import Answered, Evidence
from klype.examine.facts import (
    AnswerFacts,
    CurveFacts,
    Facts,
    FigureFacts,
    QuestionFacts,
    StageName,
)
from klype.examine.measures import measure
from klype.examine.recorder import WATTS_PER_CORE, Energy
from klype.examine.survival import survival
from klype.jsons import steps
from klype.model import checkpoint
from klype.model.transformer import Transformer
from klype.runs.answering import answer_all, evidence_of, examined_on, judged, said
from klype.runs.gates import gains, gates, pair_threshold
from klype.runs.stages import Run
from klype.runs.text_subject import TextSubject
from klype.values import Figure, Question, Sampling, Trace

MODELS: dict[StageName, str] = {"base": "pretrain", "finetuned": "finetune", "aligned": "align"}
MAIN = ("right", "word_for_word", "undecided", "polite", "concise", "annotator")
TRAITS = {"right": "right", "polite": "polite", "annotator": "score"}
"""Measure → what is kept of every answer, for differences question by question."""
SIDE_BY_SIDE = 8
CURVE_POINTS = 200


def measure_stage(run: Run, name: StageName) -> dict[str, FigureFacts]:
    """What one model scores: chat answers at the recipe's temperature, and its knowledge of plain text."""
    model = run.model(MODELS[name])
    questions = examined_on(run.subject, run.options.minutes)
    sampling = Sampling(temperature=run.recipe.examine.temperature)
    groups = answer_all(model, run.subject, questions, sampling)
    answers = judged(run.subject, model.config, questions, groups)
    figures = measure(evidence_of(run.subject, answers), MAIN) if answers else {}
    if fixed := run.subject.held_out_fixed:
        known = judged(run.subject, model.config, fixed, answer_all(model, run.subject, fixed, sampling))
        figures["right_fixed"] = measure(evidence_of(run.subject, known), ("right",))["right"]
    figures |= run.subject.knowledge(model, few=(run.options.minutes or 5) < 3)
    if isinstance(run.subject, TextSubject) and name != "base":
        figures |= text_figures(run, run.subject, model, questions, groups)
    if answers:
        run.record.content.setdefault("costs", {})[name] = cost(run, model, answers)
    run.record.content.setdefault("judged", {})[name] = {
        trait: [None if (v := getattr(a, attribute)) is None else round(float(v), 3) for a in answers]
        for trait, attribute in TRAITS.items()
    }
    run.record.content |= about(run)
    return {k: f.json() for k, f in figures.items()}  # type: ignore[misc]


def about(run: Run) -> dict[str, Any]:
    """What a model card says of the data: in run.json as soon as there is a model."""
    data = run.subject.data()
    licences = list(dict.fromkeys(row["licence"] for row in data if row.get("licence")))
    languages = run.subject.languages if isinstance(run.subject, TextSubject) else ["nb", "en"]
    return {"data": data, "licences": licences, "language": languages}


def text_figures(
    run: Run, subject: TextSubject, model: Transformer, questions: Sequence[Question], groups: Sequence[Sequence[Trace]]
) -> dict[str, Figure]:
    """Of a dictionary: held-out words well-formed, trained words right. What the model has by heart is kept aside."""
    temperature = run.recipe.examine.temperature
    answered = _told(subject, questions, groups)
    texts = [text for _, text, _ in answered]
    run.record.content["by_heart"] = subject.measures.by_heart(model, texts, run.options.seed, temperature)
    if subject.exam is None:
        return {}
    trained = subject.exam.trained
    known = _told(subject, trained, answer_all(model, subject, trained, Sampling(temperature=temperature)))
    rows = subject.exam.rows(answered, known)
    run.record.content["dictionary"] = rows
    return subject.exam.figures(rows)


def _told(
    subject: TextSubject, questions: Sequence[Question], groups: Sequence[Sequence[Trace]]
) -> list[tuple[Question, str, bool]]:
    """(question, answer, finished)."""
    return [
        (question, said(subject, traces[0]), traces[0].ended == "stop")
        for question, traces in zip(questions, groups, strict=True)
    ]


def gather(run: Run) -> Facts:
    """The facts of a run whose stages are done (alignment may have been refused)."""
    content = run.record.content
    newest: StageName = "aligned" if run.record.done("align") else "finetuned"
    model = run.model(MODELS[newest])
    yardsticks = run.subject.yardsticks()
    content |= about(run)
    facts: dict[str, Any] = {
        "run": run.folder.name,
        "address": str(run.folder),
        "program": run.options.program,
        "recipe": content["recipe"],
        "kind": run.recipe.kind,
        "planned_s": content["planned_s"],
        "stages": {name: content["figures"].get(name) for name in MODELS},
        "annotator": run.subject.annotator,
        "curves": curves(run),
        "questions": side_by_side(run),
        "next": run.subject.next_words(run.model("pretrain")),
        "cost": content["costs"],
        "notes": run.subject.notes(),
    }
    facts["gates"], facts["too_few"] = gates(run, yardsticks)
    if found := gains(run):
        facts["gains"] = {name: figure.json() for name, figure in found.items()}
    if content.get("dictionary"):
        facts["dictionary"] = content["dictionary"]
    facts |= content.get("by_heart", {})
    if content.get("refused"):
        facts["missing"] = {"aligned": content["refused"]}
    if content.get("reward"):
        reward = content["reward"]
        facts["reward"] = {k: reward[k] for k in ("pair_accuracy", "ceiling")}
        facts["reward"]["threshold"] = pair_threshold(run)
    if content.get("rewards"):
        facts["rewards"] = content["rewards"]
    if yardsticks is not None:
        facts["text"] = yardsticks
    facts |= temperatures(run, model, newest)
    facts["provenance"] = provenance(run, model)
    result: Facts = facts  # type: ignore[assignment]
    return result


def curves(run: Run) -> list[CurveFacts]:
    """The loss (and reward) of every stage, thinned to a few hundred points."""
    out: list[CurveFacts] = []
    for stage in ("pretrain", "finetune", "reward", "align"):
        file = run.folder / stage / "metrics.jsonl"
        if not file.exists():
            continue
        lines = list(steps(file.read_bytes().splitlines()))
        if not lines:
            continue
        every = max(1, len(lines) // CURVE_POINTS)
        groups = [lines[i : i + every] for i in range(0, len(lines), every)]
        series = {
            name: [_mean([line.get(name) for line in group]) for group in groups]
            for name in ("loss", "reward", "kl")
            if any(line.get(name) is not None for line in lines)
        }
        out.append({"stage": stage, "step": [group[-1]["step"] for group in groups], "series": series})
    return out


def _mean(values: Sequence[float | None]) -> float | None:
    known = [v for v in values if v is not None]
    return sum(known) / len(known) if known else None


def side_by_side(run: Run) -> list[QuestionFacts]:
    """A few held-out questions with the answer of each model, token by token with its probability."""
    questions = run.subject.held_out[:SIDE_BY_SIDE]
    sampling = Sampling(temperature=run.recipe.examine.temperature)
    answers: dict[StageName, list[AnswerFacts]] = {}
    for name, stage in MODELS.items():
        if run.record.content["figures"].get(name):
            groups = answer_all(run.model(stage), run.subject, questions, sampling)
            answers[name] = [_answer(run, q, g[0]) for q, g in zip(questions, groups, strict=True)]
    return [
        {
            "question": question.question,
            "context": " ".join([*(m["content"] for m in question.messages()[:-1]), question.context]).strip(),
            "references": list(question.answers),
            "answers": {name: answers[name][i] if name in answers else None for name in MODELS},
        }
        for i, question in enumerate(questions)
    ]


def _answer(run: Run, question: Question, trace: Trace) -> AnswerFacts:
    tokenizer = run.subject.chat.tokenizer
    text = said(run.subject, trace)
    verdict = run.subject.judge(question, text, trace.ended == "stop")
    steps = [s for s in trace.steps if s.token not in tokenizer.ends]
    return {
        "text": text,
        "tokens": [{"text": tokenizer.decode([s.token]), "p": min(1.0, math.exp(s.logp))} for s in steps],
        "right": verdict.right,
        "polite": verdict.polite,
        "concise": verdict.concise,
        "score": verdict.score,
        "ended": trace.ended,
    }


def temperatures(run: Run, model: Transformer, stage: StageName) -> dict[str, Any]:
    """The same questions at several temperatures: dull, lively, nonsense; with survival and calibration."""
    if isinstance(run.subject, TextSubject):
        written = run.subject.temperatures(run.model("pretrain"))
        return {"temperatures": {"stage": "base", "prompt": run.subject.measures.beginning(8).strip(), "rows": written}}
    questions = run.subject.held_out[:200]
    shown = run.subject.held_out[0]
    rows, curves_ = [], []
    for temperature in run.recipe.examine.temperatures:
        sampling = Sampling(temperature=temperature)
        groups = answer_all(model, run.subject, questions, sampling, n=2, top=-1)
        answers = judged(run.subject, model.config, questions, groups)
        figures = measure(evidence_of(run.subject, answers), ROW)
        samples = answer_all(model, run.subject, [shown], sampling, n=4)[0]
        rows.append(
            {
                "temperature": temperature,
                "figures": {k: f.json() for k, f in figures.items()},
                "samples": [_answer(run, shown, t) for t in samples],
            }
        )
        if temperature in (0.7, 1.0):
            found = survival(answers)
            curves_.append(
                {
                    "temperature": temperature,
                    "stage": stage,
                    "s": found.s.json(),
                    **{
                        name: [{**f.json(), "t": t} for t, f in enumerate(getattr(found, name), 1)]
                        for name in ("r", "k", "by_position", "difference", "independent")
                    },
                }
            )
    out: dict[str, Any] = {"temperatures": {"stage": stage, "prompt": shown.prompt, "rows": rows}}
    if curves_:
        out["survival"] = curves_
    if calibration := _calibration(run, questions):
        out["calibration"] = [calibration]
    return out


ROW = frozenset(["right", "word_for_word", "s", "repetition", "distinct", "same_text", "polite", "annotator"])


def _calibration(run: Run, questions: Sequence[Question]) -> dict[str, Any] | None:
    """The likeliest next token: how likely the model says it is, against the truth, on its own right prefixes. Of the
    fine-tuned model: alignment teaches other manners than the truth has.
    """
    if not run.record.done("finetune"):
        return None
    groups = answer_all(run.model("finetune"), run.subject, questions, Sampling(temperature=1.0), n=2, top=-1)
    told: list[float] = []
    true: list[float] = []
    asked: list[str] = []
    for question, traces in zip(questions, groups, strict=True):
        for trace in traces:
            truth = run.subject.next_right(question)
            if truth is None:
                return None
            for step in trace.steps:
                assert step.distribution is not None
                p = truth.next()
                told.append(float(math.exp(step.distribution.logp[0])))
                true.append(p.get(int(step.distribution.ids[0]), 0.0))
                asked.append(question.id)
                if truth.push(step.token) == 0.0:
                    break
    if len(set(asked)) < 40:
        return None
    return {
        "stage": "finetuned",
        "bins": [{"p": p, "observed": observed.json()} for p, observed in bins(told, true, asked)],
        "error": calibration_error(told, true, asked).json(),
    }


ALONE = 12  # questions asked one by one, as a person asks


def cost(run: Run, model: Transformer, answers: Sequence[Answered]) -> dict[str, Any]:
    """Per answer: passes, tokens and FLOPs of all of them; seconds and joules of some that were asked alone.

    Joules by the processor's own counters where they can be read, else a stated number of watts for each busy core.
    """
    questions = run.subject.held_out[:ALONE]
    sampling = Sampling(temperature=run.recipe.examine.temperature)
    answer_all(model, run.subject, questions[:1], sampling)  # warm
    energy, alone = Energy(), []
    for question in questions:
        began, before = time.perf_counter(), energy.joules()
        traces = answer_all(model, run.subject, [question], sampling)
        seconds, joules = time.perf_counter() - began, energy.joules() - before
        (answer,) = judged(run.subject, model.config, [question], [traces[0]])
        alone.append(replace(answer, seconds=seconds, joules=joules))
    figures = measure(Evidence(answers), ("passes", "tokens", "flops"))
    figures |= measure(Evidence(alone), ("seconds", "joules"))
    out: dict[str, Any] = {
        "parameters": model.config.parameters,
        "figures": {name: figure.json() for name, figure in figures.items()},
    }
    return {**out, "joules_estimated": True, "watts": WATTS_PER_CORE} if energy.estimated else out


def provenance(run: Run, model: Transformer) -> dict[str, Any]:
    content, config = run.record.content, model.config
    return {
        "data": run.subject.data(),
        "seed": run.options.seed,
        "versions": content["versions"],
        "machine": content["machine"],
        "plan": [
            {"stage": stage, "steps": _steps(run, stage, p["steps"]), "planned_s": p["planned_s"]}
            for stage, p in content["plan"].items()
        ],
        "when": datetime.now(UTC).isoformat(timespec="seconds"),
        "model": {
            "parameters": config.parameters,
            "width": config.width,
            "layers": config.layers,
            "heads": config.heads,
            "vocabulary": config.vocab_size,
            "convolution": config.conv,
        },
    }


def _steps(run: Run, stage: str, planned: int) -> int:
    """Those behind the stage's weights: a plan is put right on the way, and an alignment may go back to its best."""
    return int(checkpoint.read_about(run.folder / stage).get("steps", planned))
