"""The studio's own values: branches of answers, bars, flows, the formula; each against what it must equal."""

from __future__ import annotations

import json
import math
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from klype.answers.tree import Branch, Tree, TreeAnswer, TreeSettings
from klype.cli.examine import tell_plan
from klype.cli.terminal import Terminal
from klype.engine.sampling import shape
from klype.errors import UsageError
from klype.examine.charts import spikes
from klype.examine.examined_model import ExamPlan
from klype.examine.say import Say
from klype.examine.settings import ExamSettings
from klype.samplers import TokenCounts
from klype.studio.answer import split_at
from klype.studio.answer_paths_search import FlowNode, FoundPaths, exact, leaves, merge_answers, most_probable, prune
from klype.studio.divergence import (
    ExamRequest,
    corrected_formula,
    exam_document,
    exam_folder,
    in_error,
    printed_formula,
)
from klype.studio.elements import preferred_language, theme, to_browser_option, to_csv
from klype.studio.studio import Branches, Conversation, Conversations, Turn
from klype.studio.tokens import bars_of, pieces, sampling_probabilities, visible_text
from klype.values import Distribution, Sampling, Step
from klype.words import LANGUAGES, words
from tests.studio_toys import model, studio

SAMPLINGS = st.builds(
    Sampling,
    temperature=st.floats(0, 3),
    top_p=st.floats(0.05, 1),
    min_p=st.sampled_from([0.0, 0.01, 0.1, 0.4]),
)


def whole(seed: int, size: int = 30) -> Distribution:
    logits = torch.randn(size, generator=torch.Generator().manual_seed(seed)) * 2
    logp = logits.log_softmax(-1)
    order = logp.argsort(descending=True, stable=True)
    return Distribution(order.numpy(), logp[order].numpy())


def step(q: Distribution, place: int = 0, how: str = "drawn") -> Step:
    return Step(int(q.ids[place]), float(q.logp[place]), float(q.logp[place]), how, q)  # type: ignore[arg-type]


@given(st.integers(0, 99), SAMPLINGS)
def test_bars_are_what_the_engine_draws_from(seed: int, sampling: Sampling) -> None:
    q = whole(seed)
    logits_1V = torch.full((1, 30), -math.inf)
    logits_1V[0, torch.from_numpy(q.ids)] = torch.from_numpy(q.logp)
    engine_V = shape(logits_1V, sampling, None)[0].double().exp().numpy()
    np.testing.assert_allclose(sampling_probabilities(q, ((), ()), sampling, 30), engine_V[q.ids], atol=1e-6)
    found = bars_of(step(q, 29), ((), ()), sampling, 30)
    assert found is not None
    assert found.exact
    assert sum(bar.p for bar in found.bars) <= 1 + 1e-5
    assert [bar.token for bar in found.bars if bar.chosen] == [int(q.ids[29])]
    assert found.kept == int((engine_V > 0).sum())


def test_bars_are_of_the_tokens_that_were_biased_and_said() -> None:
    q, sampling = whole(3), Sampling(logit_bias=((5, 2.0),), repetition_penalty=1.5, frequency_penalty=0.5)
    logits_1V = torch.full((1, 30), -math.inf)
    logits_1V[0, torch.from_numpy(q.ids)] = torch.from_numpy(q.logp)
    counts_1V = torch.zeros(1, 30).index_add(1, torch.tensor([5, 5, 7]), torch.ones(1, 3))
    uses_1V = counts_1V.index_add(1, torch.tensor([1]), torch.ones(1, 1))
    engine_V = shape(logits_1V, sampling, TokenCounts(uses_1V, counts_1V))[0].double().exp().numpy()
    np.testing.assert_allclose(sampling_probabilities(q, ((1,), (5, 5, 7)), sampling, 30), engine_V[q.ids], atol=1e-6)


def test_bars_show_the_truth_even_where_the_model_does_not() -> None:
    q = whole(1)
    unlikely = int(q.ids[-1])
    found = bars_of(step(q), ((), ()), Sampling(), 30, {unlikely: 1.0})
    assert found is not None
    assert {bar.token: bar.truth for bar in found.bars}[unlikely] == 1.0
    assert all(bar.truth == 0.0 for bar in found.bars if bar.token != unlikely)
    assert bars_of(Step(3, -1.0, -1.0, "drawn", None), ((), ()), Sampling(), 30) is None


@given(st.integers(0, 50), st.floats(0.2, 1.0))
def test_bars_of_a_partial_distribution_promise_no_more_than_is_certain(seed: int, temperature: float) -> None:
    q = whole(seed)
    part = Distribution(q.ids[:8], q.logp[:8], float(np.exp(q.logp[8:]).sum()))
    sampling = Sampling(temperature=temperature)
    least = sampling_probabilities(part, ((), ()), sampling, 30)
    assert np.all(least <= sampling_probabilities(q, ((), ()), sampling, 30)[:8] + 1e-6)
    cut = sampling_probabilities(part, ((), ()), Sampling(temperature=temperature, top_p=0.5), 30)
    assert cut.sum() == pytest.approx(1) or np.array_equal(cut, least)


def test_a_letter_of_several_tokens_is_shown_as_that_letter() -> None:
    toy = model()
    lead, trail = (
        next(t for t in range(toy.vocabulary) if toy.opened.token_bytes(t) == byte) for byte in (b"\xc3", b"\xa5")
    )
    assert pieces(toy, [lead, trail]) == ["⋯", "å"]
    assert visible_text(toy, trail, [lead]) == "å"
    assert visible_text(toy, lead) == "⋯ (C3)"
    assert "\\x" not in visible_text(toy, lead) + visible_text(toy, trail, [lead])
    assert visible_text(toy, trail) == "\\xa5"  # no letter at all
    toy.stop()


@given(st.text(max_size=30))
def test_words_that_are_underlined_leave_the_text_as_it_is(text: str) -> None:
    words = set(text.split()[::2])
    found = split_at(text, words)
    assert "".join(piece for piece, _ in found) == text
    assert all(strange != other for (_, strange), (_, other) in pairwise(found))
    assert split_at("Hei, Kari! Hei.", {"Hei"}) == [("Hei", True), (", Kari! ", False), ("Hei", True), (".", False)]


def test_a_fork_begins_as_its_parent_and_keeps_the_rest() -> None:
    branches = Branches("m")
    first = branches.begin([1, 2], Sampling(), seed=7)
    q = whole(2)
    first.steps.extend(step(q, place) for place in (0, 1, 2))
    other = int(q.ids[9])
    made = branches.fork(1, other, Sampling(temperature=0.2))
    assert made.tokens == (int(q.ids[0]), other)
    assert (made.parent, made.at, made.seed, made.prompt) == (0, 1, 7, (1, 2))
    assert made.steps[1].source == "forced"
    assert made.steps[1].logp == pytest.approx(float(q.logp[9]))
    assert branches.current is made
    assert len(first.steps) == 3
    for at, token in ((3, 1), (-1, 1), (0, int(q.ids[0]))):
        branches.shown = 0
        with pytest.raises(UsageError):
            branches.fork(at, token, Sampling())


def test_a_model_hears_only_its_own_answers() -> None:
    def said(*names: str) -> dict[str, Branches]:
        found = {name: Branches(name) for name in names}
        for branches in found.values():
            branches.begin([1], Sampling(), seed=0).steps.append(step(whole(ord(branches.model))))
        return found

    talk = Conversation("k", [Turn("one", said("a", "b")), Turn("two", said("b"))])
    spoken = {name: str([int(whole(ord(name)).ids[0])]) for name in "ab"}
    decode = lambda tokens: str(list(tokens))
    assert [m["content"] for m in talk.messages("a", "three", decode)] == ["one", spoken["a"], "three"]
    b = [m["content"] for m in talk.messages("b", "three", decode)]
    assert b == ["one", spoken["b"], "two", spoken["b"], "three"]


def test_conversations_are_found_again_and_have_an_end() -> None:
    kept = Conversations(most=3)
    first = kept.get("")
    assert kept.get(first.key) is first
    others = [kept.get("made up") for _ in range(3)]
    assert len({c.key for c in (first, *others)}) == 4
    assert kept.get(first.key) is not first


answers = st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=6).map(tuple), min_size=1, max_size=60)


@given(answers, st.integers(1, 12))
def test_a_flow_loses_no_answer(texts: list[tuple[int, ...]], most: int) -> None:
    root = merge_answers([(tokens, tokens[-1]) for tokens in texts])

    def check(node: FlowNode) -> None:
        if node.children:
            assert sum(child.count for child in node.children) == node.count
        for child in node.children:
            check(child)

    def ways(node: FlowNode) -> list[tuple[tuple[int, ...], int]]:
        if not node.children:
            return [(node.tokens, node.count)]
        return [((*node.tokens, *tail), n) for child in node.children for tail, n in ways(child)]

    check(root)
    assert sorted(ways(root)) == sorted((t, texts.count(t)) for t in set(texts))
    small = prune(root, most)
    check(small)
    assert small.count == len(texts)
    assert leaves(small) <= max(most, 1) or leaves(small) <= leaves(root)


def test_a_wide_flow_becomes_small_enough() -> None:
    wide = merge_answers([((i, 1), 0) for i in range(256)])
    assert leaves(wide) == 256
    assert leaves(prune(wide)) == 1
    few = merge_answers([((i // 30, i % 30), 0) for i in range(256)] + [((0, 0), 0)] * 99)
    assert 1 < leaves(prune(few)) <= 40


@given(st.floats(0.01, 0.9999), st.integers(1, 300))
def test_the_formula_and_its_chain(s: float, n: int) -> None:
    assert corrected_formula(s, n) == pytest.approx(math.prod([s] * n))
    assert printed_formula(s, n) == pytest.approx(corrected_formula(1 - s, n))
    assert in_error(s, 1 - s, n) == pytest.approx(1 - s)  # an error that brings nothing
    assert in_error(s, 0.9, 1) == pytest.approx(1 - s)  # the first word has no error before it
    wrong = 0.0
    for _ in range(n):
        wrong = wrong * 0.6 + (1 - wrong) * (1 - s)
    assert in_error(s, 0.6, n) == pytest.approx(wrong)


def test_the_article_as_printed_and_corrected() -> None:
    assert corrected_formula(0.99999, 100) == pytest.approx(0.999, abs=1e-4)
    assert printed_formula(0.99999, 100) < 1e-300


@pytest.mark.parametrize(
    ("header", "lang"),
    [("nb-NO,nb;q=0.9,en;q=0.8", "nb"), ("en-US,nb;q=0.9", "en"), ("nn", "nb"), ("no", "nb"), ("de,fr;q=0.5", "en"),
     ("", "en"), ("nb;q=0,en", "en"), ("de;q=1,nb;q=0.1,en;q=0.2", "en"), (";;;q=x,,nb", "nb"), ("x" * 9000, "en")],
)  # fmt: skip
def test_the_browser_chooses_the_language(header: str, lang: str) -> None:
    assert preferred_language(header) == lang


def test_only_our_own_functions_become_code() -> None:
    hostile = {"name": "fn:alert(1)", ":formatter": "alert(1)", "data": ["$ink", "$(x)", "fn:percent", {":a": "b"}]}
    found = to_browser_option(hostile, "en")
    assert found == {"name": "fn:alert(1)", "data": ["var(--k-ink)", "$(x)", "fn:percent", {}]}
    assert to_browser_option({"formatter": "fn:percent"}, "nb") == {":formatter": "klypeFormats('nb-NO').percent"}


@given(st.dictionaries(st.text("abc", min_size=1, max_size=4), st.floats(0.001, 1), min_size=2, max_size=60))
def test_a_beginnings_share_is_that_of_all_answers_that_begin_so(masses: dict[str, float]) -> None:
    whole = sum(masses.values())
    answers = tuple(
        TreeAnswer(text, p / whole, p / whole, text, (*map(ord, text), 0))
        for text, p in sorted(masses.items(), key=lambda row: -row[1])
    )
    tree = Tree(answers, (), 0.0, 0.0, 1, (0.0, 0.0), (0.0, 0.0), "whole", TreeSettings())
    spell = lambda tokens: "".join(map(chr, tokens)).replace("\0", ".")
    root = most_probable(tree, spell, "all others", "all answers")

    def look(branch: Branch, before: str) -> None:
        begun = before + branch.text
        assert branch.mass == pytest.approx(sum(a.low for a in answers if f"{a.text}.".startswith(begun)))
        for child in branch.children:
            look(child, begun)

    if root.text != "all answers":
        look(root, "")
        return
    assert root.mass == pytest.approx(sum(child.mass for child in root.children)) == pytest.approx(1.0)
    *ways, rest = root.children
    assert rest.text == "all others"
    for way in ways:
        look(way, "")


@pytest.mark.parametrize("lang", ["en", "nb"])
@pytest.mark.parametrize("begins", ["", "a word that all answers begin with "])
def test_the_share_behind_the_root_of_the_tree_is_not_cut_off(lang: str, begins: str) -> None:
    answers = tuple(TreeAnswer(f"{begins}{end}", p, p, end, (*map(ord, begins + end), 0))
                    for end, p in (("yes", 0.5), ("no", 0.3)))  # fmt: skip
    tree = Tree(answers, (), 0.2, 0.0, 1, (0.0, 0.0), (0.0, 0.0), "whole", TreeSettings())
    spell = lambda tokens: "".join(map(chr, tokens)).replace("\0", ".")
    found = FoundPaths(None, (), tree, (), None, spell)  # type: ignore[arg-type]
    (root,) = exact(found, Say(lang, decimals=1), words(lang, "studio_paths")).option["series"][0]["data"]
    assert root["label"]["width"] >= 6.8 * len(root["name"])


def test_spikes_of_one_step_are_labelled_and_an_even_curve_is_not() -> None:
    even = [(step, 1.0 + step % 3) for step in range(0, 600, 3)]
    high = [(step, {300: 12.23, 303: 9.0, 501: 8.07}.get(step, y)) for step, y in even]
    assert spikes([], Say("en"))["data"] == spikes(even, Say("en"))["data"] == []
    for lang, texts in (("en", ["12.2", "8.1"]), ("nb", ["12,2", "8,1"])):
        found = spikes(high, Say(lang))["data"]  # of neighbours the highest
        assert [(one["coord"][0], one["label"]["formatter"]) for one in found] == list(
            zip((300, 501), texts, strict=True)
        )


def test_both_themes_have_every_colour() -> None:
    css = theme()
    light, dark = css.split("body.body--dark{")[:2]
    names = lambda text: {part.split(":")[0] for part in text.split("{")[-1].split("}")[0].split(";")}
    assert names(light.removeprefix("body{")) | {"body"} >= names(dark.split("}")[0])
    for name in ("--k-ink", "--k-p5", "--k-q0", "--k-m7"):
        assert css.count(f"{name}:") == 2


def test_a_saved_table_starts_no_formula() -> None:
    text = to_csv(["a", "b"], [["=cmd()", 1.5], ["-2", None], ["@x", -2.0]]).decode("utf-8-sig")
    assert text.splitlines() == ["a,b", "'=cmd(),1.5", "'-2,", "'@x,-2.0"]


def test_progress_is_heard_from_the_commands_own_lines() -> None:
    request = ExamRequest("run", "w")
    lines = ("Planned: 60 questions", "answers 0: 60 steps", "answers 0.7: 60 steps", "answers 0.7: (2.0 s)",
             "feedback 1: 60 steps", "trees: 16 steps", "forks: 12 steps")  # fmt: skip
    parts, shares = zip(*(request.progress(lines[:n]) for n in range(len(lines) + 1)), strict=True)
    assert list(shares) == sorted(shares)
    assert (parts[0], parts[-1]) == ("plan", "forks")
    assert 0 == shares[0] < shares[2] < shares[-1] < 1


@pytest.mark.parametrize("lang", LANGUAGES)
def test_what_is_planned_is_one_line_for_the_page(lang: str, capsys: pytest.CaptureFixture[str]) -> None:
    found = ExamPlan(ExamSettings(), 60, {"feedback": 30_000, "trees": 12_687}, 99.0)
    tell_plan(Terminal(lang=lang), words(lang, "examination"), found)
    assert len(capsys.readouterr().out.splitlines()) == 1


def test_what_was_examined_is_found_by_its_weights_and_settings(tmp_path: Path) -> None:
    home, request = studio(tmp_path), ExamRequest("runs/a", "weights")
    assert exam_document(home, request) is None
    folder = exam_folder(home, request)
    folder.mkdir(parents=True)
    for broken in ("", "[1]", "{", '{"other": 1}'):
        (folder / "figures.json").write_text(broken)
        assert exam_document(home, request) is None
    (folder / "figures.json").write_text(json.dumps({"figures": {}}))
    assert exam_document(home, ExamRequest("elsewhere/a", "weights")) == {"figures": {}}
    assert exam_document(home, ExamRequest("runs/a", "other weights")) is None
    assert exam_document(home, ExamRequest("runs/a", "weights", samples=9)) is None
