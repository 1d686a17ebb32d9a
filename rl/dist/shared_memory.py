"""Sums and means of vectors over the ranks of one machine, in memory that they share.

A message of gloo passes through sockets and two more threads of each rank, which takes longer than a small gradient
step. Here every rank copies its vector into memory that all of them see, waits for the others (at first awake, then
asleep), and adds up what they have brought: average.cpp. All add in the order of ranks, so that all get the same bits.

The memory is a file without a name, so it is gone with the last process that has it. A rank that waits looks several
times a second whether the others are alive, and lets Python handle signals.
"""

import contextlib
import ctypes
import functools
import mmap
import os
import secrets
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
import torch.distributed as dist
from torch import Tensor, library

from rl.compilers import built
from rl.dist.launch import num_cores, status_of
from rl.errors import LostRankError

TABLE_BYTES = 2**24  # of the vectors of all ranks together; twice as much memory is taken from the start
PLACE_BYTES, TOKEN_BYTES = 64, 8
SPINS = 1_000  # a rank looks so often before it sleeps, which is about the time that waking it takes
SLICE_SECONDS = 0.05  # between two looks at the other ranks
FUNCTIONS = {torch.float32: "combine_float", torch.float64: "combine_double"}


class Meeting(ctypes.Structure):
    """The same in average.cpp."""

    _fields_ = (
        ("memory", ctypes.c_void_p),
        ("table_bytes", ctypes.c_int64),
        ("rank", ctypes.c_int32),
        ("size", ctypes.c_int32),
        ("spins", ctypes.c_int32),
        ("taken", ctypes.c_uint32),
    )


class Process(NamedTuple):
    """What a rank tells the others in order to share memory, as whole numbers."""

    pid: int
    started_at: int
    file: int  # the memory as a file of the first rank
    token: int  # what that file ends with

    def is_alive(self) -> bool:
        """Whether this machine has the process."""
        return status_of(self.pid, str(self.started_at)).state != "Z"


class SharedMemory:
    """Memory of a group of ranks, as seen by one of them."""

    def __init__(self, memory: mmap.mmap, processes: list[Process], rank: int, timeout_seconds: float) -> None:
        self.others = [process for number, process in enumerate(processes) if number != rank]
        self.timeout_seconds = timeout_seconds
        self.start = ctypes.c_char.from_buffer(memory)  # keeps it mapped
        size = len(processes)
        spins = SPINS if size <= num_cores() else 0
        self.meeting = Meeting(ctypes.addressof(self.start), TABLE_BYTES, rank, size, spins, 0)
        self.number = len(_memories)
        self.failure: BaseException | None = None  # of the operator
        _memories.append(self)

    def combine(self, values: Tensor, *, mean: bool) -> None:
        """Replaces every rank's values by the elementwise sum or mean of all.

        Raises:
            LostRankError: Another rank has died, or has not come for as long as the group waits.
        """
        function = _functions()[values.dtype]
        arguments = (ctypes.byref(self.meeting), values.data_ptr(), values.numel(), mean, int(1e9 * SLICE_SECONDS))
        began_at = time.monotonic()
        while (late := function(*arguments)) >= 0:
            if dead := [process.pid for process in self.others if not process.is_alive()]:
                raise LostRankError(f"process {dead[0]} has died")
            if time.monotonic() - began_at > self.timeout_seconds:
                raise LostRankError(f"rank {late} of its group has not come in {self.timeout_seconds:g} s")

    def averaged(self, values: Tensor) -> Tensor:
        """The elementwise mean of every rank's values; an operator that compiled code calls."""
        mean: Tensor = torch.ops.rl.averaged(values, self.number)
        return mean

    @contextlib.contextmanager
    def telling(self) -> Iterator[None]:
        """Raises what the operator has raised, of which compiled code tells only that it has failed."""
        try:
            yield
        except RuntimeError:
            failure, self.failure = self.failure, None
            if failure is None:
                raise
            raise failure from None


_memories: list[SharedMemory] = []  # by the number that the operator is given


def _averaged(values: Tensor, number: int) -> Tensor:
    mean = values.clone()
    try:
        _memories[number].combine(mean, mean=True)
    except BaseException as error:
        _memories[number].failure = error
        raise
    return mean


# Defined by hand, it is called in 6 µs; one that the decorator `custom_op` makes takes 14.
library.define("rl::averaged", "(Tensor values, int number) -> Tensor")
library.impl("rl::averaged", "cpu", _averaged)
library.register_fake("rl::averaged", lambda values, number: torch.empty_like(values))


def may_share(values: Tensor, size: int) -> bool:
    """Whether ranks that share memory combine such vectors there."""
    fits = values.nbytes * size <= TABLE_BYTES and values.is_contiguous()
    return values.device.type == "cpu" and values.dtype in FUNCTIONS and fits


def share_memory(rank: int, size: int, group: dist.ProcessGroup | None) -> SharedMemory | None:
    """Memory that all ranks of a group share; all of them call this together.

    None, on all of them, if one is on another machine or has no compiler.
    """
    if dist.get_backend(group) != "gloo":
        return None
    token = secrets.randbits(8 * TOKEN_BYTES - 1)
    file = _new_file(size, token) if rank == 0 and _functions() else -1
    mine = torch.tensor([os.getpid(), int(status_of(os.getpid()).started_at or 0), file, token])
    everyone = [torch.empty_like(mine) for _ in range(size)]
    dist.all_gather(everyone, mine, group=group)
    processes = [Process(*numbers.tolist()) for numbers in everyone]
    memory = _open(processes[0], size) if _functions() else None
    can = torch.tensor([memory is not None and all(process.is_alive() for process in processes)]).long()
    dist.all_reduce(can, dist.ReduceOp.MIN, group=group)
    if file >= 0:
        os.close(file)
    if memory is None or not can:
        return None
    options = cast(Any, group or dist.group.WORLD)._get_backend(torch.device("cpu")).options
    return SharedMemory(memory, processes, rank, options._timeout.total_seconds())


@functools.cache
def _functions() -> dict[torch.dtype, Any]:
    """The functions of average.cpp by dtype; none where it cannot be compiled or loaded."""
    library = built(Path(__file__).with_name("average.cpp"))
    try:
        loaded = ctypes.CDLL(str(library))  # whose calls let other threads run
    except OSError:
        return {}
    functions = {dtype: loaded[name] for dtype, name in FUNCTIONS.items()}
    for function in functions.values():
        function.argtypes = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64, ctypes.c_bool, ctypes.c_int64)
    return functions


def _num_bytes(size: int) -> int:
    return size * PLACE_BYTES + 2 * TABLE_BYTES + TOKEN_BYTES


def _new_file(size: int, token: int) -> int:
    """A file that has no name, with all its memory; -1 if the system has none."""
    try:
        file = os.memfd_create("rl")
        os.posix_fallocate(file, 0, _num_bytes(size))
    except OSError:
        return -1
    os.pwrite(file, token.to_bytes(TOKEN_BYTES, "little"), _num_bytes(size) - TOKEN_BYTES)
    return file


def _open(first: Process, size: int) -> mmap.mmap | None:
    """The memory of the first rank; None if that is on another machine, or this process may not open it."""
    try:
        file = os.open(f"/proc/{first.pid}/fd/{first.file}", os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        memory = mmap.mmap(file, _num_bytes(size))
    except (OSError, ValueError):
        return None
    finally:
        os.close(file)
    # A process of another machine or container may have the same number.
    return memory if int.from_bytes(memory[-TOKEN_BYTES:], "little") == first.token else None
