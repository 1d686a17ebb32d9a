"""Times PPO of stable-baselines3 on an Atari game, with the network and settings of our recipes, in one JSON line.

    OMP_NUM_THREADS=1 python benchmarks/peers/sb3_atari.py --env-id ALE/Pong-v5
    OMP_NUM_THREADS=1 python benchmarks/peers/sb3_atari.py --env-id ALE/Pong-v5 "--ours=--precision bf16-mixed"

With --ours it times this repository's PPO instead, with the recipe of the game and these flags. Speeds are those of the
updates after the first ones; steps per second of CPU time depend less on what else the machine does.
"""

import json
import sys
import time
from dataclasses import dataclass
from typing import Any

import ale_py  # noqa: F401 (registers the games)
import torch
import tyro
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_atari_env
from stable_baselines3.common.vec_env import VecFrameStack

import train_torch
from rl.cli import command_line
from rl.config import CONFIGS
from rl.run.run import Run

NUM_ENVS, NUM_STEPS, WARM_UP = 8, 128, 2  # the latter in updates


@dataclass
class Arguments:
    """Times PPO on an Atari game."""

    env_id: str = "ALE/Pong-v5"
    updates: int = 10
    """Rollouts of 8 × 128 steps that are timed, after two that are not."""
    ours: str | None = None
    """Time this repository's PPO instead, with these further flags."""


class Clock(BaseCallback):
    """Notes the time at which each rollout begins."""

    def __init__(self) -> None:
        super().__init__()
        self.times: list[tuple[float, float]] = []

    def _on_rollout_start(self) -> None:
        self.times.append((time.perf_counter(), time.process_time()))

    def _on_step(self) -> bool:
        return True


def theirs(env_id: str, num_updates: int) -> list[tuple[float, float]]:
    """Times of stable-baselines3's rollouts, on frames prepared as ale-py's batched class does."""
    torch.set_num_threads(1)
    # A frame is shown for 4 of the game's, by their wrapper.
    games = make_atari_env(
        env_id,
        n_envs=NUM_ENVS,
        seed=1,
        env_kwargs={"frameskip": 1, "repeat_action_probability": 0.0},
        wrapper_kwargs={"action_repeat_probability": 0.25},
    )
    settings: dict[str, Any] = {"n_steps": NUM_STEPS, "batch_size": 256, "n_epochs": 4, "learning_rate": 2.5e-4}
    settings |= {"clip_range": 0.1, "ent_coef": 0.01, "vf_coef": 0.5, "seed": 1, "device": "cpu"}
    clock = Clock()
    PPO("CnnPolicy", VecFrameStack(games, n_stack=4), **settings).learn(num_updates * NUM_ENVS * NUM_STEPS, clock)
    return clock.times


def ours(env_id: str, num_updates: int, flags: str) -> list[tuple[float, float]]:
    """The same of this repository's."""
    times = []
    record_rollout = Run.record_rollout

    def noted(run: Run, *given: Any) -> None:
        times.append((time.perf_counter(), time.process_time()))
        record_rollout(run, *given)

    Run.record_rollout = noted  # type: ignore[method-assign]
    num_steps = num_updates * NUM_ENVS * NUM_STEPS
    sys.argv = ["train_torch.py", "--env-id", env_id, "--num-workers", "1", "--total-timesteps", str(num_steps)]
    sys.argv += ["--eval-episodes", "1", "--max-eval-steps", "1", "--no-keep-best", *flags.split()]
    command_line(train_torch.main, CONFIGS, train_torch.PROGRAM)
    return times


def main(arguments: Arguments) -> None:
    """Times the one or the other, and prints the line."""
    num_updates = WARM_UP + arguments.updates + 1
    if arguments.ours is None:
        name, times = "stable-baselines3", theirs(arguments.env_id, num_updates)
    else:
        name, times = f"ours {arguments.ours}".strip(), ours(arguments.env_id, num_updates, arguments.ours)
    (began_at, cpu_before), (ended_at, cpu_after) = times[WARM_UP], times[-1]
    num_steps = (len(times) - 1 - WARM_UP) * NUM_ENVS * NUM_STEPS
    speeds = {"steps_per_s": num_steps / (ended_at - began_at), "steps_per_cpu_s": num_steps / (cpu_after - cpu_before)}
    print(json.dumps({"peer": name, **{unit: round(speed, 1) for unit, speed in speeds.items()}}))


if __name__ == "__main__":
    main(tyro.cli(Arguments))
