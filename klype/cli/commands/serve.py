"""``klype serve``: models behind OpenAI's protocol."""

from __future__ import annotations

import signal
import socket as sockets
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from klype.cli import options as o
from klype.cli.environment import api_key
from klype.cli.terminal import Terminal
from klype.errors import UsageError
from klype.option import Option
from klype.sources.opening import spelled

if TYPE_CHECKING:
    import uvicorn


Models = Annotated[
    list[str] | None,
    Option(
        f"Each {spelled(files=True)}; NAME=MODEL gives one another name.",
        argument=True,
        metavar="[MODEL…]",
        shown=o.DEFAULT,
    ),
]


def command(
    terminal: Terminal,
    models: Models = None,
    host: Annotated[str, Option("Where to listen; beyond loopback a key is needed.")] = "127.0.0.1",
    port: Annotated[int, Option("0: any free port.")] = 8000,
    key_file: Annotated[Path | None, Option("Holds the API key.", shown="KLYPE_API_KEY")] = None,
    name: Annotated[
        list[str] | None, Option("A host name under which it is reached. May be repeated.", "--host-name")
    ] = None,
    allow_origin: Annotated[
        list[str] | None, Option("A site whose pages may ask, as https://example.org. May be repeated.")
    ] = None,
    batch: Annotated[int, Option("Answers written at the same time.", least=1, most=4096)] = 64,
    queue: Annotated[int, Option("Answers that may wait.", least=0, most=65536)] = 256,
    logprobs: Annotated[int, Option("Max alternatives that a completion lists.", least=5, most=1000)] = 5,
    precision: o.Precision = "float32",
    device: o.Device = "auto",
    no_open: Annotated[bool, Option("", hidden=True)] = False,  # as studio's; serve opens nothing
) -> None:
    """Serve models to any client of OpenAI's API, until Ctrl-C; what runs is finished then."""
    entrance = listening(host, port, key_file, "API key")
    from klype.device import set_threads
    from klype.serve.app import app
    from klype.serve.guard import Rules, ServeSettings
    from klype.serve.served import open_served
    from klype.serve.server import server

    set_threads()
    settings = ServeSettings(batch=batch, queue=queue, chat_top=max(20, logprobs), completion_top=logprobs)
    served = [open_served(model, precision, device) for model in models or [o.default_model(terminal)]]
    rules = Rules.of(entrance.key, entrance.host, name or (), allow_origin or ())
    running = server(app(served, settings, rules), rules)
    url = f"{entrance.url}v1"
    names = [model.name for model in served]
    terminal.say("serve.listening", models=", ".join(names), url=url)
    if entrance.key is not None:
        terminal.say("serve.key")
    terminal.document({"url": url, "models": names})
    if entrance.run(running):
        terminal.say("serve.ended")


@dataclass(frozen=True, slots=True)
class Listening:
    """A socket that is bound, and the key that is asked for (None: only loopback, without one). ``host`` is bare."""

    host: str
    key: str | None
    socket: sockets.socket

    @property
    def url(self) -> str:
        """Where it is reached, ending in a slash."""
        shown = f"[{self.host}]" if ":" in self.host else self.host
        return f"http://{shown}:{self.socket.getsockname()[1]}/"

    def run(self, server: uvicorn.Server) -> bool:
        """Serve until it is asked to end; whether Ctrl-C did. What runs is finished then."""
        from klype.serve.server import attentive

        signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))  # what uvicorn raises again once all is finished
        try:
            with attentive():
                server.run(sockets=[self.socket])
        except KeyboardInterrupt:
            return True
        return False


def listening(host: str, port: int, key_file: Path | None, what: str) -> Listening:
    """Bound before anything is loaded. UsageError beyond loopback without a key (``what``: how it is called)."""
    key, host = read_key(key_file), host.removeprefix("[").removesuffix("]")  # as addresses of IPv6 are written in urls
    from klype.serve.guard import is_loopback
    from klype.serve.server import listen

    if key is None and not is_loopback(host):
        raise UsageError(
            f"{host} can be reached from other machines, and there is no {what}.",
            "Give one with --key-file FILE or KLYPE_API_KEY, or keep --host 127.0.0.1.",
        )
    return Listening(host, key, listen(host, port))


def read_key(file: Path | None) -> str | None:
    """The API key of the file, else of the environment."""
    if file is None:
        return checked_key(api_key(), "KLYPE_API_KEY")
    try:
        text = file.expanduser().read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(
            f"The key file {file} cannot be read: {error}.", "Write the key into it, on one line."
        ) from None
    return checked_key(text.strip(), str(file))


def checked_key(key: str | None, where: str) -> str | None:
    if key is None:
        return None
    if not key or not key.isascii() or not key.isprintable() or " " in key:
        raise UsageError(
            f"The API key of {where} must be one line of letters, digits and signs, without spaces.",
            "Make one: python -c 'import secrets; print(secrets.token_urlsafe(32))'",
        )
    return key
