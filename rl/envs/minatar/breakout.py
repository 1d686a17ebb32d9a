"""Breakout of MinAtar in tensors."""

import gymnasium as gym
import torch
from torch import Tensor
from torch.nn.functional import pad

from rl.envs.minatar.game import FLOOR, NUM_CELLS, SIDE, StickyGame, at, boards

WALL_TOP, WALL_ROWS = 1, 3
NUM_BRICKS = WALL_ROWS * SIDE


class Breakout(StickyGame):
    """MinAtar/Breakout-v1: bounce a ball off a paddle to break bricks, each for a reward of 1.

    An observation is a board [10, 10] of four channels: paddle, ball, where the ball was before, bricks. A state is x,
    y, dx and dy of the ball, its last x and y, whether it has just struck a brick, x of the paddle, the last action,
    and the bricks.
    """

    observation_space = boards(4)
    action_space = gym.spaces.Discrete(3)  # nothing, left, right
    initial_noise_size = 1
    transition_noise_size = 1

    def initial(self, noise: Tensor) -> Tensor:
        from_right = (noise >= 0.5).to(noise.dtype)
        x, zero, one = FLOOR * from_right, torch.zeros_like(noise), torch.ones_like(noise)
        y = WALL_ROWS * one
        bricks = torch.ones_like(noise).expand(-1, NUM_BRICKS)
        return torch.cat([x, y, 1 - 2 * from_right, one, x, y, zero, 4 * one, zero, bricks], dim=-1)

    def transition(self, state: Tensor, action: Tensor, noise: Tensor) -> Tensor:
        last_x, last_y, dx, dy, _, _, struck, paddle, last_action = state[:, :-NUM_BRICKS].unbind(-1)
        bricks = state[:, -NUM_BRICKS:]
        action = self.taken(last_action, action, noise)
        paddle = (paddle + (action == 2).to(state.dtype) - (action == 1).to(state.dtype)).clamp(0, SIDE - 1)
        x, y = last_x + dx, last_y + dy
        dx = torch.where((x < 0) | (x >= SIDE), -dx, dx)
        x = x.clamp(0, SIDE - 1)
        at_ceiling = y < 0
        cell = at((y - WALL_TOP) * SIDE + x, NUM_BRICKS)
        hits = (bricks.bool() & cell).any(-1)
        # A ball that has just broken a brick goes through the next one.
        breaks = hits & (struck == 0)
        at_floor = y == FLOOR
        caught = at_floor & (last_x == paddle)  # from above
        saved = at_floor & ~caught & (x == paddle)  # from the side
        cleared = at_floor & ~bricks.bool().any(-1)
        bricks = torch.where(cleared[:, None], 1.0, bricks * ~(breaks[:, None] & cell))
        dx = torch.where(saved, -dx, dx)
        dy = torch.where(at_ceiling | breaks | caught | saved, -dy, dy)
        y = torch.where(breaks | caught | saved, last_y, y.clamp(min=0))
        moved = torch.stack([x, y, dx, dy, last_x, last_y, hits.to(state.dtype), paddle, action], dim=-1)
        return torch.cat([moved, bricks], dim=-1)

    def observation(self, state: Tensor) -> Tensor:
        x, y, _, _, last_x, last_y, _, paddle, _ = state[:, :-NUM_BRICKS].unbind(-1)
        places = (FLOOR * SIDE + paddle, y * SIDE + x, last_y * SIDE + last_x)
        above, below = WALL_TOP * SIDE, (SIDE - WALL_TOP - WALL_ROWS) * SIDE
        bricks = pad(state[:, -NUM_BRICKS:] > 0, (above, below))
        board = torch.stack([*(at(place, NUM_CELLS) for place in places), bricks], dim=-1)
        return board.view(-1, SIDE, SIDE, 4)

    def reward(self, state: Tensor, action: Tensor, next_state: Tensor) -> Tensor:
        before, after = (bricks[:, -NUM_BRICKS:].sum(-1) for bricks in (state, next_state))
        return (after < before).to(state.dtype)

    def terminal(self, state: Tensor) -> Tensor:
        return state[:, 1] == FLOOR
