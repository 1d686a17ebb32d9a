"""CustomEnv whose step takes SLOW_ENV_SECONDS, as that of a simulator elsewhere would: it keeps no core busy."""

import os
import time
from typing import Any

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray

from rl.envs.custom import CustomVectorEnv


class SlowEnv(CustomVectorEnv):
    """Sleeps in every step of the batch."""

    def step(
        self, actions: NDArray[np.int64]
    ) -> tuple[NDArray[np.float32], NDArray[Any], NDArray[Any], NDArray[Any], dict[str, Any]]:
        """Pushes every mass once, late."""
        time.sleep(float(os.environ["SLOW_ENV_SECONDS"]))
        return super().step(actions)


gym.register(
    "SlowEnv-v0",
    entry_point="rl.envs.custom:CustomEnv",
    vector_entry_point="slow_env:SlowEnv",
    max_episode_steps=200,
)
