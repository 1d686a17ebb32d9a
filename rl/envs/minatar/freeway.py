"""Freeway of MinAtar in tensors."""

import gymnasium as gym
import torch
from torch import Tensor
from torch.nn.functional import pad

from rl.envs.minatar.game import FLOOR, LANES, NOWHERE, NUM_CELLS, SIDE, StickyGame, at, boards


def _around(x: Tensor) -> Tensor:
    """Cells one step beyond a border as those at the other one; `%` would take most of the time of a step."""
    return torch.where(x < 0, SIDE - 1, torch.where(x >= SIDE, 0, x))


class Freeway(StickyGame):
    """MinAtar/Freeway-v1: cross a road of eight lanes as often as possible, for a reward of 1 each time.

    An observation is a board [10, 10] of seven channels: chicken, cars, and behind the cars their speeds 1 to 5, of
    which 1 is the fastest. A state is the row of the chicken, the steps until it can move and until the game ends, the
    last action, the reward, and of the car in each row x, the steps until it moves, and its speed, below 0 to the left.
    """

    NUM_NUMBERS = 5
    NUM_STEPS, CROSSING, NUM_SPEEDS, CHICKEN_INTERVAL = 2500, 4, 5, 3

    observation_space = boards(2 + NUM_SPEEDS)
    action_space = gym.spaces.Discrete(3)  # nothing, up, down
    initial_noise_size = 2 * LANES
    transition_noise_size = 1 + 2 * LANES

    def _speeds(self, noise: Tensor) -> Tensor:
        """Speeds [N, 10] from noise [N, 16]; 0 in the first and the last row, which have no car."""
        size = 1 + (self.NUM_SPEEDS * noise[:, :LANES]).floor().clamp(max=self.NUM_SPEEDS - 1)
        return pad(torch.where(noise[:, LANES:] < 0.5, -size, size), (1, 1))

    def initial(self, noise: Tensor) -> Tensor:
        zero, speed = noise.new_zeros(len(noise)), self._speeds(noise)
        numbers = torch.stack([zero + FLOOR, zero + self.CHICKEN_INTERVAL, zero + self.NUM_STEPS, zero, zero], dim=-1)
        return torch.cat([numbers, torch.where(speed == 0, NOWHERE, 0.0), speed.abs(), speed], dim=-1)

    def transition(self, state: Tensor, action: Tensor, noise: Tensor) -> Tensor:
        numbers, x, to_move, speed = torch.split(state, [self.NUM_NUMBERS, SIDE, SIDE, SIDE], dim=-1)
        row, to_walk, num_left, last_action, _ = numbers.unbind(-1)
        action = self.taken(last_action, action, noise)
        up, down = ((to_walk == 0) & (action == way) for way in (1, 2))
        to_walk = torch.where(up | down, self.CHICKEN_INTERVAL, to_walk)
        row = (row - up.to(row.dtype) + down.to(row.dtype)).clamp(0, FLOOR)
        across = row == 0
        speed = torch.where(across[:, None], self._speeds(noise[:, 1:]), speed)
        to_move = torch.where(across[:, None], speed.abs(), to_move)
        row = torch.where(across, FLOOR, row)
        moves = to_move == 0
        next_x = torch.where(moves & (speed != 0), _around(x + speed.sign()), x)
        struck = at(row, SIDE) & ((x == self.CROSSING) | (next_x == self.CROSSING))
        row = torch.where(struck.any(-1), FLOOR, row)
        to_move = torch.where(moves, speed.abs(), to_move - 1)
        after = (row, (to_walk - 1).clamp(min=0), num_left - 1, action, across.to(row.dtype))
        return torch.cat([torch.stack(after, dim=-1), next_x, to_move, speed], dim=-1)

    def observation(self, state: Tensor) -> Tensor:
        numbers, x, _, speed = torch.split(state, [self.NUM_NUMBERS, SIDE, SIDE, SIDE], dim=-1)
        chicken = at(numbers[:, 0] * SIDE + self.CROSSING, NUM_CELLS).view(-1, SIDE, SIDE)
        behind, size = at(_around(x - speed.sign()), SIDE), speed.abs()[..., None]
        trails = (behind & (size == number) for number in range(1, self.NUM_SPEEDS + 1))
        return torch.stack([chicken, at(x, SIDE), *trails], dim=-1)

    def reward(self, state: Tensor, action: Tensor, next_state: Tensor) -> Tensor:
        return next_state[:, self.NUM_NUMBERS - 1]

    def terminal(self, state: Tensor) -> Tensor:
        return state[:, 2] < 0
