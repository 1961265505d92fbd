"""Long texts of a base model: begun as long documents begin, never ended, S of what may be drawn."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from klype.examine.truth import Reader, mass
from klype.experiments.article import MIN_WORDS, FreeTextRequest, judge_text, openings, write_texts
from klype.sources.source import answers
from klype.values import Request, Sampling
from klype.world import END, Spellings, TokenFilter, World
from tests.toy_sources import table_source

SETTINGS = FreeTextRequest(number=6, words=12, temperature=0.7)


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def world() -> World:
    return World("small")


def spelled(world: World) -> Spellings:
    """A word is a token; 0 is the end, 1 the beginning."""
    place = {word: i for i, word in enumerate(world.words, 2)}
    return Spellings(world.words, lambda text: [place[text.strip()]], 0)


def test_texts_begin_as_documents_of_eighty_words_do(world: World) -> None:
    begun = list(openings(world, SETTINGS))
    assert len(begun) == SETTINGS.number
    assert begun == list(openings(world, SETTINGS))
    for words in begun:
        assert words[-1] == "."
        assert "." not in words[:-1]
        reader = world.filter()
        assert all(reader.push(word) > 0 for word in words)
    assert MIN_WORDS == 80


@pytest.mark.slow
def test_s_is_the_mass_on_what_can_follow_of_what_may_be_drawn(world: World) -> None:
    """A model that would mostly end: none of its texts does, and S leaves the end out of both sides."""
    size = len(world.words) + 2
    q = np.full((size, size), 0.3 / (size - 1))
    q[:, 0] = 0.7
    source, _ = table_source(q, letters=[chr(0x4E00 + i) for i in range(size)])
    spellings = spelled(world)
    found = write_texts(source, world, spellings, 1, SETTINGS)
    assert len(found) == SETTINGS.number
    for one in found:
        assert one.ended == "length"
        assert len(one.s) == len(one.words) == (one.first_error or SETTINGS.words)
    first = next(openings(world, SETTINGS))
    reader = world.filter()
    for word in first:
        reader.push(word)
    possible = len(set(reader.next()) - {END})
    assert found[0].s[0] == pytest.approx(possible / (size - 1), rel=1e-4)  # all but the end are drawn alike


@pytest.mark.slow
def test_where_the_language_has_to_end_nothing_more_is_judged(world: World) -> None:
    """After a proverb only the end can follow."""
    spellings = spelled(world)
    reader = world.filter()
    words: list[str] = []
    while set(reader.next()) != {END}:
        p = reader.next()
        words.append(min(p, key=lambda word: (word == "?", -p[word])))  # no questions: soon over
        reader.push(words[-1])
        if len(words) > 200:
            pytest.skip("this world has no text without a question")
    tokens = [spellings.of[word][0] for word in words]
    size = len(world.words) + 2
    source, _ = table_source(np.full((size, size), 1 / size), letters=[chr(0x4E00 + i) for i in range(size)])
    request = Request((1,), limit=5, sampling=Sampling(logit_bias=((0, -100.0),)), stop=(0,), top=-1)
    trace = answers(source, [request])[0][0]
    reader = Reader(lambda: TokenFilter(world.filter(), spellings))
    found = judge_text("x", trace, reader, tuple(tokens), 1.0, 0)
    assert found.s == ()
    assert found.first_error is None
    assert mass(trace.steps[0].distribution, 1.0, (0,)) > 0  # type: ignore[arg-type]


@pytest.mark.parametrize("temperature", [0.05, 0.7])
def test_where_nearly_all_is_the_end_s_can_be_told_too(world: World, temperature: float) -> None:
    """At a low temperature the end has all that a number can hold; the rest is as it would be drawn without it."""
    spellings = spelled(world)
    size = len(world.words) + 2
    q = np.full((size, size), 0.01 / (size - 1))
    q[:, 0] = 0.99
    source, _ = table_source(q, letters=[chr(0x4E00 + i) for i in range(size)])
    found = write_texts(source, world, spellings, 1, FreeTextRequest(number=1, words=1, temperature=temperature))
    reader = world.filter()
    for word in next(openings(world, FreeTextRequest(number=1, words=1))):
        reader.push(word)
    possible = len(set(reader.next()) - {END})
    assert found[0].s == pytest.approx((possible / (size - 1),), rel=1e-4)
