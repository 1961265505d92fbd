"""Models by what a user calls them, opened to be served."""

from __future__ import annotations

import re
import time
from pathlib import Path

from klype.errors import UsageError
from klype.serve.served import NAME, Served
from klype.sources.find import Found
from klype.sources.native import NativeSource
from klype.sources.opening import open_model


def open_served(text: str, precision: str = "float32", device: str = "auto") -> Served:
    """``MODEL`` or ``NAME=MODEL``; without a name it is made from the folder's. It is opened as everywhere, and its
    engine knows it by its name (a path is nobody's business). Raises UsageError when another server computes it."""
    given, separator, rest = text.partition("=")
    named = bool(separator) and NAME.fullmatch(given) is not None and not Path(text).exists()
    address = rest if named else text
    opened = open_model(address, precision, device=device)
    found, engine = opened.found, opened.engine
    assert isinstance(opened.source, NativeSource), "what has an engine has a tokenizer"
    engine.name = name = given if named else name_of(found, address)
    created = int(found.folder.stat().st_mtime)
    return Served.of(name, opened.source, min(created, int(time.time())))


def name_of(found: Found, text: str) -> str:
    """The run's name (with the stage, when one was named), the folder's or the file's; never a path."""
    last = Path(text).expanduser().resolve()
    if found.run is not None and last != found.run.resolve():
        raw = f"{found.run.resolve().name}-{found.stage}"
    else:
        raw = last.stem if last.is_file() else last.name
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", raw).strip("-._")[:100]
    if not name:
        raise UsageError(f"There is no name to be made from {text}.", "Give it one: NAME=MODEL.")
    return name
