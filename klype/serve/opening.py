"""Models by what a user calls them, opened to be served."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from pathlib import Path

from klype.device import pick_device, pick_precision
from klype.errors import UsageError
from klype.model import checkpoint
from klype.model.native import Kernel, suits
from klype.model.packed import fastest_alone, pack
from klype.serve.served import NAME, Served
from klype.sources.find import Found, find_model
from klype.sources.native import NativeSource


def open_served(text: str, precision: str = "float32", compiled: Callable[[], Kernel | None] = lambda: None) -> Served:
    """``MODEL`` or ``NAME=MODEL``; without a name it is made from the folder's. ``compiled`` is asked for the pass in
    C where the model suits, or where a precision is to be chosen."""
    given, separator, rest = text.partition("=")
    named = bool(separator) and NAME.fullmatch(given) is not None and not Path(text).exists()
    found = find_model(rest if named else text)
    name = given if named else name_of(found, text)
    asked = fastest_alone(kernel=compiled()) if precision == "auto" else precision
    chosen = pick_precision(asked, pick_device("cpu"))
    loaded = checkpoint.load(found.folder, dtype="float32" if chosen == "int8" else chosen)
    pack(loaded.model, chosen, compiled() if suits(loaded.config) else None)
    chat = loaded.chat if loaded.tokenizer.template is not None else None
    created = int(found.folder.stat().st_mtime)
    return Served.of(name, NativeSource.of(loaded.model, loaded.tokenizer, chat, name), min(created, int(time.time())))


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
