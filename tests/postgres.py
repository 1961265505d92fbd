"""A real PostgreSQL for the tests: made in a folder of its own, reached by a socket there, gone afterwards."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

NAMES = ("postgres", "nobody")


def program(name: str) -> str | None:
    places = sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"), reverse=True)
    return str(places[0]) if places else shutil.which(name)


@contextmanager
def server() -> Iterator[str]:
    """The url of an empty server; skips, saying why, where there is no PostgreSQL."""
    pytest.importorskip("psycopg", reason="PostgreSQL's driver psycopg is not installed")
    initdb, control = program("initdb"), program("pg_ctl")
    if initdb is None or control is None:
        pytest.skip("PostgreSQL is not installed (scripts/system-packages.sh does it)")
    folder = Path(tempfile.mkdtemp(prefix="klype-pg-", dir="/tmp"))  # a socket's path must be short
    user = {}
    if os.getuid() == 0:  # PostgreSQL refuses to run as root
        known = {entry.pw_name for entry in pwd.getpwall()}
        name = next((n for n in NAMES if n in known), None)
        if name is None:
            pytest.skip("PostgreSQL does not run as root, and there is no user postgres or nobody")
        os.chown(folder, pwd.getpwnam(name).pw_uid, -1)
        user = {"user": name}
    data = folder / "data"
    options = f"-c listen_addresses='' -c unix_socket_directories='{folder}' -c shared_buffers=16MB"
    quiet = {"check": True, "capture_output": True, "cwd": folder, "text": True, **user}
    try:
        subprocess.run(
            [initdb, "-D", str(data), "-U", "klype", "-A", "trust", "-E", "UTF8", "--no-locale", "-N"], **quiet
        )
        subprocess.run([control, "-D", str(data), "-o", options, "-l", str(folder / "log"), "-w", "start"], **quiet)
    except subprocess.CalledProcessError as error:
        shutil.rmtree(folder, ignore_errors=True)
        pytest.skip(f"PostgreSQL does not start here: {error.stderr[-300:]}")
    try:
        yield f"postgresql://klype@/{{}}?host={folder}"
    finally:
        subprocess.run([control, "-D", str(data), "-m", "immediate", "stop"], cwd=folder, capture_output=True, **user)
        shutil.rmtree(folder, ignore_errors=True)
