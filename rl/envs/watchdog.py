"""Ends this process when a call does not return: nothing else can."""

import multiprocessing
import os
import threading
import time
from collections.abc import Callable

from rl.errors import UserError, described
from rl.reporting import report

POLL_SECONDS = 0.25
_running: list["watched"] = []
_thread: threading.Thread | None = None


class watched:  # noqa: N801 (a context manager, named as contextlib names them)
    """A block that may take so many seconds; after more, this process ends with the error that `describe` makes.

    It can be entered again and again, and may stand within another.
    """

    def __init__(self, seconds: float, describe: Callable[[], UserError]) -> None:
        """The clock starts at the block, and again at each `progress`."""
        self.seconds = seconds
        self.describe = describe
        self.waited = 0.0

    def __enter__(self) -> None:
        """Starts the clock."""
        global _thread
        self.waited = 0.0
        _running.append(self)
        if _thread is None or not _thread.is_alive():  # as after a fork
            _thread = threading.Thread(target=_watch, name="watchdog", daemon=True)
            _thread.start()

    def __exit__(self, *_: object) -> None:
        """Stops it."""
        _running.remove(self)


def progress() -> None:
    """Starts the clocks anew: what is watched has come a step further."""
    for block in _running:
        block.waited = 0.0


def _watch() -> None:
    while True:
        time.sleep(POLL_SECONDS)
        for block in tuple(_running):  # which changes meanwhile
            # Counted instead of read from a clock, which goes on while the whole process is stopped.
            block.waited += POLL_SECONDS
            if block.waited > block.seconds:
                error = block.describe()
                report(error)
                for process in multiprocessing.active_children():
                    process.kill()
                os._exit(error.exit_code)


def trouble_of(call: Callable[[], object], seconds: float) -> str:
    """What became of a call on a thread of its own, which is left behind if it does not return; nothing if it did."""
    trouble = [f"has not returned for {seconds:g} s"]

    def run() -> None:
        try:
            call()
            trouble.clear()
        except BaseException as error:
            trouble[:] = [f"raised {described(error)}"]

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(min(seconds, threading.TIMEOUT_MAX))
    return "".join(trouble)
