"""Reinforcement learning distributed by Lightning Fabric; importing it registers its environments.

Its names are imported when they are first used, so that `python -m rl --help` need not wait for torch. They are those
that a training loop of one's own needs (docs/library.md), an environment in tensors, or the user of a trained policy.
"""

import importlib
from typing import TYPE_CHECKING

import gymnasium

__all__ = [
    "PPO",
    "Agent",
    "EnvConfig",
    "Network",
    "PPOConfig",
    "Shuffle",
    "TensorEnv",
    "TensorVectorEnv",
    "act",
    "check_env",
    "evaluate",
    "export_policy",
    "load_policy",
    "make_collector",
    "make_envs",
    "register_tensor_env",
]

if TYPE_CHECKING:
    from rl.collector import make_collector
    from rl.envs.check import check_env
    from rl.envs.config import EnvConfig
    from rl.envs.make import make_envs
    from rl.envs.tensor_envs import TensorEnv, TensorVectorEnv, register_tensor_env
    from rl.learners.ppo import PPO, PPOConfig
    from rl.models.agent import Agent, Network
    from rl.run.evaluation import act, evaluate, load_policy
    from rl.run.export import export_policy
    from rl.seeding import Shuffle
else:  # hidden from type checkers, to which any name would seem to exist
    _MODULES = {
        "rl.envs.check": ("check_env",),
        "rl.envs.config": ("EnvConfig",),
        "rl.envs.make": ("make_envs",),
        "rl.envs.tensor_envs": ("TensorEnv", "TensorVectorEnv", "register_tensor_env"),
        "rl.learners.ppo": ("PPO", "PPOConfig"),
        "rl.models.agent": ("Agent", "Network"),
        "rl.collector": ("make_collector",),
        "rl.run.evaluation": ("act", "evaluate", "load_policy"),
        "rl.run.export": ("export_policy",),
        "rl.seeding": ("Shuffle",),
    }

    def __getattr__(name: str) -> object:
        for module, names in _MODULES.items():
            if name in names:
                return getattr(importlib.import_module(module), name)
        raise AttributeError(f"module 'rl' has no attribute {name!r}")

    def __dir__() -> list[str]:  # for completion in a shell
        return sorted({*globals(), *__all__})


gymnasium.register(
    "CustomEnv-v0",
    entry_point="rl.envs.custom:CustomEnv",
    vector_entry_point="rl.envs.custom:CustomVectorEnv",
    max_episode_steps=200,
)

# What these are for: docs/memory.md.
for env_id, entry_point, max_episode_steps, keep in (
    ("CartPoleNoVel-v1", "cartpole:CartPoleEnv", 500, (0, 2)),
    ("PendulumNoVel-v1", "pendulum:PendulumEnv", 200, (0, 1)),
):
    gymnasium.register(
        env_id,
        entry_point=f"gymnasium.envs.classic_control.{entry_point}",
        max_episode_steps=max_episode_steps,
        additional_wrappers=(
            gymnasium.envs.registration.WrapperSpec(
                "WithoutVelocities", "rl.envs.remembering:WithoutVelocities", {"keep": keep}
            ),
        ),
    )
gymnasium.register("Recall-v0", entry_point="rl.envs.remembering:recall")
gymnasium.register("TMaze-v0", entry_point="rl.envs.remembering:t_maze")
