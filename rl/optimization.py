"""How gradients become weights: all parameters as one vector, Adam on it, and a gradient step free of Python's cost."""

import contextlib
import functools
import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_
from torch.optim.adam import Adam, adam

from rl.compile import Execution
from rl.dist.ranks import Ranks
from rl.learners.learner import AnyLearner, Metrics
from rl.models.agent import Agent, call_with, weight_vector, weight_views
from rl.models.distributions import Distribution

BETAS, EPS = (0.9, 0.999), 1e-5
AUTOCAST = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}  # by Lightning's names
CACHE_BYTES = 2**19  # of a hidden layer's outputs: half of a core's second-level cache (docs/log.md)


class Weights:
    """A policy's parameters and their gradients as two vectors, of which they are views."""

    def __init__(self, policy: nn.Module) -> None:
        """Moves the parameters of `policy` into the vector; it must not change device or dtype any more."""
        self.vector = nn.Parameter(weight_vector(policy))
        self.gradient = torch.zeros_like(self.vector, requires_grad=False)
        self.vector.grad = self.gradient
        views, gradients = (weight_views(policy, vector) for vector in (self.vector.detach(), self.gradient))
        for name, parameter in policy.named_parameters():
            parameter.data, parameter.grad = views[name], gradients[name]

    def keep_finite(self, norm: Tensor) -> None:
        """Makes the gradient 0 if its norm is not finite, so that no such number gets into a weight."""
        self.gradient.masked_fill_(~norm.isfinite(), 0)


def make_adam(weights: Weights, learning_rate: float, *, fused: bool) -> Adam:
    """Adam (Kingma & Ba 2015) on the vector of all weights, with its state in place and a tensor as learning rate."""
    vector = weights.vector
    on_gpu = vector.device.type == "cuda"
    rate = torch.tensor(learning_rate, device=vector.device)
    kind = Adam if vector.dtype == torch.float32 else RoundingAdam
    optimizer = kind([vector], lr=rate, betas=BETAS, eps=EPS, fused=fused, capturable=on_gpu)
    # What the first step would make, so that a compiled or captured step finds it.
    optimizer.state[vector] = {
        "step": torch.zeros((), device=vector.device),
        "exp_avg": torch.zeros_like(vector, dtype=torch.float32),
        "exp_avg_sq": torch.zeros_like(vector, dtype=torch.float32),
    }
    return optimizer


class RoundingAdam(Adam):
    """Adam in float32, whose weights in bf16 are rounded after the step.

    A step changes the second moment by a thousandth, of which the 8 bits of a bf16 number know nothing. A step of less
    than half a weight's last bit is lost all the same.
    """

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """One step; torch's own wants moments of the weights' precision."""
        adam_step(self)


def adam_step(optimizer: Adam) -> None:
    """What `Adam.step` does, without its hooks, which no compiler sees through."""
    (group,) = optimizer.param_groups
    (vector,) = group["params"]
    state, exact = optimizer.state[vector], vector.detach().float()  # the vector itself, if it is float32
    adam(
        [exact],
        [vector.grad.float()],
        [state["exp_avg"]],
        [state["exp_avg_sq"]],
        [],
        [state["step"]],
        foreach=False,
        capturable=group["capturable"],
        amsgrad=False,
        beta1=BETAS[0],
        beta2=BETAS[1],
        lr=group["lr"],
        weight_decay=0.0,
        eps=EPS,
        maximize=False,
    )
    if vector.dtype != exact.dtype:
        vector.copy_(exact)


def gradient_metrics(norm: Tensor, ranks: Ranks, *, scaled: bool) -> Metrics:
    """What to log of a gradient that all ranks share.

    With a scaled loss a norm that is not finite is no error: it says that fp16 overflowed. The step is then skipped,
    and counts as norm 0.
    """
    finite = norm.isfinite()
    skipped = (~finite).float() / ranks.size  # of which every rank counts its part
    return {"Info/grad_norm": torch.where(finite, norm, 0.0) if scaled else norm, "Count/skipped_steps": skipped}


class GradientStep:
    """A gradient step of one or two functions of tensors, compiled or captured, with one all-reduce between the two.

    The arithmetic is that of the step in the programs. On the CPU a large minibatch is cut into parts whose
    activations stay in the cache, and the parts' gradients are added up: what a loss takes over its minibatch (the
    standard deviation of the actor-critic's advantages, the scales of float8) is then that of a part.
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
    ) -> None:
        """`autocast` is what matrix products are computed in; fp16 wants an enabled `scaler` of the loss too."""
        self.learner = learner
        self.policy = policy
        self.weights = weights
        self.optimizer = optimizer
        self.ranks = ranks
        self.autocast = autocast
        self.scaler = scaler if scaler and scaler.is_enabled() else None
        self.one = torch.ones((), device=weights.vector.device)
        adam_state = optimizer.state[weights.vector]
        state = [weights.vector, weights.gradient, *adam_state.values()]
        self.add_gradient = execution.step(self._add_gradient, state=[weights.gradient])
        # The loss scaler keeps its own books, and is not compiled.
        self.apply = self._apply_scaled if self.scaler else execution.step(self._apply, state=state)
        self.whole = execution.step(self._whole, state=state)

    def __call__(self, minibatch: Any) -> Metrics:
        """Changes the weights by a minibatch [b, ...]: what to log of it."""
        num_parts = self._num_parts(minibatch)
        if num_parts == 1 and self.ranks.size == 1 and self.scaler is None:
            return self.whole(minibatch)
        parts = map(type(minibatch)._make, zip(*(field.tensor_split(num_parts) for field in minibatch), strict=True))
        scale = self.scaler.scale(self.one) if self.scaler else self.one
        self.weights.gradient.zero_()
        metrics: Metrics = {}
        for part in parts:
            share = len(part.weight) / len(minibatch.weight)
            of_part = self.add_gradient(part, scale * share)
            metrics = {name: metrics.get(name, 0.0) + share * value for name, value in of_part.items()}
        self.ranks.average(self.weights.gradient)
        return metrics | self.apply()

    def _num_parts(self, minibatch: Any) -> int:
        if minibatch.weight.device.type != "cpu":
            return 1
        row_bytes = self.policy.critic.in_features * (2 if self.autocast else self.weights.vector.element_size())
        return math.ceil(len(minibatch.weight) / max(CACHE_BYTES // row_bytes, 256))

    def _add_gradient(self, rows: Any, scale: Tensor) -> Metrics:
        vector = self.weights.vector.detach().requires_grad_()
        loss, metrics = self.learner.loss(functools.partial(self._agent, vector), rows)
        (gradient,) = torch.autograd.grad(loss * scale, vector)
        self.weights.gradient.add_(gradient)
        return metrics

    def _agent(self, vector: Tensor, obs: Tensor) -> tuple[Distribution, Tensor]:
        """The policy with these weights."""
        precision = torch.autocast(obs.device.type, self.autocast) if self.autocast else contextlib.nullcontext()
        with precision:
            return call_with(self.policy, vector, obs)

    @torch.no_grad()
    def _apply(self) -> Metrics:
        norm = clip_grad_norm_([self.weights.vector], self.learner.max_grad_norm, foreach=False)
        self.weights.keep_finite(norm)
        adam_step(self.optimizer)
        return gradient_metrics(norm, self.ranks, scaled=False)

    def _apply_scaled(self) -> Metrics:
        assert self.scaler is not None
        self.scaler.unscale_(self.optimizer)
        norm = clip_grad_norm_([self.weights.vector], self.learner.max_grad_norm)
        self.weights.keep_finite(norm)
        self.scaler.step(self.optimizer)  # or not, where `unscale_` found what is not finite
        self.scaler.update()
        return gradient_metrics(norm, self.ranks, scaled=True)

    def _whole(self, minibatch: Any) -> Metrics:
        self.weights.gradient.zero_()
        return self._add_gradient(minibatch, self.one) | self._apply()
