"""Metrics as TensorBoard's event files: the same numbers at the same steps."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from klype.errors import UsageError
from klype.runs.run_json import write_events


@pytest.fixture
def run(tmp_path: Path) -> Path:
    for stage, steps in (("pretrain", 5), ("align", 3)):
        (tmp_path / stage).mkdir()
        rows = [{"step": i, "loss": 3.0 / i, "norm": float("nan"), "seconds": 2.0 * i} for i in range(1, steps + 1)]
        (tmp_path / stage / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


def test_events_are_the_metrics(run: Path) -> None:
    loading = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    for _ in range(2):  # written anew, not added to
        assert write_events(run) == {"pretrain": 5, "align": 3}
    events = loading.EventAccumulator(str(run / "tensorboard" / "pretrain"))
    events.Reload()
    assert events.Tags()["scalars"] == ["loss"]  # what is no number is left out
    found = events.Scalars("loss")
    assert [(e.step, e.value) for e in found] == [(i, pytest.approx(3.0 / i)) for i in range(1, 6)]
    assert found[-1].wall_time - found[0].wall_time == pytest.approx(8.0, abs=0.01)


def test_what_is_missing_is_said(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no stage with metrics"):
        write_events(tmp_path / "pretrain")
