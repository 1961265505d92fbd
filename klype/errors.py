"""What a user did wrong, in one sentence, with what to do about it."""


class KlypeError(Exception):
    """Something failed for a reason the user can act on. Exit code 1."""

    exit_code = 1

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message} {self.hint}".strip()


class UsageError(KlypeError):
    """The command's words or inputs are wrong: nothing was started. Exit code 2."""

    exit_code = 2


class Interrupted(KlypeError):  # noqa: N818 - it is no error but an end that was asked for
    """Stopped between two steps of training, with the state saved: the same command with --resume goes on.

    ``asked``: a signal (Ctrl-C) asked for it, rather than whoever called the training.
    """

    def __init__(self, message: str, hint: str = "", asked: bool = False) -> None:
        super().__init__(message, hint)
        self.asked = asked
