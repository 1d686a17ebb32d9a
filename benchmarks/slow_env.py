"""CustomEnv with steps that take SLOW_ENV_SECONDS without using the CPU, like those of a remote simulator."""

import os
import time
from typing import Any

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray

from rl.envs.custom import CustomVectorEnv


class SlowEnv(CustomVectorEnv):
    """A batch of CustomEnv that sleeps once in every step."""

    def step(
        self, actions: NDArray[np.int64]
    ) -> tuple[NDArray[np.float32], NDArray[Any], NDArray[Any], NDArray[Any], dict[str, Any]]:
        time.sleep(float(os.environ["SLOW_ENV_SECONDS"]))
        return super().step(actions)


gym.register(
    "SlowEnv-v0",
    entry_point="rl.envs.custom:CustomEnv",
    vector_entry_point="slow_env:SlowEnv",
    max_episode_steps=200,
)
