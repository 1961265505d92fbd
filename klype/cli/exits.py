"""Every way a command can end, as an exit code and one sentence: never a traceback.

0 fine · 1 failed · 2 the command's words or inputs are wrong · 130 interrupted.
"""

import errno
import math
import os
import sys
import traceback
from collections.abc import Callable
from datetime import datetime
from itertools import pairwise

import typer

from klype import durable
from klype.cli.terminal import to_json
from klype.environment import language, state_folder
from klype.errors import KlypeError
from klype.words import LANGUAGES, plain
from klype.words.plain import aside
from klype.words.sentences import Sentences

INTERRUPTED = 130
# parts of messages, in lower case: torch's on Linux and macOS, the system's, Windows', a GPU's, C++'s; those of the
# loaders of shared libraries on Linux and Windows; oneDNN's
NO_MEMORY = (
    "can't allocate memory", "cannot allocate memory", "not enough memory", "out of memory", "bad_alloc",
    "failed to map segment", "paging file is too small", "could not create a primitive",
)  # fmt: skip
# Bytes of address space: torch maps more, and OpenMP kills the process when it cannot start a thread.
MIN_ADDRESS_SPACE = 1e9


def exit_code(command: Callable[[list[str]], object], argv: list[str], name: str = "klype") -> int:
    """Runs the command ``name`` and returns its exit code; a failure is printed in one sentence."""
    try:
        if _limit() < MIN_ADDRESS_SPACE:
            raise MemoryError
        code = command(argv)
    except KlypeError as error:
        return _tell(argv, error.message, error.hint, error.exit_code)
    except typer.TyperException as error:
        message = error.format_message()
        if not message:  # --help has been printed
            return error.exit_code
        where = getattr(error, "ctx", None)
        return _tell(argv, message, f"See: {where.command_path if where else name} --help", error.exit_code)
    except (KeyboardInterrupt, typer.Abort):
        code = INTERRUPTED
    except BrokenPipeError:  # stdout's reader is gone: redirect it, so that the flush at exit does not fail, too
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:
        return _tell(argv, *explanation(error, argv), 1)
    if code == INTERRUPTED:
        return _tell(argv, "Interrupted.", "What was saved stays; --resume goes on from there.", INTERRUPTED)
    return code if isinstance(code, int) else 0


def is_launched(argv: list[str]) -> bool:
    """Whether a launcher such as torchrun started this process as one of several that train together."""
    return argv[:1] in (["train"], ["run"], ["align"]) and {"RANK", "MASTER_ADDR"} <= os.environ.keys()


def wants_json(argv: list[str]) -> bool:
    """Whether --json is among the options (before a lone ``--``), even if the others are invalid."""
    return "--json" in _before_dashes(argv)


def speech(argv: list[str]) -> str:
    """The language of --lang, even if other options are invalid, or else the environment's."""
    options = _before_dashes(argv)
    pairs = [*pairwise(options), *(option.split("=", 1) for option in options if "=" in option)]
    given = [value for name, value in pairs if name == "--lang" and value in LANGUAGES]
    return given[-1] if given else language()


def _before_dashes(argv: list[str]) -> list[str]:
    return argv[: argv.index("--")] if "--" in argv else argv


def _tell(argv: list[str], message: str, hint: str, code: int) -> int:
    # torchrun may restart the process, whose JSON document is then still to come
    as_json = wants_json(argv) and not is_launched(argv)
    said = Sentences("en" if as_json else speech(argv))  # errors in JSON are English
    message, hint = said(message), said(hint)
    message = message if message.endswith((".", "?", "!", ")")) else f"{message}."
    # of several processes the first prints errors; the others only failures, which may be theirs alone
    if is_launched(argv) and os.environ["RANK"] != "0":
        if code == 1:
            aside(f"klype (another process): {message} {hint}".rstrip())
    elif as_json:
        plain.tell(to_json({"error": {"message": message, "hint": hint}}))
    else:
        aside(f"klype: {message} {hint}".rstrip())
    return code


def _limit() -> float:
    """Bytes of address space that this process may map (ulimit -v); infinity without a limit."""
    try:
        import resource
    except ImportError:  # Windows
        return math.inf
    most = resource.getrlimit(resource.RLIMIT_AS)[0]
    return math.inf if most == resource.RLIM_INFINITY else most


def lacks_memory(error: Exception) -> bool:
    """Whether the error means that memory ran out: Python's, the system's, a shared library's, or torch's (recognised
    by name, as torch is not imported here)."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno == errno.ENOMEM
    said, told = str(error).lower(), isinstance(error, RuntimeError | ImportError | OSError)
    return told and "static tls" not in said and any(words in said for words in NO_MEMORY)


def explanation(error: Exception, argv: list[str]) -> tuple[str, str]:
    """A message and a hint for an error that is not a KlypeError. The traceback of a bug is written to a file, which
    the hint names."""
    if lacks_memory(error):
        hint, most = "Close other programs or choose a smaller model.", _limit()
        if not math.isinf(most):  # closing other programs would not help
            hint = f"This process may use {most / 1e9:.1f} GB (ulimit -v), which is too little: raise that limit."
        return "There is not enough memory for this.", hint
    if isinstance(error, OSError):
        where = f" ({error.filename})" if error.filename else ""
        if error.errno == errno.ENOSPC:
            return f"The disk is full{where}.", "Make room, then go on with --resume."
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            return f"This may not be read or written here{where}.", "Check the permissions or choose another --out."
        return f"The system refused: {error.strerror or error}{where}.", ""
    name = f"{type(error).__name__}: {error}".splitlines()[0][:200]  # a library's message may be long
    file = state_folder() / "errors" / f"{datetime.now():%Y-%m-%d-%H%M%S-%f}.txt"
    try:
        for folder in (file.parent.parent, file.parent):
            durable.private_folder(folder)
        # backslashreplace: an argument may hold bytes that are not UTF-8
        with open(file, "w", encoding="utf-8", errors="backslashreplace", opener=durable.private) as out:
            out.write(f"klype {' '.join(argv)}\n\n{''.join(traceback.format_exception(error))}")
    except OSError:
        return f"This is a bug in klype ({name}).", f"Its traceback could not be written to {file.parent}."
    return f"This is a bug in klype ({name}).", f"The full traceback is in {file}"
