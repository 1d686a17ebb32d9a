"""Four games of MinAtar (Young & Tian 2019) as functions of batched tensors: the originals, step for step.

Seaquest is not among them: what happens there depends on the order of lists of any length.
"""

from rl.envs.minatar.asterix import Asterix
from rl.envs.minatar.breakout import Breakout
from rl.envs.minatar.freeway import Freeway
from rl.envs.minatar.space_invaders import SpaceInvaders

__all__ = ["Asterix", "Breakout", "Freeway", "SpaceInvaders"]
