"""Every rank plays and learns; Lightning Fabric launches, places and synchronises: `fabric run train_fabric.py`."""

import signal

if __name__ == "__main__":  # without a traceback, until there is something to say
    signal.signal(signal.SIGINT, signal.SIG_DFL)

import os
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from functools import partial
from typing import Any, cast, get_args

import torch
from lightning.fabric import Fabric
from lightning.fabric.loggers.tensorboard import TensorBoardLogger
from torch import Tensor

from rl.cli import command_line
from rl.config import CONFIGS, Config, Precision
from rl.dist.launch import local_rank
from rl.dist.ranks import Ranks
from rl.errors import require
from rl.learners.learner import AnyLearner, Metrics
from rl.models.agent import Agent
from rl.models.float8 import to_float8
from rl.optimization import AUTOCAST, GradientStep, Weights, gradient_metrics, make_adam
from rl.rollout import make_collector
from rl.run.folder import open_run
from rl.run.run import Run
from rl.run.state import State, learning
from rl.seeding import Shuffle

PROGRAM = "fabric_logs"  # the folder of its runs


def main(config: Config[AnyLearner]) -> None:
    """One training run."""
    learner = config.learner
    strategy = os.environ.get("LT_STRATEGY", "auto")
    require(strategy.startswith(("auto", "ddp")), "--strategy", strategy, "gradients are averaged by ddp here")
    envs = config.make_envs(torch.device("cuda", local_rank()) if config.cuda else torch.device("cpu"))
    folder = open_run(config, PROGRAM, "nccl" if config.cuda else "gloo")
    logger = TensorBoardLogger(folder.path, name="", version="", default_hp_metric=False, purge_step=folder.purge_step)
    # Fabric takes --accelerator, --devices, --strategy and --precision of `fabric run` from the environment.
    precision_flag = None if "LT_PRECISION" in os.environ else config.precision
    accelerator = "cuda" if config.cuda else os.environ.get("LT_ACCELERATOR", "cpu")
    fabric = Fabric(accelerator=accelerator, loggers=logger, precision=precision_flag)
    # What runs: on a CPU Fabric makes 16-mixed bf16-mixed.
    config = replace(config, precision=cast(Any, fabric.strategy.precision.precision))
    ranks = Ranks.of()

    torch.manual_seed(config.seed)
    policy = Agent(envs.spaces, config.network)
    if config.fp8:
        to_float8(policy, fabric.device)
    agent = fabric.setup_module(policy)  # the same weights; those who call it wait for each other
    weights = Weights(policy)
    precision = fabric.strategy.precision
    scaler = getattr(precision, "scaler", None)
    autocast = AUTOCAST.get(precision.precision)
    # Not `fabric.autocast`, which in bf16-true makes all new tensors bf16: discounts and counts are float32.
    in_precision = partial(torch.autocast, fabric.device.type, autocast, enabled=autocast is not None)
    # Fabric does not clip what a fused Adam unscales itself.
    adam = make_adam(weights, learner.learning_rate, fused=scaler is None)
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

    def eager_gradient_step(minibatch: Any) -> Metrics:
        loss, metrics = learner.loss(agent, minibatch)
        optimizer.zero_grad(set_to_none=False)
        fabric.backward(loss)
        # A gradient that is not finite is no error here: under fp16 it tells the loss scaler to skip the step.
        norm = cast(
            Tensor, fabric.clip_gradients(agent, optimizer, max_norm=learner.max_grad_norm, error_if_nonfinite=False)
        )
        weights.keep_finite(norm)
        optimizer.step()
        return metrics | gradient_metrics(norm, ranks, scaled=scaler is not None)

    gradient_step: Callable[[Any], Metrics] = eager_gradient_step
    if execution.mode != "eager":
        # The same arithmetic without Python in between, and one all-reduce where DDP has hooks.
        gradient_step = GradientStep(learner, policy, weights, adam, ranks, execution, autocast, scaler)

    state = State(
        own={"collector": collector, "shuffle": shuffle, "learner": learner},
        shared=learning(policy, weights.vector, adam, scaler),
        alike=(weights.vector, *adam.state[weights.vector].values()),
    )
    with closing(envs), Run(config, policy, folder, logger, ranks, execution, state) as run:
        for progress in run.updates():
            learning_rate = learner.learning_rate_at(progress)
            adam.param_groups[0]["lr"].fill_(learning_rate)
            run.record({"Info/learning_rate": learning_rate})
            if scaler is not None:
                run.record({"Info/loss_scale": scaler.get_scale()})

            with run.timed("collect"), torch.no_grad(), in_precision():
                rollout = learner.collect(collector)
                rows, metrics = learner.prepare(rollout, estimate(rollout), run.agreement.sum)
            run.record_rollout(rollout)
            run.record(metrics)

            with run.timed("learn"):
                for minibatch in learner.minibatches(ranks.share(rows) if config.share_data else rows, shuffle):
                    metrics = gradient_step(minibatch)
                    run.record(metrics)
                    if learner.should_stop(metrics, ranks.mean):
                        break

        run.finish()


def told_to_fabric() -> dict[str, Any]:
    """The flags that `fabric run` has taken as its own options and left in the environment, by their field in `Config`.

    Raises:
        UserError: There is no such precision.
    """
    told: dict[str, Any] = {}
    if (precision := os.environ.get("LT_PRECISION")) is not None:
        told["precision"] = {"32": "32-true", "16": "16-mixed", "bf16": "bf16-mixed"}.get(precision, precision)
        known = get_args(Precision)
        require(told["precision"] in known, "--precision", precision, f"must be one of {', '.join(known)}")
    accelerator = os.environ.get("LT_ACCELERATOR", "cpu")
    if accelerator in ("cuda", "gpu") or (accelerator == "auto" and torch.cuda.is_available()):
        told["cuda"] = True
    return told


if __name__ == "__main__":
    command_line(main, CONFIGS, PROGRAM, told_to_fabric)
