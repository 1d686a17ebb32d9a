"""Advantages and returns from the rewards and values of a rollout."""

from typing import NamedTuple

import torch
from torch import Tensor

from rl.tree import scan


class Flow(NamedTuple):
    """What `scan` carries from a step to the one before."""

    advantage: Tensor  # [N]


class Running(NamedTuple):
    """What `scan` carries from a step to the one after."""

    discounted_return: Tensor  # [N]


def gae(
    reward: Tensor,
    value: Tensor,
    next_value: Tensor,
    *,
    terminated: Tensor,
    truncated: Tensor,
    gamma: float,
    gae_lambda: float,
) -> Tensor:
    """Generalized advantage estimate [T, N] (Schulman et al. 2016, eq. 16), from tensors [T, N].

    `next_value` is the value of the state that the action led to, which is the final one where an episode ended.
    Termination cuts the bootstrap, truncation does not; either ends the flow of advantage.
    """
    td_error = reward + gamma * next_value * ~terminated - value
    carried = gamma * gae_lambda * ~(terminated | truncated)

    def step(after: Flow, error: Tensor, carry: Tensor) -> tuple[Flow, Flow]:
        now = Flow(torch.addcmul(error, carry, after.advantage))
        return now, now

    _, flow = scan(step, Flow(torch.zeros_like(td_error[0])), (td_error, carried), Flow, reverse=True)
    return flow.advantage


def returns_to_go(reward: Tensor, ended: Tensor, gamma: float) -> Tensor:
    """Discounted sum of rewards [T, N] from each step to the end of its episode, from tensors [T, N]."""
    zero = torch.zeros_like(reward)
    # If all values are 0 and lambda is 1, the advantage is the return.
    return gae(reward, zero, zero, terminated=ended, truncated=ended, gamma=gamma, gae_lambda=1.0)


def discounted_returns(before: Tensor, reward: Tensor, ended: Tensor, gamma: float) -> Tensor:
    """Sums [T, N] (float64) of an episode's rewards up to each step, discounted once a step, from tensors [T, N].

    `before` [N] (float64) are those of the step before the first one, or 0 where an episode begins.
    """

    def step(last: Running, reward: Tensor, ended: Tensor) -> tuple[Running, Running]:
        now = reward + gamma * last.discounted_return
        return Running(now * ~ended), Running(now)

    _, running = scan(step, Running(before), (reward.double(), ended), Running)
    return running.discounted_return
