"""The database under a store: SQLite in a file or PostgreSQL by url."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Engine, create_engine, event
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError

from klype.errors import KlypeError, UsageError

POSTGRES = ("postgresql", "postgres", "postgresql+psycopg")
SAVED = (
    "klype rank with --export FILE writes what is whole: put the store away, and take it in again with --import FILE."
)
# parts of a database's messages that say its file was changed by something else
BROKEN = ("malformed", "could not decode", "no such ", "already exists", "syntax error", "duplicate column", "too big")


def connect(place: str | Path, busy_s: float = 10.0, read_only: bool = False) -> Engine:
    """An engine whose transactions are durable when they are over; ``place``: a file, ``sqlite:///…``, ``postgresql://…``.

    ``busy_s``: how long to wait for another writer. Errors: a url of another kind, a driver that is not installed.
    """
    url = _url(place)
    if url.get_backend_name() == "sqlite":
        return _sqlite(url, busy_s, read_only)
    try:
        engine = create_engine(url, pool_pre_ping=True, connect_args={"connect_timeout": max(2, int(busy_s))})
    except ImportError as error:
        raise UsageError(
            "A store in PostgreSQL needs the driver psycopg.", "Install it: pip install 'klype[postgres]'."
        ) from error

    @event.listens_for(engine, "connect")
    def prepare(connection: Any, record: Any) -> None:
        with connection.cursor() as cursor:
            cursor.execute("SET synchronous_commit = on")
            cursor.execute(f"SET lock_timeout = {int(busy_s * 1000)}")
        connection.commit()

    return engine


def name_of(place: str | Path) -> str:
    """A store's place for messages, without its password."""
    return str(place) if isinstance(place, Path) else _url(place).render_as_string(hide_password=True)


def short(place: str | Path) -> str:
    """A name for a list: the file's, or the database and its server."""
    url = _url(place)
    if url.get_backend_name() == "sqlite":
        return Path(url.database or "").name
    return f"{url.database or url.username or ''}@{url.host or url.query.get('host', 'localhost')}"


def file_of(place: str | Path) -> Path | None:
    """The file of a SQLite store; None for PostgreSQL."""
    url = _url(place)
    return Path(url.database) if url.get_backend_name() == "sqlite" and url.database else None


class DamagedError(KlypeError):
    """The store holds something that was never written to it."""


@contextmanager
def plainly(place: str) -> Iterator[None]:
    """Context that turns database errors into one-sentence KlypeErrors."""
    try:
        yield
    except (DBAPIError, OSError) as error:
        cause = error.orig if isinstance(error, DBAPIError) and error.orig is not None else error
        raise _explained(place, str(cause).strip() or type(cause).__name__) from error
    except UnicodeDecodeError as error:  # SQLite quotes a damaged name, of which Python can make no sentence
        raise DamagedError(f"The store {place} is damaged: a name in it is no text.", SAVED) from error
    except DamagedError as error:
        raise error if error.hint else DamagedError(f"The store {place} is damaged: {error.message}.", SAVED) from None


@contextmanager
def writing(engine: Engine) -> Iterator[Connection]:
    """One transaction that may write: all of it is on the disk afterwards, or nothing."""
    with engine.connect() as raw:
        connection = raw.execution_options(writes=True)
        with connection.begin():
            yield connection


def check_whole(engine: Engine) -> None:
    """DamagedError for a file in which rows are lost, or an index says other than its table."""
    if engine.dialect.name == "sqlite":
        with engine.connect() as connection:
            found = str(connection.exec_driver_sql("PRAGMA integrity_check(1)").scalar())
        if found != "ok":
            raise DamagedError(found.splitlines()[-1].removesuffix("."))


def _url(place: str | Path) -> URL:
    if isinstance(place, Path) or "://" not in place:
        return URL.create("sqlite", database=str(Path(place).expanduser()))
    try:
        url = make_url(place)
    except (ArgumentError, ValueError) as error:
        raise UsageError(
            f"{place} is not the url of a store.", "Give a file, or postgresql://user@host/name."
        ) from error
    if url.drivername in POSTGRES:
        return url.set(drivername="postgresql+psycopg")
    if url.drivername != "sqlite" or not url.database or url.database == ":memory:":
        kind = url.render_as_string(hide_password=True)
        raise UsageError(f"A store cannot be kept in {kind}.", "Give a file, or postgresql://user@host/name.")
    return url


def _sqlite(url: URL, busy_s: float, read_only: bool) -> Engine:
    file = Path(str(url.database)).resolve()
    if read_only:
        # Without a log next to it, nothing writes to the file: it can be read where even SQLite's locks cannot be made.
        alone = not file.with_name(f"{file.name}-wal").exists()
        query = {"mode": "ro", "uri": "true", **({"immutable": "1"} if alone else {})}
        url = URL.create("sqlite", database=f"file:{file}", query=query)
    engine = create_engine(url, connect_args={"timeout": busy_s})

    @event.listens_for(engine, "connect")
    def prepare(connection: Any, record: Any) -> None:
        connection.isolation_level = None  # transactions begin where SQLAlchemy says, see below
        connection.execute(f"PRAGMA busy_timeout = {int(busy_s * 1000)}")
        connection.execute("PRAGMA foreign_keys = ON")
        if not read_only:
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("PRAGMA synchronous = FULL")

    @event.listens_for(engine, "begin")
    def begin(connection: Connection) -> None:
        writes = connection.get_execution_options().get("writes", False)
        connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")

    return engine


def _explained(place: str, cause: str) -> KlypeError:
    low = cause.lower()
    for sign, message, hint in (
        ("locked", f"The store {place} is locked by another program.", "Close it, or try again; nothing was lost."),
        ("lock timeout", f"The store {place} is locked by another program.", "Try again; nothing was lost."),
        ("or disk is full", f"The disk of the store {place} is full.", "Make room; earlier rankings are safe."),
        ("no space", f"The disk of the store {place} is full.", "Make room; earlier rankings are safe."),
        ("readonly", f"The store {place} may not be written.", "Make the file and its folder writable."),
        ("unable to open", f"The store {place} cannot be opened.", "Check that its folder exists and may be written."),
        ("not a database", f"{place} is not a store of rankings.", "Name another file."),
    ):
        if sign in low:
            return KlypeError(message, hint)
    if any(sign in low for sign in BROKEN):
        return DamagedError(f"The store {place} is damaged: {cause.splitlines()[0]}.", SAVED)
    return KlypeError(f"The store {place} could not be used: {cause.splitlines()[0]}.", "Earlier rankings are safe.")
