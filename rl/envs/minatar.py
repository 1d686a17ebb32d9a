"""Four games of MinAtar (Young & Tian 2019) as functions of batched tensors: the originals, step for step.

Seaquest is not among them: what happens there depends on the order of lists of any length.
"""

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

from rl.envs.tensor_envs import TensorEnv

SIDE, WALL_TOP, WALL_ROWS = 10, 1, 3
NUM_CELLS = SIDE * SIDE
NUM_BRICKS = WALL_ROWS * SIDE
FLOOR = SIDE - 1
LANES = SIDE - 2  # all rows but the first and the last


def _at(index: Tensor, size: int) -> Tensor:
    """Which of `size` cells each index [...] names [..., size]; none if there is no such cell."""
    return torch.arange(size, device=index.device) == index[..., None]


def _boards(num_channels: int) -> gym.spaces.Box:
    return gym.spaces.Box(0.0, 1.0, (SIDE, SIDE, num_channels), np.bool_)  # type: ignore[arg-type]


class StickyGame(TensorEnv):
    """What the games share: with probability 0.1 the last action is repeated instead of the given one."""

    STICKY = 0.1
    max_episode_steps = None

    def taken(self, last_action: Tensor, action: Tensor, noise: Tensor) -> Tensor:
        """The actions that are taken [N], as numbers of a state; the first of the noise [N, …] decides."""
        return torch.where(noise[:, 0] < self.STICKY, last_action, action.to(last_action.dtype))


class Breakout(StickyGame):
    """MinAtar/Breakout-v1: bounce a ball off a paddle to break bricks, each for a reward of 1.

    An observation is a board [10, 10] of four channels: paddle, ball, where the ball was before, bricks. A state is x,
    y, dx and dy of the ball, its last x and y, whether it has just struck a brick, x of the paddle, the last action,
    and the bricks.
    """

    observation_space = _boards(4)
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
        cell = _at((y - WALL_TOP) * SIDE + x, NUM_BRICKS)
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
        board = torch.stack([*(_at(place, NUM_CELLS) for place in places), bricks], dim=-1)
        return board.view(-1, SIDE, SIDE, 4)

    def reward(self, state: Tensor, action: Tensor, next_state: Tensor) -> Tensor:
        before, after = (bricks[:, -NUM_BRICKS:].sum(-1) for bricks in (state, next_state))
        return (after < before).to(state.dtype)

    def terminal(self, state: Tensor) -> Tensor:
        return state[:, 1] == FLOOR


class SpaceInvaders(StickyGame):
    """MinAtar/SpaceInvaders-v1: shoot aliens, for a reward of 1 each, before they or their bombs hit the cannon.

    An observation is a board [10, 10] of six channels: cannon, aliens, those that go left, those that go right, the
    cannon's shots, bombs. A state is x of the cannon, the direction of the aliens and the most steps that they wait,
    the steps until they move, until they drop a bomb and until the cannon can shoot, the last action, the reward,
    whether the game is lost, and boards of shots, bombs and aliens.
    """

    NUM_NUMBERS = 9
    SLOWEST, FASTEST, BOMB_INTERVAL, COOL_DOWN = 12, 6, 10, 5

    observation_space = _boards(6)
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
        cannon = _at(x, SIDE)
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
        cannon = pad(_at(numbers[:, 0], SIDE)[:, None], (0, 0, FLOOR, 0))
        goes_left = (numbers[:, 1] < 0)[:, None, None]
        return torch.stack([cannon, aliens, aliens & goes_left, aliens & ~goes_left, shots, bombs], dim=-1)

    def reward(self, state: Tensor, action: Tensor, next_state: Tensor) -> Tensor:
        return next_state[:, self.NUM_NUMBERS - 2]

    def terminal(self, state: Tensor) -> Tensor:
        return state[:, self.NUM_NUMBERS - 1] > 0


class Freeway(StickyGame):
    """MinAtar/Freeway-v1: cross a road of eight lanes as often as possible, for a reward of 1 each time.

    An observation is a board [10, 10] of seven channels: chicken, cars, and behind the cars their speeds 1 to 5, of
    which 1 is the fastest. A state is the row of the chicken, the steps until it can move and until the game ends, the
    last action, the reward, and of the eight cars x, the steps until they move, and their speeds, negative to the left.
    """

    NUM_NUMBERS = 5
    NUM_STEPS, CROSSING, NUM_SPEEDS, CHICKEN_INTERVAL = 2500, 4, 5, 3

    observation_space = _boards(2 + NUM_SPEEDS)
    action_space = gym.spaces.Discrete(3)  # nothing, up, down
    initial_noise_size = 2 * LANES
    transition_noise_size = 1 + 2 * LANES

    def _speeds(self, noise: Tensor) -> Tensor:
        """Speeds [N, 8] from noise [N, 16]."""
        size = 1 + (self.NUM_SPEEDS * noise[:, :LANES]).floor().clamp(max=self.NUM_SPEEDS - 1)
        return torch.where(noise[:, LANES:] < 0.5, -size, size)

    def initial(self, noise: Tensor) -> Tensor:
        zero, speed = noise.new_zeros(len(noise)), self._speeds(noise)
        numbers = torch.stack([zero + FLOOR, zero + self.CHICKEN_INTERVAL, zero + self.NUM_STEPS, zero, zero], dim=-1)
        return torch.cat([numbers, torch.zeros_like(speed), speed.abs(), speed], dim=-1)

    def transition(self, state: Tensor, action: Tensor, noise: Tensor) -> Tensor:
        numbers, x, to_move, speed = torch.split(state, [self.NUM_NUMBERS, LANES, LANES, LANES], dim=-1)
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
        next_x = torch.where(moves, (x + speed.sign()) % SIDE, x)
        struck = _at(row - 1, LANES) & ((x == self.CROSSING) | (next_x == self.CROSSING))
        row = torch.where(struck.any(-1), FLOOR, row)
        to_move = torch.where(moves, speed.abs(), to_move - 1)
        after = (row, (to_walk - 1).clamp(min=0), num_left - 1, action, across.to(row.dtype))
        return torch.cat([torch.stack(after, dim=-1), next_x, to_move, speed], dim=-1)

    def observation(self, state: Tensor) -> Tensor:
        numbers, x, _, speed = torch.split(state, [self.NUM_NUMBERS, LANES, LANES, LANES], dim=-1)
        chicken = _at(numbers[:, 0] * SIDE + self.CROSSING, NUM_CELLS).view(-1, SIDE, SIDE, 1)
        behind, kind = _at((x - speed.sign()) % SIDE, SIDE), _at(speed.abs() - 1, self.NUM_SPEEDS)
        lanes = torch.cat([_at(x, SIDE)[..., None], behind[..., None] & kind[:, :, None]], dim=-1)
        return torch.cat([chicken, pad(lanes, (0, 0, 0, 0, 1, 1))], dim=-1)

    def reward(self, state: Tensor, action: Tensor, next_state: Tensor) -> Tensor:
        return next_state[:, self.NUM_NUMBERS - 1]

    def terminal(self, state: Tensor) -> Tensor:
        return state[:, 2] < 0


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

    observation_space = _boards(4)
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
        in_row = _at(player_y - 1, LANES)
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
        player = _at(numbers[:, 1] * SIDE + numbers[:, 0], NUM_CELLS).view(-1, SIDE, SIDE, 1)
        here, behind = _at(x, SIDE), _at(x + torch.where(goes_right, -1, 1), SIDE)
        enemies, gold = here & (there & ~is_gold)[..., None], here & (there & is_gold)[..., None]
        rows = torch.stack([enemies, behind & there[..., None], gold], dim=-1)
        return torch.cat([player, pad(rows, (0, 0, 0, 0, 1, 1))], dim=-1)

    def reward(self, state: Tensor, action: Tensor, next_state: Tensor) -> Tensor:
        return next_state[:, self.NUM_NUMBERS - 2]

    def terminal(self, state: Tensor) -> Tensor:
        return state[:, self.NUM_NUMBERS - 1] > 0
