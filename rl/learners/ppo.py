"""PPO: proximal policy optimisation (Schulman et al. 2017)."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from rl.errors import require
from rl.learners.learner import (
    Learner,
    Metrics,
    normalised_weight,
    standardised,
    variance,
    weighted_mean,
    weighted_sums,
)
from rl.models.agent import Policy
from rl.returns import gae
from rl.rollout import Rollout, map_tensors
from rl.seeding import Shuffle


class Estimates(NamedTuple):
    """What `PPO.estimate` finds in a rollout."""

    advantage: Tensor  # [T, N]
    target: Tensor  # [T, N], of the critic
    sums: Tensor  # [6] float64, the `weighted_sums` of both


class Rows(NamedTuple):
    """What PPO learns from; every field is [B, ...]."""

    obs: Tensor
    action: Tensor
    log_prob: Tensor  # of the policy that acted
    value: Tensor  # of the critic when it acted
    advantage: Tensor  # normalised if the flag says so
    target: Tensor  # of the critic
    weight: Tensor  # 0 for rows to leave out; 1 on average over all ranks


@dataclass(frozen=True)
class PPO(Learner[Estimates, Rows]):
    """Proximal policy optimisation."""

    per_rank_batch_size: int | None = None
    """Rows of a rank in a minibatch, at the most; a quarter of its rollout if not given."""
    update_epochs: int = 4
    """How many times an update visits each row."""
    gae_lambda: float = 0.95
    """Lambda of the generalised advantage estimate."""
    normalize_advantages: bool = True
    """Give an update's advantages, those of all ranks together, mean 0 and standard deviation 1."""
    clip_coef: float = 0.2
    """How far the probability ratio may leave 1 before its gradient is cut."""
    clip_vloss: bool = False
    """Clip the value loss too, to the same width around the value when the action was taken."""
    ent_coef: float = 0.0
    """Weight of the entropy bonus in the loss."""
    vf_coef: float = 0.5
    """Weight of the value loss (mean squared error) in the loss."""
    target_kl: float | None = None
    """End an update after the minibatch whose approximate KL divergence, over all ranks, exceeds 1.5 times this."""

    def check(self, rows_per_rank: int) -> None:
        """Raises `UserError` for a value that cannot work where a rank learns from so many rows."""
        super().check(rows_per_rank)
        batch_size = self.per_rank_batch_size
        require(batch_size is None or batch_size >= 1, "--per-rank-batch-size", batch_size, "must be at least 1")
        require(
            batch_size is None or batch_size <= rows_per_rank,
            "--per-rank-batch-size",
            batch_size,
            f"larger than the {rows_per_rank} rows (--num-envs × --num-steps) that a rank learns from;"
            " must be at most that",
        )
        require(self.update_epochs >= 1, "--update-epochs", self.update_epochs, "must be at least 1")
        require(0 <= self.gae_lambda <= 1, "--gae-lambda", self.gae_lambda, "must lie between 0 and 1")
        for flag, value in (("--ent-coef", self.ent_coef), ("--vf-coef", self.vf_coef)):
            require(0 <= value < math.inf, flag, value, "must be a finite number, at least 0")
        for flag, positive in (("--clip-coef", self.clip_coef), ("--target-kl", self.target_kl)):
            require(positive is None or 0 < positive < math.inf, flag, positive, "must be a finite number above 0")

    def estimate(self, policy: Policy, rollout: Rollout) -> Estimates:
        """Advantages, and targets for the critic."""
        _, next_value = policy(rollout.next_obs)
        advantage = gae(
            rollout.reward,
            rollout.value,
            next_value,
            terminated=rollout.terminated,
            truncated=rollout.truncated,
            gamma=self.gamma,
            gae_lambda=self.gae_lambda,
        )
        target = advantage + rollout.value
        return Estimates(advantage, target, weighted_sums(rollout.weight, advantage, target))

    def prepare(
        self, rollout: Rollout, estimates: Estimates, sum_over_ranks: Callable[[Tensor], Tensor]
    ) -> tuple[Rows, Metrics]:
        """A rollout's rows [T·N, ...]. Moments and weights are those of all ranks, by one sum over them."""
        num_ranks, total, *moments = sum_over_ranks(estimates.sums).unbind()
        advantage_moments, target_moments = moments[:2], moments[2:]
        # The critic's error, target - value, is the advantage.
        unexplained = variance(total, *advantage_moments) / variance(total, *target_moments)
        advantage = estimates.advantage
        if self.normalize_advantages:
            advantage = standardised(advantage, total, *advantage_moments)
        rows = Rows(
            rollout.obs,
            rollout.action,
            rollout.log_prob,
            rollout.value,
            advantage,
            estimates.target,
            normalised_weight(rollout.weight, num_ranks, total),
        )
        metrics = {"Info/explained_variance": (1 - unexplained).float()}
        return map_tensors(lambda field: field.flatten(0, 1), rows), metrics

    def minibatches(self, rows: Rows, shuffle: Shuffle) -> Iterator[Rows]:
        """Every epoch's rows in a new order, in minibatches of almost equal size: as many of them on every rank."""
        for _ in range(self.update_epochs):
            order = shuffle.order(len(rows.obs))
            shuffled = map_tensors(lambda field, order=order: field[order], rows)  # type: ignore[misc]
            num_minibatches = self.num_minibatches(len(order))
            yield from map(Rows._make, zip(*(f.tensor_split(num_minibatches) for f in shuffled), strict=True))

    def work(self, num_rows: int) -> tuple[int, int]:
        """The gradient steps of an update after a rank's so many rows, and the number of rows that they see in all."""
        return self.update_epochs * self.num_minibatches(num_rows), self.update_epochs * num_rows

    def num_minibatches(self, num_rows: int) -> int:
        """Number of minibatches in an epoch over so many rows of a rank."""
        return math.ceil(num_rows / (self.per_rank_batch_size or math.ceil(num_rows / 4)))

    def loss(self, agent: Policy, rows: Rows) -> tuple[Tensor, Metrics]:
        """The scalar to minimise over a minibatch [b, ...], and what to log of it."""
        distribution, value = agent(rows.obs)
        log_ratio = distribution.log_prob(rows.action) - rows.log_prob
        policy_loss = weighted_mean(clipped_surrogate(log_ratio, rows.advantage, self.clip_coef), rows.weight)
        value_clip = self.clip_coef if self.clip_vloss else None
        value_loss = weighted_mean(squared_error(value, rows.value, rows.target, value_clip), rows.weight)
        entropy_loss = -weighted_mean(distribution.entropy(), rows.weight)
        loss = policy_loss + self.vf_coef * value_loss
        if self.ent_coef > 0:
            loss = loss + self.ent_coef * entropy_loss
        with torch.no_grad():
            ratio = log_ratio.exp()
            metrics = {
                "Loss/policy_loss": policy_loss.detach(),
                "Loss/value_loss": value_loss.detach(),
                "Loss/entropy_loss": entropy_loss.detach(),
                "Info/approx_kl": weighted_mean(ratio - 1 - log_ratio, rows.weight),
                "Info/clip_fraction": weighted_mean(((ratio - 1).abs() > self.clip_coef).float(), rows.weight),
            }
        return loss, metrics

    def should_stop(self, metrics: Metrics, mean_over_ranks: Callable[[Tensor], Tensor]) -> bool:
        """Whether the policy has moved far enough for this update; all ranks get the same answer."""
        return self.target_kl is not None and bool(mean_over_ranks(metrics["Info/approx_kl"]) > 1.5 * self.target_kl)


def clipped_surrogate(log_ratio: Tensor, advantage: Tensor, clip_coef: float) -> Tensor:
    """The loss [b] whose mean is minus PPO's objective (Schulman et al. 2017, eq. 7)."""
    ratio = log_ratio.exp()
    return -torch.minimum(ratio * advantage, ratio.clamp(1 - clip_coef, 1 + clip_coef) * advantage)


def squared_error(value: Tensor, old_value: Tensor, target: Tensor, clip: float | None) -> Tensor:
    """The critic's squared error [b]; with `clip`, the larger of it and that of the value clipped around the old one.

    Source of the clipped form: "The 37 implementation details of PPO", detail 9.
    """
    error = (value - target).square()
    if clip is None:
        return error
    return torch.maximum(error, (old_value + (value - old_value).clamp(-clip, clip) - target).square())
