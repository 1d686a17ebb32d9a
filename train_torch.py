"""The program of train_fabric.py with `torch.distributed` spelt out: `torchrun train_torch.py`."""

import os
from collections.abc import Callable
from functools import partial

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import clip_grad_norm_

from rl.agent import Agent
from rl.command_line import command_line
from rl.config import Config
from rl.distributed import Ranks, local_rank
from rl.envs.stepping import make_envs
from rl.learners.ppo import Metrics, Rows
from rl.optimization import GradientStep, Weights, make_adam
from rl.rollout import make_collector
from rl.run.logger import TensorBoardWriter
from rl.run.run import Run, make_run_folder
from rl.seeding import Shuffle


def main(config: Config) -> None:
    """One training run."""
    learner = config.learner
    envs = make_envs(config.env)
    folder = make_run_folder(config, "torch_logs")
    logger = TensorBoardWriter(folder)
    device = torch.device("cuda", local_rank()) if config.cuda else torch.device("cpu")
    if config.cuda:
        torch.cuda.set_device(device)
    if "WORLD_SIZE" in os.environ:
        dist.init_process_group("nccl" if config.cuda else "gloo")
    ranks = Ranks.of()

    torch.manual_seed(config.seed)
    policy = Agent(envs.spaces, config.network).to(device)
    agent = DistributedDataParallel(policy) if ranks.size > 1 else policy
    weights = Weights(policy)
    optimizer = make_adam(weights, learner.learning_rate, fused=True)
    execution = config.make_execution(device)
    collector = make_collector(
        envs.to(device), policy, seed=config.seed, first_env=ranks.rank * envs.num_envs, execution=execution
    )
    estimate = execution.loop(partial(learner.estimate, policy))
    shuffle = Shuffle(config.seed, ranks.rank, ranks.size, shared=config.share_data, device=device)

    def eager_gradient_step(minibatch: Rows) -> Metrics:
        loss, metrics = learner.loss(agent, minibatch)
        optimizer.zero_grad(set_to_none=False)
        loss.backward()  # type: ignore[no-untyped-call]
        norm = clip_grad_norm_([weights.vector], learner.max_grad_norm)
        optimizer.step()
        return metrics | {"Info/grad_norm": norm}

    gradient_step: Callable[[Rows], Metrics] = eager_gradient_step
    if execution.mode != "eager":
        # The same arithmetic without Python in between, and one all-reduce where DDP has hooks.
        gradient_step = GradientStep(learner, policy, weights, optimizer, ranks, execution)

    with Run(config, policy, folder, logger, ranks, execution) as run:
        for progress in run.updates():
            learning_rate = learner.learning_rate_at(progress)
            optimizer.param_groups[0]["lr"].fill_(learning_rate)
            run.record({"Info/learning_rate": learning_rate})

            with run.timed("collect"), torch.no_grad():
                rollout = collector.collect(learner.num_steps)
                rows, metrics = learner.prepare(rollout, estimate(rollout), ranks.sum)
            run.record_episodes(rollout)
            run.record(metrics)

            with run.timed("learn"):
                for minibatch in learner.minibatches(ranks.share(rows) if config.share_data else rows, shuffle):
                    metrics = gradient_step(minibatch)
                    run.record(metrics)
                    if learner.should_stop(metrics, ranks.mean):
                        break

        envs.close()
        run.finish()


if __name__ == "__main__":
    command_line(main, Config)
