"""Errors that a user can act on: one sentence about what is wrong, and one about what to do."""

import re
from collections.abc import Iterator
from contextlib import contextmanager

# A flag of the command line and whether a value follows it; or a command line "klype …", which is left as it is.
FLAG = re.compile(r"\bklype [a-z].*|(?<![\w-])(?:-(?=n\b)|--)([a-z][a-z-]*)(?:[ =](?=\d|[A-Z]{2}))?", re.DOTALL)
SWITCHES = ("raw", "resume", "force")  # flags without a value
KEYWORDS = ("from",)  # Python's: as an argument's name they end in _


class KlypeError(Exception):
    """Something failed for a reason the user can act on. Exit code 1.

    ``message`` and ``hint`` name options as they are typed (--limit). ``str(error)``, which a program shows, names
    arguments instead (limit).
    """

    exit_code = 1

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return " ".join(FLAG.sub(_argument, part) for part in (self.message, self.hint) if part)


class UsageError(KlypeError):
    """The arguments or inputs are wrong, and nothing was started. Exit code 2."""

    exit_code = 2


class BudgetSpentError(KlypeError):
    """The budget of requests or tokens for a server is spent; answers so far are kept."""


class TrainingInterrupted(KlypeError):  # noqa: N818 - not an error
    """Training stopped between two steps, with its state saved: the same command with --resume continues.

    ``asked``: it was a signal (Ctrl-C), and not the caller, that stopped it.
    """

    def __init__(self, message: str, hint: str = "", asked: bool = False) -> None:
        super().__init__(message, hint)
        self.asked = asked


def not_native(name: str) -> UsageError:
    """The error for a model that klype does not compute itself."""
    return UsageError(
        f"{name} is not computed by klype itself, which this needs.",
        "Give a checkpoint folder of klype's own, Llama's, Mistral's or Qwen's architecture, or a GGUF file.",
    )


@contextmanager
def writing_to(place: object, hint: str = "", kind: type[KlypeError] = KlypeError) -> Iterator[None]:
    """Turns an OSError of its block into an error of this ``kind``: PLACE cannot be written, and why."""
    try:
        yield
    except OSError as error:
        raise kind(f"{place} cannot be written: {error.strerror or error}.", hint) from error


def _argument(flag: re.Match[str]) -> str:
    """--limit → limit, --seed 5 → seed=5, --raw → raw=True."""
    if flag[1] is None:
        return flag[0]
    name = flag[1].replace("-", "_") + "_" * (flag[1] in KEYWORDS)
    return f"{name}=True" if name in SWITCHES else f"{name}=" if flag[0][-1] in " =" else name


def short_error(error: Exception) -> str:
    """The first line of another library's error message, without class names and error numbers."""
    text = re.sub(r"^(Got: \w+: )?(\[Errno -?\d+\] )?", "", str(error).strip()).splitlines()
    return (text[0][:160].rstrip(" .:") if text else "") or type(error).__name__
