"""Advantages and returns: what a rollout's rewards say about its actions."""

import torch
from torch import Tensor


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
    advantage = torch.zeros_like(td_error[0])
    advantages = []
    for error, carry in zip(reversed(td_error.unbind()), reversed(carried.unbind()), strict=True):
        advantage = torch.addcmul(error, carry, advantage)
        advantages.append(advantage)
    return torch.stack(advantages[::-1])
