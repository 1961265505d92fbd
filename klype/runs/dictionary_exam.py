"""What a model of a dictionary is asked: words that it has learnt, and words that it has never seen."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from klype.data.readers import TextDocument
from klype.examine.facts import DictionaryAnswerFacts, DictionaryFacts
from klype.examine.intervals import mean_by_question
from klype.judge.text import normalised_match
from klype.runs.dictionary import KINDS, Dictionary
from klype.runs.wellformed import WellFormed, words_of
from klype.values import Figure, Question

JUDGE = "the dictionary’s own words"
RULES = "stated rules of form"
TASTE = {
    "en": "simulated by a rule: answers that are well-formed, in the dictionary’s own words, without repetition, short",
    "nb": "simulert etter en regel: svar som er velformede, lik ordbokas egne ord, uten gjentakelser, og korte",
}
EXAMINED = 100  # trained words of each kind of question
SHOWN = 3  # answers of each kind and side


class DictionaryExam:
    """``trained``: questions whose answers were learnt from, some of each kind."""

    def __init__(
        self, dictionary: Dictionary, learnt: Sequence[Question], train: Sequence[TextDocument], seed: int
    ) -> None:
        forms = {word.lemma.lower(): word.forms for word in dictionary.words.values()}
        self.well_formed = WellFormed(dictionary.forms() | words_of(d.text for d in train), dict(forms))
        mixed = list(learnt)
        random.Random(seed).shuffle(mixed)
        self.trained = [q for kind in KINDS for q in [q for q in mixed if q.extra["kind"] == kind][:EXAMINED]]

    def figures(self, rows: Sequence[DictionaryFacts]) -> dict[str, Figure]:
        """Over all kinds of question: held-out words well-formed, trained words right."""
        named = {"well_formed": ("held_out", "well_formed"), "right_trained": ("trained", "right")}
        out = {}
        for name, (side, what) in named.items():
            figures = [row[side][what] for row in rows if side in row]  # type: ignore[literal-required]
            hits = [(round((f["value"] or 0.0) * f["n"]), f["n"]) for f in figures if f.get("n")]
            values = [float(i < k) for k, n in hits for i in range(n)]
            asked = [str(i) for i in range(len(values))]
            out[name] = mean_by_question(values, asked, "share", RULES if what == "well_formed" else JUDGE)
        return out

    def rows(
        self, held_out: Sequence[tuple[Question, str, bool]], trained: Sequence[tuple[Question, str, bool]]
    ) -> list[DictionaryFacts]:
        """Of (question, answer, finished): one row a kind of question, with figures of both sides and some answers."""
        rows: list[DictionaryFacts] = []
        for kind in KINDS:
            row: dict[str, Any] = {"kind": kind, "samples": []}
            for side, answered in (("held_out", held_out), ("trained", trained)):
                of_kind = [a for a in answered if a[0].extra.get("kind") == kind]
                if of_kind:
                    row[side] = self._side(of_kind)
                    row["samples"] += [self._sample(*a, trained=side == "trained") for a in of_kind[:SHOWN]]
            if len(row) > 2:
                rows.append(row)  # type: ignore[arg-type]
        return rows

    def _side(self, answered: Sequence[tuple[Question, str, bool]]) -> dict[str, Any]:
        asked = [question.id for question, _, _ in answered]
        formed = [float(self.well_formed(*answer)) for answer in answered]
        right = [float(is_right(question, text, finished)) for question, text, finished in answered]
        return {
            "well_formed": mean_by_question(formed, asked, "share", RULES).json(),
            "right": mean_by_question(right, asked, "share", JUDGE).json(),
        }

    def _sample(self, question: Question, text: str, finished: bool, trained: bool) -> DictionaryAnswerFacts:
        return {
            "question": question.question,
            "text": text,
            "reference": _met(question, text),
            "trained": trained,
            "right": is_right(question, text, finished),
            "well_formed": self.well_formed(question, text, finished),
        }


def _met(question: Question, text: str) -> str:
    """Of the dictionary's answers the one that was given; the first when none was."""
    given = (
        answer for answer in question.answers if normalised_match(replace(question, answers=(answer,)), text).right
    )
    return next(given, question.answers[0])


def is_right(question: Question, answer: str, finished: bool) -> bool:
    """Equal to one of the dictionary's answers but for case, punctuation and articles: a paraphrase does not count."""
    return finished and normalised_match(question, answer).right is True
