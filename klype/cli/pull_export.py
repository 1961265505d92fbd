"""``klype pull`` and ``export``: models from the Hugging Face hub; models as a GGUF file or a repository on the hub."""

import re
import shutil
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from klype.cli import options as o
from klype.cli.terminal import Terminal, print_table
from klype.errors import KlypeError, UsageError, short_error
from klype.option import Option
from klype.words import number

if TYPE_CHECKING:
    from klype.model.checkpoint import LoadedModel
    from klype.sources.hub import Download

EVERY_S = 0.2, 15.0  # between updates of the bar, and between plain lines
# files of a checkpoint folder that are not part of the model; hashes and card are written anew
LEFT = ("metrics.jsonl", "resume", "manifest.json", "README.md")


def pull_command(
    terminal: Terminal,
    name: Annotated[
        str | None, Option("A short name from the list, or OWNER/NAME on the hub.", argument=True, metavar="[NAME]")
    ] = None,
    out: o.OutFile = None,
) -> None:
    """Fetch a small open model from the Hugging Face hub, to be used by its short name. Without NAME: list them."""
    if name is None:
        terminal.document(list_models(terminal), out)
        return
    from klype.sources.hub import find_pulled, look_up

    if (folder := find_pulled(name)) is None:
        download = look_up(name)
        with download_progress(terminal, download):
            folder = download.run()
    terminal.say("pull.done", name=folder.name, folder=folder)
    terminal.document({"name": folder.name, "path": str(folder)}, out)


def list_models(terminal: Terminal) -> dict[str, Any]:
    """Prints and returns the models that can be fetched or are here."""
    from klype.sources.model_files import HUB, models_here

    here, w = models_here(), terminal.words
    rows: list[dict[str, Any]] = []
    for name in (*HUB, *(set(here) - set(HUB))):
        about = asdict(HUB[name]) if name in HUB else {}
        rows.append({"name": name, **about, "path": str(here[name]) if name in here else None})
    if not terminal.as_json:
        shown = [
            [row["name"], size_of(row["gigabytes"], terminal.lang) if "gigabytes" in row else "",
             row.get("licence", ""), w("pull.yes") if row["path"] else ""]
            for row in rows
        ]  # fmt: skip
        columns = [w(f"pull.{key}") for key in ("name", "size", "licence", "here")]
        print_table(terminal.console, w("pull.title"), columns, shown)
        terminal.say("pull.how")
    return {"models": rows}


@contextmanager
def download_progress(terminal: Terminal, download: "Download") -> Iterator[None]:
    """Shows how much has been fetched: as a bar on a terminal, else as a line now and then."""
    from rich.progress import BarColumn, DownloadColumn, Progress, TimeRemainingColumn

    lang, total, ended = terminal.lang, size_of(download.size / 1e9, terminal.lang), threading.Event()
    terminal.say("pull.fetching", repository=download.repository, size=total)
    columns = BarColumn(bar_width=None), DownloadColumn(), TimeRemainingColumn(compact=True)
    bar = Progress(*columns, console=terminal.console, transient=True, disable=not terminal.can_redraw)
    task = bar.add_task("", total=download.size)

    def watch() -> None:
        while not ended.wait(EVERY_S[0] if terminal.can_redraw else EVERY_S[1]):
            done = min(download.done(), download.size)
            bar.update(task, completed=done)
            if not terminal.can_redraw:
                terminal.say("pull.so_far", done=size_of(done / 1e9, lang), size=total)

    thread = threading.Thread(target=watch, daemon=True)
    with bar:
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()


def size_of(gigabytes: float, lang: str) -> str:
    """ "0.27 GB", "3.1 MB"."""
    return f"{number(gigabytes, lang, 2)} GB" if gigabytes >= 0.1 else f"{number(gigabytes * 1e3, lang, 2)} MB"


def export_command(
    terminal: Terminal,
    model: o.ModelName,
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
        load(found.folder, dtype="float16" if half else "float32").to_gguf(gguf)
        document: dict[str, Any] = {"model": model, "gguf": str(gguf), "bytes": gguf.stat().st_size}
    else:
        assert hub is not None
        folder, loaded = out or Path(hub.rpartition("/")[2]) if dry_run else None, load(found.folder)
        document = {"model": str(loaded.folder), **to_hub(loaded, found.run, hub, folder)}
    terminal.lines(f"{name}: {value}" for name, value in document.items() if name != "model")
    terminal.document(document)


def to_hub(loaded: "LoadedModel", run: Path | None, name: str, folder: Path | None) -> dict[str, Any]:
    """Writes the repository to ``folder``, or, where that is None, pushes it to the hub. Raises KlypeError for a bad
    name, without a token, and without a network."""
    if not re.fullmatch(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", name):
        raise UsageError(f"--hub {name} is not a name on the hub.", "Write owner/name.")
    if folder is not None:
        if folder.exists():
            raise UsageError(f"{folder} is there already.", "Choose another --out.")
        return {"folder": str(folder), "files": write_repository(loaded, run, name, folder)}
    with tempfile.TemporaryDirectory() as place:
        write_repository(loaded, run, name, Path(place) / "model")
        return {"hub": push(Path(place) / "model", name)}


def write_repository(loaded: "LoadedModel", run: Path | None, name: str, folder: Path) -> list[str]:
    """Writes the checkpoint's files and a model card with its run's data, measures and energy; returns their names.

    The card has no hash in the manifest: it may be edited on the hub.
    """
    from klype.model.atomic_folder import write_folder
    from klype.model.checkpoint import model_card
    from klype.runs.folder import read_run

    if not loaded.folder.is_dir():
        raise UsageError(f"{loaded.folder} is not a checkpoint folder.", "Only those are pushed.")

    def copy(to: Path) -> None:
        for file in loaded.folder.iterdir():
            if file.is_file() and file.name not in LEFT and not file.name.startswith("."):
                shutil.copyfile(file, to / file.name)

    write_folder(folder, copy)
    about = {"name": name.rpartition("/")[2], **loaded.about}
    card = model_card(loaded.config, about, {} if run is None else read_run(run))
    (folder / "README.md").write_text(card, encoding="utf-8")
    return sorted(file.name for file in folder.iterdir())


def push(folder: Path, name: str, api: Any = None) -> str:
    """Pushes the folder; returns the commit's address. ``api``: an HfApi, by default of the hub that this machine is
    logged in to."""
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
    except Exception as error:  # offline, refused: the client raises errors of many types
        said = f"{name} was not pushed: {short_error(error)}."
        raise KlypeError(said, "Use --dry-run to write the folder.") from None
