"""How `fabric run` and `torchrun` launch our programs, and what they print when a run fails or is stopped.

That is one line, in place of their own traceback: the ranks have said what happened, and of the 50 lines that a
launcher adds, none helps. Ranks also get a setting of glibc's, which reads it from the environment when a process
starts. A rank cannot reach into its launcher, and torch loads code of others into launchers in one place only: plug-ins
of the group `torchrun.handlers` (see pyproject.toml). This module is one. It leaves launchers of other programs alone,
and stands outside the package, which they would have to import otherwise. Where the package is not installed, launchers
do what they always do.
"""

import contextlib
import importlib.util
import itertools
import logging
import os
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from torch.distributed import DistNetworkError
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

PORT_IS_TAKEN = "another run listens on the launcher's port; must be a free one: fabric run --main-port=29401 …"
OF_OURS = re.compile(r"^from rl\.cli import", re.MULTILINE)  # in every program that has this package's command line
ELASTIC = "torch.distributed.elastic"
NOISE = {  # how messages begin that say nothing new, by logger
    f"{ELASTIC}.agent.server.api": ("Received %s death signal",),
    f"{ELASTIC}.multiprocessing.api": ("Sending process %s closing signal", "Closing process %s via", "failed (exit"),
    f"{ELASTIC}.multiprocessing.errors.error_handler": ("no error file defined for parent",),
}
TUNABLES = "glibc.malloc.tcache_count=2000"  # keeps freed blocks, for compiled runs of few environments (docs/log.md)
Hook = Callable[[type[BaseException], BaseException, TracebackType | None], Any]


def plug_in() -> Callable[[Any], Any]:
    """What torch calls in a launcher: mends how it starts and ends if it launches a program of this package."""
    if launches_ours(sys.argv[1:]):
        os.environ.setdefault("GLIBC_TUNABLES", TUNABLES)
        sys.excepthook = ending_briefly(sys.excepthook)
        for name, begins in NOISE.items():
            logging.getLogger(name).addFilter(lambda record, begins=begins: not is_noise(record, begins))  # type: ignore[misc]
    return no_rendezvous


def no_rendezvous(parameters: Any) -> Any:
    """What torch takes a plug-in for, and makes for --rdzv-backend=rl."""
    raise ValueError("rl is no rendezvous backend; must be static or c10d")


def launches_ours(words: Sequence[str]) -> bool:
    """Whether the program that a launcher starts, or the module (after -m), is one of this package."""
    for before, word in itertools.pairwise(("", *words)):
        with contextlib.suppress(OSError, ValueError, ImportError):  # what others start is theirs to complain of
            if before in ("-m", "--module"):
                found = importlib.util.find_spec(word) if "." not in word else None
                return found is not None and found.origin is not None and is_ours(Path(found.origin))
            if word.endswith(".py") and Path(word).is_file():
                return is_ours(Path(word))
    return False


def is_ours(program: Path) -> bool:
    """Whether a file is a program of this package."""
    return OF_OURS.search(program.read_text(errors="replace")) is not None


def ending_briefly(otherwise: Hook) -> Hook:
    """A hook for errors that nothing catches: ends with the exit code of the rank that failed, or of the signal."""

    def hook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        if isinstance(error, SignalException):
            sys.exit(128 + error.sigval)
        if isinstance(error, DistNetworkError) and "EADDRINUSE" in str(error):
            print(f"error: {PORT_IS_TAKEN}", file=sys.stderr, flush=True)
            sys.exit(1)
        if not isinstance(error, ChildFailedError):
            otherwise(kind, error, trace)
            return
        rank, failure = error.get_first_failure()
        code = failure.exitcode if failure.exitcode >= 0 else 128 - failure.exitcode
        has_said_why = isinstance(failure.message, dict)
        text = f"rank {rank} of {Path(error.name).name} has ended with exit code {code}" if has_said_why else error
        print(text, file=sys.stderr, flush=True)
        sys.exit(code)

    return hook


def is_noise(record: logging.LogRecord, begins: Sequence[str]) -> bool:
    """Whether a launcher's message says nothing new; that a signal has killed a rank is new, since no rank says it."""
    killed = isinstance(record.args, tuple) and len(record.args) == 4 and str(record.args[0]).startswith("-")
    return str(record.msg).startswith(tuple(begins)) and not killed
