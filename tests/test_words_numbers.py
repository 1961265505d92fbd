"""Numbers as a reader of each language writes them."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from klype.examine.say import Say
from klype.runs.align_stage import Evaluation
from klype.values import Figure
from klype.words import count, figure, interval_decimals, number, percent, short, words
from klype.words.sentences import Sentences
from tests.test_words_catalogue import catalogues


@pytest.mark.parametrize(
    ("value", "en", "nb"),
    [
        (Figure(0.83, 0.79, 0.87), "0.83 [0.79, 0.87]", "0,83 [0,79; 0,87]"),
        (Figure(0.976, 0.9712, 0.9805), "0.976 [0.971, 0.981]", "0,976 [0,971; 0,981]"),
        (Figure(12.34, 11.0, 13.5), "12.3 [11.0, 13.5]", "12,3 [11,0; 13,5]"),
        (Figure(1234.0, 1100.0, 1400.0), "1234 [1100, 1400]", "1234 [1100; 1400]"),
        (Figure(-0.1, -0.2, 0.001), "−0.10 [−0.20, 0.00]", "−0,10 [−0,20; 0,00]"),
        (Figure(0.5), "0.50", "0,50"),
        (Figure(1.0, 1.0, 1.0, certain=True), "1.00", "1,00"),
        (Figure(None, why="no answers"), "– (no answers)", "– (no answers)"),
        (Figure(float("nan")), "–", "–"),
    ],
)
def test_figures(value: Figure, en: str, nb: str) -> None:
    assert figure(value, "en") == en
    assert figure(value, "nb") == nb


def test_units_percent_and_counts() -> None:
    assert percent(0.83, "en") == "83%"
    assert percent(0.83, "nb") == "83\u00a0%"
    assert percent(0.8349, "nb", 1) == "83,5\u00a0%"
    assert count(1234567, "en") == "1,234,567"
    assert count(1234, "nb") == "1234"
    assert count(1234567, "nb") == "1\u202f234\u202f567"
    assert number(-0.001, "en") == "0.00"
    assert [short(0.7, "nb"), short(1.0, "en"), short(0.25, "en")] == ["0,7", "1", "0.25"]


@given(st.floats(-1e6, 1e6), st.floats(1e-5, 1e6))
def test_an_interval_stays_an_interval_when_written(low: float, width: float) -> None:
    high = low + width
    decimals = interval_decimals(low, high)
    assert 0 <= decimals <= 6
    half_unit = 0.5 * 10**-decimals
    assert half_unit <= width  # rounding moves an end by less than the interval is wide


@pytest.mark.parametrize(
    ("shares", "en", "nb"),
    [
        ((0.013, 0.009), ("1.3%", "0.9%"), ("1,3 %", "0,9 %")),
        ((0.013, 0.012, 0.011, 0.0094), ("1.3%", "1.2%", "1.1%", "0.9%"), ("1,3 %", "1,2 %", "1,1 %", "0,9 %")),
        ((0.9653, 0.9673), ("96.5%", "96.7%"), ("96,5 %", "96,7 %")),
        ((0.83, 0.8), ("83%", "80%"), ("83 %", "80 %")),
        ((0.5, 0.5), ("50%", "50%"), ("50 %", "50 %")),
        ((0.5, None), ("50%", "–"), ("50 %", "–")),
        ((None,), ("–",), ("–",)),
    ],
)
def test_shares_that_a_sentence_compares_are_told_apart(shares: tuple[float, ...], en: object, nb: object) -> None:
    for lang, expected in (("en", en), ("nb", nb)):
        said = Say(lang).apart({str(i): share for i, share in enumerate(shares)})
        assert tuple(text.replace("\u00a0", " ") for text in said.values()) == expected


@given(st.lists(st.floats(0, 1), min_size=1, max_size=5))
def test_shares_that_differ_by_a_thousandth_of_a_percent_or_more_read_differently(shares: list[float]) -> None:
    shares = [round(share, 5) for share in shares]
    said = Say("en").apart({str(i): share for i, share in enumerate(shares)})
    assert len({*said.values()}) == len({*shares})
    assert len({len(text.partition(".")[2]) for text in said.values()}) == 1


def test_percents_stand_in_sentences_as_each_language_writes_them() -> None:
    """47% in English, 47 % in Norwegian, no .5 for 0.5: in every message, and of numbers that a run tells."""
    wrong = {"en": r"\d[ \u00a0\u202f]%|(?<![\d…])\.\d", "nb": r"\d%|(?<![\d…,=])\.\d"}
    for lang, pattern in wrong.items():
        said = [(name, key, t) for name, _ in catalogues() for key, t in words(lang, name).messages.items()]
        assert [row for row in said if re.search(pattern, row[2])] == []
    told = Sentences("nb", "progress")
    assert told("agrees with the annotator on 91.5% of held-out pairs").split(" i ")[1].startswith("91,5\u00a0% av")
    assert Evaluation(4, (1.9,), -4.92, 0.0, 6.0, 0.04, 0.0).row("nb")[1:3] == ("1,90", "−4,92")
