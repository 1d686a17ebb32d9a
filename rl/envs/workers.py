"""Steps Gymnasium environments in a few worker processes, several environments in each.

Actions, observations, rewards and ends lie in memory that a rank and its workers share, one record an environment. A
record also counts the calls of its environment's own code: an odd number says that one is running, and so which
environment hangs or has died, and a number that grows says that its worker makes progress.
"""

import contextlib
import ctypes
import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.vector import AutoresetMode
from gymnasium.vector.utils import CloudpickleWrapper, batch_space
from numpy.typing import NDArray

from rl.dist.launch import signal_at_parents_death
from rl.envs.failures import POLL_SECONDS, EpisodeError, progress
from rl.envs.masks import KEY
from rl.envs.observations import keys_of, part_of
from rl.envs.records import columns, field_of, record_of
from rl.errors import described

Make = Callable[[], gym.Env[Any, Any]]
STEP, END = None, "end"  # requests to workers; others name a method of `_Group` and its arguments


class DeadWorkerError(EpisodeError):
    """A worker has died; names the environment that it ran, or else its first."""

    def __init__(self, environment: int, how: str) -> None:
        super().__init__(f"the process of environment {environment} {how}")
        self.environment = environment


class Workers(gym.vector.VectorEnv[Any, Any, Any]):
    """Environments in worker processes that reset ended episodes in the same step.

    Of infos they keep `final_obs` and `action_mask`.
    """

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
        if example.actions.sizes:  # type: ignore[attr-defined]
            example.reset()  # which tells whether it has masks
        mask = example.action_mask  # type: ignore[attr-defined]
        example.close()
        context = multiprocessing.get_context()
        self.keys = keys_of(self.single_observation_space)
        mask_size = 0 if mask is None else len(mask)
        record = record_of(self.single_observation_space, self.single_action_space, mask_size)
        memory = context.RawArray(ctypes.c_byte, num_envs * record.itemsize)
        self.shared = columns(memory, record, range(num_envs))
        self.masks = {KEY: self.shared["mask"]} if "mask" in self.shared else {}
        ends = [num_envs * n // num_workers for n in range(num_workers + 1)]
        self.spans = list(map(range, ends, ends[1:]))  # the environments of each worker
        self.requests: list[_Mailbox] = []
        self.answers: list[_Mailbox] = []
        self.processes: list[Any] = []
        try:
            for span in self.spans:
                self.requests.append(_Mailbox(context))
                self.answers.append(_Mailbox(context))
                arguments = CloudpickleWrapper(make), memory, record, span, self.requests[-1], self.answers[-1]
                self.processes.append(context.Process(target=_work, args=arguments, daemon=True))
                self.processes[-1].start()
                self.answers[-1].writer.close()  # so that the worker's death closes the last one
            self._ask([("make", self.single_observation_space, self.single_action_space)] * num_workers)
        except BaseException:
            self.kill()
            raise

    def reset(self, *, seed: Any = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Starts an episode everywhere; `seed` holds one for each environment, or is None."""
        seeds = seed or [None] * self.num_envs
        self._ask([("reset", seeds[span.start : span.stop], options) for span in self.spans])
        return self._obs("obs"), {**self.masks}

    def step(self, actions: NDArray[Any]) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        """Steps all environments; the arrays that it returns are those that the next step writes into."""
        shared = self.shared
        shared["action"][:] = actions
        self._ask([STEP] * len(self.spans))
        terminated, truncated = shared["terminated"], shared["truncated"]
        info = {"final_obs": self._obs("final_obs")} if (terminated | truncated).any() else {}
        return self._obs("obs"), shared["reward"], terminated, truncated, info | self.masks

    def _obs(self, field: str) -> Any:
        """The observations [N, ...] in shared memory: an array, or a flat dict of arrays."""
        parts = {key.name: self.shared[field_of(field, key)] for key in self.keys}
        return parts if self.keys[0].path else parts[""]

    def call(self, name: str, *args: Any, **kwargs: Any) -> tuple[Any, ...]:
        """What a method of each environment returns, or an attribute's value."""
        answers = self._ask([("call", name, args, kwargs)] * len(self.spans))
        return tuple(result for answer in answers for result in answer)

    def set_attr(self, name: str, values: Any) -> None:
        """Sets an attribute of each environment: to a value of its own from a list, else to the same."""
        each = values if isinstance(values, list) else [values] * self.num_envs
        self._ask([("set_attr", name, each[span.start : span.stop]) for span in self.spans])

    def running(self) -> list[int]:
        """The environments whose own code is running."""
        running: list[int] = np.flatnonzero(self.shared["num_calls"] % 2).tolist()
        return running

    def close_extras(self, **kwargs: Any) -> None:
        for requests, answers in zip(self.requests, self.answers, strict=True):
            requests.send(END)
            answers.reader.close()  # which ends a worker whose answer nobody has waited for
        for process in self.processes:
            process.join()

    def kill(self) -> None:
        """Kills the workers, whatever they do."""
        started = [process for process in self.processes if process.pid]
        for process in started:
            process.kill()
        for process in started:
            process.join()
        self.closed = True

    def _ask(self, requests: list[Any]) -> list[Any]:
        """The answers of all workers to a request for each.

        Raises:
            EpisodeError: An environment has failed, or a worker has died.
        """
        try:
            for mailbox, request in zip(self.requests, requests, strict=True):
                mailbox.send(request)
            answers = []
            for mailbox, process in zip(self.answers, self.processes, strict=True):
                answers.append(mailbox.receive(self._watch(process).__next__))
                if isinstance(answers[-1], EpisodeError):
                    raise answers[-1]
            return answers
        except (EOFError, OSError) as error:
            raise self._death() from error

    def _death(self) -> "DeadWorkerError":
        for process in self.processes:
            process.join(0.5)
        ended = [n for n, process in enumerate(self.processes) if not process.is_alive()] or [0]
        code, span = self.processes[ended[0]].exitcode, self.spans[ended[0]]
        environment = next((n for n in self.running() if n in span), span.start)
        if code is None:
            return DeadWorkerError(environment, "or of another does not answer")
        killed = f"was killed by signal {-code} (out of memory?)"
        return DeadWorkerError(environment, killed if code < 0 else f"ended with code {code}")

    def _watch(self, process: Any) -> Iterator[None]:
        """Looks, at each `next`, whether workers make progress, and whether this one lives."""
        num_calls = b""
        while True:
            if num_calls != (num_calls := self.shared["num_calls"].tobytes()):
                progress()
            if not process.is_alive():
                raise EOFError
            yield


class _Mailbox:
    """Carries messages from one process to another.

    A pipe alone would take three times as long, also because the kernel expects a process that writes into one to wait
    next, and wakes the reader on the same core. So a semaphore wakes the reader, and no message but None is quick.
    """

    def __init__(self, context: Any) -> None:
        self.reader, self.writer = context.Pipe(duplex=False)
        self.posted = context.Semaphore(0)
        self.filled = context.RawValue(ctypes.c_bool, False)  # whether the message is in the pipe

    def send(self, message: Any) -> None:
        self.filled.value = message is not None
        self.posted.release()  # first, since a message larger than the pipe waits for its reader
        if message is not None:
            self.writer.send(message)

    def receive(self, meanwhile: Callable[[], object]) -> Any:
        """Waits for the next message; calls `meanwhile` now and then."""
        while not self.posted.acquire(timeout=POLL_SECONDS):
            meanwhile()
        return self.reader.recv() if self.filled.value else None


def _work(make: Make, memory: Any, record: np.dtype[Any], span: range, requests: _Mailbox, answers: _Mailbox) -> None:
    """A worker process: answers its rank, ignores the signals to it, and ends when it does."""
    signal_at_parents_death(signal.SIGKILL)
    for asked in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1):
        signal.signal(asked, signal.SIG_IGN)
    rank = os.getppid()

    def end_with_rank() -> None:
        if os.getppid() != rank:
            raise EOFError

    group = _Group(make, columns(memory, record, span), span.start)
    with contextlib.suppress(EOFError, OSError):  # the rank has ended
        while (request := requests.receive(end_with_rank)) != END:
            answers.send(group.answer(*(request or ("step",))))
    group.close()


class _Group:
    """The environments of a worker."""

    def __init__(self, make_env: Make, shared: dict[str, NDArray[Any]], first: int) -> None:
        self.make_env = make_env
        self.shared = shared
        self.first = first  # environment of the rank
        self.n = 0  # whose code has run last
        self.envs: list[Any] = []

    def answer(self, method: str, *args: Any) -> Any:
        """What a method returns, or the error that it raises."""
        try:
            return getattr(self, method)(*args)
        except EpisodeError as error:
            return error
        except BaseException as error:
            how = "cannot be made:" if method == "make" else "raised"
            return EpisodeError(f"environment {self.first + self.n} {how} {described(error)}")

    def each(self) -> Iterator[int]:
        """The environments in turn, while calls of their code are counted."""
        num_calls = self.shared["num_calls"]
        for n, count in enumerate(num_calls.tolist()):
            self.n = n
            num_calls[n] = count + 1
            yield n
            num_calls[n] = count + 2

    def make(self, *spaces: Any) -> None:
        for _ in self.each():
            env = self.make_env()
            if (env.observation_space, env.action_space) != spaces:
                raise ValueError(f"its spaces are {env.observation_space} and {env.action_space}, not {spaces}")
            self.envs.append(env)
        # Each key of an observation, and the arrays that it is written to.
        keys = keys_of(spaces[0])
        self.parts = {name: [(key, self.shared[field_of(name, key)]) for key in keys] for name in ("obs", "final_obs")}

    def write(self, name: str, n: int, obs: Any) -> None:
        """Writes an observation of environment n."""
        for key, array in self.parts[name]:
            array[n] = part_of(obs, key)

    def reset(self, seeds: list[int | None], options: Any) -> None:
        for n in self.each():
            self.write("obs", n, self.envs[n].reset(seed=seeds[n], options=options)[0])
            if "mask" in self.shared:
                self.shared["mask"][n] = self.envs[n].action_mask

    def step(self) -> None:
        shared = self.shared
        actions = shared["action"].copy()  # which environments may keep
        reward = shared["reward"]
        all_terminated, all_truncated = shared["terminated"], shared["truncated"]
        for n in self.each():
            obs, reward[n], terminated, truncated, _ = self.envs[n].step(actions[n])
            if terminated or truncated:
                self.write("final_obs", n, obs)
                obs = self.envs[n].reset()[0]
            self.write("obs", n, obs)
            all_terminated[n], all_truncated[n] = terminated, truncated
            if "mask" in shared:
                shared["mask"][n] = self.envs[n].action_mask

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
