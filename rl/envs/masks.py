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


def legal_actions(actions: Actions, given: Any, generator: np.random.Generator) -> Any:
    """Random actions of a batch, legal by the masks [N, ΣA] that it has given, in the environments' form."""
    mask = checked(given, actions.sizes)
    mask |= ~allows_one(mask, actions.sizes)[:, None]  # some batches leave out the mask of who is about to reset
    rows = np.stack([random_row(actions, row, generator) for row in mask])
    return actions.to_env(actions.of_row(rows))


class MaskInInfo(gym.Wrapper[Any, Any, Any, Any]):
    """Moves the mask of a Dict observation to `info`: the policy is to obey it, not to read it."""

    def __init__(self, env: gym.Env[Any, Any]) -> None:
        super().__init__(env)
        self.observation_space = _without_mask(env.observation_space)

    @staticmethod
    def is_for(space: gym.Space[Any]) -> bool:
        """Whether observations of this space contain a mask, and something else."""
        return isinstance(space, gym.spaces.Dict) and KEY in space.spaces and len(space.spaces) > 1

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        return _moved(*self.env.reset(seed=seed, options=options))

    def step(self, action: Any) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        obs, reward, terminated, truncated, info = self.env.step(action)
        obs, info = _moved(obs, info)
        return obs, reward, terminated, truncated, info


class MasksInInfo(gym.vector.VectorWrapper):
    """`MaskInInfo` for a batched class; what it gives as final observations may still have their masks."""

    def __init__(self, env: gym.vector.VectorEnv[Any, Any, Any]) -> None:
        super().__init__(env)
        self.single_observation_space = _without_mask(env.single_observation_space)
        self.observation_space = _without_mask(env.observation_space)

    def reset(self, *, seed: Any = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        return _moved(*self.env.reset(seed=seed, options=options))

    def step(self, actions: Any) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        obs, reward, terminated, truncated, info = self.env.step(actions)
        obs, info = _moved(obs, info)
        return obs, reward, terminated, truncated, info


def _without_mask(space: gym.Space[Any]) -> gym.spaces.Dict:
    parts = {name: part for name, part in space.spaces.items() if name != KEY}  # type: ignore[attr-defined]
    return gym.spaces.Dict(parts)


def _moved(obs: Mapping[str, Any], info: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    return {name: part for name, part in obs.items() if name != KEY}, info | {KEY: obs[KEY]}
