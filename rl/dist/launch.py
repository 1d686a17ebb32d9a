"""How ranks find each other, and how they end: who this process is, where all meet, and what ends them together.

Ranks that die or hang leave the others waiting inside a collective. So when they meet, all tell each other host,
process and start time; from then on a rank can say which others have died or are stopped (SIGSTOP), and kill those that
nothing else would end. A launcher that dies leaves its ranks running; a thread watches it and asks its rank to stop.
"""

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

from rl.errors import RanksError, UserError

LEAVING = "rl-leaving"  # the process name of a rank that has finished
POLL_SECONDS = 0.05  # between two looks at the processes of other ranks
_identities: list[dict[str, Any]] = []  # of all ranks, once they have met


def rank() -> int:
    """This process's rank; before there is a process group, by the launcher's environment variables."""
    return dist.get_rank() if dist.is_initialized() else _number("RANK", 0)


def world_size() -> int:
    """Number of ranks of the run; before there is a process group, by the launcher's environment variables."""
    return dist.get_world_size() if dist.is_initialized() else _number("WORLD_SIZE", 1)


def local_rank() -> int:
    """This process's number among those of its machine."""
    return _number("LOCAL_RANK", 0)


def local_world_size() -> int:
    """How many ranks this machine has."""
    return _number("LOCAL_WORLD_SIZE", 1)


def _number(name: str, default: int) -> int:
    value = os.environ.get(name, "")
    return int(value) if value.isdecimal() else default  # `check_variables` has refused the rest


def num_cores() -> int:
    """Number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def on_first_machine() -> bool:
    """Whether this is the machine of rank 0."""
    return rank() == local_rank()


def check_variables() -> None:
    """Raises `UserError` if the variables that a launcher sets for a rank are incomplete or contradict each other."""
    largest = {"RANK": world_size() - 1, "LOCAL_RANK": local_world_size() - 1, "LOCAL_WORLD_SIZE": world_size()}
    least = dict.fromkeys(("WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_PORT"), 1)
    for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE", "RANK", "LOCAL_RANK", "MASTER_PORT"):
        value, low, high = os.environ.get(name), least.get(name, 0), largest.get(name, 65535)
        if value is not None and not (value.isdecimal() and low <= int(value) <= high):
            raise UserError(f"{name} {value}: must be a whole number from {low} to {high}; a launcher sets it")
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    missing = [name for name in names if name not in os.environ]
    if missing and os.environ.keys() & {"RANK", "WORLD_SIZE"}:
        raise UserError(f"RANK or WORLD_SIZE is set without {', '.join(missing)}; a launcher sets all of them")


def take_slurm_ranks() -> None:
    """Sets a launcher's variables from Slurm's, if `srun` has started this process without a launcher.

    Raises:
        UserError: A variable of Slurm's is not a whole number.
    """
    tasks = os.environ.get("SLURM_NTASKS", "1")
    if "RANK" in os.environ or tasks == "1" or "SLURM_PROCID" not in os.environ:
        return
    if os.environ.get("SLURM_JOB_NAME") in ("bash", "interactive"):
        return  # a shell inside an allocation; Lightning makes the same exception
    # "node03" of "node[03-05,9],other", as Lightning's SLURMEnvironment reads it.
    first_node = re.sub(r"\[([^],-]+)[^]]*\]", r"\1", os.environ.get("SLURM_NODELIST", "127.0.0.1")).split(",")[0]
    each = os.environ.get("SLURM_NTASKS_PER_NODE", tasks)
    job = os.environ.get("SLURM_JOB_ID", "0")
    for name, value in (("SLURM_NTASKS", tasks), ("SLURM_NTASKS_PER_NODE", each), ("SLURM_JOB_ID", job)):
        if not value.isdecimal():
            raise UserError(f"{name} {value}: must be a whole number; srun sets it")
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
    """Sends this process a signal when its parent dies (on Linux)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, number)  # PR_SET_PDEATHSIG


def end_with_launcher() -> None:
    """Sends this process SIGTERM when its launcher dies, which otherwise leaves it running (on Linux)."""
    if "TORCHELASTIC_RUN_ID" not in os.environ or sys.platform != "linux":
        return
    try:
        launcher = _launcher()
    except OSError:  # it has already died
        sys.exit(128 + signal.SIGTERM)

    def stop_with_launcher() -> None:
        while status_of(launcher).state != "Z":
            time.sleep(0.5)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=stop_with_launcher, daemon=True).start()


def _launcher() -> int:
    """The launcher's process: the first ancestor without a launcher's variables, since a script may stand between.

    Raises:
        OSError: It has died; the process that adopted its children is another user's, or has not loaded torch.
    """
    pid = os.getppid()
    while b"TORCHELASTIC_RUN_ID=" in Path(f"/proc/{pid}/environ").read_bytes():
        pid = status_of(pid).parent
    if b"libtorch" not in Path(f"/proc/{pid}/maps").read_bytes():
        raise ProcessLookupError
    return pid


def meet(backend: str, flags: Mapping[str, Any], timeout_seconds: float, folder: str) -> str:
    """Joins the process group of all ranks; returns the `folder` that rank 0 has passed.

    The ranks of a single machine meet in a file and talk over the loopback interface: no other machine can reach what
    they open, and what an earlier attempt left is not in the way.

    Raises:
        RanksError: A rank has not come or has other flags, or another program uses the address.
    """
    timeout = timedelta(seconds=timeout_seconds)
    if local_world_size() == world_size() and sys.platform == "linux":
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
        os.environ.setdefault("NCCL_SOCKET_IFNAME", "lo")
    store = _open_store(timeout)
    # Process numbers are reused, so the start time is needed to recognize a process.
    process = {"pid": os.getpid(), "started_at": status_of(os.getpid()).started_at, "host": socket.gethostname()}
    mine = process | {"flags": dict(flags), "folder": folder, "timeout": timeout_seconds}
    store.set(f"rl/rank{rank()}", json.dumps(mine))
    _identities.clear()
    try:
        _identities.extend(json.loads(store.get(f"rl/rank{other}")) for other in range(world_size()))
    except RuntimeError as error:  # a FileStore raises nothing more specific when it times out
        raise _too_late(f"rank {len(_identities)} of {world_size()} has not come in {timeout_seconds:g} s") from error
    dist.init_process_group(backend, store=store, rank=rank(), world_size=world_size(), timeout=timeout)
    first = _identities[0]
    differences = [
        f"--{name.replace('_', '-')} is {value} on rank 0 and {identity['flags'][name]} on rank {other}"
        for other, identity in enumerate(_identities)
        for name, value in first["flags"].items()
        if identity["flags"][name] != value
    ]
    if differences:
        raise RanksError(f"all ranks need the same flags: {'; '.join(differences)}")
    return str(first["folder"])


def _open_store(timeout: timedelta) -> Any:
    """The store where ranks meet: a file, or a server at the address that their launcher sets."""
    if (file := _meeting_place()) is not None:
        store = dist.FileStore(str(file), world_size())  # type: ignore[attr-defined]
        store.set_timeout(timeout)
        return store
    try:
        return next(rendezvous("env://", timeout=timeout))[0]
    except dist.DistError as error:
        address = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
        if "EADDRINUSE" in str(error):
            raise RanksError(f"another program listens on {address}; choose another port") from error
        reason = str(error).splitlines()[0]
        raise _too_late(f"ranks have not met at {address} in {timeout.total_seconds():g} s ({reason})") from error


def _too_late(what: str) -> RanksError:
    return RanksError(f"{what}; see what the other ranks have printed, or raise --rank-timeout")


def _meeting_place() -> Path | None:
    """A file for this attempt of the launcher, in a folder that only this user can read, if it started all ranks.

    The folder is where launchers collect their ranks' errors; each rank is told its error file, attempt/rank/file.
    """
    error_file = Path(os.environ.get("TORCHELASTIC_ERROR_FILE", ""))
    if local_world_size() != world_size() or "TORCHELASTIC_RUN_ID" not in os.environ or len(error_file.parents) < 3:
        return None
    attempt = error_file.parents[1]
    private = attempt.parent.stat()
    return attempt / "ranks" if private.st_uid == os.getuid() and not private.st_mode & 0o077 else None


class Status(NamedTuple):
    """A process as /proc describes it."""

    name: str = ""
    state: str = "Z"  # "T" if stopped, "Z" if dead
    parent: int = 0
    started_at: str = ""


def status_of(pid: int, started_at: str | None = None) -> Status:
    """What is known of a process: that it is dead, if it is not there or its number is that of a later one."""
    try:
        name, _, rest = Path(f"/proc/{pid}/stat").read_text().partition("(")[2].rpartition(")")
    except OSError:
        return Status()
    state, parent, *fields = rest.split()
    status = Status(name, state.upper().replace("X", "Z"), int(parent), fields[17])
    return status if started_at in (None, status.started_at) else Status()


def _others() -> Iterator[tuple[int, int, Status]]:
    """Rank, process number and status of the other ranks of this machine."""
    for number, identity in enumerate(_identities if Path("/proc/self").exists() else ()):
        if identity["host"] == socket.gethostname() and number != rank():
            yield number, identity["pid"], status_of(identity["pid"], identity["started_at"])


def absent_ranks() -> list[str]:
    """Which ranks of this machine have died or are stopped, in words."""
    how = {"Z": "has died", "T": "is stopped"}
    return [f"rank {number} (process {pid}) {how[is_.state]}" for number, pid, is_ in _others() if is_.state in how]


def kill_stopped_ranks() -> None:
    """Kills the ranks of this machine that are stopped, for which their launcher would wait forever."""
    for _, pid, status in _others():
        if status.state == "T":
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGKILL)


def leave_together() -> None:
    """Waits until no rank of this machine can be left behind stopped, with a launcher that waits for it forever.

    All wait until all are here, and the first of them also until the others have ended. Ranks that stay stopped for
    as long as the rank timeout are killed.
    """
    if not (numbers := [number for number, *_ in _others()]):
        return
    Path("/proc/self/comm").write_text(LEAVING)
    stopped_seconds = 0.0
    while states := [is_.state for _, _, is_ in _others() if is_.name != LEAVING or rank() < min(numbers)]:
        if set(states) == {"Z"}:
            break
        stopped_seconds = stopped_seconds + POLL_SECONDS if "T" in states else 0.0
        if stopped_seconds > _identities[0]["timeout"]:
            print(f"note: the run has ended, and {'; '.join(absent_ranks())}: killed", file=sys.stderr, flush=True)
            kill_stopped_ranks()
        time.sleep(POLL_SECONDS)


def leave_process_group() -> None:
    """Destroys the process group, if there is one, and with it its threads.

    A DistributedDataParallel keeps the group alive and is part of a reference cycle, hence the garbage collection. If
    the group lives until the interpreter's exit, its threads may use what has been freed, and some runs abort there.
    """
    if dist.is_initialized():
        gc.collect()
        dist.destroy_process_group()
