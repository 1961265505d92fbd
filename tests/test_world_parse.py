"""Whatever the world can ask is understood when somebody else types it."""

from __future__ import annotations

import random
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from klype.errors import KlypeError, UsageError
from klype.runs.provenance import question_in
from klype.values import Question
from klype.world import World
from klype.world.lexicon import KINDS


def unnamed(question: Question) -> Question:
    """Without the fact that it was drawn to be about: of two that are told alike either is meant."""
    return replace(question, extra={name: value for name, value in question.extra.items() if name != "about"})


@pytest.mark.slow
@pytest.mark.parametrize(("size", "n"), [("small", 3500), ("full", 1500)])
def test_a_drawn_question_parses_to_what_it_was_drawn_from(size: str, n: int) -> None:
    world, rng, kinds = World(size), random.Random(7), set()  # type: ignore[arg-type]
    for i in range(n):
        drawn = world.question(rng, heldout=i % 5 == 0, hard=i % 7 == 0)
        parsed = world.parse(drawn.prompt)
        assert unnamed(parsed) == unnamed(drawn)
        facts = tuple(map(tuple, drawn.extra["facts"]))
        row = KINDS[drawn.extra["kind"]]
        rights = [row.right(tuple(q.extra["about"]), facts) for q in (parsed, drawn)]
        assert rights[0] == rights[1]
        kinds.add(drawn.extra["kind"])
    assert kinds == {name for name, kind in KINDS.items() if kind.relation != "walk"}


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("Kari er på skolen. Hvor er Ola?", "“Ola” (word 8)"),
        ("What is love?", "“love” (word 3)"),
        ("Kari er på skolen. Hvor er", "ends before its question"),
        ("", "ends before its question"),
        ("Kari er på Skolen. Hvor er Kari?", "it says “skolen”"),
        ("hvor er Kari?", "“hvor” (word 1)"),
        ("kari er på skolen. Hvor er Kari?", "it says “Kari”"),
        (f"Kari er på {'y' * 500}.", f"“{'y' * 39}…” (word 4)"),
    ],
)
def test_what_it_cannot_say_names_the_first_word_at_which_it_fails(text: str, told: str) -> None:
    with pytest.raises(KlypeError) as raised:
        World().parse(text)
    assert told in f"{raised.value} {raised.value.hint}"


def test_the_word_that_is_named_can_be_said_there() -> None:
    """And every word of the world need not be known for it."""
    world, rng, named = World(), random.Random(3), 0
    for _ in range(30):
        words = list(world.words_of(world.question(rng).prompt))
        place = rng.randrange(len(words))
        words[place] = words[place].swapcase()
        try:
            world.parse(world.text(words))
        except KlypeError as error:
            if (known := re.search(r"it says “(.+)”", error.hint)) is None:
                continue
            named += 1
            assert known[1].casefold() == words[place].casefold()
            with pytest.raises(KlypeError, match=r"ends before"):
                world.parse(world.text([*words[:place], known[1]]))
    assert named > 5
    assert "words" not in vars(world)


@pytest.mark.parametrize("text", [None, 5, b"Hvor er Kari?", ["Hvor er Kari?"]])
def test_what_is_no_text_is_one_sentence(text: Any) -> None:
    with pytest.raises(UsageError, match="The text should be a string"):
        World().parse(text)


def test_a_question_of_ones_own_has_a_judge_and_a_meaning_in_both_languages() -> None:
    world = World()
    asked, unread = question_in(world, Path("nowhere"), "Kari er på skolen. Ola er i byen. Hvor er Ola?")
    assert asked is not None
    assert not unread
    assert world.judge(asked, "I byen.").right
    assert not world.judge(asked, "På skolen.").right
    english = world.parse("Kari is at school. Ola is in town. Where is Ola?")
    assert world.meaning(asked)("Ola er i byen.") == world.meaning(english)("In town.") != frozenset()
    asked, unread = question_in(world, Path("nowhere"), "What is love?")
    assert asked is None
    assert "love" in unread
    assert "up to four facts" in unread


def test_an_answer_that_spells_the_end_mark_means_nothing() -> None:
    world = World("small")
    question = world.question(random.Random(1))
    assert world.meaning(question)(question.answers[0])
    assert world.meaning(question)(f"{question.answers[0]} </s>") == frozenset()
