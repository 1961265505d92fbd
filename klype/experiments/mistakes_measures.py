"""Measures of one model, after mistakes and without them: plain numbers; intervals come from several seeds.

All models of a seed get the same documents, the same prompts and the same forced words. For a model with a backspace
token, next-word distributions are conditional on a word, and its texts are those that are left after backspaces.
``alarm`` is its probability of taking back what is correct. That costs KL, too: ``kl`` is of words alone, ``kl_drawn``
of what is drawn, backspace included.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import nn

from klype.answers.backspace import EditableText, answers_with_backspace
from klype.answers.decoder_requests import DecodeQuestion, DecoderSettings
from klype.answers.decoders import decide
from klype.errors import KlypeError
from klype.examine.error_feedback import InterventionOutcome, outcomes
from klype.examine.interventions import FeedbackSettings, Query, interventions
from klype.examine.truth import Reader
from klype.experiments.corpus import CorpusQuestion, TestSet, sparse_truth
from klype.experiments.mistakes_methods import Student, up_to_slips
from klype.experiments.training import Mixture, compare_with_truth, measure, predict
from klype.sources.source import answers
from klype.values import Floats, Request, Tokens

# words of a test document that the model continues; words that it then writes; words for the excess error
OPENING, WORDS, EXCESS = 6, 20, 10
SPENDS = 1.5  # passes that a model with backspace may use, relative to the number of words
BUDGET = 3.0  # passes per question, relative to those of the plain answer
ANSWER = 10
RIGHT_AT = (5, 10, 20)
Values = dict[str, Any]


class WithoutBack(nn.Module):
    """A model's next-word distribution without backspace."""

    def __init__(self, model: nn.Module, back: int) -> None:
        super().__init__()
        self.model, self.back = model, back

    def forward(self, tokens_BT: torch.Tensor) -> torch.Tensor:
        logits_BTV: torch.Tensor = self.model(tokens_BT)
        # not -inf: times a probability of 0 it would be nan
        return logits_BTV.index_fill(-1, torch.tensor([self.back]), -1e4)


def world_values(
    test: TestSet, reader: Callable[[Tokens], Reader], first: Student, seed: int
) -> Callable[[Student, bool], Values]:
    """The measures in the demo world: a function (model, whether it uses backspace) → values.

    Models continue beginnings of the test documents, and beginnings with mistakes that were forced on ``first``, the
    model from which all methods start. ``reader(prompt)``: what can follow a prompt. ``feedback`` and the hazards are
    lists with a row per intervention and a column per distance.
    """
    long = [d for d in test.documents if len(d) > OPENING + 1]
    asked = [Query(str(i), d[: OPENING + 1], reader(d[: OPENING + 1])) for i, d in enumerate(long)]
    settings = FeedbackSettings(positions=8, distances=4, samples=2, seed=seed)
    forced = interventions(first, asked, settings, first.is_word)
    if not forced:
        raise KlypeError(
            f"After none of {len(asked)} beginnings could a mistake be forced.", "Ask for more documents to learn from."
        )

    def look(student: Student, takes_back: bool) -> Values:
        back = student.back if takes_back else None
        found: Values = dict(measure(WithoutBack(student.model, student.back), test))
        back_N = predict(student.model, test.documents)[:, student.back].double().exp()
        found["alarm"] = float(back_N.mean())
        # KL(p‖q) = KL(p‖q given a word) − E log(1 − q(back)), since p never takes back
        found["kl_drawn"] = found["kl"] - float(torch.log1p(-back_N).mean())
        found |= own_text_values(student, asked, [d[OPENING + 1 :] for d in long], back)
        found |= greedy_answers(student, test.questions, back)
        return found | after_mistakes(outcomes(student, asked, forced, replace(settings, back=back)))

    return look


def text_values(student: Student, test: TestSet, teachers: Sequence[nn.Module]) -> Values:
    """The measures on one's own text, where the truth is not known: bits per byte, calibration, and KL from the mean of
    the teachers on documents and on the model's own texts."""
    found: Values = dict(measure(WithoutBack(student.model, student.back), test))
    begun = [d[: OPENING + 1] for d in test.documents if len(d) > OPENING + 1]
    requests = [Request(p, limit=WORDS, seed=i, stop=student.codec.stop) for i, p in enumerate(begun)]
    own = [(*t.prompt, *t.tokens) for (t,) in answers(student, requests)]
    teacher = Mixture(teachers)
    for name, texts in (("teacher_kl", list(test.documents)), ("teacher_kl_own", own)):
        p_NV, q_NV = (predict(model, texts) for model in (teacher, WithoutBack(student.model, student.back)))
        found[name] = float((p_NV.exp() * (p_NV - q_NV)).sum(-1).mean())
    return found


def after_mistakes(found: Sequence[InterventionOutcome]) -> Values:
    """Lists with a row per intervention (``beside_near``: per matched one), and shares of them: ``recovery`` without a
    further error over all distances, ``standing`` with an error left in the text after them."""
    wrong, right, near = ([list(one.errors[arm]) for one in found] for arm in ("wrong", "right", "near"))
    less = (np.array(wrong) - np.array(right)).tolist()
    return {
        "questions": [one.intervention.question for one in found],
        "feedback": less,
        "beside_near": np.subtract(wrong, near)[[one.intervention.is_matched for one in found]].tolist(),
        "hazard_wrong": wrong,
        "hazard_right": right,
        "recovery": float(np.mean([one.clean["wrong"][-1] for one in found])),
        "standing": float(np.mean([one.standing["wrong"][-1] for one in found])),
        "shocks": len(found),
    }


def own_text_values(student: Student, asked: Sequence[Query], rest: Sequence[Tokens], back: int | None) -> Values:
    """Measures of one text per prompt at temperature 1: P(no error in the first n words), passes, S, excess error."""
    limit = WORDS if back is None else round(SPENDS * WORDS)
    requests = [Request(one.prompt, limit=limit, seed=1000 + i, stop=student.codec.stop) for i, one in enumerate(asked)]
    none_yet = [0] * len(asked)
    traces = answers(student, requests) if back is None else answers_with_backspace(student, requests, none_yet, back)
    own, passes = zip(*(after_backspaces(trace.tokens, back, WORDS) for (trace,) in traces), strict=True)
    errors = [one.reader.first_error(text) for one, text in zip(asked, own, strict=True)]
    found: Values = {f"right_{n}": float(np.mean([e is None or e > n for e in errors])) for n in RIGHT_AT}
    found["passes"] = sum(passes) / max(1, sum(map(len, own)))
    kl, s = kl_and_s(student, asked, own)
    right = np.concatenate([s_T[:e] for s_T, e in zip(s, errors, strict=True)])
    found |= {"s_own": float(right.mean())} if right.size else {}
    # nats per word, on the first words of its own texts and of true ones
    first, true = (np.concatenate([kl_T[:EXCESS] for kl_T in one]) for one in (kl, kl_and_s(student, asked, rest)[0]))
    return found | ({"excess_error": 100 * float(first.mean() / true.mean() - 1)} if first.any() and true.any() else {})


def after_backspaces(said: Sequence[int], back: int | None, words: int) -> tuple[Tokens, int]:
    """The text after backspaces as soon as it has so many words, or at the end, and how many tokens it took."""
    sheet, passes = EditableText((), back), 0
    for token in said:
        if len(sheet.tokens) == words:
            break
        sheet.push(token)
        passes += 1
    return sheet.tokens, passes


def kl_and_s(student: Student, asked: Sequence[Query], texts: Sequence[Tokens]) -> tuple[list[Floats], list[Floats]]:
    """KL(p‖q) and S at every position of each text after its prompt, up to the third error; q is without backspace."""
    read = [up_to_slips(one.reader, text) for one, text in zip(asked, texts, strict=True)]
    rows = [one.reader.next(text[:t]) for one, text in zip(asked, read, strict=True) for t in range(len(text))]
    whole = [(*one.prompt, *text) for one, text in zip(asked, read, strict=True)]
    own_N = np.concatenate([np.arange(1, len(w)) >= len(one.prompt) for one, w in zip(asked, whole, strict=True)])
    logp_NV = predict(WithoutBack(student.model, student.back), whole)[torch.from_numpy(own_N)]
    kl_N, _, s_N, _ = compare_with_truth(logp_NV, sparse_truth(rows, student.back))
    ends = np.cumsum([len(text) for text in read])[:-1]
    return np.split(kl_N, ends), np.split(s_N, ends)


def greedy_answers(student: Student, questions: Sequence[CorpusQuestion], back: int | None) -> Values:
    """The share of correct greedy answers (with backspace, where that was learnt), and their passes per word."""
    if not questions:
        return {}
    stop = (*student.codec.stop, *sorted({answer[-1] for one in questions for answer in one.answers}))
    put = [DecodeQuestion(one.prefix, str, ANSWER, stop) for one in questions]
    name = "greedy" if back is None else "backspace"
    found = decide(student, put, name, BUDGET, DecoderSettings(back=back))
    rights = [one.choice.chosen.tokens in q.answers for one, q in zip(found, questions, strict=True)]
    words = sum(len(one.choice.chosen.tokens) for one in found)
    return {"right_greedy": float(np.mean(rights)), "passes_greedy": sum(one.passes for one in found) / max(1, words)}
