"""Trains PPO of stable-baselines3 with the same network and hyperparameters, and prints one JSON line.

python benchmarks/peers/sb3_ppo.py --env custom --num-envs 64
"""

import json
import math
import time
from dataclasses import dataclass
from typing import Any, Literal

import gymnasium as gym
import tyro
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy

import rl  # noqa: F401 (registers CustomEnv-v0)
from rl.envs.families import register_family

# By the names that speed.py passes to every peer.
ENV_IDS = {
    "custom": "CustomEnv-v0",
    "cartpole": "CartPole-v1",
    "halfcheetah": "HalfCheetah-v5",
    "breakout": "MinAtar/Breakout-v1",
}


@dataclass
class Arguments:
    """Trains stable-baselines3's PPO and measures its speed."""

    env: Literal["custom", "cartpole", "halfcheetah", "breakout"] = "custom"
    num_envs: int = 64
    num_steps: int = 128
    minibatches: int = 4
    epochs: int = 4
    hidden: int = 64
    total_timesteps: int = 200_000
    solved_at: float = float("inf")
    """Mean return of the last 100 episodes at which training stops."""


class Numbers(gym.ObservationWrapper[Any, Any, Any]):
    """Flat observations in float32."""

    def __init__(self, env: gym.Env[Any, Any]) -> None:
        super().__init__(env)
        assert env.observation_space.shape is not None
        self.observation_space = gym.spaces.Box(0.0, 1.0, (math.prod(env.observation_space.shape),))

    def observation(self, observation: Any) -> Any:
        return observation.astype("float32").reshape(-1)


class Clock(BaseCallback):
    """Records when each rollout began, and stops when the problem is solved."""

    def __init__(self, solved_at: float) -> None:
        super().__init__()
        self.solved_at = solved_at
        self.began: list[tuple[float, int]] = []
        self.solved = False

    def _on_rollout_start(self) -> None:
        self.began.append((time.perf_counter(), self.num_timesteps))

    def _on_step(self) -> bool:
        returns = [episode["r"] for episode in self.model.ep_info_buffer or []]
        self.solved = len(returns) == 100 and sum(returns) / 100 >= self.solved_at
        return not self.solved


def main(arguments: Arguments) -> None:
    """Trains, evaluates, and prints the line."""
    env_id = ENV_IDS[arguments.env]
    register_family(env_id)
    # Flat pictures, of which their policy takes no booleans.
    wrapper = Numbers if arguments.env == "breakout" else None
    envs = make_vec_env(lambda: gym.make(env_id), n_envs=arguments.num_envs, seed=1, wrapper_class=wrapper)
    model = PPO(
        "MlpPolicy",
        envs,
        n_steps=arguments.num_steps,
        batch_size=arguments.num_envs * arguments.num_steps // arguments.minibatches,
        n_epochs=arguments.epochs,
        learning_rate=1e-3,
        gamma=0.99,
        ent_coef=0.01,
        policy_kwargs={"net_arch": {"pi": [arguments.hidden] * 2, "vf": [arguments.hidden] * 2}},
        seed=1,
        device="cpu",
    )
    clock = Clock(arguments.solved_at)
    model.learn(arguments.total_timesteps, callback=clock)
    ended_at = time.perf_counter()
    began_at, before = clock.began[1 if len(clock.began) > 2 else 0]  # without the first update
    result = {
        "peer": "stable-baselines3",
        "steps_per_s": round((model.num_timesteps - before) / (ended_at - began_at)),
        "greedy_return": round(evaluate_policy(model, envs, n_eval_episodes=16)[0], 2),
    }
    if clock.solved:
        result |= {"solved_steps": model.num_timesteps, "solved_seconds": round(ended_at - clock.began[0][0], 1)}
    print(json.dumps(result))


if __name__ == "__main__":
    main(tyro.cli(Arguments))
