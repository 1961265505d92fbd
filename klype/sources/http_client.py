"""A JSON client for untrusted HTTP servers: retries with back-off, a budget, a response cache, one-sentence errors."""

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
from klype.jsons import parse
from klype.sources.bounded_http import Limits, ResponseReader, begin

RETRIED = (408, 409, 425, 429, 500, 502, 503, 504)  # status codes of temporary errors


class RefusedError(KlypeError):
    """The server refused a request: it does not offer what was asked."""


@dataclass
class Budget:
    """Limits on requests and tokens (0: none) and what was used of them. Cached responses and tokenizing are free.

    ``kept``: number of responses from the cache. ``say`` is called whenever usage was counted, on the thread that made
    the request.
    """

    requests: int = 0
    tokens: int = 0
    asked: int = 0
    prompt_tokens: int = 0
    answer_tokens: int = 0
    kept: int = 0
    say: "Callable[[Budget], None]" = lambda budget: None
    lock: threading.Lock = field(default_factory=threading.Lock)

    @staticmethod
    def parse(text: str) -> "Budget":
        """Parses "500requests", "20000tokens", or both with a comma. Raises UsageError for anything else."""
        found = Budget()
        for part in text.replace(" ", "").replace("_", "").split(",") if text.strip() else ():
            match = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?(?:e[0-9]+)?)(requests|tokens)", part, re.IGNORECASE)
            if match is None or float(match[1]) < 1:
                raise UsageError(f"--budget does not understand “{part}”.", "Write 500requests or 20000tokens.")
            setattr(found, match[2].lower(), int(float(match[1])))
        return found

    @property
    def spent(self) -> int:
        """Tokens used, as the server counts them."""
        return self.prompt_tokens + self.answer_tokens

    def take(self) -> None:
        """Counts one more request. Raises BudgetSpentError if the budget is used up."""
        with self.lock:
            spent = self.spent
            if (self.requests and self.asked >= self.requests) or (self.tokens and spent >= self.tokens):
                raise BudgetSpentError(
                    f"The budget is used up: {self.asked} requests, {spent} tokens.",
                    "What was answered is kept; the same command with a larger --budget goes on from there.",
                )
            self.asked += 1

    def pay(self, usage: Any) -> None:
        """Counts the tokens of a response's ``usage``."""
        numbers = usage if isinstance(usage, Mapping) else {}
        with self.lock:
            self.prompt_tokens += count(numbers.get("prompt_tokens"))
            self.answer_tokens += count(numbers.get("completion_tokens"))
        self.say(self)


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """How often and how long a request is tried.

    ``tries``: attempts; ``first``: the first wait in seconds, doubled each time up to ``most`` unless the server says
    how long; ``longest``: of all waits together. A response may take ``seconds``, and ``per_token`` for each token
    requested, over all attempts and without waits. ``concurrency``: requests at once. ``client``, ``sleep``: for tests.
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
    """A request. ``sample`` distinguishes repetitions in the cache; ``check`` raises for a wrong answer, which is then
    not cached."""

    path: str
    body: Mapping[str, Any]
    sample: int = 0
    check: Callable[[dict[str, Any]], object] = lambda answer: None


class HttpClient:
    """A client of one server. ``key`` is sent in the Authorization header and appears nowhere else; a user name in
    ``base`` is sent instead of it."""

    def __init__(
        self,
        base: str,
        key: str = "",
        cache: "ResponseCache | None" = None,
        budget: Budget | None = None,
        retry: RetryPolicy | None = None,
    ) -> None:
        url = httpx.URL(base)
        auth = (url.username, url.password) if url.username else None
        self.base = str(url.copy_with(username=None, password=None, fragment=None, query=None)).rstrip("/")
        self.cache, self.budget, self.retry = cache or ResponseCache(), budget or Budget(), retry or RetryPolicy()
        self._headers = {"Accept-Encoding": "gzip, identity"} | ({"Authorization": f"Bearer {key}"} if key else {})
        self._client = self.retry.client or httpx.Client(timeout=httpx.Timeout(120, connect=10))
        self._send = partial(self._client.send, stream=True, auth=auth, follow_redirects=False)
        self._reached = False

    def probe(self, path: str, body: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Sends a request past the cache (GET without a body, else POST) and returns the JSON object."""
        reader, data = self._request(path, body)
        answer = None
        with suppress(ValueError):
            answer = parse(data)
        if not isinstance(answer, dict):
            raise self._unexpected_type(reader)
        if path.endswith("completions"):
            self.budget.pay(answer.get("usage"))
        return answer

    def post(self, call: Call) -> dict[str, Any]:
        """The answer from the cache, else from the server."""
        asked = json.dumps([self.base, call.path, call.body, call.sample], sort_keys=True, ensure_ascii=True)
        key = hashlib.sha256(asked.encode()).hexdigest()
        found = self.cache.get(key)
        if found is not None:
            with self.budget.lock:
                self.budget.kept += 1
            call.check(found)
            return found
        answer = self.probe(call.path, call.body)
        call.check(answer)
        self.cache.put(key, answer)
        return answer

    def many(self, calls: Sequence[Call]) -> Iterator[tuple[int, dict[str, Any]]]:
        """Yields (index, answer) as answers arrive, with bounded concurrency. After an error no further call is
        sent."""
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
        """Yields the JSON of server-sent events, until [DONE] or the end of the stream: some servers leave [DONE] out,
        and the finish reason says whether an answer is complete. Raises KlypeError where the stream breaks or is not
        JSON."""
        body = {**call.body, "stream": True, "stream_options": {"include_usage": True}}
        reader, _ = self._request(call.path, body, whole=False)
        usage = None
        try:
            if "text/event-stream" not in reader.response.headers.get("content-type", ""):
                raise self._unexpected_type(reader)
            for line in reader.lines():
                data = line.removeprefix("data:").strip() if line.startswith("data:") else ""
                if data == "[DONE]":
                    return
                if not data:
                    continue
                try:
                    event = parse(data)
                except ValueError:
                    raise KlypeError(f"{self.base} streams something that is not JSON: {data[:80]!r}.") from None
                if not isinstance(event, dict):
                    raise KlypeError(f"{self.base} streams something that is not a JSON object: {data[:80]!r}.")
                if "error" in event:
                    raise KlypeError(f"{self.base} broke off: {_message(event)}.")
                # some servers tell it once, others with every event, counted up
                usage = event.get("usage") or usage
                yield event
        except httpx.HTTPError as error:
            reader.limits.left()
            raise KlypeError(f"{self.base} cut its answer off: {short_error(error)}.", "Ask again.") from None
        finally:
            self.budget.pay(usage)
            reader.response.close()

    def _request(self, path: str, body: Mapping[str, Any] | None, whole: bool = True) -> tuple[ResponseReader, bytes]:
        """The response and, if ``whole``, its body, after as many attempts as it takes. Each attempt at a
        completion counts against the budget: the server may have computed an answer that did not arrive.

        Raises RefusedError for what the server does not offer, KlypeError for other failures.
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
                reader = begin(self._send, request(headers=self._headers), limits)
                status, headers = reader.response.status_code, reader.response.headers
                data = reader.whole() if whole or status != 200 else b""
            except httpx.HTTPError as error:
                problem = short_error(error)
                if isinstance(error, httpx.ConnectError) and not self._reached:
                    raise KlypeError(f"No server answers at {self.base} ({problem}).", "Is it started?") from None
                if not isinstance(error, httpx.ConnectError):
                    limits.left()
                continue
            self._reached = True
            if status == 200:
                return reader, data
            if status not in RETRIED:
                if status in (401, 403):
                    raise KlypeError(f"{self.base} wants a key, or another one ({status}).", "Set it as KLYPE_API_KEY.")
                said = f"status {status}"
                with suppress(ValueError):
                    said = _message(parse(data))
                raise RefusedError(f"{self.base} refused: {said}.")
            problem = f"status {status}"
            asked = retry_after(headers.get("retry-after", ""), datetime.now(UTC))
            if asked is not None and asked > self.retry.longest:
                raise KlypeError(f"{self.base} asks to wait {asked:.0f} seconds.", "Try again then.")
            wait_s = wait_s if asked is None else asked
        raise KlypeError(f"{self.base} did not answer in {tried} tries ({problem}).", "Try again later.")

    def _unexpected_type(self, reader: ResponseReader) -> KlypeError:
        """The error for a response of the wrong content type."""
        kind = reader.response.headers.get("content-type", "nothing")
        return KlypeError(
            f"{self.base} answers with {kind.split(';')[0][:60]}, not as OpenAI's API does.",
            "Is it the address of an API?",
        )


def retry_after(text: str, now: datetime) -> float | None:
    """Seconds to wait by a Retry-After header, a number or a date; None if it is neither."""
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
    """A server's count if it is a positive integer, else 0."""
    return value if isinstance(value, int) and value > 0 else 0


class ResponseCache:
    """JSON objects by key in a SQLite file; ``file`` None: in memory. Raises KlypeError for a file that is damaged or
    cannot be written."""

    def __init__(self, file: Path | None = None) -> None:
        self.file, self._lock = file, threading.Lock()
        try:
            if file is not None:
                private_folder(file.parent)
                with open(file, "ab", opener=private):  # SQLite's other files get the permissions of this one
                    pass
            self._base = sqlite3.connect(file or ":memory:", check_same_thread=False, timeout=30, isolation_level=None)
            self._base.execute("PRAGMA journal_mode=WAL")
            self._base.execute("CREATE TABLE IF NOT EXISTS answers (key TEXT PRIMARY KEY, answer TEXT NOT NULL)")
        except (sqlite3.Error, OSError) as error:
            raise KlypeError(f"The answers kept in {file} cannot be used: {error}.", "Delete that file.") from None

    def get(self, key: str) -> dict[str, Any] | None:
        row = self._execute("SELECT answer FROM answers WHERE key = ?", key)
        return None if row is None else dict(parse(row[0]))

    def put(self, key: str, answer: Mapping[str, Any]) -> None:
        self._execute("INSERT OR REPLACE INTO answers VALUES (?, ?)", key, json.dumps(answer))

    def _execute(self, statement: str, *values: Any) -> tuple[Any, ...] | None:
        with self._lock:
            try:
                row: tuple[Any, ...] | None = self._base.execute(statement, values).fetchone()
            except sqlite3.Error as error:
                raise KlypeError(f"The answers kept in {self.file} cannot be used: {error}.", "Delete it.") from None
        return row
