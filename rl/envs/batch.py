"""Batches environments in the ways that `--vectorization` names, except tensors."""

import warnings
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium as gym
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from gymnasium.wrappers import RecordVideo

from rl.envs.failures import AnyVectorEnv
from rl.envs.options import make_env
from rl.envs.seeded import SeededEpisodes
from rl.envs.workers import Workers


def make_seeded(
    env_id: str, film: Path | None = None, *, kwargs: Iterable[str] = (), wrappers: Iterable[str] = ()
) -> SeededEpisodes:
    """One environment; `film` is a file for its first episode."""
    if film is None:
        return SeededEpisodes(partial(make_env, env_id, kwargs, wrappers))
    warnings.filterwarnings("ignore", ".*Overwriting existing videos", UserWarning)  # the folder holds other films
    folder, name = str(film.parent), film.stem

    def filmed() -> gym.Env[Any, Any]:
        env = make_env(env_id, kwargs, wrappers, render_mode="rgb_array")
        return RecordVideo(env, folder, episode_trigger=lambda n: n == 0, name_prefix=name)

    return SeededEpisodes(filmed)


def make_batch(
    make: Callable[..., SeededEpisodes], num_envs: int, *, num_workers: int = 0, film: Path | None = None
) -> AnyVectorEnv:
    """Single environments, in worker processes, or without these one after the other."""
    if num_workers:
        return Workers(make, num_envs, num_workers)
    # With NEXT_STEP, no step also writes the film of the episode that it ends, which could exceed --env-timeout.
    mode = AutoresetMode.NEXT_STEP if film else AutoresetMode.SAME_STEP
    return SyncVectorEnv([partial(make, film=film)] * num_envs, autoreset_mode=mode)
