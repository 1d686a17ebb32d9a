"""What every learner has: the flags that all share, and its answers to the questions that the programs ask."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Generic, TypeVar

import torch
from torch import Tensor

from rl.errors import require
from rl.models.agent import Policy
from rl.rollout import AnyCollector, Rollout
from rl.seeding import Shuffle

Metrics = dict[str, Tensor]
EstimatesType = TypeVar("EstimatesType", bound=tuple[Tensor, ...])  # a NamedTuple of tensors
RowsType = TypeVar("RowsType", bound=tuple[Tensor, ...])  # a NamedTuple of tensors [B, ...]


@dataclass(frozen=True)
class Learner(ABC, Generic[EstimatesType, RowsType]):
    """How a rollout becomes rows, rows become minibatches, and a minibatch becomes a loss."""

    whole_episodes: ClassVar[bool] = False
    """Whether rollouts end with episodes, and so have no fixed length."""

    num_steps: int = 128
    """Steps of each environment in a rollout."""
    learning_rate: float = 3e-3
    """Adam's step size at the start."""
    anneal_lr: bool = True
    """Lower the learning rate linearly towards 0 over the run."""
    gamma: float = 0.95
    """Discount factor."""
    max_grad_norm: float = 0.5
    """Norm to which longer gradients are shortened; inf leaves them as they are."""

    def check(self, rows_per_rank: int) -> None:
        """Raises `UserError` for a value that cannot work where a rank learns from so many rows."""
        require(self.num_steps >= 1, "--num-steps", self.num_steps, "must be at least 1")
        require(0 <= self.gamma <= 1, "--gamma", self.gamma, "must lie between 0 and 1")
        rate = self.learning_rate
        require(0 < rate < math.inf, "--learning-rate", rate, "must be a finite number above 0")
        require(self.max_grad_norm > 0, "--max-grad-norm", self.max_grad_norm, "must be above 0; inf clips nothing")

    def learning_rate_at(self, progress: float) -> float:
        """The learning rate after this fraction of the run."""
        return self.learning_rate * (1 - progress) if self.anneal_lr else self.learning_rate

    def collect(self, collector: AnyCollector) -> Rollout:
        """The rollout [T, N, ...] that the next update learns from."""
        return collector.collect(self.num_steps)

    @abstractmethod
    def estimate(self, policy: Policy, rollout: Rollout) -> EstimatesType:
        """What a rollout's rewards say of its actions and states: a function of tensors."""

    @abstractmethod
    def prepare(
        self, rollout: Rollout, estimates: EstimatesType, sum_over_ranks: Callable[[Tensor], Tensor]
    ) -> tuple[RowsType, Metrics]:
        """A rollout's rows [T·N, ...], and what to log of them. Moments and weights are those of all ranks."""

    @abstractmethod
    def minibatches(self, rows: RowsType, shuffle: Shuffle) -> Iterator[RowsType]:
        """What each gradient step of an update sees: as many minibatches on every rank."""

    @abstractmethod
    def work(self, num_rows: int) -> tuple[int, int]:
        """The gradient steps of an update after a rank's so many rows, and the number of rows that they see in all."""

    @abstractmethod
    def loss(self, agent: Policy, rows: RowsType) -> tuple[Tensor, Metrics]:
        """The scalar to minimise over a minibatch [b, ...], and what to log of it."""

    def state_dict(self) -> dict[str, Any]:
        """What this rank's learner remembers from one update to the next, for `torch.save`."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Remembers it again."""

    def should_stop(self, metrics: Metrics, mean_over_ranks: Callable[[Tensor], Tensor]) -> bool:
        """Whether to end this update after a gradient step that said this; all ranks get the same answer."""
        return False


AnyLearner = Learner[Any, Any]


def weighted_sums(weight: Tensor, *fields: Tensor) -> Tensor:
    """Sums (float64) that ranks can add up: one, the weights, and of every field its weighted values and squares."""
    w = weight.double()
    moments = (w * field.double() ** power for field in fields for power in (1, 2))
    return torch.stack([w.new_ones(()), *(terms.sum() for terms in (w, *moments))])


def normalised_weight(weight: Tensor, num_ranks: Tensor, total: Tensor) -> Tensor:
    """Weights with which the mean over ranks of a weighted mean over rows is that over all rows that count."""
    return weight * (weight.numel() * num_ranks / total.clamp(min=1)).float()


def variance(total: Tensor, value_sum: Tensor, square_sum: Tensor) -> Tensor:
    """The variance of weighted values, by their `weighted_sums`."""
    return square_sum / total - (value_sum / total) ** 2


def standardised(values: Tensor, total: Tensor, value_sum: Tensor, square_sum: Tensor) -> Tensor:
    """Values with mean 0 and (unbiased) standard deviation 1, by their `weighted_sums`."""
    total = total.clamp(min=1e-8)  # where nothing counts
    unbiased = variance(total, value_sum, square_sum) * total / (total - 1).clamp(min=1)
    std = unbiased.clamp(min=0).sqrt()
    return (values - (value_sum / total).float()) / (std.float() + 1e-8)


def weighted_mean(values: Tensor, weight: Tensor) -> Tensor:
    """The mean of values [b] whose weights are 1 on average over all minibatches of all ranks."""
    return (values * weight).mean()
