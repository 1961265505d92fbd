"""Kinds of MODEL: how a name is recognised, what is opened by it, and what help and errors call it.

A new kind is a row of KINDS and the function that opens it. Nothing heavy is imported: the command line reads the table
before anything is computed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from klype.sources.find import Found
    from klype.sources.opening import Opened


@dataclass(frozen=True, slots=True)
class OpenOptions:
    """How a MODEL is opened, as ``open_model`` explains it."""

    precision: str = "float32"
    measured: bool = False
    budget: str = ""
    device: str = "auto"


@dataclass(frozen=True, slots=True)
class ModelKind:
    """A name that begins so is of this kind. ``help`` writes such a name.

    ``short(name)``: what the studio calls the model. ``find(name)``: its files; None where it has none here, of which
    errors say that it is ``where``.
    """

    begins: tuple[str, ...]
    help: str
    short: Callable[[str], str]
    open: Callable[[str, OpenOptions], Opened]
    find: Callable[[str], Found] | None = None
    where: str = "elsewhere"


def kind_of(name: str) -> ModelKind:
    """By how the name begins; any other is a path."""
    return next((kind for kind in KINDS if name.startswith(kind.begins)), PATH)


def spelled(files: bool = False) -> str:
    """The names of all kinds, or of those that have ``files``, for help."""
    *first, last = (kind.help for kind in (PATH, *KINDS) if kind.find is not None or not files)
    return f"{', '.join(first)} or {last}"


def _open_files(name: str, how: OpenOptions) -> Opened:
    from klype.sources.opening import open_files

    return open_files(name, how)


def _find_path(name: str) -> Found:
    from klype.sources.find import find_path

    return find_path(name)


def _short_path(name: str) -> str:
    from klype.sources.find import NEWEST_FIRST

    path = Path(name)
    return f"{path.resolve().parent.name}/{path.name}" if path.name in NEWEST_FIRST else path.name


def _fetch(name: str) -> Found:
    from klype.sources.find import Found
    from klype.sources.hf_open import fetch

    return Found(fetch(name.removeprefix("hf:")))


def _open_server(name: str, how: OpenOptions) -> Opened:
    from klype.sources.open_remote import open_remote

    return open_remote(name, how.budget)


PATH = ModelKind(
    (),
    "a run, one of its stages (RUN/finetune), a model's folder, a GGUF file",
    short=_short_path,
    open=_open_files,
    find=_find_path,
)
SERVER = ModelKind(
    ("http://", "https://"),
    "a server's http://host:port/v1#name",
    short=lambda name: name.partition("#")[2] or name,
    open=_open_server,
    where="behind a server",
)
KINDS: tuple[ModelKind, ...] = (
    ModelKind(
        ("hf:",),
        "hf:owner/name",
        short=lambda name: name.rpartition("/")[2],
        open=_open_files,
        find=_fetch,
    ),
    SERVER,
)
