"""Errors that a person reads: one line, printed once, with an exit code other than 0."""

import contextlib
import json
import os
import re
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from rl.dist.interrupts import INTERRUPTED, impatience
from rl.dist.launch import absent_ranks, kill_stopped_ranks, leave_process_group, part, rank

USAGE_ERROR = 2


class UserError(Exception):
    """What is wrong, with which value, and what would be right."""

    exit_code = USAGE_ERROR
    of_one_rank = False
    """Whether other ranks have nothing to say of it."""


class CheckpointError(UserError):
    """A checkpoint is damaged, of another program, or does not fit what it is to go on as."""

    exit_code = 65


class NothingToResumeError(UserError):
    """There is no run where one was to go on."""

    exit_code = 66


class RanksError(UserError):
    """Ranks have lost each other, or do not do the same."""

    exit_code = 69


class LostRanksError(RanksError):
    """This rank has lost others, of which rank 0 may be one."""

    of_one_rank = True


class CrashLoopError(UserError):
    """The same would happen again."""

    exit_code = 70


class EnvError(UserError):
    """An environment gave what nobody can learn from, or nothing."""

    exit_code = 71


class OneEnvError(EnvError):
    """An environment of this rank failed, while others wait for it."""

    of_one_rank = True


class NumericError(UserError):
    """A loss or a gradient is not finite."""

    exit_code = 72


class FolderError(UserError):
    """The run's folder cannot be made, or another process writes there."""

    exit_code = 73


class DiskError(UserError):
    """Checkpoints cannot be written."""

    exit_code = 74


class LeftError(UserError):
    """Something ended the process as if all was well, before the end of the run."""

    exit_code = 1
    of_one_rank = True


class StopError(BaseException):
    """A signal asked the run to end, and it did at the end of an update.

    No `Exception`: nothing that catches what an environment or a log raises is to catch it.
    """

    of_one_rank = False

    def __init__(self, number: int, message: str) -> None:
        """`number` is the signal's."""
        super().__init__(message)
        self.exit_code = 128 + number


def require(condition: bool, flag: str, value: object, right: str) -> None:
    """Raises `UserError` that names flag, value and what would be right, unless the condition holds."""
    if not condition:
        raise UserError(f"{flag} {value}: {right}")


def one_line(text: str, most: int = 300) -> str:
    """The text without line breaks, cut where it is longer than anyone would read."""
    line = " ".join("".join(letter if letter.isprintable() else " " for letter in text).split())
    return line if len(line) <= most else f"{line[: most - 3]}..."


def described(error: BaseException) -> str:
    """An exception in one line, whatever its own text is."""
    try:
        text = str(error)
    except Exception:
        text = "(of which it cannot make a text)"
    return one_line(f"{type(error).__name__}: {text}").removesuffix(":")


class ExitFile:
    """How the run ended, in a file of its folder: launchers do not keep exit codes, and ranks need not repeat it."""

    def __init__(self) -> None:
        """Nothing is written before there is a folder."""
        self.path: Path | None = None

    def keep_in(self, folder: Path) -> None:
        """Has the end of this run written into its folder; how an earlier part of it ended is forgotten."""
        self.path = folder / "exit.json"
        if rank() == 0:
            with contextlib.suppress(OSError):
                self.path.unlink()

    def write(self, exit_code: int, message: str) -> None:
        """Says how this rank ended, unless another has said so before."""
        if self.path is not None and not self.path.exists():
            unfinished = self.path.with_name(f".exit{rank()}.tmp")
            with contextlib.suppress(OSError):
                unfinished.unlink(missing_ok=True)
                with unfinished.open("x") as file:  # which follows no link
                    file.write(json.dumps({"exit_code": exit_code, "rank": rank(), "message": message}))
                unfinished.replace(self.path)

    def said(self) -> tuple[int, str] | None:
        """The exit code that another rank left with, and its last words, if it did."""
        return how_ended(self.path.parent) if self.path is not None else None


exit_file = ExitFile()


def how_ended(folder: Path) -> tuple[int, str] | None:
    """The exit code and the last words of the run of a folder, if it could say them."""
    try:
        said = json.loads((folder / "exit.json").read_text())
        return int(said["exit_code"]), str(said["message"])
    except (OSError, ValueError, LookupError, TypeError, OverflowError, RecursionError):  # whatever else may be there
        return None


@contextlib.contextmanager
def reported() -> Iterator[None]:
    """Runs a program's body: reports a `UserError` once for all ranks, and leaves no process group behind."""
    with impatience(leave_at_once):
        try:
            yield
            part()
        except (UserError, StopError) as error:
            report(error)
            sys.exit(error.exit_code)
        except SystemExit as exit_:
            if exit_file.path is None or exit_file.said() == (0, "complete"):
                raise
            left = LeftError(f"something called sys.exit({exit_.code!r}) before the end of the run")
            report(left)
            sys.exit(left.exit_code)
        except KeyboardInterrupt:
            interrupted()
            sys.exit(INTERRUPTED)
        except RuntimeError as error:
            if not is_of_collective(error):
                raise
            sys.exit(report_lost(error))
        finally:
            leave_process_group()


def interrupted() -> None:
    """Says so, and kills the ranks of this machine that are stopped, which nobody else would end."""
    kill_stopped_ranks()
    if rank() == 0:
        print("interrupted", file=sys.stderr, flush=True)
    note_end(INTERRUPTED, "interrupted")


def leave_at_once() -> None:
    """Ends this process, whatever it is doing."""
    interrupted()
    os._exit(INTERRUPTED)


def report_lost(error: RuntimeError) -> int:
    """Says which ranks are lost, if no other rank has said why; returns the exit code."""
    # Who failed says so, and has perhaps not come to it yet; of those who noticed one is enough to say it.
    time.sleep(0.5 + 0.2 * min(rank(), 10))
    if said := exit_file.said():
        note_end(*said)
        return said[0]
    lost = LostRanksError(lost_message(error))
    report(lost)
    kill_stopped_ranks()
    return lost.exit_code


def report(error: UserError | StopError) -> None:
    """Prints an error, once for all ranks, and notes it where the launcher and the run's folder keep it."""
    message = str(error)
    if error.of_one_rank:
        print(f"error: {message}", file=sys.stderr, flush=True)
    else:
        let_rank_0_speak()
        if rank() == 0 or exit_file.said() is None:
            said = "stopped" if isinstance(error, StopError) else "error"
            whose = "" if rank() == 0 else f" on rank {rank()}"
            print(f"{said}{whose}: {message}", file=sys.stderr, flush=True)
    note_end(error.exit_code, message)


def note_end(exit_code: int, message: str) -> None:
    """Writes why this rank ends: into the run's folder, and in torch's form for its launcher's last lines."""
    exit_file.write(exit_code, message)
    if path := os.environ.get("TORCHELASTIC_ERROR_FILE"):
        content = {"message": {"message": message, "extraInfo": {"timestamp": str(int(time.time()))}}}
        with contextlib.suppress(OSError):
            Path(f"{path}.tmp").write_text(json.dumps(content))
            Path(f"{path}.tmp").replace(path)


def is_of_collective(error: RuntimeError) -> bool:
    """Whether ranks have lost each other; torch raises no class of its own for gloo."""
    return re.search(r"gloo|NCCL|TCPStore|FileStore|Wait timeout|Connection (closed|reset)", str(error)) is not None


def lost_message(error: RuntimeError) -> str:
    """Which ranks are lost, as far as it can be known."""
    who = "; ".join(absent_ranks()) or "no rank on this machine is missing, so look at the others"
    reason = str(error).splitlines()[0][:200]
    return f"ranks have lost each other: {who} (torch says: {reason}). --resume auto goes on from the last checkpoint"


def let_rank_0_speak() -> None:
    """Returns at once on rank 0; elsewhere only if rank 0 has nothing to say, since its launcher ends all with one."""
    if rank() != 0 and "TORCHELASTIC_RUN_ID" in os.environ:
        signal.signal(signal.SIGTERM, lambda *_: os._exit(0))  # the launcher has seen rank 0 fail, and shows that alone
        for _ in range(100):
            if exit_file.said() is not None:
                break
            time.sleep(0.1)
