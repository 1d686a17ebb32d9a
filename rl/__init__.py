"""Reinforcement learning distributed by Lightning Fabric; importing it registers its environments.

Its names are imported when they are first used, so that `python -m rl --help` need not wait for torch.
"""

import importlib
from typing import TYPE_CHECKING, Any

import gymnasium

if TYPE_CHECKING:
    from rl.envs.check import check_env
    from rl.envs.tensor_envs import TensorEnv, TensorVectorEnv, register_tensor_env
    from rl.run.evaluation import load_policy
    from rl.run.export import export_policy

__all__ = ["TensorEnv", "TensorVectorEnv", "check_env", "export_policy", "load_policy", "register_tensor_env"]

_MODULES = {
    "TensorEnv": "rl.envs.tensor_envs",
    "TensorVectorEnv": "rl.envs.tensor_envs",
    "check_env": "rl.envs.check",
    "export_policy": "rl.run.export",
    "load_policy": "rl.run.evaluation",
    "register_tensor_env": "rl.envs.tensor_envs",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'rl' has no attribute {name!r}")
    return getattr(importlib.import_module(_MODULES[name]), name)


gymnasium.register(
    "CustomEnv-v0",
    entry_point="rl.envs.custom:CustomEnv",
    vector_entry_point="rl.envs.custom:CustomVectorEnv",
    max_episode_steps=200,
)
