"""What a rank that plays measures for the agent's normalizers."""

from collections.abc import Callable

import torch
from torch import Tensor

from rl.collector import AnyCollector
from rl.envs.observations import numbers_of
from rl.models.agent import Agent
from rl.models.normalizer import Normalizer
from rl.returns import discounted_returns
from rl.rollout import Rollout


class Statistics:
    """Measures rollouts, and updates the agent's normalizers with what all ranks measured.

    Normalizers keep still while a rollout is collected and learned from, so that the policy that learns is at first
    exactly the one that acted. The reward's scale is the standard deviation of its discounted sum over the episode so
    far (Engstrom et al. 2020, section 3), which the collector carries from one rollout to the next.
    """

    def __init__(self, agent: Agent, collector: AnyCollector, gamma: float) -> None:
        self.agent, self.collector, self.gamma = agent, collector, gamma
        self.measured: list[tuple[Normalizer, Tensor, Tensor]] = []  # values [T, N, D] and their weights [T, N]
        self.totals = torch.zeros(0)

    def are_missing(self) -> bool:
        """Whether a normalizer has nothing to normalize by."""
        return any(float(normalizer.count) == 0 for normalizer in self.agent.normalizers())

    def sum(self, values: Tensor, rollout: Rollout, sum_over_ranks: Callable[[Tensor], Tensor]) -> Tensor:
        """The sum of all ranks' values; the statistics of their rollouts travel with it, and wait for `update`."""
        self._measure(rollout)
        total = sum_over_ranks(torch.cat([values, self._sums()]))
        self.totals = total[len(values) :]
        return total[: len(values)]

    def begin(self, rollout: Rollout, *sums_over_ranks: Callable[[Tensor], Tensor]) -> None:
        """Makes the first statistics, in two sums: squares lose digits unless they are taken around the mean."""
        self._measure(rollout)
        for change, sum_over_ranks in zip((Normalizer.center, Normalizer.update), sums_over_ranks, strict=True):
            self.totals = sum_over_ranks(self._sums())
            self._apply(change)

    def update(self) -> None:
        """Updates the normalizers with the last `sum`."""
        self._apply(Normalizer.update)

    def _apply(self, change: Callable[[Normalizer, Tensor], None]) -> None:
        totals = torch.split(self.totals, [1 + 2 * values.shape[-1] for _, values, _ in self.measured])
        for (normalizer, _, _), total in zip(self.measured, totals, strict=True):
            change(normalizer, total)

    def _measure(self, rollout: Rollout) -> None:
        self.measured = []
        if (normalizer := self.agent.obs_normalizer) is not None:
            numbers = numbers_of(self.agent.spaces.obs, rollout.obs)
            self.measured.append((normalizer, numbers, rollout.weight))
        if (normalizer := self.agent.return_normalizer) is not None:
            ended = rollout.terminated | rollout.truncated
            returns = discounted_returns(self.collector.discounted_return, rollout.reward, ended, self.gamma)
            self.collector.discounted_return = returns[-1] * ~ended[-1]
            self.measured.append((normalizer, returns.unsqueeze(-1), rollout.weight))

    def _sums(self) -> Tensor:
        """This rank's part [K] (float64) of the statistics; [0] without normalizers."""
        sums = (normalizer.sums(values, weight) for normalizer, values, weight in self.measured)
        return torch.cat([self.collector.discounted_return[:0].double(), *sums])
