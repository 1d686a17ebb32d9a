"""Measures how fast environments step in each way of --vectorization, in turn, with random actions and no learning.

python benchmarks/stepping.py --env-ids HalfCheetah-v5 Hopper-v5
"""

import contextlib
import os
import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal

import psutil
import torch
import tyro
from torch import Tensor

from rl.envs.actions import DiscreteActions
from rl.envs.config import EnvConfig
from rl.envs.make import make_envs
from rl.envs.tensor_envs import TensorEnvs
from rl.envs.types import Envs

Way = Literal["sync", "async", "native", "envpool", "tensor"]


@dataclass
class Arguments:
    """Prints a row for each environment and way: steps a second, and ratios to the first way."""

    env_ids: tuple[str, ...] = ("HalfCheetah-v5",)
    """Environments."""
    ways: tuple[Way, ...] = ("sync", "async", "envpool")
    """Values of --vectorization; ratios are to the first."""
    num_envs: int = 16
    """Environments in a batch."""
    num_workers: int | None = None
    """Worker processes, or EnvPool's threads; by default one for each core."""
    num_steps: int = 100
    """Steps of the batch that one measurement takes."""
    rounds: int = 9
    """Measurements of each way; the ways take turns."""
    realtime: bool = False
    """Prefer the measured processes to all others, where a machine has other work; they stop it, so be brief."""


def measure(envs: Any, actions: Tensor) -> tuple[float, float]:
    """Seconds, and seconds of the processors, that steps with these actions [T, N, ...] take."""
    processes = [psutil.Process(), *psutil.Process().children()]
    began_at, cpu_before = time.perf_counter(), sum(map(cpu_seconds, processes))
    in_tensors = isinstance(envs, TensorEnvs)
    for action in actions:
        envs.step(action) if in_tensors else envs.act(action)
    if not in_tensors:
        envs.outcomes()
    return time.perf_counter() - began_at, sum(map(cpu_seconds, processes)) - cpu_before


def cpu_seconds(process: psutil.Process) -> float:
    """What a process and its threads have used."""
    nanoseconds = 0
    for thread in process.threads():
        with open(f"/proc/{process.pid}/task/{thread.id}/schedstat") as file:
            nanoseconds += int(file.read().split()[0])
    return nanoseconds / 1e9


@contextlib.contextmanager
def preferred(workers: list[int]) -> Iterator[None]:
    """Stops all other work: real-time priority for this process and its children, and a core for each worker."""
    cores = sorted(os.sched_getaffinity(0))
    for number, pid in enumerate(workers):
        os.sched_setaffinity(pid, {cores[number % len(cores)]})
    processes = (psutil.Process(), *psutil.Process().children())
    threads = [thread.id for process in processes for thread in process.threads()]
    for thread in threads:
        os.sched_setscheduler(thread, os.SCHED_FIFO, os.sched_param(1))
    try:
        yield
    finally:
        for thread in threads:
            os.sched_setscheduler(thread, os.SCHED_OTHER, os.sched_param(0))


def compare(arguments: Arguments, env_id: str) -> None:
    """Prints the rows of an environment."""
    config = EnvConfig(env_id, num_envs=arguments.num_envs, num_workers=arguments.num_workers)
    seconds: dict[Way, list[tuple[float, float]]] = {way: [] for way in arguments.ways}
    with contextlib.ExitStack() as stack:
        batches = {way: make_envs(replace(config, vectorization=way)) for way in arguments.ways}
        for envs in batches.values():
            stack.callback(envs.close)
            envs.reset(seed=1)
        actions = random_actions(batches[arguments.ways[0]], arguments.num_steps)
        if arguments.realtime:
            workers = [child.pid for child in psutil.Process().children()]
            stack.enter_context(preferred(workers))
        for _ in range(arguments.rounds):
            for way, envs in batches.items():
                seconds[way].append(measure(envs, actions))
    first = seconds[arguments.ways[0]]
    num_steps = arguments.num_steps * arguments.num_envs
    for way, pairs in seconds.items():
        speed, cpu_speed = (num_steps / statistics.median(column) for column in zip(*pairs, strict=True))
        ratios = sorted(one[0] / other[0] for one, other in zip(first, pairs, strict=True))
        cpu_ratio = statistics.median(one[1] / other[1] for one, other in zip(first, pairs, strict=True))
        print(
            f"| {env_id} | {way} | {speed:,.0f} | {statistics.median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})"
            f" | {cpu_speed:,.0f} | {cpu_ratio:.2f} |",
            flush=True,
        )


def random_actions(envs: Envs, num_steps: int) -> Tensor:
    """Actions [T, N, ...]."""
    generator, space = torch.Generator().manual_seed(0), envs.spaces.actions
    if isinstance(space, DiscreteActions):
        return torch.randint(space.num_actions, (num_steps, envs.num_envs), generator=generator)
    low, high = torch.tensor(space.low), torch.tensor(space.high)
    return low + (high - low) * torch.rand((num_steps, envs.num_envs, len(space.low)), generator=generator)


def main(arguments: Arguments) -> None:
    """Prints the table."""
    torch.set_num_threads(1)
    print(f"load {os.getloadavg()[0]:.1f} on {len(os.sched_getaffinity(0))} cores")
    print("| environment | way | steps/s | ratio (range) | steps/CPU-s | ratio |\n|---|---|---|---|---|---|")
    for env_id in arguments.env_ids:
        compare(arguments, env_id)


if __name__ == "__main__":
    main(tyro.cli(Arguments, description=__doc__))
