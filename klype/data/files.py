"""Which files are meant: those named, and those of a kind that can be read in folders and globs."""

from __future__ import annotations

import glob
import re
from collections.abc import Collection, Sequence
from pathlib import Path

from klype.errors import UsageError
from klype.jsons import parsed

PLAIN = (".txt", ".md", ".text", ".markdown")
PACKED = (".gz", ".zst")

_NO_DATA = re.compile(r"(licen[cs]e|copying|readme)\b|dataset_dict\.json$", re.IGNORECASE)

Paths = str | Path | Sequence[str | Path]


def files_of(paths: Paths, kinds: Collection[str]) -> list[Path]:
    """Files, and those of some kinds in folders and globs; each once, sorted within its folder or glob.

    In a folder, hidden files and those named LICENCE, LICENSE, COPYING or README are left out, what klype's own runs
    wrote below it, and of a data set that ``datasets`` saved there all but its rows.
    """
    found: dict[Path, None] = {}
    runs = _Runs()
    for given in [paths] if isinstance(paths, (str, Path)) else paths:
        path = Path(given).expanduser()
        if path.is_file():
            matches = [path]
        elif path.is_dir():
            inside = (p for p in path.rglob("*") if kind_of(p) in kinds and p.is_file())
            data = (p for p in inside if not _NO_DATA.match(p.name) and not _hidden(p, path) and not _beside_rows(p))
            matches = sorted(p for p in data if not runs.wrote(p, path))
        else:
            matches = sorted(Path(p) for p in glob.glob(str(path), recursive=True) if Path(p).is_file())
        if not matches:
            what = f"The folder {path} holds no file of a kind that can be read." if path.is_dir() else ""
            raise UsageError(what or f"There is no file {path}.", readable(kinds))
        found.update(dict.fromkeys(matches))
    return list(found)


def kind_of(file: Path) -> str:
    """A file's kind by its ending, .gz or .zst apart: ".jsonl"."""
    return (Path(file.stem) if file.suffix in PACKED else file).suffix.lower()


def _hidden(file: Path, folder: Path) -> bool:
    return any(part.startswith(".") for part in file.relative_to(folder).parts)


def _beside_rows(file: Path) -> bool:
    """Whether ``save_to_disk`` of the package datasets wrote it beside the rows, or it was cached there."""
    saved = all((file.parent / name).is_file() for name in ("state.json", "dataset_info.json"))
    return saved and not (file.suffix == ".arrow" and file.name.startswith("data-"))


class _Runs:
    """The folders of klype's own runs. Their records are no text, and a run must not read what it writes."""

    def __init__(self) -> None:
        self._known: dict[Path, bool] = {}

    def wrote(self, file: Path, folder: Path) -> bool:
        """Whether the file lies in such a folder, which lies in this one."""
        below = file.relative_to(folder).parents
        return any(self._is_run(folder / part) for part in below if part != Path())

    def _is_run(self, folder: Path) -> bool:
        if folder not in self._known:
            try:
                about = parsed((folder / "run.json").read_bytes())
                self._known[folder] = "klype" in about["versions"]
            except (OSError, ValueError, TypeError, KeyError):
                self._known[folder] = False
        return self._known[folder]


def readable(kinds: Collection[str]) -> str:
    """The kinds in words."""
    return f"Readable are {', '.join(kinds)}, also with {' or '.join(PACKED)}."


def names(paths: Paths) -> str:
    """The paths in words."""
    return ", ".join(map(str, [paths] if isinstance(paths, (str, Path)) else paths))
