"""The database of a preference store: a SQLite file, or PostgreSQL by its url."""

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
# parts of error messages by which SQLite reports a corrupted file
BROKEN = ("malformed", "could not decode", "no such ", "already exists", "syntax error", "duplicate column", "too big")


def connect(place: str | Path, busy_s: float = 10.0, read_only: bool = False) -> Engine:
    """An engine whose committed transactions are durable; ``place``: a file, ``sqlite:///…`` or ``postgresql://…``.

    ``busy_s``: seconds to wait for another writer. Raises UsageError for other urls and for a missing driver.
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
    """The place as messages name it, without its password."""
    return str(place) if file_of(place) is not None else _url(place).render_as_string(hide_password=True)


def short(place: str | Path) -> str:
    """A short name for lists: the file's name, or DATABASE@HOST."""
    url = _url(place)
    if url.get_backend_name() == "sqlite":
        return Path(url.database or "").name
    return f"{url.database or url.username or ''}@{url.host or url.query.get('host', 'localhost')}"


def file_of(place: str | Path) -> Path | None:
    """The file of a SQLite store, None for PostgreSQL."""
    url = _url(place)
    return Path(url.database) if url.get_backend_name() == "sqlite" and url.database else None


class DamagedError(KlypeError):
    """The store is corrupted: it contains something that klype did not write."""


@contextmanager
def plainly(place: str) -> Iterator[None]:
    """Turns database errors into one-sentence KlypeErrors."""
    try:
        yield
    except (DBAPIError, OSError) as error:
        cause = error.orig if isinstance(error, DBAPIError) and error.orig is not None else error
        raise _explain(place, str(cause).strip() or type(cause).__name__) from error
    except UnicodeDecodeError as error:  # SQLite's message quotes a damaged name that is not UTF-8
        raise DamagedError(f"The store {place} is damaged: a name in it is no text.", SAVED) from error
    except DamagedError as error:
        raise error if error.hint else DamagedError(f"The store {place} is damaged: {error.message}.", SAVED) from None


@contextmanager
def write_transaction(engine: Engine) -> Iterator[Connection]:
    """A write transaction, committed durably at the end or rolled back."""
    with engine.connect() as raw:
        connection = raw.execution_options(writes=True)
        with connection.begin():
            yield connection


def check_whole(engine: Engine) -> None:
    """Raises DamagedError for a SQLite file that fails its integrity check (lost rows, an index unlike its table)."""
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
        # Without a write-ahead log nobody is writing: "immutable" reads it even where SQLite cannot create its locks.
        alone = not file.with_name(f"{file.name}-wal").exists()
        query = {"mode": "ro", "uri": "true", **({"immutable": "1"} if alone else {})}
        url = URL.create("sqlite", database=f"file:{file}", query=query)
    engine = create_engine(url, connect_args={"timeout": busy_s})

    @event.listens_for(engine, "connect")
    def prepare(connection: Any, record: Any) -> None:
        connection.isolation_level = None  # not sqlite3's own transactions: SQLAlchemy begins them, see below
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


def _explain(place: str, cause: str) -> KlypeError:
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
