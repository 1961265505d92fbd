"""What one client may ask of a server, and how long it may take."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ServeSettings:
    """Limits of the API. ``batch`` samples of a model run at once, ``queue`` more may wait; beyond that: 429.

    ``n`` choices a prompt and ``samples`` a request at most. ``chat_top`` and ``completion_top`` are the alternatives
    a token may list (OpenAI's own are 20 and 5). ``seconds`` a client may take to send a request's body.
    """

    batch: int = 64
    queue: int = 256
    n: int = 128
    samples: int = 256
    chat_top: int = 20
    completion_top: int = 5
    body_bytes: int = 1 << 20
    header_bytes: int = 16 << 10
    seconds: float = 8.0
    concurrent: int = 512
