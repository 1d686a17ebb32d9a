"""Errors that a person reads as one line; each has an exit code (the table is in docs/troubleshooting.md)."""

USAGE_ERROR = 2


class UserError(Exception):
    """Names a value, what is wrong with it, and what would be right."""

    exit_code = USAGE_ERROR
    of_one_rank = False
    """Whether other ranks do not know of the error, so that this rank has to report it."""


class CheckpointError(UserError):
    """A checkpoint is damaged, of another program, or does not fit the run that is to resume from it."""

    exit_code = 65


class NothingToResumeError(UserError):
    """There is no run or checkpoint at the path to resume from."""

    exit_code = 66


class RanksError(UserError):
    """Ranks cannot reach each other, or their flags or weights differ."""

    exit_code = 69


class LostRankError(RuntimeError):
    """Another rank has died or does not come; torch's own collectives raise a `RuntimeError` then."""


class CrashLoopError(UserError):
    """A restart would fail in the same way."""

    exit_code = 70


class EnvError(UserError):
    """An environment cannot be made, failed, or gave values that nothing can be learned from."""

    exit_code = 71


class OneEnvError(EnvError):
    """An environment of this rank failed while other ranks wait for it."""

    of_one_rank = True


class NumericError(UserError):
    """A loss or a gradient is not finite."""

    exit_code = 72


class FolderError(UserError):
    """The run's folder cannot be written, or another process is using it."""

    exit_code = 73


class DiskError(UserError):
    """Checkpoints cannot be written."""

    exit_code = 74


class StopError(BaseException):
    """Ends a run that a signal asked to stop, at the end of an update.

    A BaseException, so that code that catches an environment's or a logger's exceptions does not catch it.
    """

    of_one_rank = False

    def __init__(self, signal_number: int, message: str) -> None:
        super().__init__(message)
        self.exit_code = 128 + signal_number


def require(condition: bool, flag: str, value: object, right: str) -> None:
    """Raises `UserError` with flag, value and what would be right, unless the condition holds."""
    if not condition:
        raise UserError(f"{flag} {value}: {right}")


def install(extra: str) -> str:
    """The command that installs what an extra of this package names."""
    return f"pip install 'fabric-rl[{extra}]'"


def counted(number: int, noun: str) -> str:
    """A number of things, such as "1 rank" or "2 ranks"."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def one_line(text: str, most: int = 300) -> str:
    """The text without line breaks and unprintable characters, cut to `most` characters."""
    line = " ".join("".join(letter if letter.isprintable() else " " for letter in text).split())
    return line if len(line) <= most else f"{line[: most - 3]}..."


def described(error: BaseException) -> str:
    """An exception's type and message in one line."""
    try:
        text = str(error)
    except Exception:  # an environment's own exception may fail here too
        text = "(its message cannot be printed)"
    return one_line(f"{type(error).__name__}: {text}").removesuffix(":")
