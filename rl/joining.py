"""How ranks meet and part: who they are, where they wait for each other, and what ends them together."""

import contextlib
import ctypes
import gc
import json
import os
import re
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch.distributed as dist
from torch.distributed.rendezvous import rendezvous

PARENT_DEATH_SIGNAL = 1  # of Linux' prctl
LEFT_OVER_SECONDS = 24 * 3600  # after which nobody needs the file that ranks of a run have met in
_identities: list[dict[str, Any]] = []  # of all ranks, once they have met


def rank() -> int:
    """This process's rank, known from the launcher's environment before any process group exists."""
    return dist.get_rank() if dist.is_initialized() else int(os.environ.get("RANK", "0"))


def world_size() -> int:
    """Number of ranks of the run, known from the launcher's environment before any process group exists."""
    return dist.get_world_size() if dist.is_initialized() else int(os.environ.get("WORLD_SIZE", "1"))


def local_rank() -> int:
    """This process's rank among those on this machine."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def local_world_size() -> int:
    """Number of ranks of the run on this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def on_first_machine() -> bool:
    """Whether this is the machine of rank 0."""
    return rank() == local_rank()


def unset_variables() -> list[str]:
    """What a launcher sets for every rank and is missing here, where some of it is set; without a launcher, nothing."""
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    missing = [name for name in names if name not in os.environ]
    return missing if os.environ.keys() & {"RANK", "WORLD_SIZE"} else []


def take_slurm_ranks() -> None:
    """Takes the rank from Slurm, where `srun` has started the program itself, and no launcher stands between."""
    tasks = os.environ.get("SLURM_NTASKS")
    if "RANK" in os.environ or tasks is None or int(tasks) == 1 or "SLURM_PROCID" not in os.environ:
        return
    if os.environ.get("SLURM_JOB_NAME") in ("bash", "interactive"):
        return  # a shell inside an allocation, as Lightning has it too
    # The first of "node[03-05,9],other"; as Lightning's SLURMEnvironment reads it.
    first_node = re.sub(r"\[([^],-]+)[^]]*\]", r"\1", os.environ.get("SLURM_NODELIST", "127.0.0.1")).split(",")[0]
    each = os.environ.get("SLURM_NTASKS_PER_NODE", tasks)
    os.environ |= {
        "RANK": os.environ["SLURM_PROCID"],
        "WORLD_SIZE": tasks,
        "LOCAL_RANK": os.environ.get("SLURM_LOCALID", "0"),
        "LOCAL_WORLD_SIZE": each,
        # What `fabric run` would have told Lightning, which reads the rest from Slurm itself.
        "LT_CLI_USED": "1",
        "LT_DEVICES": each,
        "LT_NUM_NODES": os.environ.get("SLURM_NNODES", "1"),
    }
    os.environ.setdefault("MASTER_ADDR", first_node)
    os.environ.setdefault("MASTER_PORT", str(15000 + int(os.environ.get("SLURM_JOB_ID", "0")) % 10000))


def signal_at_parents_death(number: int) -> None:
    """Has this process get a signal when the one that started it dies (on Linux)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PARENT_DEATH_SIGNAL, number)


def end_with_launcher() -> None:
    """Has this process asked to stop (SIGTERM) when its launcher dies, which else leaves it running."""
    if "TORCHELASTIC_RUN_ID" in os.environ:
        signal_at_parents_death(signal.SIGTERM)
        if os.getppid() == 1:  # it has died already
            sys.exit(128 + signal.SIGTERM)


def join_ranks(backend: str, flags: Mapping[str, Any], timeout_seconds: float, folder: str) -> list[str]:
    """Meets the other ranks in a process group; says in which flags they differ, in words for people.

    Rank 0's `folder` is then known to all.

    On a single machine ranks meet in a file and talk over the loopback interface: nothing that they open can be reached
    from elsewhere, and nothing of an earlier attempt is in the way.

    Raises:
        TimeoutError: A rank has not come.
        ConnectionError: Another program is where they were to meet.
    """
    timeout = timedelta(seconds=timeout_seconds)
    if local_world_size() == world_size() and "TORCHELASTIC_RUN_ID" in os.environ:
        if sys.platform == "linux":
            os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
            os.environ.setdefault("NCCL_SOCKET_IFNAME", "lo")
        store: Any = dist.FileStore(str(_meeting_place()), world_size())  # type: ignore[attr-defined]
        store.set_timeout(timeout)
    else:
        try:
            store, _, _ = next(rendezvous("env://", timeout=timeout))
        except dist.DistError as error:
            address = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
            if "EADDRINUSE" in str(error):
                raise ConnectionError(f"another program listens on {address}; choose another port") from error
            raise TimeoutError(
                f"ranks have not met at {address} in {timeout_seconds:g} s ({str(error).splitlines()[0]})"
            ) from error
    mine = {"pid": os.getpid(), "host": socket.gethostname(), "flags": dict(flags), "folder": folder}
    store.set(f"rl/rank{rank()}", json.dumps(mine))
    _identities.clear()
    try:
        _identities.extend(json.loads(store.get(f"rl/rank{other}")) for other in range(world_size()))
    except RuntimeError as error:  # a file's timeout is nothing more special
        missing = f"rank {len(_identities)} of {world_size()}"
        raise TimeoutError(f"{missing} has not come in {timeout_seconds:g} s") from error
    dist.init_process_group(backend, store=store, rank=rank(), world_size=world_size(), timeout=timeout)
    first = _identities[0]["flags"]
    return [
        f"--{name.replace('_', '-')} is {first[name]} on rank 0 and {identity['flags'][name]} on rank {other}"
        for other, identity in enumerate(_identities)
        for name in first
        if identity["flags"][name] != first[name]
    ]


def folder_of_rank_0() -> str:
    """What rank 0 joined with."""
    folder: str = _identities[0]["folder"]
    return folder


def _meeting_place() -> Path:
    """A file of this attempt of this launcher's, in a folder of this user's alone."""
    folder = Path(tempfile.gettempdir(), f"rl-ranks-{os.getuid()}")
    folder.mkdir(mode=0o700, exist_ok=True)
    if folder.stat().st_uid != os.getuid() or folder.is_symlink() or folder.stat().st_mode & 0o077:
        raise ConnectionError(f"{folder}, where ranks meet, is open to others; remove it")
    for left_over in folder.iterdir():
        with contextlib.suppress(FileNotFoundError):  # another rank has seen it too
            if time.time() - left_over.stat().st_mtime > LEFT_OVER_SECONDS:
                left_over.unlink()
    launcher = os.getppid()
    # Process numbers are used again; with the time at which it started (field 22) it is this launcher's alone.
    status = _status(launcher)
    launched_at = status[19] if status else os.environ["MASTER_PORT"]
    return folder / f"{launcher}_{launched_at}_{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}"


def _status(pid: int) -> list[str]:
    """What Linux says of a process, from the field behind its name (the third) on; nothing if there is none."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []


def absent_ranks() -> list[str]:
    """Which ranks of this machine have died, or are stopped; for people."""
    absent: list[str] = []
    if not Path("/proc/self").exists():
        return absent
    for number, identity in enumerate(_identities):
        if identity["host"] == socket.gethostname() and number != rank():
            state, *_ = _status(identity["pid"]) or ["gone"]
            if state in ("gone", "Z", "X", "T", "t"):
                how = "is stopped" if state in "Tt" else "has died"
                absent.append(f"rank {number} (process {identity['pid']}) {how}")
    return absent


def leave_process_group() -> None:
    """Ends this process's part in the process group, if there is one, and the threads behind it.

    A DistributedDataParallel keeps the group alive, and is part of a reference cycle. Where either is left to the
    interpreter's exit, the group's threads may then touch what is gone, and some runs abort there.
    """
    if dist.is_initialized():
        gc.collect()
        dist.destroy_process_group()
