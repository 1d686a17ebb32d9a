"""Batched classes on tensors, in the forms in which simulators come."""

from typing import Any, ClassVar

import gymnasium as gym
import numpy as np
import torch
from gymnasium.spaces import Box, Dict, Discrete
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from gymnasium.vector.utils import batch_space
from torch import Tensor

import rl
from rl import tree
from rl.envs.classic import CartPole


class Simulator(gym.vector.VectorEnv[Any, Any, Any]):
    """Observes the number of steps of each episode, in a tensor that it writes again and again.

    Episodes end after three steps, those of environment 0 by truncation, the others by termination. Like Isaac Lab and
    mjlab it declares no autoreset mode, resets in the same step, and gives no final observations unless told to.
    """

    metadata: ClassVar[dict[str, Any]] = {}

    def __init__(self, num_envs: int = 2, final: str = "", bad_step: int = -1, device: str = "cpu") -> None:
        self.num_envs, self.final, self.bad_step = num_envs, final, bad_step
        self.single_observation_space, self.single_action_space = Box(0, 10, (1,)), Discrete(2, start=5)
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self.obs = torch.zeros(num_envs, 1, device=device)
        self.by_truncation = torch.arange(num_envs, device=device) == 0
        self.seeds: list[int | None] = []

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Tensor, dict[str, Any]]:
        self.seeds.append(seed)
        self.num_steps = 0
        self.obs.zero_()
        return self.obs, {}

    def step(self, actions: Tensor) -> tuple[Any, ...]:
        assert actions.device == self.obs.device
        self.num_steps += 1
        self.obs += 1
        ended = self.obs[:, 0] == 3
        info = {self.final: self.obs.clone()} if self.final else {}
        self.obs *= ~ended[:, None]
        reward = actions.double()
        if self.num_steps == self.bad_step:
            reward[1] = np.nan
        return self.obs, reward, ended & ~self.by_truncation, ended & self.by_truncation, info


class AsTensors(gym.vector.VectorEnv[Any, Any, Any]):
    """Gymnasium's own batch with tensors in place of arrays; every episode starts as if it had the given seeds."""

    def __init__(self, envs: SyncVectorEnv, seeds: list[int]) -> None:
        self.envs, self.seeds, self.num_envs = envs, seeds, envs.num_envs
        self.metadata = envs.metadata
        self.single_observation_space, self.single_action_space = (
            envs.single_observation_space,
            envs.single_action_space,
        )

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        return tuple(map(self._tensors, self.envs.reset(seed=self.seeds)))

    def step(self, actions: Any) -> tuple[Any, ...]:
        return tuple(map(self._tensors, self.envs.step(tree.map(Tensor.numpy, actions))))

    def _tensors(self, given: Any) -> Any:
        if isinstance(given, dict):
            if (final_obs := given.get("final_obs")) is not None:
                given = given | {"final_obs": self._batch(final_obs)}
            return {name: self._tensors(value) for name, value in given.items()}
        return torch.from_numpy(given.copy()) if isinstance(given, np.ndarray) else given

    def _batch(self, final_obs: Any) -> Any:
        space = self.single_observation_space
        rows = [space.sample() if obs is None else obs for obs in final_obs]  # anything where no episode ended
        return gym.vector.utils.concatenate(space, rows, gym.vector.utils.create_empty_array(space, len(rows)))

    def close_extras(self, **kwargs: Any) -> None:
        self.envs.close()


class Weightless(gym.vector.VectorEnv[Any, Any, Any]):
    """Every kind of observation and action, in tensors that have no numbers, so that nobody can look at them."""

    def __init__(self, example: gym.Env[Any, Any], num_envs: int, mode: AutoresetMode, final: bool) -> None:
        self.num_envs, self.final = num_envs, final
        self.metadata = {"autoreset_mode": mode}
        self.single_observation_space = Dict({"image": Box(0, 255, (4, 6, 6), np.uint8), "count": Discrete(3, start=2)})
        self.single_action_space = example.action_space

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        def empty(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
            return torch.empty(self.num_envs, *shape, dtype=dtype, device="meta")

        self.obs = {"image": empty(4, 6, 6, dtype=torch.uint8), "count": empty(dtype=torch.int32)}
        self.reward, self.flag = empty(dtype=torch.float64), empty(dtype=torch.bool)
        self.info = {"action_mask": empty(8, dtype=torch.int8), "_action_mask": self.flag}
        return self.obs, self.info

    def step(self, actions: Any) -> tuple[Any, ...]:
        assert {leaf.device.type for leaf in tree.leaves(actions)} == {"meta"}
        return self.obs, self.reward, self.flag, self.flag, self.info | ({"final_obs": self.obs} if self.final else {})


def cart_poles(num_envs: int) -> rl.TensorVectorEnv:
    return rl.TensorVectorEnv(CartPole(), num_envs)


gym.register("Simulator-v0", vector_entry_point=Simulator)
gym.register("CartPoles-v0", vector_entry_point=cart_poles)
