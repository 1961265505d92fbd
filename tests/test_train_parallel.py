"""Several processes are one: the same losses and weights, states that any number of them can go on from, their ends.

All of it on processors, with gloo; workers are forks, of a process that has imported what they need.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from children import forked
from full_disk import full_disk
from torch import nn
from torch.distributed.tensor import DTensor, distribute_tensor
from train_toys import Seeded, part, pieces, random_batch, tiny_config, tiny_model, to_earlier_form

from klype.cli.train import process_rank as launched
from klype.errors import KlypeError, TrainingInterrupted, UsageError
from klype.model.compiled import compiled_backend
from klype.model.lora import AdaptedTransformer, LoraSettings
from klype.train import parallel
from klype.train.flat_parameters import Layout
from klype.train.loop import TrainSession, TrainSettings, train
from klype.train.objectives import cross_entropy, with_rehearsal
from klype.train.optimizer import Optimizer, OptimizerSettings, fused_parts
from klype.train.resume import read_newest, states
from klype.train.sharded import ShardedLayout
from klype.values import Batch

torch.set_num_threads(1)
PARTS = fused_parts(tiny_config())
REHEARSED = with_rehearsal(cross_entropy, cross_entropy, 0.3)
STEPS = 4


def team(ranks: int, work: Callable[[], None], folder: Path) -> None:
    """Does it on so many processes, which know each other; an error of one is one here."""
    folder.mkdir(parents=True, exist_ok=True)
    if ranks == 1:
        work()
        return
    members = [forked().Process(target=_member, args=(rank, ranks, work, folder)) for rank in range(ranks)]
    for member in members:
        member.start()
    for member in members:
        member.join(400)  # many times what an idle machine takes
    try:
        assert [member.exitcode for member in members] == [0] * ranks
    finally:
        for member in members:
            member.kill()


def _member(rank: int, ranks: int, work: Callable[[], None], folder: Path) -> None:
    meeting = folder / f"meeting-{ranks}"
    dist.init_process_group("gloo", f"file://{meeting}", world_size=ranks, rank=rank)
    work()
    parallel.leave_group()


def settings(steps: int = STEPS, **changes: Any) -> TrainSettings:
    """Eight micro-batches of one row a step, and rates at which rounding stays rounding."""
    rates = OptimizerSettings(matrix_rate=1e-3, rate=1e-3, decay=0.1)
    return TrainSettings(steps=steps, **{"save_seconds": 0.0, "micro_batches": 8, "optimizer": rates, **changes})


def learn(
    folder: Path, asked: TrainSettings, make: Callable[[], nn.Module] = tiny_model, session: TrainSession | None = None
) -> None:
    """Trains, on however many processes, and leaves the weights of each in ``folder``."""
    model = make()
    train(model, REHEARSED, pieces(1), asked, folder, session or TrainSession(parts=PARTS))
    torch.save(model.state_dict(), folder / f"weights-{parallel.rank()}.pt")


def weights(folder: Path, rank: int = 0) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = torch.load(folder / f"weights-{rank}.pt", weights_only=True)
    return found


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def same_learning(a: Path, b: Path, rel: float = 1e-4) -> None:
    one, other = weights(a), weights(b)
    assert one.keys() == other.keys()
    for name in one:
        torch.testing.assert_close(one[name], other[name], rtol=rel, atol=rel / 5)
    for x, y in zip(lines(a), lines(b), strict=True):
        assert x.keys() == y.keys()
        for name in ("loss", "rehearsal", "count", "norm", "factor"):
            assert x[name] == pytest.approx(y[name], rel=rel)


def compiled(cache: Path) -> nn.Module:
    return tiny_model().with_backend(compiled_backend(cache))


def adapted() -> nn.Module:
    base = tiny_model().requires_grad_(False)
    torch.manual_seed(3)
    return AdaptedTransformer(base, LoraSettings(rank=3))


KINDS: dict[str, tuple[Callable[[], nn.Module], dict[str, Any]]] = {
    "plain": (tiny_model, {}),
    "compiled": (tiny_model, {}),
    "adapters": (adapted, {}),
    "recompute": (tiny_model, {"recompute": True}),
    "bfloat16": (tiny_model, {"precision": "bfloat16"}),
}


def _lives(folder: Path, kinds: Sequence[str], cut: Sequence[int] = (), goes_on: Sequence[int | str] = ()) -> None:
    """Trains each kind; the first half of lives that are ``cut`` here and go on elsewhere; the rest of others."""
    ranks = parallel.ranks()
    for kind in kinds:
        make, changes = KINDS[kind]
        make = partial(compiled, folder / "cache") if kind == "compiled" else make
        learn(folder / kind / str(ranks), settings(**changes), make)
    for other in cut:
        learn(folder / f"{ranks}-{other}", settings(3))
    for other in goes_on:
        learn(folder / f"{other}-{ranks}", settings(6), partial(tiny_model, 9), TrainSession(True, PARTS))


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What one, two, three and four processes learnt, and lives begun by some and ended by others."""
    folder = tmp_path_factory.mktemp("parallel")
    team(1, partial(_lives, folder, list(KINDS), cut=[1, 2], goes_on=[1]), folder)
    shutil.copytree(folder / "1-2", folder / "earlier-2")
    to_earlier_form(states(folder / "earlier-2")[-1], Optimizer(Layout(tiny_model()), settings().optimizer, PARTS))
    team(3, partial(_lives, folder, ["plain"], cut=[2]), folder)
    team(2, partial(_lives, folder, list(KINDS), cut=[1], goes_on=[1, 3, "earlier"]), folder)
    team(1, partial(_lives, folder, [], goes_on=[2]), folder)
    return folder


@pytest.mark.parametrize("ranks", [2, 3])
def test_any_number_of_processes_learns_what_one_does(place: Path, ranks: int) -> None:
    """With uneven masks, with rows that do not come out even (three processes), and a loss beside."""
    same_learning(place / "plain" / "1", place / "plain" / str(ranks))
    for rank in range(1, ranks):  # all have the whole model afterwards
        for name, tensor in weights(place / "plain" / str(ranks)).items():
            assert torch.equal(tensor, weights(place / "plain" / str(ranks), rank)[name])
    assert not list((place / "plain" / str(ranks)).glob(".*"))  # and the first alone wrote


@pytest.mark.slow
def test_so_do_four(place: Path) -> None:
    team(4, partial(_lives, place, ["plain"]), place)
    same_learning(place / "plain" / "1", place / "plain" / "4")


@pytest.mark.parametrize("kind", ["compiled", "adapters", "recompute"])
def test_so_do_compiled_code_adapters_and_recomputed_activations(place: Path, kind: str) -> None:
    same_learning(place / kind / "1", place / kind / "2")


def test_mixed_precision_on_two_is_that_on_one_within_its_rounding(place: Path) -> None:
    assert {t.dtype for t in weights(place / "bfloat16" / "2").values()} == {torch.float32}
    same_learning(place / "bfloat16" / "1", place / "bfloat16" / "2", rel=0.02)


@pytest.mark.parametrize(("first", "then"), [(2, 1), (1, 2), (3, 2)])
def test_what_some_saved_others_go_on_from(place: Path, first: int, then: int) -> None:
    cut = place / f"{first}-{then}"
    same_learning(place / "1-1", cut)
    assert [row["step"] for row in lines(cut)] == [1, 2, 3, 4, 5, 6]
    assert [len(list((state / "shards").iterdir())) for state in states(cut)] == [first, then]
    assert {file.suffix for file in (cut / "resume").rglob("*") if file.is_file()} == {".json", ".safetensors"}


def test_so_do_two_from_the_state_that_one_of_an_earlier_klype_saved(place: Path) -> None:
    same_learning(place / "1-2", place / "earlier-2", rel=0)


def _one_wants_to_stop(folder: Path) -> None:
    asked = iter([False, False, True, True, True, True, True])
    stop = (lambda: next(asked)) if parallel.rank() == 1 else (lambda: False)
    model = tiny_model()
    with pytest.raises(TrainingInterrupted, match="after step 2"):
        train(model, REHEARSED, pieces(1), settings(), folder, TrainSession(parts=PARTS, stop=stop))
    assert model.head.weight.shape == (24, 16)  # it has its weights back


def _one_has_no_room(folder: Path) -> None:
    """The second process, for the second state."""
    batches = pieces(1)
    with ExitStack() as disk:

        def fills(i: int) -> Batch:
            if parallel.rank() == 1 and i == 3 * 8:
                disk.enter_context(full_disk(200))
            return make(i)

        make, batches.make = batches.make, fills
        with pytest.raises(KlypeError, match="File too large"):
            train(tiny_model(), REHEARSED, batches, settings(save_every=2), folder, TrainSession(parts=PARTS))


def _troubles(folder: Path) -> None:
    _one_wants_to_stop(folder / "stopped")
    learn(folder / "stopped", settings(), partial(tiny_model, 5), TrainSession(True, PARTS))
    _one_has_no_room(folder / "full")
    learn(folder / "damaged", settings(save_every=2))


@pytest.fixture(scope="module")
def troubles(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("troubles")
    team(2, partial(_troubles, folder), folder)
    return folder


def test_when_one_is_to_stop_all_stop_after_the_same_step_and_go_on(place: Path, troubles: Path) -> None:
    for name, tensor in weights(place / "plain" / "2").items():  # the same number of processes: bit for bit
        assert torch.equal(tensor, weights(troubles / "stopped")[name]), name


def test_a_full_disk_of_one_is_an_error_of_all_and_the_earlier_state_is_intact(troubles: Path) -> None:
    assert [place.name for place in (troubles / "full" / "resume").iterdir()] == ["step-000002"]
    state = read_newest(troubles / "full", print)
    assert state is not None
    assert state.step == 2


def test_a_damaged_shard_is_named_and_the_state_before_is_used(troubles: Path) -> None:
    shard = sorted((states(troubles / "damaged")[-1] / "shards").iterdir())[1]
    content = bytearray(shard.read_bytes())
    content[-7] ^= 1
    shard.write_bytes(content)
    said: list[str] = []
    state = read_newest(troubles / "damaged", said.append)
    assert state is not None
    assert state.step == 2
    assert f"shards/{shard.name} does not match its hash" in said[0]


def _same_update(folder: Path) -> None:
    """One step from the same gradient, whole and in shards; and how much of it is here."""
    gradient = {
        n: torch.randn(p.shape, generator=torch.Generator().manual_seed(i))
        for i, (n, p) in enumerate(tiny_model().named_parameters())
    }
    whole, lent = tiny_model(), tiny_model()
    one = Optimizer(Layout(whole), OptimizerSettings(decay=0.1), PARTS)
    layout = ShardedLayout(lent, torch.float32, torch.device("cpu"))
    many = Optimizer(layout, OptimizerSettings(decay=0.1), PARTS)
    assert lent.head.weight.numel() == 0
    for factor in (1.0, 0.5):
        for optimizer in (one, many):
            optimizer.zero_grad()
            for (name, p), own in zip(optimizer._named, optimizer._places.views(optimizer.gradient), strict=True):
                sharded = isinstance(p, DTensor)
                mine = distribute_tensor(gradient[name], p.device_mesh, p.placements) if sharded else gradient[name]
                own.copy_(optimizer.layout.own_part(mine))
                assert own.shape == optimizer.layout.own_part(p).shape
        torch.testing.assert_close(one.clip(0.7), many.clip(0.7))
        for optimizer in (one, many):
            optimizer.step(factor)
    for optimizer in (one, many):
        optimizer.layout.release()
    for (name, a), b in zip(whole.named_parameters(), lent.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=2e-6, msg=name)
    rows = many.master.numel() / one.master.numel()
    assert rows < 1 / parallel.ranks() + 0.2  # padded to whole cache lines


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [2, 5])
def test_an_update_in_shards_is_the_update_muon_included(tmp_path: Path, ranks: int) -> None:
    """Five processes: some have no row of some parameters."""
    team(ranks, partial(_same_update, tmp_path), tmp_path)


def _one_is_killed(folder: Path, port: int) -> None:
    rank = parallel.rank()
    dist.barrier()  # who leaves sooner would end the other's meeting
    parallel.leave_group()
    for name, value in {"RANK": rank, "WORLD_SIZE": 2, "MASTER_ADDR": "localhost", "MASTER_PORT": port}.items():
        os.environ[name] = str(value)
    mine = launched()
    assert mine is not None

    def on_step(step: int, metrics: dict[str, float]) -> None:
        if step == 3 and rank == 1:
            os._exit(0)  # as by kill -9, but that ``team`` takes it for an end

    with pytest.raises(KlypeError, match="Process 0 of 2 has lost another one"), parallel.process_group(mine):
        learn(folder, settings(save_every=2), session=TrainSession(parts=PARTS, on_step=on_step))
    assert parallel.ranks() == 1


def free_port() -> int:
    """Not one of those that the system gives away: another program would be given it before the two have met."""
    for port in random.Random(os.getpid()).sample(range(20_000, 30_000), 100):
        with suppress(OSError), socket.create_server(("localhost", port)):
            return port
    raise AssertionError("a hundred ports are taken")


@pytest.mark.slow
def test_the_end_of_one_is_the_clean_end_of_all_and_what_was_saved_is_whole(tmp_path: Path) -> None:
    team(2, partial(_one_is_killed, tmp_path, free_port()), tmp_path)
    state = read_newest(tmp_path, pytest.fail)
    assert state is not None
    assert state.step == 2


def test_a_launcher_is_known_by_its_variables() -> None:
    told = {"RANK": "3", "WORLD_SIZE": "8", "MASTER_ADDR": "a", "MASTER_PORT": "1"}
    assert launched({}) is None
    assert launched({**told, "WORLD_SIZE": "1"}) is None
    assert launched(told) == parallel.ProcessRank(3, 8, 3, 8, 0)
    own = {"LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2", "TORCHELASTIC_RESTART_COUNT": "4"}
    assert launched({**told, **own}) == parallel.ProcessRank(3, 8, 1, 2, 4)
    with pytest.raises(UsageError, match="RANK=x"):
        launched({**told, "RANK": "x"})


@pytest.mark.parametrize("argv", [["train", "pretrain"], ["run"], ["align", "runs/a"], ["ask", "demo"]])
def test_of_several_processes_the_first_tells_errors_and_others_what_may_be_theirs_alone(argv: list[str]) -> None:
    script = (
        "import sys\nfrom klype.cli.exits import exit_code\nfrom klype.errors import KlypeError, UsageError\n"
        "def fail(error):\n    raise error\n"
        "errors = UsageError('A.'), KlypeError('B.')\n"
        "codes = [exit_code(lambda argv, e=error: fail(e), sys.argv[1:]) for error in errors]\n"
        "assert codes == [2, 1]"
    )

    def told(**environ: str) -> str:
        process = [sys.executable, "-c", script, *argv]
        return subprocess.run(process, env={**os.environ, **environ}, text=True, capture_output=True, check=True).stderr

    assert told() == told(RANK="0", MASTER_ADDR="localhost") == "klype: A.\nklype: B.\n"
    others = "klype (another process): B.\n"
    assert told(RANK="3", MASTER_ADDR="localhost") == (told() if argv[0] == "ask" else others)


def _agreeing() -> None:
    rank = parallel.rank()
    assert parallel.broadcast({"a": [rank, "ø"]}) == {"a": [0, "ø"]}
    assert parallel.any_rank(rank == 2)
    assert not parallel.any_rank(False)
    with pytest.raises(OSError, match="full" if rank == 1 else "another process"):
        parallel.on_all_ranks(partial(_fails, rank == 1))


def _fails(here: bool) -> None:
    if here:
        raise OSError(28, "full")


def test_ranks_agree_on_what_only_one_of_them_knows(tmp_path: Path) -> None:
    team(3, _agreeing, tmp_path)


def test_a_batch_is_dealt_whole_and_what_is_left_over_teaches_nothing() -> None:
    batches = [part(i, slice(0, 2)) for i in range(4)]
    dealt = [parallel.own_batches(batches, rank, 3) for rank in range(3)]
    assert [len(own) for own in dealt] == [2, 2, 2]
    taught = [batch for own in dealt for batch in own if batch.weights_BT.any()]
    assert sorted(map(id, taught)) == sorted(map(id, batches))
    idle = [batch for own in dealt for batch in own if not batch.weights_BT.any()]
    assert len(idle) == 2
    assert not idle[0].extra["rehearsal"].weights_BT.any()


def test_recomputed_activations_give_the_same_bits_and_keep_less(tmp_path: Path) -> None:
    kept = {}
    for recompute in (False, True):
        folder, count = tmp_path / str(recompute), [0]
        folder.mkdir()

        def weighed(model: nn.Module, batch: Batch, count: list[int] = count) -> Any:
            def pack(tensor: torch.Tensor) -> torch.Tensor:
                count[0] += tensor.numel()
                return tensor

            with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
                return cross_entropy(model, batch)

        model = tiny_model()
        train(model, weighed, Seeded(random_batch), settings(recompute=recompute), folder, TrainSession(parts=PARTS))
        assert not model.recompute
        torch.save(model.state_dict(), folder / "weights-0.pt")
        kept[recompute] = count[0]
    for name, tensor in weights(tmp_path / "False").items():
        assert torch.equal(tensor, weights(tmp_path / "True")[name])
    assert kept[True] < 0.5 * kept[False]
