"""Action masks: which alternatives of discrete actions are legal now, as environments say in `info["action_mask"]`.

A mask has a number for every alternative, those of several choices one after the other, as the policy's logits do. An
environment gives one from its first reset on, or never.
"""

from collections.abc import Mapping
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rl.envs.actions import Actions, CompositeActions

KEY = "action_mask"
Mask = Tensor | tuple[()]
"""Legal alternatives (bool [..., ΣA]); () where the environment has no masks, and so all are legal."""


def checked(given: Any, sizes: tuple[int, ...]) -> NDArray[np.bool_]:
    """A mask [ΣA], or those of a batch [N, ΣA], from an array, or from one for each choice (Gymnasium's own form).

    Raises:
        ValueError: It has another size; the message goes on after "gave".
    """
    parts = [np.atleast_1d(part) for part in given] if isinstance(given, tuple) else []
    rows = np.concatenate(parts, axis=-1) if parts else np.asarray(given)
    if rows.dtype.kind not in "biuf" or rows.ndim == 0 or rows.shape[-1] != sum(sizes):
        raise ValueError(f"an {KEY} of {rows.dtype} and shape {rows.shape}; must be {sum(sizes)} numbers, 1 or 0")
    return rows.astype(np.bool_)


def allows_one(mask: NDArray[np.bool_], sizes: tuple[int, ...]) -> NDArray[np.bool_]:
    """Whether each row [...] of masks [..., ΣA] allows at least one alternative of each choice."""
    begins = np.cumsum((0, *sizes[:-1]))
    possible: Any = np.logical_or.reduceat(mask, begins, axis=-1)
    return possible.all(-1)  # type: ignore[no-any-return]


def without_halves(mask: Tensor, sizes: tuple[int, ...]) -> Tensor:
    """Masks [N, ΣA] in which a row allows nothing at all if it allows no alternative of one of the choices."""
    if len(sizes) == 1:
        return mask
    each = [choice.any(-1, keepdim=True) for choice in torch.split(mask, list(sizes), dim=-1)]
    return mask & torch.cat(each, dim=-1).all(-1, keepdim=True)


def random_row(actions: Actions, mask: NDArray[np.bool_], generator: np.random.Generator) -> NDArray[Any]:
    """A random action [C] that a mask [ΣA] allows, as the agent has rows: what ignores its mask may raise."""
    row: list[float] = []
    for leaf in actions.leaves() if isinstance(actions, CompositeActions) else [actions]:
        if not leaf.sizes:
            row += generator.normal(size=leaf.noise_size).tolist()
        for size in leaf.sizes:
            legal, mask = mask[:size], mask[size:]
            row.append(generator.choice(np.flatnonzero(legal)))
    return np.array(row)


class MaskInInfo(gym.Wrapper[Any, Any, Any, Any]):
    """Moves the mask of a Dict observation to `info`: the policy is to obey it, not to read it."""

    def __init__(self, env: gym.Env[Any, Any]) -> None:
        super().__init__(env)
        parts = dict(env.observation_space.spaces)  # type: ignore[attr-defined]
        del parts[KEY]
        self.observation_space = gym.spaces.Dict(parts)

    @staticmethod
    def is_for(space: gym.Space[Any]) -> bool:
        """Whether observations of this space contain a mask, and something else."""
        return isinstance(space, gym.spaces.Dict) and KEY in space.spaces and len(space.spaces) > 1

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        return self._moved(*self.env.reset(seed=seed, options=options))

    def step(self, action: Any) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        obs, reward, terminated, truncated, info = self.env.step(action)
        obs, info = self._moved(obs, info)
        return obs, reward, terminated, truncated, info

    def _moved(self, obs: Mapping[str, Any], info: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        return {name: part for name, part in obs.items() if name != KEY}, info | {KEY: obs[KEY]}
