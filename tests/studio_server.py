"""A studio for browsers, in a process of its own: ``python -m tests.studio_server HOME`` prints its address.

Its models: a toy of klype's own engine that can be examined, one that says hostile things, and one that never stops.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch

from klype.device import set_threads
from klype.engine.engine import Event
from klype.model import checkpoint
from klype.preferences.records import Entry
from klype.runs.ranking import open_store
from klype.serve.guard import Rules
from klype.serve.server import listen, server
from klype.sources.model_files import ModelFiles
from klype.sources.opening import OpenModel
from klype.studio.app import app
from klype.studio.studio import SharedModel, Studio
from klype.values import Distribution, Request, Step, Trace
from tests.serve_toys import served
from tests.studio_targets_toys import board
from tests.studio_toys import model
from tests.toys import bigram

HOSTILE = [
    b"<script>window.hacked=1</script>",
    b"<img src=//evil.example/x onerror=window.hacked=2>",
    "\u202egpj.exe\u2066".encode(),
    b"\x1b[31m\x00",
    b" <|end|>",
    b"{{constructor.constructor('window.hacked=3')()}}",
    b"`${window.hacked=4}`",
    b"</span></div></template>",
    b"{a|b}{name}",
    b"=cmd()",
    b"\xff\xfe",
    b"x" * 100_000,
]
LONG = [f" word{i % 97}".encode() for i in range(2000)]


class Scripted:
    """A source that always says the same tokens; codec and source in one."""

    name = "scripted"

    def __init__(self, pieces: Sequence[bytes]) -> None:
        self.pieces = list(pieces)
        self.codec = self
        self.stop = (len(pieces),)

    def encode(self, text: str) -> list[int]:
        return [min(len(self.pieces) - 1, c) for c in text.encode()[:50]] or [0]

    def prompt(self, messages: Sequence[object]) -> list[int]:
        return [0]

    def decode(self, ids: Sequence[int]) -> str:
        return b"".join(map(self.token_bytes, ids)).decode("utf-8", "replace")

    def token_bytes(self, token: int) -> bytes:
        return self.pieces[token] if token < len(self.pieces) else b""

    def next(self, prefixes: Sequence[Sequence[int]], top: int = -1) -> list[Distribution]:
        return [self._after(len(prefix) - 1) for prefix in prefixes]

    def score(self, prompts: object, answers: object, top: int = 0) -> list[Trace]:
        raise NotImplementedError

    def generate(self, requests: Sequence[Request]) -> Iterator[Event]:
        for place, request in enumerate(requests):
            begun = len(request.prompt) - 1
            for sample in range(request.n):
                steps: list[Step] = []
                ids = [*range(begun, len(self.pieces) + 1)][: request.limit]
                for i, token in enumerate(ids):
                    steps.append(Step(token, -0.3, -0.2, "drawn", self._after(begun + i)))
                    ended = i == len(ids) - 1
                    trace = Trace(request.prompt, tuple(steps), request.sampling, 0, sample, "s", "stop", len(ids), 0.5)
                    yield Event(place, sample, steps[-1], trace if ended else None)

    def _after(self, place: int) -> Distribution:
        size = len(self.pieces) + 1
        first = min(place, size - 1)
        ids = np.array([first, *(i for i in range(size) if i != first)][:12])
        p = np.array([0.7, *([0.3 / (len(ids) - 1)] * (len(ids) - 1))])
        return Distribution(ids, np.log(p))


def scripted(name: str, pieces: Sequence[bytes]) -> SharedModel:
    source = Scripted(pieces)
    size = len(pieces) + 1
    control = lambda token: "<|end|>" if token == len(pieces) else None
    found = ModelFiles(Path("nowhere"))
    return SharedModel(
        name, name, OpenModel(name, found, source, 4096, size, source.token_bytes, control, source.encode, True)
    )


def run_folder(folder: Path) -> Path:
    """A run with one finished stage and questions, as ``klype examine`` reads it."""
    toy = served("toy", 3)
    tokenizer = toy.tokenizer
    logits_VV = torch.randn(tokenizer.vocab_size, tokenizer.vocab_size, generator=torch.Generator().manual_seed(3))
    logits_VV[:, tokenizer.end] += 6  # answers of a few words
    (folder / "run.json").write_text(json.dumps({"recipe": "toy", "settings": {"kind": "text"}}))
    rows = [{"id": f"q{i}", "question": f"hvor gikk hun {i}?", "answers": ["hun gikk en tur"]} for i in range(10)]
    (folder / "questions.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n")
    checkpoint.save(folder / "finetune", bigram(logits_VV), tokenizer, {"stage": "finetune"})
    return folder / "finetune"


def ranked_and_trained(home: Path) -> None:
    """A run whose answers two people have ranked, and an experiment on targets."""
    from tests.studio_work_toys import run_with_questions

    with open_store(run_with_questions(home) / "rank") as store:
        questions = store.questions()
        for name in ("Kari", "Ola"):
            order = ((0,), (1, 2), (3,))
            store.put([Entry(one, order, name, when=f"2026-01-0{i}") for i, one in enumerate(questions[:5], 1)])
    (home / "targets" / "toy").mkdir(parents=True)
    board().write(home / "targets" / "toy")


def shown(home: Path) -> list[SharedModel]:
    toy = model("toy/align", 3)
    toy.address = str(run_folder(home / "run"))
    return [scripted("hostile", HOSTILE), scripted("short", HOSTILE[:-1]), scripted("long", LONG), toy]


def main() -> None:
    set_threads(1)
    home, empty = Path(sys.argv[1]), len(sys.argv) > 2
    if not empty:
        (home / "run").mkdir()
        ranked_and_trained(home)
    models = [] if empty else shown(home)
    studio = Studio(models, home, [sys.executable, "-m", "klype"], opens=True)
    socket, rules = listen("127.0.0.1", 0), Rules()
    running = server(app(studio, rules), rules, grace=2)
    print(f"http://127.0.0.1:{socket.getsockname()[1]}", flush=True)
    running.run(sockets=[socket])


if __name__ == "__main__":
    main()
