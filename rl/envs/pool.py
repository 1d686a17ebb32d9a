"""EnvPool's environments, which threads in C++ step, as a batched class of Gymnasium.

They are EnvPool's own versions of the tasks: the same names, spaces and rules, but not the same numbers.
"""

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.vector import AutoresetMode
from gymnasium.vector.utils import batch_space
from numpy.typing import NDArray

from rl.errors import UserError, install


class Pool(gym.vector.VectorEnv[Any, Any, Any]):
    """Environments of EnvPool, which reset in the step after the end of an episode."""

    def __init__(self, env_id: str, num_envs: int, num_threads: int) -> None:
        """Raises `UserError` if EnvPool is not installed or has no such environment."""
        try:
            import envpool
        except ImportError as error:
            raise UserError(f"--vectorization envpool: needs EnvPool; {install('envpool')}, or use sync") from error
        if env_id not in envpool.list_all_envs():
            raise UserError(f"--vectorization envpool: EnvPool has no {env_id}; use sync or async")
        self.make = envpool.make_gymnasium
        self.arguments: dict[str, Any] = {"task_id": env_id, "num_envs": num_envs, "num_threads": num_threads}
        self.pool: Any = None  # made by `reset`, since EnvPool takes a seed when it makes environments
        spec = envpool.make_spec(env_id)
        self.num_envs = num_envs
        self.metadata = {"autoreset_mode": AutoresetMode.NEXT_STEP}
        self.single_observation_space = spec.gymnasium_observation_space
        self.single_action_space = _single_precision(spec.gymnasium_action_space)
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Starts an episode everywhere; a seed s seeds environment i with s + i, and makes the environments anew."""
        if seed is not None or self.pool is None:
            self.close_extras()
            self.pool = self.make(**self.arguments, seed=seed or 0)
        obs, _ = self.pool.reset()
        return obs, {}

    def step(self, actions: NDArray[Any]) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        obs, reward, terminated, truncated, _ = self.pool.step(actions)
        return obs, reward, terminated, truncated, {}

    def close_extras(self, **kwargs: Any) -> None:
        if self.pool is not None:
            self.pool.close()


def _single_precision(space: gym.Space[Any]) -> gym.Space[Any]:
    """The space as Gymnasium's form of the task has it: actions of MuJoCo's tasks are in float32 there."""
    if not isinstance(space, gym.spaces.Box) or space.dtype != np.float64:
        return space
    low, high = space.low.astype(np.float32), space.high.astype(np.float32)
    return gym.spaces.Box(low, high, dtype=np.float32)
