"""``klype export``: a model for others: a GGUF file, or a repository on the hub."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from klype.cli import options as o
from klype.cli.terminal import Terminal
from klype.errors import KlypeError, UsageError
from klype.option import Option

if TYPE_CHECKING:
    from klype.model.checkpoint import Loaded

LEFT = ("metrics.jsonl", "resume", "manifest.json", "README.md")
"""Of a checkpoint folder: what made it, not what it is; the hashes and the card are written anew."""


def command(
    terminal: Terminal,
    model: o.Model,
    gguf: Annotated[Path | None, Option("Write one GGUF file (llama.cpp's format).")] = None,
    half: Annotated[bool, Option("With --gguf: in float16, half as large.")] = False,
    hub: Annotated[str | None, Option("Push to owner/name on the Hugging Face hub.")] = None,
    dry_run: Annotated[bool, Option("With --hub: only write the folder (--out).")] = False,
    out: Annotated[Path | None, Option("With --dry-run: where.", shown="NAME")] = None,
) -> None:
    """Give MODEL to other programs. A checkpoint folder is a Hugging Face directory as it is."""
    if (gguf is None) == (hub is None):
        raise UsageError("Say where to: --gguf FILE, or --hub owner/name.")
    from klype.model.checkpoint import load
    from klype.sources.opening import find_model

    found = find_model(model)
    if gguf is not None:
        from klype.model.to_gguf import write_gguf

        loaded = load(found.folder, dtype="float16" if half else "float32")
        write_gguf(loaded, gguf)
        document: dict[str, Any] = {"model": model, "gguf": str(gguf), "bytes": gguf.stat().st_size}
    else:
        assert hub is not None
        loaded = load(found.folder)
        document = to_hub(loaded, found.run, hub, out or Path(hub.rpartition("/")[2]) if dry_run else None)
    for name, value in document.items():
        if not terminal.as_json and name != "model":
            terminal.console.print(f"{name}: {value}", markup=False)
    terminal.document(document)


def to_hub(loaded: Loaded, run: Path | None, name: str, folder: Path | None) -> dict[str, Any]:
    """Write the repository's folder, and push it where none is named. Errors: no network, no token, a bad name."""
    import re

    if not re.fullmatch(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", name):
        raise UsageError(f"--hub {name} is not a name on the hub.", "Write owner/name.")
    if folder is not None:
        if folder.exists():
            raise UsageError(f"{folder} is there already.", "Choose another --out.")
        files = write_repository(loaded, run, name, folder)
        return {"model": str(loaded.folder), "folder": str(folder), "files": files}
    with tempfile.TemporaryDirectory() as place:
        write_repository(loaded, run, name, Path(place) / "model")
        return {"model": str(loaded.folder), "hub": push(Path(place) / "model", name)}


def write_repository(loaded: Loaded, run: Path | None, name: str, folder: Path) -> list[str]:
    """The checkpoint's files, with a card made from what its run says of data, measures and energy.

    The hashes are not of the card: who has it on a hub may edit it.
    """
    from klype.model.checkpoint import hub_card
    from klype.model.manifest import put

    if not loaded.folder.is_dir():
        raise UsageError(f"{loaded.folder} is not a checkpoint folder.", "Only those are pushed.")

    def copy(to: Path) -> None:
        for file in loaded.folder.iterdir():
            if file.is_file() and file.name not in LEFT and not file.name.startswith("."):
                shutil.copyfile(file, to / file.name)

    put(folder, copy)
    about = dict(loaded.about)
    if run is not None:
        from klype.runs.folder import read_run

        about = {**about, "run": read_run(run)}
    (folder / "README.md").write_text(hub_card(loaded.config, about, name), encoding="utf-8")
    return sorted(file.name for file in folder.iterdir())


def push(folder: Path, name: str, api: Any = None) -> str:
    """The address of the commit. ``api``: an HfApi; the hub that this machine is logged in to when None."""
    try:
        from huggingface_hub import HfApi, get_token
    except ImportError:
        raise KlypeError("The hub needs the package huggingface_hub.", "Install it: pip install 'klype[hf]'.") from None
    if api is None and get_token() is None:
        raise KlypeError("Nobody is logged in to the hub here.", "Log in with 'hf auth login', or use --dry-run.")
    try:
        api = api or HfApi()
        api.create_repo(name, exist_ok=True)
        return str(api.upload_folder(repo_id=name, folder_path=folder))
    except Exception as error:  # offline, refused: the client raises many kinds
        said = (str(error).splitlines() or [type(error).__name__])[0][:160]
        raise KlypeError(f"{name} was not pushed: {said.rstrip('.')}.", "Use --dry-run to write the folder.") from None
