"""Batches environments in the ways that `--vectorization` names, except tensors."""

import warnings
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium as gym
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from gymnasium.wrappers import RecordVideo

from rl.envs.failures import AnyVectorEnv
from rl.envs.seeded import SeededEpisodes
from rl.envs.workers import Workers


def make_single(env_id: str, film: Path | None = None) -> SeededEpisodes:
    """One environment; `film` is a file for its first episode."""
    if film is None:
        return SeededEpisodes(gym.make(env_id))
    warnings.filterwarnings("ignore", ".*Overwriting existing videos", UserWarning)  # the folder holds other films
    env: gym.Env[Any, Any] = gym.make(env_id, render_mode="rgb_array")
    folder, name = str(film.parent), film.stem
    return SeededEpisodes(RecordVideo(env, folder, episode_trigger=lambda n: n == 0, name_prefix=name))


def make_batch(env_id: str, num_envs: int, *, num_workers: int = 0, film: Path | None = None) -> AnyVectorEnv:
    """Single environments, in worker processes, or without these one after the other."""
    if num_workers:
        return Workers(partial(make_single, env_id), num_envs, num_workers)
    # With NEXT_STEP, no step also writes the film of the episode that it ends, which could exceed --env-timeout.
    mode = AutoresetMode.NEXT_STEP if film else AutoresetMode.SAME_STEP
    return SyncVectorEnv([partial(make_single, env_id, film)] * num_envs, autoreset_mode=mode)
