"""Rank 0 plays, the others learn: `fabric run --devices=3 train_fabric_decoupled.py`."""

import signal

if __name__ == "__main__":  # without a traceback, until there is something to say
    signal.signal(signal.SIGINT, signal.SIG_DFL)

import os
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from datetime import timedelta
from functools import partial
from typing import Any, cast

import torch
import torch.distributed as dist
from lightning.fabric import Fabric
from lightning.fabric.loggers.tensorboard import TensorBoardLogger
from lightning.fabric.strategies.single_device import SingleDeviceStrategy
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from rl.cli import command_line
from rl.config import DecoupledConfig
from rl.dist.launch import local_rank, local_world_size, on_first_machine, rank, world_size
from rl.dist.ranks import Ranks
from rl.envs.make import make_envs
from rl.envs.types import Envs
from rl.errors import StopError, require
from rl.exchange import PLAYER, Exchange, Order
from rl.learners.learner import Metrics
from rl.learners.ppo import Rows
from rl.models.agent import Agent
from rl.models.float8 import to_float8
from rl.optimization import AUTOCAST, GradientStep, Weights, gradient_metrics, make_adam
from rl.rollout import make_collector
from rl.run.control import SAID, Agreement, Requests
from rl.run.folder import open_run
from rl.run.logger import Averages
from rl.run.run import Run
from rl.run.state import State, learning
from rl.seeding import Shuffle
from train_fabric import told_to_fabric

ALONE = Ranks()
CPU = torch.device("cpu")
TRAINER_METRICS = (
    "Info/grad_norm",
    "Count/skipped_steps",
    "Info/learning_rate",
    "Info/loss_scale",
    "Time/trainer_wait_seconds",
    "Time/learn_seconds",
    *SAID,
)
PROGRAM = "fabric_decoupled_logs"  # the folder of its runs


def main(config: DecoupledConfig) -> None:
    """One training run."""
    strategy = os.environ.pop("LT_STRATEGY", "auto")
    require(strategy.startswith(("auto", "ddp")), "--strategy", strategy, "gradients are averaged by ddp here")
    # What the ranks do differs, so each has a Fabric of its own, on one device.
    os.environ |= {"LT_DEVICES": "1", "LT_NUM_NODES": "1"}
    (player if rank() == PLAYER else trainer)(config)


def player(config: DecoupledConfig) -> None:
    """Collects rollouts for the trainers, with the weights that they send back."""
    learner = config.learner
    # A GPU that no trainer has, where there is one.
    gpu = min(local_world_size() - 1, torch.cuda.device_count() - 1)
    device = torch.device("cuda", gpu) if config.player_on_gpu else CPU
    envs = config.make_envs(device)
    folder = open_run(config, PROGRAM, "gloo")
    logger = TensorBoardLogger(folder.path, name="", version="", default_hp_metric=False, purge_step=folder.purge_step)
    fabric = fabric_on(device, config)
    if not config.cuda:  # what runs: on a CPU Fabric makes 16-mixed bf16-mixed
        config = replace(config, precision=cast(Any, fabric.strategy.precision.precision))
    group_trainers(config)

    torch.manual_seed(config.seed)
    policy = Agent(envs.spaces, config.network)
    if config.fp8:
        to_float8(policy, fabric.device)
    fabric.setup_module(policy)  # to its device and precision
    autocast = AUTOCAST.get(fabric.strategy.precision.precision)
    # Not `fabric.autocast`, which in bf16-true makes all new tensors bf16: discounts and counts are float32.
    in_precision = partial(torch.autocast, fabric.device.type, autocast, enabled=autocast is not None)
    Weights(policy)  # where they lie in memory decides on the last bits of a product: as on the trainers
    exchange = make_exchange(config, one_env(config), policy, fabric.device)
    execution = config.make_execution(fabric.device)
    collector = make_collector(envs.to(fabric.device), policy, seed=config.seed, first_env=0, execution=execution)
    estimate = execution.loop(partial(learner.estimate, policy))

    state = State(own={"collector": collector, "policy": policy, "exchange": exchange})
    with closing(envs), Run(config, policy, folder, logger, ALONE, execution, state) as run:

        def take_weights() -> None:
            with run.timed("player_wait"):
                metrics = exchange.receive_weights()
            run.agreement.hear({name: metrics.pop(name) for name in SAID})
            run.record(metrics)

        for done in run.updates():
            with run.timed("collect"), torch.no_grad(), in_precision():
                rollout = learner.collect(collector)
                rows, metrics = learner.prepare(rollout, estimate(rollout), run.agreement.sum)
            run.record_rollout(rollout)
            run.record(metrics)
            run.record({"Info/transfer_bytes": exchange.num_bytes})

            # With --overlap the trainers learned from the last rollout while this one was collected.
            if exchange.awaits_weights():
                take_weights()
            run.agreement.look()
            with run.timed("transfer"):
                last = run.fraction_done(run.agreement.num_steps) >= 1
                exchange.send_rows(rows, Order(run.agreement.save, run.agreement.stop, last, done))
            if not config.overlap:
                take_weights()

        if exchange.awaits_weights():
            take_weights()
        run.finish()


def trainer(config: DecoupledConfig) -> None:
    """Learns from its part of the player's rollouts, together with the other trainers."""
    learner = config.learner
    env = one_env(config)
    gpu = local_rank() - on_first_machine()
    fabric = fabric_on(torch.device("cuda", gpu) if config.cuda else CPU, config)
    folder = open_run(config, PROGRAM, "gloo")
    trainers = Ranks.of(group_trainers(config))

    torch.manual_seed(config.seed)
    policy = Agent(env.spaces, config.network)
    if config.fp8:
        to_float8(policy, fabric.device)
    module = fabric.setup_module(policy)
    agent = DistributedDataParallel(module, process_group=trainers.group) if trainers.size > 1 else module
    weights = Weights(policy)
    precision = fabric.strategy.precision
    scaler = getattr(precision, "scaler", None)
    # Fabric does not clip what a fused Adam unscales itself.
    adam = make_adam(weights, learner.learning_rate, fused=scaler is None)
    optimizer = cast(torch.optim.Adam, fabric.setup_optimizers(adam))
    execution = config.make_execution(fabric.device)
    exchange = make_exchange(config, env, policy, fabric.device)
    shuffle = Shuffle(config.seed, trainers.rank, trainers.size, shared=config.share_data, device=fabric.device)
    requests = Requests()
    agreement = Agreement(trainers, requests, (weights.vector, *adam.state[weights.vector].values()))
    averages = Averages(fabric.device, agreement.sum)

    def eager_gradient_step(minibatch: Rows) -> Metrics:
        loss, metrics = learner.loss(agent, minibatch)
        optimizer.zero_grad(set_to_none=False)
        fabric.backward(loss)
        # A gradient that is not finite is no error here: under fp16 it tells the loss scaler to skip the step.
        norm = cast(
            Tensor, fabric.clip_gradients(agent, optimizer, max_norm=learner.max_grad_norm, error_if_nonfinite=False)
        )
        weights.keep_finite(norm)
        optimizer.step()
        return metrics | gradient_metrics(norm, trainers, scaled=scaler is not None)

    gradient_step: Callable[[Rows], Metrics] = eager_gradient_step
    if execution.mode != "eager":
        autocast = AUTOCAST.get(precision.precision)
        gradient_step = GradientStep(learner, policy, weights, adam, trainers, execution, autocast, scaler)

    state = State(own={"shuffle": shuffle}, shared=learning(policy, weights.vector, adam, scaler))
    everyone, ended = Ranks.of(), False
    if folder.checkpoint is not None:
        state.load(folder.checkpoint["ranks"], everyone)
        ended = folder.checkpoint["run"]["step"] >= config.last_step()
    with requests:
        requests.in_loop = True
        while not ended:
            with averages.timed("trainer_wait"):
                rows, order = exchange.receive_rows()
            ended = order.last == 1
            learning_rate = learner.learning_rate_at(order.done)
            adam.param_groups[0]["lr"].fill_(learning_rate)
            loss_scale = scaler.get_scale() if scaler else 1.0
            averages.add({"Info/learning_rate": learning_rate, "Info/loss_scale": loss_scale})

            with averages.timed("learn"):
                for minibatch in learner.minibatches(rows, shuffle):
                    metrics = gradient_step(minibatch)
                    averages.add(metrics)
                    if learner.should_stop(metrics, trainers.mean):
                        break
            means = averages.take()
            agreement.look()
            exchange.send_weights(means | agreement.said())
            if order.save or order.stop:
                state.gather(everyone, leads=trainers.rank == 0)
            if order.stop:
                raise StopError(order.stop, "as the player says")
        state.gather(everyone, leads=trainers.rank == 0)


def fabric_on(device: torch.device, config: DecoupledConfig) -> Fabric:
    """A Fabric for this rank alone."""
    precision = None if "LT_PRECISION" in os.environ else config.precision
    if device.type == "cuda":
        torch.cuda.set_device(device)  # what is captured is captured on the current one
    return Fabric(accelerator=device.type, strategy=SingleDeviceStrategy(device), precision=precision)


def group_trainers(config: DecoupledConfig) -> dist.ProcessGroup:
    """The process group of the trainers, which all ranks make together."""
    timeout = timedelta(seconds=config.rank_timeout)
    backend = "nccl" if config.cuda else "gloo"
    group = dist.new_group(list(range(1, world_size())), backend=backend, timeout=timeout)
    return cast(dist.ProcessGroup, group)


def one_env(config: DecoupledConfig) -> Envs:
    """A single environment, to tell spaces and types."""
    return make_envs(config.env.for_evaluation(1))


def make_exchange(config: DecoupledConfig, env: Envs, policy: Agent, device: torch.device) -> Exchange:
    """This rank's end of the exchange; one row from a single environment tells both ends what travels."""
    learner = config.learner
    with torch.no_grad():
        rollout = make_collector(env.to(device), policy, seed=config.seed, first_env=0).collect(1)
        like, _ = learner.prepare(rollout, learner.estimate(policy, rollout), ALONE.sum)
        _, metrics = learner.loss(policy, like)
    return Exchange(
        policy,
        like,
        (*metrics, *TRAINER_METRICS),
        num_rows=config.steps_per_update(),
        num_trainers=config.num_trainers(),
        shared=config.share_data,
        pinned=config.cuda,
    )


def told() -> dict[str, Any]:
    """What `fabric run` was told, apart from the accelerator: --cuda chooses that here, for the trainers alone."""
    accelerator = os.environ.pop("LT_ACCELERATOR", "auto")
    require(accelerator in ("auto", "cpu"), "--accelerator", accelerator, "say --cuda after the program instead")
    return told_to_fabric()


if __name__ == "__main__":
    command_line(main, {"ppo": DecoupledConfig()}, PROGRAM, told)
