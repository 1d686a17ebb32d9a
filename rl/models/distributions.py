"""Distributions over actions, as NamedTuples of their parameters.

Samples are a function of the parameters and of uniform noise that the caller passes, so they are the same on every
device, eager or compiled, and need no generator.
"""

import math
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad, softplus
from typing_extensions import Self

from rl.envs.actions import Actions, BoxActions, CompositeActions, DiscreteActions, MultiDiscreteActions
from rl.envs.masks import Mask

NEVER = -1e8  # a logit whose probability is exactly 0, but which leaves entropies finite, as -inf would not


class Categorical(NamedTuple):
    """Distribution over A discrete actions."""

    log_probs: Tensor  # [..., A], normalized

    @classmethod
    def from_logits(cls, logits: Tensor) -> Self:
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


class MaskedCategorical(Categorical):
    """A `Categorical` some of whose actions have probability 0, which no rounding may draw."""

    def sample(self, noise: Tensor) -> Tensor:
        """Actions [...]: the inverse CDF at noise [..., 1], as a count of the possible actions that it passes.

        Sums of probabilities may end below the noise, and on a GPU need not grow steadily; whole numbers do.
        """
        probs = self.log_probs.exp()
        possible = probs > 0
        number = possible.cumsum(-1)
        passed = (possible & (probs.cumsum(-1) <= noise)).sum(-1, keepdim=True)
        return (number <= torch.minimum(passed, number[..., -1:] - 1)).sum(-1)


class MultiCategorical(NamedTuple):
    """Independent choices [..., K] among different numbers of alternatives, at most M."""

    log_probs: Tensor  # [..., K, M], normalized over alternatives; about -1e8 where there are fewer

    @classmethod
    def from_logits(cls, logits: Tensor, sizes: tuple[int, ...]) -> "MultiCategorical":
        """From the unnormalized log-probabilities [..., ΣA] of all choices, one after the other."""
        most = max(sizes)
        if min(sizes) == most:
            table = logits.reshape(*logits.shape[:-1], len(sizes), most)
        else:
            parts = torch.split(logits, list(sizes), dim=-1)
            table = torch.stack([pad(part, (0, most - part.shape[-1]), value=NEVER) for part in parts], dim=-2)
        return cls(torch.log_softmax(table, dim=-1))

    @property
    def num_columns(self) -> int:
        return self.log_probs.shape[-2]

    def sample(self, noise: Tensor) -> Tensor:
        """Choices [..., K] (int64) from uniform noise [..., K]."""
        return MaskedCategorical(self.log_probs).sample(noise.unsqueeze(-1))

    def mode(self) -> Tensor:
        return self.log_probs.argmax(-1)

    def log_prob(self, action: Tensor) -> Tensor:
        """Log-probability [...] of choices [..., K]."""
        return Categorical(self.log_probs).log_prob(action.long()).sum(-1)

    def entropy(self) -> Tensor:
        """Entropy [...] in nats."""
        return Categorical(self.log_probs).entropy().sum(-1)


class DiagonalGaussian(NamedTuple):
    """Independent normal distributions over the A components of an action."""

    mean: Tensor  # [..., A]
    log_std: Tensor  # [..., A]

    @property
    def num_columns(self) -> int:
        return self.mean.shape[-1]

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

    @property
    def num_columns(self) -> int:
        return self.mean.shape[-1]

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

Rows = MultiCategorical | DiagonalGaussian | SquashedGaussian
"""Distributions over rows [..., C]."""


class Joint(NamedTuple):
    """Independent parts of rows [..., C], one after the other."""

    parts: tuple[Rows, ...]

    def sample(self, noise: Tensor) -> Tensor:
        """Rows [..., C] from uniform noise [..., C]: int64, or float32 if a part consists of real numbers."""
        return torch.cat([part.sample(columns) for part, columns in self._split(noise)], dim=-1)

    def mode(self) -> Tensor:
        return torch.cat([part.mode() for part in self.parts], dim=-1)

    def log_prob(self, action: Tensor) -> Tensor:
        """The sum [...] of the parts' log-probabilities and log-densities of rows [..., C]."""
        return torch.stack([part.log_prob(columns) for part, columns in self._split(action)]).sum(0)

    def entropy(self) -> Tensor:
        """The sum [...] of the parts' entropies."""
        return torch.stack([part.entropy() for part in self.parts]).sum(0)

    def _split(self, row: Tensor) -> list[tuple[Rows, Tensor]]:
        columns = torch.split(row, [part.num_columns for part in self.parts], dim=-1)
        return list(zip(self.parts, columns, strict=True))


Distribution = Categorical | Rows | Joint


def distribution_of(actions: Actions, output: Tensor, log_std: Tensor | None, mask: Mask = ()) -> Distribution:
    """The distribution that the policy's outputs [..., O] describe, over legal actions if there is a mask [..., ΣA].

    `log_std` holds the logarithms of the standard deviations of all real numbers, one after the other.
    """
    if isinstance(actions, DiscreteActions):
        kind = MaskedCategorical if isinstance(mask, Tensor) else Categorical
        return kind.from_logits(legal(output, mask))
    if isinstance(actions, MultiDiscreteActions):
        return MultiCategorical.from_logits(legal(output, mask), actions.sizes)
    if isinstance(actions, BoxActions):
        assert log_std is not None
        return (SquashedGaussian if actions.squash else DiagonalGaussian)(output, log_std.expand_as(output))
    return _joint(actions, output, log_std, mask)


def _joint(actions: CompositeActions, output: Tensor, log_std: Tensor | None, mask: Mask) -> Joint:
    parts: list[Any] = []
    outputs = torch.split(output, [leaf.num_outputs for leaf in actions.leaves()], dim=-1)
    for leaf, own in zip(actions.leaves(), outputs, strict=True):
        if isinstance(leaf, BoxActions):
            assert log_std is not None
            parts.append(distribution_of(leaf, own, log_std[: leaf.num_outputs]))
            log_std = log_std[leaf.num_outputs :]
            continue
        own_mask: Mask = mask
        if isinstance(mask, Tensor):
            own_mask, mask = mask[..., : leaf.num_outputs], mask[..., leaf.num_outputs :]
        parts.append(MultiCategorical.from_logits(legal(own, own_mask), leaf.sizes))
    return Joint(tuple(parts))


def legal(logits: Tensor, mask: Mask) -> Tensor:
    """Logits [..., A], which neither count nor have gradients where the mask forbids an action."""
    return logits.masked_fill(~mask, NEVER) if isinstance(mask, Tensor) else logits
