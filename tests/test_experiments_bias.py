"""The hard-target experiment: targets are distributions, the n-gram is what it says, and the truth teaches best."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from bias_toys import END, SIZE, Chain, reference_kneser_ney
from hypothesis import given
from hypothesis import strategies as st

from klype.cli.main import call
from klype.data.ngram import KneserNey
from klype.errors import KlypeError, UsageError
from klype.experiments import bias
from klype.experiments.bias import BIAS, BiasBoard, gaps
from klype.experiments.bias_targets import TARGETS, BiasCell, best_share, cross_fitted, hard
from klype.experiments.corpus import WorldSource, targets
from klype.experiments.framework import (
    ExperimentPlan,
    ExperimentProgress,
    over_seeds,
    results,
)
from klype.experiments.training import (
    LabelledBatches,
    LabSettings,
    Mixture,
    TrainingSet,
    compare_with_truth,
    interpolate,
    measure,
    predict,
    right,
    shape,
    train_model,
    true,
    uniform,
    weight_average,
)
from klype.model.attention import TORCH
from klype.model.compiled import compiled_backend
from klype.model.transformer import Transformer
from klype.train.objectives import cross_entropy, soft_cross_entropy
from klype.values import Batch
from tests import contract

SETTINGS = LabSettings(width=16, layers=1, rows=8, epochs=3, patience=3, teachers=2)
PLAN = ExperimentPlan(documents=(12, 24), seeds=2, arms=tuple(TARGETS), settings=SETTINGS)


def cell(folder: Path, documents: int = 24, seed: int = 0, settings: LabSettings = SETTINGS) -> BiasCell:
    source = Chain()
    return BiasCell(source.corpus(seed, documents, 20), source.test(), settings, documents, seed, folder)


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, BiasBoard]:
    folder = tmp_path_factory.mktemp("bias")
    return folder, BIAS.run(Chain(), PLAN, folder, lambda board: None, workers=2)


# targets


@pytest.mark.parametrize(
    "row", [row for row in TARGETS.values() if row.name not in ("best-of-five", "five-together", "steady-together")]
)
def test_every_target_is_a_distribution_over_the_right_documents(row: object, tmp_path: Path) -> None:
    own = cell(tmp_path)
    made = row.make(own)  # type: ignore[attr-defined]
    assert isinstance(made, TrainingSet)
    assert made.documents[: len(own.corpus.train)] == own.corpus.train
    if made.soft is not None:
        soft_NV = made.soft(torch.arange(len(targets(made.documents))))
        assert soft_NV.shape[1] == SIZE
        assert float(soft_NV.min()) >= 0
        torch.testing.assert_close(soft_NV.sum(-1), torch.ones(len(soft_NV)), atol=1e-5, rtol=0)


@given(share=st.sampled_from([0.0, 1e-6, 1e-3]))
def test_soft_targets_are_one_hot_in_the_limit(share: float) -> None:
    own = cell(Path())
    at_N = torch.from_numpy(targets(own.corpus.train))
    soft = interpolate(hard(own), uniform(SIZE), share)(torch.arange(len(at_N)))
    one_hot = torch.nn.functional.one_hot(at_N, SIZE).float()
    assert float((soft - one_hot).abs().max()) <= share


def test_soft_cross_entropy_to_one_hot_is_cross_entropy() -> None:
    own = cell(Path())
    torch.manual_seed(0)
    model = train_model(TrainingSet(own.corpus.train), own.corpus, SETTINGS.model_copy(update={"epochs": 1}), 0).model
    batch = next(LabelledBatches(TrainingSet(own.corpus.train, hard(own)), 8, 0))
    plain = Batch(batch.tokens_BT, batch.targets_BT, batch.weights_BT)
    soft, sharp = soft_cross_entropy(model, batch), cross_entropy(model, plain)
    torch.testing.assert_close(soft.total, sharp.total)
    assert float(soft.count) == float(sharp.count) == float(batch.weights_BT.sum())


def test_batches_bring_each_document_once_with_its_own_labels() -> None:
    own = cell(Path())
    truth = own.corpus.truth
    assert truth is not None
    soft = true(truth, SIZE)
    batches = LabelledBatches(TrainingSet(own.corpus.train, soft), 5, 3)
    seen = []
    for _ in range(batches.steps_per_epoch):
        batch = next(batches)
        for row in range(len(batch.tokens_BT)):
            n = int(batch.weights_BT[row].sum())
            ids = (*batch.tokens_BT[row, :n].tolist(), int(batch.targets_BT[row, n - 1]))
            seen.append(ids)
            for t in range(n):
                p = Chain().next(ids[t])
                assert batch.extra["soft_BTV"][row, t].tolist() == pytest.approx([p.get(v, 0.0) for v in range(SIZE)])
    assert sorted(seen) == sorted(own.corpus.train)


def test_blanks_hide_context_and_nothing_else() -> None:
    documents = tuple((0, *range(2, 10), *range(2, 10), END) for _ in range(40))
    plain, blanked, again = (LabelledBatches(TrainingSet(documents), 40, 3, share) for share in (0.0, 0.3, 0.3))
    looks = []
    for _ in range(3):
        seen, hidden = next(plain), next(blanked)
        torch.testing.assert_close(hidden.targets_BT, seen.targets_BT)
        torch.testing.assert_close(hidden.weights_BT, seen.weights_BT)
        blank_BT = hidden.tokens_BT != seen.tokens_BT
        assert not hidden.tokens_BT[blank_BT].any()  # the begin mark is 0
        assert float(blank_BT[:, 1:].float().mean()) == pytest.approx(0.3, abs=0.08)  # 640 tokens: over four deviations
        looks.append(hidden)
    assert not torch.equal(looks[0].tokens_BT, looks[1].tokens_BT)
    again.restore({"index": 2})
    torch.testing.assert_close(next(again).tokens_BT, looks[2].tokens_BT)


# the n-gram


@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_the_ngram_is_its_definition(order: int) -> None:
    documents = list(Chain().documents(5, 12))
    model = KneserNey(documents, SIZE, order)
    for text in Chain().documents(6, 6):
        p_NV, p_N = model.table([text]), model.of([text])
        for t in range(1, len(text)):
            p_V = p_NV[t - 1]
            assert float(p_V.sum()) == pytest.approx(1, abs=1e-5)
            context = text[max(0, t - order + 1) : t]
            np.testing.assert_allclose(p_V, reference_kneser_ney(documents, context, SIZE, order), atol=1e-6)
            assert p_N[t - 1] == pytest.approx(p_V[text[t]], rel=1e-4)


def test_a_document_is_never_labelled_by_itself() -> None:
    documents = [(0, 2, 3, END), (0, 2, 4, END), (0, 2, 5, END)]
    table = cross_fitted(documents, SIZE, order=2, folds=3)
    for d, text in enumerate(documents):
        others = KneserNey([x for x in documents if x != text], SIZE, 2)
        np.testing.assert_allclose(table[3 * d : 3 * d + 3], others.table([text]), atol=1e-3)


# models


def test_the_truth_teaches_better_than_one_right_word() -> None:
    source = Chain()
    corpus, test = source.corpus(0, 40, 60), source.test()
    settings = LabSettings(width=16, layers=1, rows=8, epochs=12, patience=12)
    one_hot = train_model(TrainingSet(corpus.train), corpus, settings, 0)
    assert corpus.truth is not None
    oracle = train_model(TrainingSet(corpus.train, true(corpus.truth, SIZE)), corpus, settings, 0)
    assert measure(oracle.model, test)["kl"] < measure(one_hot.model, test)["kl"]
    assert min(loss for _, loss, _ in one_hot.curve) <= one_hot.curve[0][1]


def test_a_model_is_taken_where_held_out_loss_was_least() -> None:
    corpus = Chain().corpus(0, 8, 60)
    settings = LabSettings(width=16, layers=1, rows=4, epochs=40, patience=2, decay=0.0)
    learnt = train_model(TrainingSet(corpus.train), corpus, settings, 1)
    losses = [loss for _, loss, _ in learnt.curve]
    assert learnt.turned
    assert len(losses) - 1 - losses.index(min(losses)) == settings.patience
    at_N1 = torch.from_numpy(targets(corpus.held_out))[:, None]
    again = float(-predict(learnt.model, corpus.held_out).gather(1, at_N1).mean())
    assert again == pytest.approx(min(losses), abs=1e-6)


def test_the_mean_of_weights_is_its_definition() -> None:
    model = Transformer(shape(SIZE, SETTINGS))
    first = model.head.weight.detach().clone()
    mean = weight_average(model, 0.5)
    expected, weight = first, first
    for step in range(1, 12):
        weight = weight + 1
        with torch.no_grad():
            model.head.weight.copy_(weight)
        mean.update_parameters(model)
        keep = min(0.5, (step + 1) / (step + 10))
        expected = keep * expected + (1 - keep) * weight
        torch.testing.assert_close(mean.module.head.weight, expected)
    torch.testing.assert_close(mean.module.embed.weight, model.embed.weight)  # what stands still is its own mean


def test_a_model_of_averaged_weights_is_the_one_that_was_looked_at() -> None:
    corpus = Chain().corpus(0, 16, 60)
    settings = SETTINGS.model_copy(update={"average": 0.9, "blanks": 0.2})
    learnt = train_model(TrainingSet(corpus.train), corpus, settings, 1)
    at_N1 = torch.from_numpy(targets(corpus.held_out))[:, None]
    again = float(-predict(learnt.model, corpus.held_out).gather(1, at_N1).mean())
    assert again == pytest.approx(min(loss for _, loss, _ in learnt.curve), abs=1e-6)


@pytest.mark.slow
def test_compiled_code_trains_the_same_model(tmp_path: Path) -> None:
    found = compiled_backend(tmp_path)
    if found is TORCH:
        pytest.skip("no C compiler")
    own = cell(tmp_path)
    lesson = TrainingSet(own.corpus.train, hard(own))
    plain, compiled = (train_model(lesson, own.corpus, SETTINGS, 0, one) for one in (TORCH, found))
    assert [loss for _, loss, _ in compiled.curve] == pytest.approx([loss for _, loss, _ in plain.curve], rel=1e-3)


def test_a_mixture_of_one_is_that_one_and_of_two_lies_between() -> None:
    own = cell(Path())
    once = SETTINGS.model_copy(update={"epochs": 1})
    a, b = (train_model(TrainingSet(own.corpus.train), own.corpus, once, seed).model for seed in (1, 2))
    documents = own.test.documents
    torch.testing.assert_close(predict(Mixture([a]), documents), predict(a, documents))
    mean = (predict(a, documents).exp() + predict(b, documents).exp()) / 2
    torch.testing.assert_close(predict(Mixture([a, b]), documents).exp(), mean)


def test_the_share_that_says_held_out_documents_best_is_found() -> None:
    documents = [(0, 1)] * 10
    good, bad = (torch.tensor([[1 - p, p]]).expand(10, 2) for p in (0.9, 0.1))
    assert best_share(good, bad, documents) == 0
    assert best_share(bad, good, documents) == 0.95


# measures


class Saying(torch.nn.Module):
    """Says the chain's own probabilities, or a mixture of them with uniform ones."""

    def __init__(self, noise: float) -> None:
        super().__init__()
        table = np.full((SIZE, SIZE), noise / SIZE)
        for word in range(SIZE):
            for follower, p in Chain().next(word).items():
                table[word, follower] += (1 - noise) * p
        self.logp = torch.from_numpy(table).log()

    def forward(self, tokens_BT: torch.Tensor) -> torch.Tensor:
        return self.logp[tokens_BT]


def test_the_truth_itself_has_no_divergence_and_is_calibrated() -> None:
    test = Chain().test()
    found = measure(Saying(0.0), test)
    assert found["kl"] == pytest.approx(0, abs=1e-6)
    assert found["reverse_kl"] == pytest.approx(0, abs=1e-6)
    assert found["s"] == pytest.approx(1)
    assert found["calibration"] == pytest.approx(0, abs=1e-6)
    asked = [Chain().next(q.prefix[-1])[q.answers[0][0]] for q in test.questions]
    assert right(Saying(0.0), test.questions) == pytest.approx(np.mean(asked))


def test_noise_shows_in_every_measure() -> None:
    test = Chain().test()
    quiet, loud = measure(Saying(0.1), test), measure(Saying(0.5), test)
    assert 0 < quiet["kl"] < loud["kl"]
    assert 1 > quiet["s"] > loud["s"]
    assert quiet["calibration"] < loud["calibration"]
    assert quiet["right"] > loud["right"]
    assert test.truth is not None
    assert compare_with_truth(predict(Saying(0.1), test.documents), test.truth)[0].mean() > 0


def test_text_is_measured_without_a_truth() -> None:
    test = Chain().test()
    plain = replace(test, truth=None, questions=(), shown=None, bytes=1000)
    found = measure(Saying(0.1), plain)
    tokens = sum(len(d) - 1 for d in test.documents)
    assert found["bits_per_byte"] == pytest.approx(found["loss"] * tokens / 1000 / np.log(2))
    assert set(found) == {"loss", "bits_per_byte", "calibration", "right"}


def test_first_documents_bring_their_own_truth() -> None:
    corpus = Chain().corpus(0, 10, 8)
    few = corpus.first(3)
    assert few.truth is not None
    np.testing.assert_array_equal(few.truth.toarray(), Chain().truth(corpus.train[:3]).toarray())


def test_gap_and_intervals() -> None:
    gap = gaps([0.5, 0.7, 0.6], [1.0, 1.2, 0.8], [0.2, 0.2, 0.2])
    assert gap.value == pytest.approx(1.2 / 2.4)
    assert gap.low is not None
    assert gap.low < 0.5
    whole = gaps([0.2, 0.2], [1.0, 1.2], [0.2, 0.2])
    assert (whole.value, whole.low, whole.high) == pytest.approx((1, 1, 1))
    figure = over_seeds([0.1, 0.3], "nats")
    assert figure.value == pytest.approx(0.2)
    assert figure.high == pytest.approx(0.2 + 12.7062 * 0.1, rel=1e-4)
    assert over_seeds([0.1], "nats").low is None


# the experiment


def test_the_experiment_is_whole_and_its_file_can_be_read(ran: tuple[Path, BiasBoard]) -> None:
    folder, board = ran
    assert board == BiasBoard.read(folder)
    assert board.done
    assert board.cells_done == board.cells == len(TARGETS) * 4
    assert {(r.arm, r.documents) for r in board.rows} == {(name, n) for name in TARGETS for n in (12, 24)}
    made = board.document()
    assert (made["documents"], made["seeds"]) == (24, 2)
    for name in ("one-hot", "oracle", "ensemble"):
        for measured in ("kl", "s", "calibration"):
            figure = made["targets"][name][measured]
            assert figure["low"] <= figure["value"] <= figure["high"]
    assert made["targets"]["one-hot"]["gap"]["value"] == 0
    assert made["targets"]["oracle"]["gap"]["value"] == pytest.approx(1)
    assert made["targets"]["best-of-five"]["compute"]["value"] > 1.5
    assert board.bars is not None
    assert sum(board.bars.truth) == pytest.approx(1)
    assert set(board.bars.targets) == set(TARGETS)
    json.dumps(made, allow_nan=False)
    assert not list((folder / "cells").glob("*/*.safetensors"))


def test_a_teacher_nobody_asked_for_is_not_in_the_report(tmp_path: Path) -> None:
    plan = PLAN.model_copy(update={"documents": (12,), "seeds": 1, "arms": ("one-hot", "larger-teacher")})
    place = tmp_path / "cells" / "12-0"
    place.mkdir(parents=True)
    own = cell(place, 12)
    own.run(plan.arms)
    found = results(tmp_path / "cells")
    made = ExperimentProgress(BIAS, plan, found, own.test, Chain.vocabulary, done=True).board()
    assert made.bars is not None
    assert set(made.bars.targets) == {row.arm for row in made.rows} == set(plan.arms)
    assert (made.cells_done, made.cells) == (2, 2)
    assert "larger teacher" in bias.REPORT.render(made, "en")


def test_what_costs_more_and_leaves_more_is_not_worth_it() -> None:
    rows = [("dear", 5.0, 0.3), ("base", 1.0, 1.0), ("same", 1.0, 1.2), ("worse", 2.0, 1.0), ("good", 2.0, 0.4)]
    assert bias.pareto(rows) == {"base", "good", "dear"}


def test_the_report_tells_it_in_both_languages(ran: tuple[Path, BiasBoard]) -> None:
    _, board = ran
    page = bias.REPORT.render(board, "nb")
    for text in ("Lukket av gapet", "Gap closed", "Jeg gikk en tur på", "default-src"):
        assert text in page
    assert "http://" not in page.split("<script")[0]


@pytest.mark.slow
def test_finished_cells_are_kept_and_equal_seeds_give_equal_figures(
    ran: tuple[Path, BiasBoard], tmp_path: Path
) -> None:
    folder, board = ran
    before = {f: f.stat().st_mtime_ns for f in (folder / "cells").glob("*/*.json")}
    assert BIAS.run(Chain(), PLAN, folder, lambda board: None, workers=1).rows == board.rows
    assert before == {f: f.stat().st_mtime_ns for f in (folder / "cells").glob("*/*.json")}
    names = ("one-hot", "kneser-ney", "ensemble-written")
    torch.set_num_threads(1)  # as the experiment's processes compute: sums are added in the order of the threads
    own = cell(tmp_path, 12, 1)
    own.run(names)
    for name in names:
        told, again = (json.loads((f / f"{name}.0.json").read_text()) for f in (folder / "cells" / "12-1", tmp_path))
        assert told["values"] == again["values"]
    assert BIAS.is_finished(tmp_path, names)
    assert not BIAS.is_finished(tmp_path, ("oracle",))
    reread = cell(tmp_path, 12, 1).trained_model("one-hot")
    torch.testing.assert_close(
        predict(reread.model, own.test.documents), predict(own.trained_model("one-hot").model, own.test.documents)
    )


def test_what_cells_have_written_is_read_as_it_now_is_and_damaged_files_are_left_out(tmp_path: Path) -> None:
    place = tmp_path / "12-0"
    place.mkdir()
    (place / "one-hot.0.json").write_text('{"epoch": 1}')
    (place / "oracle.0.json").write_text('{"epo')
    assert results(tmp_path) == [{"epoch": 1}]
    (place / "oracle.0.json").write_text('{"epoch": 2}')
    assert results(tmp_path) == [{"epoch": 1}, {"epoch": 2}]


def test_a_damaged_board_says_so_and_one_that_is_not_written_yet_is_none(tmp_path: Path) -> None:
    assert BiasBoard.read(tmp_path) is None
    (tmp_path / BiasBoard.FILE).write_text('{"version": 1}')
    with pytest.raises(KlypeError, match="damaged"):
        BiasBoard.read(tmp_path)


# the world


def test_the_world_gives_its_truth_and_its_answers() -> None:
    source = WorldSource()
    corpus, test = source.corpus(0, 3, 2), source.test(6, 3)
    assert corpus.truth is not None
    assert corpus.train[:2] == source.corpus(0, 2, 2).train
    soft = true(corpus.truth, corpus.size)(torch.arange(len(targets(corpus.train))))
    torch.testing.assert_close(soft.sum(-1), torch.ones(len(soft)), atol=1e-5, rtol=0)
    at_N1 = torch.from_numpy(targets(corpus.train))[:, None]
    assert float(soft.gather(1, at_N1).min()) > 0
    assert test.shown is not None
    assert {source.vocabulary[i] for i in test.shown[1]} == {"stien", "veien", "fortauet", "fjellet"}
    for question in test.questions:
        assert source.vocabulary[question.prefix[-1]] == "?"
        assert all(source.vocabulary[answer[-1]] == "." for answer in question.answers)


# plans and bad input


def test_a_plan_takes_what_fits(tmp_path: Path) -> None:
    tiny = SETTINGS.model_copy(update={"epochs": 1})
    roomy, tight = (
        BIAS.plan(Chain(), place, ExperimentPlan(settings=tiny), minutes, 2)
        for minutes, place in ((1e6, tmp_path / "a"), (1e-6, tmp_path / "b"))
        if place.mkdir() is None
    )
    assert (roomy.documents, roomy.seeds) == (BIAS.choices[0].documents, BIAS.choices[0].seeds)
    assert (tight.documents, tight.seeds) == (BIAS.choices[-1].documents, BIAS.choices[-1].seeds)
    assert (tight.steps, tight.seconds) < (roomy.steps, roomy.seconds)
    assert BIAS.select_arms(("oracle",), truth=True) == ("one-hot", "oracle")


def test_unknown_targets_are_named() -> None:
    with pytest.raises(UsageError, match="no targets called ensembel"):
        BIAS.select_arms(("ensembel",), truth=True)
    with pytest.raises(UsageError, match="no targets called oracle"):
        BIAS.select_arms(("oracle",), truth=False)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--minutes", "0"], "minutes should be greater than 0"),
        (["--documents", "ten"], "documents should be integer"),
        (["--documents", "3"], "teach nothing"),
        (["--targets", "orakel"], "no targets called orakel"),
        (["--set", "widht=3"], "widht"),
        (["--text", "nowhere.txt"], "nowhere.txt"),
    ],
)
def test_bad_input_is_one_sentence(arguments: list[str], said: str, tmp_path: Path) -> None:
    with pytest.raises(KlypeError, match=said):
        call(["bias", "--out", str(tmp_path / "new"), *arguments])
    assert not (tmp_path / "new").exists()


@pytest.mark.slow
def test_the_command_on_ones_own_text(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [
        "den",
        "gamle",
        "mannen",
        "gikk",
        "langs",
        "veien",
        "og",
        "så",
        "en",
        "liten",
        "hund",
        "som",
        "sov",
        "under",
        "et",
        "stort",
        "tre",
    ]
    rng = np.random.default_rng(0)
    text = tmp_path / "text.txt"
    text.write_text("\n".join(" ".join(rng.choice(words, 12)) + "." for _ in range(900)), encoding="utf-8")
    asked = ["--documents", "16", "--seeds", "2", "--targets", "kneser-ney,ensemble", "--set", "width=16"]
    small = ["--set", "epochs=2", "--set", "teachers=2", "--set", "layers=1"]
    call(["bias", "--text", str(text), *asked, *small, "--out", str(tmp_path / "out"), "--json"])
    made = json.loads(capsys.readouterr().out)
    contract.holds(contract.Bias, made)
    assert set(made["targets"]) == {"one-hot", "kneser-ney", "ensemble"}
    assert made["targets"]["ensemble"]["bits_per_byte"]["value"] > 0
    assert "kl" not in made["targets"]["one-hot"]
    assert Path(made["report"]).is_file()
    with pytest.raises(UsageError, match="exists already"):
        call(["bias", "--text", str(text), *asked, "--out", str(tmp_path / "out")])
