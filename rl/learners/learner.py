"""What every learner has: the flags that all share, and the steps from a rollout to a loss."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Generic, Literal, Protocol, TypeVar

import torch
from torch import Tensor

from rl import tree
from rl.collector import AnyCollector
from rl.dist.ranks import Ranks
from rl.envs.spaces import Spaces
from rl.errors import UserError, require
from rl.models.agent import Network, Policy
from rl.models.memory import Past
from rl.rollout import Rollout
from rl.seeding import Shuffle

Metrics = dict[str, Tensor]


class Estimates(Protocol):
    """What a learner computes from its rank's rollout, before the sum over ranks: a NamedTuple of tensors."""

    @property
    def sums(self) -> Tensor:
        """[K] float64: statistics of the rollout, which are added up over ranks for `prepare`."""


class Samples(Protocol):
    """What a learner learns from: a NamedTuple of tensors whose dimension 0 counts rows."""

    @property
    def weight(self) -> Tensor:
        """[B, ...]: 0 for rows that no loss may see, 1 on average over all ranks."""


EstimatesType = TypeVar("EstimatesType", bound=Estimates)
SamplesType = TypeVar("SamplesType", bound=Samples)


@dataclass(frozen=True)
class LearnerConfig(ABC):
    """The flags of a learner; its docstring describes the learner in --help."""

    whole_episodes: ClassVar[bool] = False
    """Whether rollouts end with episodes, and so have no fixed length."""
    share_data: ClassVar[bool] = False
    """Whether every rank learns from all ranks' rollouts; a flag of PPO."""
    update_epochs: ClassVar[int] = 1
    """How many times an update goes over its samples; a flag of PPO."""
    recompute_advantages: ClassVar[bool] = False
    """Whether each epoch has estimates of its own; a flag of PPO."""

    uses_next_obs: ClassVar[bool] = False
    """Whether rollouts must have `next_obs`, also those of images."""

    num_steps: int = 128
    """Steps of each environment in a rollout."""
    sequence_length: int | None = None
    """With --memory, steps through which gradients flow back: rollouts are cut into pieces of that many; by default
    a piece is as long as the rollout."""
    learning_rate: float = 5e-4
    """Adam's step size at the start."""
    schedule: Literal["constant", "linear"] = "linear"
    """How the learning rate changes over the run: not at all (constant), or towards 0 (linear)."""
    adam_eps: float = 1e-5
    """Adam's epsilon, which it adds to the root of its second moment."""
    gamma: float = 0.99
    """Discount factor."""
    max_grad_norm: float = 0.5
    """Norm to which larger gradients are clipped; inf clips nothing."""

    def keeps_next_obs(self, spaces: Spaces) -> bool:
        """Whether rollouts have `next_obs`; with images only if the learner needs them, to keep a frame once."""
        return self.uses_next_obs or self.recompute_advantages or not spaces.has_images()

    @abstractmethod
    def build(self) -> "Learner[Any, Any]":
        """A new learner with these flags."""

    @abstractmethod
    def work(self, num_rows: int) -> tuple[int, int]:
        """Number of gradient steps of an update with `num_rows` rows per rank, and of rows in all of these steps."""

    def check(self, rows_per_rank: int) -> None:
        """Raises `UserError` for an invalid value, given the number of rows that a rank learns from."""
        require(self.num_steps >= 1, "--num-steps", self.num_steps, "must be at least 1")
        if (length := self.sequence_length) is not None:
            right = f"must be at least 1, and divide --num-steps {self.num_steps}"
            require(length >= 1 and self.num_steps % length == 0, "--sequence-length", length, right)
        require(0 <= self.gamma <= 1, "--gamma", self.gamma, "must lie between 0 and 1")
        for flag, value in (("--learning-rate", self.learning_rate), ("--adam-eps", self.adam_eps)):
            require(0 < value < math.inf, flag, value, "must be a finite number above 0")
        require(self.max_grad_norm > 0, "--max-grad-norm", self.max_grad_norm, "must be above 0; inf clips nothing")

    def check_network(self, network: Network) -> None:
        """Raises `UserError` for an agent that this learner cannot train."""
        if (length := self.sequence_length) is not None and network.memory == "none":
            raise UserError(f"--sequence-length {length}: needs an agent with memory; add --memory gru")
        if self.recompute_advantages and network.memory != "none":
            right = "the values of later epochs would need what is remembered then; leave out --recompute-advantages"
            raise UserError(f"--memory {network.memory}: {right}")

    def steps_per_piece(self) -> int:
        """Steps of a row, where the agent has memory."""
        return self.sequence_length or self.num_steps

    def learning_rate_at(self, progress: float) -> float | None:
        """The learning rate after this fraction of the run; None if the learner adapts it."""
        return self.learning_rate * (1 - progress) if self.schedule == "linear" else self.learning_rate


class Learner(ABC, Generic[EstimatesType, SamplesType]):
    """How a rollout becomes samples, samples become minibatches, and a minibatch becomes a loss.

    The methods are called in the order in which they stand here.
    """

    def __init__(self, config: LearnerConfig) -> None:
        self.config = config

    def collect(self, collector: AnyCollector) -> Rollout:
        """The rollout [T, N, ...] that the next update learns from."""
        return collector.collect(self.config.num_steps)

    @abstractmethod
    def estimate(self, policy: Policy, rollout: Rollout) -> EstimatesType:
        """Advantages, value targets and the like; a pure function of tensors, which is compiled in long runs."""

    @abstractmethod
    def prepare(self, rollout: Rollout, estimates: EstimatesType, totals: Tensor) -> tuple[SamplesType, Metrics]:
        """The samples [B, ...] of a rollout, and metrics; `totals` is the sum of all ranks' `estimates.sums`."""

    def shared(self, samples: SamplesType, ranks: Ranks) -> SamplesType:
        """All ranks' samples with --share-data, otherwise this rank's own.

        Raises:
            UserError: `prepare` returned samples without weights.
        """
        if not hasattr(samples, "weight"):
            fields = ", ".join(getattr(samples, "_fields", ())) or type(samples).__name__
            raise UserError(
                f"{type(self).__name__}.prepare: returned samples of {fields}; must have a field `weight`, 0 for rows"
                " to leave out and 1 on average"
            )
        lengths = {len(field) for field in tree.leaves(samples)}
        if len(lengths) > 1:
            raise UserError(f"{type(self).__name__}.prepare: returned fields of {lengths} rows; must be equally many")
        return ranks.share(samples) if self.config.share_data else samples

    @abstractmethod
    def minibatches(self, samples: SamplesType, shuffle: Shuffle) -> Iterator[SamplesType]:
        """The minibatches of an epoch, one for each gradient step; every rank must have the same number."""

    def num_at_once(self, num_rows: int) -> int:
        """Number of minibatches of an epoch over so many rows, if nothing needs to happen between gradient steps.

        All steps of an update may then run as one compiled loop: the minibatches must be the rows in the shuffle's
        order, cut into equal parts, and `should_stop` must never be true. 0 if one of this does not hold.
        """
        return 0

    @abstractmethod
    def loss(self, policy: Policy, samples: SamplesType) -> tuple[Tensor, Metrics]:
        """The scalar to minimize over a minibatch [b, ...], and metrics."""

    def should_stop(self, metrics: Metrics, mean_over_ranks: Callable[[Tensor], Tensor]) -> bool:
        """Whether to end this update after a gradient step with these metrics; all ranks must get the same answer."""
        return False

    def adapt(
        self, learning_rate: Tensor, steps: Sequence[Metrics], mean_over_ranks: Callable[[Tensor], Tensor]
    ) -> None:
        """Changes the learning rate in place after an update, given its steps' metrics; to the same on all ranks."""

    def state_dict(self) -> dict[str, Any]:
        """What the learner keeps from one update to the next, for `torch.save`."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restores what `state_dict` returned."""


AnyLearner = Learner[Any, Any]


def rows_of(steps: SamplesType, past: Past, steps_per_piece: int) -> SamplesType:
    """Steps [T, N, ...] as rows [B, ...]: single steps or, where the agent has memory, pieces [B, L, ...] of L steps.

    Pieces get a `past`: of the memory before each step, that before their first one, and where in them episodes begin.
    """
    if not past:
        return tree.map(lambda field: field.flatten(0, 1), steps)
    pieces, (memory, start) = tree.map(
        lambda field: field.unflatten(0, (-1, steps_per_piece)).transpose(1, 2).flatten(0, 1), (steps, past)
    )
    return pieces._replace(past=(memory[:, 0], start))  # type: ignore[attr-defined, no-any-return]


def weighted_sums(weight: Tensor, *fields: Tensor) -> Tensor:
    """Sums [2 + 2K] (float64) to add up over ranks: 1, the weights, and each field's weighted values and squares."""
    w = weight.double()
    moments = (w * field.double() ** power for field in fields for power in (1, 2))
    return torch.stack([w.new_ones(()), *(terms.sum() for terms in (w, *moments))])


def normalized_weight(weight: Tensor, num_ranks: Tensor, total: Tensor) -> Tensor:
    """Rescales weights so that averaging the ranks' weighted means gives the global weighted mean."""
    return weight * (weight.numel() * num_ranks / total.clamp(min=1)).float()


def variance(total: Tensor, value_sum: Tensor, square_sum: Tensor) -> Tensor:
    """The variance of weighted values, from their `weighted_sums`."""
    return square_sum / total - (value_sum / total) ** 2


def standardized(values: Tensor, total: Tensor, value_sum: Tensor, square_sum: Tensor) -> Tensor:
    """Values shifted and scaled to mean 0 and (unbiased) standard deviation 1, from their `weighted_sums`."""
    total = total.clamp(min=1e-8)  # all weights may be 0
    unbiased = variance(total, value_sum, square_sum) * total / (total - 1).clamp(min=1)
    std = unbiased.clamp(min=0).sqrt()
    return (values - (value_sum / total).float()) / (std.float() + 1e-8)


def weighted_mean(values: Tensor, weight: Tensor) -> Tensor:
    """The mean of values [b, ...] whose weights are 1 on average over all minibatches of all ranks."""
    return (values * weight).mean()


def gradient_metrics(norm: Tensor, ranks: Ranks, *, scaled: bool) -> Metrics:
    """Metrics of a gradient that is the same on all ranks, given its norm before clipping.

    With a scaled loss, a norm that is not finite is no error: fp16 has overflowed, and the step is skipped.
    """
    if not scaled:
        return {"Info/grad_norm": norm}
    finite = norm.isfinite()
    skipped = (~finite).float() / ranks.size  # summed over ranks
    return {"Info/grad_norm": torch.where(finite, norm, 0.0), "Count/skipped_steps": skipped}
