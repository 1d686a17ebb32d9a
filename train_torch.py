"""The program of train_fabric.py with `torch.distributed` spelt out: `torchrun train_torch.py`."""

import signal

if __name__ == "__main__":  # without a traceback, until there is something to say
    signal.signal(signal.SIGINT, signal.SIG_DFL)

from collections.abc import Callable
from contextlib import closing
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import clip_grad_norm_

from rl.cli import command_line
from rl.config import CONFIGS, Config
from rl.dist.launch import local_rank
from rl.dist.ranks import Ranks
from rl.learners.learner import AnyLearner, Metrics
from rl.models.agent import Agent
from rl.models.distributions import Distribution
from rl.models.float8 import to_float8
from rl.optimization import AUTOCAST, GradientStep, Weights, gradient_metrics, make_adam
from rl.rollout import make_collector
from rl.run.folder import open_run
from rl.run.logger import TensorBoardWriter
from rl.run.run import Run
from rl.run.state import State, learning
from rl.seeding import Shuffle

PROGRAM = "torch_logs"  # the folder of its runs


def main(config: Config[AnyLearner]) -> None:
    """One training run."""
    learner = config.learner
    device = torch.device("cuda", local_rank()) if config.cuda else torch.device("cpu")
    if config.cuda:
        torch.cuda.set_device(device)
    envs = config.make_envs(device)
    folder = open_run(config, PROGRAM, "nccl" if config.cuda else "gloo")
    logger = TensorBoardWriter(folder.path, folder.purge_step)
    ranks = Ranks.of()

    torch.manual_seed(config.seed)
    policy = Agent(envs.spaces, config.network).to(device, torch.bfloat16 if config.precision == "bf16-true" else None)
    if config.fp8:
        to_float8(policy, device)
    agent = DistributedDataParallel(policy) if ranks.size > 1 else policy
    weights = Weights(policy)
    optimizer = make_adam(weights, learner.learning_rate, fused=True)
    autocast = AUTOCAST.get(config.precision)
    precision = partial(torch.autocast, device.type, autocast, enabled=autocast is not None)
    scaler = torch.amp.GradScaler(device.type, enabled=config.precision == "16-mixed")
    execution = config.make_execution(device)
    collector = make_collector(
        envs.to(device), policy, seed=config.seed, first_env=ranks.rank * envs.num_envs, execution=execution
    )
    estimate = execution.loop(partial(learner.estimate, policy))
    shuffle = Shuffle(config.seed, ranks.rank, ranks.size, shared=config.share_data, device=device)

    def forward(obs: Tensor) -> tuple[Distribution, Tensor]:
        with precision():  # the network alone: losses are computed in float32
            return cast(tuple[Distribution, Tensor], agent(obs))

    def eager_gradient_step(minibatch: Any) -> Metrics:
        loss, metrics = learner.loss(forward, minibatch)
        optimizer.zero_grad(set_to_none=False)
        scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
        scaler.unscale_(optimizer)
        norm = clip_grad_norm_([weights.vector], learner.max_grad_norm)
        weights.keep_finite(norm)
        scaler.step(optimizer)
        scaler.update()
        return metrics | gradient_metrics(norm, ranks, scaled=scaler.is_enabled())

    gradient_step: Callable[[Any], Metrics] = eager_gradient_step
    if execution.mode != "eager":
        # The same arithmetic without Python in between, and one all-reduce where DDP has hooks.
        gradient_step = GradientStep(learner, policy, weights, optimizer, ranks, execution, autocast, scaler)

    state = State(
        own={"collector": collector, "shuffle": shuffle, "learner": learner},
        shared=learning(policy, weights.vector, optimizer, scaler),
        alike=(weights.vector, *optimizer.state[weights.vector].values()),
    )
    with closing(envs), Run(config, policy, folder, logger, ranks, execution, state) as run:
        for progress in run.updates():
            learning_rate = learner.learning_rate_at(progress)
            optimizer.param_groups[0]["lr"].fill_(learning_rate)
            run.record({"Info/learning_rate": learning_rate})
            if scaler.is_enabled():
                run.record({"Info/loss_scale": scaler.get_scale()})

            with run.timed("collect"), torch.no_grad(), precision():
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


if __name__ == "__main__":
    command_line(main, CONFIGS, PROGRAM)
