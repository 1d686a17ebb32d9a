"""Runs the programs as a user would, and reads what they log."""

import contextlib
import os
import socket
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import psutil
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
    """The values of every scalar that a program logged when its launcher ran it, and the total seconds.

    Two more series are among them: `step`, the environment steps at each logged point, and `memory_mib`, the peak
    memory of all processes together.
    """
    with tempfile.TemporaryDirectory() as folder:
        command = [*launched(ROOT / program, ranks=ranks, options=options), *flags, f"--log-dir={folder}"]
        began_at = time.perf_counter()
        _, memory_mib = run_watched(command, os.environ | dict(variables or {}))
        seconds = time.perf_counter() - began_at
        events = logged_in(Path(folder))
        scalars = {tag: [event.value for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}
        steps = [float(event.step) for event in events.Scalars("Time/step_per_second")]
        return scalars | {"step": steps, "memory_mib": [memory_mib]}, seconds


def logged_in(log_dir: Path) -> EventAccumulator:
    """What the only run of a `--log-dir` logged."""
    (run,) = log_dir.glob("*/*")
    return EventAccumulator(str(run), size_guidance={"scalars": 0}).Reload()


def launched(program: Path, *, ranks: int, options: Sequence[str] = ()) -> list[str]:
    """The command that starts a program with its launcher on a free port; `options` are the launcher's."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    torchrun = ["torchrun", f"--nproc_per_node={ranks}", f"--master-port={port}"]
    fabric = ["fabric", "run", f"--devices={ranks}", f"--main-port={port}"]
    name, *arguments = fabric if "fabric" in program.name else torchrun
    return [str(Path(sys.executable).parent / name), *arguments, *options, str(program)]


def run_watched(command: Sequence[str], environment: Mapping[str, str] | None = None) -> tuple[str, float]:
    """What a command printed, and the peak memory (MiB) of all its processes together."""
    peak = 0
    with tempfile.TemporaryFile("w+") as output, tempfile.TemporaryFile("w+") as errors:
        process = psutil.Popen(command, stdout=output, stderr=errors, env=environment)
        while process.poll() is None:
            with contextlib.suppress(psutil.Error):
                peak = max(peak, sum(p.memory_info().rss for p in (process, *process.children(recursive=True))))
            time.sleep(0.2)
        for file in (output, errors):
            file.seek(0)
        if process.returncode != 0:
            sys.exit(errors.read())
        return output.read(), peak / 2**20
