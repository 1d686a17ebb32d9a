"""Turns whatever goes wrong in an environment into one line that names the environment, the episode and the step.

An environment may raise anything (`SystemExit` included), hang, end its process, or return what is no observation.
Python cannot interrupt a call that hangs in its own process, so a thread watches the clock and ends the process
(`watched`). `guard.py` makes the calls and says where they failed.
"""

import multiprocessing
import os
import signal
import threading
import time
import traceback
from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np

from rl.errors import StopError, UserError, described
from rl.reporting import report

AnyVectorEnv = gym.vector.VectorEnv[Any, Any, Any]
QUIET = np.errstate(over="ignore", invalid="ignore")  # numbers that are not finite get a message of ours

POLL_SECONDS = 0.25
_running: list["watched"] = []
_thread: threading.Thread | None = None


class watched:  # noqa: N801 (a context manager, named as contextlib names them)
    """Ends this process if the block takes longer than `seconds`, with the error that `describe` returns.

    The clock starts with the block, and again at each `progress`. Blocks may be nested and entered again.
    """

    def __init__(self, seconds: float, describe: Callable[[], UserError]) -> None:
        self.seconds = seconds
        self.describe = describe
        self.waited = 0.0

    def __enter__(self) -> None:
        global _thread
        self.waited = 0.0
        _running.append(self)
        if _thread is None or not _thread.is_alive():  # a fork does not copy threads
            _thread = threading.Thread(target=_watch, name="watchdog", daemon=True)
            _thread.start()

    def __exit__(self, *_: object) -> None:
        _running.remove(self)


def progress() -> None:
    """Starts the clocks of all watched blocks again."""
    for block in _running:
        block.waited = 0.0


def _watch() -> None:
    while True:
        time.sleep(POLL_SECONDS)
        for block in tuple(_running):  # a copy, since other threads change the list
            # Counted, because a clock goes on while the whole process is stopped (SIGSTOP, a suspended machine).
            block.waited += POLL_SECONDS
            if block.waited > block.seconds:
                error = block.describe()
                report(error)
                for process in multiprocessing.active_children():
                    process.kill()
                os._exit(error.exit_code)


def trouble_of(call: Callable[[], object], seconds: float) -> str:
    """Makes a call on a thread of its own: what went wrong, or ""; a call that does not return is abandoned."""
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


class EpisodeError(Exception):
    """An environment's failure, with its episode and step; it travels from the environment's process to its rank."""


def from_outside(error: BaseException) -> bool:
    """Whether a signal handler raised the error, and not the environment that happened to run."""
    if not isinstance(error, KeyboardInterrupt):
        return isinstance(error, UserError | StopError)
    handler = signal.getsignal(signal.SIGINT)
    *_, (frame, _) = traceback.walk_tb(error.__traceback__)
    return handler is signal.default_int_handler or getattr(handler, "__code__", None) is frame.f_code
