"""Environments with actions of every kind, which refuse those that their mask forbids."""

from typing import Any, ClassVar

import gymnasium as gym
import numpy as np
import torch
from gymnasium.spaces import Box, Dict, Discrete, MultiBinary, MultiDiscrete
from gymnasium.vector import AutoresetMode
from gymnasium.vector.utils import batch_space

from rl.envs.tensor_envs import TensorEnv, register_tensor_env

SPACES: dict[str, tuple[gym.Space[Any], tuple[int, ...]]] = {
    "one": (Discrete(4, start=1), (4,)),
    "many": (MultiDiscrete([3, 2, 3], start=[0, 5, -1]), (3, 2, 3)),
    "tree": (
        Dict({"aim": Box(-1, 1, (2,), np.float64), "door": Discrete(4, start=1), "keys": MultiBinary((1, 2))}),
        (4, 2, 2),
    ),
}


class Doors(gym.Env[Any, Any]):
    """Episodes of random length, with a random mask after each step; `faults` are what its mask does wrong."""

    metadata: ClassVar[dict[str, Any]] = {"render_modes": []}

    def __init__(self, actions: str = "one", mask_in: str = "info", fault: str = "") -> None:
        self.action_space, self.sizes = SPACES[actions]
        self.mask_in, self.fault = mask_in, fault
        self.observation_space = Box(0, 1, (3,))
        if mask_in == "obs":
            self.observation_space = Dict(
                {"action_mask": MultiBinary(sum(self.sizes)), "observation": self.observation_space}
            )

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.num_steps = 0
        return self._seen()

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        assert self.action_space.contains(action), action
        chosen, begin = self._choices(action), 0
        for choice, size in zip(chosen, self.sizes, strict=True):
            assert self.legal[begin + choice], f"illegal: {action} with {self.legal}"
            begin += size
        self.num_steps += 1
        ended = bool(self.np_random.random() < 0.1)
        obs, info = self._seen(ended=ended)
        return obs, float(chosen[0] == self.sizes[0] - 1), ended, False, info

    def _choices(self, action: Any) -> list[int]:
        if isinstance(self.action_space, Discrete):
            return [int(action) - 1]
        if isinstance(self.action_space, MultiDiscrete):
            return (action - self.action_space.start).tolist()
        return [int(action["door"]) - 1, *action["keys"].ravel().tolist()]

    def _seen(self, *, ended: bool = False) -> tuple[Any, dict[str, Any]]:
        parts = [self.np_random.random(size) < 0.4 for size in self.sizes]
        for part in parts:
            part[self.np_random.integers(len(part))] = True
        self.legal = np.concatenate(parts)
        obs, mask = self.np_random.random(3, np.float32), self.legal.astype(np.int8)
        self.legal |= self.fault == "late"
        if ended or (self.fault == "empty" and self.num_steps == 3):
            mask[:] = 0  # nothing can be done after the end
        if self.fault == "long":
            mask = np.append(mask, np.int8(1))
        if self.mask_in == "obs":
            return {"observation": obs, "action_mask": mask}, {}
        return obs, {"action_mask": mask} if self.fault != "late" or self.num_steps == 2 else {}


class VectorDoors(gym.vector.VectorEnv[Any, Any, Any]):
    """Doors with one generator for all, whose attributes are all of their state."""

    metadata: ClassVar[dict[str, Any]] = {"autoreset_mode": AutoresetMode.SAME_STEP}

    def __init__(self, num_envs: int = 1, mask_in: str = "info") -> None:
        self.num_envs, self.mask_in = num_envs, mask_in
        self.single_observation_space, self.single_action_space = Box(0, 1, (3,)), Discrete(4)
        if mask_in == "obs":
            self.single_observation_space = Dict(action_mask=MultiBinary(4), observation=self.single_observation_space)
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self.generator = np.random.default_rng(0)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        if seed is not None:
            self.generator = np.random.default_rng(seed)
        self.obs = self.generator.random((self.num_envs, 3), np.float32)
        return self._seen()

    def step(self, actions: Any) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        assert self.legal[np.arange(self.num_envs), actions].all(), f"illegal: {actions} with {self.legal}"
        final_obs, ended = self.obs, self.generator.random(self.num_envs) < 0.1
        self.obs = self.generator.random((self.num_envs, 3), np.float32)
        obs, info = self._seen()
        if self.mask_in == "obs":
            final_obs = {"observation": final_obs}
        info |= {"final_obs": final_obs, "_final_obs": ended} if ended.any() else {}
        return obs, np.ones(self.num_envs), ended, np.zeros_like(ended), info

    def _seen(self) -> tuple[Any, dict[str, Any]]:
        self.legal = self.generator.random((self.num_envs, 4)) < 0.4
        self.legal[:, 2] = True
        mask = {"action_mask": self.legal.astype(np.int8)}
        return (self.obs, mask) if self.mask_in == "info" else ({"observation": self.obs} | mask, {})


class TensorDoors(TensorEnv):
    """A state [N, 3] of random numbers; the first two actions are legal one at a time, the third always."""

    observation_space = Box(-1, 1, (3,))
    max_episode_steps, initial_noise_size, transition_noise_size = 20, 3, 3

    def __init__(self, fault: str = "") -> None:
        self.action_space, self.fault = Discrete(3), fault

    def initial(self, noise: torch.Tensor) -> torch.Tensor:
        return noise

    def transition(self, state: torch.Tensor, action: Any, noise: torch.Tensor) -> torch.Tensor:
        legal = self.mask(state).gather(-1, action[:, None])
        return torch.where(legal, noise, -1.0)  # which ends the episode with a return below 0

    def mask(self, state: torch.Tensor) -> torch.Tensor:
        first = state[:, :1] < 0.5
        third = torch.ones_like(first) if not self.fault else state[:, 1:2] < 0.9
        return torch.cat([first & third, ~first & third, third], dim=-1)

    def reward(self, state: torch.Tensor, action: Any, next_state: torch.Tensor) -> torch.Tensor:
        return torch.where(next_state[:, 0] < 0, -1000.0, 1 - 0.1 * action)

    def terminal(self, state: torch.Tensor) -> torch.Tensor:
        return (state[:, 0] < 0) | (state[:, 2] > 0.95)


for name, kwargs in {
    "Doors-v0": {},
    "ManyDoors-v0": {"actions": "many"},
    "TreeOfDoors-v0": {"actions": "tree"},
    "SeenDoors-v0": {"mask_in": "obs"},
    **{f"Doors{fault.title()}-v0": {"fault": fault, "actions": "many"} for fault in ("empty", "long", "late")},
}.items():
    gym.register(name, Doors, max_episode_steps=25, kwargs=kwargs)
gym.register("VectorDoors-v0", vector_entry_point=VectorDoors)
gym.register("SeenVectorDoors-v0", vector_entry_point=VectorDoors, kwargs={"mask_in": "obs"})
register_tensor_env("TensorDoors-v0", TensorDoors)
