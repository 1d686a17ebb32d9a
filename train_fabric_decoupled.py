"""Rank 0 collects, the other ranks learn: `fabric run --devices=3 train_fabric_decoupled.py`."""

import signal

if __name__ == "__main__":  # Ctrl-C during the imports below prints no traceback
    signal.signal(signal.SIGINT, signal.SIG_DFL)

import os
import time
from collections.abc import Callable
from contextlib import closing
from datetime import timedelta
from typing import TYPE_CHECKING, Any, cast

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from rl.cli import command_line
from rl.collector import make_collector
from rl.config import DecoupledConfig
from rl.dist.launch import local_rank, local_world_size, on_first_machine, rank, world_size
from rl.dist.ranks import Ranks
from rl.errors import require
from rl.exchange import PLAYER, Exchange
from rl.learners.learner import Metrics
from rl.run.control import ASKED
from rl.run.folder import join_ranks
from rl.run.loggers import make_loggers
from rl.run.orders import COMPILED, follow, order_of
from rl.session import Session, one_env
from train_fabric import eager_step, precision_flag, precision_of, told_to_fabric

if TYPE_CHECKING:  # as in train_fabric.py
    from lightning.fabric import Fabric

ALONE = Ranks()
CPU = torch.device("cpu")
TRAINER_METRICS = (
    "Info/grad_norm",
    "Time/trainer_wait_seconds",
    "Time/learn_seconds",
    COMPILED,
    *ASKED,
)
PROGRAM = "fabric_decoupled_logs"  # the folder of its runs, below --log-dir


def main(config: DecoupledConfig) -> None:
    """One training run."""
    # Ranks do different things, so each has its own Fabric, on one device.
    os.environ.pop("LT_STRATEGY", None)
    os.environ |= {"LT_DEVICES": "1", "LT_NUM_NODES": "1"}
    (player if rank() == PLAYER else trainer)(config)


def player(config: DecoupledConfig) -> None:
    """Collects rollouts for the trainers, with the weights that they send back."""
    # A GPU that no trainer uses, if there is one.
    gpu = min(local_world_size() - 1, torch.cuda.device_count() - 1)
    with Session(config, PROGRAM, torch.device("cuda", gpu) if config.player_on_gpu else CPU) as session:
        join_ranks(config, "gloo", session.folder)
        group_trainers(config)
        session.make_agent(ALONE, *precision_of(fabric_on(session.device, config)), learns=False)
        exchange = make_exchange(config, session)
        loggers = make_loggers(config, session.folder)
        run = session.start(loggers, policy=session.agent, exchange=exchange)
        learner = session.learner

        def take_weights() -> None:
            began_at = time.perf_counter()
            with run.timed("player_wait"):
                metrics = exchange.receive_weights()
            # Of the seconds for which trainers compiled, speed leaves out those that were waited for.
            session.execution.compile_seconds += min(metrics.pop(COMPILED), time.perf_counter() - began_at)
            run.control.from_trainers({name: metrics.pop(name) for name in ASKED})
            run.record(metrics)

        for done in run.updates():
            with run.timed("collect"), torch.no_grad(), session.autocast():
                rollout = learner.collect(session.collector)
                estimates = session.estimate(rollout)
                samples, metrics = learner.prepare(rollout, estimates, run.sum(estimates.sums, rollout))
            run.record_rollout(rollout, metrics)
            if run.update == 0:  # every update's are as many
                run.record({"Info/transfer_bytes": exchange.num_bytes})

            # With --overlap the trainers learned from the last rollout while this one was collected.
            if exchange.awaits_weights():
                take_weights()
            run.control.read()
            with run.timed("transfer"):
                exchange.send_rows(samples, order_of(run, done))
            if not config.overlap:
                take_weights()

        if exchange.awaits_weights():
            take_weights()
        run.finish()


def trainer(config: DecoupledConfig) -> None:
    """Learns from its part of the player's rollouts, together with the other trainers."""
    device = torch.device("cuda", local_rank() - on_first_machine()) if config.cuda else CPU
    with Session(config, PROGRAM, device, plays=False) as session:
        join_ranks(config, "gloo", session.folder)
        fabric = fabric_on(device, config)
        trainers = Ranks.of(group_trainers(config))
        agent = session.make_agent(trainers, *precision_of(fabric))
        gradient_step: Callable[[Any], Metrics]
        if session.execution.mode == "eager":
            module = fabric.setup_module(agent)
            if trainers.size > 1:
                module = cast(Any, DistributedDataParallel(module, process_group=trainers.group))
            gradient_step = eager_step(session, fabric, module)
        else:
            gradient_step = session.compiled_step()
        exchange = make_exchange(config, session)

        run = session.start()
        for samples in follow(run, exchange):
            with run.timed("learn"):
                for minibatch in session.minibatches(samples):
                    if run.learned(gradient_step(minibatch)):
                        break
        run.finish()


def fabric_on(device: torch.device, config: DecoupledConfig) -> "Fabric":
    """A Fabric for this rank alone."""
    from lightning.fabric import Fabric
    from lightning.fabric.strategies.single_device import SingleDeviceStrategy

    return Fabric(accelerator=device.type, strategy=SingleDeviceStrategy(device), precision=precision_flag(config))


def group_trainers(config: DecoupledConfig) -> dist.ProcessGroup:
    """The process group of the trainers, which all ranks must create together."""
    timeout = timedelta(seconds=config.rank_timeout)
    backend = "nccl" if config.cuda else "gloo"
    group = dist.new_group(list(range(1, world_size())), backend=backend, timeout=timeout)
    return cast(dist.ProcessGroup, group)


def make_exchange(config: DecoupledConfig, session: Session) -> Exchange:
    """This rank's end of the exchange; both ends take dtypes and shapes from a row of a single environment."""
    agent, learner = session.agent, session.learner
    with torch.no_grad(), closing(one_env(config)) as env:
        collector = make_collector(env.to(session.device), agent, seed=config.seed, first_env=0)
        rollout = collector.collect(config.steps_per_row())
        estimates = learner.estimate(agent, rollout)
        like, _ = learner.prepare(rollout, estimates, estimates.sums)
        _, metrics = learner.loss(agent, like)
    names = (
        *metrics,
        *TRAINER_METRICS,
        *(["Info/learning_rate"] if config.learner.schedule != "constant" else []),
        *(["Info/loss_scale", "Count/skipped_steps"] if config.cuda and config.precision == "16-mixed" else []),
    )
    return Exchange(
        agent,
        like,
        names,
        num_rows=config.steps_per_update() // config.steps_per_row(),
        num_trainers=config.num_trainers(),
        shared=config.learner.share_data,
        pinned=config.cuda,
    )


def told_to_each_fabric() -> dict[str, Any]:
    """The options of `fabric run` as flags, without the device: it differs between ranks, and --cuda sets it."""
    accelerator = os.environ.pop("LT_ACCELERATOR", "auto")
    require(accelerator in ("auto", "cpu"), "--accelerator", accelerator, "use --cuda after the program instead")
    return told_to_fabric()


if __name__ == "__main__":
    command_line(main, {"ppo": DecoupledConfig()}, PROGRAM, told_to_each_fabric)
