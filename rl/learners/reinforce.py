"""REINFORCE: the Monte-Carlo policy gradient (Williams 1992), on whole episodes."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from rl import tree
from rl.collector import AnyCollector
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
    weighted_mean,
    weighted_sums,
)
from rl.models.agent import Policy
from rl.models.memory import Past
from rl.returns import returns_to_go
from rl.rollout import Rollout
from rl.seeding import Shuffle


class Estimates(NamedTuple):
    """What `Reinforce.estimate` returns."""

    return_to_go: Tensor  # [T, N]
    advantage: Tensor  # [T, N], return_to_go, minus the value with --baseline
    sums: Tensor  # [6] float64, the `weighted_sums` of advantage and of episode ends


class Rows(NamedTuple):
    """What REINFORCE learns from; every field is [B, ...]."""

    obs: Obs
    action: Tensor
    return_to_go: Tensor
    advantage: Tensor  # normalized if the flag says so
    weight: Tensor  # 0 for rows to leave out; 1 on average over all ranks
    rows_per_episode: Tensor  # mean length of the episodes of all ranks, the same in every row
    mask: Mask = ()  # of legal actions [B, ΣA], where there are masks
    past: Past = ()  # where the agent has memory: every other field is then [B, L, ...]


@dataclass(frozen=True)
class ReinforceConfig(LearnerConfig):
    """REINFORCE, on whole episodes."""

    whole_episodes: ClassVar[bool] = True

    num_steps: int = 32
    """Steps of each environment between checks of whether all episodes of an update have ended."""
    learning_rate: float = 1e-2
    gamma: float = 0.99
    max_grad_norm: float = math.inf
    episodes_per_env: int = 1
    """Episodes of each environment in an update."""
    max_episode_steps: int = 10_000
    """Steps of each environment after which an update leaves out the episodes that have not ended."""
    normalize_returns: bool = True
    """Give an update's returns-to-go, those of all ranks together, mean 0 and standard deviation 1."""
    baseline: bool = False
    """Subtract the value of a critic, which is trained too."""
    vf_coef: float = 0.5
    """Weight of the critic's loss (mean squared error), with --baseline."""

    def build(self) -> "Reinforce":
        return Reinforce(self)

    def work(self, num_rows: int) -> tuple[int, int]:
        return 1, num_rows

    def check(self, rows_per_rank: int) -> None:
        super().check(rows_per_rank)
        require(self.episodes_per_env >= 1, "--episodes-per-env", self.episodes_per_env, "must be at least 1")
        require(self.max_episode_steps >= 1, "--max-episode-steps", self.max_episode_steps, "must be at least 1")
        require(0 <= self.vf_coef < math.inf, "--vf-coef", self.vf_coef, "must be a finite number, at least 0")


class Reinforce(Learner[Estimates, Rows]):
    """One step of the Monte-Carlo policy gradient for each rollout."""

    config: ReinforceConfig

    def collect(self, collector: AnyCollector) -> Rollout:
        """The next whole episodes of every environment."""
        config = self.config
        return collect_episodes(
            collector, config.episodes_per_env, look_every=config.num_steps, max_steps=config.max_episode_steps
        )

    def estimate(self, policy: Policy, rollout: Rollout) -> Estimates:
        """Returns-to-go and advantages."""
        ended = rollout.terminated | rollout.truncated
        return_to_go = returns_to_go(rollout.reward, ended, self.config.gamma)
        advantage = return_to_go - rollout.value if self.config.baseline else return_to_go
        return Estimates(return_to_go, advantage, weighted_sums(rollout.weight, advantage, ended))

    def prepare(self, rollout: Rollout, estimates: Estimates, totals: Tensor) -> tuple[Rows, Metrics]:
        """The rows [B, ...] of a rollout; advantages are normalized over all ranks."""
        num_ranks, total, *moments, num_episodes, _ = totals.unbind()
        advantage = estimates.advantage
        if self.config.normalize_returns:
            advantage = standardized(advantage, total, *moments)
        weight = normalized_weight(rollout.weight, num_ranks, total)
        rows_per_episode = (total / num_episodes.clamp(min=1)).float().expand_as(weight)
        rows = Rows(
            rollout.obs, rollout.action, estimates.return_to_go, advantage, weight, rows_per_episode, rollout.mask
        )
        return rows_of(rows, rollout.past, self.config.steps_per_piece()), {}

    def minibatches(self, samples: Rows, shuffle: Shuffle) -> Iterator[Rows]:
        """All rows, once: the policy gradient holds only for the policy that acted."""
        yield samples

    def loss(self, policy: Policy, samples: Rows) -> tuple[Tensor, Metrics]:
        """The negative log-probability of each action times its advantage (Williams 1992, eq. 11).

        The gradient is summed over the steps of an episode and averaged over episodes. An average over steps would
        divide an episode's gradient by its length, which depends on the actions: not a policy gradient of the return.
        """
        config, weight = self.config, samples.weight
        distribution, value, *_ = policy(samples.obs, samples.mask, *samples.past)
        policy_loss = -weighted_mean(distribution.log_prob(samples.action) * samples.advantage, weight)
        value_loss = weighted_mean((value - samples.return_to_go).square(), weight)
        # Without a baseline the critic's gradients are 0 instead of missing: DDP waits for every parameter's.
        loss = samples.rows_per_episode.mean() * policy_loss + config.vf_coef * config.baseline * value_loss
        metrics = {
            "Loss/policy_loss": policy_loss.detach(),
            "Loss/value_loss": value_loss.detach(),
            "Loss/entropy_loss": -weighted_mean(distribution.entropy(), weight).detach(),
        }
        return loss, metrics


def collect_episodes(collector: AnyCollector, num_each: int, *, look_every: int, max_steps: int) -> Rollout:
    """The next `num_each` whole episodes of every environment, all started anew: a rollout [T, N, ...].

    Every environment has the same number of episodes, since the first to end among all environments would be the short
    ones. Steps after an environment's last episode have weight 0 and report no episode; so do all steps of an episode
    that has not ended after about `max_steps`.
    """
    collector.restart()
    pieces = []
    num_ended = torch.zeros(collector.envs.num_envs, device=collector.envs.device)
    for _ in range(0, max_steps, look_every):
        piece = collector.collect(look_every)
        pieces.append(piece)
        num_ended = num_ended + (piece.terminated | piece.truncated).sum(0)
        if bool((num_ended >= num_each).all()):
            break
    rollout = tree.cat(pieces)
    ended = rollout.terminated | rollout.truncated
    ended_before = ended.cumsum(0) - ended.long()
    whole = (ended_before < num_each) & (ended_before < num_ended)
    return rollout._replace(
        terminated=rollout.terminated & whole,
        truncated=rollout.truncated & whole,
        weight=rollout.weight * whole,
        episode_return=rollout.episode_return * whole,
        episode_length=rollout.episode_length * whole,
    )
