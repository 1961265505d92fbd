"""Answers of servers, kept on disk by what was asked, so that nothing is asked (and paid for) twice.

SQLite; every answer is committed before it is used, so that a killed process loses none. No key and no password of an
address ever gets here: entries are named by the hash of address, path and body.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from klype.durable import private, private_folder
from klype.errors import KlypeError
from klype.jsons import parsed

SCHEMA = """
CREATE TABLE IF NOT EXISTS answers (key TEXT PRIMARY KEY, answer TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS pieces (id INTEGER PRIMARY KEY, kind TEXT NOT NULL, data BLOB NOT NULL);
CREATE TABLE IF NOT EXISTS offers (address TEXT PRIMARY KEY, offer TEXT NOT NULL);
"""


class Kept:
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
        row = self._one("SELECT answer FROM answers WHERE key = ?", (key,))
        return None if row is None else dict(parsed(row[0]))

    def keep(self, key: str, answer: Mapping[str, Any]) -> None:
        self._one("INSERT OR REPLACE INTO answers VALUES (?, ?)", (key, json.dumps(answer)))

    def piece(self, number: int) -> tuple[str, bytes] | None:
        """What a text's number stands for: its kind and its bytes."""
        row = self._one("SELECT kind, data FROM pieces WHERE id = ?", (number,))
        return None if row is None else (str(row[0]), bytes(row[1]))

    def keep_piece(self, number: int, kind: str, data: bytes) -> None:
        self._one("INSERT OR IGNORE INTO pieces VALUES (?, ?, ?)", (number, kind, data))

    def offer(self, address: str) -> dict[str, Any] | None:
        row = self._one("SELECT offer FROM offers WHERE address = ?", (address,))
        return None if row is None else dict(parsed(row[0]))

    def keep_offer(self, address: str, offer: Mapping[str, Any]) -> None:
        self._one("INSERT OR REPLACE INTO offers VALUES (?, ?)", (address, json.dumps(offer)))

    def close(self) -> None:
        self._base.close()

    def _one(self, statement: str, values: tuple[Any, ...]) -> tuple[Any, ...] | None:
        with self._lock:
            try:
                row: tuple[Any, ...] | None = self._base.execute(statement, values).fetchone()
            except sqlite3.Error as error:
                raise KlypeError(f"The answers kept in {self.file} cannot be used: {error}.", "Delete it.") from None
        return row


def key_of(address: str, path: str, body: Mapping[str, Any], sample: int) -> str:
    """``sample`` tells repetitions of one request apart."""
    asked = json.dumps([address, path, body, sample], sort_keys=True, ensure_ascii=True)
    return hashlib.sha256(asked.encode()).hexdigest()
