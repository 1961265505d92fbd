"""targets.json: all that a page needs to show the experiment while it runs and afterwards, always whole on the disk."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from klype.answers.traces import replace
from klype.errors import KlypeError
from klype.examine.facts import FigureFacts

FILE = "targets.json"
MEASURES = ("kl", "reverse_kl", "s", "calibration", "right", "bits_per_byte", "loss", "compute", "gap")
"""What a row may tell, in the order of columns. kl, reverse_kl, loss: nats a token; compute: times that of one-hot."""


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Row(_Part):
    """One target at one number of documents, over the seeds that are finished. ``turned``: in so many of these seeds
    held-out loss rose before the end."""

    target: str
    documents: int
    seeds: int
    turned: int
    figures: dict[str, FigureFacts]


class Curve(_Part):
    """One model's way: (epoch, held-out loss, KL to the truth), nats a token. ``done``: it has been measured."""

    target: str
    documents: int
    seed: int
    member: int
    done: bool
    points: list[tuple[int, float, float | None]]


class Bars(_Part):
    """What may follow ``text``: the truth, and each target's model (mean over finished seeds, most documents)."""

    text: str
    words: list[str]
    truth: list[float]
    targets: dict[str, list[float]]


class Best(_Part):
    """The cure with the least KL on the half of the test that no figure comes from, of those within a compute."""

    target: str
    within: float | None
    gap: FigureFacts


class Board(_Part):
    """``steps`` of training and ``epochs`` of a model at most; ``kinds`` (baseline, cure, beside, truth) by target,
    in the table's order."""

    version: Literal[1] = 1
    source: Literal["world", "text"]
    documents: tuple[int, ...]
    seeds: int
    kinds: dict[str, str]
    steps: int
    epochs: int
    done: bool = False
    cells_done: int = 0
    cells: int = 0
    rows: list[Row] = Field(default_factory=list)
    curves: list[Curve] = Field(default_factory=list)
    bars: Bars | None = None
    best: list[Best] = Field(default_factory=list)

    def row(self, target: str, documents: int) -> Row | None:
        return next((r for r in self.rows if r.target == target and r.documents == documents), None)

    def write(self, folder: Path) -> None:
        """Whole or not at all."""
        replace(folder / FILE, self.model_dump_json().encode())

    @staticmethod
    def read(folder: Path) -> Board:
        """KlypeError when there is none, or it is not one."""
        file = folder / FILE
        try:
            return Board.model_validate_json(file.read_bytes())
        except FileNotFoundError:
            raise KlypeError(f"There is no {FILE} in {folder}.", "Make one with klype bias --out.") from None
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"]))
            raise KlypeError(f"{file} is damaged: {where}: {first['msg']}.", "Run klype bias again.") from None


def document(board: Board) -> dict[str, Any]:
    """What ``klype bias --json`` prints: the figures at the most documents, and all of them by documents."""
    by = {
        str(count): {
            r.target: {**r.figures, "turned": r.turned, "seeds": r.seeds} for r in board.rows if r.documents == count
        }
        for count in board.documents
    }
    most = board.documents[-1]
    return {
        "targets": by[str(most)],
        "documents": most,
        "seeds": board.seeds,
        "source": board.source,
        "by_documents": by,
        "best": [b.model_dump() for b in board.best],
    }
