"""Runs a program as a user starts it, and reads what it logged."""

import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

ROOT = Path(__file__).parent.parent


def run_program(
    program: str,
    flags: Sequence[str],
    *,
    ranks: int,
    options: Sequence[str] = (),
    variables: Mapping[str, str] | None = None,
) -> tuple[dict[str, list[float]], float]:
    """The values of every scalar that `fabric run` of a program logged, and the seconds that it took in all."""
    with tempfile.TemporaryDirectory() as folder, socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
        free.close()
        launcher = [str(Path(sys.executable).parent / "fabric"), "run", f"--devices={ranks}", f"--main-port={port}"]
        command = [*launcher, *options, str(ROOT / program), *flags, f"--log-dir={folder}"]
        began_at = time.perf_counter()
        result = subprocess.run(
            command, capture_output=True, text=True, check=False, env=os.environ | dict(variables or {})
        )
        seconds = time.perf_counter() - began_at
        if result.returncode != 0:
            sys.exit(result.stderr)
        (run,) = Path(folder).glob("*/*")
        events = EventAccumulator(str(run), size_guidance={"scalars": 0}).Reload()
        return {tag: [event.value for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}, seconds
