"""Every way a command can end, as an exit code and one sentence: never a traceback.

0 fine · 1 failed · 2 the command's words or inputs are wrong · 130 interrupted.
"""

from __future__ import annotations

import errno
import sys
import traceback
from collections.abc import Callable
from datetime import datetime
from functools import partial
from pathlib import Path

import typer

from klype.cli.environment import is_launched, speaks, state_folder, wants_json
from klype.cli.terminal import silence_stdout, to_json
from klype.errors import KlypeError

INTERRUPTED = 130
NO_MEMORY = ("can't allocate memory", "cannot allocate memory", "not enough memory", "out of memory", "bad_alloc")
"""What torch's errors say, in small letters: its own on Linux and macOS, the system's, Windows', a GPU's, C++'s."""


def guarded(command: Callable[[list[str]], object], argv: list[str]) -> int:
    """Runs the command and returns its exit code, having told what went wrong if something did."""
    as_json = wants_json(argv) and not is_launched(argv)  # started again, it has a result yet: stdout is for that
    tell = partial(_tell, as_json, speaks(argv))
    try:
        code = command(argv)
    except KlypeError as error:
        return tell(error.message, error.hint, error.exit_code)
    except typer.TyperException as error:
        message = error.format_message()
        return (
            tell(message, "See: klype --help", error.exit_code) if message else error.exit_code
        )  # help is out already
    except (KeyboardInterrupt, typer.Abort):
        code = INTERRUPTED
    except BrokenPipeError:
        silence_stdout()
        return 1
    except Exception as error:
        if _lacks_memory(error):
            return tell("There is not enough memory for this.", "Close other programs or choose a smaller model.", 1)
        told = _explain(error) if isinstance(error, OSError) else _bug(error, state_folder(), argv)
        return tell(*told, 1)
    if code == INTERRUPTED:
        return tell("Interrupted.", "What was saved stays; --resume goes on from there.", INTERRUPTED)
    return code if isinstance(code, int) else 0


def _tell(as_json: bool, speaks: bool, message: str, hint: str, code: int) -> int:
    message = message if message.endswith((".", "?", "!", ")")) else f"{message}."
    if not speaks:  # of several processes one speaks for all; of the others only what is their own trouble is told
        if code == 1:
            print(f"klype (another process): {message} {hint}".rstrip(), file=sys.stderr, flush=True)
    elif as_json:
        print(to_json({"error": {"message": message, "hint": hint}}), flush=True)
    else:
        print(f"klype: {message} {hint}".rstrip(), file=sys.stderr, flush=True)
    return code


def _lacks_memory(error: Exception) -> bool:
    """Whether Python, the system or torch (told by name: it is not imported here) had no memory to give."""
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    return isinstance(error, RuntimeError) and any(words in str(error).lower() for words in NO_MEMORY)


def _explain(error: OSError) -> tuple[str, str]:
    where = f" ({error.filename})" if error.filename else ""
    if error.errno == errno.ENOSPC:
        return f"The disk is full{where}.", "Make room, then go on with --resume."
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return f"This may not be read or written here{where}.", "Check the permissions or choose another --out."
    return f"The system refused: {error.strerror or error}{where}.", ""


def _bug(error: Exception, folder: Path, argv: list[str]) -> tuple[str, str]:
    """The traceback goes to a file, its place into the message."""
    name = f"{type(error).__name__}: {error}".splitlines()[0][:200]
    text = f"klype {' '.join(argv)}\n\n{''.join(traceback.format_exception(error))}"
    file = folder / "errors" / f"{datetime.now():%Y-%m-%d-%H%M%S-%f}.txt"
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="utf-8", errors="backslashreplace")
    except OSError:
        return f"This is a bug in klype ({name}).", f"Its traceback could not be written to {file.parent}."
    return f"This is a bug in klype ({name}).", f"The full traceback is in {file}"
