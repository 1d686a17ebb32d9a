"""Starts the programs as a user does, and reads their files."""

import contextlib
import os
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import psutil
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData
from torch import Tensor

from tests.ranks import TIMEOUT_SECONDS, free_port, program_in_ranks

ROOT = Path(__file__).parent.parent.parent
BIN = Path(sys.executable).parent


def fabric(*flags: str, ranks: int = 2, options: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    """train_fabric.py in ranks that find what `fabric run` with these options tells them."""
    return program_in_ranks("train_fabric.py", flags, ranks, told_by_fabric(ranks, options))


def decoupled(*flags: str, ranks: int = 3, options: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    """train_fabric_decoupled.py in ranks that find what `fabric run` with these options tells them."""
    return program_in_ranks("train_fabric_decoupled.py", flags, ranks, told_by_fabric(ranks, options))


def torchrun(*flags: str, ranks: int = 2) -> subprocess.CompletedProcess[str]:
    """train_torch.py in ranks that find what `torchrun` tells them."""
    return program_in_ranks("train_torch.py", flags, ranks, {})


def told_by_fabric(ranks: int, options: tuple[str, ...]) -> dict[str, str]:
    """The variables by which `fabric run` hands its options on to Lightning."""
    words = dict(option.removeprefix("--").split("=") for option in options)
    return {"LT_CLI_USED": "1", "LT_DEVICES": str(ranks), "LT_NUM_NODES": "1"} | {
        f"LT_{name.upper()}": value for name, value in words.items()
    }


def fabric_command(program: str, *flags: str, ranks: int, options: tuple[str, ...] = ()) -> list[str]:
    """The command `fabric run` for a program, with its own port."""
    port = f"--main-port={free_port()}"
    return [str(BIN / "fabric"), "run", f"--devices={ranks}", port, *options, str(ROOT / program), *flags]


def torchrun_command(*flags: str, ranks: int) -> list[str]:
    """The command `torchrun` for train_torch.py."""
    return [str(BIN / "torchrun"), f"--nproc_per_node={ranks}", "--standalone", str(ROOT / "train_torch.py"), *flags]


def start(*command: str | Path) -> subprocess.CompletedProcess[str]:
    """Runs a command to its end in the current folder; checks that none of its processes outlives it."""
    mark = uuid.uuid4().hex
    result = subprocess.run(
        [str(part) for part in command],
        capture_output=True,
        text=True,
        timeout=TIMEOUT_SECONDS,
        check=False,
        env=marked_environment(mark),
    )
    assert not psutil.wait_procs(list(marked(mark)), timeout=5)[1], "the program left a process behind"
    return result


def marked(mark: str) -> Iterator[psutil.Process]:
    """The processes of a command."""
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.environ().get("RL_TEST_MARK") == mark:
                yield process


def marked_environment(mark: str) -> dict[str, str]:
    """Environment variables by which `marked` finds all processes of a command."""
    return os.environ | {"GLOO_SOCKET_IFNAME": "lo", "RL_TEST_MARK": mark}


class Started:
    """A program that runs until a test ends it."""

    def __init__(self, *command: str, **variables: str) -> None:
        """Starts it in the current folder."""
        self.mark = uuid.uuid4().hex
        self.process = subprocess.Popen(
            command,
            env=marked_environment(self.mark) | variables,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def processes(self) -> list[psutil.Process]:
        return [process for process in marked(self.mark) if process.status() != psutil.STATUS_ZOMBIE]

    def rank(self, number: int) -> psutil.Process:
        """The process of a rank, not of its environments."""
        ranks = [p for p in self.processes() if p.environ().get("RANK") == str(number)]
        return next(process for process in ranks if process.parent().environ().get("RANK") is None)

    def train(self) -> None:
        """Waits until the run has made some updates."""
        deadline = time.monotonic() + 60
        while not any(Path().rglob("events.out.tfevents.*")):
            assert time.monotonic() < deadline and self.process.poll() is None, self.process.communicate()
            time.sleep(0.1)

    def end(self, within: float) -> str:
        """Waits until it ends by itself; returns its standard error."""
        _, error = self.process.communicate(timeout=within)
        deadline = time.monotonic() + 5
        while self.processes() and time.monotonic() < deadline:
            time.sleep(0.1)
        assert self.processes() == []
        return error


@contextlib.contextmanager
def started(*command: str, **variables: str) -> Iterator[Started]:
    program = Started(*command, **variables)
    try:
        yield program
    finally:
        for process in program.processes():
            process.kill()
        program.process.communicate()


def succeeded(result: subprocess.CompletedProcess[str]) -> str:
    """The output of a program, which must have succeeded."""
    assert result.returncode == 0, result.stderr
    return result.stdout


def run_folder(program: str) -> Path:
    """The folder of the only run of a program."""
    (folder,) = Path("logs", program).iterdir()
    return folder


def agent_of(folder: Path, name: str = "last.ckpt") -> dict[str, Tensor]:
    """The state dict of the trained agent, or of that in another checkpoint."""
    return torch.load(folder / name, weights_only=True)["agent"]


def hyperparameters(folder: Path) -> set[str]:
    """Names of the hyperparameters that TensorBoard shows for the run."""
    events = EventAccumulator(str(folder)).Reload()
    plugin_data = HParamsPluginData.FromString(
        events.summary_metadata["_hparams_/session_start_info"].plugin_data.content
    )
    return set(plugin_data.session_start_info.hparams)


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """(step, value) pairs of every scalar of a run."""
    events = EventAccumulator(str(folder)).Reload()
    return {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def log_of(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """The scalars of a run, except durations."""
    return {tag: series for tag, series in scalars(folder).items() if not tag.startswith("Time/")}
