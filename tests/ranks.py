"""Runs a function or a program in several ranks, which are real processes."""

import multiprocessing
import multiprocessing.connection
import os
import runpy
import socket
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from rl.dist.launch import leave_process_group

# Ranks are forked from a process that has imported all this, which each of them would else take seconds for.
multiprocessing.set_forkserver_preload(
    ["torch._dynamo", "lightning.fabric.loggers.tensorboard", "rl.cli", "rl.exchange", "rl.session"]
)

ROOT = Path(__file__).parent.parent
TIMEOUT_SECONDS = 150
STREAMS = ("stdout", "stderr")


def in_ranks(function: Callable[..., Any], world_size: int, folder: Path, *args: Any) -> list[Any]:
    """What `function(*args)` returned in each rank (tensors, or containers of them)."""
    mp.start_processes(_rank, (world_size, folder, function, args), nprocs=world_size, start_method="forkserver")
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(world_size)]


def _rank(rank: int, world_size: int, folder: Path, function: Callable[..., Any], args: tuple[Any, ...]) -> None:
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(world_size), "GLOO_SOCKET_IFNAME": "lo"}
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=world_size)
    try:
        torch.save(function(*args), folder / f"{rank}.pt")
    except BaseException:
        traceback.print_exc()
        raise
    finally:
        leave_process_group()


def program_in_ranks(
    program: str, flags: Sequence[str], ranks: int, told: Mapping[str, str]
) -> subprocess.CompletedProcess[str]:
    """Runs a program to its end in the current folder, in ranks without a launcher; returns the first failure's code.

    They are forked from a process that has imported the libraries, which takes a launcher and each rank 5 s of a core.
    The launchers themselves are started by `start`, for tests in which they have a part.
    """
    told = {**told, "WORLD_SIZE": str(ranks), "LOCAL_WORLD_SIZE": str(ranks), "MASTER_PORT": str(free_port())}
    told |= {"MASTER_ADDR": "127.0.0.1", "GLOO_SOCKET_IFNAME": "lo"}
    command, context = [str(ROOT / program), *flags], multiprocessing.get_context("forkserver")
    with tempfile.TemporaryDirectory() as outputs:
        environments = [os.environ | told | {"RANK": str(n), "LOCAL_RANK": str(n)} for n in range(ranks)]
        processes: list[Any] = [
            context.Process(target=_be_rank, args=(command, environment, os.getcwd(), Path(outputs)))
            for environment in environments
        ]
        for process in processes:
            process.start()
        code, deadline = 0, time.monotonic() + TIMEOUT_SECONDS
        while running := [process for process in processes if process.exitcode is None]:
            multiprocessing.connection.wait([process.sentinel for process in running], timeout=1)
            if code == 0 and (code := next((p.exitcode for p in processes if p.exitcode), 0)):
                deadline = min(deadline, time.monotonic() + 30)  # a launcher would end the others at once
            if time.monotonic() > deadline:
                for process in running:
                    process.kill()
        code = code or next((process.exitcode for process in processes if process.exitcode), 0)
        text = {name: "".join((Path(outputs) / f"{name}{n}").read_text() for n in range(ranks)) for name in STREAMS}
    return subprocess.CompletedProcess(command, code, text["stdout"], text["stderr"])


def _be_rank(command: list[str], environment: dict[str, str], folder: str, outputs: Path) -> None:
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    for number, name in enumerate(STREAMS, 1):
        with (outputs / f"{name}{environment['RANK']}").open("w") as file:
            os.dup2(file.fileno(), number)
        setattr(sys, name, open(number, "w", buffering=1, closefd=False))  # noqa: SIM115 (as long as the process)
    torch.set_num_threads(int(environment["OMP_NUM_THREADS"]))  # which is read when torch is imported
    sys.argv[:] = command
    sys.path[0] = str(ROOT)  # where Python finds a script's own modules
    runpy.run_path(command[0], run_name="__main__")


def free_port() -> int:
    """A free port."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])
