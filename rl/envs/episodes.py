"""A Gymnasium environment whose every episode has a seed of its own, so that it can be played again."""

import copy
import signal
import time
import traceback
from collections.abc import Sequence
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.vector.async_vector_env import _async_worker
from numpy.typing import NDArray

from rl.joining import signal_at_parents_death
from rl.seeding import episode_seed

EPISODES = 2**32  # of an environment, at the most


class EpisodeError(Exception):
    """What an environment did wrong; it travels from its process to that of its rank."""


def seed_of(environment: int, episode: int) -> int:
    """What to `reset` a `SeededEpisodes` with, to have it start this episode of the environment of this seed."""
    return environment * EPISODES + episode


class SeededEpisodes(gym.Wrapper[Any, Any, Any, Any]):
    """Seeds every episode by its number, plays episodes again, and names itself when something is wrong."""

    def __init__(self, env: gym.Env[Any, Any]) -> None:
        """Counts from episode 0 of environment 0 until it is reset with a `seed_of` another."""
        super().__init__(env)
        self.shape = env.observation_space.shape  # the wrappers pass on the space itself, which takes its time
        self.index = 0
        """Which environment of its rank this is."""
        self.made_anew = False
        """Whether an episode depends on those before it in the same object, so that each needs a new one."""
        self.environment, self.episode, self.num_steps = 0, 0, 0
        self.history: Sequence[Any] = ()
        """The actions of the episode to play again."""

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Starts the next episode, or that of a `seed_of`."""
        self.environment, self.episode = (
            (self.environment, self.episode + 1) if seed is None else divmod(seed, EPISODES)
        )
        self.num_steps = 0
        try:
            if self.made_anew:
                self.env.close()
                self.env = gym.make(self.env.spec)  # type: ignore[arg-type]
            obs, info = self.env.reset(seed=episode_seed(self.environment, self.episode), options=options)
        except Exception as error:
            raise self._raised(error) from error
        self._check_shape(obs)
        return obs, info

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """Acts once."""
        self.num_steps += 1
        try:
            result = self.env.step(action)
        except Exception as error:
            raise self._raised(error) from error
        if getattr(result[0], "shape", None) != self.shape:  # an array's, at once
            self._check_shape(result[0])
        return result

    def replay(self) -> Any:
        """Plays the episode again up to where `history` ends: the last observation."""
        obs, _ = self.reset(seed=seed_of(self.environment, self.episode))
        for action in self.history:
            obs, *_ = self.step(action)
        self.history = ()
        return obs

    def _check_shape(self, obs: Any) -> None:
        if np.shape(obs) != self.shape:
            raise self._failed(f"gave an observation of shape {np.shape(obs)}; its space says {self.shape}")

    def _raised(self, error: Exception) -> EpisodeError:
        where = traceback.extract_tb(error.__traceback__)[-1]
        return self._failed(f"raised {type(error).__name__}: {error} at {where.filename}:{where.lineno}")

    def _failed(self, how: str) -> EpisodeError:
        seed = episode_seed(self.environment, self.episode)
        return EpisodeError(
            f"environment {self.index} {how}, at step {self.num_steps:,} of the episode that reset(seed={seed}) starts"
        )


def worker(*args: Any) -> None:
    """Gymnasium's process of one environment, deaf to what is meant for its rank, and gone when that is."""
    signal_at_parents_death(signal.SIGKILL)
    for asked in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1):
        signal.signal(asked, signal.SIG_IGN)
    _async_worker(*args)


PROBES, PROBE_STEPS = 3, 60
MAX_MAKE_SECONDS = 0.02  # to pay for every episode


def replayable(env: SeededEpisodes) -> bool:
    """Whether episodes can be played again; has them `made_anew` where they can be in no other way."""
    first = [_played(env, probe) for probe in range(PROBES)]
    again = [_played(env, probe) for probe in reversed(range(PROBES))][::-1]
    if _same(first, again):
        return True
    began_at = time.perf_counter()
    gym.make(env.env.spec).close()  # type: ignore[arg-type]
    if time.perf_counter() - began_at > MAX_MAKE_SECONDS:
        return False
    env.made_anew = True
    first, again = ([_played(env, probe) for probe in range(PROBES)] for _ in range(2))
    return _same(first, again)


def _played(env: SeededEpisodes, probe: int) -> list[NDArray[Any]]:
    """All that an environment gives in some steps of random actions."""
    actions = copy.deepcopy(env.action_space)
    actions.seed(probe)
    seen = [np.asarray(env.reset(seed=seed_of(probe, 0))[0])]
    for _ in range(PROBE_STEPS):
        obs, reward, terminated, truncated, _ = env.step(actions.sample())
        seen += [np.asarray(obs), np.asarray([reward, terminated, truncated], np.float64)]
        if terminated or truncated:
            seen.append(np.asarray(env.reset()[0]))
    return seen


def _same(first: list[list[NDArray[Any]]], second: list[list[NDArray[Any]]]) -> bool:
    return all(
        len(a) == len(b) and all(np.array_equal(x, y, equal_nan=True) for x, y in zip(a, b, strict=True))
        for a, b in zip(first, second, strict=True)
    )
