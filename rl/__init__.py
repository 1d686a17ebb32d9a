"""Reinforcement learning distributed by Lightning Fabric; importing it registers its environments."""

import gymnasium

from rl.envs import classic, minatar
from rl.envs.check import check_env
from rl.envs.custom import CustomTensorEnv
from rl.envs.tensor_envs import TensorEnv, TensorVectorEnv, register_tensor_env
from rl.run.evaluation import load_policy

__all__ = ["TensorEnv", "TensorVectorEnv", "check_env", "load_policy", "register_tensor_env"]

gymnasium.register(
    "CustomEnv-v0",
    entry_point="rl.envs.custom:CustomEnv",
    vector_entry_point="rl.envs.custom:CustomVectorEnv",
    max_episode_steps=200,
)
register_tensor_env("CustomEnv-v0", CustomTensorEnv)
register_tensor_env("CartPole-v1", classic.CartPole)
register_tensor_env("Pendulum-v1", classic.Pendulum)
register_tensor_env("MountainCar-v0", classic.MountainCar)
register_tensor_env("Acrobot-v1", classic.Acrobot)
register_tensor_env("MinAtar/Breakout-v1", minatar.Breakout)
