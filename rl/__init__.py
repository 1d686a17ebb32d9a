"""Reinforcement learning distributed by Lightning Fabric; importing it registers CustomEnv-v0 with Gymnasium."""

import gymnasium

from rl.run.checkpoint import load_policy

__all__ = ["load_policy"]

gymnasium.register(
    "CustomEnv-v0",
    entry_point="rl.envs.custom:CustomEnv",
    vector_entry_point="rl.envs.custom:CustomVectorEnv",
    max_episode_steps=200,
)
