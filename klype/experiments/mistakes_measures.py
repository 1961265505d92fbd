"""What one model does after mistakes and without them: plain numbers; intervals come from several seeds.

All models of a seed are asked the same: the same documents, the same beginnings, the same forced words. Of a model
that has learnt to take words back, words are measured given that a word is said, and what it writes as it stands once
the token was obeyed; ``alarm`` tells how often it would take back what is right. That costs KL, too: ``kl`` is of the
words alone, ``kl_drawn`` of what is drawn, the token among it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import nn

from klype.answers.backspace import EditableText, answers_with_backspace
from klype.answers.decoders import decide
from klype.answers.decoding import DecodeQuestion, Tuning
from klype.errors import KlypeError
from klype.examine.error_feedback import InterventionOutcome, outcomes
from klype.examine.interventions import FeedbackSettings, Intervention, Query, interventions
from klype.examine.truth import Reader, Tokens, point
from klype.experiments.corpus import Ids, Test
from klype.experiments.mistakes_methods import Student, up_to_slips
from klype.experiments.training import Mixture, measure, predict
from klype.sources.source import answers
from klype.values import Distribution, Request

# words of a test document that the model continues; words it then writes; words over which KL is summed
OPENING, WORDS, EXCESS = 6, 20, 10
# passes that a model with backspace may use, relative to the number of words
SPENDS = 1.5
# passes allowed per question, relative to the plain answer's
BUDGET = 3.0
ANSWER = 10
RIGHT_AT = (5, 10, 20)
Values = dict[str, Any]


class WithoutBack(nn.Module):
    """The model's words, given that it says one."""

    def __init__(self, model: nn.Module, back: int) -> None:
        super().__init__()
        self.model, self.back = model, back

    def forward(self, tokens_BT: torch.Tensor) -> torch.Tensor:
        logits_BTV: torch.Tensor = self.model(tokens_BT)
        # not -inf: its log-probability times 0 would be no number
        return logits_BTV.index_fill(-1, torch.tensor([self.back]), -1e4)


@dataclass(frozen=True, slots=True)
class MistakesExam:
    """What all models of a seed are asked. ``asked``: beginnings of test documents with their truth, ``rest`` how they
    went on; ``forced``: the feedback experiment's interventions, of the model that all start from."""

    test: Test
    asked: tuple[Query, ...]
    rest: tuple[Ids, ...]
    forced: tuple[Intervention, ...]
    settings: FeedbackSettings
    back: int


def exam(
    test: Test, reader: Callable[[Ids], Reader], student: Student, settings: FeedbackSettings, back: int
) -> MistakesExam:
    """The beginnings, and the interventions of this model. ``reader(prompt)`` is the truth after a prompt."""
    long = [d for d in test.documents if len(d) > OPENING + 1]
    asked = tuple(Query(str(i), d[: OPENING + 1], reader(d[: OPENING + 1])) for i, d in enumerate(long))
    is_word = lambda token: token not in (test.documents[0][0], *student.codec.stop, back)
    forced = interventions(student, asked, settings, is_word)
    if not forced:
        raise KlypeError(
            f"After none of {len(asked)} beginnings could a mistake be forced.", "Ask for more documents to learn from."
        )
    return MistakesExam(test, asked, tuple(d[OPENING + 1 :] for d in long), tuple(forced), settings, back)


def look(student: Student, asked: MistakesExam, takes_back: bool) -> Values:
    """World: all of it. ``feedback`` and the arms' hazards are lists, a row an intervention, over distances."""
    back = asked.back if takes_back else None
    found: Values = dict(measure(WithoutBack(student.model, asked.back), asked.test))
    back_N = predict(student.model, asked.test.documents)[:, asked.back].double().exp()
    found["alarm"] = float(back_N.mean())
    # KL(p‖q) = KL(p‖q given a word) − E log(1 − q(back)), for p never takes back
    found["kl_drawn"] = found["kl"] - float(torch.log1p(-back_N).mean())
    found |= _going_on(student, asked, back) | _answers(student, asked, back)
    return found | _after(outcomes(student, asked.asked, asked.forced, replace(asked.settings, back=back)))


def text_values(student: Student, test: Test, teachers: Sequence[nn.Module], back: int) -> Values:
    """Text, where nobody knows the truth: bits per byte, calibration, and KL from the teachers' mean on documents and
    on what the model itself writes."""
    found: Values = dict(measure(WithoutBack(student.model, back), test))
    begun = [d[: OPENING + 1] for d in test.documents if len(d) > OPENING + 1]
    requests = [Request(p, limit=WORDS, seed=i, stop=student.codec.stop) for i, p in enumerate(begun)]
    own = [(*t.prompt, *t.tokens) for (t,) in answers(student, requests)]
    teacher = Mixture(teachers)
    for name, texts in (("teacher_kl", list(test.documents)), ("teacher_kl_own", own)):
        p_NV, q_NV = (predict(model, texts) for model in (teacher, WithoutBack(student.model, back)))
        found[name] = float((p_NV.exp() * (p_NV - q_NV)).sum(-1).mean())
    return found


def _after(found: Sequence[InterventionOutcome]) -> Values:
    """Row by intervention (``beside_near``: by matched one). ``recovery``: no further error in all of the distances;
    ``standing``: an error is left then."""
    wrong, right, near = ([list(one.errors[arm]) for one in found] for arm in ("wrong", "right", "near"))
    less = (np.array(wrong) - np.array(right)).tolist()
    return {
        "questions": [one.intervention.question for one in found],
        "feedback": less,
        "beside_near": [
            np.subtract(w, n).tolist() for one, w, n in zip(found, wrong, near, strict=True) if one.intervention.matched
        ],
        "hazard_wrong": wrong,
        "hazard_right": right,
        "recovery": float(np.mean([one.clean["wrong"][-1] for one in found])),
        "standing": float(np.mean([one.standing["wrong"][-1] for one in found])),
        "shocks": len(found),
    }


def _going_on(student: Student, asked: MistakesExam, back: int | None) -> Values:
    """One text a beginning at temperature 1: P(no error in the first n words), S, and excess error."""
    limit = WORDS if back is None else round(SPENDS * WORDS)
    requests = [
        Request(one.prompt, limit=limit, seed=1000 + i, stop=student.codec.stop) for i, one in enumerate(asked.asked)
    ]
    traces = (
        answers(student, requests)
        if back is None
        else answers_with_backspace(student, requests, [0] * len(requests), back)
    )
    own, passes = zip(*(standing(trace.tokens, back, WORDS) for (trace,) in traces), strict=True)
    errors = [one.reader.first_error(text) for one, text in zip(asked.asked, own, strict=True)]
    found: Values = {f"right_{n}": float(np.mean([e is None or e > n for e in errors])) for n in RIGHT_AT}
    found["passes"] = sum(passes) / max(1, sum(map(len, own)))
    rows = _along(student, asked, own)
    right = [s for row, e in zip(rows, errors, strict=True) for _, s in row[: e or len(row)]]
    true = _along(student, asked, asked.rest)
    found |= {"s_own": float(np.mean(right))} if right else {}
    own_kl, true_kl = _mean_kl(rows), _mean_kl(true)
    return found | ({"excess_error": 100 * (own_kl / true_kl - 1)} if own_kl and true_kl else {})


def _mean_kl(rows: Sequence[Sequence[tuple[float, float]]]) -> float | None:
    """Nats a word, on the first ``EXCESS`` words; None where there are none."""
    found = [kl for row in rows for kl, _ in row[:EXCESS]]
    return float(np.mean(found)) if found else None


def standing(said: Sequence[int], back: int | None, words: int) -> tuple[Tokens, int]:
    """The text as soon as so many words stand, the token that takes back being obeyed, or as it is in the end; and how
    many tokens had been said by then."""
    sheet, passes = EditableText((), back), 0
    for token in said:
        if len(sheet.tokens) == words:
            break
        sheet.push(token)
        passes += 1
    return sheet.tokens, passes


def _along(student: Student, asked: MistakesExam, texts: Sequence[Tokens]) -> list[list[tuple[float, float]]]:
    """(KL(p‖q), S) at every place of each text behind its beginning, up to its third error; q given that a word is
    said."""
    read = [up_to_slips(one.reader, text) for one, text in zip(asked.asked, texts, strict=True)]
    scored = student.score([one.prompt for one in asked.asked], read, -1)
    out = []
    for one, text, trace in zip(asked.asked, read, scored, strict=True):
        row = []
        for t, step in enumerate(trace.steps):
            assert step.distribution is not None
            at = point(one.reader.next(text[:t]), words_only(step.distribution, asked.back))
            assert at.kl is not None
            row.append((at.kl, at.s_low))
        out.append(row)
    return out


def words_only(q: Distribution, back: int) -> Distribution:
    """Given that a word is said."""
    logp = np.where(q.ids == back, -1e4, q.logp)
    return Distribution(q.ids, logp - np.logaddexp.reduce(logp))


def _answers(student: Student, asked: MistakesExam, back: int | None) -> Values:
    """The share of right greedy answers (with words taken back, where that was learnt) and their passes."""
    stop = {answer[-1] for one in asked.test.questions for answer in one.answers}
    put = [
        DecodeQuestion(one.prefix, str, ANSWER, (*student.codec.stop, *sorted(stop))) for one in asked.test.questions
    ]
    if not put:
        return {}
    name = "greedy" if back is None else "backspace"
    found = decide(student, put, name, BUDGET, Tuning(back=back))
    rights = [one.choice.chosen.tokens in q.answers for one, q in zip(found, asked.test.questions, strict=True)]
    words = sum(len(one.choice.chosen.tokens) for one in found)
    return {"right_greedy": float(np.mean(rights)), "passes_greedy": sum(one.passes for one in found) / max(1, words)}
