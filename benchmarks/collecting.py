"""Measures how long a step of a rollout takes where Gymnasium's environments are stepped in Python, and its parts.

python benchmarks/collecting.py --num-envs 2 16
"""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import tyro

from rl.collector import AnyCollector, make_collector
from rl.compile import Execution
from rl.envs.config import EnvConfig
from rl.envs.make import make_envs
from rl.models.agent import Agent, Network

NUM_STEPS = 128  # of a rollout


@dataclass
class Arguments:
    """Prints a row for each number of environments and mode: microseconds of a step of all environments, medians."""

    env_id: str = "CartPole-v1"
    """Environments."""
    num_envs: tuple[int, ...] = (2, 16)
    """Numbers of environments."""
    vectorization: str = "sync"
    """How they are batched."""
    rounds: int = 200
    """Rollouts that are measured."""


def timed(owner: Any, name: str, seconds: list[float]) -> None:
    """Lets a method note the seconds of its calls."""
    method: Callable[..., Any] = getattr(owner, name)

    def call(*args: Any) -> Any:
        began_at = time.perf_counter()
        result = method(*args)
        seconds.append(time.perf_counter() - began_at)
        return result

    setattr(owner, name, call)


def rollouts(collector: AnyCollector, number: int) -> float:
    """The median of the microseconds of a step."""
    seconds = []
    for _ in range(number):
        began_at = time.perf_counter()
        collector.collect(NUM_STEPS)
        seconds.append(time.perf_counter() - began_at)
    return statistics.median(seconds) / NUM_STEPS * 1e6


@torch.no_grad()
def main(arguments: Arguments) -> None:
    """Parts are timed after the whole, which they make longer."""
    torch.set_num_threads(1)
    print("| environments | policy | a step, µs | the environments | the policy |\n|---|---|---|---|---|")
    for number in arguments.num_envs:
        for mode in ("eager", "compile"):
            config = EnvConfig(arguments.env_id, num_envs=number, vectorization=arguments.vectorization)  # type: ignore[arg-type]
            envs: Any = make_envs(config, training=True)
            policy = Agent(envs.spaces, Network()).requires_grad_(False)
            execution = Execution(mode)  # type: ignore[arg-type]
            collector: Any = make_collector(envs, policy, seed=1, execution=execution, keeps_next_obs=False)
            rollouts(collector, 10)
            whole = rollouts(collector, arguments.rounds)
            stepping: list[float] = []
            deciding: list[float] = []
            timed(envs.envs, "step", stepping)
            timed(collector, "decide", deciding)
            rollouts(collector, arguments.rounds)
            parts = [f"{statistics.median(seconds) * 1e6:.0f}" for seconds in (stepping, deciding)]
            print(f"| {number} | {mode} | {whole:.0f} | {' | '.join(parts)} |", flush=True)
            envs.close()


if __name__ == "__main__":
    main(tyro.cli(Arguments))
