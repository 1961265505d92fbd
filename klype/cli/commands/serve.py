"""``klype serve``: models behind OpenAI's protocol."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from klype.cli import options as o
from klype.cli.listening import listening
from klype.cli.terminal import Terminal
from klype.sources.kinds import spelled

Models = Annotated[
    list[str],
    typer.Argument(help=f"Each {spelled(files=True)}; NAME=MODEL gives one another name.", metavar="MODEL…"),
]


def command(
    terminal: Terminal,
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
    device: o.Device = "auto",
    no_open: Annotated[bool, typer.Option("--no-open", hidden=True)] = False,  # as studio's; serve opens nothing
) -> None:
    """Serve models to any client of OpenAI's API, until Ctrl-C; what runs is finished then."""
    entrance = listening(host, port, key_file, "API key")
    from klype.device import set_threads
    from klype.serve.app import app
    from klype.serve.guard import Rules
    from klype.serve.opening import open_served
    from klype.serve.server import server
    from klype.serve.settings import ServeSettings

    set_threads()
    settings = ServeSettings(batch=batch, queue=queue, chat_top=max(20, logprobs), completion_top=logprobs)
    served = [open_served(model, precision, device) for model in models]
    rules = Rules.of(settings, entrance.key, entrance.host, name or ())
    running = server(app(served, settings, rules), rules)
    url = f"{entrance.url}v1"
    names = [model.name for model in served]
    terminal.say("serve.listening", models=", ".join(names), url=url)
    if entrance.key is not None:
        terminal.say("serve.key")
    terminal.document({"url": url, "models": names})
    if entrance.run(running):
        terminal.say("serve.ended")
