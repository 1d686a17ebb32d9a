"""Runs code that ends its process in a fork of this one."""

import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

NOT_ENDED = 99


def forked(body: Callable[[], None]) -> tuple[int, str]:
    """The exit code and the standard error of a forked process that runs `body`."""
    said = Path(f"stderr{os.getpid()}")
    child = os.fork()
    if child == 0:
        with said.open("w") as file:
            os.dup2(file.fileno(), 2)
            sys.stderr = os.fdopen(2, "w", buffering=1)
            try:
                body()
            except SystemExit as exit_:
                os._exit(exit_.code)
            except BaseException:
                traceback.print_exc()
            else:
                os._exit(0)
        os._exit(NOT_ENDED)
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status), said.read_text()
