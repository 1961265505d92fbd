"""What the plans of experiments have in common: kept in a folder, rows of a table by name, documents that there are."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ValidationError

from klype import config
from klype.errors import KlypeError, UsageError
from klype.experiments.bias.corpus import Source

Kept = TypeVar("Kept", bound=BaseModel)


def kept(file: Path, kind: type[Kept]) -> Kept | None:
    """The plan that an earlier start has left there; None where it is the first. KlypeError for a damaged one."""
    if not file.is_file():
        return None
    try:
        return kind.model_validate_json(file.read_bytes())
    except ValidationError:
        raise KlypeError(f"{file} is damaged.", "Choose another --out.") from None


def check_documents(source: Source, documents: Sequence[int]) -> None:
    """UsageError when the source has not so many."""
    if documents and source.within(tuple(documents)) != tuple(documents):
        most = source.within(tuple(documents))[-1]
        raise UsageError(f"--documents: the text has only {most} pieces to draw from.", f"Ask for {most} at most.")


def rows_called(names: Sequence[str], known: Sequence[str], always: str, unknown: str) -> tuple[str, ...]:
    """Names of rows in the table's order (all when none is named), one of them always; UsageError for one there is not,
    which begins as ``unknown`` does."""
    for name in names:
        if name not in known:
            near = config.nearest(name, list(known))
            hint = f"Did you mean {near}?" if near else f"There are: {', '.join(known)}."
            raise UsageError(f"{unknown} called {name}.", hint)
    return tuple(name for name in known if not names or name in names or name == always)
