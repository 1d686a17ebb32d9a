"""Adam on the vector of all weights, and the gradient step of compiled runs.

An eager gradient step of a small network is mostly overhead: it is a few hundred small operations of autograd, DDP and
the optimizer, and launching one from Python takes longer than its arithmetic. All parameters are therefore views of one
vector (`rl.models.agent.Weights`), so that clipping, Adam and the all-reduce are one operation each. `GradientStep`
turns everything between two collectives into one function of tensors, which `Execution` compiles or records.
"""

import contextlib
import functools
import math
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils import clip_grad_norm_
from torch.optim.adam import Adam, adam

from rl import tree
from rl.compile import Execution
from rl.dist.ranks import Ranks
from rl.envs.masks import Mask
from rl.envs.observations import Obs
from rl.learners.learner import AnyLearner, Metrics, gradient_metrics
from rl.models.agent import Agent, Output, Weights, call_with

BETAS = (0.9, 0.999)
AUTOCAST = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}  # by Lightning's names
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
        adam_step(self)


def adam_step(optimizer: Adam) -> None:
    """`Adam.step` does the same, behind hooks that no compiler sees through."""
    (group,) = optimizer.param_groups
    (vector,) = group["params"]
    state, exact = optimizer.state[vector], vector.detach().float()  # a copy only where it is bf16
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
        eps=group["eps"],
        maximize=False,
    )
    if vector.dtype != exact.dtype:
        vector.copy_(exact)


class GradientStep:
    """The programs' gradient step as one compiled or recorded function, or as two with an all-reduce between them.

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
        adam_state = optimizer.state[weights.vector]
        state = [weights.vector, weights.gradient, *adam_state.values()]
        self.add_gradient = execution.step(self._add_gradient, [weights.gradient], compiles=compiles)
        # The loss scaler decides on the host whether to step, so it is not compiled.
        self.apply = self._apply_scaled if self.scaler else execution.step(self._apply, state=state)
        self.whole = execution.step(self._whole, state, compiles=compiles)

    def __call__(self, minibatch: Any) -> Metrics:
        """Takes a step on a minibatch [b, ...]; returns its metrics."""
        num_parts = self._num_parts(minibatch)
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

    def _num_parts(self, minibatch: Any) -> int:
        if minibatch.weight.device.type != "cpu":
            return 1
        if minibatch.weight.dim() > 1:
            return 1  # pieces: a layer's outputs for one of their steps are small
        row_bytes = self.policy.critic.in_features * (2 if self.autocast else self.weights.vector.element_size())
        return math.ceil(len(minibatch.weight) / max(CACHE_BYTES // row_bytes, 256))

    def _add_gradient(self, rows: Any, scale: Tensor) -> Metrics:
        # Autograd sees the vector as the only leaf, instead of each parameter, which is a view of it.
        vector = self.weights.vector.detach().requires_grad_()
        loss, metrics = self.learner.loss(functools.partial(self._agent, vector), rows)
        (gradient,) = torch.autograd.grad(loss * scale, vector)
        self.weights.gradient.add_(gradient)
        return metrics

    def _agent(self, vector: Tensor, obs: Obs, mask: Mask = (), *past: Tensor) -> Output:
        precision = torch.autocast(vector.device.type, self.autocast) if self.autocast else contextlib.nullcontext()
        with precision:
            return call_with(self.policy, vector, obs, mask, *past)

    @torch.no_grad()
    def _apply(self) -> Metrics:
        norm = clip_grad_norm_([self.weights.vector], self.learner.config.max_grad_norm, foreach=False)
        self.weights.keep_finite(norm)
        adam_step(self.optimizer)
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
        self.weights.gradient.zero_()
        return self._add_gradient(minibatch, self.one) | self._apply()
