"""Every rank plays and learns; Lightning Fabric launches, places and synchronises: `fabric run train_fabric.py`."""

import os
from typing import cast

import torch
from lightning.fabric import Fabric
from lightning.fabric.loggers.tensorboard import TensorBoardLogger
from torch import Tensor

from rl.agent import Agent
from rl.command_line import command_line
from rl.config import Config
from rl.distributed import Ranks
from rl.envs.stepping import make_envs
from rl.errors import require
from rl.learners.ppo import Metrics, Rows
from rl.rollout import Collector
from rl.run.run import Run, make_run_folder
from rl.seeding import Shuffle


def main(config: Config) -> None:
    """One training run."""
    learner = config.learner
    strategy = os.environ.get("LT_STRATEGY", "auto")
    require(strategy.startswith(("auto", "ddp")), "--strategy", strategy, "gradients are averaged by ddp here")
    envs = make_envs(config.env)
    folder = make_run_folder(config, "fabric_logs")
    logger = TensorBoardLogger(folder, name="", version="", default_hp_metric=False)
    # Fabric takes --accelerator, --devices, --strategy and --precision of `fabric run` from the environment.
    accelerator = "cuda" if config.cuda else os.environ.get("LT_ACCELERATOR", "cpu")
    fabric = Fabric(accelerator=accelerator, loggers=logger)
    ranks = Ranks.of()

    torch.manual_seed(config.seed)
    agent = Agent(envs.spaces, config.network)
    # Fabric does not clip what a fused Adam unscales itself.
    fused = fabric.strategy.precision.precision != "16-mixed"
    optimizer = torch.optim.Adam(agent.parameters(), lr=learner.learning_rate, eps=1e-5, fused=fused)
    agent, optimizer = fabric.setup(agent, optimizer)
    policy = agent.module  # the same weights, without what makes ranks wait for each other
    collector = Collector(envs.to(fabric.device), policy, seed=config.seed, first_env=ranks.rank * envs.num_envs)
    shuffle = Shuffle(config.seed, ranks.rank, ranks.size, shared=config.share_data)

    def gradient_step(minibatch: Rows) -> Metrics:
        loss, metrics = learner.loss(agent, minibatch)
        optimizer.zero_grad()
        fabric.backward(loss)
        # A gradient that is not finite is no error here: under fp16 it tells the loss scaler to skip the step.
        norm = fabric.clip_gradients(agent, optimizer, max_norm=learner.max_grad_norm, error_if_nonfinite=False)
        optimizer.step()
        return metrics | {"Info/grad_norm": cast(Tensor, norm)}

    with Run(config, policy, folder, logger, ranks) as run:
        for progress in run.updates():
            learning_rate = learner.learning_rate_at(progress)
            for group in optimizer.param_groups:
                group["lr"] = learning_rate
            run.record({"Info/learning_rate": learning_rate})

            with run.timed("collect"), torch.no_grad(), fabric.autocast():
                rollout = collector.collect(learner.num_steps)
                rows, metrics = learner.prepare(policy, rollout, ranks.sum)
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
