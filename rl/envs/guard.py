"""Makes every call of a batch of environments, checks what it returns, and says where a failure happened.

`Guard` raises `OneEnvError` with what reproduces the failure: the seed of the episode, and the step, which `Position`
counts.
"""

import atexit
import math
import sys
from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np
from gymnasium.vector import AutoresetMode
from numpy.typing import NDArray

from rl import tree
from rl.dist.launch import rank
from rl.envs.failures import QUIET, AnyVectorEnv, EpisodeError, from_outside, trouble_of, watched
from rl.envs.observations import Arrays, Keys, part_of
from rl.envs.workers import DeadWorkerError, Workers
from rl.errors import OneEnvError, UserError, described, one_line
from rl.seeding import episode_seed

Result = TypeVar("Result")


class Position:
    """The step of the episode that each of N environments is in, as error messages name it."""

    def __init__(self, num_envs: int, *, seeded: bool, where: str) -> None:
        self.seeded = seeded  # whether each episode has a seed of its own
        self.where = where
        self.num_steps = 0
        self.batch_seed = 0  # without seeds of episodes: what the batch was last reset with
        self.environment = np.zeros(num_envs, np.int64)  # [N] seeds
        self.episode = np.zeros(num_envs, np.int64)  # [N]
        self.length = np.zeros(num_envs)  # [N] steps of the episode so far

    def __str__(self) -> str:
        return f"rank {rank()}, step {self.num_steps + 1:,} of {self.where}"

    def of_batch(self) -> str:
        return "" if self.seeded else f", in the batch that reset(seed={self.batch_seed}) starts"

    def of(self, n: int, *, step: float | None = None, episode: int | None = None) -> str:
        """Of environment `n`, unless said otherwise in the step that it has not completed."""
        step = self.length[n] + 1 if step is None else step
        started = f"the batch that reset(seed={self.batch_seed}) starts"
        if self.seeded:
            episode = int(self.episode[n]) if episode is None else episode
            started = f"the episode that reset(seed={episode_seed(int(self.environment[n]), episode)}) starts"
        return f", at step {int(step):,} of {started}"


def resets_in_next_step(envs: AnyVectorEnv, env_id: str, *, default: bool | None = None) -> bool:
    """Whether a batch resets an ended episode in the step after its end; `default` where it does not say.

    Raises:
        UserError: It does not reset ended episodes, or does not say.
    """
    mode = envs.metadata.get("autoreset_mode")
    if mode is None and default is not None:
        return default
    if mode not in (AutoresetMode.SAME_STEP, AutoresetMode.NEXT_STEP):
        raise UserError(
            f"--env-id {env_id}: its batched class has autoreset_mode {mode}; must be SAME_STEP or NEXT_STEP,"
            " or try --vectorization sync"
        )
    return bool(mode == AutoresetMode.NEXT_STEP)


class Guard:
    """Calls a batch of environments and checks what it returns; errors say where, and leave no process behind."""

    def __init__(
        self, envs: AnyVectorEnv, env_id: str, position: Position, *, keys: Keys, timeout_seconds: float
    ) -> None:
        self.envs = envs
        self.env_id = env_id
        self.keys = keys
        self.shapes = [(envs.num_envs, *key.shape) for key in keys]
        self.zeros = np.zeros(max(map(math.prod, self.shapes)), np.float32)
        self.position = position
        self.timeout_seconds = timeout_seconds
        self.watched = watched(timeout_seconds, lambda: self._described(self._hung()))
        self.workers = envs if isinstance(envs, Workers) else None
        if self.workers:
            # Before multiprocessing's own handler, which waits for processes that may hang.
            atexit.register(self._kill)

    def call(self, function: Callable[[], Result]) -> Result:
        """Returns what the function does.

        Raises:
            OneEnvError: It raised, or an environment's process ended.
        """
        try:
            with self.watched:
                return function()
        except DeadWorkerError as error:
            raise self.error(f"{error}{self.position.of(error.environment)}") from error
        except EpisodeError as error:
            raise self.error(str(error)) from error
        except BaseException as error:
            if from_outside(error):
                raise
            raise self.error(f"the environments raised {described(error)}{self.position.of_batch()}") from error

    def check_types(self, result: Any) -> None:
        """Raises `OneEnvError` unless a batched class returned a valid step; `SeededEpisodes` check their own."""
        if self.position.seeded:
            return
        self.check_parts(result, 5)
        for name, part in zip(("reward", "terminated", "truncated"), result[1:], strict=False):
            self._check_type(name, np.asarray(part), (self.envs.num_envs,))
        for key, shape in zip(self.keys, self.shapes, strict=True):
            array = np.asarray(self.call(lambda key=key: part_of(result[0], key)))  # type: ignore[misc]
            self._check_type("observation", array, (*shape[:1], *array.shape[1:]))

    def check_parts(self, result: Any, size: int) -> None:
        """Raises `OneEnvError` unless a batched class returned so many parts, of which the last is a dictionary."""
        if not isinstance(result, tuple) or len(result) != size or not isinstance(result[-1], dict):
            many = {2: "an array", 5: "four arrays"}[size]
            raise self.batch_error(f"gave {one_line(repr(result))} instead of {many} and a dictionary")

    def _check_type(self, name: str, array: NDArray[Any], shape: tuple[int, ...]) -> None:
        if array.dtype.kind not in "biuf" or array.shape != shape:
            raise self.batch_error(f"gave numbers of type {array.dtype} and shape {array.shape} for {name}")

    @QUIET
    def check_numbers(self, obs: Arrays, next_obs: Arrays, reward: NDArray[Any]) -> None:
        """Raises `OneEnvError` for observations of another shape than the space's, or with invalid numbers."""
        for array, shape in zip(tree.leaves(obs), self.shapes, strict=True):
            if array.shape != shape:
                what = f"of shape {tuple(array.shape)}; must be {shape}"
                raise self.error(f"the environments gave observations {what}{self.position.of_batch()}")
        if (
            np.dot(reward, self.zeros[: len(reward)]) == 0
            and self._sound(obs)
            and (next_obs is obs or self._sound(next_obs))
        ):
            return
        rewards = np.isfinite(reward)
        rows, next_rows = self._sound_rows(obs), self._sound_rows(next_obs)
        n = int((rows & next_rows & rewards).argmin())
        seen, step, episode = next_obs, self.position.length[n], int(self.position.episode[n])
        if next_rows[n] and rewards[n]:  # so the next episode's first observation is not
            seen, step, episode = obs, 0, episode + 1
        what = f"an observation or a reward that is not finite: {self._shown(seen, n)}, {reward[n]:g}"
        raise self.error(f"environment {n} gave {what}{self.position.of(n, step=step, episode=episode)}")

    def _sound(self, obs: Arrays) -> bool:
        """Whether all numbers are finite, and those that the agent takes as one-hot vectors are in their space."""
        for key, array in zip(self.keys, tree.leaves(obs), strict=True):
            if key.dtype == "float32":
                # 0 · x is NaN for NaN and inf, so one product with zeros checks an array, faster than isfinite.
                if np.dot(array.reshape(-1), self.zeros[: array.size]) != 0:
                    return False
            elif key.num_values and not key.sound(array).all():  # type: ignore[arg-type]
                return False
        return True

    def _sound_rows(self, obs: Arrays) -> NDArray[np.bool_]:
        arrays = zip(self.keys, tree.leaves(obs), strict=True)
        rows: NDArray[np.bool_] = np.all([key.sound(array) for key, array in arrays], axis=0)  # type: ignore[arg-type]
        return rows

    def _shown(self, obs: Arrays, n: int) -> str:
        """The part of a row that is wrong, or else the first."""
        parts = list(zip(self.keys, tree.leaves(obs), strict=True))
        key, array = next((part for part in parts if not part[0].sound(part[1])[n]), parts[0])  # type: ignore[arg-type]
        shown = one_line(str(array[n].tolist()))
        if key.num_values:
            shown += f" (its space has {one_line(str(key.num_values))} values, counted from 0)"
        return f"{key.name} {shown}" if key.name else shown

    def error(self, what: str) -> OneEnvError:
        """The error to raise, after the environments' processes were killed."""
        self._kill()
        return self._described(what)

    def batch_error(self, what: str) -> OneEnvError:
        return self.error(f"the batch of environments {what}{self.position.of_batch()}")

    def close(self) -> None:
        """Closes the environments; those that raise or hang are killed or abandoned, with a note."""
        if trouble := trouble_of(self.envs.close, self.timeout_seconds):
            print(f"note: --env-id {self.env_id}: close() {trouble} (rank {rank()})", file=sys.stderr)
            self._kill()
        atexit.unregister(self._kill)

    def _described(self, what: str) -> OneEnvError:
        return OneEnvError(f"--env-id {self.env_id}: {what} ({self.position})")

    def _hung(self) -> str:
        how = f"has not answered for --env-timeout {self.timeout_seconds:g} s"
        if self.workers:
            running = self.workers.running()
            return f"environment {running[0]} {how}{self.position.of(running[0])}" if running else f"a process {how}"
        busy = [env for env in getattr(self.envs, "envs", []) if getattr(env, "busy", False)]
        return str(busy[0].failed(how)) if busy else f"the batch of environments {how}{self.position.of_batch()}"

    def _kill(self) -> None:
        if self.workers:
            self.workers.kill()
