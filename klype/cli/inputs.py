"""Inputs that are plainly wrong are refused before anything is made or started."""

from __future__ import annotations

import codecs
import glob
from pathlib import Path
from typing import TYPE_CHECKING

from klype.data.hub import Dataset, is_hub
from klype.errors import UsageError

if TYPE_CHECKING:
    from klype.runs.options import InputOptions


def checked(asked: InputOptions) -> None:
    """Every named file, folder or pattern leads to something, and the encoding has a decoder."""
    try:
        codecs.lookup(asked.encoding)
    except LookupError:
        raise UsageError(f"--encoding: there is no encoding '{asked.encoding}'.", "Try utf-8 or latin-1.") from None
    for name in asked.text:
        if not Path(name).expanduser().exists() and not glob.glob(name, recursive=True):
            raise UsageError(f"--text: there is nothing at {name}.")
    for option, file in (("--instructions", asked.instructions), ("--preferences", asked.preferences)):
        if file is not None and not file.is_file():
            raise UsageError(f"{option}: there is no file {file}.")
    if asked.data is not None and is_hub(asked.data):
        Dataset.parse(str(asked.data))
    elif asked.data is not None and not asked.data.is_dir():
        raise UsageError(f"--data: there is no folder {asked.data}.")
