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
import threading
import time
from collections.abc import Iterator, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any, NamedTuple

import torch.distributed as dist
from torch.distributed.rendezvous import rendezvous

PARENT_DEATH_SIGNAL = 1  # of Linux' prctl
LEAVING = "rl-leaving"  # the name of a process that has nothing more to do
LOOK_SECONDS = 0.05  # between two looks at the processes of other ranks
_identities: list[dict[str, Any]] = []  # of all ranks, once they have met


def rank() -> int:
    """This process's rank, known from the launcher's environment before any process group exists."""
    return dist.get_rank() if dist.is_initialized() else _number("RANK", 0)


def world_size() -> int:
    """Number of ranks of the run, known from the launcher's environment before any process group exists."""
    return dist.get_world_size() if dist.is_initialized() else _number("WORLD_SIZE", 1)


def local_rank() -> int:
    """This process's rank among those on this machine."""
    return _number("LOCAL_RANK", 0)


def local_world_size() -> int:
    """Number of ranks of the run on this machine."""
    return _number("LOCAL_WORLD_SIZE", 1)


def _number(name: str, default: int) -> int:
    value = os.environ.get(name, "")
    return int(value) if value.isdecimal() else default  # `check_variables` has refused the rest


def on_first_machine() -> bool:
    """Whether this is the machine of rank 0."""
    return rank() == local_rank()


def check_variables() -> None:
    """Raises `ValueError` where what a launcher sets for every rank is set in part only, or cannot be."""
    largest = {"RANK": world_size() - 1, "LOCAL_RANK": local_world_size() - 1, "LOCAL_WORLD_SIZE": world_size()}
    least = dict.fromkeys(("WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_PORT"), 1)
    for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE", "RANK", "LOCAL_RANK", "MASTER_PORT"):
        value, low, high = os.environ.get(name), least.get(name, 0), largest.get(name, 65535)
        if value is not None and not (value.isdecimal() and low <= int(value) <= high):
            raise ValueError(f"{name} {value}: must be a whole number from {low} to {high}; a launcher sets it")
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    missing = [name for name in names if name not in os.environ]
    if missing and os.environ.keys() & {"RANK", "WORLD_SIZE"}:
        raise ValueError(f"RANK or WORLD_SIZE is set and {', '.join(missing)} not; a launcher sets all, or none")


def take_slurm_ranks() -> None:
    """Takes the rank from Slurm, where `srun` has started the program itself, and no launcher stands between."""
    tasks = os.environ.get("SLURM_NTASKS", "1")
    if "RANK" in os.environ or tasks == "1" or "SLURM_PROCID" not in os.environ:
        return
    if os.environ.get("SLURM_JOB_NAME") in ("bash", "interactive"):
        return  # a shell inside an allocation, as Lightning has it too
    # The first of "node[03-05,9],other"; as Lightning's SLURMEnvironment reads it.
    first_node = re.sub(r"\[([^],-]+)[^]]*\]", r"\1", os.environ.get("SLURM_NODELIST", "127.0.0.1")).split(",")[0]
    each = os.environ.get("SLURM_NTASKS_PER_NODE", tasks)
    job = os.environ.get("SLURM_JOB_ID", "0")
    for name, value in (("SLURM_NTASKS", tasks), ("SLURM_NTASKS_PER_NODE", each), ("SLURM_JOB_ID", job)):
        if not value.isdecimal():
            raise ValueError(f"{name} {value}: must be a whole number; srun sets it")
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
    os.environ.setdefault("MASTER_PORT", str(15000 + int(job) % 10000))


def signal_at_parents_death(number: int) -> None:
    """Has this process get a signal when the one that started it dies (on Linux)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PARENT_DEATH_SIGNAL, number)


def end_with_launcher() -> None:
    """Has this process asked to stop (SIGTERM) when its launcher dies, which else leaves it running (on Linux)."""
    if "TORCHELASTIC_RUN_ID" not in os.environ or sys.platform != "linux":
        return
    try:
        launcher = _launcher()
    except OSError:  # it has died already
        sys.exit(128 + signal.SIGTERM)

    def stop_after_it() -> None:
        while _status(launcher).state != "Z":
            time.sleep(0.5)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=stop_after_it, daemon=True).start()


def _launcher() -> int:
    """The first ancestor that the launcher's variables have not reached: a wrapper script may stand between.

    Raises:
        OSError: It has died: whoever takes over its children is another user's, or has not loaded torch.
    """
    pid = os.getppid()
    while b"TORCHELASTIC_RUN_ID=" in Path(f"/proc/{pid}/environ").read_bytes():
        pid = _status(pid).parent
    if b"libtorch" not in Path(f"/proc/{pid}/maps").read_bytes():
        raise ProcessLookupError
    return pid


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
    if local_world_size() == world_size() and sys.platform == "linux":
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
        os.environ.setdefault("NCCL_SOCKET_IFNAME", "lo")
    store = _open_store(timeout)
    # Process numbers are used again: with the time at which it started it is this process.
    process = {"pid": os.getpid(), "started_at": _status(os.getpid()).started_at, "host": socket.gethostname()}
    mine = process | {"flags": dict(flags), "folder": folder, "timeout": timeout_seconds}
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


def _open_store(timeout: timedelta) -> Any:
    """Where ranks meet: in a file, or at the address that their launcher names; raises as `join_ranks` does."""
    if (file := _meeting_place()) is not None:
        store = dist.FileStore(str(file), world_size())  # type: ignore[attr-defined]
        store.set_timeout(timeout)
        return store
    try:
        return next(rendezvous("env://", timeout=timeout))[0]
    except dist.DistError as error:
        address = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
        if "EADDRINUSE" in str(error):
            raise ConnectionError(f"another program listens on {address}; choose another port") from error
        reason = str(error).splitlines()[0]
        raise TimeoutError(f"ranks have not met at {address} in {timeout.total_seconds():g} s ({reason})") from error


def _meeting_place() -> Path | None:
    """A file of this attempt of the launcher's, in a folder of this user's alone, if all ranks are of one launcher.

    The launcher makes it for what ranks say of their errors, and tells each a name in it: attempt/rank/file.
    """
    error_file = Path(os.environ.get("TORCHELASTIC_ERROR_FILE", ""))
    if local_world_size() != world_size() or "TORCHELASTIC_RUN_ID" not in os.environ or len(error_file.parents) < 3:
        return None
    attempt = error_file.parents[1]
    private = attempt.parent.stat()
    return attempt / "ranks" if private.st_uid == os.getuid() and not private.st_mode & 0o077 else None


class _Status(NamedTuple):
    name: str = ""
    state: str = "Z"  # "T" if stopped, "Z" if dead
    parent: int = 0
    started_at: str = ""


def _status(pid: int) -> _Status:
    """What Linux says of a process."""
    try:
        name, _, rest = Path(f"/proc/{pid}/stat").read_text().partition("(")[2].rpartition(")")
    except OSError:
        return _Status()
    state, parent, *fields = rest.split()
    return _Status(name, state.upper().replace("X", "Z"), int(parent), fields[17])


def _others() -> Iterator[tuple[int, int, _Status]]:
    """Rank, process and status of the other ranks of this machine."""
    for number, identity in enumerate(_identities if Path("/proc/self").exists() else ()):
        if identity["host"] == socket.gethostname() and number != rank():
            status = _status(identity["pid"])
            yield number, identity["pid"], status if status.started_at == identity["started_at"] else _Status()


def absent_ranks() -> list[str]:
    """Which ranks of this machine have died, or are stopped; for people."""
    how = {"Z": "has died", "T": "is stopped"}
    return [f"rank {number} (process {pid}) {how[is_.state]}" for number, pid, is_ in _others() if is_.state in how]


def kill_stopped_ranks() -> None:
    """Kills the ranks of this machine that are stopped: for those that nobody waits for but their launcher."""
    for _, pid, status in _others():
        if status.state == "T":
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGKILL)


def part() -> None:
    """Waits until no rank of this machine can be left behind, stopped, with a launcher that waits for it for ever.

    All wait until all are here, and the first of them for the end of the others. What is stopped meanwhile is killed
    after as long as ranks wait for each other.
    """
    if not (numbers := [number for number, *_ in _others()]):
        return
    Path("/proc/self/comm").write_text(LEAVING)
    stopped_seconds = 0.0
    while states := [is_.state for _, _, is_ in _others() if is_.name != LEAVING or rank() < min(numbers)]:
        if set(states) == {"Z"}:
            break
        stopped_seconds = stopped_seconds + LOOK_SECONDS if "T" in states else 0.0
        if stopped_seconds > _identities[0]["timeout"]:
            print(f"note: the run is at its end, and {'; '.join(absent_ranks())}: killed", file=sys.stderr, flush=True)
            kill_stopped_ranks()
        time.sleep(LOOK_SECONDS)


def leave_process_group() -> None:
    """Ends this process's part in the process group, if there is one, and the threads behind it.

    A DistributedDataParallel keeps the group alive, and is part of a reference cycle. Where either is left to the
    interpreter's exit, the group's threads may then touch what is gone, and some runs abort there.
    """
    if dist.is_initialized():
        gc.collect()
        dist.destroy_process_group()
