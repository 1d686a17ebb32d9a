"""A Gymnasium environment whose every episode has a seed of its own, so that it can be played again."""

import contextlib
import copy
import functools
import signal
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.vector.async_vector_env import _async_worker
from numpy.typing import NDArray

from rl.dist.launch import rank, signal_at_parents_death
from rl.envs.watchdog import progress
from rl.errors import StopError, UserError, described, one_line
from rl.seeding import episode_seed

EPISODES = 2**32  # of an environment, at the most
FLAGS = frozenset((bool, np.bool_))
NUMBERS = FLAGS | {float, int, np.float64, np.float32}
# What it says in 40 lines of a process's error, an EpisodeError says in one.
warnings.filterwarnings("ignore", r".*ERROR: ", UserWarning, r"gymnasium\.vector\.async_vector_env")


class EpisodeError(Exception):
    """What an environment did wrong; it travels from its process to that of its rank."""


@functools.cache
def note(text: str) -> None:
    """Says something, once."""
    print(text, file=sys.stderr)


def from_outside(error: BaseException) -> bool:
    """Whether a signal's handler raised it, and not the environment that happened to run."""
    if not isinstance(error, KeyboardInterrupt):
        return isinstance(error, UserError | StopError)
    handler = signal.getsignal(signal.SIGINT)
    *_, (frame, _) = traceback.walk_tb(error.__traceback__)
    return handler is signal.default_int_handler or getattr(handler, "__code__", None) is frame.f_code


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
        self.busy = False
        progress()

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Starts the next episode, or that of a `seed_of`."""
        self.environment, self.episode = (
            (self.environment, self.episode + 1) if seed is None else divmod(seed, EPISODES)
        )
        self.num_steps = 0
        self.busy = True
        try:
            if self.made_anew:
                self.env.close()
                self.env = gym.make(self.env.spec)  # type: ignore[arg-type]
            result = self.env.reset(seed=episode_seed(self.environment, self.episode), options=options)
        except BaseException as error:
            raise self._raised(error) from None
        if not isinstance(result, tuple) or len(result) != 2 or not isinstance(result[1], dict):
            raise self.failed(f"gave {one_line(repr(result))} instead of an observation and a dictionary")
        self._check_obs(result[0])
        self.busy = False
        progress()
        return result

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """Acts once."""
        self.num_steps += 1
        self.busy = True
        try:
            result = self.env.step(action)
        except BaseException as error:
            raise self._raised(error) from None
        if not isinstance(result, tuple) or len(result) != 5 or not isinstance(result[4], dict):
            what = "an observation, a reward, two truth values and a dictionary"
            raise self.failed(f"gave {one_line(repr(result))} instead of {what}")
        obs, reward, terminated, truncated, info = result
        if type(obs) is not np.ndarray or obs.shape != self.shape or obs.dtype.kind not in "biuf":
            self._check_obs(obs)
        if type(reward) not in NUMBERS or type(terminated) not in FLAGS or type(truncated) not in FLAGS:
            reward = self._number("reward", reward)
            terminated, truncated = self._flag("terminated", terminated), self._flag("truncated", truncated)
        self.busy = False
        progress()
        return obs, reward, terminated, truncated, info

    def replay(self) -> Any:
        """Plays the next action of `history`: the observation, or None where there is no further action."""
        if self.num_steps < len(self.history):
            return self.step(self.history[self.num_steps])[0]
        self.history = ()
        return None

    def close(self) -> None:
        """Closes the environment; one that raises has ended all the same."""
        try:
            super().close()
        except BaseException as error:
            if from_outside(error):
                raise
            if rank() == 0 and self.index == 0:
                note(f"note: --env-id {getattr(self.env.spec, 'id', '')}: close() raised {described(error)}")

    def failed(self, how: str) -> EpisodeError:
        """What to raise, or to say, where this environment did something wrong."""
        seed = episode_seed(self.environment, self.episode)
        return EpisodeError(
            f"environment {self.index} {how}, at step {self.num_steps:,} of the episode that reset(seed={seed}) starts"
        )

    def _check_obs(self, obs: Any) -> None:
        array = self._array(obs)
        if array.shape != self.shape:
            raise self.failed(f"gave an observation of shape {array.shape}; its space says {self.shape}")
        if array.dtype.kind not in "biuf":
            raise self.failed(f"gave an observation of {array.dtype}, {one_line(repr(obs))}; must be numbers")

    def _array(self, value: Any) -> NDArray[Any]:
        try:
            return np.asarray(value)
        except Exception as error:  # of whatever the environment's value is
            raise self._raised(error) from None

    def _flag(self, name: str, value: Any) -> bool:
        number = self._number(name, value)
        if number not in (0, 1):
            raise self.failed(f"gave {number:g} for {name}; must be True or False")
        return bool(number)

    def _number(self, name: str, value: Any) -> float:
        array = self._array(value)
        if array.size != 1 or array.dtype.kind not in "biuf":
            raise self.failed(f"gave {one_line(repr(value))} for {name}; must be one number")
        number: float = array.item()
        return number

    def _raised(self, error: BaseException) -> BaseException:
        if from_outside(error):
            return error
        where = traceback.extract_tb(error.__traceback__)[-1]
        return self.failed(f"raised {described(error)} at {where.filename}:{where.lineno}")


def worker(
    index: int, make: Callable[[], Any], pipe: Any, parent_pipe: Any, memory: Any, errors: Any, *rest: Any
) -> None:
    """Gymnasium's process of one environment, deaf to what is meant for its rank, and gone when that is."""
    signal_at_parents_death(signal.SIGKILL)
    for asked in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1):
        signal.signal(asked, signal.SIG_IGN)
    try:
        env = make()
    except BaseException as error:
        pipe.recv()  # what its rank asks first
        errors.put((index, EpisodeError, f"environment {index} cannot be made: {described(error)}", ""))
        pipe.send((None, False))
        return
    with contextlib.suppress(EOFError, OSError):  # where its rank has gone
        _async_worker(index, lambda: env, pipe, parent_pipe, memory, errors, *rest)


def how_ended(processes: Sequence[Any]) -> tuple[int, str]:
    """Which of the environments' processes has ended, and how."""
    for process in processes:
        process.join(0.5)
    codes = [(n, process.exitcode) for n, process in enumerate(processes) if not process.is_alive()]
    n, code = codes[0] if codes else (0, None)
    if code is None:
        return n, "or of another does not answer"
    return n, f"was killed by signal {-code} (out of memory?)" if code < 0 else f"ended with code {code}"


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
