"""Turns whatever goes wrong in an environment into one line that names the environment, the episode and the step.

An environment may raise anything (`SystemExit` included), hang, end its process, or return what is no observation.
`Guard` makes every call, and raises `OneEnvError` with what reproduces the failure: the seed of the episode, and the
step, which `Position` counts. Python cannot interrupt a call that hangs in its own process, so a thread watches the
clock and ends the process (`watched`).
"""

import atexit
import multiprocessing
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import gymnasium as gym
import numpy as np
from gymnasium.vector import AsyncVectorEnv
from numpy.typing import NDArray

from rl.dist.launch import rank
from rl.errors import OneEnvError, StopError, UserError, described, one_line
from rl.reporting import report
from rl.seeding import episode_seed

AnyVectorEnv = gym.vector.VectorEnv[Any, Any, Any]
Result = TypeVar("Result")
QUIET = np.errstate(over="ignore", invalid="ignore")  # numbers that are not finite get a message of ours

POLL_SECONDS = 0.25
_running: list["watched"] = []
_thread: threading.Thread | None = None


class watched:  # noqa: N801 (a context manager, named as contextlib names them)
    """Ends this process if the block takes longer than `seconds`, with the error that `describe` returns.

    The clock starts with the block, and again at each `progress`. Blocks may be nested and entered again.
    """

    def __init__(self, seconds: float, describe: Callable[[], UserError]) -> None:
        self.seconds = seconds
        self.describe = describe
        self.waited = 0.0

    def __enter__(self) -> None:
        global _thread
        self.waited = 0.0
        _running.append(self)
        if _thread is None or not _thread.is_alive():  # a fork does not copy threads
            _thread = threading.Thread(target=_watch, name="watchdog", daemon=True)
            _thread.start()

    def __exit__(self, *_: object) -> None:
        _running.remove(self)


def progress() -> None:
    """Starts the clocks of all watched blocks again."""
    for block in _running:
        block.waited = 0.0


def _watch() -> None:
    while True:
        time.sleep(POLL_SECONDS)
        for block in tuple(_running):  # a copy, since other threads change the list
            # Counted, because a clock goes on while the whole process is stopped (SIGSTOP, a suspended machine).
            block.waited += POLL_SECONDS
            if block.waited > block.seconds:
                error = block.describe()
                report(error)
                for process in multiprocessing.active_children():
                    process.kill()
                os._exit(error.exit_code)


def trouble_of(call: Callable[[], object], seconds: float) -> str:
    """Makes a call on a thread of its own: what went wrong, or ""; a call that does not return is abandoned."""
    trouble = [f"has not returned for {seconds:g} s"]

    def run() -> None:
        try:
            call()
            trouble.clear()
        except BaseException as error:
            trouble[:] = [f"raised {described(error)}"]

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(min(seconds, threading.TIMEOUT_MAX))
    return "".join(trouble)


class EpisodeError(Exception):
    """An environment's failure, with its episode and step; it travels from the environment's process to its rank."""


def from_outside(error: BaseException) -> bool:
    """Whether a signal handler raised the error, and not the environment that happened to run."""
    if not isinstance(error, KeyboardInterrupt):
        return isinstance(error, UserError | StopError)
    handler = signal.getsignal(signal.SIGINT)
    *_, (frame, _) = traceback.walk_tb(error.__traceback__)
    return handler is signal.default_int_handler or getattr(handler, "__code__", None) is frame.f_code


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


class Guard:
    """Calls a batch of environments and checks what it returns; errors say where, and leave no process behind."""

    def __init__(
        self, envs: AnyVectorEnv, env_id: str, position: Position, *, obs_size: int, timeout_seconds: float
    ) -> None:
        self.envs = envs
        self.env_id = env_id
        self.obs_shape = (envs.num_envs, obs_size)
        self.zeros = np.zeros(envs.num_envs * obs_size, np.float32)
        self.position = position
        self.timeout_seconds = timeout_seconds
        self.watched = watched(timeout_seconds, lambda: self._described(self._hung()))
        self.processes: Sequence[Any] = envs.processes if isinstance(envs, AsyncVectorEnv) else ()
        if self.processes:
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
        except EpisodeError as error:
            raise self.error(str(error)) from error
        except BaseException as error:
            if from_outside(error):
                raise
            raise self._raised(error) from error

    def check_types(self, result: Any) -> None:
        """Raises `OneEnvError` unless a batched class returned a valid step; `SeededEpisodes` check their own."""
        if self.position.seeded:
            return
        if not isinstance(result, tuple) or len(result) != 5 or not isinstance(result[4], dict):
            raise self.batch_error(f"gave {one_line(repr(result))} instead of four arrays and a dictionary")
        for name, part in zip(("observation", "reward", "terminated", "truncated"), result, strict=False):
            array = np.asarray(part)
            shape = array.shape[:1] if name == "observation" else array.shape
            if array.dtype.kind not in "biuf" or shape != self.obs_shape[:1]:
                raise self.batch_error(f"gave numbers of type {array.dtype} and shape {array.shape} for {name}")

    @QUIET
    def check_numbers(self, obs: NDArray[Any], next_obs: NDArray[Any], reward: NDArray[Any]) -> None:
        """Raises `OneEnvError` for observations of another shape than [N, D], and for numbers that are not finite."""
        if obs.shape != self.obs_shape:
            what = f"of shape {obs.shape}; must be {self.obs_shape}"
            raise self.error(f"the environments gave observations {what}{self.position.of_batch()}")
        # 0 · x is NaN for NaN and inf, so one product with zeros checks a whole array, faster than isfinite.
        total = np.dot(obs.reshape(-1), self.zeros) + np.dot(reward, self.zeros[: len(reward)])
        if total == 0 and (next_obs is obs or np.dot(next_obs.reshape(-1), self.zeros) == 0):
            return
        n = int((np.isfinite(next_obs).all(-1) & np.isfinite(reward) & np.isfinite(obs).all(-1)).argmin())
        seen, step, episode = next_obs[n], self.position.length[n], int(self.position.episode[n])
        if np.isfinite(seen).all() and np.isfinite(reward[n]):  # so the next episode's first observation is not
            seen, step, episode = obs[n], 0, episode + 1
        what = f"an observation or a reward that is not finite: {seen.tolist()}, {reward[n]:g}"
        raise self.error(f"environment {n} gave {what}{self.position.of(n, step=step, episode=episode)}")

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

    def _raised(self, error: BaseException) -> OneEnvError:
        if not (self.processes and isinstance(error, EOFError | BrokenPipeError | ConnectionResetError)):
            return self.error(f"the environments raised {described(error)}{self.position.of_batch()}")
        n, how = how_ended(self.processes)
        return self.error(f"the process of environment {n} {how}{self.position.of(n)}")

    def _hung(self) -> str:
        how = f"has not answered for --env-timeout {self.timeout_seconds:g} s"
        if isinstance(self.envs, AsyncVectorEnv):
            waiting = [n for n, pipe in enumerate(self.envs.parent_pipes) if not pipe.poll(0)]
            return f"environment {waiting[0]} {how}{self.position.of(waiting[0])}" if waiting else how
        busy = [env for env in getattr(self.envs, "envs", []) if getattr(env, "busy", False)]
        return str(busy[0].failed(how)) if busy else f"the batch of environments {how}{self.position.of_batch()}"

    def _kill(self) -> None:
        for process in self.processes:
            process.kill()
        for process in self.processes:
            process.join()
        if self.processes:
            self.envs.closed = True


def how_ended(processes: Sequence[Any]) -> tuple[int, str]:
    """The first environment whose process has ended, and how it did."""
    for process in processes:
        process.join(0.5)
    codes = [(n, process.exitcode) for n, process in enumerate(processes) if not process.is_alive()]
    n, code = codes[0] if codes else (0, None)
    if code is None:
        return n, "or of another does not answer"
    return n, f"was killed by signal {-code} (out of memory?)" if code < 0 else f"ended with code {code}"
