"""Times a gradient step (eager, with DDP, compiled, averaged over ranks), and its collectives alone.

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

from rl.compile import Execution
from rl.dist.launch import leave_process_group, rank
from rl.dist.ranks import Ranks, choose_threads
from rl.envs.actions import DiscreteActions
from rl.envs.observations import vector
from rl.envs.spaces import Spaces
from rl.learners.ppo import PPOConfig, Rows
from rl.models.agent import Agent, Network, Weights
from rl.optimization import GradientStep, make_adam

OBS_SIZE, ROUNDS = 4, 5


def milliseconds(function: Callable[[], object], repeats: int) -> float:
    """Mean time of a call (ms), after a warm-up."""
    for _ in range(max(3, repeats // 10)):
        function()
    dist.barrier()
    began_at = time.perf_counter()
    for _ in range(repeats):
        function()
    return 1000 * (time.perf_counter() - began_at) / repeats


def policy() -> Agent:
    """A policy whose actor and critic share no layers."""
    return Agent(Spaces(vector(OBS_SIZE), DiscreteActions(2)), Network(shared_encoder=False))


def by_messages() -> Ranks:
    """All ranks, as if they had no memory to share."""
    ranks = Ranks.of()
    vars(ranks)["memory"] = None  # the cached property
    return ranks


def eager(rows: Rows, wrap: Callable[[nn.Module], nn.Module]) -> Callable[[], None]:
    """The eager gradient step of the programs: forward, backward, clipping and Adam."""
    module = policy()
    weights = Weights(module)
    agent, optimizer = wrap(module), make_adam(weights, 1e-3, fused=True)

    def step() -> None:
        optimizer.zero_grad(set_to_none=False)
        PPOConfig().build().loss(agent, rows)[0].backward()
        clip_grad_norm_([weights.vector], 0.5)
        optimizer.step()

    return step


def sharing_memory(module: nn.Module) -> nn.Module:
    """The module in DDP as the programs have it."""
    wrapped = DistributedDataParallel(module)
    gradient = torch.cat([parameter.flatten() for parameter in module.parameters()])
    Ranks.of().average_in_backward(wrapped, gradient)
    return wrapped


def compiled(rows: Rows, ranks: Ranks, autocast: torch.dtype | None = None) -> Callable[[], object]:
    """The compiled gradient step of the programs."""
    module = policy()
    weights = Weights(module)
    optimizer = make_adam(weights, 1e-3, fused=True)
    step = GradientStep(PPOConfig().build(), module, weights, optimizer, ranks, Execution("compile"), autocast=autocast)
    return lambda: step(rows)


def parts_of(num_rows: int) -> dict[str, Callable[[], object]]:
    """The functions to time with minibatches of `num_rows` rows, by name."""
    ones = torch.ones(num_rows)
    rows = Rows(torch.randn(num_rows, OBS_SIZE), ones.long(), -0.7 * ones, ones, torch.randn(num_rows), ones, ones)
    return {
        f"{num_rows:6,} rows, eager": eager(rows, lambda module: module),
        f"{num_rows:6,} rows, eager, DDP": eager(rows, DistributedDataParallel),
        f"{num_rows:6,} rows, eager, DDP in shared memory": eager(rows, sharing_memory),
        f"{num_rows:6,} rows, compiled": compiled(rows, Ranks()),
        f"{num_rows:6,} rows, compiled, bf16": compiled(rows, Ranks(), torch.bfloat16),
        f"{num_rows:6,} rows, compiled, averaged by messages": compiled(rows, by_messages()),
        f"{num_rows:6,} rows, compiled, averaged in shared memory": compiled(rows, Ranks.of()),
    }


def messages() -> dict[str, Callable[[], object]]:
    """The collectives to time, by name."""
    gradient = torch.ones(sum(parameter.numel() for parameter in policy().parameters()))
    rows, weight = torch.randn(128, 64), torch.randn(64, 64)

    def all_reduce(values: Tensor) -> Callable[[], object]:
        return lambda: dist.all_reduce(values.fill_(1))

    def average(ranks: Ranks, num_products: int, vector: Tensor = gradient) -> Callable[[], object]:
        def products_and_average() -> None:
            for _ in range(num_products):
                rows @ weight
            ranks.average(vector)

        return products_and_average

    sizes = {
        f"average of {number:,} floats {how}": average(ranks, 0, torch.ones(number))
        for number in (2**17, 2**20, 2**22)
        for how, ranks in (("by messages", by_messages()), ("in shared memory", Ranks.of()))
    }
    return sizes | {
        f"all-reduce of the gradient ({4 * len(gradient):,} bytes)": all_reduce(gradient),
        "all-reduce of one number": all_reduce(torch.ones(1)),
        "average of the gradient by messages": average(by_messages(), 0),
        "average of the gradient in shared memory": average(Ranks.of(), 0),
        "24 small products, average by messages": average(by_messages(), 24),
        "24 small products, average in shared memory": average(Ranks.of(), 24),
    }


def main() -> None:
    """Times everything for several sizes of a minibatch."""
    for num_rows, repeats in ((64, 200), (2048, 60), (32768, 6)):
        report(parts_of(num_rows), repeats)
    report(messages(), 200)


def report(parts: dict[str, Callable[[], object]], repeats: int) -> None:
    """Times the functions in turn, and prints for each the median over rounds."""
    rounds = [{name: milliseconds(part, repeats) for name, part in parts.items()} for _ in range(ROUNDS)]
    if rank() == 0:
        for name in parts:
            print(f"{statistics.median(times[name] for times in rounds):8.3f} ms  {name}", flush=True)


if __name__ == "__main__":
    choose_threads()
    dist.init_process_group("gloo")
    main()
    leave_process_group()
