"""An experiment on targets as ``klype bias`` leaves it: two targets, the truth, two numbers of documents, two seeds."""

from __future__ import annotations

from klype.examine.run_facts import FigureFacts
from klype.experiments.bias import Bars, BestCure, BiasBoard, BiasRow, Curve

KINDS = {"one-hot": "baseline", "ensemble": "cure", "oracle": "truth"}
DOCUMENTS = (50, 100)
WORDS, TRUTH = ["fjellet", "ski", "tur"], [0.5, 0.3, 0.2]


def figure(value: float, unit: str = "nats a token") -> FigureFacts:
    return FigureFacts(value=value, low=value * 0.9, high=value * 1.1, n=2, unit=unit)


def board(done: bool = True, epochs: int = 4) -> BiasBoard:
    """``done`` False: only the fewest documents are finished, and the others are at ``epochs``."""
    finished = DOCUMENTS if done else DOCUMENTS[:1]
    kl = {"one-hot": 0.8, "ensemble": 0.5, "oracle": 0.2}
    rows = [
        BiasRow(
            arm=name,
            documents=count,
            seeds=2,
            turned=2,
            figures={
                "kl": figure(kl[name] * 50 / count),
                "s": figure(0.9, "share a token"),
                "compute": figure(1.0 if name == "one-hot" else 5.5, "times one-hot's"),
                **({"gap": figure((0.8 - kl[name]) / 0.6, "share of the gap")} if name == "ensemble" else {}),
            },
        )
        for count in finished
        for name in KINDS
    ]
    curves = [
        Curve(target=name, documents=count, seed=0, member=0, done=count in finished,
              points=[(epoch, 2 - epoch / 10, kl[name] + 1 / epoch) for epoch in range(1, epochs + 1)])
        for count in DOCUMENTS
        for name in (KINDS if count in finished else ["one-hot"])
    ]  # fmt: skip
    return BiasBoard(
        source="world",
        documents=DOCUMENTS,
        seeds=2,
        kinds=KINDS,
        steps=400,
        epochs=8,
        done=done,
        cells_done=12 if done else 6,
        cells=12,
        rows=rows,
        curves=curves,
        bars=Bars(text="Jeg gikk en tur på", words=WORDS, truth=TRUTH, targets={name: TRUTH for name in KINDS}),
        best=[BestCure(target="ensemble", within=None, gap=figure(0.5, "share of the gap"))] if done else [],
    )
