"""Two answers mean the same when their meanings are equal; nonsense agrees with nothing else."""

from __future__ import annotations

import random

import numpy as np
import pytest

from klype.errors import UsageError
from klype.judge.meaning import JudgeModel, WorldJudge, judge_of, label, text_meaning
from klype.preferences.annotators import model_scorer
from klype.sources.source import tokens_of
from klype.values import Distribution, Question
from klype.world import World
from tests.toys import clusters


def test_in_the_world_manners_differ_and_meaning_does_not() -> None:
    world, rng = World("small"), random.Random(0)
    differ = 0
    for _ in range(20):
        question = world.question(rng)
        meaning = WorldJudge(world).meaning(question)
        bare, sentence = (world.answer(question, manner, rng) for manner in ("bare", "sentence"))  # type: ignore[arg-type]
        wrong = world.answer(question, "wrong", rng)
        differ += meaning(bare) != meaning(wrong)
        assert meaning(bare) == meaning(bare)
        assert meaning(f"{sentence} {sentence} tull") != meaning("annet tull")
        judge = judge_of(question, world)
        assert judge.name == "the world's grammar"
        for other in (sentence, wrong):
            assert judge.same(question, bare, other) is (meaning(bare) == meaning(other))
        assert [judge.right(question, text) for text in (bare, sentence, wrong)] == [True, True, False]
    assert differ >= 15


def test_plain_texts_mean_their_words_choices_and_numbers() -> None:
    plain = text_meaning(Question("q", "?"))
    assert plain("The dog.") == plain("dog")
    assert plain("a dog") != plain("a cat")
    assert plain("7") == plain("seven")
    choosing = text_meaning(Question("q", "?", choices=("red", "green")))
    assert choosing("It is red.") == choosing("A") == choosing("red")
    assert choosing("green") != choosing("red")
    assert judge_of(Question("q", "?"), None).name == "content of the answering sentence"


def test_labels_do_not_depend_on_the_order_of_sets() -> None:
    assert label(frozenset({"b", "a", "c"})) == "a or b or c"
    assert label(("choice", 1)) == "(choice, 1)"


class Says:
    """A judge model whose next token is Yes, No or something else with these probabilities."""

    name = "toy"

    def __init__(self, yes: float, no: float) -> None:
        self.p = [yes, no, 1 - yes - no]
        self.codec = self

    stop = (9,)

    def encode(self, text: str) -> list[int]:
        known = {"Yes": 0, "No": 1, "yes": 3, "no": 4, "": None}.get(text.strip(), 2)
        return [8] if known is None else [8, known]

    def prompt(self, messages: object) -> list[int]:
        return [8]

    def decode(self, ids: list[int]) -> str:
        return "".join({0: "Yes", 1: "No", 3: "yes", 4: "no", 5: "Y", 6: "es", 7: "N", 2: "o"}.get(i, "") for i in ids)

    def next(self, prefixes: object, top: int = -1) -> list[Distribution]:
        return [Distribution(np.arange(len(self.p)), np.log(np.array(self.p) + 1e-12))] * len(list(prefixes))  # type: ignore[call-overload]


class InPieces(Says):
    """Whose "Yes" is "Y" and "es", its "No" "N" and "o"."""

    def encode(self, text: str) -> list[int]:
        return [8, *{"Yes": [5, 6], "No": [7, 2], "": []}.get(text.strip(), [9, 9])]


def test_the_last_piece_of_a_word_is_no_evidence_of_it() -> None:
    """ "es" and "o" end many words: a judge whose words take several tokens does not decide by them."""
    assert tokens_of(InPieces(0.1, 0.1), "Yes") == set()  # type: ignore[arg-type]
    assert tokens_of(Says(0.1, 0.1), "Yes") == {0, 3}  # type: ignore[arg-type]
    piece = InPieces(0.0, 0.0)
    piece.p = [0.0, 0.0, 0.1, 0.0, 0.0, 0.0, 0.9]
    assert JudgeModel(piece).compare(Question("q", "Who?"), "Kari", "It is Kari") is None  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="one token"):
        model_scorer(piece)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("yes", "no", "ruling"), [(0.7, 0.1, True), (0.1, 0.7, False), (0.4, 0.4, None), (0.05, 0.01, None)]
)
def test_a_judge_model_decides_by_the_probability_of_its_word(yes: float, no: float, ruling: bool | None) -> None:
    judge = JudgeModel(Says(yes, no))  # type: ignore[arg-type]
    question = Question("q", "Who?", answers=("Kari",))
    assert judge.right(question, "It is Kari") is judge.same(question, "Ola", "Kari") is ruling
    assert judge.right(question, "kari.") is True
    assert judge.right(Question("q", "Who?"), "Kari") is None
    assert judge.name == "judge model toy"
    assert judge.error_rate("right", "en") is None


class LikesTheFirst(Says):
    """Says yes when the answer that stands first is one of these letters."""

    def prompt(self, messages: object) -> list[int]:
        return [ord(str(messages).split("One answer: ")[1][0])]

    def next(self, prefixes: object, top: int = -1) -> list[Distribution]:
        likes = [[0.9, 0.1, 0.0] if chr(prompt[0]) in "ab" else [0.1, 0.9, 0.0] for prompt in prefixes]  # type: ignore[attr-defined]
        return [Distribution(np.arange(3), np.log(np.array(p) + 1e-12)) for p in likes]


def test_a_judge_model_is_asked_in_both_orders() -> None:
    judge, question = JudgeModel(LikesTheFirst(0, 0)), Question("q", "Who?")  # type: ignore[arg-type]
    assert [judge.same(question, *pair) for pair in (("a", "b"), ("a", "c"), ("c", "a"), ("c", "d"))] == [
        True, None, None, False,
    ]  # fmt: skip
    assert clusters(judge, question, ["c", "a", "b", "", "A.", "d"]) == [0, 1, 1, 2, 1, 3]
    assert JudgeModel(LikesTheFirst(0, 0), window=0).same(question, "a", "b") is None  # type: ignore[arg-type]
