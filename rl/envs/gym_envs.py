"""Steps Gymnasium's NumPy environments in tensors, and survives what they do wrong."""

import atexit
import math
import sys
from collections.abc import Callable, Mapping
from typing import Any, Literal, TypeVar

import numpy as np
import torch
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv
from numpy.typing import NDArray
from torch import Tensor

from rl.dist.launch import rank
from rl.envs.history import History
from rl.envs.seeded import EPISODES, EpisodeError, from_outside, how_ended, seed_of
from rl.envs.snapshot import AnyVectorEnv, restore, snapshot
from rl.envs.spaces import Spaces
from rl.envs.types import QUIET, Step, as_float32, wrong_types
from rl.envs.watchdog import trouble_of, watched
from rl.errors import OneEnvError, UserError, described
from rl.seeding import environment_seed, episode_seed

Result = TypeVar("Result")
Memory = Literal["episodes", "snapshot", "none"]
"""How environments come back after a resume: their episodes are played again, their attributes put back, or not."""


class GymEnvs:
    """Steps N Gymnasium environments in tensors, whatever way they are batched and reset."""

    def __init__(
        self,
        envs: AnyVectorEnv,
        env_id: str,
        *,
        seeded: bool = False,
        memory: Memory = "none",
        timeout_seconds: float = math.inf,
        max_replay_steps: int = 100_000,
        where: str = "the run",
    ) -> None:
        """`seeded` says that every environment is a `SeededEpisodes`; `where` is what it is stepped for.

        Raises:
            UserError: An agent cannot act on the spaces, or nobody resets ended episodes.
        """
        self.spaces = Spaces.of(env_id, envs.single_observation_space, envs.single_action_space)
        self.envs = envs
        self.env_id = env_id
        self.seeded = seeded
        self.memory = memory
        self.num_envs = envs.num_envs
        self.device = torch.device("cpu")
        autoreset = envs.metadata.get("autoreset_mode")
        if autoreset not in (AutoresetMode.SAME_STEP, AutoresetMode.NEXT_STEP):
            raise UserError(f"--env-id {env_id}: its batched class has autoreset_mode {autoreset}; try --vectorization")
        self.resets_in_next_step = autoreset == AutoresetMode.NEXT_STEP
        self.resetting = np.zeros(self.num_envs, np.bool_)
        self.running_return, self.running_length = np.zeros(self.num_envs), np.zeros(self.num_envs)
        self.num_steps = self.num_ignored = 0
        self.zeros = np.zeros(self.num_envs * self.spaces.obs_size, np.float32)
        # What brings seeded environments back: which episode each is in, and its actions.
        self.environment, self.episode = np.zeros(self.num_envs, np.int64), np.zeros(self.num_envs, np.int64)
        self.history = History(env_id, self.num_envs, max_replay_steps)
        self.batch_seed = 0  # of a batched class
        self.timeout_seconds = timeout_seconds
        self.watched = watched(timeout_seconds, lambda: self._named(self._hung()))
        self.where = where
        if isinstance(envs, AsyncVectorEnv):
            atexit.register(self._kill)  # before multiprocessing's own end, which would wait for them

    def reset(self, seed: int, first_env: int = 0) -> Tensor:
        """The first observations [N, D] (float32); `first_env` counts environments over all ranks."""
        seeds = [environment_seed(seed, first_env + i) for i in range(self.num_envs)]
        self.environment[:], self.episode[:], self.num_steps = seeds, 0, 0
        if self.seeded:
            return self._reset([seed_of(environment, 0) for environment in seeds])
        # A batched class of its own takes one seed for all; only Gymnasium's wrappers promise to take one each.
        one_each = isinstance(self.envs, SyncVectorEnv | AsyncVectorEnv)
        return self._reset(seeds if one_each else seeds[0])

    def restart(self) -> Tensor:
        """The first observations [N, D] of further episodes, one in every environment, whatever became of the last."""
        self.episode += 1
        return self._reset(None)

    def _reset(self, seed: list[int] | int | None) -> Tensor:
        return self._tensor(self._first_obs(seed))

    def _first_obs(self, seed: list[int] | int | None) -> NDArray[np.float32]:
        self.batch_seed = seed if isinstance(seed, int) else self.batch_seed
        self.resetting[:] = False
        self.running_return[:] = 0
        self.running_length[:] = -1  # what goes wrong does so before the first step
        obs = as_float32(self._guarded(lambda: self.envs.reset(seed=seed))[0])  # type: ignore[arg-type]
        self.running_length[:] = 0
        self._check(obs, obs, np.zeros(self.num_envs, np.float32))
        self.history.clear()
        return obs

    def step(self, action: Tensor) -> Step:
        """Acts once: actions [N] or [N, A] as the policy sampled them, put into the environment's terms here.

        Raises:
            OneEnvError: An environment raised, hung, died, or gave what is no observation or no reward.
        """
        in_env = self.spaces.actions.to_env(action.cpu().numpy())
        if self.memory == "episodes":
            self.history.add(in_env)
        result = self._guarded(lambda: self.envs.step(in_env))
        if not self.seeded and (wrong := wrong_types(result, self.num_envs)):
            raise self._error(f"the batch of environments gave {wrong}{self._place()}")
        # All copies: an environment may write its next step over this one's arrays.
        obs = next_obs = as_float32(result[0])
        reward = as_float32(result[1])
        terminated, truncated = np.array(result[2], np.bool_), np.array(result[3], np.bool_)
        ended = terminated | truncated
        acted = ~self.resetting
        self.running_return += reward * acted
        self.running_length += acted
        any_ended = bool(ended.any())
        if any_ended and not self.resets_in_next_step:
            next_obs = obs.copy()
            final_obs = self._guarded(lambda: np.stack(result[4]["final_obs"][ended]))
            next_obs[ended] = as_float32(final_obs).reshape(-1, self.spaces.obs_size)
        self._check(obs, next_obs, reward)
        step = Step(
            *map(
                self._tensor,
                (
                    obs,
                    next_obs,
                    reward,
                    terminated,
                    truncated,
                    acted.astype(np.float32),
                    (self.running_return * ended).astype(np.float32),
                    (self.running_length * ended).astype(np.float32),
                ),
            )
        )
        if self.resets_in_next_step:
            if (ended & self.resetting).any():
                raise self._error(f"the batch of environments ended an episode in the step that resets{self._place()}")
            self.num_ignored += self.num_envs - int(acted.sum())
            self.resetting = ended
        self.running_return *= ~ended
        self.running_length *= ~ended
        if any_ended:
            self.episode += ended
            self.history.end(ended)
        self.num_steps += 1
        return step

    def to(self, device: torch.device) -> "GymEnvs":
        """Has the tensors made on this device from now on."""
        self.device = device
        return self

    def close(self) -> None:
        """Closes the environments, their processes included; those that do not close are left, and it is said."""
        if trouble := trouble_of(self.envs.close, self.timeout_seconds):
            print(f"note: --env-id {self.env_id}: close() {trouble} (rank {rank()})", file=sys.stderr)
            self._kill()
        atexit.unregister(self._kill)

    def state_dict(self) -> dict[str, Any]:
        """What brings the environments back to where they are; every value is [N, ...], but for a snapshot."""
        state: dict[str, Any] = {
            name: torch.from_numpy(getattr(self, name).copy())
            for name in ("environment", "episode", "running_return", "running_length", "resetting")
        }
        if self.memory == "snapshot":
            return {**state, "snapshot": snapshot(self.envs)}
        if self.memory == "none":
            return state
        return {**state, "actions": [torch.from_numpy(np.array(actions)) for actions in self.history.of_each()]}

    def load_state_dict(self, state: Mapping[str, Any], num_steps: int) -> Tensor | None:
        """Brings the environments back, after `num_steps` of the run: their observations [N, D], if they say them.

        Where they cannot be brought back, they start new episodes.
        """
        self.environment[:], self.episode[:] = state["environment"], state["episode"]
        self.num_steps = num_steps
        kept = "snapshot" if "snapshot" in state else "episodes" if "actions" in state else "none"
        if kept == "none" or kept != self.memory:
            self.episode += 1
            # A batched class of its own takes one seed, and another than it has had.
            return self._reset(self._places() if self.seeded else episode_seed(*divmod(self._places()[0], EPISODES)))
        if self.memory == "snapshot":
            for name in ("running_return", "running_length", "resetting"):
                getattr(self, name)[:] = state[name]
            self._guarded(lambda: restore(self.envs, state["snapshot"]))
            return None
        return self._tensor(self._replayed(state))

    def _replayed(self, state: Mapping[str, Any]) -> NDArray[np.float32]:
        """Plays the episodes again: the last observations; those whose actions are forgotten are new ones."""
        histories = [actions.numpy() for actions in state["actions"]]
        lengths = np.array([len(history) for history in histories])
        forgotten = (lengths < state["running_length"].numpy()) | (lengths > self.history.max_steps)
        lengths[forgotten] = 0
        histories = [history[:length] for history, length in zip(histories, lengths, strict=True)]
        self.episode += forgotten
        obs = self._first_obs(self._places())
        self._guarded(lambda: self.envs.set_attr("history", histories))  # type: ignore[attr-defined]
        for step in range(lengths.max()):
            # One step of all at a time, for which there is as much time as for any.
            self.running_length[:] = np.minimum(step, lengths)
            for n, seen in enumerate(self._guarded(lambda: self.envs.call("replay"))):  # type: ignore[attr-defined]
                obs[n] = obs[n] if seen is None else seen
        self.running_return[:] = state["running_return"].numpy() * ~forgotten
        self.running_length[:] = lengths
        self.history.restore(histories)
        return obs

    def _places(self) -> list[int]:
        return list(map(seed_of, self.environment.tolist(), self.episode.tolist()))

    @QUIET
    def _check(self, obs: NDArray[Any], next_obs: NDArray[Any], reward: NDArray[Any]) -> None:
        if obs.shape != (self.num_envs, self.spaces.obs_size):
            what = f"of shape {obs.shape}; must be {(self.num_envs, self.spaces.obs_size)}"
            raise self._error(f"the environments gave observations {what}{self._place()}")
        # A product with 0 is 0, but of what is not finite: the fastest way to look at all numbers.
        total = np.dot(obs.reshape(-1), self.zeros) + np.dot(reward, self.zeros[: self.num_envs])
        if total == 0 and (next_obs is obs or np.dot(next_obs.reshape(-1), self.zeros) == 0):
            return
        good = np.isfinite(next_obs).all(-1) & np.isfinite(reward) & np.isfinite(obs).all(-1)
        n = int(good.argmin())
        seen = next_obs[n]
        self.running_length[n] -= 1  # of the episode's steps before this one
        if np.isfinite(seen).all() and np.isfinite(reward[n]):  # but the first observation of the next episode is not
            seen = obs[n]
            self.episode[n] += 1
            self.running_length[n] = -1
        raise self._error(
            f"environment {n} gave an observation or a reward that is not finite: {seen.tolist()},"
            f" {reward[n]:g}{self._place(n)}"
        )

    def _guarded(self, call: Callable[[], Result]) -> Result:
        """What the environments return, or an error that names the one that did not."""
        try:
            with self.watched:
                return call()
        except EpisodeError as error:
            raise self._error(str(error)) from error
        except BaseException as error:
            if from_outside(error):
                raise
            lost = self._processes() and isinstance(error, EOFError | BrokenPipeError | ConnectionResetError)
            if not lost:
                raise self._error(f"the environments raised {described(error)}{self._place()}") from error
            n, how = how_ended(self._processes())
            raise self._error(f"the process of environment {n} {how}{self._place(n)}") from error

    def _error(self, what: str) -> OneEnvError:
        self._kill()
        return self._named(what)

    def _named(self, what: str) -> OneEnvError:
        place = f"rank {rank()}, step {self.num_steps + 1:,} of {self.where}"
        return OneEnvError(f"--env-id {self.env_id}: {what} ({place})")

    def _hung(self) -> str:
        how = f"has not answered for --env-timeout {self.timeout_seconds:g} s"
        if isinstance(self.envs, AsyncVectorEnv):
            waiting = [n for n, pipe in enumerate(self.envs.parent_pipes) if not pipe.poll(0)]
            return f"environment {waiting[0]} {how}{self._place(waiting[0])}" if waiting else how
        busy = [env for env in getattr(self.envs, "envs", []) if getattr(env, "busy", False)]
        return str(busy[0].failed(how)) if busy else f"the batch of environments {how}{self._place()}"

    def _place(self, n: int | None = None) -> str:
        which = f"the batch that reset(seed={self.batch_seed}) starts"
        if n is None:
            return "" if self.seeded else f", in {which}"
        if self.seeded:
            seed = episode_seed(int(self.environment[n]), int(self.episode[n]))
            which = f"the episode that reset(seed={seed}) starts"
        return f", at step {int(self.running_length[n]) + 1:,} of {which}"

    def _processes(self) -> list[Any]:
        return self.envs.processes if isinstance(self.envs, AsyncVectorEnv) else []

    def _kill(self) -> None:
        """Ends the environments' processes, whatever they are doing."""
        processes = self._processes()
        for process in processes:
            process.kill()
        for process in processes:
            process.join()
        if processes:
            self.envs.closed = True

    def _tensor(self, array: NDArray[Any]) -> Tensor:
        return torch.from_numpy(array).to(self.device)
