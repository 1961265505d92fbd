"""``klype pull``: small open models, fetched once and then named by a short name."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any

from klype.cli import options as o
from klype.cli.terminal import Terminal
from klype.option import Option
from klype.words import number

if TYPE_CHECKING:
    from klype.sources.hub import Download

EVERY_S = 0.2, 15.0  # a bar, and plain lines


def command(
    terminal: Terminal,
    name: Annotated[
        str | None, Option("A short name from the list, or OWNER/NAME on the hub.", argument=True, metavar="[NAME]")
    ] = None,
    out: o.OutFile = None,
) -> None:
    """Fetch a small open model from the Hugging Face hub, to be used by its short name. Without NAME: list them."""
    terminal.document(listed(terminal) if name is None else fetched(terminal, name), out)


def listed(terminal: Terminal) -> dict[str, Any]:
    """What can be fetched, and what is here."""
    from klype.cli.progress import print_table
    from klype.sources.names import HUB, models_here

    here, w = models_here(), terminal.words
    rows: list[dict[str, Any]] = []
    for name in (*HUB, *(set(here) - set(HUB))):
        known, path = HUB.get(name), here.get(name)
        about = (
            {"repository": known.repository, "gigabytes": known.gigabytes, "licence": known.licence} if known else {}
        )
        rows.append({"name": name, **about, "path": str(path) if path else None})
    if not terminal.as_json:
        shown = [
            [
                row["name"],
                size(row.get("gigabytes"), terminal.lang),
                row.get("licence", ""),
                w("pull.yes") if row["path"] else "",
            ]
            for row in rows
        ]
        print_table(
            terminal.console, w("pull.title"), [w(f"pull.{key}") for key in ("name", "size", "licence", "here")], shown
        )
        terminal.say("pull.how")
    return {"models": rows}


def fetched(terminal: Terminal, name: str) -> dict[str, Any]:
    """The model's folder, fetched where it is not here yet."""
    from klype.sources.hub import look_up, pulled

    if (folder := pulled(name)) is None:
        download = look_up(name)
        with watched(terminal, download):
            folder = download.run()
    terminal.say("pull.done", name=folder.name, folder=folder)
    return {"name": folder.name, "path": str(folder)}


@contextmanager
def watched(terminal: Terminal, download: Download) -> Iterator[None]:
    """How much has come, while it is being fetched: as a bar where somebody looks, else as a line now and then."""
    from rich.progress import BarColumn, DownloadColumn, Progress, TimeRemainingColumn

    lang, total, ended = terminal.lang, size(download.size / 1e9, terminal.lang), threading.Event()
    terminal.say("pull.fetching", repository=download.repository, size=total)
    looks = terminal.console.is_terminal and not terminal.console.is_dumb_terminal
    columns = BarColumn(bar_width=None), DownloadColumn(), TimeRemainingColumn(compact=True)
    bar = Progress(*columns, console=terminal.console, transient=True, disable=not looks)
    task = bar.add_task("", total=download.size)

    def watch() -> None:
        while not ended.wait(EVERY_S[0] if looks else EVERY_S[1]):
            done = min(download.done(), download.size)
            bar.update(task, completed=done)
            if not looks:
                terminal.say("pull.so_far", done=size(done / 1e9, lang), size=total)

    thread = threading.Thread(target=watch, daemon=True)
    with bar:
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()


def size(gigabytes: float | None, lang: str) -> str:
    """ "0.27 GB", "3.1 MB"; "" where it is not known."""
    if gigabytes is None:
        return ""
    return f"{number(gigabytes, lang, 2)} GB" if gigabytes >= 0.1 else f"{number(gigabytes * 1e3, lang, 2)} MB"
