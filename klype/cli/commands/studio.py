"""``klype studio``: pages on which one sees how models answer."""

from __future__ import annotations

import os
import sys
import threading
import warnings
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from klype import durable
from klype.cli import options as o
from klype.cli.commands.serve import listening
from klype.cli.terminal import Terminal
from klype.environment import state_folder
from klype.errors import KlypeError, UsageError
from klype.option import Option
from klype.sources.find import kind_of, spelled

if TYPE_CHECKING:
    from klype.studio.studio import SharedModel

RUNS = Path("runs")
Models = Annotated[
    list[str] | None,
    Option(
        f"Each {spelled()}; of a run all stages are shown. NAME=MODEL gives one another name.",
        argument=True,
        metavar="[MODEL…]",
        shown="the newest of runs/",
    ),
]


def command(
    terminal: Terminal,
    models: Models = None,
    host: Annotated[str, Option("Where to listen; beyond loopback a key is needed.")] = "127.0.0.1",
    port: Annotated[int, Option("0: any free port.")] = 8080,
    key_file: Annotated[Path | None, Option("Holds the key.", shown="KLYPE_API_KEY")] = None,
    name: Annotated[
        list[str] | None, Option("A name under which it is reached. May be repeated.", "--host-name")
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
        raise UsageError(f"{runs} is no folder.", "--runs names the folder in which runs lie.")
    os.umask(0o077)  # what is asked, uploaded and trained here, also by the studio's processes, is for this user alone
    with suppress(OSError):  # where nothing can be written nothing is to be hidden
        durable.private_folder(state_folder())
    opened = opened_models(models or newest_run(runs or RUNS), precision, device)
    from klype.serve.guard import Rules, ServeSettings, is_loopback
    from klype.serve.server import server
    from klype.studio.app import app
    from klype.studio.ranking_stores import fill_store
    from klype.studio.studio import Studio

    command = [sys.executable, "-m", "klype"]
    studio = Studio(opened, state_folder(), command, first_questions(opened), store, runs, device)
    fill_store(studio)
    rules = Rules.of(ServeSettings(), entrance.key, entrance.host, name or ())
    running = server(app(studio, rules), rules, grace=3)
    url = entrance.url
    names = [model.name for model in opened]
    terminal.say("studio.open", url=url, models=", ".join(names) or "–")
    terminal.document({"url": url, "models": names})
    if not no_open and is_loopback(entrance.host):
        open_browser(url)
    warnings.filterwarnings("ignore", message=".*reduce_op.*")  # NiceGUI looks at every object there is
    if entrance.run(running):
        terminal.say("studio.ended")


def newest_run(base: Path) -> list[str]:
    """The run that was changed last, where there is one with a finished stage; none is no error."""
    from klype.sources.find import find_model

    found = sorted(base.glob("*/run.json"), key=lambda file: -file.stat().st_mtime)
    for file in found:
        try:
            find_model(str(file.parent))
        except KlypeError:
            continue
        return [str(file.parent)]
    return []


def opened_models(names: list[str], precision: str, device: str = "auto") -> list[SharedModel]:
    """Each of them; of a run, all its finished stages in their order."""
    return [model for text in names for model in _models(text, precision, device)]


def first_questions(models: list[SharedModel]) -> dict[str, list[str]]:
    """A few that the models' run kept back, by language: of different kinds, the shortest of each."""
    from klype.runs.provenance import read_questions
    from klype.sources.find import find_model

    for model in models:
        run = find_model(model.address).run if model.stage else None
        shortest: dict[tuple[str, str], str] = {}
        for question in read_questions(run / "questions.jsonl") if run is not None else []:
            key = str(question.extra.get("lang", "")), str(question.extra.get("kind", question.id))
            if len(question.prompt) < len(shortest.get(key, question.prompt + " ")):
                shortest[key] = question.prompt
        if shortest:
            from klype.words import LANGUAGES

            languages = {lang for lang, _ in shortest if lang} or set(LANGUAGES)
            of = {
                lang: sorted((q for (spoken, _), q in shortest.items() if spoken in (lang, "")), key=len)
                for lang in languages
            }
            return {lang: found[2::5] or found for lang, found in of.items()}
    return {}


def open_browser(url: str) -> None:
    """Once the server answers; a machine without a browser is no error."""
    import webbrowser

    timer = threading.Timer(0.6, lambda: webbrowser.open(url))
    timer.daemon = True
    timer.start()


def _models(text: str, precision: str, device: str) -> Iterator[SharedModel]:
    from klype.model.manifest import is_whole
    from klype.sources.find import NEWEST_FIRST

    given, separator, rest = text.partition("=")
    named = bool(separator) and given.replace("-", "").replace("_", "").isalnum() and not Path(text).exists()
    name, address = (given, rest) if named else ("", text)
    folder = Path(address).expanduser()
    if (folder / "run.json").is_file() and not (folder / "config.json").is_file():
        stages = [stage for stage in reversed(NEWEST_FIRST) if is_whole(folder / stage)]
        short = name or folder.resolve().name
        for stage in stages:
            yield _model(f"{short}/{stage}", str(folder / stage), precision, device)
        if stages:
            return
    yield _model(name or kind_of(address).short(address), address, precision, device)


def _model(name: str, address: str, precision: str, device: str) -> SharedModel:
    from klype.api.examinee import identity
    from klype.sources.opening import open_model
    from klype.studio.studio import SharedModel

    opened = open_model(address, precision, measured=True, device=device)
    run = opened.found.run
    examined = run is not None and (run / "questions.jsonl").is_file()
    return SharedModel(name, address, opened, identity(opened) if examined else "")
