"""An actor-critic that learns from a replay buffer, by one-step V-trace (Espeholt et al. 2018)."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from rl import tree
from rl.envs.masks import Mask
from rl.envs.observations import Obs
from rl.errors import UserError, require
from rl.learners.learner import (
    Learner,
    LearnerConfig,
    Metrics,
    normalized_weight,
    standardized,
    weighted_mean,
    weighted_sums,
)
from rl.learners.replay import Replay
from rl.models.agent import Network, Policy
from rl.rollout import Rollout
from rl.seeding import Shuffle


class Sums(NamedTuple):
    """What `ActorCritic.estimate` returns."""

    sums: Tensor  # [2] float64, the `weighted_sums` of nothing else


class Transitions(NamedTuple):
    """What the actor-critic learns from; every field is [B, ...]."""

    obs: Obs
    action: Tensor
    log_prob: Tensor  # of the policy that acted
    reward: Tensor
    next_obs: Obs  # where the action led; the final observation of an episode that ended
    terminated: Tensor
    weight: Tensor  # 0 for rows to leave out; 1 on average over all ranks
    mask: Mask = ()  # of legal actions [B, ΣA], where there are masks


@dataclass(frozen=True)
class ActorCriticConfig(LearnerConfig):
    """Actor-critic with a replay buffer."""

    uses_next_obs: ClassVar[bool] = True

    num_steps: int = 16
    learning_rate: float = 1e-3
    gamma: float = 0.99
    per_rank_batch_size: int = 64
    """Rows that a rank draws from its replay buffer for a gradient step."""
    updates_per_collection: int = 2
    """Gradient steps after each rollout."""
    buffer_size: int = 10_000
    """Transitions that each rank's replay buffer keeps."""
    rho_clip: float = 2.0
    """Upper bound of V-trace's rho, the weight of an action that has become more likely since it was taken."""
    normalize_values: bool = True
    """Solve for the common level of values in each minibatch, and divide the value loss by its size."""
    normalize_advantages: bool = True
    """Give the advantages of a minibatch, weighted by rho, mean 0 and standard deviation 1."""
    ent_coef: float = 0.4
    """Weight of the entropy bonus in the loss."""
    vf_coef: float = 1.0
    """Weight of the value loss (mean squared error, normalized if the flag says so) in the loss."""

    def build(self) -> "ActorCritic":
        return ActorCritic(self)

    def work(self, num_rows: int) -> tuple[int, int]:
        return self.updates_per_collection, self.updates_per_collection * self.per_rank_batch_size

    def check(self, rows_per_rank: int) -> None:
        super().check(rows_per_rank)
        for flag, value in (
            ("--per-rank-batch-size", self.per_rank_batch_size),
            ("--updates-per-collection", self.updates_per_collection),
            ("--buffer-size", self.buffer_size),
        ):
            require(value >= 1, flag, value, "must be at least 1")
        for name, coefficient in (("--ent-coef", self.ent_coef), ("--vf-coef", self.vf_coef)):
            require(0 <= coefficient < math.inf, name, coefficient, "must be a finite number, at least 0")
        require(0 < self.rho_clip < math.inf, "--rho-clip", self.rho_clip, "must be a finite number above 0")

    def check_network(self, network: Network) -> None:
        super().check_network(network)
        right = "the actor-critic learns from single steps; use ppo or reinforce"
        require(network.memory == "none", "--memory", network.memory, right)
        if network.normalize_reward:
            raise UserError("--normalize-reward: the actor-critic has --normalize-values instead; leave the flag out")


class ActorCritic(Learner[Sums, Transitions]):
    """One-step V-trace on minibatches from a replay buffer."""

    config: ActorCriticConfig

    def __init__(self, config: ActorCriticConfig) -> None:
        super().__init__(config)
        self.replay: Replay[Transitions] = Replay(config.buffer_size)

    def estimate(self, policy: Policy, rollout: Rollout) -> Sums:
        """Only weights: a value estimated now would be outdated when its transition is sampled."""
        return Sums(weighted_sums(rollout.weight))

    def prepare(self, rollout: Rollout, estimates: Sums, totals: Tensor) -> tuple[Transitions, Metrics]:
        """The transitions [T·N, ...] of a rollout."""
        num_ranks, total = totals.unbind()
        assert rollout.next_obs is not None
        transitions = Transitions(
            rollout.obs,
            rollout.action,
            rollout.log_prob,
            rollout.reward,
            rollout.next_obs,
            rollout.terminated,
            normalized_weight(rollout.weight, num_ranks, total),
            rollout.mask,
        )
        return tree.map(lambda field: field.flatten(0, 1), transitions), {}

    def minibatches(self, samples: Transitions, shuffle: Shuffle) -> Iterator[Transitions]:
        """Adds the new transitions to the buffer, and samples from all that it holds."""
        self.replay.add(samples)
        for _ in range(self.config.updates_per_collection):
            yield self.replay.sample(self.config.per_rank_batch_size, shuffle.generator)

    def loss(self, policy: Policy, samples: Transitions) -> tuple[Tensor, Metrics]:
        """V-trace's losses with n = 1: of actor, critic and entropy (Espeholt et al. 2018, section 4.2).

        A transition's weight is its action's probability now relative to when it was taken, clipped at `rho_clip`.
        """
        config, num_rows = self.config, len(samples.weight)
        # Only values are needed of the successors, for which no mask matters.
        mask = tree.map(lambda legal: torch.cat([legal, torch.ones_like(legal)]), samples.mask)
        both, values, *_ = policy(tree.cat([samples.obs, samples.next_obs]), mask)
        distribution = tree.index(both, slice(num_rows))
        value, next_value = values[:num_rows], values[num_rows:].detach()
        log_prob = distribution.log_prob(samples.action)
        rho = (log_prob.detach() - samples.log_prob).exp().clamp(max=config.rho_clip)
        # Termination cuts the bootstrap, truncation does not.
        discount = config.gamma * ~samples.terminated
        td_error = samples.reward + discount * next_value - value
        weight = samples.weight * rho
        if config.normalize_values:
            td_error = td_error - shared_error(td_error.detach(), discount, weight)
        advantage = td_error.detach()
        if config.normalize_advantages:
            # With clipped weights, an error that all values share would reinforce every action that was taken.
            advantage = standardized(advantage, *weighted_sums(weight, advantage)[1:])
        policy_loss = -weighted_mean(rho * advantage * log_prob, samples.weight)
        value_loss = weighted_mean(rho * td_error.square(), samples.weight)
        entropy_loss = -weighted_mean(distribution.entropy(), samples.weight)
        # The errors of a new critic are a thousand times those of a good one. Their unscaled square would dominate the
        # shared layers at first, and vanish from them later.
        value_scale = 1 / (value_loss.detach() + 1e-8) if config.normalize_values else 1.0
        loss = policy_loss + config.vf_coef * value_scale * value_loss + config.ent_coef * entropy_loss
        metrics = {
            "Loss/policy_loss": policy_loss.detach(),
            "Loss/value_loss": value_loss.detach(),
            "Loss/entropy_loss": entropy_loss.detach(),
            "Info/rho": weighted_mean(rho, samples.weight),
        }
        return loss, metrics

    def state_dict(self) -> dict[str, Any]:
        return self.replay.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.replay.load_state_dict(state, Transitions)


def shared_error(td_error: Tensor, discount: Tensor, weight: Tensor) -> Tensor:
    """The part of TD errors [b] that adding a constant to all values would remove: least-squares TD for that constant.

    The critic learns the differences between values, and their common level is solved for. Learning the level would
    take about 1 / (1 - gamma) times as long. Meanwhile the values of states that are visited most would be ahead of the
    others, so these states would look best, and the policy would stay in them.
    """
    slope = 1 - discount
    level = (weight * td_error).sum() / (weight * slope).sum().clamp(min=1e-8)
    return level * slope
