"""The programs that tests/chaos.py starts and harms, with all their processes."""

import contextlib
import os
import subprocess
import sys
import time
import uuid
from dataclasses import dataclass
from pathlib import Path

import psutil

from tests.programs.launch import BIN, ROOT, free_port, marked, marked_environment

TORCH, FABRIC, DECOUPLED = "train_torch.py", "train_fabric.py", "train_fabric_decoupled.py"
FLAGS = (
    "--num-envs 2 --num-steps 64 --hidden-sizes 16 16 --eval-episodes 1 --execution eager --no-keep-best"
    " --report-episodes 1 --rank-timeout 8 --resume auto"
)
PATIENCE_SECONDS = 45  # to start, or to end, on a busy machine
ORPHANED_SECONDS = 10


@dataclass(frozen=True)
class Program:
    """A program, its launcher, and what it trains."""

    name: str
    ranks: int
    flags: str
    learner: str = ""
    restarts: int = 0

    def command(self, script: Path) -> list[str]:
        """The command line; another script may take the place of the program."""
        flags = [str(script), *self.learner.split(), *FLAGS.split(), *self.flags.split()]
        if self.ranks == 1:
            return [sys.executable, *flags]
        if self.name == TORCH:
            return [str(BIN / "torchrun"), f"--nproc_per_node={self.ranks}", "--standalone", *flags]
        return [str(BIN / "fabric"), "run", f"--devices={self.ranks}", f"--main-port={free_port()}", *flags]


class Attempt:
    """One start of a program, and all its processes."""

    def __init__(self, program: Program, folder: Path, *, dies_in_save: int = 0) -> None:
        """Starts the program; with `dies_in_save`, rank 0 is killed while it writes that checkpoint."""
        self.folder = folder
        self.mark = uuid.uuid4().hex
        self.alone = program.ranks == 1
        environment = marked_environment(self.mark) | {
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": str(ROOT),
            "PET_MAX_RESTARTS": str(program.restarts),
            "TORCH_ELASTIC_SHUTDOWN_TIMEOUT": "5",
            "CHAOS_DIES_IN_SAVE": str(dies_in_save),
            "CHAOS_PROGRAM": str(ROOT / program.name),
        }
        self.output = folder / f"output_{self.mark}"
        with self.output.open("w") as output:
            self.launcher = subprocess.Popen(
                program.command(ROOT / "tests/dying_in_save.py" if dies_in_save else ROOT / program.name),
                cwd=folder,
                env=environment,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def processes(self) -> list[psutil.Process]:
        """All processes that are alive."""
        return [process for process in marked(self.mark) if process.status() != psutil.STATUS_ZOMBIE]

    def ranks(self) -> list[psutil.Process]:
        """The processes of ranks, without those of environments and the launcher."""
        return [process for process in self.processes() if self._is_rank(process)]

    def _is_rank(self, process: psutil.Process) -> bool:
        try:
            command, parent = process.cmdline(), process.ppid()
        except psutil.Error:
            return False
        launches = any(part.endswith(("torchrun", "fabric")) for part in command[:3])
        # A rank on its own has no launcher, and its child processes are environments.
        return not launches and parent == (os.getpid() if self.alone else self.launcher.pid)

    def wait_until_training(self) -> bool:
        """Whether the run has reached its updates before it ended."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        while time.monotonic() < deadline and self.launcher.poll() is None:
            if self.last_step() is not None:
                return True
            time.sleep(0.02)
        return False

    def last_step(self) -> int | None:
        """The last step that the run printed."""
        return next(reversed(self.steps()), None)

    def steps(self) -> list[int]:
        """All steps that the run printed."""
        spoken = [line for line in self.output.read_text().splitlines() if " episodes, " in line and " of " in line]
        return [int(line.split("episodes, ")[1].split(" of ")[0].replace(",", "")) for line in spoken]

    def left_over(self) -> list[psutil.Process]:
        """The processes that still exist some seconds after their launcher has ended."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.launcher.wait(2 * PATIENCE_SECONDS)  # it may restart its ranks
        deadline = time.monotonic() + ORPHANED_SECONDS
        while self.processes() and time.monotonic() < deadline:
            time.sleep(0.1)
        return self.processes()

    def end(self) -> None:
        """Kills what is left of it."""
        for process in self.processes():
            process.kill()
        self.launcher.wait()
