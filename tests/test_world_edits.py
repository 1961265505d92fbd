"""Mistakes by edit distance are those of Levenshtein over all that the language can say."""

from __future__ import annotations

import itertools
import random
from copy import copy

import pytest

from klype.world import END, World
from klype.world.automaton import EditFilter
from tests.test_world_automaton import START, texts


def distances(said: tuple[str, ...], text: tuple[str, ...]) -> list[int]:
    """Levenshtein's distance of what was said to every beginning of a text."""
    row = list(range(len(text) + 1))
    for i, word in enumerate(said, 1):
        before, row = row, [i]
        for j, other in enumerate(text, 1):
            row.append(min(before[j - 1] + (word != other), before[j] + 1, row[j - 1] + 1))
    return row


def test_edits_are_the_least_distance_to_a_beginning_of_a_text() -> None:
    for length in (1, 2, 3, 4):
        for said in itertools.product("abx", repeat=length):
            reader = EditFilter(START)
            for word in said:
                reader.push(word)
            # the end is a word, too: what is said instead of it begins the language anew, which these are too short for
            assert reader.slips == min(min(distances(said, text)) for text in texts()), said


def test_what_can_follow_is_what_adds_no_edit() -> None:
    for said in itertools.product("abx", repeat=3):
        reader = EditFilter(START)
        for word in said:
            reader.push(word)
        for word in ("a", "b", "x"):
            after = copy(reader)
            after.push(word)
            assert (word in reader.next()) == (after.slips == reader.slips), (said, word)


def test_a_shift_by_one_word_is_one_error() -> None:
    """Word by word everything after a doubled word is wrong, or read as another text; by edits nothing more is."""
    world, rng = World("small"), random.Random(3)
    shifted = 0
    for _ in range(20):
        question = world.question(rng)
        words = world.words_of(world.answer(question, "sentence", rng))
        if len(words) < 4:
            continue
        said = (*words[:2], words[1], *words[2:], END)
        by_edits, by_word = world.edits(question), world.filter(question)
        for word in said:
            by_edits.push(word)
            by_word.push(word)
        assert by_edits.slips <= 1
        assert by_edits.slips <= by_word.slips
        shifted += by_word.slips > 1
    assert shifted > 5


@pytest.mark.parametrize("style", ["bare", "sentence", "polite"])
def test_a_right_answer_needs_no_edit(style: str) -> None:
    world, rng = World("small"), random.Random(4)
    for _ in range(20):
        question = world.question(rng)
        reader = world.edits(question)
        for word in (*world.words_of(world.answer(question, style, rng)), END):  # type: ignore[arg-type]
            assert reader.push(word) > 0
        assert reader.slips == 0
