"""PPO: proximal policy optimization (Schulman et al. 2017)."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from rl import tree
from rl.envs.masks import Mask
from rl.envs.observations import Obs
from rl.errors import require
from rl.learners.learner import (
    Learner,
    LearnerConfig,
    Metrics,
    normalized_weight,
    rows_of,
    standardized,
    variance,
    weighted_mean,
    weighted_sums,
)
from rl.models.agent import Policy
from rl.models.memory import Past
from rl.returns import gae
from rl.rollout import Rollout
from rl.seeding import Shuffle

ADAPTED_RATES = (1e-5, 1e-2)
FRAME_BYTES = 4096  # of a row; larger ones are not copied all at once, which would be faster


class Estimates(NamedTuple):
    """What `PPO.estimate` returns."""

    advantage: Tensor  # [T, N]
    target: Tensor  # [T, N], of the critic
    sums: Tensor  # [6] float64, the `weighted_sums` of both


class Rows(NamedTuple):
    """What PPO learns from; every field is [B, ...]."""

    obs: Obs
    action: Tensor
    log_prob: Tensor  # of the policy that acted
    value: Tensor  # of the critic when it acted
    advantage: Tensor  # normalized if the flag says so
    target: Tensor  # of the critic
    weight: Tensor  # 0 for rows to leave out; 1 on average over all ranks
    mask: Mask = ()  # of legal actions [B, ΣA], where there are masks
    past: Past = ()  # where the agent has memory: every other field is then [B, L, ...]


@dataclass(frozen=True)
class PPOConfig(LearnerConfig):
    """Proximal policy optimization."""

    schedule: Literal["constant", "linear", "adaptive"] = "linear"  # type: ignore[assignment]
    """How the learning rate changes over the run: not at all (constant), towards 0 (linear), or so that the KL
    divergence of an update stays near --desired-kl (adaptive)."""
    desired_kl: float = 0.01
    """KL divergence that --schedule adaptive aims at, on average over an update's minibatches."""
    num_minibatches: int = 16
    """Minibatches of an epoch, of almost equal size, at most one for each row; --per-rank-batch-size overrides it."""
    per_rank_batch_size: int | None = None
    """Rows of a rank in a minibatch, at most."""
    update_epochs: int = 10  # type: ignore[misc]
    """How many times an update visits each row."""
    recompute_advantages: bool = False  # type: ignore[misc]
    """Estimate advantages and value targets again before each epoch but the first, with the critic of that time."""
    share_data: bool = False  # type: ignore[misc]
    """Give every rank all ranks' rollouts to train on its part of each epoch, instead of its own rollout."""
    gae_lambda: float = 0.95
    """Lambda of the generalized advantage estimate."""
    normalize_advantages: bool = True
    """Give an update's advantages, those of all ranks together, mean 0 and standard deviation 1."""
    clip_coef: float = 0.2
    """How far the probability ratio may move away from 1 before it is clipped."""
    clip_vloss: bool = False
    """Clip the value loss too, to the same width around the value when the action was taken."""
    ent_coef: float = 0.0
    """Weight of the entropy bonus in the loss."""
    vf_coef: float = 0.5
    """Weight of the value loss (mean squared error) in the loss."""
    target_kl: float | None = None
    """End an update after the minibatch whose approximate KL divergence, over all ranks, exceeds 1.5 times this."""

    def build(self) -> "PPO":
        return PPO(self)

    def work(self, num_rows: int) -> tuple[int, int]:
        return self.update_epochs * self.minibatches_of(num_rows), self.update_epochs * num_rows

    def minibatches_of(self, num_rows: int) -> int:
        """Number of minibatches in an epoch over so many rows of a rank."""
        size = self.per_rank_batch_size
        return math.ceil(num_rows / size) if size else min(self.num_minibatches, num_rows)

    def check(self, rows_per_rank: int) -> None:
        super().check(rows_per_rank)
        require(self.num_minibatches >= 1, "--num-minibatches", self.num_minibatches, "must be at least 1")
        if (size := self.per_rank_batch_size) is not None:
            require(size >= 1, "--per-rank-batch-size", size, "must be at least 1")
            right = f"larger than the {rows_per_rank} rows (--num-envs × --num-steps) that a rank learns from"
            require(size <= rows_per_rank, "--per-rank-batch-size", size, f"{right}; must be at most that")
        require(self.update_epochs >= 1, "--update-epochs", self.update_epochs, "must be at least 1")
        require(0 <= self.gae_lambda <= 1, "--gae-lambda", self.gae_lambda, "must lie between 0 and 1")
        for flag, value in (("--ent-coef", self.ent_coef), ("--vf-coef", self.vf_coef)):
            require(0 <= value < math.inf, flag, value, "must be a finite number, at least 0")
        kls = (("--target-kl", self.target_kl), ("--desired-kl", self.desired_kl))
        for flag, positive in (("--clip-coef", self.clip_coef), *kls):
            require(positive is None or 0 < positive < math.inf, flag, positive, "must be a finite number above 0")

    def learning_rate_at(self, progress: float) -> float | None:
        return None if self.schedule == "adaptive" else super().learning_rate_at(progress)


class PPO(Learner[Estimates, Rows]):
    """Epochs of clipped policy gradient steps over minibatches of a rollout."""

    config: PPOConfig

    def estimate(self, policy: Policy, rollout: Rollout) -> Estimates:
        """Advantages, and value targets."""
        advantage = gae(
            rollout.reward,
            rollout.value,
            rollout.next_value,
            terminated=rollout.terminated,
            truncated=rollout.truncated,
            gamma=self.config.gamma,
            gae_lambda=self.config.gae_lambda,
        )
        target = advantage + rollout.value
        return Estimates(advantage, target, weighted_sums(rollout.weight, advantage, target))

    def prepare(self, rollout: Rollout, estimates: Estimates, totals: Tensor) -> tuple[Rows, Metrics]:
        """The rows [B, ...] of a rollout; advantages are normalized over all ranks."""
        num_ranks, total, *moments = totals.unbind()
        advantage_moments, target_moments = moments[:2], moments[2:]
        # The critic's error, target - value, is the advantage.
        unexplained = variance(total, *advantage_moments) / variance(total, *target_moments)
        advantage = estimates.advantage
        if self.config.normalize_advantages:
            advantage = standardized(advantage, total, *advantage_moments)
        rows = Rows(
            rollout.obs,
            rollout.action,
            rollout.log_prob,
            rollout.value,
            advantage,
            estimates.target,
            normalized_weight(rollout.weight, num_ranks, total),
            rollout.mask,
        )
        metrics = {"Info/explained_variance": (1 - unexplained).float()}
        return rows_of(rows, rollout.past, self.config.steps_per_piece()), metrics

    def minibatches(self, samples: Rows, shuffle: Shuffle) -> Iterator[Rows]:
        """All rows in a new order, in minibatches of almost equal size."""
        order = shuffle.order(len(samples.weight))
        num_parts = self.config.minibatches_of(len(order))
        if sum(field[0].nbytes for field in tree.leaves(samples)) < FRAME_BYTES:
            yield from tree.split(tree.index(samples, order), num_parts)
        else:
            yield from (tree.index(samples, rows) for rows in order.tensor_split(num_parts))

    def num_at_once(self, num_rows: int) -> int:
        config, own = self.config, type(self)
        # A class derived from this one may choose other rows, or stop for other reasons.
        plain = own.minibatches is PPO.minibatches and own.should_stop is PPO.should_stop
        free = plain and config.target_kl is None and not config.recompute_advantages
        number = config.minibatches_of(num_rows)
        return number if free and num_rows % number == 0 else 0

    def loss(self, policy: Policy, samples: Rows) -> tuple[Tensor, Metrics]:
        """PPO's loss over a minibatch (Schulman et al. 2017, eq. 9, negated)."""
        config, weight = self.config, samples.weight
        distribution, value, *_ = policy(samples.obs, samples.mask, *samples.past)
        log_ratio = distribution.log_prob(samples.action) - samples.log_prob
        policy_loss = weighted_mean(clipped_surrogate(log_ratio, samples.advantage, config.clip_coef), weight)
        value_clip = config.clip_coef if config.clip_vloss else None
        value_loss = weighted_mean(squared_error(value, samples.value, samples.target, value_clip), weight)
        entropy_loss = -weighted_mean(distribution.entropy(), weight)
        loss = policy_loss + config.vf_coef * value_loss
        if config.ent_coef > 0:
            loss = loss + config.ent_coef * entropy_loss
        with torch.no_grad():
            ratio = log_ratio.exp()
            metrics = {
                "Loss/policy_loss": policy_loss.detach(),
                "Loss/value_loss": value_loss.detach(),
                "Loss/entropy_loss": entropy_loss.detach(),
                "Info/approx_kl": weighted_mean(ratio - 1 - log_ratio, weight),
                "Info/clip_fraction": weighted_mean(((ratio - 1).abs() > config.clip_coef).float(), weight),
            }
        return loss, metrics

    def should_stop(self, metrics: Metrics, mean_over_ranks: Callable[[Tensor], Tensor]) -> bool:
        """Whether the policy has moved far enough for this update; the same answer on all ranks."""
        target_kl = self.config.target_kl
        return target_kl is not None and bool(mean_over_ranks(metrics["Info/approx_kl"]) > 1.5 * target_kl)

    def adapt(
        self, learning_rate: Tensor, steps: Sequence[Metrics], mean_over_ranks: Callable[[Tensor], Tensor]
    ) -> None:
        """With --schedule adaptive, changes the rate once an update, so that it costs ranks one message."""
        if self.config.schedule == "adaptive":
            kl = mean_over_ranks(torch.stack([metrics["Info/approx_kl"] for metrics in steps]).mean())
            learning_rate.copy_(adapted(learning_rate, kl, self.config.desired_kl))


def adapted(learning_rate: Tensor, kl: Tensor, desired_kl: float) -> Tensor:
    """The rate, divided or multiplied by 1.5 where the KL divergence is over twice or under half of what is desired.

    rsl_rl's rule. It is applied to the mean of an update here: applied to each minibatch, as rsl_rl does, it makes the
    rate jump if there are many of them (docs/log.md).
    """
    lowest, highest = ADAPTED_RATES
    is_under = (kl < desired_kl / 2) & (kl > 0)
    raised = torch.where(is_under, (learning_rate * 1.5).clamp(max=highest), learning_rate)
    return torch.where(kl > desired_kl * 2, (learning_rate / 1.5).clamp(min=lowest), raised)


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
