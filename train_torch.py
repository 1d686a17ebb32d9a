"""The program of train_fabric.py with `torch.distributed` spelled out: `torchrun train_torch.py`."""

import signal

if __name__ == "__main__":  # Ctrl-C during the imports below prints no traceback
    signal.signal(signal.SIGINT, signal.SIG_DFL)

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import clip_grad_norm_
from torch.optim import Adam

from rl.cli import command_line
from rl.config import CONFIGS, Config
from rl.dist.ranks import Ranks
from rl.envs.masks import Mask
from rl.envs.observations import Obs
from rl.learners.learner import Metrics, gradient_metrics
from rl.models.agent import Output
from rl.run.folder import join_ranks
from rl.run.loggers import make_loggers
from rl.session import Session

PROGRAM = "torch_logs"  # the folder of its runs, below --log-dir


def main(config: Config[Any]) -> None:
    """One training run."""
    device = config.device()
    with Session(config, PROGRAM, device) as session:
        join_ranks(config, "nccl" if config.cuda else "gloo", session.folder)
        ranks = Ranks.of()
        scaler = torch.amp.GradScaler(device.type, enabled=config.precision == "16-mixed")
        agent = session.make_agent(ranks, config.precision, scaler)
        gradient_step: Callable[[Any], Metrics]
        if session.execution.mode == "eager":
            gradient_step = eager_step(session, DistributedDataParallel(agent) if ranks.size > 1 else agent, scaler)
        else:  # GPUs, and long runs on a CPU: the same arithmetic compiled, since most of an eager step is overhead
            gradient_step = session.compiled_step()

        run = session.start(make_loggers(config, session.folder))
        learner = session.learner
        for _ in run.updates():
            with run.timed("collect"), torch.no_grad(), session.autocast():
                rollout = learner.collect(session.collector)
                estimates = session.estimate(rollout)
                samples, metrics = learner.prepare(rollout, estimates, run.sum(estimates.sums, rollout))
            run.record_rollout(rollout, metrics)

            with run.timed("learn"):
                for minibatch in session.minibatches(learner.shared(samples, session.ranks), rollout):
                    if run.learned(gradient_step(minibatch)):
                        break
        run.finish()


def eager_step(session: Session, module: nn.Module, scaler: torch.amp.GradScaler) -> Callable[[Any], Metrics]:
    """The gradient step of short runs on a CPU; `module` is the agent, wrapped by DDP where there are several ranks."""
    learner, weights, optimizer = session.learner, session.weights, cast(Adam, session.optimizer)
    max_norm = learner.config.max_grad_norm
    session.ranks.average_in_backward(module, weights.gradient)

    def forward(obs: Obs, mask: Mask = (), *past: Tensor) -> Output:
        with session.autocast():  # the network alone: losses are computed in float32
            return cast(Output, module(obs, mask, *past))

    def gradient_step(minibatch: Any) -> Metrics:
        loss, metrics = learner.loss(forward, minibatch)
        optimizer.zero_grad(set_to_none=False)  # gradients are views of one vector
        scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
        scaler.unscale_(optimizer)
        norm = clip_grad_norm_([weights.vector], max_norm)
        weights.keep_finite(norm)
        scaler.step(optimizer)
        scaler.update()
        return metrics | gradient_metrics(norm, session.ranks, scaled=scaler.is_enabled())

    return gradient_step


if __name__ == "__main__":
    command_line(main, CONFIGS, PROGRAM)
