"""What ranks do together: collectives on tensors, and sharing the cores of a machine."""

import contextlib
import functools
import os
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from rl import tree
from rl.dist.launch import local_world_size, num_cores
from rl.dist.shared_memory import SharedMemory, may_share, share_memory
from rl.errors import counted
from rl.reporting import note

Rows = TypeVar("Rows")  # a tree of tensors [B, ...]

# On the CPU an all-gather of few numbers takes two thirds of the time of an all-reduce: fewer messages wait for a core
# (benchmarks/gradient_step.py).
FEW = 2**18
# The name from torch 2.13 on, which warns of the one before.
_all_gather = getattr(dist, "all_gather_single", dist.all_gather_into_tensor)


def choose_threads() -> None:
    """Limits this rank to its share of the machine's cores, or to OMP_NUM_THREADS threads if that is fewer.

    A run whose ranks all use all cores can be five times slower.
    """
    cores = num_cores()
    if local_world_size() > cores:
        note(f"{local_world_size()} ranks of this machine share {counted(cores, 'core')}")
    torch.set_num_threads(max(1, min(torch.get_num_threads(), cores // local_world_size())))
    if local_world_size() > 1 and hasattr(os, "SCHED_BATCH"):
        # As batch work, the threads that pass messages on do not preempt each other: a message between ranks takes
        # little more than half the time on average (docs/log.md). The system may not permit it.
        with contextlib.suppress(OSError):
            os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))


@dataclass(frozen=True)
class Ranks:
    """A group of ranks as seen by one of them; by default a rank on its own."""

    rank: int = 0
    size: int = 1
    group: dist.ProcessGroup | None = None

    @classmethod
    def of(cls, group: dist.ProcessGroup | None = None) -> "Ranks":
        """The ranks of a process group that this process belongs to; without a group, all ranks of the run."""
        return cls(dist.get_rank(group), dist.get_world_size(group), group) if dist.is_initialized() else cls()

    @functools.cached_property
    def memory(self) -> SharedMemory | None:
        """What all ranks share if they are on one machine; made at the first use, which all come to together."""
        return share_memory(self.rank, self.size, self.group)

    def sum(self, values: Tensor) -> Tensor:
        """The elementwise sum of every rank's tensor, on every rank."""
        if self.size > 1:
            values = values.clone()
            if may_share(values, self.size) and self.memory:
                self.memory.combine(values, mean=False)
            else:
                dist.all_reduce(values, group=self.group)
        return values

    def mean(self, values: Tensor) -> Tensor:
        """The elementwise mean of every rank's tensor, on every rank."""
        return self.sum(values) / self.size

    def average(self, values: Tensor) -> None:
        """Replaces every rank's vector by the elementwise mean of all."""
        if self.size == 1:
            return
        if may_share(values, self.size) and self.memory:
            self.memory.combine(values, mean=True)
        elif values.device.type == "cpu" and self.size * len(values) <= FEW:
            gathered = values.new_empty(self.size, len(values))
            _all_gather(gathered.flatten(), values, group=self.group)
            torch.mean(gathered, dim=0, out=values)
        else:
            dist.all_reduce(values, group=self.group)
            values /= self.size

    def average_in_loops(self, like: Tensor) -> bool:
        """Whether `averaged` takes such a vector, which all ranks ask together."""
        return self.size == 1 or (may_share(like, self.size) and self.memory is not None)

    def averaged(self, values: Tensor) -> Tensor:
        """The elementwise mean of every rank's vector, also within a compiled loop, which `average` would end."""
        return values if self.size == 1 or self.memory is None else self.memory.averaged(values)

    def telling(self) -> contextlib.AbstractContextManager[None]:
        """Says in what runs such a loop why an average has failed."""
        return contextlib.nullcontext() if self.size == 1 or self.memory is None else self.memory.telling()

    def average_in_backward(self, module: nn.Module, gradient: Tensor) -> None:
        """Lets DDP average a small module's gradient as `average` does, if the ranks share memory."""
        for part in module.modules():
            if isinstance(part, DistributedDataParallel) and may_share(gradient, self.size) and self.memory:
                part.register_comm_hook(self, _average_bucket)

    def broadcast(self, values: Tensor) -> None:
        """Overwrites every rank's values with those of the first."""
        if self.size > 1:
            source = 0 if self.group is None else dist.get_global_rank(self.group, 0)
            dist.broadcast(values, source, group=self.group)

    def gather_bytes(self, data: Tensor) -> list[Tensor]:
        """All ranks' bytes [B_r] (uint8) in the order of ranks, on rank 0; an empty list on the others."""
        if self.size == 1:
            return [data]
        # The device that this backend can send from, wherever the ranks compute.
        device = torch.device("cuda" if dist.get_backend(self.group) == "nccl" else "cpu")
        sizes = torch.zeros(self.size, dtype=torch.int64, device=device)
        sizes[self.rank] = len(data)
        sizes = self.sum(sizes)
        padded = torch.zeros(int(sizes.max()), dtype=torch.uint8, device=device)
        padded[: len(data)] = data
        parts = [torch.empty_like(padded) for _ in sizes] if self.rank == 0 else None
        dist.gather(padded, parts, dst=0, group=self.group)
        return [part[:size].cpu() for part, size in zip(parts or [], sizes.tolist(), strict=False)]

    def share(self, rows: Rows) -> Rows:
        """All ranks' rows [W·B, ...] in the order of ranks, given this rank's own [B, ...]; one all-gather."""
        if self.size == 1:
            return rows
        packed = pack(rows)
        gathered = packed.new_empty(self.size * len(packed), packed.shape[1])
        _all_gather(gathered, packed, group=self.group)
        return unpack(gathered, rows)


def _average_bucket(
    ranks: Ranks,
    bucket: dist.GradBucket,  # type: ignore[name-defined]
) -> torch.futures.Future[Tensor]:
    ranks.average(bucket.buffer())
    averaged: torch.futures.Future[Tensor] = torch.futures.Future()
    averaged.set_result(bucket.buffer())
    return averaged


def pack(rows: Any) -> Tensor:
    """The bytes [B, F] (uint8) of a tree of tensors [B, ...]: one tensor to send, exact for every dtype."""
    return torch.cat(
        [field.reshape(len(field), -1).contiguous().view(torch.uint8) for field in tree.leaves(rows)], dim=1
    )


def unpack(packed: Tensor, like: Rows) -> Rows:
    """The rows whose bytes `packed` [B, F] holds; `like` gives their dtypes and shapes, but not their number."""
    sizes = [field[0].numel() * field.element_size() for field in tree.leaves(like)]
    columns = iter(torch.split(packed, sizes, dim=1))
    return tree.map(
        # A copy, which begins where numbers of its dtype may; a column of a single row may not.
        lambda field: (
            next(columns)
            .clone(memory_format=torch.contiguous_format)
            .view(field.dtype)
            .reshape(len(packed), *field.shape[1:])
        ),
        like,
    )
