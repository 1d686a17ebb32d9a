"""Ranks of one machine average in memory that they share, with the bits of a mean over a stack of their vectors."""

import mmap
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from rl.compilers import built
from rl.dist.launch import status_of
from rl.dist.ranks import Ranks
from rl.dist.shared_memory import Process, SharedMemory, _num_bytes, may_share
from rl.errors import LostRankError
from tests.ranks import in_ranks


def process(pid: int) -> Process:
    return Process(pid, int(status_of(pid).started_at), file=-1, token=0)


def meeting(size: int, *, other: int | None = None, timeout_seconds: float = 60.0) -> list[SharedMemory]:
    """The ends of a group of ranks, all of this process; the process of the second rank may be another."""
    memory = mmap.mmap(-1, _num_bytes(size))
    processes = [process(os.getpid()) for _ in range(size)]
    if other is not None:
        processes[1] = process(other)
    return [SharedMemory(memory, processes, rank, timeout_seconds) for rank in range(size)]


def together(ends: list[SharedMemory], work: Callable[[int, SharedMemory], None]) -> None:
    """Does the work of every rank in a thread of its own."""
    threads = [threading.Thread(target=work, args=(rank, end)) for rank, end in enumerate(ends)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def vectors(size: int, length: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Numbers [size, length] of all magnitudes, and some zeros of both signs."""
    numbers = torch.randn(size, length, dtype=dtype) * torch.logspace(-4, 4, size, dtype=dtype).unsqueeze(1)
    numbers[:, : length // 8] = -0.0
    return numbers


@pytest.mark.parametrize("size", [2, 3, 4])
def test_means_and_sums_have_the_bits_of_those_over_a_stack_in_the_order_of_ranks(size: int) -> None:
    ends = meeting(size)
    stacks = [vectors(size, length) for length in (9_000, 1, 700, 512, 7) * 20]
    doubles = [vectors(size, length, torch.float64) for length in (30, 3)]
    found = [[stack.clone() for stack in stacks + doubles] for _ in ends]

    def work(rank: int, end: SharedMemory) -> None:
        for number, stack in enumerate(found[rank]):
            if number % 20 == rank:
                time.sleep(0.002)  # ranks come at different times
            end.combine(stack[rank], mean=number < len(stacks))

    together(ends, work)
    for rank in range(size):
        for number, stack in enumerate(stacks + doubles):
            total = torch.full_like(stack[0], -0.0)
            for vector in stack:
                total = total + vector
            expected = stack.mean(dim=0) if number < len(stacks) else total
            assert found[rank][number][rank].numpy().tobytes() == expected.numpy().tobytes()


def test_a_rank_that_comes_late_is_waited_for() -> None:
    values = torch.tensor([[1.0], [3.0]])

    def work(rank: int, end: SharedMemory) -> None:
        time.sleep(0.2 * rank)  # several slices of time
        end.combine(values[rank], mean=True)

    together(meeting(2), work)
    assert values.tolist() == [[2.0], [2.0]]


def test_a_dead_rank_is_noticed_and_a_stopped_one_after_the_time_limit() -> None:
    with subprocess.Popen(["sleep", "60"]) as other:
        first, _ = meeting(2, other=other.pid, timeout_seconds=0.2)
        other.send_signal(signal.SIGSTOP)
        with pytest.raises(LostRankError, match=r"rank 1 of its group has not come in 0\.2 s"):
            first.combine(torch.ones(3), mean=True)
        other.kill()
        with pytest.raises(LostRankError, match=f"process {other.pid} has died"):
            first.combine(torch.ones(3), mean=True)


def test_signals_are_handled_while_a_rank_waits_and_the_call_goes_on() -> None:
    first, second = meeting(2)
    values, seen = torch.tensor([[1.0], [3.0]]), []

    def come(*_: object) -> None:
        seen.append(values[0].item())
        thread.start()

    thread = threading.Thread(target=lambda: second.combine(values[1], mean=True))
    signal.signal(signal.SIGALRM, come)
    signal.setitimer(signal.ITIMER_REAL, 0.02)
    first.combine(values[0], mean=True)
    thread.join()
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    assert seen == [1.0] and values.tolist() == [[2.0], [2.0]]


def _gradients() -> list[Tensor]:
    """The gradient that DDP leaves on this rank, by its own messages and in shared memory, and that of a mean."""
    ranks, modules = Ranks.of(), [torch.nn.Linear(300, 3, bias=False) for _ in range(3)]
    generator = torch.Generator().manual_seed(dist.get_rank())
    rows = torch.randn(5, 300, generator=generator)
    for number, module in enumerate(modules):
        torch.nn.init.ones_(module.weight)
        wrapped = DistributedDataParallel(module) if number < 2 else module
        if number == 1:
            ranks.average_in_backward(wrapped, module.weight)
        wrapped(rows).square().sum().backward()
    ranks.average(modules[2].weight.grad.view(-1))
    assert ranks.memory is not None
    return [module.weight.grad for module in modules]


def test_ddp_averages_in_shared_memory_as_it_does_by_messages(tmp_path: Path) -> None:
    (messages, memory, mean), other = in_ranks(_gradients, 2, tmp_path)
    assert torch.equal(memory, mean) and torch.equal(memory, messages)
    assert all(torch.equal(gradient, memory) for gradient in other)


def _average(without_compiler: int) -> tuple[list[bool], Tensor, Tensor, bool]:
    """Whether all ranks, and all but the first, share memory; mean and sum; whether the memory is no folder's file."""
    rank, size = dist.get_rank(), dist.get_world_size()
    if rank == without_compiler:
        os.environ["CXX"] = "no-compiler"
    everyone, values = Ranks.of(), torch.arange(6.0) + rank
    total = everyone.sum(values.double())
    everyone.average(values)
    shared = [everyone.memory is not None]
    group = dist.new_group(list(range(1, size)))
    if rank > 0:
        others, own = Ranks.of(group), torch.full((2,), float(rank))
        others.average(own)
        assert own.tolist() == 2 * [size / 2]
        shared.append(others.memory is not None)
    return shared, values, total, "/memfd:rl (deleted)" in Path("/proc/self/maps").read_text()


@pytest.mark.parametrize(("without_compiler", "shared"), [(-1, True), (1, False)], ids=["all", "one has no compiler"])
def test_processes_share_memory_if_all_of_them_can_and_leave_no_file(
    without_compiler: int, shared: bool, tmp_path: Path
) -> None:
    for rank, (found, mean, total, has_no_name) in enumerate(in_ranks(_average, 3, tmp_path, without_compiler)):
        assert found == [shared] * (2 if rank > 0 else 1)
        assert mean.tolist() == [1.0, 2.0, 3.0, 4.0, 5.0, 6.0] and total.tolist() == [3.0, 6.0, 9.0, 12.0, 15.0, 18.0]
        assert has_no_name == shared


def test_large_vectors_and_other_dtypes_are_left_to_messages() -> None:
    assert may_share(torch.zeros(2**21), 2) and not may_share(torch.zeros(2**21), 3)
    assert not may_share(torch.zeros(1, dtype=torch.int64), 2)


def test_a_library_is_compiled_once_for_each_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    source = tmp_path / "one.cpp"
    source.write_text('extern "C" int one() { return 1; }')
    library = built(source)
    assert library is not None and built(source) == library
    monkeypatch.setattr(subprocess, "run", None)
    assert built(source) == library
    monkeypatch.undo()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    source.write_text('extern "C" int two() { return 2; }')
    assert built(source) not in (library, None)
    source.write_text("not C++")
    assert built(source) is None
    assert len(list((tmp_path / "rl").iterdir())) == 2
