"""A run whose answers can be ranked, and a studio for browsers: ``python -m tests.studio_work_toys HOME PORT``."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from klype.device import set_threads
from klype.preferences.records import Candidate, RankingItem
from klype.runs.ranking import open_store
from klype.serve.guard import Rules
from klype.serve.server import listen, server
from klype.studio.app import app
from klype.studio.studio import Studio
from klype.values import Question
from tests.studio_server import run_folder

HOSTILE = (
    "<script>window.hacked=1</script><img src=x onerror=window.hacked=2>",
    "\u202egpj.exe\u2066 {{constructor.constructor('window.hacked=3')()}}",
    "x" * 100_000,
)


def run_with_questions(home: Path, questions: int = 8, hostile: bool = False) -> Path:
    """A toy run below ``home`` with a store of questions, each with four answers that mean different things."""
    folder = home / "runs" / "toy"
    folder.mkdir(parents=True)
    run_folder(folder)
    (folder / "finetune" / "metrics.jsonl").write_text(
        "".join(json.dumps({"step": i, "loss": 2 / i}) + "\n" for i in range(1, 400))
    )
    rows = [
        RankingItem(Question(f"q{i}", f"Where is number {i}?"), tuple(Candidate(f"It is at {i}{c}.") for c in "abcd"))
        for i in range(questions)
    ]
    if hostile:
        rows.insert(0, RankingItem(Question("h", f"Why {HOSTILE[0]}?"), tuple(map(Candidate, HOSTILE))))
    with open_store(folder / "rank") as store:
        store.add(rows)
    return folder


def main() -> None:
    set_threads(1)
    home, port = Path(sys.argv[1]), int(sys.argv[2])
    studio = Studio([], home, [sys.executable, "-m", "klype"])
    socket, rules = listen("127.0.0.1", port), Rules()
    running = server(app(studio, rules), rules, grace=2)
    print(f"http://127.0.0.1:{socket.getsockname()[1]}", flush=True)
    running.run(sockets=[socket])


if __name__ == "__main__":
    main()
