"""Trains RecurrentPPO of sb3-contrib on CartPole without velocities, and prints one JSON line.

OMP_NUM_THREADS=1 python benchmarks/peers/sb3_recurrent.py --seed 1

The settings are those of RL Zoo (rl-baselines3-zoo, hyperparams/ppo_lstm.yml, the entry CartPoleNoVel-v1).
"""

import json
import time
from dataclasses import dataclass
from statistics import mean

import tyro
from sb3_contrib import RecurrentPPO
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import VecNormalize
from torch import nn

import rl  # noqa: F401 (registers the environment)

ENV_ID, NUM_ENVS, GAMMA = "CartPoleNoVel-v1", 8, 0.98


@dataclass
class Arguments:
    """Trains RecurrentPPO with its tuned settings."""

    seed: int = 1
    total_timesteps: int = 100_000
    eval_episodes: int = 20


def main(arguments: Arguments) -> None:
    """Trains, evaluates greedily with the statistics of the training, and prints the line."""
    envs = VecNormalize(make_vec_env(ENV_ID, n_envs=NUM_ENVS, seed=arguments.seed), gamma=GAMMA)
    network = {"ortho_init": False, "activation_fn": nn.ReLU, "net_arch": {"pi": [64], "vf": [64]}}
    model = RecurrentPPO(
        "MlpLstmPolicy",
        envs,
        n_steps=32,
        batch_size=256,
        gae_lambda=0.8,
        gamma=GAMMA,
        n_epochs=20,
        ent_coef=0.0,
        learning_rate=lambda left: left * 1e-3,
        clip_range=lambda left: left * 0.2,
        policy_kwargs=network | {"lstm_hidden_size": 64, "enable_critic_lstm": True},
        seed=arguments.seed,
        device="cpu",
    )
    began = time.perf_counter(), time.process_time()
    model.learn(arguments.total_timesteps)
    seconds = time.perf_counter() - began[0], time.process_time() - began[1]
    envs.training, envs.norm_reward = False, False
    greedy, std = evaluate_policy(model, envs, n_eval_episodes=arguments.eval_episodes)
    line = {
        "env_id": ENV_ID,
        "seed": arguments.seed,
        "greedy_return": greedy,
        "greedy_std": std,
        "sampled_return": mean(episode["r"] for episode in model.ep_info_buffer or []),
        "seconds": seconds[0],
        "cpu_seconds": seconds[1],
    }
    print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main(tyro.cli(Arguments))
