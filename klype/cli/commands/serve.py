"""``klype serve``: models behind OpenAI's protocol."""

from __future__ import annotations

import signal
import sys
from pathlib import Path
from typing import Annotated

import typer

from klype.cli import options as o
from klype.cli.environment import api_key
from klype.cli.terminal import Terminal
from klype.errors import UsageError

Models = Annotated[
    list[str], typer.Argument(help="Runs, folders or GGUF files; NAME=MODEL gives one another name.", metavar="MODEL…")
]


def command(
    models: Models,
    host: Annotated[
        str, typer.Option("--host", help="Where to listen; beyond loopback a key is needed.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", help="0: any free port.")] = 8000,
    key_file: Annotated[
        Path | None, typer.Option("--key-file", help="Holds the API key.", show_default="KLYPE_API_KEY")
    ] = None,
    name: Annotated[
        list[str] | None, typer.Option("--host-name", help="A name under which it is reached. May be repeated.")
    ] = None,
    batch: Annotated[int, typer.Option("--batch", min=1, max=4096, help="Answers written at once.")] = 64,
    queue: Annotated[int, typer.Option("--queue", min=0, max=65536, help="Answers that may wait.")] = 256,
    logprobs: Annotated[
        int, typer.Option("--logprobs", min=5, max=1000, help="Alternatives that a completion may list.")
    ] = 5,
    precision: o.Precision = "float32",
    no_open: Annotated[bool, typer.Option("--no-open", hidden=True)] = False,  # as studio's; serve opens nothing
    lang: o.Lang = None,
    as_json: o.Json = False,
) -> None:
    """Serve models to any client of OpenAI's API, until Ctrl-C; what runs is finished then."""
    terminal = Terminal(as_json, lang)
    key = read_key(key_file)
    from klype.serve.guard import Rules, is_loopback
    from klype.serve.server import listen, server
    from klype.serve.settings import ServeSettings

    if key is None and not is_loopback(host):
        raise UsageError(
            f"{host} can be reached from other machines, and there is no API key.",
            "Give one with --key-file FILE or KLYPE_API_KEY, or keep --host 127.0.0.1.",
        )
    socket = listen(host, port)
    from klype.device import set_threads
    from klype.serve.app import app
    from klype.serve.opening import open_served

    set_threads()
    settings = ServeSettings(batch=batch, queue=queue, chat_top=max(20, logprobs), completion_top=logprobs)
    served = [open_served(model, precision) for model in models]
    rules = Rules.of(settings, key, host, name or ())
    running = server(app(served, settings, rules), rules)
    shown = f"[{host}]" if ":" in host else host
    url = f"http://{shown}:{socket.getsockname()[1]}/v1"
    names = [model.name for model in served]
    terminal.say("serve.listening", models=", ".join(names), url=url)
    if key is not None:
        terminal.say("serve.key")
    terminal.document({"url": url, "models": names})
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))  # what uvicorn raises again once all is finished
    try:
        running.run(sockets=[socket])
    except KeyboardInterrupt:
        terminal.say("serve.ended")


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
