"""The automaton's laws on a toy language small enough to enumerate."""

from __future__ import annotations

import math
import random
from collections import Counter
from copy import copy

import pytest

from klype.world.automaton import END, Filter, RuleCall, WordChoice, arcs, branches, capital, form, sample

A_OR_B = WordChoice(((0.75, ("a",)), (0.25, ("b",))))


def again(env: int) -> list[tuple[float, tuple[object, ...], int]]:
    """Up to three more letters; the environment counts them."""
    stop = [(0.5 if env < 3 else 1.0, (), env)]
    return stop + ([(0.5, (A_OR_B, RuleCall(again)), env + 1)] if env < 3 else [])  # type: ignore[list-item]


START = ((A_OR_B, RuleCall(again), END), 0)


def texts() -> dict[tuple[str, ...], float]:
    """Every text of the toy language with its probability."""
    found: dict[tuple[str, ...], float] = {}
    todo = [((), 1.0, START)]
    while todo:
        words, p, state = todo.pop()
        for word, q, after in arcs(state):
            if word == END:
                found[words] = found.get(words, 0.0) + p * q
            else:
                todo.append(((*words, word), p * q, after))
    return found


def test_all_texts_sum_to_one() -> None:
    assert sum(texts().values()) == pytest.approx(1.0, abs=1e-12)


def test_a_texts_probability_is_the_product_of_the_filters_words() -> None:
    for words, p in texts().items():
        reader = Filter(START)
        product = math.prod([reader.push(word) for word in (*words, END)])
        assert product == pytest.approx(p, abs=1e-12)


def test_the_sampler_draws_what_the_filter_says() -> None:
    rng, n, expected = random.Random(1), 20_000, texts()
    drawn = Counter(tuple(sample(START, rng)[0][:-1]) for _ in range(n))
    assert set(drawn) <= set(expected)
    chi2 = sum((drawn[t] - n * p) ** 2 / (n * p) for t, p in expected.items())
    assert chi2 < len(expected) + 4 * math.sqrt(2 * len(expected))


def test_after_a_slip_the_prefix_is_read_with_the_fewest_slips() -> None:
    """Enumeration: all texts that differ from the prefix in one word, weighted by the language, say what follows."""
    prefix = ("a", "x", "b")
    reader = Filter(START)
    for word in prefix:
        reader.push(word)
    assert reader.slips == 1
    weights: dict[str, float] = {}
    for words, p in texts().items():
        if len(words) >= 3 and (words[0], words[2]) == ("a", "b"):
            following = words[3] if len(words) > 3 else END
            weights[following] = weights.get(following, 0.0) + p
    total = sum(weights.values())
    assert reader.next() == pytest.approx({w: p / total for w, p in weights.items()})


def test_a_slipped_end_restarts_the_language() -> None:
    """The word stands where the end should: what follows is a beginning."""
    reader = Filter((("one", END), None))
    for word in ("one", "one"):
        reader.push(word)
    assert reader.slips == 1
    assert reader.next() == {"one": 1.0}


def test_after_the_end_comes_only_the_end() -> None:
    reader = Filter((("one", END), None))
    reader.push("one")
    reader.push(END)
    assert reader.next() == {END: 1.0}
    assert reader.push(END) == 1.0


def test_a_copy_goes_its_own_way_from_what_both_have_seen() -> None:
    reader = Filter(START)
    seen = dict(reader.next())
    other = copy(reader)
    other.push("a")
    fresh = Filter(START)
    fresh.push("a")
    assert other.next() == fresh.next() != seen
    assert reader.next() == seen


def test_forms_and_capitals() -> None:
    assert form("på stranda|.5 stranden|.5") == ("på", WordChoice(((0.5, ("stranda",)), (0.5, ("stranden",)))))
    assert capital(("åpen", "dør")) == ("Åpen", "dør")
    assert capital(form("boka|.6 boken|.4"))[0] == WordChoice(((0.6, ("Boka",)), (0.4, ("Boken",))))


def test_what_follows_a_word_is_what_the_arcs_say() -> None:
    todo, seen = [START], 0
    while todo:
        state = todo.pop()
        for said in ("a", "b", END, "c"):
            after = {to for word, _, to in arcs(state) if word == said}
            assert branches([state]).get(said, set()) == after
            seen += len(after)
            todo += after if said != END else []
    assert seen > 10
