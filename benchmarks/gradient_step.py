"""What a small gradient step is made of: the step alone, the step under DDP, and the all-reduce of its gradient.

OMP_NUM_THREADS=1 torchrun --standalone --nproc_per_node=2 benchmarks/gradient_step.py
"""

import statistics
import time
from collections.abc import Callable

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import clip_grad_norm_

from rl.agent import Agent, Network
from rl.distributed import leave_process_group, rank
from rl.envs.spaces import DiscreteActions, Spaces
from rl.learners.ppo import PPO, Rows

NUM_ROWS, OBS_SIZE, ROUNDS, REPEATS = 64, 4, 5, 200


def milliseconds(function: Callable[[], object]) -> float:
    """Mean time of a call, after a warm-up."""
    for _ in range(20):
        function()
    dist.barrier()
    began_at = time.perf_counter()
    for _ in range(REPEATS):
        function()
    return 1000 * (time.perf_counter() - began_at) / REPEATS


def gradient_step(agent: nn.Module, rows: Rows) -> Callable[[], None]:
    """One minibatch: forward, backward, clipping and Adam."""
    optimizer = torch.optim.Adam(agent.parameters(), lr=1e-3, eps=1e-5, fused=True)

    def step() -> None:
        optimizer.zero_grad()
        PPO().loss(agent, rows)[0].backward()
        clip_grad_norm_(agent.parameters(), 0.5)
        optimizer.step()

    return step


def main() -> None:
    """Prints medians over rounds in which the parts are measured in turn."""
    ones = torch.ones(NUM_ROWS)
    rows = Rows(torch.randn(NUM_ROWS, OBS_SIZE), ones.long(), -0.7 * ones, ones, torch.randn(NUM_ROWS), ones, ones)
    policy, replica = (Agent(Spaces(OBS_SIZE, DiscreteActions(2)), Network()) for _ in range(2))
    gradient = torch.ones(sum(parameter.numel() for parameter in policy.parameters()))
    number = torch.ones(1)

    def all_reduce(values: Tensor) -> Callable[[], None]:
        return lambda: dist.all_reduce(values.fill_(1))

    parts = {
        "gradient step alone": gradient_step(policy, rows),
        "gradient step under DDP": gradient_step(DistributedDataParallel(replica), rows),
        f"all-reduce of the gradient ({4 * len(gradient):,} bytes), in a loop of its own": all_reduce(gradient),
        "all-reduce of one number, in a loop of its own": all_reduce(number),
    }
    rounds = [{name: milliseconds(function) for name, function in parts.items()} for _ in range(ROUNDS)]
    if rank() == 0:
        for name in parts:
            print(f"{statistics.median(times[name] for times in rounds):6.2f} ms  {name}")


if __name__ == "__main__":
    dist.init_process_group("gloo")
    main()
    leave_process_group()
