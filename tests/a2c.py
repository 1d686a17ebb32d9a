"""A learner outside the package: A2C (Mnih et al. 2016), one gradient step a rollout. `python -m tests.a2c a2c`."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

import train_torch
from rl import tree
from rl.cli import command_line
from rl.config import CONFIGS, Config
from rl.envs.masks import Mask
from rl.learners.learner import Learner, LearnerConfig, Metrics, normalized_weight, weighted_mean, weighted_sums
from rl.models.agent import Policy
from rl.returns import gae
from rl.rollout import Rollout
from rl.seeding import Shuffle


class Estimates(NamedTuple):
    advantage: Tensor  # [T, N]
    sums: Tensor  # [2] float64


class Rows(NamedTuple):  # every field is [B, ...]
    obs: Tensor
    action: Tensor
    advantage: Tensor
    target: Tensor
    weight: Tensor
    mask: Mask = ()


@dataclass(frozen=True)
class A2CConfig(LearnerConfig):
    """Advantage actor-critic."""

    num_steps: int = 16
    gae_lambda: float = 1.0
    """Lambda of the generalized advantage estimate."""

    def build(self) -> "A2C":
        return A2C(self)

    def work(self, num_rows: int) -> tuple[int, int]:
        return 1, num_rows


class A2C(Learner[Estimates, Rows]):
    config: A2CConfig

    def estimate(self, policy: Policy, rollout: Rollout) -> Estimates:
        c, r = self.config, rollout
        ends = {"terminated": r.terminated, "truncated": r.truncated}
        advantage = gae(r.reward, r.value, r.next_value, **ends, gamma=c.gamma, gae_lambda=c.gae_lambda)
        return Estimates(advantage, weighted_sums(r.weight))

    def prepare(self, rollout: Rollout, estimates: Estimates, totals: Tensor) -> tuple[Rows, Metrics]:
        advantage, weight = estimates.advantage, normalized_weight(rollout.weight, *totals)
        rows = Rows(rollout.obs, rollout.action, advantage, advantage + rollout.value, weight, rollout.mask)
        return tree.map(lambda field: field.flatten(0, 1), rows), {}

    def minibatches(self, samples: Rows, shuffle: Shuffle) -> Iterator[Rows]:
        yield samples

    def loss(self, policy: Policy, samples: Rows) -> tuple[Tensor, Metrics]:
        distribution, value = policy(samples.obs, samples.mask)
        policy_loss = -weighted_mean(distribution.log_prob(samples.action) * samples.advantage, samples.weight)
        value_loss = weighted_mean((samples.target - value).square(), samples.weight)
        return policy_loss + 0.5 * value_loss, {"Loss/value_loss": value_loss.detach()}


CONFIGS["a2c"] = Config(learner=A2CConfig())

if __name__ == "__main__":
    command_line(train_torch.main, CONFIGS, train_torch.PROGRAM)
