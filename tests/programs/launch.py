"""Starts the programs as a user does, and reads what they leave."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor

ROOT = Path(__file__).parent.parent.parent
BIN = Path(sys.executable).parent
TIMEOUT_SECONDS = 150


def fabric(*flags: str, ranks: int = 2, options: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    """`fabric run` of train_fabric.py, on a port of its own."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = f"--main-port={free.getsockname()[1]}"
    return start(BIN / "fabric", "run", f"--devices={ranks}", port, *options, ROOT / "train_fabric.py", *flags)


def torchrun(*flags: str, ranks: int = 2) -> subprocess.CompletedProcess[str]:
    """`torchrun` of train_torch.py."""
    return start(BIN / "torchrun", f"--nproc_per_node={ranks}", "--standalone", ROOT / "train_torch.py", *flags)


def start(*command: str | Path) -> subprocess.CompletedProcess[str]:
    """The command, run to its end in the present folder."""
    return subprocess.run(
        [str(part) for part in command],
        capture_output=True,
        text=True,
        timeout=TIMEOUT_SECONDS,
        check=False,
        env=os.environ | {"GLOO_SOCKET_IFNAME": "lo"},
    )


def succeeded(result: subprocess.CompletedProcess[str]) -> str:
    """What a program printed that must have ended well."""
    assert result.returncode == 0, result.stderr
    return result.stdout


def run_folder(program: str) -> Path:
    """The folder of the only run of a program."""
    (folder,) = Path("logs", program).iterdir()
    return folder


def agent_of(folder: Path) -> dict[str, Tensor]:
    """The trained agent's state."""
    return torch.load(folder / "last.ckpt", weights_only=True)["agent"]


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """(step, value) pairs of every scalar of a run."""
    events = EventAccumulator(str(folder)).Reload()
    return {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}
