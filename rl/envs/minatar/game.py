"""What the games of MinAtar share: boards of 10 × 10 cells, and actions that are sometimes repeated."""

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor

from rl.envs.tensor_envs import TensorEnv

SIDE = 10
NUM_CELLS = SIDE * SIDE
FLOOR = SIDE - 1
LANES = SIDE - 2  # all rows but the first and the last
NOWHERE = -1.0  # a cell that there is not


def at(index: Tensor, size: int) -> Tensor:
    """Which of `size` cells each index [...] names [..., size]; none if there is no such cell."""
    return torch.arange(size, device=index.device) == index[..., None]


def boards(num_channels: int) -> gym.spaces.Box:
    """The space of boards [10, 10] of so many channels, each of which says where something is."""
    return gym.spaces.Box(0.0, 1.0, (SIDE, SIDE, num_channels), np.bool_)  # type: ignore[arg-type]


class StickyGame(TensorEnv):
    """A game in which, with probability 0.1, the last action is repeated instead of the given one."""

    STICKY = 0.1
    max_episode_steps = None

    def taken(self, last_action: Tensor, action: Tensor, noise: Tensor) -> Tensor:
        """The actions that are taken [N], as numbers of a state; the first of the noise [N, …] decides."""
        return torch.where(noise[:, 0] < self.STICKY, last_action, action.to(last_action.dtype))
