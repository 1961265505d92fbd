"""``klype serve`` and ``klype studio``: models behind OpenAI's protocol, and pages that show how they answer."""

import os
import signal
import socket as sockets
import sys
import threading
import warnings
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from klype import durable
from klype.cli import options as o
from klype.cli.terminal import Terminal
from klype.environment import state_folder
from klype.errors import UsageError
from klype.option import Option, Options
from klype.sources.opening import kinds_in_words

if TYPE_CHECKING:
    import uvicorn


@dataclass(frozen=True, kw_only=True)
class ListenOptions(Options):
    """Where a server listens, who may ask it, and how its models are opened."""

    host: Annotated[str, Option("Where to listen; beyond loopback a key is needed.")] = "127.0.0.1"
    name: Annotated[
        tuple[str, ...], Option("A host name under which it is reached. May be repeated.", "--host-name")
    ] = ()
    key_file: Annotated[Path | None, Option("Holds the API key.", shown="KLYPE_API_KEY")] = None
    precision: o.Precision = "float32"
    device: o.Device = "auto"


@dataclass(frozen=True, kw_only=True)
class ServeOptions(ListenOptions):
    """``klype serve``."""

    models: Annotated[
        tuple[str, ...], o.models(f"Each {kinds_in_words(files=True)}; NAME=MODEL gives one another name.")
    ] = ()
    port: Annotated[int, Option("0: any free port.")] = 8000
    allow_origin: Annotated[
        tuple[str, ...], Option("A site whose pages may ask, as https://example.org. May be repeated.")
    ] = ()
    batch: Annotated[int, Option("Answers written at the same time.", least=1, most=4096)] = 64
    queue: Annotated[int, Option("Answers that may wait.", least=0, most=65536)] = 256
    logprobs: Annotated[int, Option("Max alternatives that a completion lists.", least=5, most=1000)] = 5


@dataclass(frozen=True, kw_only=True)
class StudioOptions(ListenOptions):
    """``klype studio``."""

    models: Annotated[
        tuple[str, ...],
        o.models(f"Each {kinds_in_words()}; of a run all stages are shown. NAME=MODEL gives one another name."),
    ] = ()
    port: Annotated[int, Option("0: any free port.")] = 8080
    store: Annotated[str, Option("Rankings are kept there: a file or postgresql:// url.", shown="RUN's own")] = ""
    runs: Annotated[Path | None, Option("Where runs lie and are made.", shown="runs/, klype's own")] = None
    no_open: Annotated[bool, Option("Do not open the browser.")] = False


def serve_command(terminal: Terminal, asked: ServeOptions) -> None:
    """Serve models to any client of OpenAI's API, until Ctrl-C; what runs is finished then."""
    entrance = bind(asked.host, asked.port, asked.key_file, "API key")
    from klype.device import set_threads
    from klype.serve.app import app
    from klype.serve.guard import Rules, ServeSettings
    from klype.serve.served_model import open_served
    from klype.serve.server import server

    set_threads()
    top = asked.logprobs
    # a chat's answer lists 20 in OpenAI's API, a completion 5
    settings = ServeSettings(batch=asked.batch, queue=asked.queue, chat_top=max(20, top), completion_top=top)
    models = asked.models or (o.default_model(terminal),)
    served = [open_served(model, asked.precision, asked.device) for model in models]
    rules = Rules.of(entrance.key, entrance.host, asked.name, asked.allow_origin)
    running = server(app(served, settings, rules), rules)
    url, names = f"{entrance.url}v1", [model.name for model in served]
    terminal.say("serve.listening", models=", ".join(names), url=url)
    if entrance.key is not None:
        terminal.say("serve.key")
    terminal.document({"url": url, "models": names})
    entrance.run(running, lambda: terminal.say("serve.ended"))


def studio_command(terminal: Terminal, asked: StudioOptions) -> None:
    """Open the studio in the browser: chat and see every word's probability, all ways to answer, and divergence.

    Only this machine can reach it, unless --host says otherwise. It ends with Ctrl-C.
    """
    entrance, runs = bind(asked.host, asked.port, asked.key_file, "key"), asked.runs
    if runs is not None and runs.exists() and not runs.is_dir():
        raise UsageError(f"{runs} is not a folder.", "--runs names the folder in which runs lie.")
    os.umask(0o077)  # files that the studio and its processes write are this user's alone
    with suppress(OSError):  # where nothing can be written, there is nothing to protect
        durable.private_folder(state_folder())
    from klype.runs.folder import default_model
    from klype.serve.guard import Rules, is_loopback
    from klype.serve.server import server
    from klype.sources.model_files import RUNS
    from klype.studio.app import app
    from klype.studio.studio import Studio

    command = [sys.executable, "-m", "klype"]
    studio = Studio([], state_folder(), command, asked.store, runs, asked.device, asked.precision)
    for model in asked.models or (default_model(terminal.lang, runs or RUNS, state_folder() / "runs"),):
        terminal.say("studio.opening", model=model)
        studio.open(model)
    here = is_loopback(entrance.host)
    studio.opens = here and not asked.name  # visitors from elsewhere are not this machine's user
    studio.fill_store()
    rules = Rules.of(entrance.key, entrance.host, asked.name)
    running = server(app(studio, rules), rules, grace=3)
    url, names = entrance.url, [model.name for model in studio.models]
    terminal.say("studio.open", url=url, models=", ".join(names) or "–")
    terminal.document({"url": url, "models": names})
    if here and not asked.no_open:
        import webbrowser

        timer = threading.Timer(0.6, webbrowser.open, (url,))  # the server answers by then
        timer.daemon = True
        timer.start()
    warnings.filterwarnings("ignore", message=".*reduce_op.*")  # torch's, since NiceGUI inspects every object
    entrance.run(running, lambda: terminal.say("studio.ended"))


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A bound socket. ``host``: without the brackets of an IPv6 address; ``key``: the API key (None: none is needed,
    which is allowed on loopback only)."""

    host: str
    key: str | None
    socket: sockets.socket

    @property
    def url(self) -> str:
        """The server's address, ending in a slash."""
        shown = f"[{self.host}]" if ":" in self.host else self.host
        return f"http://{shown}:{self.socket.getsockname()[1]}/"

    def run(self, server: "uvicorn.Server", say_ended: Callable[[], None]) -> None:
        """Serves until SIGTERM or Ctrl-C, which ``say_ended`` acknowledges; running requests are finished first."""
        from klype.serve.server import attentive

        signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))  # uvicorn raises the signal again at its end
        try:
            with attentive():
                server.run(sockets=[self.socket])
        except KeyboardInterrupt:
            say_ended()


def bind(host: str, port: int, key_file: Path | None, what: str) -> Endpoint:
    """Binds a socket, before anything is loaded. Raises UsageError beyond loopback without a key, which is called
    ``what``."""
    key, host = read_key(key_file), host.removeprefix("[").removesuffix("]")  # IPv6 addresses as urls write them
    from klype.serve.guard import is_loopback
    from klype.serve.server import listen

    if key is None and not is_loopback(host):
        raise UsageError(
            f"{host} can be reached from other machines, and there is no {what}.",
            "Give one with --key-file FILE or KLYPE_API_KEY, or keep --host 127.0.0.1.",
        )
    return Endpoint(host, key, listen(host, port))


def read_key(file: Path | None, environ: Mapping[str, str] = os.environ) -> str | None:
    """The API key: the file's, else KLYPE_API_KEY; None if there is neither."""
    key, where = environ.get("KLYPE_API_KEY"), "KLYPE_API_KEY"
    if file is not None:
        try:
            key, where = file.expanduser().read_text(encoding="utf-8").strip(), str(file)
        except (OSError, UnicodeDecodeError) as error:
            raise UsageError(
                f"The key file {file} cannot be read: {error}.", "Write the key into it, on one line."
            ) from None
    if key is not None and (not key or not key.isascii() or not key.isprintable() or " " in key):
        raise UsageError(
            f"The API key of {where} must be one line of letters, digits and signs, without spaces.",
            "Make one: python -c 'import secrets; print(secrets.token_urlsafe(32))'",
        )
    return key
