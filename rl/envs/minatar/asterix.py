"""Asterix of MinAtar in tensors."""

import gymnasium as gym
import torch
from torch import Tensor
from torch.nn.functional import pad

from rl.envs.minatar.game import LANES, NUM_CELLS, SIDE, StickyGame, at, boards


class Asterix(StickyGame):
    """MinAtar/Asterix-v1: collect gold, for a reward of 1 each, and touch no enemy.

    Each of eight rows has at most one enemy or treasure, which crosses it; they come and move ever faster. An
    observation is a board [10, 10] of four channels: player, enemies, trails, gold. A state is x and y of the player,
    the steps from one coming to the next and those left of them, likewise for moving, the steps until that becomes
    faster and how often it has, the last action, the reward, whether the game is lost, and of each row whether there is
    something, its x, whether it goes right, and whether it is gold.
    """

    NUM_NUMBERS = 11
    COMING_INTERVAL, MOVING_INTERVAL, RAMP_INTERVAL = 10, 5, 100
    GOLD = 1 / 3

    observation_space = boards(4)
    action_space = gym.spaces.Discrete(5)  # nothing, left, up, right, down
    initial_noise_size = 0
    transition_noise_size = 4

    def initial(self, noise: Tensor) -> Tensor:
        zero = noise.new_zeros(len(noise))
        player, coming = (zero + 5, zero + 5), (zero + self.COMING_INTERVAL, zero + self.COMING_INTERVAL)
        moving = (zero + self.MOVING_INTERVAL, zero + self.MOVING_INTERVAL)
        numbers = torch.stack([*player, *coming, *moving, zero + self.RAMP_INTERVAL, zero, zero, zero, zero], dim=-1)
        return torch.cat([numbers, noise.new_zeros(len(noise), 4 * LANES)], dim=-1)

    def _parts(self, state: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """The numbers [N, 11] of a state, and of its rows [N, 8] what is there, x, whether it goes right, is gold."""
        numbers, there, x, goes_right, is_gold = torch.split(
            state, [self.NUM_NUMBERS, LANES, LANES, LANES, LANES], dim=-1
        )
        return numbers, there > 0, x, goes_right > 0, is_gold > 0

    def transition(self, state: Tensor, action: Tensor, noise: Tensor) -> Tensor:
        numbers, there, x, goes_right, is_gold = self._parts(state)
        columns = numbers.unbind(-1)
        player_x, player_y, coming, to_come, moving, to_move, to_ramp, num_ramps, last_action, _, _ = columns
        action = self.taken(last_action, action, noise)
        right, gold = (noise[:, 1] < 0.5)[:, None], (noise[:, 2] < self.GOLD)[:, None]
        comes, moves = to_come == 0, to_move == 0
        row = self._free_row(there, noise[:, 3]) & comes[:, None]
        there, goes_right, is_gold = there | row, torch.where(row, right, goes_right), torch.where(row, gold, is_gold)
        x = torch.where(row, torch.where(right, 0, SIDE - 1).to(x.dtype), x)
        left, up, right_, down = ((action == way).to(x.dtype) for way in range(1, 5))
        player_x, player_y = (player_x + right_ - left).clamp(0, SIDE - 1), (player_y + down - up).clamp(1, LANES)
        in_row = at(player_y - 1, LANES)
        touched = there & in_row & (x == player_x[:, None])
        there = there & ~(touched & is_gold)
        x = torch.where(moves[:, None], x + torch.where(goes_right, 1, -1), x)
        there = there & (x >= 0) & (x < SIDE)
        met = there & in_row & (x == player_x[:, None]) & moves[:, None]
        there = there & ~(met & is_gold)
        reward = ((touched & is_gold) | (met & is_gold)).sum(-1).to(x.dtype)
        lost = ((touched | met) & ~is_gold).any(-1).to(x.dtype)
        to_come = torch.where(comes, coming, to_come) - 1
        to_move = torch.where(moves, moving, to_move) - 1
        can_ramp = (coming > 1) | (moving > 1)
        ramps = can_ramp & (to_ramp < 0)
        to_ramp = torch.where(ramps, self.RAMP_INTERVAL, to_ramp - (can_ramp & ~ramps).to(x.dtype))
        moving = moving - (ramps & (moving > 1) & (num_ramps % 2 == 1)).to(x.dtype)
        coming = coming - (ramps & (coming > 1)).to(x.dtype)
        num_ramps = num_ramps + ramps.to(x.dtype)
        player = (player_x, player_y)
        after = (*player, coming, to_come, moving, to_move, to_ramp, num_ramps, action, reward, lost)
        rows = (there.to(x.dtype), x, goes_right.to(x.dtype), is_gold.to(x.dtype))
        return torch.cat([torch.stack(after, dim=-1), *rows], dim=-1)

    def _free_row(self, there: Tensor, noise: Tensor) -> Tensor:
        """One of the rows that are free [N, 8], each as likely; none if none is."""
        number = (~there).cumsum(-1)  # of each free row, counted from 1
        num_free = number[:, -1:]
        chosen = (noise[:, None] * num_free).floor().clamp(max=num_free - 1)
        return ~there & (number - 1 == chosen)

    def observation(self, state: Tensor) -> Tensor:
        numbers, there, x, goes_right, is_gold = self._parts(state)
        player = at(numbers[:, 1] * SIDE + numbers[:, 0], NUM_CELLS).view(-1, SIDE, SIDE, 1)
        here, behind = at(x, SIDE), at(x + torch.where(goes_right, -1, 1), SIDE)
        enemies, gold = here & (there & ~is_gold)[..., None], here & (there & is_gold)[..., None]
        rows = torch.stack([enemies, behind & there[..., None], gold], dim=-1)
        return torch.cat([player, pad(rows, (0, 0, 0, 0, 1, 1))], dim=-1)

    def reward(self, state: Tensor, action: Tensor, next_state: Tensor) -> Tensor:
        return next_state[:, self.NUM_NUMBERS - 2]

    def terminal(self, state: Tensor) -> Tensor:
        return state[:, self.NUM_NUMBERS - 1] > 0
