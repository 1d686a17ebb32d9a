"""Distributions over actions, as NamedTuples of their parameters.

Samples are a function of the parameters and of uniform noise that the caller passes, so they are the same on every
device, eager or compiled, and need no generator.
"""

import math
from typing import NamedTuple, cast

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import softplus


class Categorical(NamedTuple):
    """Distribution over A discrete actions."""

    log_probs: Tensor  # [..., A], normalized

    @classmethod
    def from_logits(cls, logits: Tensor) -> "Categorical":
        """From unnormalized log-probabilities [..., A]."""
        return cls(torch.log_softmax(logits, dim=-1))

    def sample(self, noise: Tensor) -> Tensor:
        """Actions [...] (int64): the inverse CDF at uniform noise [..., 1]."""
        return (self.log_probs.exp().cumsum(-1)[..., :-1] <= noise).sum(-1)

    def mode(self) -> Tensor:
        """The most probable actions [...]."""
        return self.log_probs.argmax(-1)

    def log_prob(self, action: Tensor) -> Tensor:
        """Log-probability [...] of actions [...]."""
        return self.log_probs.gather(-1, action.unsqueeze(-1)).squeeze(-1)

    def entropy(self) -> Tensor:
        """Entropy [...] in nats."""
        return -(self.log_probs.exp() * self.log_probs).sum(-1)


class DiagonalGaussian(NamedTuple):
    """Independent normal distributions over the A components of an action."""

    mean: Tensor  # [..., A]
    log_std: Tensor  # [..., A]

    def sample(self, noise: Tensor) -> Tensor:
        """Actions [..., A]: the inverse CDF at uniform noise [..., A]."""
        return torch.addcmul(self.mean, self.log_std.exp(), torch.special.ndtri(noise))

    def mode(self) -> Tensor:
        return self.mean

    def log_prob(self, action: Tensor) -> Tensor:
        """Log-density [...] of actions [..., A]."""
        z = (action - self.mean) * (-self.log_std).exp()
        return -(0.5 * z.square() + self.log_std + 0.5 * math.log(2 * math.pi)).sum(-1)

    def entropy(self) -> Tensor:
        """Differential entropy [...] in nats."""
        return (self.log_std + 0.5 * math.log(2 * math.pi * math.e)).sum(-1)


class SquashedGaussian(NamedTuple):
    """The distribution of tanh(u), where u, which stands for the action, is from independent normal distributions.

    Whoever needs tanh(u) computes it (`BoxActions`), so that no probability needs the inverse of tanh, which does not
    exist where tanh(u) has been rounded to 1. Densities are those of tanh(u), whose bounds are -1 and 1.
    """

    mean: Tensor  # [..., A], of u
    log_std: Tensor  # [..., A], of u

    def sample(self, noise: Tensor) -> Tensor:
        """Actions u [..., A]: the inverse CDF at uniform noise [..., A]."""
        return DiagonalGaussian(*self).sample(noise)

    def mode(self) -> Tensor:
        """The median, as everybody takes it: the density of tanh(u) has no highest point if the deviation is large."""
        return self.mean

    def log_prob(self, action: Tensor) -> Tensor:
        """Log-density [...] of tanh(u) at actions u [..., A], by the change of variables."""
        return DiagonalGaussian(*self).log_prob(action) - log_slope(action).sum(-1)

    def entropy(self) -> Tensor:
        """Differential entropy [...] in nats: the Gaussian's plus the mean of tanh's log-slope, by Gauss and Hermite.

        Off by at most 0.002 a component where the standard deviation is at most 1, by 0.05 where it is 2. It has
        gradients for both parameters; the slope at the mean alone would not tell that a large deviation saturates tanh.
        """
        std = self.log_std.exp()
        slope = sum(weight * log_slope(self.mean + node * std) for node, weight in NODES)
        return DiagonalGaussian(*self).entropy() + cast(Tensor, slope).sum(-1)


def log_slope(u: Tensor) -> Tensor:
    """The logarithm of tanh's derivative, 1 - tanh(u)², without its cancellation."""
    return 2 * (math.log(2) - u - softplus(-2 * u))


def _gauss_hermite(number: int) -> tuple[tuple[float, float], ...]:
    """Points and weights whose weighted sum is the mean over a standard normal distribution."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(number)
    return tuple(zip(nodes.tolist(), (weights / weights.sum()).tolist(), strict=True))


NODES = _gauss_hermite(7)

Distribution = Categorical | DiagonalGaussian | SquashedGaussian
