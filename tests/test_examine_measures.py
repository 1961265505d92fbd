"""Measures obey the laws that define them, on toys whose truth is known."""

import dataclasses
import itertools
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from klype.answers.forks import Forks
from klype.answers.tree import Tree, TreeAnswer, TreeSettings
from klype.examine.caching_source import Shape, answer_bytes, answer_flops
from klype.examine.calibration import TEMPERATURES, bins, calibration_error
from klype.examine.error_feedback import InterventionOutcome, WordSwap
from klype.examine.evidence import ByQuestion, Evidence, Forecast, JudgedAnswer
from klype.examine.interventions import Intervention
from klype.examine.measures import MEASURES, OF_RUNS, measure
from klype.examine.repetition import agreement, distinct, loop, repeated_share
from klype.examine.say import Say
from klype.examine.survival import AT_RISK, CLEAN, ENDED, ERRED, hazards, survival
from klype.examine.truth import DocumentTruth, divergence, point, s_and_kl, s_corpus
from klype.values import Distribution, Figure
from klype.words import LANGUAGES

simplex = st.lists(st.integers(0, 1000), min_size=2, max_size=12).filter(lambda w: sum(w) > 0)


def distribution(masses: list[float], top: int = 0) -> Distribution:
    """Whole, or only the ``top`` most probable."""
    q = np.array(masses, dtype=float) / np.sum(masses)
    order = np.argsort(-q, kind="stable")[: top or None]
    with np.errstate(divide="ignore"):
        logp = np.log(q[order])
    return Distribution(order, logp, float(1 - q[order].sum()) if top else 0.0)


def truth(masses: list[float]) -> dict[int, float]:
    return {i: mass / sum(masses) for i, mass in enumerate(masses) if mass}


@given(simplex)
def test_the_truth_itself_diverges_by_nothing(masses: list[int]) -> None:
    at = point(truth(masses), distribution(masses))
    assert at.s_low == pytest.approx(1)
    assert at.overlap == pytest.approx(1)
    for name in ("kl", "kl_acceptable", "jensen_shannon"):
        assert getattr(at, name) == pytest.approx(0, abs=1e-9)
    assert at.brier == pytest.approx(1 - sum(p * p for p in truth(masses).values()))


@given(st.integers(2, 10).flatmap(lambda n: st.tuples(*[st.lists(st.integers(0, 99), min_size=n, max_size=n)] * 2)))
def test_comparisons_equal_their_definitions(both: tuple[list[int], list[int]]) -> None:
    p_raw, q_raw = both
    if not sum(p_raw) or not sum(q_raw):
        return
    p, q = np.array(p_raw) / sum(p_raw), np.array(q_raw) / sum(q_raw)
    at = point(truth(p_raw), distribution(q_raw))
    assert at.s_low == at.s_high == pytest.approx(q[p > 0].sum())
    assert at.overlap == pytest.approx(1 - abs(p - q).sum() / 2)
    middle = (p + q) / 2
    js = sum(x * math.log(x / m) for x, m in zip([*p, *q], [*middle, *middle], strict=True) if x > 0) / 2
    assert at.jensen_shannon == pytest.approx(js, abs=1e-12)
    impossible = bool(((p > 0) & (q == 0)).any())
    kl = math.inf if impossible else sum(x * math.log(x / y) for x, y in zip(p, q, strict=True) if x > 0)
    assert at.kl == pytest.approx(kl, abs=1e-9)
    assert at.kl >= 0
    assert at.brier == pytest.approx(sum(p[v] * ((q - np.eye(len(q))[v]) ** 2).sum() for v in range(len(q))))


@given(st.lists(st.integers(1, 999), min_size=3, max_size=12), st.integers(1, 11), st.data())
def test_a_partial_distribution_bounds_s_and_bounds_nest(masses: list[int], top: int, data: st.DataObject) -> None:
    p = truth([m if data.draw(st.booleans()) else 0 for m in masses[:-1]] + [1])
    exact = point(p, distribution(masses)).s_low
    bounds = [point(p, distribution(masses, k)) for k in range(1, min(top, len(masses) - 1) + 1)]
    for at in bounds:
        assert at.s_low - 1e-9 <= exact <= at.s_high + 1e-9
        assert at.kl is None
    for wide, narrow in itertools.pairwise(bounds):
        assert wide.s_low <= narrow.s_low + 1e-9
        assert narrow.s_high <= wide.s_high + 1e-9


def test_sum_of_kl_over_a_chain_is_the_kl_of_its_sequences() -> None:
    """Two words from a bigram chain: averaged over documents drawn from p, Σ KL a document is the sequences' KL."""
    p1, q1 = [0.3, 0.7], [0.5, 0.5]
    p2, q2 = [[0.9, 0.1], [0.2, 0.8]], [[0.6, 0.4], [0.3, 0.7]]
    sequences = list(itertools.product(range(2), range(2)))
    exact = sum(p1[a] * p2[a][b] * math.log(p1[a] * p2[a][b] / (q1[a] * q2[a][b])) for a, b in sequences)
    said = [[distribution(q1), distribution(q2[a])] for a in (0, 1)]
    points = [[point(truth(p1), said[a][0]), point(truth(p2[a]), said[a][1])] for a in [0] * 30 + [1] * 70]
    assert 2 * divergence(points, "kl").value == pytest.approx(exact)
    assert s_corpus(points).value == pytest.approx(1)
    # the same of all tokens at a time, where a second, impossible word takes a part of q
    whole = [DocumentTruth.of([9, a, 0], [truth(p1), truth(p2[a])], 1) for a in [0] * 30 + [1] * 70]
    logp = [np.log([[*q1, 0.0001], [*q2[a], 0.25]]) - np.log([[1.0001], [1.25]]) for a in [0] * 30 + [1] * 70]
    flat = s_and_kl(whole, logp)
    assert flat["kl"].value == pytest.approx(exact + math.log(1.0001) + math.log(1.25))
    assert flat["s"].value == pytest.approx((1 / 1.0001 + 1 / 1.25) / 2)
    assert flat["s"].n == flat["kl"].n == 100


def test_what_a_partial_or_impossible_distribution_leaves_undefined_says_why() -> None:
    partial = [[point(truth([1, 1, 1]), distribution([5, 3, 2], top=2))]] * 3
    assert "most probable" in divergence(partial, "kl").why
    infinite = [[point(truth([1, 1]), distribution([1, 0]))]] * 3
    assert "no probability" in divergence(infinite, "kl").why
    by_hand = (0.5 * math.log(2 / 3) + 0.5 * math.log(2) + math.log(4 / 3)) / 2
    assert divergence(infinite, "jensen_shannon").value == pytest.approx(by_hand)


def answered(question: str, said: int, ended: str, error: int | None = None, **more: object) -> JudgedAnswer:
    return JudgedAnswer(question, ("w",) * said, ended, first_error=error, **more)  # type: ignore[arg-type]


chains = st.lists(
    st.tuples(st.integers(0, 5), st.integers(1, 6), st.sampled_from(["error", "stop", "length"])),
    min_size=2,
    max_size=40,
)


@given(chains)
def test_who_is_open_or_ended_right_has_survived_and_survival_never_rises(rows: list[tuple[int, int, str]]) -> None:
    answers = [
        answered(str(q), length, "stop" if end == "stop" else "length", length if end == "error" else None)
        for q, length, end in rows
    ]
    curves = survival(answers)
    still_open, ended = 1.0, 0.0
    for row, r in zip(hazards(answers).mean(axis=0), curves.r, strict=True):
        clean = 1 - row[ERRED] / max(row[AT_RISK], 1e-9)
        ends = row[ENDED] / max(row[CLEAN], 1e-9)
        still_open, ended = still_open * clean * (1 - ends), ended + still_open * clean * ends
        assert r.value == pytest.approx(still_open + ended)
    for figures in (curves.r, curves.k):
        told = [figure for figure in figures if figure.value is not None]
        assert all(b.value <= a.value + 1e-12 for a, b in itertools.pairwise(told))
        assert all(f.low is None or f.low <= f.value <= f.high for f in told)
        assert all(figure.why for figure in figures if figure.low is None)


@given(chains)
def test_without_censoring_r_is_the_share_without_an_error(rows: list[tuple[int, int, str]]) -> None:
    answers = [answered(str(q), length, "stop", length if end == "error" else None) for q, length, end in rows]
    for t, figure in enumerate(survival(answers).r, 1):
        share = np.mean([answer.first_error is None or answer.first_error > t for answer in answers])
        assert figure.value == pytest.approx(share)


def test_k_stops_where_fewer_than_ten_questions_are_at_risk() -> None:
    """Twelve answers at first, four of a fifth word: where nobody is left a hazard of 0 would keep K too high."""
    answers = [answered(str(i), 3 if i < 8 else 9, "stop", s=(0.8,) * (4 if i < 8 else 10)) for i in range(12)]
    curves = survival(answers)
    assert [figure.value is not None for figure in curves.k] == [True] * 4 + [False] * 6
    assert all("fewer than ten" in figure.why for figure in curves.k[4:] + curves.difference[4:])
    assert all(figure.value is not None for figure in curves.r)
    at_last = measure(Evidence(answers))["would_survive"]
    assert at_last.value == pytest.approx(0.8**4)


def test_a_constant_hazard_is_s_to_the_power_t() -> None:
    answers = [answered(str(i), 9, "length", s=(0.9,) * 9) for i in range(50)]
    curves = survival(answers)
    for t in range(9):
        assert curves.k[t].value == pytest.approx(0.9 ** (t + 1))
        assert curves.r[t].value == pytest.approx(0.9 ** (t + 1))
        assert curves.difference[t].value == pytest.approx(0, abs=1e-12)
    assert curves.s.value == pytest.approx(0.9)


@pytest.mark.slow
def test_questions_that_differ_bend_the_curve_up_and_positions_that_differ_down() -> None:
    """TRUTH: hazards that vary with the question only give K ≥ S̄^n, with position only K ≤ S̄^n. Beside each position's
    own hazard only the former is a dependence."""
    rng = np.random.default_rng(0)
    questions = survival([simulate(rng, str(i), [float(e)] * 12) for i, e in enumerate(rng.beta(0.5, 9.5, 1500))])
    positions = survival([simulate(rng, str(i), [0.01] * 10 + [0.2] * 10) for i in range(1500)])
    assert questions.difference[-1].low > 0
    assert questions.k[-1].value > questions.independent[-1].value
    assert positions.k[-1].value < positions.independent[-1].value
    assert [figure.value for figure in positions.difference] == pytest.approx([0] * 20, abs=1e-9)


def simulate(rng: np.random.Generator, question: str, errors: list[float]) -> JudgedAnswer:
    hit = next((t for t, e in enumerate(errors, 1) if rng.random() < e), None)
    s = tuple(1 - e for e in errors[: hit or len(errors)])
    return dataclasses.replace(answered(question, hit or len(errors), "length", hit), s=s)


def test_no_error_seen_is_not_certainty() -> None:
    figure = survival([answered(str(i), 3, "stop") for i in range(20)]).r[-1]
    assert figure.value == 1
    assert figure.low == pytest.approx(0.025 ** (1 / 20))


@pytest.mark.slow
@pytest.mark.parametrize("n", [10, 30, 100, 300])
def test_bins_hold_ten_questions_at_least(n: int) -> None:
    said = np.linspace(0.01, 0.99, n)
    table = bins(said, (said > 0.5).astype(float), range(n))
    assert len(table) == max(1, min(10, n // 10))
    assert all(figure.n >= 10 for _, figure in table)


def test_the_calibration_error_of_an_honest_forecaster_may_be_nothing() -> None:
    """Ten answers, one a bin, left nothing for chance: 0 was never in the interval."""
    rng = np.random.default_rng(1)
    held = []
    for _ in range(200):
        said = rng.random(10)
        figure = calibration_error(said, (rng.random(10) < said).astype(float), range(10))
        assert figure.low <= figure.value <= figure.high
        held.append(figure.low == 0)
    assert np.mean(held) >= 0.93
    all_right = calibration_error([0.9] * 10, [1.0] * 10, range(10))
    assert all_right.low == 0
    assert all_right.high > 0.1


def test_a_large_calibration_error_of_many_is_within_its_interval_however_many() -> None:
    rng = np.random.default_rng(2)
    for n in (300, 3000, 30_000):
        figure = calibration_error(np.full(n, 0.9), (rng.random(n) < 0.1).astype(float), range(n))
        assert figure.low < 0.8 < figure.high
        assert figure.high - figure.low == pytest.approx(2 * 1.96 * 0.3 / n**0.5, rel=0.1)


def test_an_honest_forecaster_has_no_calibration_error_and_a_boaster_has_his_gap() -> None:
    rng = np.random.default_rng(0)
    said = rng.random(4000)
    came = (rng.random(4000) < said).astype(float)
    honest = calibration_error(said, came, range(4000))
    assert honest.value < 0.02
    assert calibration_error(said, said, range(4000)).value == pytest.approx(0, abs=0.02)
    boaster = calibration_error(np.full(4000, 0.9), (rng.random(4000) < 0.6).astype(float), range(4000))
    assert boaster.low <= 0.3 <= boaster.high
    table = bins(said, came, range(4000))
    assert sum(figure.n for _, figure in table) == 4000
    assert sum(figure.low <= p <= figure.high for p, figure in table) >= 8


def test_repetition() -> None:
    assert repeated_share(["a", "b", "c", "d", "e", "f"]) == 0
    assert repeated_share(["a", "a", "a", "a", "a", "a"]) == pytest.approx(1 - 1 / 3)
    assert repeated_share(["a", "b", "c"]) is None
    assert distinct([["a", "b", "c"], ["a", "b", "d"]]) == pytest.approx(3 / 4)
    assert loop(["x", "a", "b", "a", "b", "a", "b"]) == 4
    assert loop(["a", "b", "c", "d"]) == 0


@given(st.lists(st.sampled_from("abc"), min_size=2, max_size=7))
def test_agreement_is_the_share_of_equal_pairs(answers: list[str]) -> None:
    pairs = list(itertools.combinations(answers, 2))
    assert agreement(answers) == pytest.approx(sum(a == b for a, b in pairs) / len(pairs))


@given(st.integers(1, 40), st.integers(1, 40))
def test_flops_add_up_token_by_token(prompt: int, answer: int) -> None:
    shape = Shape(matrices=1000, layers=2, width=8)
    matrices, attention = 2 * shape.matrices, 4 * shape.layers * shape.width  # of a token; of a token of its context
    assert answer_flops(shape, prompt, answer) == sum(matrices + attention * i for i in range(1, prompt + answer))
    assert answer_flops(shape, prompt, 0) == 0


@given(st.integers(1, 40), st.integers(1, 40))
def test_bytes_add_up_pass_by_pass(prompt: int, answer: int) -> None:
    shape = Shape(1000, 2, 8, weight_bytes=4000, cache_bytes=64)
    first = shape.weight_bytes + 64 * prompt
    later = [shape.weight_bytes + 64 * (prompt + i + 1) for i in range(answer - 1)]
    assert answer_bytes(shape, prompt, answer) == first + sum(later)


@pytest.mark.parametrize(("text", "share"), [("a b c d", 0), ("a b a b a b", 4 / 6), ("x y y y y", 3 / 5)])
def test_a_loop_is_what_only_repeats_the_words_before(text: str, share: float) -> None:
    said = Evidence([JudgedAnswer(q, tuple(text.split()), "length") for q in "ab"])
    assert measure(said)["loops"].value == pytest.approx(share)


@settings(max_examples=20)
@given(st.integers(1, 5))
def test_every_measure_is_left_out_or_has_a_value_inside_its_interval(samples: int) -> None:
    """A full evidence has them all; an empty one has none; each is explained in every language."""
    answers = [
        JudgedAnswer(
            f"q{i}", tuple(f"the dog drank {i} of {j}".split()), "stop", right=(i + j) % 3 > 0, word_for_word=i % 2 > 0,
            polite=True, concise=j > 0, score=float(i), s=(0.9,) * 7, passes=7, tokens=7, flops=7e6, bytes_moved=3e6,
            seconds=0.1, joules=0.5, meaning=j % 2, entropy=1.0 + j, drawn_logp=-4.0 - i - j, copied=0.1,
        )
        for i in range(10)
        for j in range(samples)
    ]  # fmt: skip
    documents = [[point(truth([2, 1, 1]), distribution([3, 2, 1]))] * 4] * 5
    language = {f"q{i}": ("a", "b", "c", "d", "e") for i in range(10)}
    errors = {"right": Figure(0.04, 0.01, 0.26), "same": Figure(0.05, 0.02, 0.2)}
    more = {"errors": errors, "language": language, **more_evidence()}
    figures = measure(Evidence(answers, documents, judge="meaning", **more))
    names = {row.name for row in MEASURES}
    alone = {"same_text", "same_meaning", "common_prefix", "meaning_entropy"}  # need two draws
    assert set(figures) == (names if samples > 1 else names - alone)
    for figure in figures.values():
        assert figure.why if figure.low is None else figure.low <= figure.value <= figure.high
        assert figure.unit
    assert measure(Evidence()) == {}


def more_evidence() -> dict[str, Any]:
    """What experiments, trees and truths add."""
    intervention = Intervention("q", (), (1, 2, 2))
    arms = [{"wrong": (0.5 + i / 99,) * 3, "right": (0.1 + i / 99,) * 3, "near": (0.2,) * 3} for i in range(40)]
    after = [
        InterventionOutcome(dataclasses.replace(intervention, question=str(i)), arm, arm, arm, (0.3,) * 3)
        for i, arm in enumerate(arms)
    ]
    found = TreeAnswer("a", 0.4, 0.5, "m", (1, 0))
    tree = Tree((found,), (), 0.1, 0.0, 9, (0.1, 0.9), (0.1, 0.5), "budget", TreeSettings())
    forks = [Forks("a", (), (0.5, None), i % 4 if i % 3 else None, 0.01, (), None, 8) for i in range(12)]
    scale = np.log(np.array(TEMPERATURES)) ** 2
    sums = [ByQuestion(2.0 + i, 1.0 + i, tuple((scale * (1 + i)).tolist())) for i in range(9)]
    other = [WordSwap(str(i), 0.9, i / 20) for i in range(9)]
    told = [Forecast(0.1 * (i % 10), float(i % 2), f"q{i % 9}") for i in range(90)]
    return {"told": told, "sums": sums, "outcomes": after, "trees": [tree], "forks": forks, "replaced": other}


def test_every_measure_is_explained_in_both_languages() -> None:
    for lang in LANGUAGES:
        say = Say(lang)
        assert all(f"measure.{row.name}_how" in say.words.messages for row in MEASURES)
        assert all(f"measure.{row.name}" in say.words.messages for row in (*MEASURES, *OF_RUNS))
        assert all(say.unit(row.unit) or row.unit == "share" for row in (*MEASURES, *OF_RUNS))


def test_energy_of_no_right_answer_is_a_bound() -> None:
    wrong = [JudgedAnswer(str(i), ("x",), "stop", right=False, joules=2.0) for i in range(10)]
    figure = measure(Evidence(wrong)).get("joules_per_right")
    assert figure is not None
    assert "at least" in figure.why
    right = [dataclasses.replace(answer, right=True) for answer in wrong]
    assert measure(Evidence(right))["joules_per_right"].value == pytest.approx(2)


@pytest.mark.parametrize("repeats", [1, 3])
def test_who_speaks_as_the_language_does_repeats_no_more_than_it(repeats: int) -> None:
    language = {f"q{i}": ("a", "b", "c", "d", str(i)) * repeats for i in range(5)}
    same = [JudgedAnswer(question, words, "stop") for question, words in language.items()]
    figure = measure(Evidence(same, language=language))["repetition_beyond"]
    assert figure.value == 0
    assert (figure.low or 0) <= 0 <= (figure.high or 0)
    loops = [JudgedAnswer(question, ("a",) * 8, "stop") for question in language]
    own = {1: 0.0, 3: 1 - 5 / 12}[repeats]
    found = measure(Evidence(loops, language=language))["repetition_beyond"].value
    assert found == pytest.approx(1 - 1 / 5 - own)
