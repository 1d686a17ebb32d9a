"""Every rank collects and learns; Fabric launches ranks and synchronizes gradients: `fabric run train_fabric.py`."""

import signal

if __name__ == "__main__":  # Ctrl-C during the imports below prints no traceback
    signal.signal(signal.SIGINT, signal.SIG_DFL)

import os
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, cast, get_args

import torch
from torch import Tensor, nn
from torch.optim import Adam

from rl.cli import command_line
from rl.config import CONFIGS, Config, Precision
from rl.dist.launch import world_size
from rl.dist.ranks import Ranks
from rl.errors import UserError, require
from rl.learners.learner import Metrics, gradient_metrics
from rl.run.folder import join_ranks
from rl.run.loggers import make_loggers
from rl.session import Session

if TYPE_CHECKING:  # Lightning takes 3 s to import: functions do that, so that --help and wrong flags need not wait
    from lightning.fabric import Fabric

PROGRAM = "fabric_logs"  # the folder of its runs, below --log-dir


def main(config: Config[Any]) -> None:
    """One training run."""
    from lightning.fabric import Fabric

    with Session(config, PROGRAM, config.device()) as session:
        join_ranks(config, "nccl" if config.cuda else "gloo", session.folder)
        loggers = make_loggers(config, session.folder)
        accelerator = os.environ.get("LT_ACCELERATOR", session.device.type)
        fabric = Fabric(accelerator=accelerator, loggers=cast(Any, loggers), precision=precision_flag(config))
        agent = session.make_agent(Ranks.of(), *precision_of(fabric))
        gradient_step: Callable[[Any], Metrics]
        if session.execution.mode == "eager":
            gradient_step = eager_step(session, fabric, fabric.setup_module(agent))
        else:  # GPUs, and long runs on a CPU: the same arithmetic compiled, since most of an eager step is overhead
            gradient_step = session.compiled_step()

        run, learner = session.start(loggers), session.learner
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


def eager_step(session: Session, fabric: "Fabric", module: nn.Module) -> Callable[[Any], Metrics]:
    """The gradient step of short runs on a CPU; `module` is the agent as wrapped by Fabric and DDP."""
    learner, weights = session.learner, session.weights
    optimizer = cast(Adam, fabric.setup_optimizers(cast(Adam, session.optimizer)))
    max_norm = learner.config.max_grad_norm
    session.ranks.average_in_backward(module, weights.gradient)

    def gradient_step(minibatch: Any) -> Metrics:
        loss, metrics = learner.loss(module, minibatch)
        optimizer.zero_grad(set_to_none=False)  # gradients are views of one vector
        fabric.backward(loss)
        # A gradient that is not finite is no error here: under fp16 it tells the loss scaler to skip the step.
        norm = fabric.clip_gradients(module, optimizer, max_norm=max_norm, error_if_nonfinite=False)
        weights.keep_finite(cast(Tensor, norm))
        optimizer.step()
        return metrics | gradient_metrics(cast(Tensor, norm), session.ranks, scaled=session.scaler is not None)

    return gradient_step


def precision_flag(config: Config[Any]) -> Any:
    """The precision to construct Fabric with; None where it reads the option of `fabric run` from the environment."""
    return None if "LT_PRECISION" in os.environ else config.precision


def precision_of(fabric: "Fabric") -> tuple[str, Any]:
    """The precision that Fabric chose (on a CPU bf16-mixed in place of 16-mixed), and its loss scaler, if any."""
    precision = fabric.strategy.precision
    return precision.precision, getattr(precision, "scaler", None)


def told_to_fabric() -> dict[str, Any]:
    """The options of `fabric run`, which it leaves in the environment, as flags by their field in `Config`.

    Raises:
        UserError: The precision is unknown, or the strategy is not DDP.
    """
    strategy = os.environ.get("LT_STRATEGY", "auto")
    require(strategy.startswith(("auto", "ddp")), "--strategy", strategy, "gradients are averaged by ddp here")
    if world_size() > 1 and "LT_CLI_USED" not in os.environ:
        raise UserError(f"{world_size()} ranks: start this program with fabric run, or train_torch.py with torchrun")
    told: dict[str, Any] = {}
    if (precision := os.environ.get("LT_PRECISION")) is not None:
        told["precision"] = {"32": "32-true", "16": "16-mixed", "bf16": "bf16-mixed"}.get(precision, precision)
        known = get_args(Precision)
        require(told["precision"] in known, "--precision", precision, f"must be one of {', '.join(known)}")
    accelerator = os.environ.get("LT_ACCELERATOR", "")
    if accelerator == "cpu" and "--cuda" in sys.argv:
        raise UserError("--cuda: fabric run was told --accelerator=cpu; leave one of the two out")
    if accelerator in ("cuda", "gpu") or (accelerator == "auto" and torch.cuda.is_available()):
        told["cuda"] = True
    return told


if __name__ == "__main__":
    command_line(main, CONFIGS, PROGRAM, told_to_fabric)
