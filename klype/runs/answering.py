"""Asking a model many questions at once, and judging what it says."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from klype.data.order import draw_seed
from klype.engine.engine import Engine
from klype.examine.evidence import Answered, Evidence
from klype.examine.recorder import Shape, answer_flops
from klype.examine.truth import mass
from klype.judge.text import word_for_word
from klype.model.config import ModelConfig
from klype.model.transformer import Transformer
from klype.runs.subject import Subject
from klype.values import Question, Request, Sampling, Trace

Prompt = Callable[[Question], list[int]]
LEAST = 400
"""Questions, however short the time."""


def examined_on(subject: Subject, minutes: float | None) -> list[Question]:
    """The held-out questions that there is time to ask: all of the recipe's in five minutes."""
    most = subject.recipe.examine.questions
    return subject.held_out[: min(most, max(LEAST, round(most * (minutes or 5) / 5)))]


def answer_all(
    model: Transformer, subject: Subject, questions: Sequence[Question], sampling: Sampling, *, n: int = 1, top: int = 0
) -> list[list[Trace]]:
    """``n`` answers to each question through the chat template; sample k of a question is the same alone."""
    tokenizer = subject.chat.tokenizer
    requests = [
        Request(
            tuple(subject.chat.prompt(question.messages())),
            n=n,
            limit=subject.recipe.rank.limit,
            sampling=sampling,
            seed=draw_seed(subject.seed, question.prompt, sampling.temperature),
            stop=tokenizer.ends,
            top=top,
        )
        for question in questions
    ]
    return Engine(model, decode_bytes=tokenizer.token_bytes).run(requests)


def said(subject: Subject, trace: Trace) -> str:
    return subject.chat.tokenizer.decode_answer(trace.tokens)


def judged(
    subject: Subject, config: ModelConfig, questions: Sequence[Question], groups: Sequence[Sequence[Trace]]
) -> list[Answered]:
    """Every answer with its verdicts and what it cost."""
    shape = shape_of(config)
    out: list[Answered] = []
    for question, traces in zip(questions, groups, strict=True):
        for trace in traces:
            text, finished = said(subject, trace), trace.ended == "stop"
            verdict = subject.judge(question, text, finished)
            s, first_error = correctness(subject, question, trace)
            out.append(
                Answered(
                    question=question.id,
                    words=_pieces(subject, trace) if s else tuple(text.split()),
                    ended=trace.ended,
                    right=verdict.right,
                    word_for_word=word_for_word(question, text).right if question.answers else None,
                    polite=verdict.polite,
                    concise=verdict.concise,
                    score=verdict.score,
                    first_error=first_error,
                    s=s,
                    passes=trace.passes,
                    tokens=len(trace.steps),
                    flops=float(answer_flops(shape, len(trace.prompt), len(trace.steps))),
                    seconds=trace.seconds,
                )
            )
    return out


def evidence_of(subject: Subject, answers: Sequence[Answered]) -> Evidence:
    """What is known of answers as ``answer_all`` draws them."""
    return Evidence(answers, judge=subject.judge_name, points=subject.scores(subject.recipe.rank.limit))


def _pieces(subject: Subject, trace: Trace) -> tuple[str, ...]:
    """The answer token by token, as S is known token by token (in the world: word by word)."""
    tokenizer = subject.chat.tokenizer
    return tuple(tokenizer.decode([t]) for t in trace.tokens if t not in tokenizer.ends)


def correctness(subject: Subject, question: Question, trace: Trace) -> tuple[tuple[float, ...], int | None]:
    """S before every token up to the first error, and where that is (1, 2, …); nothing where nobody knows the truth."""
    truth = subject.next_right(question)
    if truth is None or any(step.distribution is None for step in trace.steps):
        return (), None
    s: list[float] = []
    for t, step in enumerate(trace.steps, 1):
        assert step.distribution is not None
        s.append(mass(step.distribution, trace.sampling.temperature, truth.next()))
        if truth.push(step.token) == 0.0:
            return tuple(s), t
    return tuple(s), None


def shape_of(config: ModelConfig) -> Shape:
    matrices = config.flops_per_token // 2
    return Shape(matrices=matrices, layers=config.layers, width=config.heads * config.head_dim)
