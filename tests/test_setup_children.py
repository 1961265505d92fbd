"""A parent that is killed leaves nobody behind: every kind of child that klype starts ends with it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from klype.child_processes import bind_to_parent
from klype.studio.background_jobs import CHILD, PROCESS, WorkPlan, begin

SLEEPS = [sys.executable, "-m", "timeit", "-n1", "-r1", "-s", "import time", "time.sleep(600)"]
POOL = """
import time
from klype.experiments.framework import side_by_side
if __name__ == "__main__":
    with side_by_side(2) as pool:
        [pool.submit(time.sleep, 600) for _ in range(3)][0].result()
"""
DOCUMENTS = """
import time
from klype.data.example_batches import PoolProcess, PoolSettings
if __name__ == "__main__":
    PoolProcess(time.sleep, 100_000, PoolSettings(rows=1)).get()
"""
COMMAND = f"""
import subprocess
from klype.child_processes import bind_to_parent
subprocess.run(bind_to_parent({SLEEPS!r}))
"""


def until(so: Callable[[], object], seconds: float = 60.0) -> None:
    ends = time.monotonic() + seconds
    while not so():
        assert time.monotonic() < ends
        time.sleep(0.05)


def gone(process: psutil.Process) -> bool:
    try:
        return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def at_work(parent: psutil.Process) -> list[psutil.Process]:
    """Its children, but for those of Python's that only keep accounts and end when the last one who asks them does."""
    children = parent.children(recursive=True)
    return [child for child in children if not any("resource_tracker" in word for word in child.cmdline())]


def killed_leaves_nobody(process: subprocess.Popen[bytes], children: int) -> None:
    parent, below = psutil.Process(process.pid), list[psutil.Process]()
    try:
        until(lambda: len(at_work(parent)) >= children, 300)
        below = at_work(parent)
        process.kill()
        process.wait()
        until(lambda: all(map(gone, below)))
    finally:
        for one in (parent, *below):
            if not gone(one):
                one.kill()


@pytest.mark.slow
@pytest.mark.parametrize(("code", "children"), [(POOL, 2), (DOCUMENTS, 1), (COMMAND, 1)])
def test_children_end_with_a_parent_that_is_killed(tmp_path: Path, code: str, children: int) -> None:
    (tmp_path / "parent.py").write_text(code)
    killed_leaves_nobody(subprocess.Popen([sys.executable, str(tmp_path / "parent.py")]), children)


@pytest.mark.soak
def test_an_experiment_that_is_killed_leaves_no_cell_at_work(tmp_path: Path) -> None:
    words = [
        "--documents",
        "300",
        "--seeds",
        "2",
        "--targets",
        "oracle",
        "--set",
        "epochs=100000",
        "--out",
        str(tmp_path / "out"),
    ]
    run = [sys.executable, "-m", "klype", "bias", *words]
    killed_leaves_nobody(subprocess.Popen(run, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL), 2)


@pytest.mark.slow
def test_work_of_the_studio_that_is_killed_takes_its_step_along(tmp_path: Path) -> None:
    work = begin(tmp_path, WorkPlan("run", tmp_path / "runs" / "r", [SLEEPS], {}))
    until(lambda: (work.folder / CHILD).is_file())
    chain, step = (psutil.Process(int(work._process(file).pid)) for file in (PROCESS, CHILD))  # type: ignore[union-attr]
    os.kill(chain.pid, signal.SIGKILL)
    until(lambda: gone(step))


def test_a_module_is_run_as_it_would_be_and_other_commands_are_left_alone() -> None:
    code = ["-m", "json.tool", "--compact"]
    for run in ([sys.executable, *code], bind_to_parent([sys.executable, *code])):
        done = subprocess.run(run, input=b'{"a": [1]}', capture_output=True)
        assert (done.returncode, done.stdout) == (0, b'{"a":[1]}\n')
    assert bind_to_parent(["klype", "-m", "x"]) == ["klype", "-m", "x"]
    failed = subprocess.run(
        bind_to_parent([sys.executable, "-m", "klype", "ask", "nowhere", "hi"]), capture_output=True
    )
    assert failed.returncode == 2
    assert failed.stderr.startswith(b"klype: There is no model nowhere.")


@pytest.mark.slow
def test_a_script_that_spawns_is_not_run_again_by_its_children(tmp_path: Path) -> None:
    (tmp_path / "samples.py").write_text("def one(index):\n    return [1, 2, 3], [0.0, 1.0, 1.0]\n")
    (tmp_path / "script.py").write_text(
        "import samples\nfrom klype.data.example_batches import PoolProcess, PoolSettings\n"
        "print('begun')\n"  # and no if __name__ == "__main__"
        "process = PoolProcess(samples.one, 0, PoolSettings(2, batches=2))\n"
        "print(len(process.get()))\nprocess.close()\n"
    )
    done = subprocess.run([sys.executable, "script.py"], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout == "begun\n2\n"
