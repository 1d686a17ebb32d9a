"""Runs a program, and kills it while it writes the checkpoint that tests/chaos.py names."""

import os
import runpy
import signal
from typing import Any

import rl.run.checkpoint

written = 0
fsync = os.fsync


def dying_fsync(file: Any) -> None:
    """Writes half of the file to the disk."""
    global written
    number = file if isinstance(file, int) else file.fileno()
    if os.readlink(f"/proc/self/fd/{number}").endswith(".ckpt.tmp"):
        written += 1
        first_attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") == "0"
        if first_attempt and written == int(os.environ["CHAOS_DIES_IN_SAVE"]):
            os.ftruncate(number, os.fstat(number).st_size // 2)
            os.kill(os.getpid(), signal.SIGKILL)
    fsync(file)


rl.run.checkpoint.os.fsync = dying_fsync
runpy.run_path(os.environ["CHAOS_PROGRAM"], run_name="__main__")
