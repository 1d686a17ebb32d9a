"""Steps Gymnasium environments in a few worker processes, several environments in each.

Actions, observations, rewards and ends lie in memory that a rank and its workers share, one record an environment;
messages only say what to do (a method of `_Group`) and that it is done. Each record also counts the calls of its
environment's own code: an odd number says that one is running, and so which environment hangs or has died, and a number
that grows says that its worker makes progress.
"""

import contextlib
import ctypes
import multiprocessing
import select
import signal
from collections.abc import Callable, Iterator
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.vector import AutoresetMode
from gymnasium.vector.utils import CloudpickleWrapper, batch_space
from numpy.typing import NDArray

from rl.dist.launch import signal_at_parents_death
from rl.envs.failures import EpisodeError, progress
from rl.errors import described

Make = Callable[[], gym.Env[Any, Any]]
POLL_MILLISECONDS = 250  # between two looks at the progress of workers


class Workers(gym.vector.VectorEnv[Any, Any, Any]):
    """Environments in worker processes that reset ended episodes in the same step; of infos they keep `final_obs`."""

    def __init__(self, make: Make, num_envs: int, num_workers: int) -> None:
        """Every environment must be a `SeededEpisodes`.

        Raises:
            EpisodeError: A worker cannot make its environments.
        """
        example = make()
        self.num_envs = num_envs
        self.metadata = example.metadata | {"autoreset_mode": AutoresetMode.SAME_STEP}
        self.single_observation_space, self.single_action_space = example.observation_space, example.action_space
        self.observation_space = batch_space(example.observation_space, num_envs)
        self.action_space = batch_space(example.action_space, num_envs)
        example.close()
        context = multiprocessing.get_context()
        record = _record(self.single_observation_space, self.single_action_space)
        memory = context.RawArray(ctypes.c_byte, num_envs * record.itemsize)
        self.records = _records(memory, record)
        ends = [num_envs * n // num_workers for n in range(num_workers + 1)]
        self.spans = list(map(range, ends, ends[1:]))  # the environments of each worker
        self.pipes, self.polls, self.processes = [], [], []
        try:
            for span in self.spans:
                pipe, workers_pipe = context.Pipe()
                arguments = CloudpickleWrapper(make), memory, record, span, workers_pipe
                self.processes.append(context.Process(target=_work, args=arguments, daemon=True))
                self.processes[-1].start()
                workers_pipe.close()  # so that the worker's death closes the last one
                self.pipes.append(pipe)
                self.polls.append(select.poll())
                self.polls[-1].register(pipe, select.POLLIN)
            self._ask("make", [(self.single_observation_space, self.single_action_space)] * num_workers)
        except BaseException:
            self.kill()
            raise

    def reset(self, *, seed: Any = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Starts an episode everywhere; `seed` holds one for each environment, or is None."""
        self._ask("reset", [(None if seed is None else seed[span.start : span.stop], options) for span in self.spans])
        return self.records["obs"], {}

    def step(self, actions: NDArray[Any]) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        """Steps all environments; the arrays that it returns are those that the next step writes into."""
        records = self.records
        records["action"] = actions
        self._ask("step", [()] * len(self.pipes))
        ended = (records["terminated"] | records["truncated"]).any()
        info = {"final_obs": records["final_obs"]} if ended else {}
        return records["obs"], records["reward"], records["terminated"], records["truncated"], info

    def call(self, name: str, *args: Any, **kwargs: Any) -> tuple[Any, ...]:
        """What a method of each environment returns, or an attribute's value."""
        answers = self._ask("call", [(name, args, kwargs)] * len(self.pipes))
        return tuple(result for answer in answers for result in answer)

    def set_attr(self, name: str, values: Any) -> None:
        """Sets an attribute of each environment: to a value of its own from a list, else to the same."""
        each = values if isinstance(values, list) else [values] * self.num_envs
        self._ask("set_attr", [(name, each[span.start : span.stop]) for span in self.spans])

    def running(self, worker: int | None = None) -> list[int]:
        """The environments of a worker, or of all, whose own code is running."""
        running = np.flatnonzero(self.records["num_calls"] % 2).tolist()
        return running if worker is None else [n for n in running if n in self.spans[worker]]

    def close_extras(self, **kwargs: Any) -> None:
        for pipe in self.pipes:
            with contextlib.suppress(OSError):
                pipe.send(None)
        for process in self.processes:
            process.join()
        for pipe in self.pipes:
            pipe.close()

    def kill(self) -> None:
        """Kills the workers, whatever they do."""
        started = [process for process in self.processes if process.pid]
        for process in started:
            process.kill()
        for process in started:
            process.join()
        self.closed = True

    def _ask(self, method: str, arguments: list[tuple[Any, ...]]) -> list[Any]:
        """What a method of each worker's group returns, after all have returned."""
        for pipe, each in zip(self.pipes, arguments, strict=True):
            pipe.send((method, each))
        return list(map(self._answer, self.pipes, self.polls))

    def _answer(self, pipe: Any, poll: select.poll) -> Any:
        seen = None
        while not poll.poll(POLL_MILLISECONDS):
            num_calls = self.records["num_calls"].tobytes()
            if num_calls != seen:
                progress()
            seen = num_calls
        answer = pipe.recv()
        if isinstance(answer, EpisodeError):
            raise answer
        return answer


def _record(observation_space: Any, action_space: Any) -> np.dtype[Any]:
    """What is shared of an environment."""
    obs = (observation_space.dtype, observation_space.shape)
    fields = {"action": (action_space.dtype, action_space.shape), "obs": obs, "final_obs": obs}
    fields |= {"reward": (np.float64, ()), "terminated": (np.bool_, ()), "truncated": (np.bool_, ())}
    fields |= {"num_calls": (np.int64, ())}
    return np.dtype([(name, *field) for name, field in fields.items()], align=True)


def _records(memory: Any, record: np.dtype[Any]) -> NDArray[Any]:
    return np.frombuffer(memory, record)


def _work(make: Make, memory: Any, record: np.dtype[Any], span: range, pipe: Any) -> None:
    """A worker process: answers its rank, ignores the signals to it, and ends when it does."""
    signal_at_parents_death(signal.SIGKILL)
    for asked in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1):
        signal.signal(asked, signal.SIG_IGN)
    group = _Group(make, _records(memory, record)[span.start : span.stop], span.start)
    with contextlib.suppress(EOFError, OSError):  # the rank has ended
        while (request := pipe.recv()) is not None:
            pipe.send(group.answer(*request))
    group.close()


class _Group:
    """The environments of a worker."""

    def __init__(self, make_env: Make, records: NDArray[Any], first: int) -> None:
        self.make_env = make_env
        self.records = records
        self.first = first  # environment of the rank
        self.n = 0  # whose code has run last
        self.envs: list[Any] = []

    def answer(self, method: str, arguments: tuple[Any, ...]) -> Any:
        """What a method returns, or the error that it raises."""
        try:
            return getattr(self, method)(*arguments)
        except EpisodeError as error:
            return error
        except BaseException as error:
            how = "cannot be made:" if method == "make" else "raised"
            return EpisodeError(f"environment {self.first + self.n} {how} {described(error)}")

    def each(self) -> Iterator[int]:
        """The environments in turn, while calls of their code are counted."""
        num_calls = self.records["num_calls"]
        for n in range(len(self.records)):
            self.n = n
            num_calls[n] += 1
            yield n
            num_calls[n] += 1

    def make(self, *spaces: Any) -> None:
        for _ in self.each():
            env = self.make_env()
            if (env.observation_space, env.action_space) != spaces:
                raise ValueError(f"its spaces are {env.observation_space} and {env.action_space}, not {spaces}")
            self.envs.append(env)

    def reset(self, seeds: list[int] | None, options: Any) -> None:
        for n in self.each():
            seed = None if seeds is None else seeds[n]
            self.records["obs"][n] = self.envs[n].reset(seed=seed, options=options)[0]

    def step(self) -> None:
        action = self.records["action"].copy()  # which an environment may keep
        names = "obs", "reward", "terminated", "truncated"
        all_obs, reward, terminated, truncated = (self.records[name] for name in names)
        for n in self.each():
            obs, reward[n], terminated[n], truncated[n], _ = self.envs[n].step(action[n])
            if terminated[n] or truncated[n]:
                self.records["final_obs"][n] = obs
                obs = self.envs[n].reset()[0]
            all_obs[n] = obs

    def call(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Any]:
        results = []
        for n in self.each():
            value = self.envs[n].get_wrapper_attr(name)
            results.append(value(*args, **kwargs) if callable(value) else value)
        return results

    def set_attr(self, name: str, values: list[Any]) -> None:
        for env, value in zip(self.envs, values, strict=True):
            env.set_wrapper_attr(name, value)

    def close(self) -> None:
        for env in self.envs:
            env.close()
