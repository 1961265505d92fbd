"""``klype serve``: models behind OpenAI's protocol."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from klype.cli import options as o
from klype.cli.listening import listening
from klype.cli.terminal import Terminal
from klype.option import Option
from klype.sources.find import spelled

Models = Annotated[
    list[str],
    Option(f"Each {spelled(files=True)}; NAME=MODEL gives one another name.", argument=True, metavar="MODEL…"),
]


def command(
    terminal: Terminal,
    models: Models,
    host: Annotated[str, Option("Where to listen; beyond loopback a key is needed.")] = "127.0.0.1",
    port: Annotated[int, Option("0: any free port.")] = 8000,
    key_file: Annotated[Path | None, Option("Holds the API key.", shown="KLYPE_API_KEY")] = None,
    name: Annotated[
        list[str] | None, Option("A name under which it is reached. May be repeated.", "--host-name")
    ] = None,
    batch: Annotated[int, Option("Answers written at once.", least=1, most=4096)] = 64,
    queue: Annotated[int, Option("Answers that may wait.", least=0, most=65536)] = 256,
    logprobs: Annotated[int, Option("Alternatives that a completion may list.", least=5, most=1000)] = 5,
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
