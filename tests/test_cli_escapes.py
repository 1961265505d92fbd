"""No text of a stranger reaches the terminal or a log with an escape sequence in it, whichever command prints it."""

from __future__ import annotations

import io
import json
import logging
import os
import socket
import subprocess
import sys
import time
import unicodedata
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import httpx
import pytest
from uvicorn.logging import AccessFormatter

from klype.cli import exits
from klype.cli.main import call
from klype.cli.terminal import plain_console, to_json
from klype.text.chat import TEMPLATE
from klype.text.tokenizer import Tokenizer
from klype.words.plain import HarmlessRecord, harmless
from tests.foreign_server import begin, foreign, free_port, say, send
from tests.test_cli_models import save

OSC, CSI, C1, BIDI = (
    "\x1b]52;c;ZXZpbA==\x07",
    "\x1b[2J\x1b[31m",
    "\x9b2J\x9d0;x\x9c\x90",
    "\u202eevil\u2066\u200f\u061c",
)
EVIL = f"so{OSC}{CSI}{C1}{BIDI}\x7f\r\x08\u2028[bold]"
TOKENS = ("so", OSC, CSI, C1, BIDI, "\x7f\r")


def clean(text: str) -> None:
    wrong = {c for c in text if not (c.isprintable() or c in "\n\t" or unicodedata.category(c) == "Zs")}
    assert not wrong, (wrong, text)


def klype(capsys: pytest.CaptureFixture[str], *argv: str | Path) -> tuple[int, str]:
    """The exit code, and all that was printed: none of it can harm."""
    code = exits.exit_code(call, [str(word) for word in argv])
    said = capsys.readouterr()
    clean(said.out)
    clean(said.err)
    return code, said.out + said.err


def chat_row(stream: bool) -> dict[str, Any]:
    content = [
        {"token": t, "logprob": -1.0, "bytes": list(t.encode()),
         "top_logprobs": [{"token": o, "logprob": -1.0 - i, "bytes": list(o.encode())} for i, o in enumerate(TOKENS)]}
        for t in TOKENS
    ]  # fmt: skip
    text = {"role": "assistant", "content": "".join(TOKENS)}
    return {
        "index": 0,
        "delta" if stream else "message": text,
        "logprobs": {"content": content},
        "finish_reason": "stop",
    }


def speaking(request: BaseHTTPRequestHandler, path: str, body: dict[str, Any]) -> None:
    """A server whose every text is a trap."""
    if path == "/v1/models":
        say(request, {"data": [{"id": f"m{EVIL}", "owned_by": EVIL}]})
    elif path != "/v1/chat/completions":
        say(request, {"error": {"message": EVIL}}, 404)
    elif body.get("stream"):
        begin(request)
        request.wfile.write(f"data: {json.dumps({'choices': [chat_row(True)]})}\n\ndata: [DONE]\n\n".encode())
    else:
        kept = {**chat_row(False), "finish_reason": "stop"}
        if body.get("max_tokens") == 1:
            kept["logprobs"] = {"content": kept["logprobs"]["content"][:1]}
            kept["message"] = {"content": TOKENS[0]}
        say(request, {"choices": [{**kept, "index": i} for i in range(body.get("n", 1))]})


def listing(request: BaseHTTPRequestHandler, path: str, body: dict[str, Any]) -> None:
    say(request, {"data": [{"id": EVIL}, {"id": f"other {EVIL}"}]})


def refusing(request: BaseHTTPRequestHandler, path: str, body: dict[str, Any]) -> None:
    say(request, {"error": {"message": EVIL}}, 400)


def strange(request: BaseHTTPRequestHandler, path: str, body: dict[str, Any]) -> None:
    send(request, EVIL.encode(), content_type="text/\x9b2Jhtml")


def breaking(request: BaseHTTPRequestHandler, path: str, body: dict[str, Any]) -> None:
    if not body.get("stream"):
        return speaking(request, path, body)
    begin(request)
    request.wfile.write(b"data: " + json.dumps({"error": {"message": EVIL}}).encode() + b"\n\n")
    return None


def babbling(request: BaseHTTPRequestHandler, path: str, body: dict[str, Any]) -> None:
    if not body.get("stream"):
        return speaking(request, path, body)
    begin(request)
    request.wfile.write(f"data: {C1}{BIDI}{OSC}\n\n".encode())
    return None


SERVERS = {"speaking": speaking, "listing": listing, "refusing": refusing, "strange": strange, "breaking": breaking,
           "babbling": babbling}  # fmt: skip


COMMANDS = ("ask", "ask-decided", "next", "tree", "forks", "examine", "doctor", "chat")
ASKED = [
    *((command, "speaking") for command in COMMANDS),
    *((command, server) for command in ("ask", "chat", "doctor") for server in SERVERS if server != "speaking"),
]


@pytest.mark.slow
@pytest.mark.parametrize("as_json", [False, True], ids=["words", "json"])
@pytest.mark.parametrize(("command", "server"), ASKED)
def test_a_server_cannot_reach_the_terminal(
    command: str,
    server: str,
    as_json: bool,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    typed: Callable[[str], None],
) -> None:
    questions = tmp_path / "q.jsonl"
    questions.write_text(json.dumps({"question": f"Who? {EVIL}", "answers": [EVIL]}) + "\n", encoding="utf-8")
    typed(f"Hi {EVIL}\n/probs\n")
    with foreign(SERVERS[server]) as address:
        argv = {
            "ask": ["ask", address, "Hi", "--limit", "8"],
            "ask-decided": ["ask", address, "Hi", "--limit", "8", "--decoder", "consensus"],
            "next": ["next", address, f"Hi {EVIL}"],
            "tree": ["tree", address, "Hi", "--limit", "8"],
            "forks": ["forks", address, "Hi", "--limit", "8"],
            "examine": ["examine", address, "--questions", str(questions), "-n", "2", "--out", str(tmp_path / "out")],
            "doctor": ["doctor", address],
            "chat": ["chat", address, "--limit", "8"],
        }[command]
        code, told = klype(capsys, *argv, *(["--json"] if as_json else []))
    assert "bug in klype" not in told
    if server in ("listing", "refusing", "strange"):
        assert code
        assert "\\u" in told if as_json else "\ufffd" in told
    if server == "speaking" and command in ("ask", "next", "doctor"):
        assert code == 0
        assert "so" in told


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A run whose names, tokens, questions and notes are traps."""
    run = tmp_path / "runs" / f"world-{OSC}{C1}"
    save(run / "finetune", Tokenizer.train([" ".join(TOKENS) * 3], 300, TEMPLATE))
    settings = {"kind": "world", "world": "small"}
    (run / "run.json").write_text(json.dumps({"recipe": EVIL, "settings": settings, "status": EVIL, "started": EVIL}))
    (run / "questions.jsonl").write_text(
        json.dumps({"question": f"Hvem? {EVIL}", "answers": [EVIL], "id": EVIL}) + "\n"
    )
    return run


@pytest.mark.slow
@pytest.mark.parametrize("as_json", [False, True], ids=["words", "json"])
@pytest.mark.parametrize(
    "words",
    [
        ("ask", "{run}", "Hvem?", "--limit", "8", "--sure"),
        ("ask", "{run}", "Hvem?", "--limit", "8", "--decoder", "consensus"),
        ("next", "{run}", "Hvem?", "--raw"),
        ("tree", "{run}", "Hvem?", "--limit", "4", "--budget", "40"),
        ("forks", "{run}", "Hvem?", "--limit", "4", "-n", "2"),
        ("examine", "{run}", "--questions", "{run}/questions.jsonl", "-n", "2", "--limit", "4", "--out", "{tmp}/out"),
        ("runs", "list", "--folder", "{run}/.."),
        ("runs", "compare", "{run}", "{run}"),
        ("train", "finetune", "--from", "{run}", "--instructions", "{run}/questions.jsonl", "--steps", "x"),
        ("rank", "{run}"),
        ("export", "{run}", "--to", "{run}/finetune"),
        ("serve", "{run}", "--port", "99999"),
        ("ask", f"no-{EVIL}", "Hvem?"),
        (f"no-{EVIL}",),
        ("ask", "{run}", "Hvem?", f"--{EVIL}"),
        ("ask", "{run}", "Hvem?", "--precision", EVIL),
        ("examine", "{run}", "--fail-if", EVIL),
    ],
    ids=lambda words: "-".join(harmless(word).replace("{", "").replace("}", "")[:12] for word in words[:5]),
)
def test_a_folder_cannot_reach_the_terminal(
    words: tuple[str, ...], as_json: bool, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = [word.replace("{run}", str(folder)).replace("{tmp}", str(tmp_path)) for word in words]
    _, told = klype(capsys, *argv, *(["--json"] if as_json else []))
    assert told.strip() or words[:2] == ("runs", "compare")  # of two runs without figures there is nothing to compare
    assert "bug in klype" not in told


def broken(run: Path) -> Iterator[None]:
    """One part of the model's folder after another is made a trap."""
    config, template = run / "finetune" / "config.json", run / "finetune" / "chat_template.jinja"
    about, whole = json.loads(config.read_text()), template.read_text()
    for change in (
        {"model_type": EVIL},
        {"architectures": [EVIL]},
        {"hidden_size": EVIL},
        {"rope_scaling": {EVIL: EVIL}},
    ):
        config.write_text(json.dumps({**about, **change}))
        yield
    config.write_text(json.dumps(about))
    for trap in (
        "{{ raise_exception('" + EVIL.replace("\r", "") + "') }}",
        "{% if %}" + EVIL,
        "{{ messages['" + EVIL.replace("\r", "") + "'].x.y }}",
    ):
        template.write_text(trap, encoding="utf-8")
        yield
    template.write_text(whole)
    (run / "finetune" / "tokenizer.json").write_text(json.dumps({"model": {"type": EVIL}}))
    yield


@pytest.mark.slow
def test_errors_of_a_models_own_files_are_harmless(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for _ in broken(folder):
        for argv in (("ask", folder, "Hvem?"), ("chat", folder), ("ask", folder, "Hvem?", "--json")):
            code, told = klype(capsys, *argv)
            assert code or argv[0] == "chat"
            assert "bug in klype" not in told


def test_colours_stay_and_traps_go() -> None:
    """On a terminal rich's own codes are written, and none of a text's."""
    out = io.StringIO()
    console = plain_console(file=out, force_terminal=True, color_system="truecolor", width=200)
    console.print(EVIL, style="bold red")
    console.rule(EVIL)
    told = out.getvalue()
    assert "\x1b[1;31m" in told
    assert "[bold]" in told
    assert not [trap for trap in (OSC, CSI, "\x9b", "\x9d", "\u202e", "\x07", "\x1b]") if trap in told]


def test_json_says_the_same_harmlessly() -> None:
    document = {EVIL: [EVIL, "blåbær\u00a0😀", "\U000e0041"]}
    clean(to_json(document))
    assert json.loads(to_json(document)) == document
    assert "blåbær\u00a0😀" in to_json(document)


def test_a_logs_record_is_harmless_whoever_formats_it() -> None:
    def record(message: str, args: tuple[object, ...], error: BaseException | None = None) -> logging.LogRecord:
        info = (type(error), error, error.__traceback__) if error is not None else None
        return HarmlessRecord("x", logging.INFO, "f", 1, message, args, info)

    access = AccessFormatter('%(client_addr)s - "%(request_line)s" %(status_code)s', use_colors=False)
    clean(access.format(record('%s - "%s %s HTTP/%s" %d', ("127.0.0.1", "GET", f"/{EVIL}", "1.1", 200))))
    clean(logging.Formatter().format(record(f"{EVIL} not found", ())))
    clean(logging.Formatter().format(record("%s", (ValueError(EVIL),))))
    try:
        raise ValueError(EVIL)
    except ValueError as error:
        told = logging.Formatter().format(record("failed", (), error))
    clean(told)
    assert "Traceback" in told


@pytest.mark.slow
def test_a_pages_navigation_cannot_reach_the_studios_log(folder: Path, home: Path, tmp_path: Path) -> None:
    """The studio as a process: paths, queries and headers of a web page."""
    port = free_port()
    command = [sys.executable, "-m", "klype", "studio", str(folder), "--no-open", "--port", str(port)]
    log = tmp_path / "log"
    with log.open("wb") as to:
        process = subprocess.Popen(command, env=os.environ | {"KLYPE_HOME": str(home)}, stdout=to, stderr=to)
    try:
        for _ in range(600):
            assert process.poll() is None, log.read_text()
            try:
                httpx.get(f"http://127.0.0.1:{port}/health", timeout=5)
                break
            except httpx.TransportError:
                time.sleep(0.1)
        for path in ("/%1b%5d52;c;ZXZpbA==%07", "/%c2%9b2J%e2%80%ae", "/?q=%1b%5d52;c;x%07", "/_nicegui/%1b%5d52%07"):
            for accept in ("text/html", "*/*"):
                httpx.get(f"http://127.0.0.1:{port}{path}", headers={"Accept": accept}, timeout=30)
        with socket.create_connection(("127.0.0.1", port), 10) as raw:
            raw.sendall(b"GET /\x1b]52;c;x\x07 HTTP/1.1\r\nHost: localhost\r\n\x1b]52: \x9b\r\n\r\n")
            raw.settimeout(10)
            raw.recv(1000)
    finally:
        process.terminate()
        process.wait(30)
    told = log.read_text(encoding="utf-8")
    assert "Invalid HTTP request" in told
    clean(told)
