"""What the script that takes pictures of the studio does around them."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "scripts"))  # as a script finds its neighbours
from screenshots import studio

SLOW = """
import json, os, signal, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
print(json.dumps({"url": f"http://127.0.0.1:1/{os.getpid()}/"}), flush=True)
time.sleep(600)
"""


def test_a_studio_that_does_not_end_in_time_is_no_failure(tmp_path: Path) -> None:
    (script := tmp_path / "slow.py").write_text(SLOW)
    with studio(tmp_path, tmp_path, [sys.executable, str(script)], patience_s=0.2) as url:
        pid = int(url.rpartition("/")[2])
        os.kill(pid, 0)
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
