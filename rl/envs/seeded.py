"""A wrapper that gives every episode of a Gymnasium environment its own seed, so that it can be replayed.

The seed depends on the environment's seed and the episode's number alone. An episode is therefore replayed from its
number and its actions, without the episodes before it; `replayable` tries whether that holds. Some environments keep
something from one episode to the next (a generator that `reset` does not seed): for those, if they are quick to make,
each episode gets a new object (`made_anew`).
"""

import copy
import functools
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from typing import Any

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray

from rl.dist.launch import rank
from rl.envs.action_spaces import RowSpace, actions_of
from rl.envs.actions import CompositeActions
from rl.envs.failures import EpisodeError, from_outside, progress
from rl.envs.masks import KEY, allows_one, checked, random_row
from rl.envs.observations import Keys, keys_of, part_of
from rl.envs.snapshot import same
from rl.errors import described, one_line
from rl.seeding import episode_seed

EPISODES = 2**32  # at most, of one environment
FLAGS = frozenset((bool, np.bool_))
NUMBERS = FLAGS | {float, int, np.float64, np.float32}


@functools.cache
def note(text: str) -> None:
    """Prints a text unless it has been printed before."""
    print(text, file=sys.stderr)


def seed_of(environment: int, episode: int) -> int:
    """The seed that makes `SeededEpisodes.reset` start this episode of the environment with this seed."""
    return environment * EPISODES + episode


class SeededEpisodes(gym.Wrapper[Any, Any, Any, Any]):
    """Seeds each episode by its number, replays episodes, and raises `EpisodeError` for invalid results.

    Actions of a Dict or a Tuple reach it as rows (`RowSpace`).
    """

    def __init__(self, make: Callable[[], gym.Env[Any, Any]]) -> None:
        env = make()
        super().__init__(env)
        self.make = make
        self.shape = env.observation_space.shape  # kept, because wrappers look the space up anew each time
        self.takes_number = isinstance(env.action_space, gym.spaces.Box) and env.action_space.shape == ()
        self.actions = actions_of(env.spec.id if env.spec else "", env.action_space)
        if isinstance(self.actions, CompositeActions):
            self.action_space = RowSpace(self.actions, env.action_space)
        self.action_mask: NDArray[np.bool_] | None = None  # of the present observation, if it has masks
        self.index = 0  # of this environment in its rank
        self.made_anew = False  # whether each episode needs a new object
        self.environment, self.episode, self.num_steps = 0, 0, 0
        self.history: Sequence[Any] = ()  # actions of the episode to replay
        self.busy = False  # whether the environment's own code is running, for the message if it hangs
        progress()

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Starts the next episode, or the one that `seed_of` made the seed from."""
        next_one = self.environment, self.episode + 1
        self.environment, self.episode = next_one if seed is None else divmod(seed, EPISODES)
        self.num_steps = 0
        obs, info = self._checked(self._reset_env, options, size=2, what="an observation and a dictionary")
        self._check_obs(obs)
        return obs, info if KEY not in info and self.action_mask is None else self._with_mask(info)

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        self.num_steps += 1
        what = "an observation, a reward, two booleans and a dictionary"
        given = np.asarray(action) if self.takes_number else action  # batches give NumPy's number, not an array
        if isinstance(self.actions, CompositeActions):
            given = self.actions.structured(action)
        obs, reward, terminated, truncated, info = self._checked(self.env.step, given, size=5, what=what)
        # Tried first what almost all environments return, since this runs for each of them in each step.
        if type(obs) is not np.ndarray or obs.shape != self.shape or obs.dtype.kind not in "biuf":
            self._check_obs(obs)
        if type(reward) not in NUMBERS or type(terminated) not in FLAGS or type(truncated) not in FLAGS:
            reward = self._number("reward", reward)
            terminated, truncated = self._flag("terminated", terminated), self._flag("truncated", truncated)
        if KEY in info or self.action_mask is not None:
            info = self._after_step(info, ended=terminated or truncated)
        if terminated or truncated:
            obs = copy.deepcopy(obs)  # the reset that follows may write into the same array
        return obs, reward, terminated, truncated, info

    def _after_step(self, info: dict[str, Any], *, ended: bool) -> dict[str, Any]:
        """The step's info with a valid mask, or without one where it says nothing: the episode has ended."""
        if ended or not self.actions.sizes:
            return {name: value for name, value in info.items() if name != KEY}
        if self.action_mask is None:
            raise self.failed(f"gave an {KEY}, and none before; must give one from its first reset on, or never")
        return self._with_mask(info)

    def _with_mask(self, info: dict[str, Any]) -> dict[str, Any]:
        """The info with a valid mask, in which everything is legal if the environment gave none."""
        if not (sizes := self.actions.sizes):
            return info
        try:
            mask = checked(info[KEY], sizes) if KEY in info else np.ones(sum(sizes), np.bool_)
        except ValueError as error:
            raise self.failed(f"gave {error}") from None
        if mask.ndim != 1 or not allows_one(mask, sizes):
            raise self.failed(f"gave an {KEY} without a legal action: {one_line(str(mask.astype(int).tolist()))}")
        self.action_mask = mask
        return info | {KEY: mask}

    def _reset_env(self, options: dict[str, Any] | None) -> Any:
        if self.made_anew:
            self.env.close()
            self.env = self.make()
        return self.env.reset(seed=episode_seed(self.environment, self.episode), options=options)

    def _checked(self, call: Callable[[Any], Any], argument: Any, *, size: int, what: str) -> Any:
        """What the environment's own code returns, which must be a tuple that ends with a dictionary."""
        self.busy = True
        try:
            result = call(argument)
        except BaseException as error:
            raise self._raised(error) from None
        self.busy = False
        progress()
        if not isinstance(result, tuple) or len(result) != size or not isinstance(result[-1], dict):
            raise self.failed(f"gave {one_line(repr(result))} instead of {what}")
        return result

    def replay(self) -> Any:
        """Takes the next action of `history`: the observation, or None after the last one."""
        if self.num_steps < len(self.history):
            return self.step(self.history[self.num_steps])[0]
        self.history = ()
        return None

    def close(self) -> None:
        """Closes the environment; an error in it gets a note, once, and stops nothing."""
        try:
            super().close()
        except BaseException as error:
            if from_outside(error):
                raise
            if rank() == 0 and self.index == 0:
                note(f"note: --env-id {getattr(self.env.spec, 'id', '')}: close() raised {described(error)}")

    def failed(self, how: str) -> EpisodeError:
        """The error that says what this environment did, and where."""
        seed = episode_seed(self.environment, self.episode)
        return EpisodeError(
            f"environment {self.index} {how}, at step {self.num_steps:,} of the episode that reset(seed={seed}) starts"
        )

    @functools.cached_property
    def keys(self) -> Keys:
        return keys_of(self.env.observation_space)

    def _check_obs(self, obs: Any) -> None:
        for key in self.keys:
            named = f" for {key.name}" if key.name else ""
            try:
                part = part_of(obs, key)
            except (LookupError, TypeError):
                raise self.failed(f"gave an observation without {key.name}: {one_line(repr(obs))}") from None
            array = self._array(part)
            if array.shape != key.shape:
                raise self.failed(f"gave an observation of shape {array.shape}{named}; its space says {key.shape}")
            if array.dtype.kind not in "biuf":
                raise self.failed(
                    f"gave an observation of {array.dtype}{named}, {one_line(repr(part))}; must be numbers"
                )

    def _array(self, value: Any) -> NDArray[Any]:
        try:
            return np.asarray(value)
        except Exception as error:  # raised by the value itself, such as a tensor that requires a gradient
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


PROBES, PROBE_STEPS = 3, 60
MAX_MAKE_SECONDS = 0.02  # acceptable for every episode


def replayable(env: SeededEpisodes) -> bool:
    """Whether episodes can be replayed; sets `made_anew` where only new objects can."""
    first = [_played(env, probe) for probe in range(PROBES)]
    again = [_played(env, probe) for probe in reversed(range(PROBES))][::-1]
    if all(map(same, first, again)):
        return True
    began_at = time.perf_counter()
    env.make().close()
    if time.perf_counter() - began_at > MAX_MAKE_SECONDS:
        return False
    env.made_anew = True
    first, again = ([_played(env, probe) for probe in range(PROBES)] for _ in range(2))
    return all(map(same, first, again))


def _played(env: SeededEpisodes, probe: int) -> list[NDArray[Any]]:
    """Everything that the environment returns in some steps of random actions."""
    actions = copy.deepcopy(env.action_space)  # whose generator may be the environment's too
    actions.seed(probe)
    generator = np.random.default_rng(probe)

    def arrays(obs: Any) -> list[NDArray[Any]]:
        # As they are given: float32 would hide differences.
        return [np.array(part_of(obs, key)) for key in env.keys]

    seen = arrays(env.reset(seed=seed_of(probe, 0))[0])
    for _ in range(PROBE_STEPS):
        action = actions.sample()
        if env.action_mask is not None:
            action = env.actions.to_env(env.actions.of_row(random_row(env.actions, env.action_mask, generator)))
            action = env.actions.flattened(action) if isinstance(env.actions, CompositeActions) else action
        obs, reward, terminated, truncated, _ = env.step(action)
        seen += [*arrays(obs), np.asarray([reward, terminated, truncated], np.float64)]
        if terminated or truncated:
            seen += arrays(env.reset()[0])
    return seen
