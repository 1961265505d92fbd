"""JSON over HTTP with patience: retries, back-off, a budget, answers that are kept; one sentence for every fault."""

from __future__ import annotations

import hashlib
import json
import re
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import httpx

from klype.durable import private, private_folder
from klype.errors import BudgetSpentError, KlypeError, UsageError, short_error
from klype.jsons import parsed
from klype.sources.bounded_http import Limits, ResponseReader, begin

PASSING = (408, 409, 425, 429, 500, 502, 503, 504)  # after which the same question may be asked again


class RefusedError(KlypeError):
    """The server understood and said no: what was asked is not offered."""


@dataclass
class Budget:
    """At most so many requests and tokens (0: no limit); answers that are kept cost nothing, nor do tokenizers.

    ``say`` hears of every payment, on whichever thread it is made.
    """

    requests: int = 0
    tokens: int = 0
    asked: int = 0
    prompt_tokens: int = 0
    answer_tokens: int = 0
    kept: int = 0
    say: Callable[[Budget], None] = lambda budget: None
    lock: threading.Lock = field(default_factory=threading.Lock)

    @staticmethod
    def parse(text: str) -> Budget:
        """ "500requests", "20000tokens", or both with a comma."""
        found = Budget()
        for part in text.replace(" ", "").replace("_", "").split(",") if text.strip() else ():
            match = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?(?:e[0-9]+)?)(requests|tokens)", part, re.IGNORECASE)
            if match is None or float(match[1]) < 1:
                raise UsageError(f"--budget does not understand “{part}”.", "Write 500requests or 20000tokens.")
            setattr(found, match[2].lower(), int(float(match[1])))
        return found

    @property
    def spent(self) -> int:
        """Tokens, as the server counts them."""
        return self.prompt_tokens + self.answer_tokens

    def take(self) -> None:
        """One more request. Raises BudgetSpentError when there is no room for it."""
        with self.lock:
            spent = self.spent
            if (self.requests and self.asked >= self.requests) or (self.tokens and spent >= self.tokens):
                raise BudgetSpentError(
                    f"The budget is used up: {self.asked} requests, {spent} tokens.",
                    "What was answered is kept; the same command with a larger --budget goes on from there.",
                )
            self.asked += 1

    def pay(self, usage: Any) -> None:
        numbers = usage if isinstance(usage, Mapping) else {}
        with self.lock:
            self.prompt_tokens += count(numbers.get("prompt_tokens"))
            self.answer_tokens += count(numbers.get("completion_tokens"))
        self.say(self)


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """``tries`` of a request; the first wait in seconds, doubled each time up to ``most``, unless the server says;
    ``longest`` of all waits together.

    ``seconds``, and ``per_token`` for each that is asked for, are what an answer may take with all tries, waits apart.
    ``concurrency``: requests at once. ``client`` and ``sleep`` are passed in by tests.
    """

    tries: int = 6
    first: float = 0.5
    most: float = 30.0
    longest: float = 300.0
    seconds: float = 120.0
    per_token: float = 2.0
    concurrency: int = 8
    client: httpx.Client | None = None
    sleep: Callable[[float], None] = time.sleep


@dataclass(frozen=True, slots=True)
class Call:
    """``sample`` tells repetitions apart; ``check`` raises when the answer is wrong: such a one is not kept."""

    path: str
    body: Mapping[str, Any]
    sample: int = 0
    check: Callable[[dict[str, Any]], object] = lambda answer: None


class HttpClient:
    """One server. ``key`` goes into the header and nowhere else."""

    def __init__(
        self,
        base: str,
        key: str = "",
        kept: ResponseCache | None = None,
        budget: Budget | None = None,
        retry: RetryPolicy | None = None,
    ) -> None:
        url = httpx.URL(base)
        auth = (url.username, url.password) if url.username else None
        self.base = str(url.copy_with(username=None, password=None, fragment=None, query=None)).rstrip("/")
        self.kept, self.budget, self.retry = kept or ResponseCache(), budget or Budget(), retry or RetryPolicy()
        self._headers = {"Accept-Encoding": "gzip, identity"} | ({"Authorization": f"Bearer {key}"} if key else {})
        self._client = self.retry.client or httpx.Client(timeout=httpx.Timeout(120, connect=10))
        self._send = partial(self._client.send, stream=True, auth=auth, follow_redirects=False)
        self._reached = False

    def probe(self, path: str, body: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Asked now, whatever is kept; without a body by GET."""
        intake, data = self._patiently(path, body)
        answer = None
        with suppress(ValueError):
            answer = parsed(data)
        if not isinstance(answer, dict):
            raise self._strange(intake)
        if path.endswith("completions"):
            self.budget.pay(answer.get("usage"))
        return answer

    def post(self, call: Call) -> dict[str, Any]:
        """From what is kept, else from the server."""
        asked = json.dumps([self.base, call.path, call.body, call.sample], sort_keys=True, ensure_ascii=True)
        key = hashlib.sha256(asked.encode()).hexdigest()
        found = self.kept.answer(key)
        if found is not None:
            with self.budget.lock:
                self.budget.kept += 1
            call.check(found)
            return found
        answer = self.probe(call.path, call.body)
        call.check(answer)
        self.kept.keep(key, answer)
        return answer

    def many(self, calls: Sequence[Call]) -> Iterator[tuple[int, dict[str, Any]]]:
        """Places and answers as they come, so many at once; at the first fault nothing more is begun."""
        todo = iter(range(len(calls)))
        with ThreadPoolExecutor(self.retry.concurrency) as pool:
            running: dict[Future[dict[str, Any]], int] = {}
            try:
                while True:
                    for place in islice(todo, self.retry.concurrency - len(running)):
                        running[pool.submit(self.post, calls[place])] = place
                    if not running:
                        return
                    done, _ = wait(running, return_when=FIRST_COMPLETED)
                    for future in done:
                        yield running.pop(future), future.result()
            finally:
                for future in running:
                    future.cancel()

    def stream(self, call: Call) -> Iterator[dict[str, Any]]:
        """Server-sent events up to [DONE], which some servers leave out, or to the stream's end (whether the answer has
        one says its finish reason). Errors: a stream that is cut off, or holds anything but JSON."""
        body = {**call.body, "stream": True, "stream_options": {"include_usage": True}}
        intake, _ = self._patiently(call.path, body, whole=False)
        try:
            if "text/event-stream" not in intake.response.headers.get("content-type", ""):
                raise self._strange(intake)
            for line in intake.lines():
                data = line.removeprefix("data:").strip() if line.startswith("data:") else ""
                if data == "[DONE]":
                    return
                if not data:
                    continue
                try:
                    event = parsed(data)
                except ValueError:
                    raise KlypeError(f"{self.base} streams something that is not JSON: {data[:80]!r}.") from None
                if not isinstance(event, dict):
                    raise KlypeError(f"{self.base} streams something that is not a JSON object: {data[:80]!r}.")
                if "error" in event:
                    raise KlypeError(f"{self.base} broke off: {_message(event)}.")
                self.budget.pay(event.get("usage"))
                yield event
        except httpx.HTTPError as error:
            intake.limits.left()
            raise KlypeError(f"{self.base} cut its answer off: {short_error(error)}.", "Ask again.") from None
        finally:
            intake.response.close()

    def _patiently(self, path: str, body: Mapping[str, Any] | None, whole: bool = True) -> tuple[ResponseReader, bytes]:
        """The answer, once the server has one, and unless it comes as a stream all of it. Each try is paid for: the
        server may have computed an answer that did not arrive.

        Raises RefusedError for what the server does not offer.
        """
        url = f"{self.base.removesuffix('/v1')}{path}" if path.startswith("/") else f"{self.base}/{path}"
        request = partial(self._client.build_request, "GET" if body is None else "POST", url, json=body)
        wait_s, waited, tried, problem = self.retry.first, 0.0, 0, ""
        limits = Limits(self.base, body or {}, self.retry.seconds, self.retry.per_token)
        for attempt in range(self.retry.tries):
            if attempt:
                waited += wait_s
                if waited > self.retry.longest:
                    break
                self.retry.sleep(wait_s)
                limits.until += wait_s
                wait_s = min(self.retry.most, wait_s * 2)
            if path.endswith("completions"):  # tokenizers and templates cost nothing
                self.budget.take()
            tried += 1
            try:
                intake = begin(self._send, request(headers=self._headers), limits)
                status, headers = intake.response.status_code, intake.response.headers
                data = intake.whole() if whole or status != 200 else b""
            except httpx.HTTPError as error:
                problem = short_error(error)
                if isinstance(error, httpx.ConnectError) and not self._reached:
                    raise KlypeError(f"No server answers at {self.base} ({problem}).", "Is it started?") from None
                if not isinstance(error, httpx.ConnectError):
                    limits.left()
                continue
            self._reached = True
            if status == 200:
                return intake, data
            if status not in PASSING:
                if status in (401, 403):
                    raise KlypeError(f"{self.base} wants a key, or another one ({status}).", "Set it as KLYPE_API_KEY.")
                said = f"status {status}"
                with suppress(ValueError):
                    said = _message(parsed(data))
                raise RefusedError(f"{self.base} refused: {said}.")
            problem = f"status {status}"
            asked = retry_after(headers.get("retry-after", ""), datetime.now(UTC))
            if asked is not None and asked > self.retry.longest:
                raise KlypeError(f"{self.base} asks to wait {asked:.0f} seconds.", "Try again then.")
            wait_s = wait_s if asked is None else asked
        raise KlypeError(f"{self.base} did not answer in {tried} tries ({problem}).", "Try again later.")

    def _strange(self, intake: ResponseReader) -> KlypeError:
        kind = intake.response.headers.get("content-type", "nothing")
        return KlypeError(
            f"{self.base} answers with {kind.split(';')[0][:60]}, not as OpenAI's API does.",
            "Is it the address of an API?",
        )


def retry_after(text: str, now: datetime) -> float | None:
    """Seconds to wait, from a number or a date; None when nothing usable is said."""
    if re.fullmatch(r"[0-9]+(\.[0-9]+)?", text.strip()):
        return float(text)
    try:
        return max(0.0, (parsedate_to_datetime(text) - now).total_seconds())
    except (ValueError, TypeError, OverflowError):
        return None


def _message(document: Any) -> str:
    error = document.get("error", document) if isinstance(document, dict) else document
    said = error.get("message") if isinstance(error, dict) else error
    return " ".join(str(said).split())[:300].rstrip(".")


def count(value: Any) -> int:
    """A number above 0 that a server tells; 0 for anything else."""
    return value if isinstance(value, int) and value > 0 else 0


SCHEMA = """
CREATE TABLE IF NOT EXISTS answers (key TEXT PRIMARY KEY, answer TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS pieces (id INTEGER PRIMARY KEY, kind TEXT NOT NULL, data BLOB NOT NULL);
"""


class ResponseCache:
    """``file`` None: in memory only. Errors: a place that cannot be written, a damaged file."""

    def __init__(self, file: Path | None = None) -> None:
        self.file, self._lock = file, threading.Lock()
        try:
            if file is not None:
                private_folder(file.parent)
                with open(file, "ab", opener=private):  # SQLite gives its other files what this one has
                    pass
            self._base = sqlite3.connect(file or ":memory:", check_same_thread=False, timeout=30, isolation_level=None)
            self._base.execute("PRAGMA journal_mode=WAL")
            self._base.executescript(SCHEMA)
        except (sqlite3.Error, OSError) as error:
            raise KlypeError(f"The answers kept in {file} cannot be used: {error}.", "Delete that file.") from None

    def answer(self, key: str) -> dict[str, Any] | None:
        row = self._one("SELECT answer FROM answers WHERE key = ?", key)
        return None if row is None else dict(parsed(row[0]))

    def keep(self, key: str, answer: Mapping[str, Any]) -> None:
        self._one("INSERT OR REPLACE INTO answers VALUES (?, ?)", key, json.dumps(answer))

    def piece(self, number: int) -> tuple[str, bytes] | None:
        """What a text's number stands for: its kind and its bytes."""
        row = self._one("SELECT kind, data FROM pieces WHERE id = ?", number)
        return None if row is None else (str(row[0]), bytes(row[1]))

    def keep_piece(self, number: int, kind: str, data: bytes) -> None:
        self._one("INSERT OR IGNORE INTO pieces VALUES (?, ?, ?)", number, kind, data)

    def _one(self, statement: str, *values: Any) -> tuple[Any, ...] | None:
        with self._lock:
            try:
                row: tuple[Any, ...] | None = self._base.execute(statement, values).fetchone()
            except sqlite3.Error as error:
                raise KlypeError(f"The answers kept in {self.file} cannot be used: {error}.", "Delete it.") from None
        return row
