"""What a user did wrong, in one sentence, with what to do about it."""

import re

# A flag of the command line, and whether a value follows; what is typed after ``klype`` is left as it is.
FLAG = re.compile(r"\bklype [a-z].*|(?<![\w-])(?:-(?=n\b)|--)([a-z][a-z-]*)(?:[ =](?=\d|[A-Z]{2}))?", re.DOTALL)
SWITCHES = ("raw", "resume", "force")  # flags without a value
KEYWORDS = ("from",)  # of Python: such an argument's name ends in _


class KlypeError(Exception):
    """Something failed for a reason the user can act on. Exit code 1.

    ``message`` and ``hint`` name options as they are typed (--limit); as text, for programs, it names arguments
    (limit).
    """

    exit_code = 1

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return " ".join(FLAG.sub(_argument, part) for part in (self.message, self.hint) if part)


class UsageError(KlypeError):
    """The command's words or inputs are wrong: nothing was started. Exit code 2."""

    exit_code = 2


class BudgetSpentError(KlypeError):
    """What a server may be asked for has been asked for; what was answered is kept."""


class TrainingInterrupted(KlypeError):  # noqa: N818 - it is no error but an end that was asked for
    """Stopped between two steps of training, with the state saved: the same command with --resume goes on.

    ``asked``: a signal (Ctrl-C) asked for it, rather than whoever called the training.
    """

    def __init__(self, message: str, hint: str = "", asked: bool = False) -> None:
        super().__init__(message, hint)
        self.asked = asked


def _argument(flag: re.Match[str]) -> str:
    """--limit → limit, --seed 5 → seed=5, --raw → raw=True."""
    if flag[1] is None:
        return flag[0]
    name = flag[1].replace("-", "_") + "_" * (flag[1] in KEYWORDS)
    return f"{name}=True" if name in SWITCHES else f"{name}=" if flag[0][-1] in " =" else name


def short_error(error: Exception) -> str:
    """Another program's words in one line, without its classes and numbers."""
    text = re.sub(r"^(Got: \w+: )?(\[Errno -?\d+\] )?", "", str(error).strip()).splitlines()
    return (text[0][:160].rstrip(" .:") if text else "") or type(error).__name__
