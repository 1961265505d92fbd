"""The whole examination on toys: a model that is the truth, one that errs alike everywhere, and what a budget buys."""

from __future__ import annotations

import itertools
import math
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from klype.answers import distribution_bounds
from klype.errors import KlypeError, UsageError
from klype.examine.caching_source import Shape
from klype.examine.compare import failure, parse
from klype.examine.evidence import DistributionCache, JudgedAnswer, judged_answers, read_distributions
from klype.examine.exam import ExamResult, examine, probe
from klype.examine.examination_report import document, verdict
from klype.examine.examined_model import SHARE, EvalTarget, ExamSpeed, in_time, plan, within
from klype.examine.say import Say
from klype.examine.settings import ExamSettings
from klype.examine.truth import Reader
from klype.judge.meaning import text_meaning
from klype.values import Distribution, Figure, Question, Tokens, Trace, Verdict
from tests.toy_sources import enumerate_answers, table_source


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.mark.parametrize("lang", ["en", "nb"])
def test_a_sentence_of_the_verdict_ends_where_its_second_half_was_not_measured(lang: str) -> None:
    """Half of them go on with what only some models have: references, a judge, an answer that one word decided."""
    known = {
        name: Figure(0.5, 0.4, 0.6, 12, "share").json() for name in ("right", "word_for_word", "fork", "fork_word", "s")
    }
    for names in itertools.chain.from_iterable(itertools.combinations(known, n) for n in range(len(known) + 1)):
        figures = {name: known[name] for name in names}
        told = verdict({"figures": {"0.7": figures}, "main": "0.7", "questions": 12, "judge": "meaning"}, Say(lang))
        assert not re.search(r"[;,:](?= [A-ZÅ]|$)", "\n".join(told), re.M), names


TO_P = ("kl", "kl_acceptable", "jensen_shannon", "overlap", "log_score", "brier", "calibration", "best_temperature",
        "excess_error")  # fmt: skip


class Chain:
    """The truth as a table: row i after token i; a mistake leaves it where it was."""

    def __init__(self, p_VV: np.ndarray, at: int) -> None:
        self.p_VV, self.at = p_VV, at

    def next(self) -> dict[int, float]:
        return {i: float(p) for i, p in enumerate(self.p_VV[self.at]) if p > 0}

    def push(self, token: int) -> float:
        p = float(self.p_VV[self.at][token])
        self.at = token if p > 0 else self.at
        return p


TRUTH = np.array([[1, 0, 0, 0], [0.2, 0.4, 0.4, 0], [0.5, 0.3, 0.2, 0], [1, 0, 0, 0]], dtype=float)
ERRING = TRUTH * 0.9 + 0.1 * np.eye(4)[3]
ERRING[3] = ERRING[1]


def examinee(q_VV: np.ndarray, n: int = 12) -> EvalTarget:
    source, codec = table_source(q_VV)
    questions = tuple(Question(f"q{i}", f"question {i}", answers=("a", "")) for i in range(n))
    return EvalTarget(
        source=source,
        name="toy",
        identity=str(q_VV.tolist()),
        vocabulary=4,
        questions=questions,
        prompts=tuple((1,) for _ in questions),
        judge=lambda q, text, done: Verdict(text in q.answers, None, None, 1, math.nan),
        judge_name="word for word",
        meaning=text_meaning,
        reader=lambda question: Reader(lambda: Chain(TRUTH, 1)),
        token_bytes=codec.token_bytes,
    )


SPEED = ExamSpeed(tokens=8.0, speed=1000.0, tree_speed=1000.0, fork_tokens=36.0)
SETTINGS = ExamSettings(
    (0.0, 1.0), n=6, limit=8, trees=2, tree_budget=60, forks=2, fork_samples=8, intervention_samples=2
)


@pytest.fixture(scope="module")
def honest(tmp_path_factory: pytest.TempPathFactory) -> ExamResult:
    return examine(examinee(TRUTH), SETTINGS, tmp_path_factory.mktemp("honest"))


@pytest.fixture(scope="module")
def erring(tmp_path_factory: pytest.TempPathFactory) -> ExamResult:
    return examine(examinee(ERRING), SETTINGS, tmp_path_factory.mktemp("erring"))


def test_the_truth_itself_has_no_error_no_divergence_and_the_most_honest_temperature(honest: ExamResult) -> None:
    figures = document(honest)["figures"]["1"]
    assert figures["s"]["value"] == pytest.approx(1)
    assert figures["survival"]["value"] == pytest.approx(1)
    assert figures["calibration"]["value"] == pytest.approx(0, abs=1e-5)
    assert figures["best_temperature"]["value"] == pytest.approx(1, abs=0.02)
    assert all(sums.own_kl == pytest.approx(0, abs=1e-6) for sums in honest.evidence[1.0].sums)
    assert "feedback" not in figures  # nothing wrong could be forced


def test_the_truth_beside_itself_has_the_least_log_score_and_whole_overlap(honest: ExamResult) -> None:
    figures = document(honest)["figures"]["1"]
    assert figures["kl"]["value"] == pytest.approx(0, abs=1e-5)
    assert figures["overlap"]["value"] == pytest.approx(1, abs=1e-5)
    assert figures["s_corpus"]["value"] == pytest.approx(1, abs=1e-5)
    beginnings = [t.tokens[:i] for t in honest.true for i in range(len(t.steps))]
    entropies = [
        -sum(p * math.log(p) for p in TRUTH[row] if p > 0) for row in ((b[-1] if b else 1) for b in beginnings)
    ]
    assert figures["log_score"]["value"] == pytest.approx(np.mean(entropies), abs=1e-4)


def test_energy_is_shared_out_by_passes_where_it_can_be_read(tmp_path: Path) -> None:
    used = itertools.count(step=10.0)
    found = examine(examinee(ERRING), SETTINGS, tmp_path, joules=lambda: next(used))
    traces = [trace for group in found.traces[1.0] for trace in group]
    assert math.fsum(trace.joules or 0.0 for trace in traces) == pytest.approx(10)  # one chunk of questions
    assert {round((t.joules or 0.0) / t.passes, 9) for t in traces} == {
        round((traces[0].joules or 0.0) / traces[0].passes, 9)
    }
    assert document(found)["time"]["figures"]["1"]["joules"]["value"] > 0


def test_the_curve_of_risk_ends_at_the_share_wrong(erring: ExamResult) -> None:
    made = document(erring)
    curve, right = made["selective"]["1"], made["figures"]["1"]["right"]["value"]
    assert curve[-1]["kept"] == 1
    assert curve[-1]["wrong"] == pytest.approx(1 - right)
    assert [row["kept"] for row in curve] == sorted(row["kept"] for row in curve)


def test_a_constant_error_survives_as_s_to_the_n(erring: ExamResult) -> None:
    made = document(erring)
    assert made["figures"]["1"]["s"]["value"] == pytest.approx(0.9, abs=1e-5)
    pairs = list(zip(made["would_survive"]["1"], made["independent"]["1"], strict=True))
    told = [(k, s) for k, s in pairs if k["value"] is not None]
    assert told == pairs[: len(told)]
    assert len(told) > 3
    for k, s in told:
        assert k["value"] == pytest.approx(0.9 ** k["t"], abs=1e-4)
        assert s["value"] == pytest.approx(k["value"], abs=1e-6)
    assert made["figures"]["1"]["weibull_shape"]["value"] == pytest.approx(1, abs=0.02)
    assert made["figures"]["1"]["feedback"]["value"] == pytest.approx(0, abs=0.2)


def test_products_of_s_over_right_answers_are_the_probability_of_no_error() -> None:
    """E over x ~ q restricted to A of Π S(x_t) = P(no error by n), by enumeration."""
    rng = np.random.default_rng(0)
    q_VV = rng.dirichlet(np.ones(4), size=4)
    for n in (1, 2, 3):
        no_error, products = 0.0, 0.0
        todo: list[tuple[Tokens, int, float, float, float]] = [((), 1, 1.0, 1.0, 1.0)]
        for _ in range(n):
            grown = []
            for tokens, at, p, restricted, product in todo:
                possible = [v for v in range(4) if TRUTH[at][v] > 0] if at != 0 else [0]
                s = float(q_VV[at][possible].sum()) if at != 0 else 1.0
                for v in possible:
                    share = float(q_VV[at][v]) if at != 0 else 1.0
                    grown.append(((*tokens, v), v, p * share, restricted * share / s, product * s))
            todo = grown
        for _, _, p, restricted, product in todo:
            no_error += p
            products += restricted * product
        assert products == pytest.approx(no_error)


def test_s_is_the_mass_on_what_can_follow_at_every_right_beginning(erring: ExamResult) -> None:
    reader = Reader(lambda: Chain(TRUTH, 1))
    for trace in [trace for group in erring.traces[1.0] for trace in group]:
        read = read_distributions(trace, DistributionCache(reader, 1.0), 4)
        s, error = read["s"], read["first_error"]
        assert len(s) == (error or len(trace.steps))
        assert all(value == pytest.approx(0.9, abs=1e-5) for value in s)
        assert error == next((t for t, token in enumerate(trace.tokens, 1) if token == 3), None)


@pytest.mark.parametrize("temperature", [1e-4, 1e-300, 1e-320])
def test_however_near_to_0_a_temperature_is_it_is_like_0(temperature: float) -> None:
    q = Distribution(np.array([1, 0, 2, 3]), np.log([0.6, 0.3, 0.1, 1e-30]))
    cold = DistributionCache(Reader(lambda: Chain(TRUTH, 1)), temperature)
    assert distribution_bounds.temperature_bounds(q, temperature, 4).low_K.tolist() == [1, 0, 0, 0]
    assert (cold.entropy((), q), cold.confidence((), q), cold.s((), q)) == (0.0, 1.0, 1.0)
    assert cold.kl((), q) > 100  # the truth is not so sure
    assert np.exp(distribution_bounds.whole_at(q, temperature).logp).tolist() == [1, 0, 0, 0]


def test_equal_answers_are_judged_once_and_are_what_each_is_alone(erring: ExamResult) -> None:
    asked: list[tuple[str, bool]] = []

    def judge(question: Question, text: str, finished: bool) -> Verdict:
        asked.append((text, finished))
        return erring.target.judge(question, text, finished)

    one = replace(erring.target, judge=judge)
    traces = [trace for group in erring.traces[1.0] for trace in group]

    def judged(traces: list[Trace]) -> list[JudgedAnswer]:
        cache = DistributionCache(Reader(lambda: Chain(TRUTH, 1)), 1.0)
        return judged_answers(one, one.questions[0], traces, cache)

    together = judged(traces)
    different = {(trace.tokens, trace.ended) for trace in traces}
    assert len(asked) == len(different) < len(traces)
    alone = [judged([trace])[0] for trace in traces]
    assert together == alone


def test_the_trees_hold_the_enumeration(erring: ExamResult) -> None:
    exact = {"".join(".abc"[t] for t in tokens): p for tokens, p in enumerate_answers(ERRING, 1, 8).items()}
    for tree in erring.evidence[1.0].trees:
        for answer in tree.answers:
            assert answer.low <= exact[answer.text] <= answer.high


def test_after_an_answer_without_a_word_the_next_keeps_its_own_fork(erring: ExamResult) -> None:
    (first, *others), *rest = erring.traces[1.0]
    traces = [[replace(first, steps=()), *others], *rest]
    evidence = replace(erring.evidence[1.0], forks=erring.evidence[1.0].forks[1:])
    found = replace(erring, traces={**erring.traces, 1.0: traces}, evidence={**erring.evidence, 1.0: evidence})
    without, second = document(found)["examples"][:2]
    assert without["own"] is None
    assert len(second["own"]) == 1 + len(rest[0][0].steps)


def test_a_second_start_asks_nothing_that_is_kept(tmp_path: Path) -> None:
    first = examine(examinee(ERRING), SETTINGS, tmp_path)
    asked: list[str] = []

    def forbid(*_: object) -> None:
        asked.append("model")
        raise AssertionError("the model was asked again")

    again = examinee(ERRING)
    again.source.generate = forbid  # type: ignore[method-assign, assignment]
    again.source.score = forbid  # type: ignore[method-assign, assignment]
    second = examine(again, SETTINGS, tmp_path)
    assert asked == []
    one, other = document(first), document(second)
    assert {k: v for k, v in one.items() if k != "time"} == {k: v for k, v in other.items() if k != "time"}


def test_one_question_and_one_answer_are_examined_and_say_so(tmp_path: Path) -> None:
    settings = ExamSettings((1.0,), n=1, limit=4, trees=1, forks=1, fork_samples=4)
    figures = document(examine(examinee(ERRING, 1), settings, tmp_path))["figures"]["1"]
    assert figures["right"]["low"] is None
    assert "same_meaning" not in figures


def test_answers_that_never_end_are_cut_and_counted(tmp_path: Path) -> None:
    endless = np.array([[1, 0, 0, 0], [0, 0.5, 0.5, 0], [0, 0.5, 0.5, 0], [0, 1, 0, 0]], dtype=float)
    settings = ExamSettings((1.0,), n=3, limit=5, trees=1, tree_budget=40, forks=1, fork_samples=4)
    found = examine(examinee(endless), settings, tmp_path)
    assert all(answer.ended == "length" for answer in found.evidence[1.0].answers)
    (tree,) = found.evidence[1.0].trees
    assert all(answer.low < 1e-80 for answer in tree.answers)
    assert tree.unexplored == pytest.approx(1)
    document(found)


def test_values_that_are_not_numbers_are_refused(tmp_path: Path) -> None:
    broken = examinee(ERRING)
    with torch.no_grad():
        broken.source.engine.model.head.weight[0, 0] = math.nan  # type: ignore[attr-defined]
    with pytest.raises(KlypeError):
        examine(broken, SETTINGS, tmp_path)


@pytest.mark.parametrize("budget", [60, 500, 5_000, 100_000])
def test_a_budget_is_kept_to(budget: int) -> None:
    planned = within(budget, 200, ExamSettings(), SPEED, True)
    assert planned.total <= budget
    if budget == 100_000:
        assert planned.questions == 200
    with pytest.raises(UsageError):
        within(1, 200, ExamSettings(), SPEED, True)


def test_minutes_are_kept_to_by_trees_and_forks_of_fewer_questions() -> None:
    asked, slow = ExamSettings((0.7, 1.0)), replace(SPEED, tree_speed=20.0)
    whole = plan(200, asked, slow, False)
    assert in_time(whole.seconds / SHARE + 1, 200, asked, slow, False) == whole
    fewer = in_time(whole.seconds * 0.8, 200, asked, slow, False).settings
    assert 2 <= fewer.trees < asked.trees
    assert 2 <= fewer.forks < asked.forks
    assert plan(200, fewer, slow, False).seconds <= whole.seconds * 0.8
    least = in_time(1e-9, 200, asked, slow, False).settings
    assert (least.trees, least.forks, least.n) == (2, 2, asked.n)
    none = replace(asked, trees=0, forks=1)
    assert in_time(1e-9, 200, none, slow, False).settings == none


@pytest.mark.slow
def test_the_probe_foretells_what_forks_draw(tmp_path: Path) -> None:
    """On average over answers: what is drawn is within half as much again of what was planned."""
    one = examinee(ERRING, 60)
    settings = ExamSettings((1.0,), n=4, limit=12, trees=1, tree_budget=60, forks=60, fork_samples=32, interventions=0)
    pace = probe(one, settings)
    planned = plan(60, settings, pace, False).passes["forks"]
    without = examine(one, replace(settings, forks=0), tmp_path / "without")
    spent = examine(one, settings, tmp_path / "with").passes - without.passes
    assert planned / 1.5 < spent < planned * 1.5


def test_conditions_read_measure_temperature_sign_and_number(honest: ExamResult) -> None:
    made = document(honest)
    assert str(parse(" right@0.70 <= 0.8 ")) == "right@0.7<=0.8"
    assert failure(parse("s<1.1"), made)
    assert failure(parse("s@1<0.5"), made) == ""
    with pytest.raises(UsageError, match="Did you mean"):
        parse("calibraton>0.1")
    with pytest.raises(UsageError, match="not examined"):
        failure(parse("s@2<1"), made)
    with pytest.raises(KlypeError, match="could not be measured"):
        failure(parse("copied>0.1"), made)


def test_trees_grow_together_as_far_as_there_is_room() -> None:
    one, small = examinee(TRUTH), Shape(matrices=100, layers=1, width=8, cache_bytes=64)
    assert one.trees_together(32) == 1  # nobody knows how large a token's keys and values are
    assert replace(one, shape=small).trees_together(32) == 16
    large = replace(small, cache_bytes=46_080)
    assert 1 < replace(one, shape=large, prompts=((1,) * 8,)).trees_together(32) < 16
    assert replace(one, shape=large, prompts=((1,) * 4000,)).trees_together(32) == 1


def test_trees_that_grow_together_are_examined_alike(tmp_path: Path) -> None:
    one = examinee(ERRING)
    settings = replace(SETTINGS, temperatures=(1.0,), trees=6, forks=0, interventions=0)
    shape = Shape(matrices=100, layers=1, width=8, cache_bytes=64)
    alone, together = (
        document(examine(who, settings, tmp_path / name))
        for who, name in ((one, "alone"), (replace(one, shape=shape), "together"))
    )
    assert together["settings"]["trees"] == 6
    assert [tree["expansions"] for tree in together["trees"]] == [tree["expansions"] for tree in alone["trees"]]
    for a, b in zip(together["trees"], alone["trees"], strict=True):
        assert a["unexplored"] == pytest.approx(b["unexplored"], abs=1e-6)


def test_every_part_is_told_when_it_begins_and_how_far_it_is(tmp_path: Path) -> None:
    told: list[tuple[str, int, int]] = []
    examine(examinee(ERRING), SETTINGS, tmp_path, lambda *about: told.append(about))
    parts = list(dict.fromkeys(part for part, _, _ in told))
    assert parts == ["truth", "answers 0", "answers 1", "feedback 1", "trees", "forks"]
    for part in parts:
        done = [(at, of) for name, at, of in told if name == part]
        assert done[0][0] == 0
        assert done[-1][0] == done[-1][1]
        assert [at for at, _ in done] == sorted(at for at, _ in done)
    told.clear()
    only = replace(SETTINGS, temperatures=(1.0,), trees=0, forks=0, interventions=0)
    examine(examinee(ERRING), only, tmp_path, lambda *about: told.append(about))
    assert {part for part, _, _ in told} == {"truth", "answers 1"}


def test_without_pairs_none_is_searched_for(tmp_path: Path) -> None:
    found = examine(examinee(ERRING), replace(SETTINGS, temperatures=(1.0,), pairs=0), tmp_path).evidence[1.0]
    assert found.dropped == 0
    assert {one.intervention.by_rule for one in found.outcomes} == {True}


def test_of_a_model_with_other_manners_the_truth_says_only_what_can_follow(tmp_path: Path) -> None:
    settings = ExamSettings(temperatures=(1.0,), n=3, limit=6, trees=0, forks=0, interventions=0)
    one = examinee(ERRING)
    plain, other = (
        document(examine(replace(one, other_manners=aligned), settings, tmp_path / str(aligned)))
        for aligned in (False, True)
    )
    for name in TO_P:
        assert plain["figures"]["1"][name]["value"] is not None, name
        assert other["figures"]["1"][name]["value"] is None, name
        assert "manners" in other["figures"]["1"][name]["why"]
    for name in ("right", "s", "s_corpus", "survival"):
        assert other["figures"]["1"][name] == plain["figures"]["1"][name]
    assert plain["calibration"]
    assert not other["calibration"]
    for lang, why in (("en", "changed the style of its answers"), ("nb", "en annen måte å svare på enn fasiten har")):
        said = [" ".join(verdict(found, Say(lang))) for found in (plain, other)]
        assert [why in text for text in said] == [False, True]
