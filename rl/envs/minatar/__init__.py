"""The games of MinAtar (Young & Tian 2019) as functions of batched tensors: the originals, step for step."""

from rl.envs.minatar.asterix import Asterix
from rl.envs.minatar.breakout import Breakout
from rl.envs.minatar.freeway import Freeway
from rl.envs.minatar.seaquest import Seaquest
from rl.envs.minatar.space_invaders import SpaceInvaders

__all__ = ["Asterix", "Breakout", "Freeway", "Seaquest", "SpaceInvaders"]
