"""Adam on the vector of all weights, and the gradient step of compiled runs.

An eager gradient step of a small network is mostly overhead: it is a few hundred small operations of autograd, DDP and
the optimizer, and launching one from Python takes longer than its arithmetic. All parameters are therefore views of one
vector (`rl.models.agent.Weights`), so that clipping, Adam and the all-reduce are one operation each. `GradientStep`
turns everything between two collectives into one function of tensors, which `Execution` compiles or records.
"""

import contextlib
import functools
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.utils import clip_grad_norm_
from torch.optim import Adam

from rl import tree
from rl.compile import Execution
from rl.dist.ranks import Ranks
from rl.envs.masks import Mask
from rl.envs.observations import Obs
from rl.learners.learner import AnyLearner, Metrics, gradient_metrics
from rl.models.agent import Agent, Output, Weights, call_with

BETAS = (0.9, 0.999)
AUTOCAST = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}  # by Lightning's names
LOOP_BYTES = 2**26  # of the minibatches of an update, which a loop over them needs all at once
CACHE_BYTES = 2**19  # of a hidden layer's outputs, for a part: half of a core's L2 cache (docs/log.md)


def make_adam(weights: Weights, learning_rate: float, *, eps: float = 1e-5, fused: bool) -> Adam:
    """Adam (Kingma & Ba 2015) on the vector of all weights; the learning rate is a tensor to be changed in place."""
    vector = weights.vector
    on_gpu = vector.device.type == "cuda"
    rate = torch.tensor(learning_rate, device=vector.device)
    kind = Adam if vector.dtype == torch.float32 else RoundingAdam
    optimizer = kind([vector], lr=rate, betas=BETAS, eps=eps, fused=fused, capturable=on_gpu)
    # Adam creates its state at the first step; a compiled step needs it before.
    optimizer.state[vector] = {
        "step": torch.zeros((), device=vector.device),
        "exp_avg": torch.zeros_like(vector, dtype=torch.float32),
        "exp_avg_sq": torch.zeros_like(vector, dtype=torch.float32),
    }
    return optimizer


class RoundingAdam(Adam):
    """Adam whose moments are float32 and whose weights are bf16, rounded after each step.

    A step changes the second moment by about a thousandth of its value, which the 8 significant bits of bf16 cannot
    represent. Steps smaller than half of a weight's last bit are still lost.
    """

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """One step; `Adam.step` requires moments of the same dtype as the weights."""
        adam_step(Trained.of(self), self.param_groups[0]["params"][0].grad, self.param_groups[0])


class Trained(NamedTuple):
    """The tensors that a gradient step changes."""

    vector: Tensor  # [P], all weights
    exp_avg: Tensor  # [P] float32, Adam's moments
    exp_avg_sq: Tensor
    step: Tensor  # [] float32

    @classmethod
    def of(cls, optimizer: Adam) -> "Trained":
        (vector,) = optimizer.param_groups[0]["params"]
        state = optimizer.state[vector]
        return cls(vector.detach(), state["exp_avg"], state["exp_avg_sq"], state["step"])


def adam_step(now: Trained, gradient: Tensor, group: Mapping[str, Any]) -> None:
    """Adam's step in place: what `Adam.step` does, through whose hooks no compiler sees."""
    exact = now.vector.float()  # a copy only where it is bf16
    gradient = gradient.float()
    beta1, beta2 = BETAS
    now.step.add_(1)
    # Powers of the betas as exponentials, which Inductor computes once on the CPU; `pow` for every few weights anew.
    step_size = group["lr"] / (1 - torch.exp(now.step * math.log(beta1)))
    scale = torch.rsqrt(1 - torch.exp(now.step * math.log(beta2)))
    now.exp_avg.lerp_(gradient, 1 - beta1)
    now.exp_avg_sq.mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
    exact.sub_(step_size * now.exp_avg / (now.exp_avg_sq.sqrt() * scale + group["eps"]))
    if now.vector.dtype != exact.dtype:
        now.vector.copy_(exact)


def clipped(gradient: Tensor, max_norm: float) -> tuple[Tensor, Tensor]:
    """The gradient scaled to a norm of at most `max_norm`, and its norm before.

    It is 0 if the norm is NaN or infinite, so that no such number reaches a weight.
    """
    norm = torch.linalg.vector_norm(gradient)
    scaled = gradient * (max_norm / (norm + 1e-6)).clamp(max=1.0)  # as `clip_grad_norm_` does
    return scaled.masked_fill(~norm.isfinite(), 0), norm


class Epochs(NamedTuple):
    """All gradient steps of an update: what they learn from, and which rows each of them takes."""

    samples: Any  # [B, ...]
    rows: Tensor  # [K, b] int64


class Steps(NamedTuple):
    """What a compiled loop over gradient steps returns of each."""

    metrics: Metrics  # [K]


class GradientStep:
    """The programs' gradient step as one compiled or recorded function, or as two with an all-reduce between them.

    On the CPU all steps of an update can be one compiled loop, where nothing happens between them (`Epochs`) but an
    average over ranks that share memory.

    On the CPU a large minibatch is split into parts whose activations fit in the cache, and the gradients of the parts
    are added up. What a loss computes over its minibatch (the standard deviation of the actor-critic's advantages, the
    scales of float8) is then computed over a part.
    """

    def __init__(
        self,
        learner: AnyLearner,
        policy: Agent,
        weights: Weights,
        optimizer: Adam,
        ranks: Ranks,
        execution: Execution,
        autocast: torch.dtype | None = None,
        scaler: torch.amp.GradScaler | None = None,
        *,
        compiles: bool = True,
    ) -> None:
        """`autocast` is the dtype of matrix products; fp16 needs a loss `scaler`."""
        self.learner = learner
        self.policy = policy
        self.weights = weights
        self.optimizer = optimizer
        self.ranks = ranks
        self.autocast = autocast
        self.scaler = scaler
        self.one = torch.ones((), device=weights.vector.device)
        self.trained = Trained.of(optimizer)
        self.add_gradient = execution.step(self._add_gradient, [weights.gradient], compiles=compiles)
        # The loss scaler decides on the host whether to step, so it is not compiled.
        self.apply = self._apply_scaled if self.scaler else execution.step(self._apply, state=self.trained)
        self.whole = execution.step(self._whole, self.trained, compiles=compiles)
        # A loop over steps is worth compiling where they are small, and there is nothing to do between them.
        self.compiles_loops = execution.mode == "compile" and execution.device.type == "cpu" and compiles
        self.loop = execution.loop(self._loop)

    def __call__(self, minibatch: Any) -> Metrics:
        """Takes a step on a minibatch [b, ...], or all steps of `Epochs`; returns the metrics, or their means."""
        if isinstance(minibatch, Epochs):
            with self.ranks.telling():
                return self.loop(minibatch)
        num_parts = self._num_parts(minibatch.weight)
        if num_parts == 1 and self.ranks.size == 1 and self.scaler is None:
            return self.whole(minibatch)
        scale = self.scaler.scale(self.one) if self.scaler else self.one
        self.weights.gradient.zero_()
        metrics: Metrics = {}
        for part in tree.split(minibatch, num_parts):
            share = len(part.weight) / len(minibatch.weight)
            of_part = self.add_gradient(part, scale * share)
            metrics = {name: metrics.get(name, 0.0) + share * value for name, value in of_part.items()}
        self.ranks.average(self.weights.gradient)
        return metrics | self.apply()

    def takes_loops(self, samples: Any, num_epochs: int, num_rows: int) -> bool:
        """Whether all steps of these epochs, on minibatches of so many rows, run as one compiled loop."""
        num_bytes = num_epochs * sum(field.nbytes for field in tree.leaves(samples))
        small = self._num_parts(samples.weight[:num_rows]) == 1 and num_bytes <= LOOP_BYTES
        fits = self.compiles_loops and self.scaler is None and samples.weight.dim() == 1 and small
        return fits and self.ranks.average_in_loops(self.weights.gradient)

    def _num_parts(self, weight: Tensor) -> int:
        if weight.device.type != "cpu":
            return 1
        if weight.dim() > 1:
            return 1  # pieces: a layer's outputs for one of their steps are small
        row_bytes = self.policy.critic.in_features * (2 if self.autocast else self.weights.vector.element_size())
        return math.ceil(len(weight) / max(CACHE_BYTES // row_bytes, 256))

    def _add_gradient(self, rows: Any, scale: Tensor) -> Metrics:
        gradient, metrics = self._gradient(self.trained.vector, rows, scale)
        self.weights.gradient.add_(gradient)
        return metrics

    def _gradient(self, vector: Tensor, rows: Any, scale: Tensor) -> tuple[Tensor, Metrics]:
        # Inside a compiled loop `torch.autograd.grad` does not work.
        gradient, metrics = torch.func.grad(self._loss, has_aux=True)(vector, rows, scale)
        return gradient, metrics

    def _loss(self, vector: Tensor, rows: Any, scale: Tensor) -> tuple[Tensor, Metrics]:
        # Autograd sees the vector as the only leaf, instead of each parameter, which is a view of it.
        loss, metrics = self.learner.loss(functools.partial(self._agent, vector), rows)
        return loss * scale, metrics

    def _agent(self, vector: Tensor, obs: Obs, mask: Mask = (), *past: Tensor) -> Output:
        precision = torch.autocast(vector.device.type, self.autocast) if self.autocast else contextlib.nullcontext()
        with precision:
            return call_with(self.policy, vector, obs, mask, *past)

    def _apply(self) -> Metrics:
        return self._descend(self.trained, self.weights.gradient)

    @torch.no_grad()
    def _descend(self, now: Trained, gradient: Tensor) -> Metrics:
        """Takes Adam's step in place."""
        gradient, norm = clipped(gradient, self.learner.config.max_grad_norm)
        adam_step(now, gradient, self.optimizer.param_groups[0])
        return gradient_metrics(norm, self.ranks, scaled=False)

    def _apply_scaled(self) -> Metrics:
        assert self.scaler is not None
        self.scaler.unscale_(self.optimizer)
        norm = clip_grad_norm_([self.weights.vector], self.learner.config.max_grad_norm)
        self.weights.keep_finite(norm)
        self.scaler.step(self.optimizer)  # skips the step if `unscale_` found NaN or infinity
        self.scaler.update()
        return gradient_metrics(norm, self.ranks, scaled=True)

    def _whole(self, minibatch: Any) -> Metrics:
        gradient, metrics = self._gradient(self.trained.vector, minibatch, self.one)
        return metrics | self._descend(self.trained, gradient)

    def _loop(self, epochs: Epochs) -> Metrics:
        minibatches = tree.index(epochs.samples, epochs.rows)

        def step(before: Trained, *fields: Tensor) -> tuple[Trained, Steps]:
            now = tree.map(torch.clone, before)
            gradient, metrics = self._gradient(now.vector, tree.rebuilt(minibatches, fields), self.one)
            return now, Steps(metrics | self._descend(now, self.ranks.averaged(gradient)))

        after, steps = tree.scan(step, self.trained, tuple(tree.leaves(minibatches)), Steps)
        for tensor, value in zip(self.trained, after, strict=True):
            tensor.copy_(value)
        return {name: values.mean() for name, values in steps.metrics.items()}
