"""``klype studio``: pages on which one sees how models answer."""

from __future__ import annotations

import os
import sys
import threading
import warnings
from contextlib import suppress
from pathlib import Path
from typing import Annotated

from klype import durable
from klype.cli import options as o
from klype.cli.commands.serve import listening
from klype.cli.terminal import Terminal
from klype.environment import state_folder
from klype.errors import UsageError
from klype.option import Option
from klype.sources.opening import spelled

Models = Annotated[
    list[str] | None,
    Option(
        f"Each {spelled()}; of a run all stages are shown. NAME=MODEL gives one another name.",
        argument=True,
        metavar="[MODEL…]",
        shown=o.DEFAULT,
    ),
]


def command(
    terminal: Terminal,
    models: Models = None,
    host: Annotated[str, Option("Where to listen; beyond loopback a key is needed.")] = "127.0.0.1",
    port: Annotated[int, Option("0: any free port.")] = 8080,
    key_file: Annotated[Path | None, Option("Holds the key.", shown="KLYPE_API_KEY")] = None,
    name: Annotated[
        list[str] | None, Option("A host name under which it is reached. May be repeated.", "--host-name")
    ] = None,
    store: Annotated[
        str,
        Option("Rankings are kept there: a file or postgresql:// url.", shown="RUN's own"),
    ] = "",
    runs: Annotated[Path | None, Option("Where runs lie and are made.", shown="runs/, klype's own")] = None,
    no_open: Annotated[bool, Option("Do not open the browser.")] = False,
    precision: o.Precision = "float32",
    device: o.Device = "auto",
) -> None:
    """Open the studio in the browser: chat and see every word's probability, all ways to answer, and divergence.

    Only this machine can reach it, unless --host says otherwise. It ends with Ctrl-C.
    """
    entrance = listening(host, port, key_file, "key")
    if runs is not None and runs.exists() and not runs.is_dir():
        raise UsageError(f"{runs} is not a folder.", "--runs names the folder in which runs lie.")
    os.umask(0o077)  # what is asked, uploaded and trained here, also by the studio's processes, is for this user alone
    with suppress(OSError):  # where nothing can be written nothing is to be hidden
        durable.private_folder(state_folder())
    from klype.runs.folder import RUNS, default_model
    from klype.serve.guard import Rules, is_loopback
    from klype.serve.server import server
    from klype.studio.app import app
    from klype.studio.ranking_stores import fill_store
    from klype.studio.studio import Studio

    command = [sys.executable, "-m", "klype"]
    studio = Studio([], state_folder(), command, store, runs, device, precision)
    for model in models or [default_model(terminal.lang, runs or RUNS, state_folder() / "runs")]:
        terminal.say("studio.opening", model=model)
        studio.open(model)
    studio.opens = is_loopback(entrance.host) and not name  # who comes from elsewhere is not the user of this machine
    fill_store(studio)
    rules = Rules.of(entrance.key, entrance.host, name or ())
    running = server(app(studio, rules), rules, grace=3)
    url = entrance.url
    names = [model.name for model in studio.models]
    terminal.say("studio.open", url=url, models=", ".join(names) or "–")
    terminal.document({"url": url, "models": names})
    if not no_open and is_loopback(entrance.host):
        open_browser(url)
    warnings.filterwarnings("ignore", message=".*reduce_op.*")  # NiceGUI looks at every object there is
    if entrance.run(running):
        terminal.say("studio.ended")


def open_browser(url: str) -> None:
    """Once the server answers; a machine without a browser is no error."""
    import webbrowser

    timer = threading.Timer(0.6, lambda: webbrowser.open(url))
    timer.daemon = True
    timer.start()
