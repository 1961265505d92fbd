"""The files that a run reads: they are there, and a resumed run goes on with the same ones, or not at all."""

from __future__ import annotations

import codecs
import glob
import os
from collections.abc import Mapping
from pathlib import Path

from klype.data.collection import Dataset, is_hub
from klype.data.files import files_of
from klype.data.readers import KINDS
from klype.device import pick_device
from klype.durable import hash_file
from klype.errors import UsageError
from klype.runs.options import InputOptions, RunOptions, StageOptions
from klype.sources.find import find_model
from klype.words import LANGUAGES


def checked(asked: RunOptions | StageOptions) -> None:
    """Every named file, folder, pattern and model leads to something, and the encoding has a decoder. UsageError,
    before anything is made or started."""
    pick_device(asked.device)
    if asked.lang not in LANGUAGES:
        raise UsageError(f"There is no language '{asked.lang}': use {' or '.join(LANGUAGES)}.")
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
    if asked.from_:
        find_model(asked.from_)


ANOTHER = "start another run with another --out"


def hashes(options: InputOptions) -> dict[str, str]:
    """SHA-256 of every file that is given, by its absolute path, for a run is gone on with from any folder. What was
    fetched from the Hub lies in the run's own folder."""
    given = [*options.text, options.instructions, options.preferences, options.data]
    paths = [path for path in given if path is not None and not is_hub(path)]
    return {os.path.abspath(file): hash_file(file) for file in files_of(paths, KINDS)}


def unchanged(options: InputOptions, began: Mapping[str, str]) -> dict[str, str]:
    """The hashes, which are those that the run began with. UsageError for a file that is missing, new or another."""
    for name in began:
        if not Path(name).is_file():
            raise UsageError(f"{name} is missing, which this run began with.", f"Put the file back, or {ANOTHER}.")
    now = hashes(options)
    for name, digest in now.items():
        if name not in began:
            raise UsageError(f"{name} is new since this run began.", f"Take it away, or {ANOTHER}.")
        if began[name] != digest:
            raise UsageError(f"{name} has changed since this run began.", f"Put the old file back, or {ANOTHER}.")
    return now
