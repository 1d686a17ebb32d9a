"""Distributions over actions, as NamedTuples of their parameters.

Samples are a function of the parameters and of uniform noise that the caller passes, so they are the same on every
device, eager or compiled, and need no generator.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor


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


Distribution = Categorical | DiagonalGaussian
