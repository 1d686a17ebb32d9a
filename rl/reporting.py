"""Reports how this process ends: one line for all ranks, exit.json in the run's folder, and the launcher's error file.

Ranks tend to fail together, and a launcher ends all of them as soon as the first has exited. So that the user reads
one line, and the one that explains the failure:

- Rank 0 speaks for all. The others wait until it has, and speak only if it says nothing (`let_rank_0_speak`).
- An error that only one rank knows of (`of_one_rank`) is printed by that rank at once.
- A rank that only notices that others are gone first gives those time to say why (`report_lost`).

exit.json is how a rank knows that another has spoken: the first rank that ends writes it. It also keeps the exit code,
which launchers replace by their own.
"""

import contextlib
import json
import os
import re
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

from rl.dist.interrupts import INTERRUPTED, impatience
from rl.dist.launch import (
    absent_ranks,
    kill_stopped_ranks,
    leave_process_group,
    leave_together,
    local_world_size,
    rank,
    world_size,
)
from rl.errors import LostRankError, RanksError, StopError, UserError, described

RED, YELLOW = "1;31", "33"  # in ANSI's codes
COMPLETE = (0, "complete")  # exit code and message of a run that has reached its end
LEFT_EARLY = 1  # exit code of a process that something has ended by `sys.exit`
# Messages of lost connections; for gloo torch has no exception class of its own.
OF_COLLECTIVE = re.compile(r"gloo|NCCL|TCPStore|FileStore|Wait timeout|Connection (closed|reset)")


class ExitFile:
    """exit.json of the run's folder: exit code, rank and message of the first rank that ended."""

    def __init__(self) -> None:
        self.path: Path | None = None  # none before there is a folder

    def keep_in(self, folder: Path) -> None:
        """Sets the run's folder; rank 0 deletes the file that an earlier part of the run left there."""
        self.path = folder / "exit.json"
        if rank() == 0:
            with contextlib.suppress(OSError):
                self.path.unlink()

    def write(self, exit_code: int, message: str) -> None:
        """Says how this rank ended, unless another rank has written the file before."""
        if self.path is not None and not self.path.exists():
            unfinished = self.path.with_name(f".exit{rank()}.tmp")
            with contextlib.suppress(OSError):
                unfinished.unlink(missing_ok=True)
                with unfinished.open("x") as file:  # "x" follows no link
                    file.write(json.dumps({"exit_code": exit_code, "rank": rank(), "message": message}))
                unfinished.replace(self.path)

    def said(self) -> tuple[int, str] | None:
        """Exit code and message of the file, if some rank has written it."""
        return how_ended(self.path.parent) if self.path is not None else None


exit_file = ExitFile()


def how_ended(folder: Path) -> tuple[int, str] | None:
    """Exit code and message in a run folder's exit.json; nothing if there is none, or not a valid one."""
    try:
        said = json.loads((folder / "exit.json").read_text())
        return int(said["exit_code"]), str(said["message"])
    except (OSError, ValueError, LookupError, TypeError, OverflowError, RecursionError):  # anyone may have written it
        return None


@contextlib.contextmanager
def reported() -> Iterator[None]:
    """Runs the body of a program: reports how it ends, exits with that code, and leaves the process group."""
    with impatience(leave_at_once):
        try:
            yield
            leave_together()
        except (UserError, StopError) as error:
            sys.exit(report(error))
        except SystemExit as exit_:
            if exit_file.path is None or exit_file.said() == COMPLETE:
                raise
            message = f"something called sys.exit({exit_.code!r}) before the end of the run"
            sys.exit(report_alone(message, LEFT_EARLY))
        except KeyboardInterrupt:
            let_rank_0_speak()  # which may be waiting inside torch, and so is later
            report_interrupt()
            sys.exit(INTERRUPTED)
        except Exception as error:
            if isinstance(error, LostRankError) or (
                isinstance(error, RuntimeError) and OF_COLLECTIVE.search(str(error))
            ):
                sys.exit(report_lost(error))
            exit_file.write(LEFT_EARLY, f"rank {rank()}: {described(error)}")  # the ranks that lose it need not guess
            raise
        finally:
            leave_process_group()


def report(error: UserError | StopError) -> int:
    """Prints an error once for all ranks, and writes it to exit.json and for the launcher; returns the exit code."""
    if error.of_one_rank:
        return report_alone(str(error), error.exit_code)
    let_rank_0_speak()
    if rank() == 0 or exit_file.said() is None:
        kind = "stopped" if isinstance(error, StopError) else "error"
        whose = "" if rank() == 0 else f" on rank {rank()}"
        print(f"{painted(f'{kind}{whose}:', RED)} {error}", file=sys.stderr, flush=True)
    note_end(error.exit_code, str(error))
    return error.exit_code


def report_alone(message: str, exit_code: int) -> int:
    """Does as `report` with an error that only this rank knows of."""
    print(f"{painted('error:', RED)} {message}", file=sys.stderr, flush=True)
    note_end(exit_code, message)
    return exit_code


def report_interrupt() -> None:
    """Reports a second Ctrl-C; kills the stopped ranks of this machine, which nothing else would end."""
    kill_stopped_ranks()
    if rank() == 0:
        print("interrupted", file=sys.stderr, flush=True)
    note_end(INTERRUPTED, "interrupted")


def leave_at_once() -> None:
    """Ends this process, whatever it is waiting for."""
    report_interrupt()
    os._exit(INTERRUPTED)


def report_lost(error: RuntimeError) -> int:
    """Reports which ranks are lost, unless another rank has said why; returns the exit code."""
    # The rank that failed may still be about to say why; of those that lost it, the first to wake speaks for all.
    time.sleep(0.5 + 0.2 * min(rank(), 10))
    if said := exit_file.said():
        note_end(*said)
        return said[0]
    unknown = "no rank of this machine is missing, so look at the other machines"
    if local_world_size() == world_size():
        unknown = "one has failed (see above), or ranks do not do the same"
    who = "; ".join(absent_ranks()) or unknown
    source = "" if isinstance(error, LostRankError) else "torch says: "
    reason = f"({source}{str(error).splitlines()[0][:200]})"
    message = f"ranks have lost each other: {who} {reason}. --resume auto continues from the last checkpoint"
    exit_code = report_alone(message, RanksError.exit_code)
    kill_stopped_ranks()
    return exit_code


def note_end(exit_code: int, message: str) -> None:
    """Writes how this rank ends to exit.json and, in torch's format, for the last lines that its launcher prints."""
    exit_file.write(exit_code, message)
    if path := os.environ.get("TORCHELASTIC_ERROR_FILE"):
        content = {"message": {"message": message, "extraInfo": {"timestamp": str(int(time.time()))}}}
        with contextlib.suppress(OSError):
            Path(f"{path}.tmp").write_text(json.dumps(content))
            Path(f"{path}.tmp").replace(path)


def note(text: str) -> None:
    """Prints a note to the user, once for all ranks."""
    if rank() == 0 and not silence.is_on:
        print(f"{painted('note:', YELLOW)} {text}", file=sys.stderr)


class Silence:
    """Whether only errors are printed, as --quiet asks for; of the whole process."""

    is_on = False


silence = Silence()


def is_screen(stream: TextIO) -> bool:
    """Whether a stream is a terminal in which lines can be overwritten and have colors."""
    return stream.isatty() and os.environ.get("TERM") != "dumb"


def has_colors(stream: TextIO) -> bool:
    """Whether a stream shows colors, and nobody has asked for none (https://no-color.org)."""
    return is_screen(stream) and not os.environ.get("NO_COLOR")


def painted(text: str, color: str) -> str:
    """A text on stderr in a color, where there are colors."""
    return f"\033[{color}m{text}\033[0m" if has_colors(sys.stderr) else text


def let_rank_0_speak() -> None:
    """Waits on other ranks until exit.json is written, 10 s at most, or the launcher ends them after rank 0."""
    if rank() != 0 and "TORCHELASTIC_RUN_ID" in os.environ:
        # Ended by the launcher because rank 0 failed, this rank exits with 0, and the launcher blames rank 0 alone.
        signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
        for _ in range(100):
            if exit_file.said() is not None:
                break
            time.sleep(0.1)
