"""Every rank plays and learns; Lightning Fabric launches, places and synchronises: `fabric run train_fabric.py`."""

import os
from collections.abc import Callable
from functools import partial
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
from rl.optimization import AUTOCAST, GradientStep, Weights, make_adam
from rl.rollout import make_collector
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
    policy = Agent(envs.spaces, config.network)
    agent = fabric.setup_module(policy)  # the same weights; those who call it wait for each other
    weights = Weights(policy)
    # Fabric does not clip what a fused Adam unscales itself.
    precision = fabric.strategy.precision
    adam = make_adam(weights, learner.learning_rate, fused=precision.precision != "16-mixed")
    optimizer = cast(torch.optim.Adam, fabric.setup_optimizers(adam))
    execution = config.make_execution(fabric.device)
    collector = make_collector(
        envs.to(fabric.device),
        policy,
        seed=config.seed,
        first_env=ranks.rank * envs.num_envs,
        execution=execution,
    )
    estimate = execution.loop(partial(learner.estimate, policy))
    shuffle = Shuffle(config.seed, ranks.rank, ranks.size, shared=config.share_data, device=fabric.device)

    def eager_gradient_step(minibatch: Rows) -> Metrics:
        loss, metrics = learner.loss(agent, minibatch)
        optimizer.zero_grad(set_to_none=False)
        fabric.backward(loss)
        # A gradient that is not finite is no error here: under fp16 it tells the loss scaler to skip the step.
        norm = fabric.clip_gradients(agent, optimizer, max_norm=learner.max_grad_norm, error_if_nonfinite=False)
        optimizer.step()
        return metrics | {"Info/grad_norm": cast(Tensor, norm)}

    gradient_step: Callable[[Rows], Metrics] = eager_gradient_step
    if execution.mode != "eager":
        # The same arithmetic without Python in between, and one all-reduce where DDP has hooks.
        autocast, scaler = AUTOCAST.get(precision.precision), getattr(precision, "scaler", None)
        gradient_step = GradientStep(learner, policy, weights, adam, ranks, execution, autocast=autocast, scaler=scaler)

    with Run(config, policy, folder, logger, ranks, execution) as run:
        for progress in run.updates():
            learning_rate = learner.learning_rate_at(progress)
            adam.param_groups[0]["lr"].fill_(learning_rate)
            run.record({"Info/learning_rate": learning_rate})

            with run.timed("collect"), torch.no_grad(), fabric.autocast():
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
