"""REINFORCE: the Monte-Carlo policy gradient (Williams 1992), on whole episodes."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

from torch import Tensor

from rl.errors import require
from rl.learners.learner import Learner, Metrics, normalised_weight, standardised, weighted_mean, weighted_sums
from rl.models.agent import Policy
from rl.returns import returns_to_go
from rl.rollout import AnyCollector, Rollout, collect_episodes, map_tensors
from rl.seeding import Shuffle


class Estimates(NamedTuple):
    """What `Reinforce.estimate` finds in a rollout."""

    return_to_go: Tensor  # [T, N]
    advantage: Tensor  # [T, N], the same, or with a baseline what it exceeds that by
    sums: Tensor  # [6] float64, the `weighted_sums` of advantages and of the ends of episodes


class Rows(NamedTuple):
    """What REINFORCE learns from; every field is [B, ...]."""

    obs: Tensor
    action: Tensor
    return_to_go: Tensor
    advantage: Tensor  # normalised if the flag says so
    weight: Tensor  # 0 for rows to leave out; 1 on average over all ranks
    rows_per_episode: Tensor  # of all ranks together, the same in every row


@dataclass(frozen=True)
class Reinforce(Learner[Estimates, Rows]):
    """REINFORCE, on whole episodes."""

    whole_episodes: ClassVar[bool] = True

    num_steps: int = 32
    """Steps of each environment after which it is seen whether all episodes of an update have ended."""
    learning_rate: float = 1e-2
    gamma: float = 0.99
    max_grad_norm: float = math.inf
    episodes_per_env: int = 1
    """Episodes of each environment in an update."""
    max_episode_steps: int = 10_000
    """Steps of each environment after which an update goes on without the episodes that have not ended."""
    normalize_returns: bool = True
    """Give an update's returns-to-go, those of all ranks together, mean 0 and standard deviation 1."""
    baseline: bool = False
    """Subtract what a critic expects, which learns too."""
    vf_coef: float = 0.5
    """Weight of the critic's loss (mean squared error), with --baseline."""

    def check(self, rows_per_rank: int) -> None:
        """Raises `UserError` for a value that cannot work."""
        super().check(rows_per_rank)
        require(self.episodes_per_env >= 1, "--episodes-per-env", self.episodes_per_env, "must be at least 1")
        require(self.max_episode_steps >= 1, "--max-episode-steps", self.max_episode_steps, "must be at least 1")
        require(0 <= self.vf_coef < math.inf, "--vf-coef", self.vf_coef, "must be a finite number, at least 0")

    def collect(self, collector: AnyCollector) -> Rollout:
        """The next whole episodes of every environment."""
        return collect_episodes(
            collector, self.episodes_per_env, look_every=self.num_steps, max_steps=self.max_episode_steps
        )

    def estimate(self, policy: Policy, rollout: Rollout) -> Estimates:
        """Returns-to-go, and advantages."""
        ended = rollout.terminated | rollout.truncated
        return_to_go = returns_to_go(rollout.reward, ended, self.gamma)
        advantage = return_to_go - rollout.value if self.baseline else return_to_go
        return Estimates(return_to_go, advantage, weighted_sums(rollout.weight, advantage, ended))

    def prepare(
        self, rollout: Rollout, estimates: Estimates, sum_over_ranks: Callable[[Tensor], Tensor]
    ) -> tuple[Rows, Metrics]:
        """A rollout's rows [T·N, ...]. Moments and weights are those of all ranks, by one sum over them."""
        num_ranks, total, *moments, num_episodes, _ = sum_over_ranks(estimates.sums).unbind()
        advantage = estimates.advantage
        if self.normalize_returns:
            advantage = standardised(advantage, total, *moments)
        weight = normalised_weight(rollout.weight, num_ranks, total)
        rows_per_episode = (total / num_episodes.clamp(min=1)).float().expand_as(weight)
        rows = Rows(rollout.obs, rollout.action, estimates.return_to_go, advantage, weight, rows_per_episode)
        return map_tensors(lambda field: field.flatten(0, 1), rows), {}

    def minibatches(self, rows: Rows, shuffle: Shuffle) -> Iterator[Rows]:
        """All rows, once: the gradient is that of the policy which acted."""
        yield rows

    def work(self, num_rows: int) -> tuple[int, int]:
        """The gradient steps of an update, and the number of rows that they see in all."""
        return 1, num_rows

    def loss(self, agent: Policy, rows: Rows) -> tuple[Tensor, Metrics]:
        """Minus the log-probabilities of the actions, times what they led to (Williams 1992, eq. 11).

        The gradient sums over the steps of an episode, and takes the mean over episodes. A mean over steps would divide
        what long episodes say by their length, which depends on the actions: no policy gradient of the return.
        """
        distribution, value = agent(rows.obs)
        policy_loss = -weighted_mean(distribution.log_prob(rows.action) * rows.advantage, rows.weight)
        value_loss = weighted_mean((value - rows.return_to_go).square(), rows.weight)
        # Without a baseline the critic's gradients are 0, but there: DDP waits for every parameter's.
        loss = rows.rows_per_episode.mean() * policy_loss + self.vf_coef * self.baseline * value_loss
        metrics = {
            "Loss/policy_loss": policy_loss.detach(),
            "Loss/value_loss": value_loss.detach(),
            "Loss/entropy_loss": -weighted_mean(distribution.entropy(), rows.weight).detach(),
        }
        return loss, metrics
