"""Advantages and returns: what a rollout's rewards say about its actions."""

from typing import NamedTuple

import torch
from torch import Tensor

from rl.compile import scan


class Flow(NamedTuple):
    """What flows back from a step to the one before."""

    advantage: Tensor  # [N]


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
    """Generalised advantage estimate [T, N] (Schulman et al. 2016, eq. 16), from tensors [T, N].

    `next_value` is the value of the state that the action truly led to, an episode's last one included. Termination
    cuts the bootstrap, truncation does not; either ends the flow of advantage.
    """
    td_error = reward + gamma * next_value * ~terminated - value
    carried = gamma * gae_lambda * ~(terminated | truncated)

    def step(after: Flow, error: Tensor, carry: Tensor) -> tuple[Flow, Flow]:
        now = Flow(torch.addcmul(error, carry, after.advantage))
        return now, now

    _, flow = scan(step, Flow(torch.zeros_like(td_error[0])), (td_error, carried), Flow, reverse=True)
    return flow.advantage


def returns_to_go(reward: Tensor, ended: Tensor, gamma: float) -> Tensor:
    """The discounted sum [T, N] of rewards from each step to its episode's end, from tensors [T, N]."""
    nothing = torch.zeros_like(reward)
    # Without values to bootstrap from, and with lambda 1, an advantage is a return.
    return gae(reward, nothing, nothing, terminated=ended, truncated=ended, gamma=gamma, gae_lambda=1.0)
