"""Traces come back from disk as they went there, and what is damaged is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from klype.answers import trace_files as t
from klype.engine.engine import Engine
from klype.values import Request, Sampling, Trace
from tests.toys import toy


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def drawn(top: int = -1) -> list[Trace]:
    sampling = Sampling(temperature=0.7, logit_bias=((3, 0.5),))
    groups = Engine(toy(), name="toy").run(
        [Request((1, 2, 3), n=3, limit=5, sampling=sampling, stop=(4,), top=top), Request((5,), n=2, limit=3)]
    )
    return [trace for group in groups for trace in group]


def same(a: Trace, b: Trace) -> bool:
    plain = [x for x in ("prompt", "sampling", "seed", "sample", "model", "ended", "passes", "seconds", "joules")]
    if any(getattr(a, name) != getattr(b, name) for name in plain) or len(a.steps) != len(b.steps):
        return False
    for x, y in zip(a.steps, b.steps, strict=True):
        if (x.token, x.logp, x.sampling_logprob, x.source) != (y.token, y.logp, y.sampling_logprob, y.source):
            return False
        if (x.distribution is None) != (y.distribution is None):
            return False
        if x.distribution is not None and y.distribution is not None:
            one, other = x.distribution, y.distribution
            if not (np.array_equal(one.ids, other.ids) and np.array_equal(one.logp, other.logp)):
                return False
            if one.rest != other.rest or one.logp.dtype != other.logp.dtype:
                return False
    return True


@pytest.mark.parametrize("top", [0, 3, -1])
def test_saved_and_loaded_is_the_same(top: int, tmp_path: Path) -> None:
    traces = drawn(top)
    t.save(tmp_path, "a", traces, {"question": "æ"})
    found = t.load(tmp_path, "a", {"question": "æ"})
    assert found is not None
    assert len(found) == 5
    assert all(map(same, traces, found))


def test_no_traces_at_all_are_traces_too(tmp_path: Path) -> None:
    t.save(tmp_path, "none", [], {})
    assert t.load(tmp_path, "none", {}) == []


def test_a_shared_distribution_is_stored_once(tmp_path: Path) -> None:
    """Three answers begin after the same prompt: their first distributions are one."""
    traces = drawn(-1)
    t.save(tmp_path, "a", traces, {})
    arrays = load_file(tmp_path / "a.safetensors")
    steps = sum(step.distribution is not None for trace in traces for step in trace.steps)
    assert len(arrays["q_length"]) <= steps - 2


def test_only_what_is_about_the_same_is_used_again(tmp_path: Path) -> None:
    t.save(tmp_path, "a", drawn(), {"model": "1", "words": (1, 2)})
    assert t.load(tmp_path, "a", {"model": "1", "words": (1, 2)}) is not None
    assert t.load(tmp_path, "a", {"model": "2"}) is None
    assert t.load(tmp_path, "b", {"model": "1"}) is None


@pytest.mark.parametrize("fault", ["cut", "other", "json", "fields", "missing"])
def test_what_is_damaged_is_not_used(fault: str, tmp_path: Path) -> None:
    t.save(tmp_path, "a", drawn(), {})
    numbers, words = tmp_path / "a.safetensors", tmp_path / "a.json"
    if fault == "cut":
        numbers.write_bytes(numbers.read_bytes()[:-5])
    elif fault == "other":
        t.save(tmp_path, "b", drawn(3), {})
        numbers.write_bytes((tmp_path / "b.safetensors").read_bytes())
    elif fault == "json":
        words.write_text(words.read_text()[:-30])
    elif fault == "fields":
        words.write_text(words.read_text().replace('"ended"', '"done"'))
    else:
        numbers.unlink()
    assert t.load(tmp_path, "a", {}) is None
