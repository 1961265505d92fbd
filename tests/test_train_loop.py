"""The loop: resumed = straight, 1x8 = 8x1, and what happens when things go wrong."""

from __future__ import annotations

import json
import math
import os
import random
import signal
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import torch
from children import forked
from full_disk import full_disk
from safetensors.torch import load_file
from train_toys import VOCAB, Seeded, part, pieces, random_batch, tiny_config, tiny_model, to_earlier_form

from klype.data.batches import PackedBatches
from klype.data.documents import Documents
from klype.errors import KlypeError, TrainingInterrupted, UsageError
from klype.train.flat_parameters import Layout
from klype.train.loop import TrainResult, TrainSession, TrainSettings, train
from klype.train.objectives import cross_entropy, with_rehearsal
from klype.train.optimizer import Optimizer, OptimizerSettings, factor, fused_parts
from klype.train.resume import newest_step, read_newest, states, write_state
from klype.values import Batch, Loss

torch.set_num_threads(1)
PARTS = fused_parts(tiny_config())


def settings(steps: int = 8, **changes: Any) -> TrainSettings:
    return TrainSettings(steps=steps, **{"save_seconds": 0.0, **changes})


def weights(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def without_time(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{k: v for k, v in row.items() if k != "seconds"} for row in rows]


def straight(folder: Path, **changes: Any) -> dict[str, torch.Tensor]:
    model = tiny_model()
    train(model, cross_entropy, Seeded(), settings(**changes), folder, TrainSession(parts=PARTS))
    return weights(model)


@pytest.mark.slow
def test_overfits_one_batch(tmp_path: Path) -> None:
    batch = random_batch(0, rows=2)
    train(tiny_model(), cross_entropy, Seeded(lambda i: batch), settings(150), tmp_path, TrainSession(parts=PARTS))
    assert lines(tmp_path)[-1]["loss"] < 0.01


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_resumed_is_straight_bit_for_bit(tmp_path: Path, precision: str) -> None:
    expected = straight(tmp_path / "straight", precision=precision)
    asked = iter([False] * 3 + [True])
    first = TrainSession(parts=PARTS, stop=lambda: next(asked))
    with pytest.raises(TrainingInterrupted, match="after step 3 of 8"):
        train(tiny_model(), cross_entropy, Seeded(), settings(precision=precision), tmp_path / "cut", first)
    again = tiny_model(seed=5)  # whatever it held before, the state replaces it
    done = train(
        again, cross_entropy, Seeded(), settings(precision=precision), tmp_path / "cut", TrainSession(True, PARTS)
    )
    assert done.steps == 8
    assert same(expected, weights(again))
    assert without_time(lines(tmp_path / "straight")) == without_time(lines(tmp_path / "cut"))
    seconds = [row["seconds"] for row in lines(tmp_path / "cut")]
    assert seconds == sorted(seconds)


@pytest.mark.parametrize("flipped", [b'"step"', b"1", b"{", b"\n", b", "])
def test_a_flipped_bit_in_the_metrics_costs_a_row_and_not_the_training(tmp_path: Path, flipped: bytes) -> None:
    expected = straight(tmp_path / "straight")
    asked = iter([False] * 3 + [True])
    with pytest.raises(TrainingInterrupted):
        train(
            tiny_model(),
            cross_entropy,
            Seeded(),
            settings(),
            tmp_path,
            TrainSession(parts=PARTS, stop=lambda: next(asked)),
        )
    file = tmp_path / "metrics.jsonl"
    whole = file.read_bytes()
    at = whole.index(flipped)
    file.write_bytes(whole[:at] + bytes([whole[at] ^ 0x80]) + whole[at + 1 :])
    again = tiny_model(seed=5)
    train(again, cross_entropy, Seeded(), settings(), tmp_path, TrainSession(True, PARTS))
    assert same(expected, weights(again))
    lost = 2 if flipped == b"\n" else 1
    assert without_time(lines(tmp_path)) == without_time(lines(tmp_path / "straight"))[lost:]


def test_noise_of_the_global_generator_is_part_of_the_state(tmp_path: Path) -> None:
    def noisy(model: torch.nn.Module, batch: Batch) -> Loss:
        kept = (torch.rand_like(batch.weights_BT) < 0.5).float()
        return cross_entropy(model, Batch(batch.tokens_BT, batch.targets_BT, batch.weights_BT * kept))

    results = []
    for name, stops in (("a", []), ("b", [False, False, True])):
        torch.manual_seed(7)
        asked = iter(stops)
        folder, session = tmp_path / name, TrainSession(parts=PARTS, stop=lambda asked=asked: next(asked, False))
        model = tiny_model()
        torch.manual_seed(7)
        try:
            train(model, noisy, Seeded(), settings(), folder, session)
        except TrainingInterrupted:
            torch.manual_seed(99)
            train(model, noisy, Seeded(), settings(), folder, TrainSession(True, PARTS))
        results.append(weights(model))
    assert same(*results)


def _life(folder: Path, steps: int) -> None:
    """One life of a training process, slow enough to be killed anywhere in a step or while it saves."""
    session = TrainSession(True, PARTS, on_step=lambda step, metrics: time.sleep(0.01))
    train(tiny_model(), cross_entropy, Seeded(), settings(steps, save_every=3, save_seconds=0.05), folder, session)


def killed(folder: Path, steps: int, moments: Sequence[float]) -> int:
    """How often a training process was killed: so many seconds after it had saved something."""
    for number, moment in enumerate(moments, 1):
        before, process = newest(folder), forked().Process(target=_life, args=(folder, steps))
        process.start()
        try:
            while newest(folder) == before and process.is_alive():
                time.sleep(0.005)
            time.sleep(moment)
        finally:
            process.kill()
            process.join()
        if newest(folder) >= steps:
            return number
    return len(moments)


def test_a_state_with_a_loss_that_was_no_number_is_gone_on_from(tmp_path: Path) -> None:
    """A look at held-out text may have found one while training went on."""
    write_state(tmp_path, 3, {"batches": {"seen": [[1, math.nan], [2, math.inf]]}}, {}, {})
    found = read_newest(tmp_path, print)
    assert found is not None
    assert repr(found.about) == "{'batches': {'seen': [[1, nan], [2, inf]]}}"


def newest(folder: Path) -> int:
    return int(states(folder)[-1].name[5:]) if states(folder) else 0


def killed_is_straight(folder: Path, steps: int, moments: Sequence[float]) -> None:
    expected = straight(folder / "straight", steps=steps)
    assert killed(folder / "killed", steps, moments) == len(moments)
    model = tiny_model(seed=3)
    train(model, cross_entropy, Seeded(), settings(steps), folder / "killed", TrainSession(True, PARTS))
    assert same(expected, weights(model))
    assert [row["step"] for row in lines(folder / "killed")] == list(range(1, steps + 1))
    assert without_time(lines(folder / "killed")) == without_time(lines(folder / "straight"))


@pytest.mark.slow
def test_killed_and_resumed_is_straight_bit_for_bit(tmp_path: Path) -> None:
    killed_is_straight(tmp_path, 400, [0.0, 0.013, 0.05, 0.11, 0.23])


@pytest.mark.soak
def test_killed_a_hundred_times_is_straight(tmp_path: Path) -> None:
    rng = random.Random(0)
    killed_is_straight(tmp_path, 1500, [0.2 * rng.random() for _ in range(100)])


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_between_two_steps(tmp_path: Path, number: signal.Signals) -> None:
    def at_three(step: int, metrics: dict[str, float]) -> None:
        if step == 3:
            os.kill(os.getpid(), number)

    before = signal.getsignal(number)
    with pytest.raises(TrainingInterrupted):
        train(tiny_model(), cross_entropy, Seeded(), settings(), tmp_path, TrainSession(on_step=at_three))
    assert signal.getsignal(number) is before
    assert [place.name for place in states(tmp_path)] == ["step-000003"]


def test_keyboard_interrupt_in_a_callback_saves(tmp_path: Path) -> None:
    def raising(step: int, metrics: dict[str, float]) -> None:
        raise KeyboardInterrupt

    with pytest.raises(TrainingInterrupted, match="after step 1"):
        train(tiny_model(), cross_entropy, Seeded(), settings(), tmp_path, TrainSession(on_step=raising))
    assert states(tmp_path)


def test_the_last_two_states_are_kept(tmp_path: Path) -> None:
    straight(tmp_path, save_every=2)
    assert [place.name for place in states(tmp_path)] == ["step-000006", "step-000008"]
    assert not list((tmp_path / "resume").glob(".*"))


@pytest.mark.parametrize("name", ["model.safetensors", "shards/optimizer.safetensors", "state.json", "manifest.json"])
@pytest.mark.parametrize("damage", ["cut", "flip", "gone"])
def test_a_torn_state_is_named_and_the_one_before_is_used(tmp_path: Path, name: str, damage: str) -> None:
    expected = straight(tmp_path / "whole")
    folder = tmp_path / "torn"
    straight(folder, save_every=2)
    path = states(folder)[-1] / name
    content = bytearray(path.read_bytes())
    if damage == "gone":
        path.unlink()
    elif damage == "cut":
        path.write_bytes(content[: len(content) // 2])
    else:
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
    assert newest_step(folder) == 6
    said: list[str] = []
    model = tiny_model()
    train(model, cross_entropy, Seeded(), settings(), folder, TrainSession(True, PARTS, say=said.append))
    assert any("step-000008 is damaged" in message for message in said)
    assert same(expected, weights(model))


def test_when_all_states_are_torn_it_says_so(tmp_path: Path) -> None:
    straight(tmp_path)
    for place in states(tmp_path):
        (place / "manifest.json").write_text("{")
    with pytest.raises(KlypeError, match="damaged"):
        train(tiny_model(), cross_entropy, Seeded(), settings(), tmp_path, TrainSession(True, PARTS))


def test_a_folder_with_a_state_is_not_overwritten_and_settings_are_compared(tmp_path: Path) -> None:
    straight(tmp_path)
    with pytest.raises(UsageError, match="already holds"):
        straight(tmp_path)
    with pytest.raises(UsageError, match="clip = "):
        train(tiny_model(), cross_entropy, Seeded(), settings(clip=0.123), tmp_path, TrainSession(True, PARTS))
    done = train(tiny_model(), cross_entropy, Seeded(), settings(save_every=1), tmp_path, TrainSession(True, PARTS))
    assert done.steps == 8
    assert train(tiny_model(), cross_entropy, Seeded(), settings(9), tmp_path, TrainSession(True, PARTS)).steps == 9


@pytest.mark.parametrize("kind", ["muon", "adamw"])
def test_a_state_of_an_earlier_klype_is_gone_on_from(kind: str, tmp_path: Path) -> None:
    rates = OptimizerSettings.model_validate({"kind": kind})
    whole = straight(tmp_path / "whole", optimizer=rates)
    count = iter(range(99))
    stopped = TrainSession(parts=PARTS, stop=lambda: next(count) == 4)
    with pytest.raises(TrainingInterrupted):
        train(tiny_model(), cross_entropy, Seeded(), settings(optimizer=rates), tmp_path, stopped)
    to_earlier_form(states(tmp_path)[-1], Optimizer(Layout(tiny_model()), rates, PARTS))
    model = tiny_model(7)
    train(model, cross_entropy, Seeded(), settings(optimizer=rates), tmp_path, TrainSession(True, PARTS))
    assert same(weights(model), whole)


def test_so_is_none_of_another_shape_or_of_other_batches(tmp_path: Path) -> None:
    straight(tmp_path)
    session, packed = TrainSession(True, PARTS), PackedBatches(Documents.of([range(9)]), 1, 4)
    with pytest.raises(UsageError, match="written by an earlier klype"):
        train(tiny_model(), cross_entropy, packed, settings(9), tmp_path, session)
    to_earlier_form(states(tmp_path)[-1], Optimizer(Layout(tiny_model()), OptimizerSettings(), PARTS))
    wide = tiny_model()
    wide.head = torch.nn.Linear(16, 30, bias=False)
    with pytest.raises(KlypeError, match="another shape"):
        train(wide, cross_entropy, Seeded(), settings(9), tmp_path, session)


def test_resume_with_nothing_to_resume_starts_fresh(tmp_path: Path) -> None:
    model = tiny_model()
    assert train(model, cross_entropy, Seeded(), settings(), tmp_path, TrainSession(True, PARTS)).steps == 8
    assert same(weights(model), straight(tmp_path / "other"))


def spoiled(bad: set[int]) -> Any:
    """Cross-entropy that is no number at the given calls."""
    calls = iter(range(10**6))

    def objective(model: torch.nn.Module, batch: Batch) -> Loss:
        loss = cross_entropy(model, batch)
        return Loss(loss.total * math.nan, loss.count) if next(calls) in bad else loss

    return objective


def test_a_loss_that_is_no_number_changes_nothing_and_is_counted(tmp_path: Path) -> None:
    said: list[str] = []
    after: list[dict[str, torch.Tensor]] = []
    model = tiny_model()
    session = TrainSession(parts=PARTS, on_step=lambda s, m: after.append(weights(model)), say=said.append)
    done = train(model, spoiled({2, 5}), Seeded(), settings(), tmp_path, session)
    assert done.skipped == 2
    assert same(after[1], after[2])
    assert not same(after[2], after[3])
    assert lines(tmp_path)[2]["loss"] is None
    assert len(said) == 2
    assert len(list(tmp_path.glob("bad-step-000003*.safetensors"))) == 1


def test_many_bad_losses_stop_with_the_batch_saved(tmp_path: Path) -> None:
    with pytest.raises(KlypeError, match="3 steps on end"):
        train(tiny_model(), spoiled(set(range(4, 99))), Seeded(), settings(bad_limit=3), tmp_path)
    saved = load_file(next(iter(tmp_path.glob("bad-step-000005*"))))
    assert torch.equal(saved["0.tokens"], random_batch(4).tokens_BT)


def test_among_bad_losses_no_state_is_saved(tmp_path: Path) -> None:
    with pytest.raises(KlypeError, match="5 steps on end") as error:
        train(tiny_model(), spoiled(set(range(4, 99))), Seeded(), settings(9, bad_limit=5, save_every=1), tmp_path)
    assert [place.name for place in states(tmp_path)] == ["step-000003", "step-000004"]
    assert "another run with lower learning rates and another --out" in error.value.hint
    again = TrainSession(True)
    with pytest.raises(KlypeError, match="5 steps on end, up to step 9"):  # the same streak, from its beginning
        train(tiny_model(), spoiled(set(range(99))), Seeded(), settings(9, bad_limit=5, save_every=1), tmp_path, again)
    assert [place.name for place in states(tmp_path)] == ["step-000003", "step-000004"]


def test_after_bad_losses_the_end_is_saved_and_resumed_is_straight(tmp_path: Path) -> None:
    how = settings(save_every=1)
    train(tiny_model(), spoiled({3, 4, 7}), Seeded(), how, tmp_path / "straight", TrainSession(parts=PARTS))
    assert newest_step(tmp_path / "straight") == 8

    def killed(step: int, metrics: object) -> None:
        if step == 5:
            raise RuntimeError("killed")

    cut = TrainSession(parts=PARTS, on_step=killed)
    with pytest.raises(RuntimeError, match="killed"):
        train(tiny_model(), spoiled({3, 4, 7}), Seeded(), how, tmp_path / "cut", cut)
    assert newest_step(tmp_path / "cut") == 3
    train(tiny_model(seed=5), spoiled({0, 1, 4}), Seeded(), how, tmp_path / "cut", TrainSession(True, PARTS))
    assert without_time(lines(tmp_path / "straight")) == without_time(lines(tmp_path / "cut"))
    ends = [load_file(states(tmp_path / name)[-1] / "model.safetensors") for name in ("straight", "cut")]
    assert same(*ends)


def test_bad_losses_are_counted_across_a_restart(tmp_path: Path) -> None:
    asked = iter([False] * 6 + [True])
    with pytest.raises(TrainingInterrupted, match="after step 6"):  # two of the three
        train(
            tiny_model(),
            spoiled(set(range(4, 99))),
            Seeded(),
            settings(bad_limit=3),
            tmp_path,
            TrainSession(stop=lambda: next(asked)),
        )
    rest = TrainSession(resume=True)
    with pytest.raises(KlypeError, match="3 steps on end, up to step 7"):
        train(tiny_model(), spoiled(set(range(99))), Seeded(), settings(bad_limit=3), tmp_path, rest)


def test_what_somebody_killed_while_saving_left_is_cleared_away(tmp_path: Path) -> None:
    left = tmp_path / "resume" / ".step-000003.klype"
    left.mkdir(parents=True)
    (left / "model.safetensors").write_bytes(b"half")
    straight(tmp_path)
    assert [place.name for place in (tmp_path / "resume").iterdir()] == ["step-000008"]


def test_where_nothing_is_kept_nothing_is_left(tmp_path: Path) -> None:
    asked = iter([False] * 3 + [True])
    with pytest.raises(TrainingInterrupted):
        train(
            tiny_model(),
            cross_entropy,
            Seeded(),
            settings(save_every=1),
            tmp_path,
            TrainSession(keeps=False, stop=lambda: next(asked)),
        )
    assert not (tmp_path / "resume").exists()
    train(tiny_model(), cross_entropy, Seeded(), settings(), tmp_path / "whole", TrainSession(keeps=False))
    assert not (tmp_path / "whole" / "resume").exists()


def test_a_batch_without_anything_to_learn_changes_nothing(tmp_path: Path) -> None:
    empty = random_batch(0)
    empty = Batch(empty.tokens_BT, empty.targets_BT, torch.zeros_like(empty.weights_BT))
    model = tiny_model()
    before = weights(model)
    done = train(model, cross_entropy, Seeded(lambda i: empty), settings(3), tmp_path, TrainSession(parts=PARTS))
    assert done.skipped == 0
    assert same(before, weights(model))


@pytest.mark.skipif(sys.platform == "win32", reason="Windows limits no file")
@pytest.mark.parametrize("full_at", ["model", "shards/optimizer"])
def test_a_full_disk_keeps_the_last_good_state(tmp_path: Path, full_at: str) -> None:
    with ExitStack() as disk:

        def fills(i: int) -> Batch:
            if i == 2:  # one state has been written
                size = (states(tmp_path)[0] / f"{full_at}.safetensors").stat().st_size
                disk.enter_context(full_disk(size - 1))
            return random_batch(i)

        with pytest.raises(KlypeError, match="File too large"):
            train(
                tiny_model(), cross_entropy, Seeded(fills), settings(save_every=2), tmp_path, TrainSession(parts=PARTS)
            )
    assert [place.name for place in states(tmp_path)] == ["step-000002"]
    model = tiny_model()
    train(model, cross_entropy, Seeded(), settings(), tmp_path, TrainSession(True, PARTS))
    assert same(weights(model), straight(tmp_path / "other"))


def test_a_folder_that_cannot_be_made_is_said_clearly(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(KlypeError, match="cannot be written"):
        straight(tmp_path / "file" / "run")


REHEARSED = with_rehearsal(cross_entropy, cross_entropy, 0.3)


def slow(micro_batches: int) -> TrainSettings:
    rates = OptimizerSettings(matrix_rate=1e-3, rate=1e-3)
    return settings(4, micro_batches=micro_batches, optimizer=rates)


def summed(folder: Path, rows_each: int) -> dict[str, torch.Tensor]:
    model = tiny_model()
    train(model, REHEARSED, pieces(rows_each), slow(8 // rows_each), folder, TrainSession(parts=PARTS))
    return weights(model)


def test_one_by_eight_is_eight_by_one(tmp_path: Path) -> None:
    """And two processes by four: tests/test_train_parallel.py."""
    whole, single = summed(tmp_path / "whole", 8), summed(tmp_path / "single", 1)
    for name in whole:
        torch.testing.assert_close(whole[name], single[name], rtol=1e-4, atol=2e-5)
    for a, b in zip(lines(tmp_path / "whole"), lines(tmp_path / "single"), strict=True):
        for name in ("loss", "rehearsal", "count", "norm"):
            assert a[name] == pytest.approx(b[name], rel=1e-4)


def test_rehearsal_adds_the_weighted_mean(tmp_path: Path) -> None:
    batch, trained = part(0, slice(0, 8)), tiny_model()
    train(trained, REHEARSED, Seeded(lambda i: batch), settings(1), tmp_path, TrainSession(parts=PARTS))
    model = tiny_model()
    optimizer = Optimizer(Layout(model), OptimizerSettings(), PARTS)
    main, again = cross_entropy(model, batch), cross_entropy(model, batch.extra["rehearsal"])
    (main.total / main.count + 0.3 * again.total / again.count).backward()
    optimizer.collect([optimizer.added])
    norm = float(optimizer.clip(settings().clip))
    optimizer.step(factor(settings(1).schedule, 0.0))
    for name, tensor in weights(model).items():
        torch.testing.assert_close(weights(trained)[name], tensor, rtol=1e-4, atol=1e-6)
    row = lines(tmp_path)[0]
    assert row["norm"] == pytest.approx(norm, rel=1e-4)
    assert row["loss"] == pytest.approx((main.total / main.count).item(), rel=1e-5)
    assert row["rehearsal"] == pytest.approx((again.total / again.count).item(), rel=1e-5)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("workers", [2, 3])
def test_side_by_side_is_one_after_the_other_bit_for_bit(tmp_path: Path, precision: str, workers: int) -> None:
    """Whatever the number of workers, also when it does not divide the micro-batches, and with a loss beside."""
    asked = settings(4, micro_batches=5, precision=precision)
    made = {}
    for n in (1, workers):
        model = tiny_model()
        session = TrainSession(parts=PARTS, workers=n)
        train(
            model, REHEARSED, Seeded(lambda i: part(i // 5, slice(i % 5, i % 5 + 2))), asked, tmp_path / str(n), session
        )
        made[n] = weights(model)
    assert same(made[1], made[workers])
    assert without_time(lines(tmp_path / "1")) == without_time(lines(tmp_path / str(workers)))


def test_an_error_of_one_worker_is_the_error_of_the_step(tmp_path: Path) -> None:
    def objective(model: torch.nn.Module, batch: Batch) -> Loss:
        if int(batch.tokens_BT[0, 0]) == odd:
            raise KlypeError("This batch cannot be learnt.")
        return cross_entropy(model, batch)

    batches = [random_batch(i) for i in range(8)]
    odd = int(batches[5].tokens_BT[0, 0])
    assert sum(int(b.tokens_BT[0, 0]) == odd for b in batches[:5]) == 0
    with pytest.raises(KlypeError, match="cannot be learnt"):
        train(
            tiny_model(),
            objective,
            Seeded(lambda i: batches[i]),
            settings(4, micro_batches=2),
            tmp_path,
            TrainSession(parts=PARTS, workers=2),
        )
    assert len(lines(tmp_path)) == 2


def test_metrics_of_the_objective_and_of_the_batch_reach_the_caller(tmp_path: Path) -> None:
    def objective(model: torch.nn.Module, batch: Batch) -> Loss:
        loss = cross_entropy(model, batch)
        return Loss(loss.total, loss.count, {"double": 2 * float(loss.count), "rate": 6.0, "rate_count": 3.0})

    def make(index: int) -> Batch:
        batch = random_batch(index)
        return Batch(batch.tokens_BT, batch.targets_BT, batch.weights_BT, {"metrics": {"reward": float(index % 2)}})

    rows: list[dict[str, float]] = []
    session = TrainSession(on_step=lambda step, metrics: rows.append(metrics))
    train(tiny_model(), objective, Seeded(make), settings(3, micro_batches=2), tmp_path, session)
    for row in rows:
        assert row["double"] == pytest.approx(2.0)
        assert row["rate"] == pytest.approx(2.0)
        assert row["reward"] == pytest.approx(0.5)


def test_a_uniform_model_has_loss_ln_v(tmp_path: Path) -> None:
    model = tiny_model()
    torch.nn.init.zeros_(model.head.weight)
    rows: list[float] = []
    session = TrainSession(on_step=lambda step, metrics: rows.append(metrics["loss"]))
    assert train(model, cross_entropy, Seeded(), settings(1), tmp_path, session) == TrainResult(
        1, pytest.approx(0, abs=60), 0, int((random_batch(0).weights_BT > 0).sum())
    )
    assert rows[0] == pytest.approx(math.log(VOCAB), rel=1e-6)
