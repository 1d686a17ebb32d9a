"""Steps Gymnasium's NumPy environments in tensors, and survives what they do wrong."""

import atexit
import multiprocessing
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, TypeVar

import numpy as np
import torch
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv
from numpy.typing import NDArray
from torch import Tensor

from rl.envs.episodes import EpisodeError, seed_of
from rl.envs.snapshot import AnyVectorEnv, restore, snapshot
from rl.envs.spaces import Spaces
from rl.envs.step import Step
from rl.envs.watchdog import Watchdog
from rl.errors import OneEnvError, UserError, report
from rl.joining import rank
from rl.seeding import environment_seed, episode_seed

Result = TypeVar("Result")
Memory = Literal["episodes", "snapshot", "none"]
"""How environments come back after a resume: their episodes are played again, their attributes put back, or not."""


class Stepper:
    """Steps N Gymnasium environments in tensors, whatever way they are batched and reset."""

    def __init__(
        self,
        envs: AnyVectorEnv,
        env_id: str,
        *,
        seeded: bool = False,
        memory: Memory = "none",
        timeout_seconds: float | None = None,
    ) -> None:
        """`seeded` says that every environment is a `SeededEpisodes`; without a timeout a step may take for ever.

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
        self.num_ignored = 0
        self.running_return = np.zeros(self.num_envs)
        self.running_length = np.zeros(self.num_envs)
        self.num_steps = 0
        self.zeros = np.zeros(self.num_envs * self.spaces.obs_size, np.float32)
        # What brings seeded environments back: which episode each is in, and the actions [N, ...] of all steps since
        # the oldest of these episodes began; environment n began its own with number began[n] of them.
        self.environment = np.zeros(self.num_envs, np.int64)
        self.episode = np.zeros(self.num_envs, np.int64)
        self.actions: list[NDArray[Any]] = []
        self.began = np.zeros(self.num_envs, np.int64)
        self.timeout_seconds = timeout_seconds
        on_this_thread = not isinstance(envs, AsyncVectorEnv)
        self.watchdog = Watchdog(timeout_seconds, self._end_hung) if timeout_seconds and on_this_thread else None
        if not on_this_thread:
            # Before multiprocessing's own end, which would wait for them.
            atexit.register(self._kill)

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
        obs, _ = self._guarded(lambda: self.envs.reset(seed=seed))  # type: ignore[arg-type]
        self.resetting[:] = False
        self.running_return[:] = self.running_length[:] = 0
        self.actions.clear()
        self.began[:] = 0
        return self._tensor(np.array(obs, np.float32))

    def step(self, action: Tensor) -> Step:
        """Acts once: actions [N] or [N, A] as the policy sampled them, put into the environment's terms here.

        Raises:
            OneEnvError: An environment raised, hung, died, or gave what is no observation or no reward.
        """
        in_env = self.spaces.actions.to_env(action.cpu().numpy())
        result = self._guarded(lambda: self._act(in_env))
        # All copies: an environment may write its next step over this one's arrays.
        obs = next_obs = np.array(result[0], np.float32)
        reward = np.array(result[1], np.float32)
        terminated, truncated = np.array(result[2], np.bool_), np.array(result[3], np.bool_)
        ended = terminated | truncated
        acted = ~self.resetting
        self.running_return += reward
        self.running_length += acted
        any_ended = bool(ended.any())
        if any_ended and not self.resets_in_next_step:
            next_obs = obs.copy()
            next_obs[ended] = np.stack(result[4]["final_obs"][ended])
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
            self.num_ignored += self.num_envs - int(acted.sum())
            self.resetting = ended
        self.running_return *= ~ended
        self.running_length *= ~ended
        self._remember(in_env, ended, any_ended=any_ended)
        self.num_steps += 1
        return step

    def to(self, device: torch.device) -> "Stepper":
        """Has the tensors made on this device from now on."""
        self.device = device
        return self

    def close(self) -> None:
        """Closes the environments, their processes included."""
        if self.watchdog:
            self.watchdog.close()
        self.envs.close()
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
        played = [[action[n] for action in self.actions[began:]] for n, began in enumerate(self.began)]
        return {**state, "actions": [torch.from_numpy(np.array(actions)) for actions in played]}

    def load_state_dict(self, state: Mapping[str, Any], num_steps: int) -> Tensor | None:
        """Brings the environments back, after `num_steps` of the run: their observations [N, D], if they say them.

        Where they cannot be brought back, they start new episodes.
        """
        self.environment[:], self.episode[:] = state["environment"], state["episode"]
        self.num_steps = num_steps
        kept = "snapshot" if "snapshot" in state else "episodes" if "actions" in state else "none"
        if kept == "none" or kept != self.memory:
            self.episode += 1
            places = list(zip(self.environment.tolist(), self.episode.tolist(), strict=True))
            # A batched class of its own takes one seed, and another than it has had.
            return self._reset([seed_of(*place) for place in places] if self.seeded else episode_seed(*places[0]))
        for name in ("running_return", "running_length", "resetting"):
            getattr(self, name)[:] = state[name]
        if self.memory == "snapshot":
            restore(self.envs, state["snapshot"])
            return None
        histories = [actions.numpy() for actions in state["actions"]]
        longest = max(map(len, histories))
        self.began[:] = [longest - len(history) for history in histories]
        shape = next((history.shape[1:] for history in histories if len(history)), ())
        dtype = next((history.dtype for history in histories if len(history)), np.dtype(np.int64))
        aligned = np.zeros((longest, self.num_envs, *shape), dtype)
        for n, history in enumerate(histories):
            aligned[self.began[n] :, n] = history
        self.actions = list(aligned)
        self.envs.set_attr("environment", self.environment.tolist())  # type: ignore[attr-defined]
        self.envs.set_attr("episode", self.episode.tolist())  # type: ignore[attr-defined]
        self.envs.set_attr("history", histories)  # type: ignore[attr-defined]
        # A long episode takes its time to be played again, in which nothing hangs.
        return self._tensor(np.stack(self.envs.call("replay")).astype(np.float32))  # type: ignore[attr-defined]

    def _act(self, actions: NDArray[Any]) -> tuple[Any, ...]:
        if isinstance(self.envs, AsyncVectorEnv):
            self.envs.step_async(actions)
            return self.envs.step_wait(self.timeout_seconds)
        return self.envs.step(actions)

    def _remember(self, actions: NDArray[Any], ended: NDArray[np.bool_], *, any_ended: bool) -> None:
        if self.memory == "episodes":
            self.actions.append(actions)
        if any_ended:
            self.episode += ended
            self.began[ended] = len(self.actions)
        # Now and then what no running episode needs is forgotten: so rarely that it costs nothing.
        if len(self.actions) % 1024 == 1023 and (unused := int(self.began.min())):
            del self.actions[:unused]
            self.began -= unused

    def _check(self, obs: NDArray[Any], next_obs: NDArray[Any], reward: NDArray[Any]) -> None:
        if obs.shape != (self.num_envs, self.spaces.obs_size):
            expected = (self.num_envs, self.spaces.obs_size)
            raise self._error(f"the environments gave observations of shape {obs.shape}; must be {expected}")
        # A product with 0 is 0, but of what is not finite: the fastest way to look at all numbers.
        total = np.dot(obs.reshape(-1), self.zeros) + np.dot(reward, self.zeros[: self.num_envs])
        if total == 0 and (next_obs is obs or np.dot(next_obs.reshape(-1), self.zeros) == 0):
            return
        good = np.isfinite(next_obs).all(-1) & np.isfinite(reward) & np.isfinite(obs).all(-1)
        n = int(good.argmin())
        self.running_length[n] -= 1  # of the episode's steps before this one
        raise self._error(
            f"environment {n} gave an observation or a reward that is not finite: {next_obs[n].tolist()},"
            f" {reward[n]:g}{self._place([n])}"
        )

    def _guarded(self, call: Callable[[], Result]) -> Result:
        """What the environments return, or an error that names the one that did not."""
        try:
            if self.watchdog is None:
                return call()
            self.watchdog.start()
            result = call()
            self.watchdog.stop()
            return result
        except EpisodeError as error:
            raise self._error(str(error)) from error
        except multiprocessing.TimeoutError as error:
            raise self._error(self._hung()) from error
        except (EOFError, BrokenPipeError, ConnectionResetError) as error:
            raise self._error(self._died()) from error
        except Exception as error:
            raise self._error(f"the environments raised {type(error).__name__}: {error}") from error

    def _error(self, what: str) -> OneEnvError:
        self._kill()
        return OneEnvError(f"--env-id {self.env_id}: {what} (rank {rank()}, step {self.num_steps + 1:,} of the run)")

    def _hung(self) -> str:
        if isinstance(self.envs, AsyncVectorEnv):
            waiting = [n for n, pipe in enumerate(self.envs.parent_pipes) if not pipe.poll(0)]
        else:
            # They are asked in turn: of those that have begun this step it is the last.
            counts = [getattr(env, "num_steps", 0) for env in getattr(self.envs, "envs", [])]
            waiting = [n for n, count in enumerate(counts) if count != self.running_length[n]][-1:]
        which = f"environment {waiting[0]}" if waiting else "the batch of environments"
        return f"{which} has not answered for --env-timeout {self.timeout_seconds:g} s{self._place(waiting)}"

    def _died(self) -> str:
        for process in self._processes():
            process.join(0.5)
        dead = [(n, process.exitcode) for n, process in enumerate(self._processes()) if not process.is_alive()]
        if not dead:
            return "an environment's process does not answer"
        n, code = dead[0]
        how = f"was killed by signal {-code} (out of memory?)" if code and code < 0 else f"ended with code {code}"
        return f"the process of environment {n} {how}{self._place([n])}"

    def _place(self, environments: Sequence[int]) -> str:
        if not environments:
            return ""
        n = environments[0]
        environment, episode = int(self.environment[n]), int(self.episode[n])
        which = f"the episode that reset(seed={episode_seed(environment, episode)}) starts"
        return f", at step {int(self.running_length[n]) + 1:,} of {which if self.seeded else 'its episode'}"

    def _end_hung(self) -> None:
        """Ends this process, from another thread: nothing else ends a call that does not return."""
        error = self._error(self._hung())
        report(error)
        os._exit(error.exit_code)

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
