"""The machine: policies, choices and probes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from klype import device
from klype.errors import UsageError
from klype.model.config import ModelConfig


def test_thread_policy_is_in_force_before_torch_and_keeps_the_users_choice() -> None:
    environ = {"OMP_WAIT_POLICY": "active"}
    assert device.thread_policy(environ) == environ
    assert environ["OMP_WAIT_POLICY"] == "active"
    assert environ["GOMP_SPINCOUNT"] == "1000"
    clean = {k: v for k, v in os.environ.items() if k not in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")}
    script = (
        "import sys; from klype.device import memory_policy, thread_policy; thread_policy(); memory_policy()\n"
        "assert 'torch' not in sys.modules\n"
        "import os; print(os.environ['OMP_WAIT_POLICY'])"
    )
    done = subprocess.run([sys.executable, "-c", script], env=clean, capture_output=True, text=True, check=True)
    assert done.stdout == "passive\n"


def test_threads_are_at_least_one_and_at_most_the_cores() -> None:
    assert 1 <= device.usable_cores() <= (os.cpu_count() or 1)
    assert device.set_threads(1) == 1
    with pytest.raises(UsageError, match="at least 1"):
        device.set_threads(0)


def test_small_products_are_one_threads_and_the_number_is_what_it_was_afterwards() -> None:
    before = torch.get_num_threads()
    device.set_threads(3)
    with device.threads_for(device.WAKING):
        assert torch.get_num_threads() == 3
    with device.threads_for(device.WAKING / 2):
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == 3
    device.set_threads(before)


@pytest.mark.parametrize(
    ("text", "cores"), [("max 100000", None), ("150000 100000", 2), ("100000 100000", 1), ("", None)]
)
def test_a_containers_quota_is_rounded_up(tmp_path: Path, text: str, cores: int | None) -> None:
    (tmp_path / "cpu.max").write_text(text, encoding="ascii")
    assert device._quota(tmp_path / "cpu.max") == cores
    assert device._quota(tmp_path / "none") is None


def test_devices_and_precisions_that_do_not_exist_are_named() -> None:
    cpu = device.pick_device("cpu")
    assert cpu.type == "cpu"
    assert device.pick_device().type in ("cpu", "cuda", "mps")
    for name in ("cpux", "cuda:99", "cpu:3"):
        with pytest.raises(UsageError, match="device"):
            device.pick_device(name)
    assert device.pick_precision("bfloat16", cpu) == "bfloat16"
    assert device.pick_precision("auto", cpu) in ("float32", "bfloat16")
    with pytest.raises(UsageError, match="float16"):
        device.pick_precision("float16", cpu)


def test_probes_measure_something() -> None:
    assert device.gemm_gflops("float32", 64, 0.01) > 0.01
    assert device.bandwidth_gbs(1, 0.01) > 0.01
    total, available = device.memory_gib()
    assert 0 < available <= total
    assert device.processor()


def test_energy_counters_add_up_and_wrap(tmp_path: Path) -> None:
    assert device.EnergyMeter(tmp_path).joules() is None
    assert not device.EnergyMeter(tmp_path).available
    counters = [tmp_path / "intel-rapl:0", tmp_path / "intel-rapl:1"]
    inner = tmp_path / "intel-rapl:0:0"  # a part of package 0: not to be counted twice
    for folder in (*counters, inner):
        folder.mkdir()
        (folder / "energy_uj").write_text("900\n", encoding="ascii")
        (folder / "max_energy_range_uj").write_text("999\n", encoding="ascii")
    meter = device.EnergyMeter(tmp_path)
    assert meter.joules() == 0
    (counters[0] / "energy_uj").write_text("950\n", encoding="ascii")
    assert meter.joules() == pytest.approx(50e-6)
    (counters[1] / "energy_uj").write_text("100\n", encoding="ascii")  # wrapped: 900 → 999 → 100 is 200 steps
    assert meter.joules() == pytest.approx(250e-6)


def test_flops_are_twice_the_weights_and_the_attention() -> None:
    shape = ModelConfig(vocab_size=100, width=8, layers=3, heads=4, kv_heads=2, head_dim=2, hidden=16, conv=0)
    weights = 3 * (8 * 8 + 8 * 4 + 8 * 4 + 8 * 8 + 3 * 8 * 16) + 8 * 100  # q, k, v, o, gates and down; unembedding
    assert shape.flops_at(0) == 2 * weights
    assert shape.flops_at(10) - shape.flops_at(0) == 3 * 4 * 10 * 8
