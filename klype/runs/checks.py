"""What is asked of a run, looked at before anything heavy is loaded."""

from __future__ import annotations

import codecs
import glob
from pathlib import Path

from klype.data.collection import Dataset, is_hub
from klype.device import a_device
from klype.errors import UsageError
from klype.option import a_file
from klype.runs.options import RunOptions, StageOptions
from klype.sources.opening import find_model
from klype.words import LANGUAGES


def checked(asked: RunOptions | StageOptions) -> None:
    """Every named file, folder, pattern and model leads to something, and the encoding has a decoder. UsageError,
    before anything is made or started."""
    a_device(asked.device)
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
        a_file(option, file)
    if asked.data is not None and is_hub(asked.data):
        Dataset.parse(str(asked.data))
    elif asked.data is not None and not asked.data.is_dir():
        raise UsageError(f"--data: there is no folder {asked.data}.")
    if asked.from_:
        find_model(asked.from_)
