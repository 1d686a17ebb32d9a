"""Space Invaders of MinAtar in tensors."""

import gymnasium as gym
import torch
from torch import Tensor
from torch.nn.functional import pad

from rl.envs.minatar.game import FLOOR, NUM_CELLS, SIDE, StickyGame, at, boards


class SpaceInvaders(StickyGame):
    """MinAtar/SpaceInvaders-v1: shoot aliens, for a reward of 1 each, before they or their bombs hit the cannon.

    An observation is a board [10, 10] of six channels: cannon, aliens, those that go left, those that go right, the
    cannon's shots, bombs. A state is x of the cannon, the direction of the aliens and the most steps that they wait,
    the steps until they move, until they drop a bomb and until the cannon can shoot, the last action, the reward,
    whether the game is lost, and boards of shots, bombs and aliens.
    """

    NUM_NUMBERS = 9
    SLOWEST, FASTEST, BOMB_INTERVAL, COOL_DOWN = 12, 6, 10, 5

    observation_space = boards(6)
    action_space = gym.spaces.Discrete(4)  # nothing, left, right, shoot
    initial_noise_size = 0
    transition_noise_size = 1

    def initial(self, noise: Tensor) -> Tensor:
        zero = noise.new_zeros(len(noise))
        numbers = (zero + 5, zero - 1, zero + self.SLOWEST, zero + self.SLOWEST, zero + self.BOMB_INTERVAL)
        empty = noise.new_zeros(len(noise), 2 * NUM_CELLS)
        aliens = self._wave(noise).to(noise.dtype).expand(len(noise), -1)
        return torch.cat([torch.stack([*numbers, zero, zero, zero, zero], dim=-1), empty, aliens], dim=-1)

    def _wave(self, like: Tensor) -> Tensor:
        """Where aliens begin [100]: in the first four rows, but not in the two columns at each side."""
        cell = torch.arange(NUM_CELLS, device=like.device)
        column = cell % SIDE
        return (cell < 4 * SIDE) & (column >= 2) & (column < SIDE - 2)

    def _parts(self, state: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The numbers [N, 9] of a state, and its boards [N, 10, 10] of shots, bombs and aliens."""
        numbers, *boards = torch.split(state, [self.NUM_NUMBERS, NUM_CELLS, NUM_CELLS, NUM_CELLS], dim=-1)
        shots, bombs, aliens = (board.reshape(-1, SIDE, SIDE) > 0 for board in boards)
        return numbers, shots, bombs, aliens

    def transition(self, state: Tensor, action: Tensor, noise: Tensor) -> Tensor:
        numbers, shots, bombs, aliens = self._parts(state)
        x, direction, slowest, to_move, to_bomb, to_shot, last_action, _, _ = numbers.unbind(-1)
        action = self.taken(last_action, action, noise)
        x = (x + (action == 2).to(x.dtype) - (action == 1).to(x.dtype)).clamp(0, SIDE - 1)
        cannon = at(x, SIDE)
        fires = (action == 3) & (to_shot == 0)
        to_shot = torch.where(fires, self.COOL_DOWN, to_shot)
        shots = torch.cat([shots[:, 1:FLOOR], (shots[:, FLOOR] | (cannon & fires[:, None]))[:, None]], dim=1)
        shots, bombs = pad(shots, (0, 0, 0, 1)), pad(bombs[:, :FLOOR], (0, 0, 1, 0))  # which fly
        lost = ((bombs[:, FLOOR] | aliens[:, FLOOR]) & cannon).any(-1)

        moves = to_move == 0
        at_side = torch.where(direction < 0, aliens[:, :, 0].any(-1), aliens[:, :, -1].any(-1))
        to_move = torch.where(moves, torch.minimum(aliens.sum((1, 2)).to(x.dtype), slowest), to_move)
        lost = lost | (moves & at_side & aliens[:, FLOOR].any(-1))
        aside = torch.where((direction < 0)[:, None, None], aliens.roll(-1, 2), aliens.roll(1, 2))
        moved = torch.where(at_side[:, None, None], aliens.roll(1, 1), aside)
        aliens = torch.where(moves[:, None, None], moved, aliens)
        direction = torch.where(moves & at_side, -direction, direction)
        lost = lost | (moves & (aliens[:, FLOOR] & cannon).any(-1))

        bombing = to_bomb == 0
        to_bomb = torch.where(bombing, self.BOMB_INTERVAL, to_bomb)
        bombs = bombs | (self._bomber(aliens, x) & bombing[:, None, None])
        hits = aliens & shots
        aliens, shots = aliens & ~hits, shots & ~hits
        cleared = ~aliens.any((1, 2))
        slowest = slowest - (cleared & (slowest > self.FASTEST)).to(x.dtype)
        aliens = torch.where(cleared[:, None, None], self._wave(state).view(SIDE, SIDE), aliens)
        reward, to_shot = hits.sum((1, 2)).to(x.dtype), (to_shot - 1).clamp(min=0)
        after = (x, direction, slowest, to_move - 1, to_bomb - 1, to_shot, action, reward, lost.to(x.dtype))
        boards = (board.flatten(1).to(x.dtype) for board in (shots, bombs, aliens))
        return torch.cat([torch.stack(after, dim=-1), *boards], dim=-1)

    def _bomber(self, aliens: Tensor, x: Tensor) -> Tensor:
        """The lowest alien of the column that is nearest to the cannon, of two the left one [N, 10, 10]."""
        column = torch.arange(SIDE, device=x.device, dtype=x.dtype)
        farness = 2 * (column - x[:, None]).abs() + (column > x[:, None]).to(x.dtype)
        farness = torch.where(aliens.any(1), farness, 3 * SIDE)
        nearest = farness == farness.amin(-1, keepdim=True)
        num_from_here_down = aliens.flip(1).cumsum(1).flip(1)
        return aliens & (num_from_here_down == 1) & nearest[:, None]

    def observation(self, state: Tensor) -> Tensor:
        numbers, shots, bombs, aliens = self._parts(state)
        cannon = pad(at(numbers[:, 0], SIDE)[:, None], (0, 0, FLOOR, 0))
        goes_left = (numbers[:, 1] < 0)[:, None, None]
        return torch.stack([cannon, aliens, aliens & goes_left, aliens & ~goes_left, shots, bombs], dim=-1)

    def reward(self, state: Tensor, action: Tensor, next_state: Tensor) -> Tensor:
        return next_state[:, self.NUM_NUMBERS - 2]

    def terminal(self, state: Tensor) -> Tensor:
        return state[:, self.NUM_NUMBERS - 1] > 0
