"""A server of another maker on a real socket, that says and does what a test wants."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Handle = Callable[[BaseHTTPRequestHandler, str, dict[str, Any]], None]
"""Answers a request: itself, its path and its body."""


def free_port() -> int:
    """One that nobody listens on just now."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


@contextmanager
def foreign(handle: Handle) -> Iterator[str]:
    """Yields its address; each request is answered in a thread of its own."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def answer(self) -> None:
            body = self.rfile.read(int(self.headers.get("content-length", 0)))
            try:
                handle(self, self.path, json.loads(body) if body else {})
            except (BrokenPipeError, ConnectionResetError):  # the client left, which is what many tests want
                self.close_connection = True

        do_GET = do_POST = answer

        def log_message(self, format: str, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/v1"
    finally:
        server.shutdown()
        server.server_close()
        thread.join(10)


def say(request: BaseHTTPRequestHandler, document: Any, status: int = 200, **headers: str) -> None:
    """A JSON answer."""
    send(request, json.dumps(document).encode(), status, **{"content-type": "application/json", **headers})


def send(request: BaseHTTPRequestHandler, data: bytes, status: int = 200, **headers: str) -> None:
    request.send_response(status)
    for name, value in headers.items():
        request.send_header(name.replace("_", "-"), value)
    request.send_header("content-length", str(len(data)))
    request.end_headers()
    request.wfile.write(data)


def begin(request: BaseHTTPRequestHandler, kind: str = "text/event-stream") -> None:
    """The head of an answer without a length: it ends with the connection."""
    request.close_connection = True
    request.send_response(200)
    request.send_header("content-type", kind)
    request.send_header("connection", "close")
    request.end_headers()
