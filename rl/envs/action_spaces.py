"""Which spaces of Gymnasium's an agent can act in, and the space of the rows that stand for a Dict or a Tuple."""

import math
from typing import Any

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from rl.envs.actions import (
    MAX_ACTIONS,
    Actions,
    BoxActions,
    CompositeActions,
    DiscreteActions,
    MultiDiscreteActions,
)
from rl.errors import UserError


class RowSpace(spaces.Box):
    """The rows [C] (float64) that stand for the actions of a Dict or a Tuple.

    They are one array wherever environments are batched, in shared memory, and in checkpoints; `SeededEpisodes` gives
    its environment the structure.
    """

    def __init__(self, actions: CompositeActions, space: spaces.Space[Any]) -> None:
        super().__init__(-np.inf, np.inf, (actions.noise_size,), np.float64)
        self.actions, self.structure = actions, space

    def seed(self, seed: Any = None) -> Any:
        return self.structure.seed(seed)

    def sample(self, mask: Any = None, probability: Any = None) -> NDArray[Any]:
        return self.actions.flattened(self.structure.sample(mask, probability))


def actions_of(env_id: str, space: spaces.Space[Any]) -> Actions:
    """The actions of a space; raises `UserError` for a space that is not supported."""
    if (actions := _actions_of(space)) is None:
        raise UserError(
            f"--env-id {env_id}: its action space is {space}; supported are Discrete, MultiDiscrete and MultiBinary"
            f" with at most {MAX_ACTIONS:,} actions, a Box of numbers of at most 64 bits, and Dict and Tuple of these"
        )
    return actions


def _actions_of(space: spaces.Space[Any]) -> Actions | None:
    if isinstance(space, RowSpace):
        return space.actions
    if isinstance(space, spaces.Discrete) and space.n <= MAX_ACTIONS:
        return DiscreteActions(int(space.n), int(space.start))
    if isinstance(space, spaces.MultiDiscrete | spaces.MultiBinary) and 0 < math.prod(space.shape) <= MAX_ACTIONS:
        sizes = getattr(space, "nvec", np.full(space.shape, 2)).ravel().tolist()
        starts = getattr(space, "start", np.zeros(space.shape, np.int64)).ravel().tolist()
        if len(sizes) * max(sizes) <= MAX_ACTIONS:  # log-probabilities are a table of choices and alternatives
            return MultiDiscreteActions(tuple(sizes), tuple(starts), tuple(space.shape), np.dtype(space.dtype).name)
    if (
        isinstance(space, spaces.Box)
        and math.prod(space.shape) > 0
        and space.dtype.itemsize <= 8  # torch has no wider numbers
        and (space.low <= space.high).all()  # false for NaN
    ):
        return BoxActions.of(space)
    if isinstance(space, spaces.Dict):
        parts = [_actions_of(part) if isinstance(key, str) else None for key, part in space.spaces.items()]
        return _composite(tuple(space.spaces), parts)
    return _composite(None, list(map(_actions_of, space.spaces))) if isinstance(space, spaces.Tuple) else None


def _composite(keys: tuple[str, ...] | None, parts: list[Actions | None]) -> CompositeActions | None:
    supported = tuple(part for part in parts if part is not None)
    return CompositeActions(keys, supported) if 0 < len(parts) == len(supported) else None
