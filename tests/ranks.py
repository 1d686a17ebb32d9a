"""Runs a function in several ranks, as real processes with a process group."""

import multiprocessing
import os
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from rl.dist.launch import leave_process_group

# Ranks are forked from a process that has imported all this, which each of them would else take seconds for.
multiprocessing.set_forkserver_preload(["torch._dynamo", "rl.run.run", "rl.exchange"])


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
