"""Learning from mistakes: methods are what they say, laws hold in the limit, words are taken back within their text."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from bias_toys import END, SIZE, Chain

from klype.answers.backspace import EditableText, answers_with_backspace
from klype.cli.main import call
from klype.errors import KlypeError, UsageError
from klype.examine.error_feedback import effect, outcomes
from klype.examine.interventions import FeedbackSettings, interventions
from klype.examine.interventions import Query as Shocked
from klype.examine.say import Say
from klype.examine.truth import Reader
from klype.experiments.corpus import Corpus, WorldSource
from klype.experiments.framework import ExperimentPlan
from klype.experiments.mistakes import MISTAKES, REPORT, MistakesBoard, go_on, halves, verdict
from klype.experiments.mistakes_measures import after_backspaces
from klype.experiments.mistakes_methods import (
    BACK,
    METHODS,
    UNLIKELY,
    MistakesSettings,
    Student,
    TeacherLabels,
    TrainingContext,
    TruthLabels,
    concat_batches,
    documents,
    own_texts,
    rounds,
    scheduled_sampling,
    with_backspaces,
)
from klype.experiments.training import LabelledBatches, LabSettings, TrainedModel, TrainingSet, rows, train_model
from klype.sources.source import answers
from klype.train.objectives import cross_entropy, reverse_divergence, soft_cross_entropy
from klype.values import Request
from klype.words import words
from tests import contract
from tests.test_examine_feedback import Always, chain
from tests.toy_sources import table_source

SETTINGS = MistakesSettings(width=16, layers=1, rows=8, epochs=2, teachers=1, steps=4, rounds=2, own=8)
BACKED = SIZE  # the token that takes back: the last of the vocabulary


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def first() -> tuple[Corpus, TrainedModel]:
    corpus = Chain().corpus(0, 40, 20)
    corpus = replace(corpus, vocabulary=(*corpus.vocabulary, BACK))
    return corpus, train_model(TrainingSet(corpus.train), corpus, LabSettings(**_lab()), 0)


def _lab() -> dict[str, int]:
    return {"width": 16, "layers": 1, "rows": 8, "epochs": 6}


def course(first: tuple[Corpus, TrainedModel], **settings: object) -> TrainingContext:
    corpus, learnt = first
    student = Student(copy.deepcopy(learnt.model), corpus)  # type: ignore[arg-type]
    own = SETTINGS.model_copy(update=settings)
    return TrainingContext(corpus, own, 5, student, Chain().initial_truth, lambda: [learnt])


def weights(one: TrainingContext) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in one.student.model.parameters()])


# methods


def test_scheduled_sampling_at_rate_nothing_is_plain(first: tuple[Corpus, TrainedModel]) -> None:
    never, plain = course(first, replaced=0.0), course(first)
    go_on(never, METHODS["scheduled-sampling"])
    go_on(plain, METHODS["documents"])
    assert torch.equal(weights(never), weights(plain))


def test_scheduled_sampling_replaces_words_but_not_what_follows(first: tuple[Corpus, TrainedModel]) -> None:
    own = course(first, replaced=1.0, steps=2)
    sampled, plain = scheduled_sampling(own), documents(own)
    for step in range(2):
        batch, whole = next(sampled), next(plain)
        assert torch.equal(batch.targets_BT, whole.targets_BT)
        assert torch.equal(batch.tokens_BT[:, 0], whole.tokens_BT[:, 0])
        assert torch.equal(batch.tokens_BT, whole.tokens_BT) == (step == 0)
    assert METHODS["scheduled-sampling"].objective is cross_entropy


@pytest.mark.parametrize("by", [TruthLabels, TeacherLabels])
def test_labels_of_own_texts_are_distributions(first: tuple[Corpus, TrainedModel], by: type) -> None:
    own = course(first)
    batches = rounds(own, by(own))
    for _ in range(own.settings.steps):
        batch = next(batches)
        said_NV = batch.extra["soft_BTV"][batch.weights_BT > 0]
        torch.testing.assert_close(said_NV.sum(-1), torch.ones(len(said_NV)), atol=2e-3, rtol=0)
        assert float(said_NV.min()) >= 0
    assert own.tokens > 0
    assert (own.teacher_flops > 0) == (by is TeacherLabels)


def test_own_texts_are_labelled_by_the_truth_also_after_mistakes(first: tuple[Corpus, TrainedModel]) -> None:
    own = course(first, own=24)
    labeller = TruthLabels(own)
    texts = own_texts(own, labeller, 0)
    kept, table_NV = labeller.label(texts)
    assert len(table_NV) == sum(len(text) - 1 for text in kept)
    erring, at = 0, 0
    for text in kept:
        truth = Chain().initial_truth()
        for token in text[1:]:
            p = truth.next()
            erring += token not in p
            expected = [p.get(v, 0.0) for v in range(SIZE + 1)]
            np.testing.assert_allclose(table_NV[at].float().numpy(), expected, atol=1e-3)
            truth.push(token)
            at += 1
    assert erring > 0


def test_own_right_texts_with_one_hot_labels_are_documents(first: tuple[Corpus, TrainedModel]) -> None:
    """DAgger in the limit: when the model writes what the documents say, and labels are one-hot, it is plain."""
    corpus, _ = first
    own = course(first)
    hard_NV = torch.nn.functional.one_hot(torch.tensor([t for d in corpus.train for t in d[1:]]), SIZE + 1)
    soft = LabelledBatches(TrainingSet(corpus.train, rows(hard_NV)), 8, 3)
    plain = LabelledBatches(TrainingSet(corpus.train), 8, 3)
    a, b = (concat_batches(next(batches), next(batches)) for batches in (soft, plain))
    same, sharp = soft_cross_entropy(own.student.model, a), cross_entropy(own.student.model, b)
    torch.testing.assert_close(same.total, sharp.total)
    assert float(same.count) == float(sharp.count)


def test_reverse_kl_is_nothing_at_the_labels_and_has_its_gradient(first: tuple[Corpus, TrainedModel]) -> None:
    own = course(first)
    model = own.student.model.double()
    plain = next(LabelledBatches(TrainingSet(own.corpus.train), 4, 0))
    with torch.no_grad():
        same_BTV = model(plain.tokens_BT).softmax(-1)
    plain.extra["soft_BTV"] = same_BTV
    assert float(reverse_divergence(model, plain).total.detach()) == pytest.approx(0, abs=1e-4)
    plain.extra["soft_BTV"] = torch.full_like(same_BTV, 1 / (SIZE + 1))
    weight = next(model.parameters())
    loss = reverse_divergence(model, plain).total
    (gradient,) = torch.autograd.grad(loss, weight)
    step = 1e-5
    with torch.no_grad():
        sides = []
        for sign in (1, -1):
            weight.view(-1)[0] += sign * step
            sides.append(float(reverse_divergence(model, plain).total.detach()))
            weight.view(-1)[0] -= sign * step
    assert float(gradient.flatten()[0]) == pytest.approx((sides[0] - sides[1]) / (2 * step), rel=1e-3, abs=1e-6)


@pytest.mark.parametrize("late", [0, 2])
def test_enriched_documents_teach_to_take_back_and_never_the_wrong_word(
    first: tuple[Corpus, TrainedModel], late: int
) -> None:
    own = course(first, late=late)
    batches, seen = with_backspaces(own, TruthLabels(own)), 0
    for _ in range(6):
        batch = next(batches)
        for tokens_T, targets_T, weights_T in zip(batch.tokens_BT, batch.targets_BT, batch.weights_BT, strict=True):
            assert BACKED not in tokens_T
            places = ((targets_T == BACKED) & (weights_T > 0)).nonzero()[:, 0].tolist()
            for at in places[:1]:
                seen += 1
                wrong, before = int(tokens_T[at]), int(tokens_T[at - 1])
                assert wrong not in Chain().next(before)
                assert 2 <= wrong < SIZE
                assert float(weights_T[at - 1]) == 0
                assert places == list(range(at, at + len(places)))
                assert float(weights_T[at + len(places) :].sum()) == 0
                assert float(weights_T[: at - 1].min()) == 1 if at > 1 else True
            assert len(places) <= 1 + late
    assert seen > 6


def test_teachers_may_say_what_is_to_be_taken_back(first: tuple[Corpus, TrainedModel]) -> None:
    """What they hold for impossible."""
    own = course(first)
    _, learnt = first
    teachers = TeacherLabels(own)
    assert teachers.impossible == UNLIKELY
    teachers.impossible = 0.04  # so small a teacher is sure of nothing
    batches, seen = with_backspaces(own, teachers), 0
    for _ in range(6):
        batch = next(batches)
        q_BTV = learnt.model(batch.tokens_BT).softmax(-1).detach()
        for row, (targets_T, weights_T) in enumerate(zip(batch.targets_BT, batch.weights_BT, strict=True)):
            for at in ((targets_T == BACKED) & (weights_T > 0)).nonzero()[:1, 0].tolist():
                seen += 1
                wrong = int(batch.tokens_BT[row, at])
                assert float(q_BTV[row, at - 1, wrong]) <= 0.04 * 1.01  # the only teacher; kept in half precision
                assert wrong not in (0, END, BACKED)
    assert seen > 6
    assert own.teacher_flops > 0


@pytest.mark.slow
def test_a_model_learns_to_take_back_what_cannot_follow(first: tuple[Corpus, TrainedModel]) -> None:
    own = course(first, steps=250, rows=16, again=1.0)
    go_on(own, METHODS["backspace"])
    own.student.refresh()
    wrong, right = [], []
    for word in range(2, SIZE):
        after = Chain().next(word)
        for follower in range(2, SIZE):
            q = own.student.next([(0, word, follower)])[0].p(BACKED)
            (right if follower in after else wrong).append(q)
    assert np.mean(wrong) > 2 * np.mean(right)


# taking back


def test_a_sheet_takes_back_within_its_text() -> None:
    sheet = EditableText((), 9)
    assert sheet.bars() == {9}
    for token in (9, 1, 2, 9, 3):
        sheet.push(token)
    assert sheet.tokens == (1, 3)
    assert sheet.bars() == set()
    sheet.push(9)
    assert sheet.tokens == (1,)
    assert sheet.bars() == {2, 3}
    sheet.push(9)
    assert sheet.tokens == ()
    assert sheet.bars() == {1, 9}
    assert after_backspaces((1, 2, 9, 3), 9, 20) == ((1, 3), 4)
    assert after_backspaces((1, 2, 9, 3), None, 20) == ((1, 2, 9, 3), 4)
    assert after_backspaces((1, 2, 9, 3), 9, 2) == ((1, 2), 2)
    assert after_backspaces((1, 9, 2, 3, 9), 9, 2) == ((2, 3), 4)


def test_who_never_takes_back_writes_as_ever() -> None:
    table = np.array([[1, 0, 0, 0], [0.2, 0.4, 0.4, 0], [0.3, 0.3, 0.4, 0], [1, 0, 0, 0]])
    source, _ = table_source(table)
    requests = [Request((1,), n=3, limit=7, seed=seed, stop=(0,)) for seed in range(4)]
    plain = answers(source, requests)
    backed = answers_with_backspace(source, requests, [0] * 4, 3)
    assert [[t.tokens for t in group] for group in backed] == [[t.tokens for t in group] for group in plain]


@pytest.mark.parametrize("own", [0, 1, 2])
def test_nothing_is_taken_back_beyond_ones_own(own: int) -> None:
    """Even a model that takes back all it can."""
    rng = np.random.default_rng(own)
    table = rng.dirichlet(np.ones(5), 5)
    table[:, 4] += 2.0
    table /= table.sum(1, keepdims=True)
    source, _ = table_source(table)
    requests = [Request((1, 2, 3), n=4, limit=12, seed=seed, stop=(0,)) for seed in range(5)]
    for group in answers_with_backspace(source, requests, [own] * 5, 4):
        for trace in group:
            assert len(trace.tokens) <= 12
            sheet = EditableText((1, 2, 3)[3 - own :], 4)
            for token in trace.tokens:
                assert token not in sheet.bars()
                sheet.push(token)


def test_taking_back_shows_in_the_experiment_and_costs_a_pass() -> None:
    """After the wrong word (2) the token that takes back (3) comes for certain: the hazard is gone, and so is it."""
    table = np.array([[1, 0, 0, 0], [0, 0.8, 0.2, 0], [0, 0, 0, 1.0], [1, 0, 0, 0]])
    source, _ = table_source(table)
    asked = [Shocked(f"q{i}", (1,), Reader(Always)) for i in range(30)]
    settings = FeedbackSettings(positions=2, distances=4, samples=3, back=3)
    forced = interventions(source, asked, settings, lambda token: token != 3)
    found = outcomes(source, asked, forced, settings)
    assert all(one.errors["wrong"][0] == pytest.approx(0) for one in found)
    assert all(one.standing["wrong"][0] == 0 for one in found)
    assert all(one.errors["right"][0] == pytest.approx(0.2, abs=1e-5) for one in found)
    # the pass after: what was taken back is barred, and so is the token
    assert all(one.errors["wrong"][1] == pytest.approx(0, abs=1e-5) for one in found)
    assert effect(found).moved[0].value is None


def test_without_taking_back_a_forced_mistake_stands() -> None:
    asked = [Shocked(f"q{i}", (1,), Reader(Always)) for i in range(6)]
    settings = FeedbackSettings(distances=2, samples=2)
    forced = interventions(chain(0.6, 0.2), asked, settings, lambda token: True)
    for one in outcomes(chain(0.6, 0.2), asked, forced, settings):
        assert one.standing["wrong"] == (1.0, 1.0)


# the experiment


NAMES = ("documents", "own-truth", "own-teachers-reverse", "backspace", "outcome")


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, ExperimentPlan, MistakesBoard]:
    folder = tmp_path_factory.mktemp("mistakes")
    plan = ExperimentPlan(documents=(24,), questions=20, seeds=2, arms=NAMES, settings=SETTINGS)
    return folder, plan, MISTAKES.run(Chain(), plan, folder, lambda found: None, workers=1)


def test_the_experiment_tells_every_method_beside_its_control(ran: tuple[Path, ExperimentPlan, MistakesBoard]) -> None:
    folder, _, board = ran
    found = board.document()
    assert found["done"]
    assert found["finished"] == found["all"] == 2 * (1 + len(NAMES))
    assert list(found["methods"]) == ["before", *NAMES]
    assert found["methods"]["documents"]["figures"]["ratio"]["value"] == pytest.approx(1)
    assert found["methods"]["documents"]["figures"]["kl_change"]["value"] == 0
    for name, row in found["methods"].items():
        figures = row["figures"]
        assert figures["feedback"]["low"] <= figures["feedback"]["value"] <= figures["feedback"]["high"]
        at = [f["value"] for f in row["feedback_by_distance"]]
        assert figures["feedback"]["value"] == pytest.approx(np.mean(at))
        arms = [figures[key]["value"] for key in ("after_wrong", "after_right")]
        assert figures["feedback"]["value"] == pytest.approx(arms[0] - arms[1])
        assert 0 <= figures["right_20"]["value"] <= figures["right_5"]["value"] <= 1
        if name != "backspace":
            assert figures["standing"]["value"] == 1
            assert figures["passes"]["value"] == pytest.approx(1)
    assert json.loads((folder / MistakesBoard.FILE).read_text()) == found
    json.dumps(found, allow_nan=False)


@pytest.mark.slow
def test_resumed_is_straight_and_equal_seeds_give_equal_figures(
    ran: tuple[Path, ExperimentPlan, MistakesBoard],
    tmp_path: Path,
) -> None:
    folder, plan, found = ran
    times = {f: f.stat().st_mtime_ns for f in (folder / "cells").glob("*/*.json")}
    assert MISTAKES.run(Chain(), plan, folder, lambda found: None, workers=1) == found
    assert times == {f: f.stat().st_mtime_ns for f in times}
    one = plan.model_copy(update={"seeds": 1, "arms": ("documents",)})
    MISTAKES.run(Chain(), one, tmp_path, lambda found: None, workers=1)
    two = plan.model_copy(update={"seeds": 1, "arms": ("documents", "backspace")})
    MISTAKES.run(Chain(), two, tmp_path, lambda found: None, workers=1)
    for name in ("before", "documents", "backspace"):
        straight, again = (json.loads((f / "cells" / "0" / f"{name}.json").read_text()) for f in (folder, tmp_path))
        assert straight["values"] == again["values"]
        assert straight["flops"] == again["flops"]


def test_the_report_tells_it_in_both_languages(ran: tuple[Path, ExperimentPlan, MistakesBoard]) -> None:
    _, _, board = ran
    page = REPORT.render(board, "nb")
    for text in ("Tilbakevirkning", "Feedback", "tilbaketasten", "default-src"):
        assert text in page


def test_halving_asks_for_both_intervals() -> None:
    def told(ratio: float, by_question: float, kind: str = "cure") -> bool:
        return halves(kind, {"ratio": {"high": ratio}, "ratio_by_question": {"high": by_question}})  # type: ignore[typeddict-item]

    assert told(0.4, 0.45)
    assert not told(0.4, 0.55)
    assert not told(0.55, 0.4)
    assert not told(0.4, 0.4, "beside")


def test_a_token_that_takes_back_costs_kl_and_the_verdict_says_how_much(
    ran: tuple[Path, ExperimentPlan, MistakesBoard],
) -> None:
    found = ran[2].document()
    for row in found["methods"].values():
        figures = row["figures"]
        assert figures["kl_drawn"]["value"] >= figures["kl"]["value"] + figures["alarm"]["value"] - 1e-9
    taught = found["methods"]["backspace"]["figures"]
    assert taught["kl_drawn"]["value"] > taught["kl"]["value"]
    say, own = Say("en"), words("en", "mistakes")
    halved = ran[2].model_copy(update={"halved": ["backspace"]})
    sentence = next(s for s in verdict(halved, say, own) if "half" in s)
    assert say.figure(taught["kl_change"]) in sentence
    assert "no loss" not in sentence


# plans and bad input


def test_plans_fit_and_are_kept(tmp_path: Path) -> None:
    tiny = SETTINGS.model_copy(update={"epochs": 1})
    roomy = MISTAKES.plan(Chain(), tmp_path, ExperimentPlan(settings=tiny), 1e6, 1)
    assert roomy.arms == tuple(METHODS)
    assert MISTAKES.plan(Chain(), tmp_path, ExperimentPlan(settings=tiny), 1e-6, 1) == roomy
    asked = ExperimentPlan(settings=tiny, arms=("backspace",))
    tight = MISTAKES.plan(Chain(), tmp_path.parent, asked, 1e-6, 1)
    (tmp_path.parent / "plan.json").unlink()
    assert (tight.documents, tight.arms) == ((600,), ("documents", "backspace"))
    assert tight.seconds < roomy.seconds


def test_the_world_is_read_after_mistakes() -> None:
    source = WorldSource()
    truth = source.initial_truth()
    words = [source.vocabulary.index(word) for word in ("Jeg", "gikk", "en", "tur", "på")]
    for token in words:
        assert truth.push(token) > 0
    before = truth.next()
    again = copy.copy(truth)
    assert again.push(len(source.vocabulary)) == 0  # the token that takes back is no word of the language
    assert sum(again.next().values()) == pytest.approx(1)
    assert truth.next() == before


def test_only_what_needs_no_truth_is_for_text() -> None:
    assert "own-teachers" in MISTAKES.select_arms((), truth=False)
    for name in ("own-truth", "backspace", "outcome"):
        with pytest.raises(UsageError, match=f"no method called {name}"):
            MISTAKES.select_arms((name,), truth=False)
    with pytest.raises(UsageError, match="no method called bakspace"):
        MISTAKES.select_arms(("bakspace",), truth=True)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--minutes", "0"], "minutes should be greater than 0"),
        (["--documents", "3"], "teach nothing"),
        (["--methods", "magic"], "no method called magic"),
        (["--set", "stpes=3"], "stpes"),
    ],
)
def test_bad_input_is_one_sentence(arguments: list[str], said: str, tmp_path: Path) -> None:
    with pytest.raises(KlypeError, match=said):
        call(["mistakes", "--out", str(tmp_path / "new"), *arguments])
    assert not (tmp_path / "new").exists()


@pytest.mark.slow
def test_the_command_on_ones_own_text(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ("den", "gamle", "mannen", "gikk", "langs", "veien", "og", "så", "en", "liten", "hund", "som", "sov")
    rng = np.random.default_rng(0)
    text = tmp_path / "text.txt"
    text.write_text("\n".join(" ".join(rng.choice(words, 12)) + "." for _ in range(700)), encoding="utf-8")
    asked = ["--documents", "16", "--seeds", "2", "--methods", "own-teachers", "--out", str(tmp_path / "out"), "--json"]
    small = [f"{key}={value}" for key, value in _lab().items()] + ["epochs=1", "teachers=1", "steps=2", "own=4"]
    call(["mistakes", "--text", str(text), *asked, *(part for one in small for part in ("--set", one))])
    made = json.loads(capsys.readouterr().out)
    contract.holds(contract.Mistakes, made)
    assert list(made["methods"]) == ["before", "documents", "own-teachers"]
    figures = made["methods"]["own-teachers"]["figures"]
    assert figures["bits_per_byte"]["value"] > 0
    assert figures["teacher_kl_own"]["value"] >= 0
    assert figures["bits_change"]["low"] <= figures["bits_change"]["value"] <= figures["bits_change"]["high"]
    assert "kl" not in figures
    assert made["halved"] == []
    assert Path(made["report"]).is_file()
