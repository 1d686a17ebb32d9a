"""Trains PPO of stable-baselines3 with settings tuned for the task, and prints one JSON line.

OMP_NUM_THREADS=1 python benchmarks/peers/sb3_tuned.py --env-id HalfCheetah-v5 --seed 1

The settings for MuJoCo are those of RL Zoo (rl-baselines3-zoo, hyperparams/ppo.yml, the entries of the same tasks in
version 3). For the games of MinAtar it has none: settings and network are those of our recipes.
"""

import json
import time
from dataclasses import dataclass
from statistics import mean
from typing import Any

import gymnasium as gym
import tyro
from stable_baselines3 import PPO
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.common.vec_env import VecEnv, VecNormalize
from torch import Tensor, nn

from rl.envs.families import register_family
from rl.recipes import recipe_for

WIDE = {
    "log_std_init": -2,
    "ortho_init": False,
    "activation_fn": nn.ReLU,
    "net_arch": {"pi": [256, 256], "vf": [256, 256]},
}


def tuned(*values: float, **more: Any) -> dict[str, Any]:
    """Settings of one task; without values those that stable-baselines3 begins with."""
    names = (
        *("batch_size", "n_steps", "gamma", "learning_rate", "ent_coef"),
        *("clip_range", "n_epochs", "gae_lambda", "max_grad_norm", "vf_coef"),
    )
    return dict(zip(names, values, strict=bool(values))) | more


SETTINGS: dict[str, dict[str, Any]] = {
    "HalfCheetah-v5": tuned(64, 512, 0.98, 2.0633e-05, 0.000401762, 0.1, 20, 0.92, 0.8, 0.58096, policy_kwargs=WIDE),
    "Hopper-v5": tuned(32, 512, 0.999, 9.80828e-05, 0.00229519, 0.2, 5, 0.99, 0.7, 0.835671, policy_kwargs=WIDE),
    "Walker2d-v5": tuned(32, 512, 0.99, 5.05041e-05, 0.000585045, 0.1, 20, 0.95, 1, 0.871923),
    "Humanoid-v5": tuned(256, 512, 0.95, 3.56987e-05, 0.00238306, 0.3, 5, 0.9, 2, 0.431892, policy_kwargs=WIDE),
    "Reacher-v5": tuned(32, 512, 0.9, 0.000104019, 7.52585e-08, 0.3, 5, 1.0, 0.9, 0.950368),
    "InvertedDoublePendulum-v5": tuned(512, 128, 0.98, 0.000155454, 1.05057e-06, 0.4, 10, 0.8, 0.5, 0.695929),
    "Ant-v5": {},
    "Swimmer-v5": {"gamma": 0.9999},
}


class MinAtarCNN(BaseFeaturesExtractor):
    """The network of Young and Tian 2019: 16 filters of 3 × 3 and 128 units."""

    def __init__(self, observation_space: gym.spaces.Box) -> None:
        super().__init__(observation_space, 128)
        height, width, planes = observation_space.shape
        self.layers = nn.Sequential(
            *(nn.Conv2d(planes, 16, 3), nn.ReLU(), nn.Flatten()),
            *(nn.Linear(16 * (height - 2) * (width - 2), 128), nn.ReLU()),
        )

    def forward(self, obs: Tensor) -> Tensor:
        features: Tensor = self.layers(obs.movedim(-1, 1))
        return features


def of_recipe(env_id: str) -> dict[str, Any]:
    """The settings of our recipe for a game of MinAtar, and its number of environments."""
    recipe = recipe_for(env_id)
    assert recipe is not None
    values = recipe.values
    num_envs, num_steps = int(values["num_envs"]), int(values["num_steps"])
    learning_rate = float(values["learning_rate"])
    if values["encoder"] == "minatar":
        policy: dict[str, Any] = {"features_extractor_class": MinAtarCNN, "net_arch": []}
    else:
        sizes = [int(size) for size in values["hidden_sizes"]]
        policy = {"activation_fn": nn.Tanh, "net_arch": {"pi": sizes, "vf": sizes}}
    return {
        "num_envs": num_envs,
        "n_steps": num_steps,
        "batch_size": num_envs * num_steps // int(values["num_minibatches"]),
        "n_epochs": int(values["update_epochs"]),
        "learning_rate": lambda left: left * learning_rate,
        "gamma": float(values["gamma"]),
        "gae_lambda": float(values["gae_lambda"]),
        "ent_coef": float(values["ent_coef"]),
        "policy_kwargs": policy,
    }


@dataclass
class Arguments:
    """Trains stable-baselines3's PPO with its tuned settings."""

    env_id: str
    seed: int = 1
    total_timesteps: int = 1_000_000
    eval_episodes: int = 20


def main(arguments: Arguments) -> None:
    """Trains, evaluates greedily with the statistics of the training, and prints the line."""
    env_id, is_game = arguments.env_id, arguments.env_id.startswith("MinAtar/")
    if is_game:
        register_family(env_id)
    settings = of_recipe(env_id) if is_game else SETTINGS[env_id]
    envs: VecEnv = make_vec_env(env_id, n_envs=settings.pop("num_envs", 1), seed=arguments.seed)
    if not is_game:
        envs = VecNormalize(envs, gamma=settings.get("gamma", 0.99))
    model = PPO("MlpPolicy", envs, seed=arguments.seed, device="cpu", stats_window_size=1000, **settings)
    began = time.perf_counter(), time.process_time()
    model.learn(arguments.total_timesteps)
    seconds = time.perf_counter() - began[0], time.process_time() - began[1]
    if isinstance(envs, VecNormalize):
        envs.training, envs.norm_reward = False, False
    greedy, std = evaluate_policy(model, envs, n_eval_episodes=arguments.eval_episodes)
    training = [episode["r"] for episode in model.ep_info_buffer or []]
    line = {
        "env_id": arguments.env_id,
        "seed": arguments.seed,
        "greedy_return": greedy,
        "greedy_std": std,
        "sampled_return": mean(training[-100:]),
        "sampled_return_1000": mean(training),
        "seconds": seconds[0],
        "cpu_seconds": seconds[1],
    }
    print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main(tyro.cli(Arguments))
