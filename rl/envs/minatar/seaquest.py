"""Seaquest of MinAtar in tensors; the comments on `Sea` say why there are places enough for all that swims or flies."""

from typing import NamedTuple

import gymnasium as gym
import torch
from torch import Tensor
from torch.nn.functional import pad

from rl.envs.minatar.game import FLOOR, LANES, NUM_CELLS, SIDE, StickyGame, at, boards
from rl.envs.minatar.swimmers import BOMB_INTERVAL, Swimmers, last_born, way

MAX_OXYGEN, MAX_DIVERS, COOL_DOWN = 200, 6, 5
SLOWEST_COMING, SLOWEST_MOVING, FASTEST_MOVING = 20, 5, 2
DIVER_COMING, DIVER_MOVING = 30, 5
SUBMARINE = 1 / 3  # of all enemies; the others are fish


class Sea(NamedTuple):
    """A state; every field but those that say otherwise is a number [N]."""

    x: Tensor  # of the submarine
    y: Tensor
    right: Tensor  # whether it looks there
    oxygen: Tensor
    divers: Tensor  # on board
    to_come: Tensor  # steps until the next enemy
    coming: Tensor  # steps from one enemy to the next
    to_dive: Tensor  # steps until the next diver
    moving: Tensor  # steps for which enemies wait
    num_ramps: Tensor  # how often all became faster
    to_shot: Tensor  # steps until it can shoot
    surfaced: Tensor  # whether it has been at the surface since it came there
    clock: Tensor
    last_action: Tensor
    reward: Tensor
    lost: Tensor
    shots: Swimmers  # one in five steps, for at most nine
    bombs: Tensor  # [N, 2, 10, 10], to the right and to the left; two in one cell stay together
    enemies: Swimmers  # at most one in a step, for at most thirty
    swimming: Swimmers  # divers: one in thirty steps, for sixty


NUM_NUMBERS = len(Sea._fields) - 4
NUM_SHOTS, NUM_ENEMIES, NUM_SWIMMING = 2, 32, 3
NUM_FIELDS = len(Swimmers._fields)


def _swimmers(part: Tensor) -> Swimmers:
    there, x, y, right, to_move, born, to_bomb, is_sub = part.view(len(part), NUM_FIELDS, -1).unbind(1)
    return Swimmers(there > 0, x, y, right > 0, to_move, born, to_bomb, is_sub > 0)


def sea_of(state: Tensor) -> Sea:
    """A state in parts."""
    sizes = [NUM_NUMBERS, NUM_FIELDS * NUM_SHOTS, 2 * NUM_CELLS, NUM_FIELDS * NUM_ENEMIES, NUM_FIELDS * NUM_SWIMMING]
    numbers, shots, bombs, enemies, swimming = torch.split(state, sizes, dim=-1)
    flying = _swimmers(shots), bombs.view(-1, 2, SIDE, SIDE) > 0
    sea = Sea(*numbers.unbind(-1), *flying, _swimmers(enemies), _swimmers(swimming))  # type: ignore[call-arg, arg-type]
    return sea._replace(right=sea.right > 0, surfaced=sea.surfaced > 0, lost=sea.lost > 0)


def state_of(sea: Sea, dtype: torch.dtype) -> Tensor:
    """The inverse of `sea_of`."""
    numbers = torch.stack([field.to(dtype) for field in sea if isinstance(field, Tensor) and field.dim() == 1], dim=-1)
    shots, enemies, swimming = (
        torch.stack([field.to(dtype) for field in part], dim=1).flatten(1)
        for part in (sea.shots, sea.enemies, sea.swimming)
    )
    return torch.cat([numbers, shots, sea.bombs.flatten(1).to(dtype), enemies, swimming], dim=-1)


class Seaquest(StickyGame):
    """MinAtar/Seaquest-v1: shoot fish and submarines, for a reward of 1 each, and bring divers to the surface.

    With six divers that is worth the tenths of the oxygen that is left; without a diver it loses the game, as do a lack
    of oxygen and what enemies do. An observation is a board [10, 10] of ten channels: the submarine and its back, its
    shots, trails, bombs, fish, enemy submarines, oxygen, divers on board, and divers.
    """

    observation_space = boards(10)
    action_space = gym.spaces.Discrete(6)  # nothing, left, up, right, down, shoot
    initial_noise_size = 0
    transition_noise_size = 6

    def initial(self, noise: Tensor) -> Tensor:
        size = NUM_NUMBERS + NUM_FIELDS * (NUM_SHOTS + NUM_ENEMIES + NUM_SWIMMING) + 2 * NUM_CELLS
        sea, zero = sea_of(noise.new_zeros(len(noise), size)), noise.new_zeros(len(noise))
        sea = sea._replace(x=zero + 5, oxygen=zero + MAX_OXYGEN, surfaced=zero == 0, moving=zero + SLOWEST_MOVING)
        coming, to_dive = zero + SLOWEST_COMING, zero + DIVER_COMING
        return state_of(sea._replace(to_come=coming, coming=coming, to_dive=to_dive), noise.dtype)

    def transition(self, state: Tensor, action: Tensor, noise: Tensor) -> Tensor:
        sea = sea_of(state)
        action = self.taken(sea.last_action, action, noise)
        sea = sea._replace(reward=torch.zeros_like(sea.x), last_action=action, clock=sea.clock + 1)
        sea = _steer(_spawn(sea, noise), action)
        return state_of(_breathe(_meet(_rescue(_shoot(sea)))), state.dtype)

    def observation(self, state: Tensor) -> Tensor:
        sea = sea_of(state)
        front, back = (at(sea.y * SIDE + x, NUM_CELLS).view(-1, SIDE, SIDE) for x in (sea.x, sea.x - way(sea.right)))
        enemies = sea.enemies
        trail = enemies.behind().seen() | sea.swimming.behind().seen()
        # In the last row. Inductor 2.13 writes C++ that no compiler takes where a row is padded to a board.
        column = torch.arange(SIDE, device=state.device, dtype=state.dtype)
        bottom = (column == FLOOR)[:, None]
        oxygen = bottom & (column < (sea.oxygen.clamp(min=0) * SIDE / MAX_OXYGEN).floor()[:, None, None])
        divers = bottom & (column < FLOOR) & (column >= (FLOOR - sea.divers)[:, None, None])
        fish, subs = enemies.seen(~enemies.is_sub), enemies.seen(enemies.is_sub)
        seen = (sea.shots.seen(), trail, sea.bombs.any(1), fish, subs, oxygen, divers, sea.swimming.seen())
        return torch.stack([front, back, *seen], dim=-1)

    def reward(self, state: Tensor, action: Tensor, next_state: Tensor) -> Tensor:
        return next_state[:, Sea._fields.index("reward")]

    def terminal(self, state: Tensor) -> Tensor:
        return state[:, Sea._fields.index("lost")] > 0


def _spawn(sea: Sea, noise: Tensor) -> Sea:
    """Lets an enemy and a diver come; no enemy where another one of its row goes the other way."""
    right, diver_right = noise[:, 1] < 0.5, noise[:, 4] < 0.5
    is_sub = noise[:, 2] < SUBMARINE
    y, diver_y = (1 + (LANES * numbers).floor().clamp(max=LANES - 1) for numbers in (noise[:, 3], noise[:, 5]))
    others = sea.enemies
    blocked = (others.there & (others.y == y[:, None]) & (others.right != right[:, None])).any(-1)
    comes, dives = sea.to_come == 0, sea.to_dive == 0
    diver_moving = torch.full_like(y, DIVER_MOVING)
    return sea._replace(
        enemies=others.joined(comes & ~blocked, y, right, sea.moving, sea.clock, is_sub),
        swimming=sea.swimming.joined(dives, diver_y, diver_right, diver_moving, sea.clock, torch.zeros_like(dives)),
        to_come=torch.where(comes, sea.coming, sea.to_come),
        to_dive=torch.where(dives, DIVER_COMING, sea.to_dive),
    )


def _steer(sea: Sea, action: Tensor) -> Sea:
    """Moves the submarine, or lets it shoot."""
    left, up, right, down = (action == number for number in range(1, 5))
    fires = (action == 5) & (sea.to_shot == 0)
    x = (sea.x + right.to(sea.x.dtype) - left.to(sea.x.dtype)).clamp(0, SIDE - 1)
    y = (sea.y + down.to(sea.y.dtype) - up.to(sea.y.dtype)).clamp(0, LANES)
    looks_right = torch.where(left | right, right, sea.right)
    shots = sea.shots.joined(fires, y, looks_right, torch.zeros_like(x), sea.clock, fires)
    new = shots.there & ~sea.shots.there
    shots = shots._replace(x=torch.where(new, x[:, None], shots.x))  # it does not come from the side
    to_shot = torch.where(fires, COOL_DOWN, sea.to_shot)
    return sea._replace(x=x, y=y, right=looks_right, shots=shots, to_shot=to_shot)


def _shoot(sea: Sea) -> Sea:
    """Moves the shots, the last one first; each hits the fish, or else the submarine, of its cell that came first."""
    x = sea.shots.x + way(sea.shots.right)
    sea = sea._replace(shots=sea.shots._replace(x=x, there=sea.shots.there & (x >= 0) & (x < SIDE)))
    gone = torch.zeros_like(sea.shots.there)
    for _ in range(NUM_SHOTS):
        shot = last_born(sea.shots.there & ~gone, sea.shots.born)
        gone = gone | shot
        here = _in_its_cell(sea, shot)
        fish = here & ~sea.enemies.is_sub
        age = sea.clock[:, None] - sea.enemies.born
        sea = _hit(sea, shot, last_born(torch.where(fish.any(-1, keepdim=True), fish, here), age))
    return sea


def _in_its_cell(sea: Sea, shot: Tensor) -> Tensor:
    """The enemies [N, 32] that are where one shot is, of [N, 2]."""
    x, y = ((shot * field).sum(-1) for field in (sea.shots.x, sea.shots.y))
    return sea.enemies.at(x, y) & shot.any(-1, keepdim=True)


def _hit(sea: Sea, shot: Tensor, enemy: Tensor) -> Sea:
    """Takes an enemy of [N, 32] away, where there is one, and the shot of [N, 2] that has hit it."""
    hits = enemy.any(-1, keepdim=True)
    return sea._replace(
        enemies=sea.enemies._replace(there=sea.enemies.there & ~enemy),
        shots=sea.shots._replace(there=sea.shots.there & ~(shot & hits)),
        reward=sea.reward + hits[:, 0].to(sea.reward.dtype),
    )


def _rescue(sea: Sea) -> Sea:
    """Moves the divers; takes those on board who are, or come, where the submarine is, the last one first."""
    swimming = sea.swimming
    is_met = swimming.at(sea.x, sea.y)
    moves = swimming.to_move == 0
    x = torch.where(moves, swimming.x + way(swimming.right), swimming.x)
    moved = swimming._replace(x=x, to_move=torch.where(moves, DIVER_MOVING, swimming.to_move - 1))
    is_met = is_met | (moved.at(sea.x, sea.y) & moves)
    later = is_met[:, None, :] & (swimming.born[:, None, :] > swimming.born[..., None])
    taken = is_met & (sea.divers[:, None] + later.sum(-1) < MAX_DIVERS)
    there = swimming.there & ~taken & (x >= 0) & (x < SIDE)
    return sea._replace(swimming=moved._replace(there=there), divers=sea.divers + taken.sum(-1).to(sea.divers.dtype))


def _meet(sea: Sea) -> Sea:
    """Moves enemies and bombs, which the submarine must not meet; enemies meet shots, submarines before fish."""
    enemies, shots = sea.enemies, sea.shots
    met = enemies.at(sea.x, sea.y)
    moves = enemies.there & (enemies.to_move == 0)
    x = torch.where(moves, enemies.x + way(enemies.right), enemies.x)
    to_move = torch.where(moves, sea.moving[:, None], enemies.to_move - 1)
    bombing = enemies.there & enemies.is_sub & (enemies.to_bomb == 0)
    to_bomb = torch.where(bombing, BOMB_INTERVAL, enemies.to_bomb - 1)
    enemies = enemies._replace(x=x, to_move=to_move, to_bomb=to_bomb)
    new = [enemies.seen(bombing & side) for side in (enemies.right, ~enemies.right)]
    bombs = sea.bombs | torch.stack(new, dim=1)
    enemies = enemies._replace(there=enemies.there & (x >= 0) & (x < SIDE))
    comes = enemies.at(sea.x, sea.y) & moves
    sea = sea._replace(enemies=enemies, lost=sea.lost | (met | comes).any(-1))
    num_older = (shots.there[:, None, :] & (shots.born[:, None, :] < shots.born[..., None])).sum(-1)
    for kind in (enemies.is_sub, ~enemies.is_sub):
        for number in range(NUM_SHOTS):
            shot = sea.shots.there & (num_older == number)
            can_be_hit = _in_its_cell(sea, shot) & moves & ~comes & kind
            sea = _hit(sea, shot, last_born(can_be_hit, enemies.born))
    here = at(sea.y * SIDE + sea.x, NUM_CELLS).view(-1, 1, SIDE, SIDE)
    flown = torch.stack([pad(bombs[:, 0, :, :-1], (1, 0)), pad(bombs[:, 1, :, 1:], (0, 1))], dim=1)
    bombed = ((bombs | flown) & here).flatten(1).any(-1)
    return sea._replace(bombs=flown, lost=sea.lost | bombed)


def _breathe(sea: Sea) -> Sea:
    """Counts the oxygen and all times; at the surface hands over a diver, or six for a reward; all becomes faster."""
    is_under = sea.y > 0
    comes_up = ~is_under & ~sea.surfaced
    lost = sea.lost | (sea.oxygen <= 0) | (comes_up & (sea.divers == 0))
    comes_up, is_full = comes_up & (sea.divers != 0), comes_up & (sea.divers == MAX_DIVERS)
    bonus = torch.where(is_full, (sea.oxygen * SIDE / MAX_OXYGEN).floor(), 0.0)
    ramps = comes_up & ((sea.coming > 1) | (sea.moving > FASTEST_MOVING))
    moves_faster = ramps & (sea.moving > FASTEST_MOVING) & (sea.num_ramps % 2 == 1)
    number = sea.x.dtype
    return sea._replace(
        oxygen=torch.where(comes_up, MAX_OXYGEN, sea.oxygen - is_under.to(number)),
        divers=torch.where(is_full, 0.0, sea.divers) - comes_up.to(number),
        coming=sea.coming - (ramps & (sea.coming > 1)).to(number),
        moving=sea.moving - moves_faster.to(number),
        num_ramps=sea.num_ramps + ramps.to(number),
        to_come=(sea.to_come - 1).clamp(min=0),
        to_dive=(sea.to_dive - 1).clamp(min=0),
        to_shot=(sea.to_shot - 1).clamp(min=0),
        surfaced=~is_under,
        reward=sea.reward + bonus,
        lost=lost,
    )
