"""Batches environments in the ways that `--vectorization` names, except tensors."""

import functools
import sys
import warnings
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium as gym
from gymnasium.envs.registration import load_env_creator
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from gymnasium.wrappers import RecordVideo

from rl.envs.failures import AnyVectorEnv
from rl.envs.seeded import SeededEpisodes
from rl.envs.workers import Workers
from rl.reporting import note


def make_single(env_id: str, film: Path | None = None) -> SeededEpisodes:
    """One environment; `film` is a file for its first episode."""
    _hear_mujoco(env_id)
    if film is None:
        return SeededEpisodes(gym.make(env_id))
    warnings.filterwarnings("ignore", ".*Overwriting existing videos", UserWarning)  # the folder holds other films
    env: gym.Env[Any, Any] = gym.make(env_id, render_mode="rgb_array")
    folder, name = str(film.parent), film.stem
    return SeededEpisodes(RecordVideo(env, folder, episode_trigger=lambda n: n == 0, name_prefix=name))


def can_make_single(env_id: str) -> bool:
    """Whether Gymnasium has the environment, and whatever it needs is installed."""
    try:
        make_single(env_id).close()
    except (gym.error.Error, ImportError):
        return False
    return True


def make_batch(env_id: str, num_envs: int, *, num_workers: int = 0, film: Path | None = None) -> AnyVectorEnv:
    """Single environments, in worker processes, or without these one after the other."""
    if num_workers:
        return Workers(partial(make_single, env_id), num_envs, num_workers)
    # With NEXT_STEP, no step also writes the film of the episode that it ends, which could exceed --env-timeout.
    mode = AutoresetMode.NEXT_STEP if film else AutoresetMode.SAME_STEP
    return SyncVectorEnv([partial(make_single, env_id, film)] * num_envs, autoreset_mode=mode)


def _hear_mujoco(env_id: str) -> None:
    """Has MuJoCo print each warning once; by itself it repeats some for every environment, and logs them to a file."""
    entry_point = gym.spec(env_id).entry_point
    if isinstance(entry_point, str):
        load_env_creator(entry_point)  # imports the environment's module, and so MuJoCo if it needs it
    mujoco = sys.modules.get("mujoco")
    if mujoco and mujoco.get_mju_user_warning() is None:
        mujoco.set_mju_user_warning(_warn)


@functools.cache
def _warn(text: str) -> None:
    note(f"MuJoCo: {text}")
